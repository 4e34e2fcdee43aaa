// y = curve(sum + b), where the sums were added up place by place.

struct Params {
    rows: u32,
    fours: u32,
    curve: u32,
    cols: u32,
    b: u32,
    y: u32,
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> sums: array<vec4<f32>>;
@group(1) @binding(1) var<storage, read> b: array<Four>;
@group(1) @binding(2) var<storage, read_write> y: array<Four>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups) * 256u + thread;
    if (number >= p.rows * p.fours) {
        return;
    }
    let four = number % p.fours;
    let at = p.y + number / p.fours * p.y_stride + four;
    let out = narrow(bend(p.curve, sums[number] + wide(b[p.b + four])));
    y[at] = merge_four(y[at], out, p.cols - 4u * four);
}
