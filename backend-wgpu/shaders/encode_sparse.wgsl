// The first layer, a weighted sum of the weight rows of a user's items.
//
// A group takes a user and a block of columns. Its threads stand in teams, each as wide as the block in fours, and teams
// take events in turn; what they summed is added up in a fixed order, and `finish` does the rest: the curve, or, where
// the weights are in several places, the addition to what came from others.

const THREADS = 256u;

struct Params {
    x: Rows,
    noise: Noise,
    groups: u32,
    // Fours of a row and, but for the last, of a block.
    fours: u32,
    wide: u32,
    // Items whose weights are here.
    first_item: u32,
    items: u32,
    w: u32,
    w_stride: u32,
    // Whether something came before.
    again: u32,
    curve: u32,
    cols: u32,
    b: u32,
    y: u32,
    y_stride: u32,
}

// An event that counts: where the weights begin, and its coefficient.
struct Kept {
    at: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> indices: array<u32>;
@group(1) @binding(2) var<storage, read> values: array<f32>;
@group(1) @binding(3) var<storage, read> users: array<u32>;
@group(1) @binding(4) var<storage, read> step: Step;
@group(1) @binding(5) var<storage, read> w: array<Four>;

// The events of a tile that count, those before others of a higher number.
var<workgroup> kept: array<Kept, THREADS>;
// Which these are, as bits.
var<workgroup> counts: array<atomic<u32>, THREADS / 32u>;
var<workgroup> found: array<vec4<f32>, THREADS>;

fn term(event: u32, four: u32) -> vec4<f32> {
    let one = kept[event];
    return one.factor * wide(w[one.at + four]);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups);
    if (number >= p.groups) {
        return;
    }
    let blocks = (p.fours + p.wide - 1u) / p.wide;
    let r = number / blocks;
    let start = number % blocks * p.wide;
    let across = min(p.fours - start, p.wide);
    let teams = THREADS / across;
    let team = thread / across;
    let four = start + thread % across;

    let row = row_at(p.x, p.x.first + step.first + r);
    let factor = inverse_norm(p.x, row, thread) * p.noise.inverse_keep;
    var sum = vec4<f32>();
    for (var tile = row.start; tile < row.end; tile += THREADS) {
        if (thread < THREADS / 32u) {
            atomicStore(&counts[thread], 0u);
        }
        workgroupBarrier();
        let event = tile + thread;
        var item = 0u;
        var counted = false;
        if (event < row.end) {
            item = indices[event];
            counted = item - p.first_item < p.items && keeps(p.noise, step.update, row.user, item);
        }
        if (counted) {
            atomicOr(&counts[thread / 32u], 1u << (thread % 32u));
        }
        workgroupBarrier();
        var before = 0u;
        var all = 0u;
        for (var word = 0u; word < THREADS / 32u; word++) {
            let bits = atomicLoad(&counts[word]);
            before += select(0u, countOneBits(bits), word < thread / 32u);
            all += countOneBits(bits);
        }
        if (counted) {
            before += countOneBits(atomicLoad(&counts[thread / 32u]) & ((1u << (thread % 32u)) - 1u));
            kept[before] = Kept(p.w + (item - p.first_item) * p.w_stride, factor * value_at(p.x, event));
        }
        workgroupBarrier();
        if (team < teams) {
            var e = team;
            // Rows come from afar: several are under way at a time.
            for (; e + 3u * teams < all; e += 4u * teams) {
                let a = term(e, four);
                let b = term(e + teams, four);
                let c = term(e + 2u * teams, four);
                let d = term(e + 3u * teams, four);
                sum = sum + a + b + c + d;
            }
            for (; e < all; e += teams) {
                sum += term(e, four);
            }
        }
    }
    found[thread] = sum;
    workgroupBarrier();
    if (thread >= across) {
        return;
    }
    for (var other = 1u; other < teams; other++) {
        sum += found[other * across + thread];
    }
    finish(r, four, sum);
}
