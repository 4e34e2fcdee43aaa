// dmu = dz + beta mu, dlogvar = 1/2 dz eps exp(logvar / 2) + beta / 2 (exp(logvar) - 1): one half at a time. A thread takes
// a four of the result.

struct Params {
    x: Rows,
    noise: Noise,
    // Columns of the statistics that are here. Addresses are those of column 0, which may be elsewhere, before the start.
    start: u32,
    end: u32,
    // The column of unit 0: zero, or that of the first logarithm.
    half_at: u32,
    stats: u32,
    stats_stride: u32,
    // The element; all others are fours.
    dz: u32,
    dz_stride: u32,
    out: u32,
    out_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> users: array<u32>;
@group(1) @binding(2) var<storage, read> step: Step;
@group(1) @binding(3) var<storage, read> scale: Scale;
@group(1) @binding(4) var<storage, read> stats: array<Four>;
@group(1) @binding(5) var<storage, read> dzs: array<Four>;
@group(1) @binding(6) var<storage, read_write> dstats: array<Four>;

fn dz_at(element: u32, lanes: Lanes) -> vec4<f32> {
    let by = element % 4u;
    var a = Four();
    var b = Four();
    if (in_first(lanes, by)) {
        a = dzs[element / 4u];
    }
    if (in_second(lanes, by)) {
        b = dzs[(element + 4u) / 4u];
    }
    return shifted(wide(a), wide(b), by);
}

// The draws of four units.
fn eps_at(user: u32, unit: u32, lanes: Lanes) -> vec4<f32> {
    let by = unit % 4u;
    var a = vec4<f32>();
    var b = vec4<f32>();
    if (in_first(lanes, by)) {
        a = normals(p.noise, step.update, user, unit / 4u);
    }
    if (in_second(lanes, by)) {
        b = normals(p.noise, step.update, user, (unit + 4u) / 4u);
    }
    return shifted(a, b, by);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups) * 64u + thread;
    let across = (p.end + 3u) / 4u - p.start / 4u;
    let r = number / across;
    if (r >= p.x.count) {
        return;
    }
    let four = p.start / 4u + number % across;
    let lanes = lanes_in(4u * four, p.start, p.end);
    let stat = wide(stats[p.stats + r * p.stats_stride + four]);
    let dz = dz_at(p.dz + 4u * (r * p.dz_stride + four), lanes);
    let beta = step.beta * scale.scale;
    var slope = fma(vec4<f32>(beta), stat, dz);
    if (p.half_at > 0u) {
        var eps = vec4<f32>();
        if (p.noise.keep > 0.0) {
            let user = row_at(p.x, p.x.first + step.first + r).user;
            eps = eps_at(user, 4u * four - p.half_at, lanes);
        }
        let deviation = exponential4(0.5 * stat);
        slope = 0.5 * fma(dz * eps, deviation, beta * (deviation * deviation - 1.0));
    }
    let at = p.out + r * p.out_stride + four;
    dstats[at] = merge_lanes(dstats[at], narrow(slope), lanes);
}
