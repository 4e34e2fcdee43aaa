
// Parts are rows of whole fours, one part after the other.
fn finish(part: u32, row: u32, col: u32, sum: vec4<f32>) {
    let at = (part * p.m + row) * p.c_stride + col;
    if (p.add != 0u) {
        c[at] += sum;
    } else {
        c[at] = sum;
    }
}
