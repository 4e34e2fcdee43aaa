// The k best of each row, exactly: one workgroup a row, or a stretch of one.
//
// A score becomes a key that ascends with it, 0 where it may not be ranked. A key and, to be larger for the smaller
// item, the item's complement are a rank, of which no two are equal. What is above a bound is gathered, and each finds
// its place by counting those above it. Where few are wanted the bound is a guess: of the best ones of each thread, the
// k-th best. It is not above the k-th best of all, and mostly next to it. Where it is not, or many are wanted, the bound
// is found byte by byte from histograms. More than ROUND are ranked in rounds, each below the last of the one before.
//
// What is ranked is one of two texts: it has `Source`, what a workgroup ranks, and `keys_at` and `items_at`, four of it.

const THREADS = 256u;
const ROUND = 1024u;
// So many are guessed: of a good guess, a quarter of the threads have their best one below it.
const GUESSED = 192u;

// Where no item is left.
const NO_ITEM = 0xffffffffu;

const NAN_KEY = 1u;

// Ascending with scores; NaN is below all, and -0 is 0.
fn keys_of(scores: vec4<u32>) -> vec4<u32> {
    let bits = select(scores, vec4<u32>(0u), scores == vec4<u32>(0x80000000u));
    let keys = select(bits | vec4<u32>(0x80000000u), ~bits, bits >= vec4<u32>(0x80000000u));
    return select(keys, vec4<u32>(NAN_KEY), (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(INFINITY_BITS));
}

fn score_of(key: u32) -> u32 {
    if (key == NAN_KEY) {
        return 0x7fc00000u;
    }
    return select(~key, key & 0x7fffffffu, key >= 0x80000000u);
}

// Above all ranks there are.
const BEYOND = vec2<u32>(0xffffffffu, 0xffffffffu);

fn is_above(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y > b.y);
}

var<workgroup> ranks: array<vec2<u32>, ROUND>;
var<workgroup> gathered: atomic<u32>;
var<workgroup> histogram: array<atomic<u32>, THREADS>;
// What one thread tells all.
var<workgroup> told: vec4<u32>;

// How many of the first `count` ranks are above one.
fn place_of(rank: vec2<u32>, count: u32) -> u32 {
    var place = 0u;
    for (var other = 0u; other < count; other++) {
        place += select(0u, 1u, is_above(ranks[other], rank));
    }
    return place;
}

// The k-th best of what is the best of each thread; 0 where there are fewer.
fn guess(source: Source, thread: u32, k: u32) -> vec2<u32> {
    let busy = min(source.fours, THREADS);
    if (busy < k) {
        return vec2<u32>(0u);
    }
    var best = 0u;
    for (var i = thread; i < source.fours; i += THREADS) {
        let keys = keys_at(source, i);
        best = max(best, max(max(keys.x, keys.y), max(keys.z, keys.w)));
    }
    ranks[thread] = vec2<u32>(best, thread);
    workgroupBarrier();
    if (thread < busy && place_of(ranks[thread], busy) == k - 1u) {
        told = vec4<u32>(best, 0u, 0u, 0u);
    }
    return workgroupUniformLoad(&told).xy;
}

fn is_open(rank: vec2<u32>, beyond: vec2<u32>) -> bool {
    return rank.x != 0u && is_above(beyond, rank);
}

fn count_in(rank: vec2<u32>, beyond: vec2<u32>, prefix: vec2<u32>, mask: vec2<u32>, byte: u32) {
    if (is_open(rank, beyond) && all((rank & mask) == prefix)) {
        atomicAdd(&histogram[(rank[byte / 4u] >> (24u - 8u * (byte % 4u))) & 255u], 1u);
    }
}

// The smallest rank such that those from it on, and below `beyond`, are k; where there are fewer, 0.
fn select_bound(source: Source, thread: u32, beyond: vec2<u32>, k: u32) -> vec2<u32> {
    // What is known of it, and the bits of it that are known.
    var prefix = vec2<u32>(0u);
    var mask = vec2<u32>(0u);
    var wanted = k;
    for (var byte = 0u; byte < 8u; byte++) {
        atomicStore(&histogram[thread], 0u);
        workgroupBarrier();
        for (var i = thread; i < source.fours; i += THREADS) {
            let keys = keys_at(source, i);
            let items = items_at(source, i);
            count_in(vec2<u32>(keys.x, ~items.x), beyond, prefix, mask, byte);
            count_in(vec2<u32>(keys.y, ~items.y), beyond, prefix, mask, byte);
            count_in(vec2<u32>(keys.z, ~items.z), beyond, prefix, mask, byte);
            count_in(vec2<u32>(keys.w, ~items.w), beyond, prefix, mask, byte);
        }
        workgroupBarrier();
        // From the top, the byte with which there are enough.
        let mine = atomicLoad(&histogram[thread]);
        var before = 0u;
        for (var other = thread + 1u; other < THREADS; other++) {
            before += atomicLoad(&histogram[other]);
        }
        if ((before < wanted && wanted <= before + mine) || (thread == 0u && before + mine < wanted)) {
            told = vec4<u32>(thread, before, mine, 0u);
        }
        let found = workgroupUniformLoad(&told);
        if (found.y + found.z < wanted) {
            return vec2<u32>(0u);
        }
        let shift = 24u - 8u * (byte % 4u);
        prefix |= select(vec2<u32>(0u, found.x << shift), vec2<u32>(found.x << shift, 0u), byte < 4u);
        mask |= select(vec2<u32>(0u, 255u << shift), vec2<u32>(255u << shift, 0u), byte < 4u);
        wanted -= found.y;
        if (found.z == wanted) {
            break;
        }
    }
    return prefix;
}

fn take(rank: vec2<u32>, bound: vec2<u32>, beyond: vec2<u32>) {
    if (is_open(rank, beyond) && !is_above(bound, rank)) {
        let at = atomicAdd(&gathered, 1u);
        if (at < ROUND) {
            ranks[at] = rank;
        }
    }
}

// Brings those from a bound on, in any order; how many there are, which may be more than there is room for.
fn gather(source: Source, thread: u32, bound: vec2<u32>, beyond: vec2<u32>) -> u32 {
    if (thread == 0u) {
        atomicStore(&gathered, 0u);
    }
    workgroupBarrier();
    for (var i = thread; i < source.fours; i += THREADS) {
        let keys = keys_at(source, i);
        if (any(keys >= vec4<u32>(bound.x))) {
            let items = items_at(source, i);
            take(vec2<u32>(keys.x, ~items.x), bound, beyond);
            take(vec2<u32>(keys.y, ~items.y), bound, beyond);
            take(vec2<u32>(keys.z, ~items.z), bound, beyond);
            take(vec2<u32>(keys.w, ~items.w), bound, beyond);
        }
    }
    workgroupBarrier();
    if (thread == 0u) {
        told.x = atomicLoad(&gathered);
    }
    return workgroupUniformLoad(&told).x;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let number = group_number(group, groups);
    if (number >= p.count * p.chunks) {
        return;
    }
    let source = source_of(number, thread);
    let out = p.out + (number / p.chunks) * p.out_stride + (number % p.chunks) * p.k;
    var beyond = BEYOND;
    for (var done = 0u; done < p.k; done += ROUND) {
        let want = min(p.k - done, ROUND);
        var count = ROUND + 1u;
        if (want <= GUESSED && done == 0u) {
            count = gather(source, thread, guess(source, thread, want), beyond);
        }
        if (count > ROUND) {
            count = gather(source, thread, select_bound(source, thread, beyond, want), beyond);
        }
        // Where all were ranked, nothing is left for the rounds to come.
        if (thread == 0u && count < want) {
            told = vec4<u32>(0u);
        }
        for (var i = thread; i < count; i += THREADS) {
            let rank = ranks[i];
            let place = place_of(rank, count);
            if (place < want) {
                best_items[out + done + place] = ~rank.y;
                best_scores[out + done + place] = score_of(rank.x);
            }
            if (place == want - 1u) {
                told = vec4<u32>(rank, 0u, 0u);
            }
        }
        for (var i = count + thread; i < want; i += THREADS) {
            best_items[out + done + i] = NO_ITEM;
            best_scores[out + done + i] = 0x80000000u | INFINITY_BITS;
        }
        beyond = workgroupUniformLoad(&told).xy;
    }
}
