// What all kernels share: where a workgroup stands, steps, noise, and functions that are good to a few units in the last
// place for every argument. Those of the language are not: it allows an exponential to be off by twice its argument, a
// sine by 2^-11, and one driver has a hyperbolic tangent that is no number for large arguments.

// ---- where a workgroup stands ----

// Its number. Grids are spread over three sides, and some workgroups at the end may have nothing to do.
fn group_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + groups.x * (group.y + groups.y * group.z);
}

// The first `count` of `now`, and the rest of `old`.
fn merge(old: vec4<f32>, now: vec4<f32>, count: u32) -> vec4<f32> {
    return select(old, now, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count));
}

// ---- steps ----

struct Step {
    update: u32,
    first: u32,
    beta: f32,
    grad_factor: f32,
    l2: f32,
    beta1: f32,
    beta2: f32,
    gain1: f32,
    gain2: f32,
    eps: f32,
    rate: f32,
    root: f32,
}

struct Scale {
    scale: f32,
    good: u32,
    skipped: u32,
    finite: u32,
}

// ---- rows of the batch ----

// A window of rows of a sparse matrix.
struct Rows {
    first: u32,
    count: u32,
    // Which lists there are: 1 row starts, 2 values, 4 users.
    flags: u32,
    unused: u32,
}

struct Row {
    // Row of the matrix: the user that noise is counted by.
    user: u32,
    start: u32,
    end: u32,
}

// ---- numbers that are none ----

// By their bits: compilers may take it that there are no others.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) < 0x7f800000u;
}

fn all_finite(x: vec4<f32>) -> bool {
    return all((bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) < vec4<u32>(0x7f800000u));
}

const INFINITY_BITS = 0x7f800000u;

// A constant is not allowed to be infinite; `zero` is some zero that the compiler does not know.
fn infinity(zero: u32) -> f32 {
    return bitcast<f32>(INFINITY_BITS | zero);
}

// ---- functions ----

// A whole number up to 2^15, as it is, for a second product with it: a compiler that sees two products with one number
// makes them one with the sum of the factors, and what they were split for is lost. It does not know that the bits that
// go are zeros.
fn again(n: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(n) & vec4<u32>(0xffffff00u));
}

// 1 / sqrt(x), zero where that is no number. A step of Newton's makes it exact for powers of four, from a device's own
// that is not.
fn inverse_root(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if (bits < 0x00800000u || bits >= INFINITY_BITS) {
        return 0.0;
    }
    let y = inverseSqrt(x);
    return fma(0.5 * y, fma(-x * y, y, 1.0), y);
}

// 2^n for n from -126 to 127.
fn power_of_two(n: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((n + vec4<i32>(127)) << vec4<u32>(23u));
}

// e^x: a multiple of log 2 is taken off, in two steps, and the rest is near zero (Cephes, expf).
fn exponential4(x: vec4<f32>) -> vec4<f32> {
    // Beyond these the result is zero or infinite. What is no number is put back at the end.
    let near = clamp(x, vec4<f32>(-104.0), vec4<f32>(89.0));
    let n = round(near * 1.44269504088896341);
    let r = fma(again(n), vec4<f32>(2.12194440e-4), fma(n, vec4<f32>(-0.693359375), near));
    var q = vec4<f32>(1.9875691500e-4);
    q = fma(q, r, vec4<f32>(1.3981999507e-3));
    q = fma(q, r, vec4<f32>(8.3334519073e-3));
    q = fma(q, r, vec4<f32>(4.1665795894e-2));
    q = fma(q, r, vec4<f32>(1.6666665459e-1));
    q = fma(q, r, vec4<f32>(5.0000001201e-1));
    q = fma(q, r * r, r) + 1.0;
    // In two factors, because 2^128 is no number.
    let whole = vec4<i32>(n);
    let first = whole >> vec4<u32>(1u);
    let y = q * power_of_two(first) * power_of_two(whole - first);
    let size = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
    return select(y, x, size > vec4<u32>(0x7f800000u));
}

fn exponential(x: f32) -> f32 {
    return exponential4(vec4<f32>(x)).x;
}

// The natural logarithm of a positive number that is not below 2^-126 (Cephes, logf).
fn logarithm(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if (bits >= 0x7f800000u) {
        return x;
    }
    var m = bitcast<f32>((bits & 0x007fffffu) | 0x3f000000u);
    var e = f32(i32(bits >> 23u) - 126);
    let low = m < 0.707106781186547524;
    e -= select(0.0, 1.0, low);
    m = select(m, m + m, low) - 1.0;
    let z = m * m;
    var q = 7.0376836292e-2;
    q = fma(q, m, -1.1514610310e-1);
    q = fma(q, m, 1.1676998740e-1);
    q = fma(q, m, -1.2420140846e-1);
    q = fma(q, m, 1.4249322787e-1);
    q = fma(q, m, -1.6668057665e-1);
    q = fma(q, m, 2.0000714765e-1);
    q = fma(q, m, -2.4999993993e-1);
    q = fma(q, m, 3.3333331174e-1);
    let y = fma(again(vec4<f32>(e)).x, -2.12194440e-4, q * m * z) - 0.5 * z;
    return fma(e, 0.693359375, m + y);
}

// log(1 + x) for x from 0 to 1: twice the inverse hyperbolic tangent of x / (2 + x), by its series.
fn logarithm_of_one_and(x: vec4<f32>) -> vec4<f32> {
    let s = x / (x + 2.0);
    let z = s * s;
    var q = vec4<f32>(1.0 / 15.0);
    q = fma(q, z, vec4<f32>(1.0 / 13.0));
    q = fma(q, z, vec4<f32>(1.0 / 11.0));
    q = fma(q, z, vec4<f32>(1.0 / 9.0));
    q = fma(q, z, vec4<f32>(1.0 / 7.0));
    q = fma(q, z, vec4<f32>(1.0 / 5.0));
    q = fma(q, z, vec4<f32>(1.0 / 3.0));
    return 2.0 * fma(s * z, q, s);
}

// By its series where that is short, else by the exponential (Cephes, tanhf).
fn hyperbolic_tangent(x: vec4<f32>) -> vec4<f32> {
    let z = x * x;
    var q = vec4<f32>(-5.70498872745e-3);
    q = fma(q, z, vec4<f32>(2.06390887954e-2));
    q = fma(q, z, vec4<f32>(-5.37397155531e-2));
    q = fma(q, z, vec4<f32>(1.33314422036e-1));
    q = fma(q, z, vec4<f32>(-3.33332819422e-1));
    let near = fma(x * z, q, x);
    let far = 1.0 - 2.0 / (exponential4(2.0 * min(abs(x), vec4<f32>(20.0))) + 1.0);
    let y = select(select(far, -far, x < vec4<f32>(0.0)), near, abs(x) < vec4<f32>(0.625));
    let size = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
    return select(y, x, size > vec4<u32>(0x7f800000u));
}

// ---- curves, by their outputs: `Curve` of the contract ----

const IDENTITY = 0u;
const TANH = 1u;
const RELU = 2u;

fn bend(curve: u32, a: vec4<f32>) -> vec4<f32> {
    if (curve == TANH) {
        return hyperbolic_tangent(a);
    }
    // By the bits: `max` may lose what is no number, and so may a comparison where a compiler takes it that there is none.
    let bits = bitcast<vec4<u32>>(a);
    let negative = (bits > vec4<u32>(0x80000000u)) & (bits <= vec4<u32>(0x80000000u | INFINITY_BITS));
    return select(a, vec4<f32>(0.0), vec4<bool>(curve == RELU) & negative);
}

fn slope(curve: u32, y: vec4<f32>) -> vec4<f32> {
    if (curve == TANH) {
        return fma(-y, y, vec4<f32>(1.0));
    }
    return select(vec4<f32>(1.0), vec4<f32>(0.0), vec4<bool>(curve == RELU) & !(y > vec4<f32>(0.0)));
}

// ---- noise: core/src/random.rs, restated ----

struct Noise {
    seed_low: u32,
    seed_high: u32,
    stream: u32,
    keep: f32,
    inverse_keep: f32,
    // A draw keeps where its word is below.
    threshold: u32,
    unused_1: u32,
    unused_2: u32,
}

// The upper word of a product.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low_low = (a & 0xffffu) * (b & 0xffffu);
    let low_high = (a & 0xffffu) * (b >> 16u);
    let high_low = (a >> 16u) * (b & 0xffffu);
    let middle = (low_low >> 16u) + (low_high & 0xffffu) + (high_low & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (low_high >> 16u) + (high_low >> 16u) + (middle >> 16u);
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let high_a = multiply_high(c.x, 0xD2511F53u);
        let high_b = multiply_high(c.z, 0xCD9E8D57u);
        c = vec4<u32>(high_b ^ c.y ^ k.x, c.z * 0xCD9E8D57u, high_a ^ c.w ^ k.y, c.x * 0xD2511F53u);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

fn draw(noise: Noise, update: u32, user: u32, block: u32) -> vec4<u32> {
    return philox(vec4<u32>(update, user, block, noise.seed_high), vec2<u32>(noise.seed_low, noise.stream));
}

// Whether the input of a user keeps an item in this update.
fn keeps(noise: Noise, update: u32, user: u32, item: u32) -> bool {
    if (noise.keep >= 1.0) {
        return true;
    }
    return draw(noise, update, user, item / 4u)[item % 4u] < noise.threshold;
}

// Sine and cosine of `b` parts of a turn of 2^24.
fn sine_and_cosine(b: u32) -> vec2<f32> {
    // The nearest quarter of a turn, and what is left, at most an eighth.
    let quarter = (b + 0x200000u) >> 22u;
    let x = f32(i32(b) - i32(quarter << 22u)) * 3.7450702829238413e-7;
    let z = x * x;
    let sine = fma(x * z, fma(fma(-1.9515295891e-4, z, 8.3321608736e-3), z, -1.6666654611e-1), x);
    let q = fma(fma(2.443315711809948e-5, z, -1.388731625493765e-3), z, 4.166664568298827e-2);
    let cosine = fma(z * z, q, fma(-0.5, z, 1.0));
    let turned = select(vec2<f32>(sine, cosine), vec2<f32>(cosine, -sine), (quarter & 1u) == 1u);
    return select(turned, -turned, (quarter & 2u) == 2u);
}

// Four standard normal draws, those of units 4 block .. 4 block + 4: Box and Muller on the upper 24 bits.
fn normals(noise: Noise, update: u32, user: u32, block: u32) -> vec4<f32> {
    let words = draw(noise, update, user, block) >> vec4<u32>(8u);
    let first = sine_and_cosine(words.y);
    let second = sine_and_cosine(words.w);
    let r1 = sqrt(-2.0 * logarithm(f32(words.x + 1u) / 16777216.0));
    let r2 = sqrt(-2.0 * logarithm(f32(words.z + 1u) / 16777216.0));
    return vec4<f32>(r1 * first.y, r1 * first.x, r2 * second.y, r2 * second.x);
}
