// What a chunk of a row tells about its loss.

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> indices: array<u32>;
@group(1) @binding(2) var<storage, read> values: array<f32>;
@group(1) @binding(3) var<storage, read> users: array<u32>;
@group(1) @binding(4) var<storage, read> step: Step;
@group(1) @binding(5) var<storage, read> logits: array<Four>;
@group(1) @binding(6) var<storage, read_write> parts: array<Part>;
@group(1) @binding(7) var<storage, read_write> events: array<Events>;

// Numbers of all threads are combined in two steps, of which each has one order.
const TEAM = 16u;
var<workgroup> tops: array<f32, THREADS>;
var<workgroup> team_tops: array<f32, TEAM>;
var<workgroup> sums: array<vec3<f32>, THREADS>;
var<workgroup> team_sums: array<vec3<f32>, TEAM>;

fn largest(thread: u32, mine: f32) -> f32 {
    tops[thread] = mine;
    workgroupBarrier();
    if (thread < TEAM) {
        var top = mine;
        for (var other = thread + TEAM; other < THREADS; other += TEAM) {
            top = select(top, tops[other], tops[other] > top);
        }
        team_tops[thread] = top;
    }
    workgroupBarrier();
    var top = team_tops[0];
    for (var team = 1u; team < TEAM; team++) {
        top = select(top, team_tops[team], team_tops[team] > top);
    }
    return top;
}

// Of the first thread; others have no use for it.
fn sum_of_all(thread: u32, mine: vec3<f32>) -> vec3<f32> {
    sums[thread] = mine;
    workgroupBarrier();
    if (thread < TEAM) {
        var sum = mine;
        for (var other = thread + TEAM; other < THREADS; other += TEAM) {
            sum += sums[other];
        }
        team_sums[thread] = sum;
    }
    workgroupBarrier();
    var sum = vec3<f32>(0.0);
    if (thread == 0u) {
        for (var team = 0u; team < TEAM; team++) {
            sum += team_sums[team];
        }
    }
    return sum;
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
    let position = p.x.first + step.first + chunk.row;
    let row = row_at(p.x, position);
    let start = lower_bound(row.start, row.end, chunk.first_item);
    let end = lower_bound(start, row.end, chunk.first_item + chunk.count);

    var top = 0.0;
    if (p.kind == MULTINOMIAL) {
        var mine = vec4<f32>(LOWEST);
        for (var i = thread; 4u * i < chunk.count; i += THREADS) {
            let f = merge(vec4<f32>(LOWEST), wide(logits[chunk.four + i]), chunk.count - 4u * i);
            mine = select(mine, f, f > mine);
        }
        let pair = select(mine.xy, mine.zw, mine.zw > mine.xy);
        top = largest(thread, select(pair.x, pair.y, pair.y > pair.x));
    }

    // As if the history were empty ...
    var all = vec4<f32>(0.0);
    for (var i = thread; 4u * i < chunk.count; i += THREADS) {
        let f = wide(logits[chunk.four + i]);
        var term: vec4<f32>;
        if (p.kind == MULTINOMIAL) {
            term = exponential4(f - top);
        } else if (p.kind == GAUSSIAN) {
            term = 0.5 * p.unseen * f * f;
        } else {
            let positive = select(f, vec4<f32>(0.0), f < vec4<f32>(0.0));
            term = positive + logarithm_of_one_and(exponential4(-abs(f)));
        }
        all += merge(vec4<f32>(0.0), term, chunk.count - 4u * i);
    }
    let sum = (all.x + all.y) + (all.z + all.w);
    // ... and the items of it.
    var total = 0.0;
    var loss = 0.0;
    for (var event = start + thread; event < end; event += THREADS) {
        let item = indices[event] - chunk.first_item;
        let f = wide(logits[chunk.four + item / 4u])[item % 4u];
        let x = value_at(p.x, event);
        if (p.kind == MULTINOMIAL) {
            total += x;
            loss += x * (top - f);
        } else if (p.kind == GAUSSIAN) {
            loss += 0.5 * p.seen * (f - x) * (f - x) - 0.5 * p.unseen * f * f;
        } else {
            loss -= x * f;
        }
    }
    let told = sum_of_all(thread, vec3<f32>(sum, total, loss));
    if (thread == 0u) {
        let at = chunk.row * p.row_chunks + chunk.number;
        if (p.kind == MULTINOMIAL) {
            parts[at] = Part(top, told.x, told.y, told.z);
        } else {
            parts[at] = Part(0.0, 0.0, 0.0, told.x + told.z);
        }
        events[at] = Events(start, end, position, 0u);
    }
}
