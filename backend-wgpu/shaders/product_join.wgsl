
// Adds up the parts of a product, in their order, and finishes it. One thread for each four.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let fours = (p.n + 3u) / 4u;
    let at = group_number(group, groups) * 64u + thread;
    let row = at / fours;
    let col = at % fours;
    if (row < p.m_from || row >= p.m) {
        return;
    }
    var sum = parts[row * fours + col];
    for (var part = 1u; part < p.parts; part++) {
        sum += parts[(part * p.m + row) * fours + col];
    }
    finish(0u, row, col, sum);
}
