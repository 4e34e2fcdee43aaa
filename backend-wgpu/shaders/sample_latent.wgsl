// z = mu + exp(logvar / 2) eps; kl[first + r] = 1/2 sum (exp(logvar) + mu^2 - 1 - logvar). A group takes a user, and a
// thread one block of four units after the other, which share a draw.

const THREADS = 64u;

struct Params {
    x: Rows,
    noise: Noise,
    // Units that are here. Addresses are those of unit 0, which may be elsewhere, before the start.
    start: u32,
    end: u32,
    mu: u32,
    // The element; all others are fours.
    logvar: u32,
    stats_stride: u32,
    z: u32,
    z_stride: u32,
    kl: u32,
    kl_stride: u32,
    // Whether units came before.
    again: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> users: array<u32>;
@group(1) @binding(2) var<storage, read> step: Step;
@group(1) @binding(3) var<storage, read> mus: array<Four>;
@group(1) @binding(4) var<storage, read> logvars: array<Four>;
@group(1) @binding(5) var<storage, read_write> z: array<Four>;
@group(1) @binding(6) var<storage, read_write> kl: array<f32>;

fn logvar_at(element: u32, lanes: Lanes) -> vec4<f32> {
    let by = element % 4u;
    var a = Four();
    var b = Four();
    if (in_first(lanes, by)) {
        a = logvars[element / 4u];
    }
    if (in_second(lanes, by)) {
        b = logvars[(element + 4u) / 4u];
    }
    return shifted(wide(a), wide(b), by);
}

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
    let position = p.x.first + step.first + r;
    let user = row_at(p.x, position).user;
    var sum = 0.0;
    for (var block = p.start / 4u + thread; 4u * block < p.end; block += THREADS) {
        let lanes = lanes_in(4u * block, p.start, p.end);
        let mu = wide(mus[p.mu + r * p.stats_stride + block]);
        let logvar = logvar_at(p.logvar + 4u * (r * p.stats_stride + block), lanes);
        var eps = vec4<f32>();
        if (p.noise.keep > 0.0) {
            eps = normals(p.noise, step.update, user, block);
        }
        let at = p.z + r * p.z_stride + block;
        let sampled = narrow(fma(exponential4(0.5 * logvar), eps, mu));
        z[at] = merge_lanes(z[at], sampled, lanes);
        let terms = 0.5 * (exponential4(logvar) + mu * mu - 1.0 - logvar);
        for (var lane = lanes.low; lane < lanes.high; lane++) {
            sum += terms[lane];
        }
    }
    sum = group_sum(sum, thread);
    if (thread == 0u) {
        let at = p.kl + position * p.kl_stride;
        if (p.again != 0u) {
            sum += kl[at];
        }
        kl[at] = sum;
    }
}
