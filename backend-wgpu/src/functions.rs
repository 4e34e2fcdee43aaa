//! Tests of the functions in `common.wgsl` and of the storage, on every adapter that is there.

use bytemuck::{cast_slice, pod_collect_to_vec};
use half::f16;
use vaecf_core::random;

use crate::{Choice, Options, Precision, Wgpu, survey};

const SEED: u64 = 0x0123_4567_89ab_cdef;
const STREAM: u32 = random::stream::LATENT;

/// Calls `test` with each adapter.
fn on_each(precision: Precision, test: impl Fn(&mut Wgpu)) {
    let found = survey();
    if found.is_empty() {
        eprintln!("skipped: there is no adapter");
    }
    for adapter in found {
        println!("{adapter}");
        let options = Options { adapter: Choice::Number(adapter.number), precision, ..Options::default() };
        test(&mut Wgpu::open(&options).expect("a device"));
    }
}

/// What an expression gives for words in fours: `x`, or `f` where they are floats.
fn evaluate(gpu: &mut Wgpu, expression: &str, given: &[u32]) -> Vec<u32> {
    let text = format!(
        "@group(0) @binding(0) var<uniform> count: u32;
        @group(1) @binding(0) var<storage, read> given: array<vec4<u32>>;
        @group(1) @binding(1) var<storage, read_write> found: array<vec4<u32>>;
        @compute @workgroup_size(64)
        fn main(
            @builtin(workgroup_id) group: vec3<u32>,
            @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) thread: u32,
        ) {{
            let i = group_number(group, groups) * 64u + thread;
            if (i < count) {{
                let x = given[i];
                let f = bitcast<vec4<f32>>(x);
                found[i] = {expression};
            }}
        }}"
    );
    let (fours, bytes) = (given.len() / 4, size_of_val(given) as u64);
    assert_eq!(given.len(), 4 * fours);
    let [input, output] = [0, 1].map(|_| gpu.context.buffer(bytes).expect("a buffer"));
    gpu.context.queue.write_buffer(&input, 0, cast_slice(given));
    let groups = fours.div_ceil(64) as u64;
    gpu.call(expression, &[&text], &[&input, &output], &(fours as u32), groups).expect("a kernel");
    pod_collect_to_vec(&pollster::block_on(gpu.fetch(&output, 0, bytes)).expect("its results"))
}

/// Numbers of every size and sign, and those that are none: as many as fours take.
fn numbers(fits: impl Fn(f32) -> bool) -> Vec<f32> {
    let strided = (0..u32::MAX).step_by(9973);
    let borders = (0..512).flat_map(|size: u32| (0..7).map(move |by| (size << 23).wrapping_add(by).wrapping_sub(3)));
    let near = (0..60_000).map(|i| ((i as f32 - 30_000.0) / 256.0).to_bits());
    let mut all: Vec<f32> = strided.chain(borders).chain(near).map(f32::from_bits).filter(|&x| fits(x)).collect();
    all.truncate(all.len() / 4 * 4);
    all
}

/// By how many units in the last place a result is off. What is not normal may be zero, and what is next to infinity
/// infinite.
fn off(found: f32, wanted: f64) -> f64 {
    let least = f64::from(f32::MIN_POSITIVE);
    if wanted.is_nan() || found.is_nan() {
        return if wanted.is_nan() && found.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if wanted.abs() < least && f64::from(found.abs()) <= least {
        return 0.0;
    }
    // Infinity is where the next number would be.
    let size = |x: f32| if x.is_infinite() { 2.0_f64.powi(128).copysign(x.into()) } else { x.into() };
    let wanted = if (wanted as f32).is_infinite() { size(wanted as f32) } else { wanted };
    let found = size(found);
    let unit = f64::from(f32::EPSILON) * 2.0_f64.powi(wanted.abs().max(least).log2().floor() as i32);
    (found - wanted).abs() / unit
}

/// Asserts that a function is off by no more than so many units.
fn within(gpu: &mut Wgpu, most: f64, expression: &str, given: &[f32], wanted: impl Fn(f64) -> f64) {
    let found = evaluate(gpu, &format!("bitcast<vec4<u32>>({expression})"), cast_slice(given));
    let each = given.iter().zip(found).map(|(&x, found)| {
        let found = f32::from_bits(found);
        (off(found, wanted(f64::from(x))), x, found)
    });
    let (worst, x, found) = each.max_by(|a, b| a.0.total_cmp(&b.0)).expect("arguments");
    println!("{expression}: off by {worst:.2} at {x:e}");
    assert!(worst <= most, "{expression} of {x:e} is {found:e}, off by {worst} units");
}

/// A function of one number, for four of them, as a vector of this type.
fn each(vector: &str, function: &str) -> String {
    let calls = ["x", "y", "z", "w"].map(|lane| format!("{function}(f.{lane})"));
    format!("{vector}({})", calls.join(", "))
}

#[test]
fn functions_are_good_to_a_few_units_in_the_last_place() {
    on_each(Precision::F32, |gpu| {
        let all = numbers(|_| true);
        let normal = numbers(|x| x >= f32::MIN_POSITIVE || x.is_nan());
        let scalar = |function| each("vec4<f32>", function);
        within(gpu, 3.0, "exponential4(f)", &all, f64::exp);
        within(gpu, 3.0, &scalar("exponential"), &all, f64::exp);
        within(gpu, 3.0, &scalar("logarithm"), &normal, f64::ln);
        // Half of an argument is on the way, and a device may take that for zero.
        let to_one = numbers(|x| x == 0.0 || (4.0 * f32::MIN_POSITIVE..=1.0).contains(&x));
        within(gpu, 5.0, "logarithm_of_one_and(f)", &to_one, f64::ln_1p);
        within(gpu, 5.0, "hyperbolic_tangent(f)", &all, f64::tanh);
        let root = |x: f64| if x < f64::INFINITY { x.sqrt().recip() } else { 0.0 };
        within(gpu, 1.5, &scalar("inverse_root"), &normal, root);
        let powers: Vec<f32> = (-60..60).map(|n| 4.0_f32.powi(n)).collect();
        within(gpu, 0.0, &scalar("inverse_root"), &powers, root);
    });
}

#[test]
fn curves_keep_what_is_no_number() {
    on_each(Precision::F32, |gpu| {
        let all = numbers(|_| true);
        within(gpu, 0.0, "bend(IDENTITY, f)", &all, |x| x);
        within(gpu, 5.0, "bend(TANH, f)", &all, f64::tanh);
        within(gpu, 0.0, "bend(RELU, f)", &all, |x| if x < 0.0 { 0.0 } else { x });
        within(gpu, 0.0, "slope(IDENTITY, f)", &all, |_| 1.0);
        // A device may take what is not normal for zero.
        let normal = numbers(|x| x == 0.0 || x.is_nan() || x.abs() >= f32::MIN_POSITIVE);
        within(gpu, 0.0, "slope(RELU, f)", &normal, |y| f64::from(u8::from(y > 0.0)));
        within(gpu, 4.0, "slope(TANH, f)", &numbers(|y| y.abs() <= 0.9), |y| 1.0 - y * y);
    });
}

#[test]
fn what_is_no_number_is_told_by_its_bits() {
    on_each(Precision::F32, |gpu| {
        let all = numbers(|_| true);
        let bits: Vec<u32> = all.iter().map(|x| x.to_bits()).collect();
        let word = |is: &str| format!("select(vec4<u32>(0u), vec4<u32>(1u), {is})");
        let finite: Vec<u32> = all.iter().map(|x| x.is_finite().into()).collect();
        assert!(evaluate(gpu, &word(&each("vec4<bool>", "is_finite")), &bits) == finite);
        let nan: Vec<u32> = all.iter().map(|x| x.is_nan().into()).collect();
        assert!(evaluate(gpu, &word(&each("vec4<bool>", "is_nan")), &bits) == nan);
        let fours: Vec<u32> = finite.chunks_exact(4).flat_map(|four| [four.iter().product(); 4]).collect();
        assert!(evaluate(gpu, &word("vec4<bool>(all_finite(f))"), &bits) == fours);
    });
}

#[test]
fn noise_is_that_of_the_definition() {
    let counters: Vec<[u32; 4]> =
        (0..40_000_u32).map(|i| [i, i.wrapping_mul(0x9e37_79b9), i % 977, (SEED >> 32) as u32]).collect();
    on_each(Precision::F32, |gpu| {
        let key = format!("vec2<u32>({}u, {STREAM}u)", SEED as u32);
        let words = evaluate(gpu, &format!("philox(x, {key})"), counters.as_flattened());
        let wanted: Vec<u32> = counters.iter().flat_map(|&c| random::philox(c, [SEED as u32, STREAM])).collect();
        assert!(words == wanted, "words of Philox are others");

        let noise = format!("Noise({}u, {}u, {STREAM}u, 1.0, 1.0, 0u, 0u, 0u)", SEED as u32, SEED >> 32);
        let expression = format!("bitcast<vec4<u32>>(normals({noise}, x.x, x.y, x.z))");
        let found = evaluate(gpu, &expression, counters.as_flattened());
        let mut worst = 0.0_f64;
        for (&[update, user, block, _], found) in counters.iter().zip(found.as_chunks().0) {
            let wanted: [f64; 4] = random::normals(SEED, STREAM, update, user, block);
            for pair in [0, 2] {
                // What the sine is off by counts times the radius.
                let radius = wanted[pair].hypot(wanted[pair + 1]).max(1e-3);
                for at in [pair, pair + 1] {
                    let found: &[u32; 4] = found;
                    worst = worst.max((f64::from(f32::from_bits(found[at])) - wanted[at]).abs() / radius);
                }
            }
        }
        println!("normals: off by {:.2} roundings of the radius", worst / 2.0_f64.powi(-24));
        assert!(worst <= 8.0 * 2.0_f64.powi(-24), "a draw is off by {worst} of its radius");
    });
}

#[test]
fn halves_are_read_exactly_and_rounded_to_nearest() {
    on_each(Precision::F16, |gpu| {
        let halves: Vec<u32> = (0..=u16::MAX).flat_map(|bits| [u32::from(bits) | u32::from(bits) << 16; 2]).collect();
        let fours: Vec<u32> = halves.chunks_exact(2).flat_map(|two| [two[0], two[1], 0, 0]).collect();
        let found = evaluate(gpu, "bitcast<vec4<u32>>(wide(x.xy))", &fours);
        for (bits, found) in (0..=u16::MAX).zip(found.as_chunks::<4>().0) {
            let wanted = f16::from_bits(bits).to_f32();
            let same = found
                .iter()
                .all(|&found| found == wanted.to_bits() || f32::from_bits(found).is_nan() && wanted.is_nan());
            assert!(same, "the half {bits:#06x} is {wanted}, and read as {found:x?}");
        }

        // Beside those of every size, all halves, what is halfway between two, and what is next to that.
        let between = (0..f16::INFINITY.to_bits()).flat_map(|bits| {
            let [low, high] = [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f32());
            let middle = if high.is_finite() { (low + high) / 2.0 } else { 65520.0 };
            [low, middle.next_down(), middle, middle.next_up()]
        });
        let given: Vec<f32> = between.clone().chain(between.map(|x| -x)).chain(numbers(|_| true)).collect();
        let found = evaluate(gpu, "vec4<u32>(narrow(bitcast<vec4<f32>>(x)), 0u, 0u)", cast_slice(&given));
        for (given, found) in given.chunks_exact(4).zip(found.as_chunks::<4>().0) {
            for (&x, found) in given.iter().zip([found[0], found[0] >> 16, found[1], found[1] >> 16]) {
                let (found, wanted) = (f16::from_bits(found as u16), f16::from_f32(x));
                let same = found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan();
                assert!(same, "{x:e} is stored as {found:e}, and is next to {wanted:e}");
            }
        }
    });
}
