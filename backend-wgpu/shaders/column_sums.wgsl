// out[c] = the sum of column c, in single precision. A group takes eight fours of columns: each of its threads adds
// up every 32nd row of one of them, and eight threads what those have found.
struct Params {
    groups: u32,
    rows: u32,
    cols: u32,
    x: u32,
    x_stride: u32,
    to: u32,
    // Whether the sums are added to what is there.
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> x: array<Four>;
@group(1) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;

var<workgroup> found: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups);
    if (number >= p.groups) {
        return;
    }
    let col = 8u * number + thread % 8u;
    let inside = 4u * col < p.cols;
    var sum = vec4<f32>();
    if (inside) {
        for (var row = thread / 8u; row < p.rows; row += 32u) {
            sum += wide(x[p.x + row * p.x_stride + col]);
        }
    }
    found[thread] = sum;
    workgroupBarrier();
    if (thread >= 8u || !inside) {
        return;
    }
    for (var other = 1u; other < 32u; other++) {
        sum += found[thread + 8u * other];
    }
    let at = p.to + col;
    let old = sums[at];
    sums[at] = merge(old, select(sum, old + sum, p.add != 0u), p.cols - 4u * col);
}
