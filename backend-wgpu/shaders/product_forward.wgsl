
fn finish(part: u32, row: u32, col: u32, sum: vec4<f32>) {
    let y = narrow(bend(p.curve, sum + wide(beside[p.beside + col])));
    let at = p.c + row * p.c_stride + col;
    let count = p.n - 4u * col;
    if (count < 4u) {
        c[at] = merge_four(c[at], y, count);
    } else {
        c[at] = y;
    }
}
