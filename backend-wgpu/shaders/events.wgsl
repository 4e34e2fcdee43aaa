// Events of a row. A kernel that has these declares the lists under these names:
//     indices: array<u32>;  values: array<f32>

fn value_at(x: Rows, event: u32) -> f32 {
    if ((x.flags & 2u) == 0u) {
        return 1.0;
    }
    return values[event];
}

// The first event of a row whose item is not below `item`.
fn lower_bound(start: u32, end: u32, item: u32) -> u32 {
    var low = start;
    var high = end;
    while (low < high) {
        let middle = low + (high - low) / 2u;
        if (indices[middle] < item) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}
