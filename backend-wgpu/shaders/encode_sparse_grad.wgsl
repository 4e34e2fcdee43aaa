// dw = d^T dy: the gradient of the first layer, every cell written, in the same order each time.
//
// `mark_batch` has transposed the batch. Some threads of a group list the rows of an item, ascending, and sum theirs of
// dy: most items have few rows or none, and a whole group would mostly wait for itself. An item with more rows is left
// to a second kernel, in which groups share it by columns.

const THREADS = 256u;

struct Params {
    x: Rows,
    groups: u32,
    // Words of a row of bits.
    words: u32,
    first_item: u32,
    items: u32,
    // Fours of a row.
    fours: u32,
    cols: u32,
    dy: u32,
    dy_stride: u32,
    dw: u32,
    dw_stride: u32,
    // Whether the sums are added to what is there.
    add: u32,
}

// An item with many rows, and how many.
struct Heavy {
    item: u32,
    rows: u32,
}

// A row of the batch that holds the item: where its row of dy begins, and its coefficient.
struct Term {
    at: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> indices: array<u32>;
@group(1) @binding(1) var<storage, read> values: array<f32>;
@group(1) @binding(2) var<storage, read> marks: array<u32>;
@group(1) @binding(3) var<storage, read> holders: array<Holder>;
@group(1) @binding(4) var<storage, read> dy: array<Four>;
@group(1) @binding(5) var<storage, read_write> dw: array<vec4<f32>>;

var<workgroup> list: array<Term, LIST>;

// How many bits are set in words `start..end`.
fn count_words(start: u32, end: u32) -> u32 {
    var n = 0u;
    for (var word = start; word < end; word++) {
        n += countOneBits(marks[word]);
    }
    return n;
}

// Lists the rows whose bits are set in words `start..end`, ascending, from `place` on. `first` is the first word of the item.
fn list_words(first: u32, start: u32, end: u32, place: u32) {
    var at = place;
    for (var word = start; word < end; word++) {
        for (var bits = marks[word]; bits != 0u; bits &= bits - 1u) {
            list[at].at = 32u * (word - first) + firstTrailingBit(bits);
            at++;
        }
    }
}

// Makes terms of the rows in places `start, start + by, .. end`. A coefficient comes from afar, so they are fetched beside each
// other, and not by whoever has listed the row.
fn weigh(item: u32, start: u32, end: u32, by: u32) {
    for (var at = start; at < end; at += by) {
        let row = list[at].at;
        let holder = holders[row];
        var factor = holder.factor;
        if ((p.x.flags & 2u) != 0u) {
            factor *= values[lower_bound(holder.start, holder.end, item)];
        }
        list[at] = Term(p.dy + row * p.dy_stride, factor);
    }
}

fn term(at: u32, four: u32) -> vec4<f32> {
    let one = list[at];
    return one.factor * wide(dy[one.at + four]);
}

// The sum of a four over the terms in places `start, start + by, .. end`.
fn add_terms(start: u32, end: u32, by: u32, four: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    var at = start;
    // Rows come from afar: several are under way at a time.
    for (; at + 3u * by < end; at += 4u * by) {
        let a = term(at, four);
        let b = term(at + by, four);
        let c = term(at + 2u * by, four);
        let d = term(at + 3u * by, four);
        sum = sum + a + b + c + d;
    }
    for (; at < end; at += by) {
        sum += term(at, four);
    }
    return sum;
}

fn put(item: u32, four: u32, sum: vec4<f32>) {
    let at = p.dw + item * p.dw_stride + four;
    let count = p.cols - 4u * four;
    if (p.add != 0u) {
        dw[at] = merge(dw[at], dw[at] + sum, count);
    } else if (count < 4u) {
        dw[at] = merge(dw[at], sum, count);
    } else {
        dw[at] = sum;
    }
}
