// One Adam update of a piece of the arena, unless a gradient is not finite.

struct Params {
    len: u32,
    // Elements from the start that decay.
    decayed: u32,
    // Whether operations read a copy of the weights.
    copied: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read_write> w: array<vec4<f32>>;
@group(1) @binding(1) var<storage, read> dw: array<vec4<f32>>;
@group(1) @binding(2) var<storage, read_write> m: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read_write> v: array<vec4<f32>>;
@group(1) @binding(4) var<storage, read_write> copy: array<Four>;
@group(1) @binding(5) var<storage, read> step: Step;
@group(1) @binding(6) var<storage, read> scale: Scale;
@group(1) @binding(7) var<storage, read> bad: u32;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = group_number(group, groups) * 256u + thread;
    if (4u * at >= p.len || bad != 0u) {
        return;
    }
    let count = p.len - 4u * at;
    let decays = vec4<u32>(4u * at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.decayed);
    let weights = w[at];
    let g = fma(dw[at], vec4<f32>(step.grad_factor / scale.scale), select(vec4<f32>(0.0), step.l2 * weights, decays));
    let first = fma(vec4<f32>(step.beta1), m[at], step.gain1 * g);
    let second = fma(vec4<f32>(step.beta2), v[at], step.gain2 * g * g);
    let updated = weights - step.rate * first / fma(sqrt(second), vec4<f32>(step.root), vec4<f32>(step.eps));
    w[at] = merge(weights, updated, count);
    m[at] = merge(m[at], first, count);
    v[at] = merge(v[at], second, count);
    if (p.copied != 0u) {
        copy[at] = merge_four(copy[at], narrow(updated), count);
    }
}
