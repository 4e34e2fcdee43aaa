// The loss of a row, and the gradient of a chunk of it.

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indices: array<u32>;
@group(1) @binding(1) var<storage, read> values: array<f32>;
@group(1) @binding(2) var<storage, read> scale: Scale;
@group(1) @binding(3) var<storage, read> parts: array<Part>;
@group(1) @binding(4) var<storage, read> events: array<Events>;
@group(1) @binding(5) var<storage, read_write> logits: array<Four>;
@group(1) @binding(6) var<storage, read_write> losses: array<f32>;

// The weights that the chunk's items have in the history, as bits, of which some are no number and stand for none.
const ABSENT = 0xffffffffu;
var<workgroup> history: array<u32, CHUNK>;
// What each thread has joined: the largest logit, and the sums.
var<workgroup> tops: array<f32, THREADS>;
var<workgroup> sums: array<vec3<f32>, THREADS>;

fn above(part: Part, top: f32) -> vec3<f32> {
    return vec3<f32>(part.sum * exponential(part.top - top), part.total, part.loss + part.total * (top - part.top));
}

fn join(a: Part, b: Part) -> Part {
    let top = select(a.top, b.top, b.top > a.top);
    let sum = above(a, top) + above(b, top);
    return Part(top, sum.x, sum.y, sum.z);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups);
    if (number >= p.x.count * p.chunks) {
        return;
    }
    let chunk = chunk_of(number);
    let row = chunk.row * p.row_chunks;
    let found = events[row + chunk.number];

    for (var i = thread; i < CHUNK; i += THREADS) {
        history[i] = ABSENT;
    }
    // Mostly a thread has one part or none.
    var mine = Part(LOWEST, 0.0, 0.0, 0.0);
    if (thread < p.row_chunks) {
        mine = parts[row + thread];
    }
    for (var other = thread + THREADS; other < p.row_chunks; other += THREADS) {
        mine = join(mine, parts[row + other]);
    }
    tops[thread] = mine.top;
    workgroupBarrier();

    for (var event = found.start + thread; event < found.end; event += THREADS) {
        history[indices[event] - chunk.first_item] = bitcast<u32>(value_at(p.x, event));
    }
    let joined = min(p.row_chunks, THREADS);
    var top = tops[0];
    for (var other = 1u; other < joined; other++) {
        top = select(top, tops[other], tops[other] > top);
    }
    sums[thread] = above(mine, top);
    workgroupBarrier();

    var all = sums[0];
    for (var other = 1u; other < joined; other++) {
        all += sums[other];
    }
    if (thread == 0u && chunk.number == 0u) {
        let entropy = select(0.0, all.y * logarithm(all.x), p.kind == MULTINOMIAL);
        losses[p.loss + found.position * p.loss_stride] = all.z + entropy;
    }
    let factor = scale.scale;
    let share = factor * all.y / all.x;
    for (var i = thread; 4u * i < chunk.count; i += THREADS) {
        let old = logits[chunk.four + i];
        let f = wide(old);
        let bits = vec4<u32>(history[4u * i], history[4u * i + 1u], history[4u * i + 2u], history[4u * i + 3u]);
        let present = bits != vec4<u32>(ABSENT);
        let x = select(vec4<f32>(0.0), bitcast<vec4<f32>>(bits), present);
        var g: vec4<f32>;
        if (p.kind == MULTINOMIAL) {
            g = share * exponential4(f - top) - factor * x;
        } else if (p.kind == GAUSSIAN) {
            g = select(factor * p.unseen * f, factor * p.seen * (f - x), present);
        } else {
            let e = exponential4(-abs(f));
            g = factor * (select(vec4<f32>(1.0), e, f < vec4<f32>(0.0)) / (1.0 + e) - x);
        }
        logits[chunk.four + i] = merge_four(old, narrow(g), chunk.count - 4u * i);
    }
}
