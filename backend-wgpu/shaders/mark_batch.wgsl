// The batch transposed as bits: `marks` has a row of bits for each item, one for each row of the batch, set where the row
// holds the item and the noise keeps it. Setting bits commutes, so threads may do it in any order. A group takes a row.

const THREADS = 64u;

struct Params {
    x: Rows,
    noise: Noise,
    // Words of a row of bits.
    words: u32,
    // Items that have one.
    first_item: u32,
    items: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> indices: array<u32>;
@group(1) @binding(2) var<storage, read> values: array<f32>;
@group(1) @binding(3) var<storage, read> users: array<u32>;
@group(1) @binding(4) var<storage, read> step: Step;
@group(1) @binding(5) var<storage, read_write> marks: array<atomic<u32>>;
@group(1) @binding(6) var<storage, read_write> holders: array<Holder>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let r = group_number(group, groups);
    if (r >= p.x.count) {
        return;
    }
    let row = row_at(p.x, p.x.first + step.first + r);
    for (var event = row.start + thread; event < row.end; event += THREADS) {
        let item = indices[event];
        if (item - p.first_item < p.items && keeps(p.noise, step.update, row.user, item)) {
            atomicOr(&marks[(item - p.first_item) * p.words + r / 32u], 1u << (r % 32u));
        }
    }
    let factor = inverse_norm(p.x, row, thread) * p.noise.inverse_keep;
    if (thread == 0u) {
        holders[r] = Holder(factor, row.start, row.end);
    }
}
