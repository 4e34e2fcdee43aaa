// Rankings of parts of each row, to be one.

struct Params {
    groups: u32,
    // Items of all rankings of a row.
    each: u32,
    // Where the rankings that they make begin, and the length of each.
    out: u32,
    k: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> items: array<u32>;
@group(1) @binding(1) var<storage, read> scores: array<u32>;
@group(1) @binding(2) var<storage, read_write> best_items: array<u32>;
@group(1) @binding(3) var<storage, read_write> best_scores: array<u32>;

struct Source {
    begin: u32,
    fours: u32,
    out: u32,
}

fn source_of(number: u32, thread: u32) -> Source {
    return Source(number * p.each, (p.each + 3u) / 4u, p.out + number * p.k);
}

fn items_at(source: Source, i: u32) -> vec4<u32> {
    let at = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
    let there = at < vec4<u32>(p.each);
    let places = vec4<u32>(source.begin) + select(vec4<u32>(0u), at, there);
    let found = vec4<u32>(items[places.x], items[places.y], items[places.z], items[places.w]);
    return select(vec4<u32>(NO_ITEM), found, there);
}

fn keys_at(source: Source, i: u32) -> vec4<u32> {
    let at = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
    let places = vec4<u32>(source.begin) + select(vec4<u32>(0u), at, at < vec4<u32>(p.each));
    let found = vec4<u32>(scores[places.x], scores[places.y], scores[places.z], scores[places.w]);
    return select(keys_of(found), vec4<u32>(0u), items_at(source, i) == vec4<u32>(NO_ITEM));
}
