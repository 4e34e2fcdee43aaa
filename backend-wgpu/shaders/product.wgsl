// What all kernels of a product share: c[m, n] = sum over k of a b. Rows and columns count from where a four begins in
// every operand, so that the first ones may not be meant. Places and strides are in fours. A place is that of row 0 and
// column 0, and k counts from the same zero in both operands: it may lie before its buffer (it wraps around), as long as
// what is read does not.
struct Params {
    groups: u32,
    m_from: u32,
    m: u32,
    n_from: u32,
    n: u32,
    k_from: u32,
    k: u32,
    // How much of k makes a part, and the number of parts.
    k_each: u32,
    parts: u32,
    a: u32,
    a_stride: u32,
    b: u32,
    b_stride: u32,
    c: u32,
    c_stride: u32,
    // The bias of a forward product; the input, for the gradient of the input.
    beside: u32,
    beside_stride: u32,
    curve: u32,
    // Whether sums are added to what is there.
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

// The part, and the tile's row and column, that a group makes. Eight rows of tiles share the columns of one operand
// while these are in the caches.
fn place(number: u32, high: u32, wide: u32) -> vec3<u32> {
    let tile = number % (high * wide);
    let top = tile / (8u * wide) * 8u;
    let rows = min(high - top, 8u);
    let within = tile % (8u * wide);
    return vec3<u32>(number / (high * wide), top + within % rows, within / rows);
}
