// Rows of the batch. A kernel that has these declares the lists under these names:
//     indptr, indices, users: array<u32>;  values: array<f32>

struct Rows {
    first: u32,
    count: u32,
    // Which lists there are: 1 row starts, 2 values, 4 users.
    flags: u32,
    unused: u32,
}

struct Row {
    // Row of the matrix: the user that noise is counted by.
    user: u32,
    start: u32,
    end: u32,
}

// Row `position` of the list, which is `first + r` for row r of the batch.
fn row_at(x: Rows, position: u32) -> Row {
    var user = position;
    if ((x.flags & 4u) != 0u) {
        user = users[position];
    }
    if ((x.flags & 1u) == 0u) {
        return Row(user, 0u, 0u);
    }
    return Row(user, indptr[user], indptr[user + 1u]);
}

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
