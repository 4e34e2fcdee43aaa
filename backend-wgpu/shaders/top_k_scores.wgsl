// Scores to be ranked, and the history that is left out.

struct Params {
    // The histories.
    seen: Rows,
    groups: u32,
    // The items of these scores: the first, and how many.
    first_item: u32,
    cols: u32,
    // Where they begin, and fours from one row to the next.
    four: u32,
    stride: u32,
    // Chunks of a row.
    chunks: u32,
    // Where the rankings begin, elements from one row of them to the next, and the length of each.
    out: u32,
    out_stride: u32,
    k: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indptr: array<u32>;
@group(1) @binding(1) var<storage, read> indices: array<u32>;
@group(1) @binding(2) var<storage, read> values: array<f32>;
@group(1) @binding(3) var<storage, read> users: array<u32>;
@group(1) @binding(4) var<storage, read> scores: array<Four>;
@group(1) @binding(5) var<storage, read_write> best_items: array<u32>;
@group(1) @binding(6) var<storage, read_write> best_scores: array<u32>;

// Columns of a row that a workgroup takes.
const CHUNK = 32768u;

struct Source {
    four: u32,
    fours: u32,
    first_item: u32,
    out: u32,
}

// Items that may not be ranked, as bits.
var<workgroup> closed: array<atomic<u32>, CHUNK / 32u>;

fn source_of(number: u32, thread: u32) -> Source {
    let r = number / p.chunks;
    let chunk = number % p.chunks;
    let begin = chunk * CHUNK;
    let count = min(p.cols - begin, CHUNK);
    for (var word = thread; 32u * word < count; word += THREADS) {
        // What lies behind the last item is none.
        let left = count - 32u * word;
        atomicStore(&closed[word], select(0xffffffffu << (left % 32u), 0u, left >= 32u));
    }
    workgroupBarrier();
    let row = row_at(p.seen, p.seen.first + r);
    let start = lower_bound(row.start, row.end, p.first_item + begin);
    let end = lower_bound(start, row.end, p.first_item + begin + count);
    for (var event = start + thread; event < end; event += THREADS) {
        let item = indices[event] - p.first_item - begin;
        atomicOr(&closed[item / 32u], 1u << (item % 32u));
    }
    workgroupBarrier();
    let out = p.out + r * p.out_stride + chunk * p.k;
    return Source(p.four + r * p.stride + begin / 4u, (count + 3u) / 4u, p.first_item + begin, out);
}

fn keys_at(source: Source, i: u32) -> vec4<u32> {
    let keys = keys_of(bitcast<vec4<u32>>(wide(scores[source.four + i])));
    let bits = vec4<u32>(atomicLoad(&closed[i / 8u]) >> (4u * (i % 8u))) & vec4<u32>(1u, 2u, 4u, 8u);
    return select(keys, vec4<u32>(0u), bits != vec4<u32>(0u));
}

fn items_at(source: Source, i: u32) -> vec4<u32> {
    return vec4<u32>(source.first_item + 4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
}
