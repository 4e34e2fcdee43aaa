// Sums to which others are added.

@group(1) @binding(6) var<storage, read_write> sums: array<vec4<f32>>;

fn finish(r: u32, four: u32, sum: vec4<f32>) {
    let at = r * p.fours + four;
    if (p.again != 0u) {
        sums[at] += sum;
    } else {
        sums[at] = sum;
    }
}
