
fn finish(part: u32, row: u32, col: u32, sum: vec4<f32>) {
    let x = wide(beside[p.beside + row * p.beside_stride + col]);
    var dx = narrow(sum * slope(p.curve, x));
    let at = p.c + row * p.c_stride + col;
    if (4u * col < p.n_from) {
        dx = merge_four(dx, c[at], p.n_from - 4u * col);
    }
    let count = p.n - 4u * col;
    if (count < 4u) {
        c[at] = merge_four(c[at], dx, count);
    } else {
        c[at] = dx;
    }
}
