//! What the CPU backend promises beyond the contract: results that do not depend on the number of threads,
//! approximations with a bound, and the gradient of the whole loss in double precision.

use proptest::prelude::*;
use vaecf_core::{
    backend::{Backend, Curve, LikelihoodKind},
    device::Device,
    math::Real,
    random::{Generator, stream},
    tensors::{Tensors, Values},
};
use vaecf_cpu::Cpu;
use vaecf_tests::{
    Case, Learned, Op, Outcome, Step, cases,
    compare::{Float, Tolerance, compare},
    run, values,
};

fn on_threads<T: Real>(threads: usize, step: &Step) -> Learned {
    let device = Device::new(Box::new(Cpu::<T>::new(Some(threads)).unwrap()));
    step.learn(&device, None, 1).unwrap().remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every sum has one order, whoever computes it.
    #[test]
    fn the_number_of_threads_changes_no_bit(case in cases(Op::Step, false)) {
        let step = Step::of(&case);
        let (one, many) = (on_threads::<f32>(1, &step), on_threads::<f32>(7, &step));
        prop_assert_eq!((one.gradient, one.after, one.nll, one.kl), (many.gradient, many.after, many.nll, many.kl));
    }

    /// The whole loss, all members, in a random direction of all weights at once. Relu has no
    /// gradient at its kink; it is among the operations by themselves.
    #[test]
    fn the_gradient_of_the_whole_loss_is_its_central_difference(case in cases(Op::Step, false), direction in any::<u64>()) {
        let curve = if case.curve == Curve::Relu { Curve::Tanh } else { case.curve };
        let step = Step::of(&Case { curve, ..case });
        let device = Device::new(Box::new(Cpu::<f64>::new(Some(1)).unwrap()));
        let learn = |weights: Option<&Tensors>| step.learn(&device, weights, 1).unwrap().remove(0);
        let learned = learn(None);
        let mut random = Generator::new(direction, stream::SYNTHETIC, 0);
        let mut slope = 0.0;
        let along: Vec<(String, Vec<f64>)> = learned.gradient.0.iter().map(|(name, gradient)| {
            let gradient = values(gradient);
            let way: Vec<f64> = gradient.iter().map(|_| random.normal()).collect();
            slope += gradient.iter().zip(&way).map(|(g, w)| g * w).sum::<f64>();
            (name.clone(), way)
        }).collect();
        let loss = |h: f64| {
            let mut weights = learned.before.clone();
            for (name, way) in &along {
                let Values::F64(values) = &mut weights.0.get_mut(name).unwrap().values else { unreachable!("f64") };
                values.iter_mut().zip(way).for_each(|(w, d)| *w += h * d);
            }
            let Learned { nll, kl, .. } = learn(Some(&weights));
            nll.iter().zip(&kl).map(|(nll, kl)| nll + step.beta * kl).sum::<f64>()
        };
        let h = 1e-5;
        let difference = (loss(h) - loss(-h)) / (2.0 * h);
        // Differences are good to about the digits of f32, of the loss and of what they are made from.
        let size = slope.abs().max(1.0) + loss(0.0) * 1e-3;
        compare([slope], [difference], &Tolerance::new(Float::F32, Float::F32).magnitude([size]).factor(8.0))?;
    }

    /// One update against the textbook: Adam on the mean gradient plus l2, biases left out.
    #[test]
    fn an_update_is_adam_on_the_mean_gradient_with_l2_on_weights(case in cases(Op::Step, false)) {
        let step = Step { update: 1, ..Step::of(&case) };
        let learned = on_threads::<f64>(1, &step);
        let p = vaecf_core::schedule::step(&step.train(), 1, 0, step.order.len() as u32);
        for (name, before) in &learned.before.0 {
            let l2 = if name.ends_with("weight") { step.l2 } else { 0.0 };
            let (w, g) = (values(before), values(&learned.gradient.0[name]));
            let expected: Vec<f64> = w.iter().zip(&g).map(|(w, g)| {
                let g = g / step.order.len() as f64 + l2 * w;
                // In the first update both bias corrections undo the decay: the step is lr g / (|g| + eps).
                w - p.lr * g / (g.abs() + p.eps)
            }).collect();
            // The root of a square loses half the digits of a gradient next to eps.
            let tolerance = Tolerance::new(Float::F64, Float::F64).terms(16).magnitude(vec![1.0; w.len()]).factor(16.0);
            compare(&*values(&learned.after.0[name]), &*expected, &tolerance)?;
        }
    }
}

/// Blocks of users and chunks of items, at shapes that have several of both: the suite compares them with
/// the definition, here on many threads and on one.
#[test]
fn blocks_and_chunks_agree_with_the_definition_on_any_number_of_threads() {
    let shapes = [(1100, 40, 9), (600, 1500, 5), (3, 24_000, 4), (1, 641, 1)];
    for (users, items, inner) in shapes {
        for op in [Op::DecodeLossGrad, Op::Recommend] {
            let kinds = [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic];
            for (kind, weights) in kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
                let case = Case { users, items, inner, weights, kind, scale: 4.0, first: 0, k: 5, ..Case::of(op) };
                let trial = format!("agrees {case}").parse().unwrap();
                for threads in [1, 2, 40] {
                    let outcome = run(&mut Cpu::<f64>::new(Some(threads)).unwrap(), &trial);
                    assert!(matches!(outcome, Outcome::Passed { .. }), "{threads} threads: {outcome:?}");
                }
            }
        }
    }
    assert!(Cpu::<f64>::new(Some(2)).unwrap().logits_rows(1100, 40) < 1100, "one block would prove nothing");
}

/// The approximations of f32 against f64, over the whole range.
#[test]
fn approximations_in_single_precision_hold_their_bounds() {
    let points: Vec<f32> =
        (-2_000_000..2_000_000).map(|i| i as f32 * 1e-4 * if i % 3 == 0 { 1e-3 } else { 0.5 }).collect();
    let check = |name: &str, units: f64, ours: fn(f32) -> f32, exact: fn(f64) -> f64, keep: fn(f64) -> bool| {
        let kept: Vec<f32> = points.iter().copied().filter(|&x| keep(f64::from(x))).collect();
        let worst = kept.iter().map(|&x| {
            let exact = exact(f64::from(x));
            let unit = f64::from(f32::EPSILON) * exact.abs().max(f64::from(f32::MIN_POSITIVE));
            (f64::from(ours(x)) - exact).abs() / unit
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= units, "{name} is off by {worst} units in the last place");
    };
    check("exp", 2.0, f32::expo, f64::exp, |x| (-86.9..87.9).contains(&x));
    check("tanh", 4.0, f32::tanh_, f64::tanh, |_| true);
    check("log1p", 2.0, f32::log1p_unit, f64::ln_1p, |x| (0.0..=1.0).contains(&x));
    // What the noise is made of, at every number it is made from.
    let all = || (1..=1_u32 << 24).map(|bits| (f32::share_of_24_bits(bits), f64::share_of_24_bits(bits)));
    assert!(all().all(|(x, exact)| f64::from(x) == exact));
    let worst = |error: fn(f32, f64) -> f64| all().map(|(x, exact)| error(x, exact)).fold(0.0, f64::max);
    let log = worst(|x, exact| (f64::from(x.ln_unit()) - exact.ln()).abs() / exact.ln().abs().max(f64::MIN_POSITIVE));
    assert!(log <= 2.0 * f64::from(f32::EPSILON), "ln is off by {log:e}");
    let turn = worst(|x, exact| {
        // A full turn is none.
        let x = if x < 1.0 { x } else { 0.0 };
        let ((sin, cos), (exact_sin, exact_cos)) = (x.sin_cos_turn(), exact.sin_cos_turn());
        (f64::from(sin) - exact_sin).abs().max((f64::from(cos) - exact_cos).abs())
    });
    assert!(turn <= f64::from(f32::EPSILON), "sine or cosine is off by {turn:e}");
    assert!(f32::NAN.expo().is_nan() && f32::NAN.tanh_().is_nan());
    assert_eq!((f32::INFINITY.expo(), f32::NEG_INFINITY.expo()), (f32::INFINITY, 0.0));
    assert_eq!((100.0_f32.expo(), (-100.0_f32).expo(), 0.0_f32.expo()), (f32::INFINITY, 0.0, 1.0));
    assert_eq!((f32::INFINITY.tanh_(), f32::NEG_INFINITY.tanh_(), 0.0_f32.tanh_()), (1.0, -1.0, 0.0));
}

/// Limits that anything measured stays below, in both precisions.
#[test]
fn ceilings_are_those_of_a_machine() {
    let measured = |backend: &mut dyn Backend| backend.ceilings().unwrap();
    for ceilings in [measured(&mut Cpu::<f32>::new(Some(2)).unwrap()), measured(&mut Cpu::<f64>::new(Some(2)).unwrap())]
    {
        // From a small board to a large server, by an order of magnitude on both sides.
        assert!((1e8..1e14).contains(&ceilings.copy), "{ceilings:?}");
        assert!((1e7..1e16).contains(&ceilings.products), "{ceilings:?}");
    }
}
