// Whether all gradients are finite: an update that is skipped leaves everything as it was, so all of them are looked at
// before the first weight changes.

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> dw: array<vec4<f32>>;
@group(1) @binding(1) var<storage, read_write> bad: atomic<u32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = group_number(group, groups) * 256u + thread;
    if (4u * at >= p.len) {
        return;
    }
    if (!all_finite(merge(vec4<f32>(0.0), dw[at], p.len - 4u * at))) {
        atomicOr(&bad, 1u);
    }
}
