
fn finish(part: u32, row: u32, col: u32, sum: vec4<f32>) {
    let at = p.c + row * p.c_stride + col;
    let count = p.n - 4u * col;
    if (p.add != 0u) {
        c[at] = merge(c[at], c[at] + sum, count);
    } else if (count < 4u) {
        c[at] = merge(c[at], sum, count);
    } else {
        c[at] = sum;
    }
}
