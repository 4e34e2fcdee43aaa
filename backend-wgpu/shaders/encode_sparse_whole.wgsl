// y = curve(sum + b), where all weights are in one place.

@group(1) @binding(6) var<storage, read> b: array<Four>;
@group(1) @binding(7) var<storage, read_write> y: array<Four>;

fn finish(r: u32, four: u32, sum: vec4<f32>) {
    let out = narrow(bend(p.curve, sum + wide(b[p.b + four])));
    let at = p.y + r * p.y_stride + four;
    let count = p.cols - 4u * four;
    if (count < 4u) {
        y[at] = merge_four(y[at], out, count);
    } else {
        y[at] = out;
    }
}
