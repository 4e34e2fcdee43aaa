//! Each operation of the CPU backend by itself: gradients against central differences in f64, blocks
//! against the definition, rankings against a sort, faults as errors.

mod common;

use common::Step;
use proptest::{collection::vec, prelude::*};
use vaecf_core::{
    backend::{
        Backend, Buf, Curve, Decode, Fault, Host, HostMut, Info, Likelihood, LikelihoodKind, Mat, Noise, Result, Role,
        Rows, ScaleState, StepParams,
    },
    math::Real,
    matrix::Matrix,
    random::{Generator, stream},
    tensors::{Tensors, Values},
};
use vaecf_cpu::Cpu;
use vaecf_tests::compare::{Float, Tolerance, compare, scalar};

/// A backend and the handles that nearly every operation takes.
struct Lab<B> {
    backend: B,
    step: Buf,
    scale: Buf,
}

const NOISE: Noise = Noise { seed: 5, stream: stream::DROPOUT, keep: 0.6 };
const LATENT: Noise = Noise { seed: 5, stream: stream::LATENT, keep: 1.0 };

fn params(beta: f64) -> StepParams {
    StepParams {
        update: 7,
        first: 0,
        lr: 0.1,
        beta,
        grad_factor: 0.5,
        l2: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        correction1: 0.5,
        correction2: 0.01,
    }
}

impl<B: Backend> Lab<B> {
    fn new(mut backend: B, beta: f64) -> Self {
        let step = backend.alloc(Role::Step, 1).unwrap();
        backend.upload(step, 0, Host::Step(&params(beta))).unwrap();
        let scale = backend.alloc(Role::Scale, 1).unwrap();
        backend.upload(scale, 0, Host::Scale(&ScaleState::default())).unwrap();
        Self { backend, step, scale }
    }

    /// A matrix with the alignment the backend asks for.
    fn mat(&mut self, role: Role, rows: usize, cols: usize, values: &[f64]) -> Mat {
        let align = self.backend.info().align as usize;
        let stride = cols.next_multiple_of(align);
        let mut padded = vec![0.0; rows * stride];
        for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(cols)) {
            to[..cols].copy_from_slice(from);
        }
        let buf = self.backend.alloc(role, padded.len() as u64).unwrap();
        self.backend.upload(buf, 0, Host::F64(&padded)).unwrap();
        Mat { buf, rows: rows as u32, cols: cols as u32, stride: stride as u32, offset: 0 }
    }

    fn zeros(&mut self, role: Role, rows: usize, cols: usize) -> Mat {
        self.mat(role, rows, cols, &vec![0.0; rows * cols])
    }

    /// The values of a matrix; what lies between its rows must be zero.
    fn read(&mut self, m: Mat) -> Vec<f64> {
        let (cols, stride) = (m.cols as usize, m.stride as usize);
        let mut all = vec![0.0; m.rows as usize * stride];
        self.backend.download(m.buf, m.offset, HostMut::F64(&mut all)).unwrap();
        assert!(all.chunks_exact(stride).all(|row| row[cols..].iter().all(|&x| x == 0.0)), "padding was written");
        all.chunks_exact(stride).flat_map(|row| row[..cols].to_vec()).collect()
    }

    fn rows(&mut self, matrix: &Matrix) -> Rows {
        let indptr: Vec<u32> = matrix.indptr().iter().map(|&x| x as u32).collect();
        let mut up = |role, host: Host<'_>, len: usize| {
            let buf = self.backend.alloc(role, len as u64).unwrap();
            self.backend.upload(buf, 0, host).unwrap();
            buf
        };
        Rows {
            indptr: up(Role::Index, Host::U32(&indptr), indptr.len()),
            indices: up(Role::Index, Host::U32(matrix.indices()), matrix.indices().len()),
            values: matrix.values().map_or(Buf::NONE, |v| up(Role::Value, Host::F32(v), v.len())),
            users: Buf::NONE,
            first: 0,
            count: matrix.users(),
        }
    }
}

fn f64_lab(beta: f64) -> Lab<Cpu<f64>> {
    Lab::new(Cpu::new(Some(1)).unwrap(), beta)
}

/// The gradient of `loss` at `x`, by central differences. Good to eight digits or so.
fn differences(x: &[f64], mut loss: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            let mut shifted = |d: f64| {
                x[i] = at + d;
                let y = loss(&x);
                x[i] = at;
                y
            };
            (shifted(h) - shifted(-h)) / (2.0 * h)
        })
        .collect()
}

/// Differences are good to about f32's digits, of the largest value in sight.
fn near(actual: &[f64], expected: &[f64]) -> std::result::Result<(), TestCaseError> {
    let biggest = expected.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
    let tolerance = Tolerance::new(Float::F32, Float::F32).magnitude(vec![biggest; expected.len()]).factor(8.0);
    compare(actual, expected, &tolerance)?;
    Ok(())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn numbers(n: usize) -> impl Strategy<Value = Vec<f64>> {
    vec(-1.5..1.5_f64, n)
}

fn curve() -> impl Strategy<Value = Curve> {
    prop_oneof![Just(Curve::Tanh), Just(Curve::Identity), Just(Curve::Relu)]
}

fn likelihood() -> impl Strategy<Value = Likelihood> {
    let kind =
        prop_oneof![Just(LikelihoodKind::Multinomial), Just(LikelihoodKind::Gaussian), Just(LikelihoodKind::Logistic)];
    (kind, prop_oneof![Just(0.0_f32), 0.0_f32..2.0]).prop_map(|(kind, unseen)| Likelihood { kind, seen: 1.25, unseen })
}

fn apply(curve: Curve, a: f64) -> f64 {
    match curve {
        Curve::Identity => a,
        Curve::Tanh => a.tanh(),
        Curve::Relu => a.max(0.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// y = curve(a) w + b: gradients for w, b and a.
    #[test]
    fn linear_gradients_are_central_differences(
        curve in curve(),
        (b, m, n, a, w, bias, dy) in (1_usize..5, 1_usize..20, 1_usize..20)
            .prop_flat_map(|(b, m, n)| (Just(b), Just(m), Just(n), numbers(b * m), numbers(m * n), numbers(n), numbers(b * n))),
    ) {
        prop_assume!(curve != Curve::Relu || a.iter().all(|x| x.abs() > 1e-3));
        let mut lab = f64_lab(0.0);
        let loss = |lab: &mut Lab<Cpu<f64>>, a: &[f64], w: &[f64], bias: &[f64]| {
            let x: Vec<f64> = a.iter().map(|&a| apply(curve, a)).collect();
            let x = lab.mat(Role::Act, b, m, &x);
            let (w, bias, y) = (lab.mat(Role::Weight, m, n, w), lab.mat(Role::Weight, 1, n, bias), lab.zeros(Role::Act, b, n));
            lab.backend.linear(x, w, bias, Curve::Identity, y).unwrap();
            dot(&lab.read(y), &dy)
        };
        let x: Vec<f64> = a.iter().map(|&a| apply(curve, a)).collect();
        let (x, wm, dym) = (lab.mat(Role::Act, b, m, &x), lab.mat(Role::Weight, m, n, &w), lab.mat(Role::Act, b, n, &dy));
        let (dw, db, da) = (lab.zeros(Role::Grad, m, n), lab.zeros(Role::Grad, 1, n), lab.zeros(Role::Act, b, m));
        lab.backend.linear_grad_weight(x, dym, dw, db).unwrap();
        lab.backend.linear_grad_input(dym, wm, x, curve, da).unwrap();
        let (dw, db, da) = (lab.read(dw), lab.read(db), lab.read(da));
        near(&dw, &differences(&w, |w| loss(&mut lab, &a, w, &bias)))?;
        near(&db, &differences(&bias, |bias| loss(&mut lab, &a, &w, bias)))?;
        near(&da, &differences(&a, |a| loss(&mut lab, a, &w, &bias)))?;
    }

    /// The first layer under dropout, on any rows: gradients for W and b.
    #[test]
    fn encode_sparse_gradients_are_central_differences(
        (matrix, h, w, bias, dy) in (common::matrix(3.0), 1_usize..20).prop_flat_map(|(x, h)| {
            let (b, i) = (x.users() as usize, x.items() as usize);
            (Just(x), Just(h), numbers(i * h), numbers(h), numbers(b * h))
        }),
    ) {
        let mut lab = f64_lab(0.0);
        let (b, i) = (matrix.users() as usize, matrix.items() as usize);
        let x = lab.rows(&matrix);
        let loss = |lab: &mut Lab<Cpu<f64>>, w: &[f64], bias: &[f64]| {
            let (w, bias, y) = (lab.mat(Role::Weight, i, h, w), lab.mat(Role::Weight, 1, h, bias), lab.zeros(Role::Act, b, h));
            lab.backend.encode_sparse(x, w, bias, Curve::Identity, NOISE, lab.step, y).unwrap();
            dot(&lab.read(y), &dy)
        };
        // What was there before must be overwritten, for items outside the batch too.
        let (dym, dw) = (lab.mat(Role::Act, b, h, &dy), lab.mat(Role::Grad, i, h, &vec![9.0; i * h]));
        let db = lab.mat(Role::Grad, 1, h, &vec![9.0; h]);
        lab.backend.encode_sparse_grad(x, dym, NOISE, lab.step, dw, db).unwrap();
        let (dw, db) = (lab.read(dw), lab.read(db));
        near(&dw, &differences(&w, |w| loss(&mut lab, w, &bias)))?;
        near(&db, &differences(&bias, |bias| loss(&mut lab, &w, bias)))?;
    }

    /// The latent sample and its KL divergence.
    #[test]
    fn sample_latent_gradients_are_central_differences(
        beta in 0.0..1.0_f64,
        (b, k, stats, dz) in (1_usize..5, 1_usize..20)
            .prop_flat_map(|(b, k)| (Just(b), Just(k), numbers(b * 2 * k), numbers(b * k))),
    ) {
        let mut lab = f64_lab(beta);
        let matrix = Matrix::from_rows(1, vec![[0_u32]; b]).unwrap();
        let x = lab.rows(&matrix);
        let loss = |lab: &mut Lab<Cpu<f64>>, stats: &[f64]| {
            let (stats, z) = (lab.mat(Role::Act, b, 2 * k, stats), lab.zeros(Role::Act, b, k));
            let buf = lab.backend.alloc(Role::Value, b as u64).unwrap();
            let kl = Mat { buf, rows: b as u32, cols: 1, stride: 1, offset: 0 };
            lab.backend.sample_latent(x, stats, LATENT, lab.step, z, kl).unwrap();
            dot(&lab.read(z), &dz) + beta * lab.read(kl).iter().sum::<f64>()
        };
        let (s, d, out) = (lab.mat(Role::Act, b, 2 * k, &stats), lab.mat(Role::Act, b, k, &dz), lab.zeros(Role::Act, b, 2 * k));
        lab.backend.sample_latent_grad(x, s, d, LATENT, lab.step, lab.scale, out).unwrap();
        let ours = lab.read(out);
        near(&ours, &differences(&stats, |stats| loss(&mut lab, stats)))?;
    }

    /// All three likelihoods on any rows, with and without weights.
    #[test]
    fn likelihood_gradients_are_central_differences(
        kind in likelihood(),
        (matrix, logits) in common::matrix(1.0).prop_flat_map(|x| {
            let n = (x.users() * x.items()) as usize;
            (Just(x), numbers(n))
        }),
    ) {
        let mut lab = f64_lab(0.0);
        let (b, i) = (matrix.users() as usize, matrix.items() as usize);
        let x = lab.rows(&matrix);
        let evaluate = |lab: &mut Lab<Cpu<f64>>, logits: &[f64]| {
            let m = lab.mat(Role::Act, b, i, logits);
            let buf = lab.backend.alloc(Role::Value, b as u64).unwrap();
            let loss = Mat { buf, rows: b as u32, cols: 1, stride: 1, offset: 0 };
            lab.backend.likelihood(x, kind, m, lab.step, lab.scale, loss).unwrap();
            (lab.read(loss).iter().sum::<f64>(), lab.read(m))
        };
        let (_, ours) = evaluate(&mut lab, &logits);
        near(&ours, &differences(&logits, |l| evaluate(&mut lab, l).0))?;
        if kind.kind == LikelihoodKind::Multinomial {
            // The gradient of a row sums to zero: softmax sums to one.
            for row in ours.chunks_exact(i) {
                let terms = Tolerance::new(Float::F64, Float::F64).terms(i).magnitude(vec![i as f64]).factor(16.0);
                compare(scalar(row.iter().sum::<f64>()), scalar(0.0), &terms)?;
            }
        }
    }

    /// The whole loss, all members, in a random direction of all weights at once. Relu has no
    /// gradient at its kink; it is among the operations above.
    #[test]
    fn the_gradient_of_the_whole_loss_is_its_central_difference(mut case in common::case(), direction in any::<u64>()) {
        if case.config.curve == Curve::Relu {
            case.config.curve = Curve::Tanh;
        }
        let learn = |weights: Option<&Tensors>| {
            common::learn_from(&case, Box::new(Cpu::<f64>::new(Some(1)).unwrap()), weights).unwrap()
        };
        let step = learn(None);
        let mut random = Generator::new(direction, stream::SYNTHETIC, 0);
        let mut slope = 0.0;
        let along: Vec<(String, Vec<f64>)> = step.gradient.0.iter().map(|(name, gradient)| {
            let gradient = common::values(gradient);
            let way: Vec<f64> = gradient.iter().map(|_| random.normal()).collect();
            slope += dot(&gradient, &way);
            (name.clone(), way)
        }).collect();
        let loss = |h: f64| {
            let mut weights = step.before.clone();
            for (name, way) in &along {
                let Values::F64(values) = &mut weights.0.get_mut(name).unwrap().values else { unreachable!("f64") };
                values.iter_mut().zip(way).for_each(|(w, d)| *w += h * d);
            }
            let Step { nll, kl, .. } = learn(Some(&weights));
            nll.iter().zip(&kl).map(|(nll, kl)| nll + case.beta * kl).sum::<f64>()
        };
        let h = 1e-5;
        near(&[slope], &[(loss(h) - loss(-h)) / (2.0 * h)])?;
    }

    /// The output layer in blocks is the output layer at once: the override against the definition.
    #[test]
    fn blocks_agree_with_the_definition(
        kind in likelihood(),
        k in 1_u32..6,
        (matrix, h, g, w, bias) in (common::matrix(1.0), 1_usize..20).prop_flat_map(|(x, h)| {
            let (b, i) = (x.users() as usize, x.items() as usize);
            (Just(x), Just(h), numbers(b * h), numbers(h * i), numbers(i))
        }),
    ) {
        let k = k.min(matrix.items());
        let ours = output_layer(&mut Lab::new(Cpu::<f64>::new(Some(2)).unwrap(), 0.0), &matrix, kind, k, h, &g, &w, &bias);
        let plain = output_layer(&mut Lab::new(Plain(Cpu::<f64>::new(Some(1)).unwrap()), 0.0), &matrix, kind, k, h, &g, &w, &bias);
        for (a, b) in ours.0.iter().zip(&plain.0) {
            let biggest = b.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
            let tolerance = Tolerance::new(Float::F64, Float::F64).terms(64).magnitude(vec![biggest; b.len()]).factor(16.0);
            compare(&**a, &**b, &tolerance)?;
        }
        prop_assert_eq!(ours.1, plain.1);
    }

    /// Rankings against a full sort, with ties, NaN, infinities and too few items left.
    #[test]
    fn top_k_is_the_head_of_a_sort(
        (matrix, scores, k) in common::matrix(1.0).prop_flat_map(|x| {
            let score = prop_oneof![
                Just(f64::NAN), Just(f64::NEG_INFINITY), Just(f64::INFINITY), Just(0.0), Just(-0.0),
                (-3_i32..3).prop_map(f64::from), -1.0..1.0_f64,
            ];
            let (n, items) = ((x.users() * x.items()) as usize, x.items());
            (Just(x), vec(score, n), 1..=items)
        }),
        masked in any::<bool>(),
    ) {
        for precise in [true, false] {
            let (items, _) = match precise {
                true => ranking::<f64>(&matrix, &scores, k, masked),
                false => ranking::<f32>(&matrix, &scores, k, masked),
            };
            let all = matrix.items() as usize;
            for (user, (row, ours)) in scores.chunks_exact(all).zip(items.chunks_exact(k as usize)).enumerate() {
                let seen = if masked { matrix.row(user as u32) } else { &[] };
                let score = |i: u32| if precise { row[i as usize] } else { f64::from(row[i as usize] as f32) };
                let mut left: Vec<u32> = (0..all as u32).filter(|i| !seen.contains(i)).collect();
                left.sort_by(|&a, &b| {
                    let (x, y) = (score(a), score(b));
                    x.is_nan().cmp(&y.is_nan()).then(y.partial_cmp(&x).unwrap_or(std::cmp::Ordering::Equal)).then(a.cmp(&b))
                });
                left.resize(k as usize, u32::MAX);
                prop_assert_eq!(&left[..k as usize], ours);
            }
        }
    }
}

fn ranking<T: Real>(matrix: &Matrix, scores: &[f64], k: u32, masked: bool) -> (Vec<u32>, Vec<f64>) {
    let mut lab = Lab::new(Cpu::<T>::new(Some(2)).unwrap(), 0.0);
    let x = lab.rows(matrix);
    let none = Rows { indptr: Buf::NONE, indices: Buf::NONE, values: Buf::NONE, ..x };
    let m = lab.mat(Role::Act, matrix.users() as usize, matrix.items() as usize, scores);
    let len = matrix.users() as usize * k as usize;
    let items = lab.backend.alloc(Role::Index, len as u64).unwrap();
    let values = lab.backend.alloc(Role::Value, len as u64).unwrap();
    lab.backend.top_k(m, if masked { x } else { none }, k, items, values).unwrap();
    let (mut i, mut v) = (vec![0; len], vec![0.0; len]);
    lab.backend.download(items, 0, HostMut::U32(&mut i)).unwrap();
    lab.backend.download(values, 0, HostMut::F64(&mut v)).unwrap();
    (i, v)
}

/// Loss, gradients and recommendations of the output layer.
fn output_layer<B: Backend>(
    lab: &mut Lab<B>,
    matrix: &Matrix,
    kind: Likelihood,
    k: u32,
    h: usize,
    g: &[f64],
    w: &[f64],
    bias: &[f64],
) -> (Vec<Vec<f64>>, Vec<u32>) {
    let (b, i) = (matrix.users() as usize, matrix.items() as usize);
    let x = lab.rows(matrix);
    let (g, wm, bm) = (lab.mat(Role::Act, b, h, g), lab.mat(Role::Weight, h, i, w), lab.mat(Role::Weight, 1, i, bias));
    let rows = lab.backend.logits_rows(b as u32, i as u32) as usize;
    let logits = lab.zeros(Role::Act, rows, i);
    let decode = Decode { g, w: wm, b: bm, curve: Curve::Tanh, logits };
    let buf = lab.backend.alloc(Role::Value, b as u64).unwrap();
    let loss = Mat { buf, rows: b as u32, cols: 1, stride: 1, offset: 0 };
    let (dw, db, dg) = (lab.zeros(Role::Grad, h, i), lab.zeros(Role::Grad, 1, i), lab.zeros(Role::Act, b, h));
    lab.backend.decode_loss_grad(x, decode, kind, lab.step, lab.scale, loss, dw, db, dg).unwrap();
    let numbers = vec![lab.read(loss), lab.read(dw), lab.read(db), lab.read(dg)];
    let items = lab.backend.alloc(Role::Index, b as u64 * u64::from(k)).unwrap();
    let values = lab.backend.alloc(Role::Value, b as u64 * u64::from(k)).unwrap();
    lab.backend.recommend(decode, x, k, items, values).unwrap();
    let mut ranked = vec![0; b * k as usize];
    lab.backend.download(items, 0, HostMut::U32(&mut ranked)).unwrap();
    (numbers, ranked)
}

/// Forwards only what a backend must have, so that everything else is the definition.
struct Plain<B>(B);

#[rustfmt::skip]
impl<B: Backend> Backend for Plain<B> {
    fn info(&self) -> Info { self.0.info() }
    fn alloc(&mut self, role: Role, len: u64) -> Result<Buf> { self.0.alloc(role, len) }
    fn free(&mut self, buf: Buf) { self.0.free(buf); }
    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result { self.0.upload(dst, at, src) }
    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result { self.0.download(src, at, dst) }
    fn sync(&mut self) -> Result { self.0.sync() }
    fn encode_sparse(&mut self, x: Rows, w: Mat, b: Mat, c: Curve, n: Noise, s: Buf, y: Mat) -> Result { self.0.encode_sparse(x, w, b, c, n, s, y) }
    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, n: Noise, s: Buf, dw: Mat, db: Mat) -> Result { self.0.encode_sparse_grad(x, dy, n, s, dw, db) }
    fn linear(&mut self, x: Mat, w: Mat, b: Mat, c: Curve, y: Mat) -> Result { self.0.linear(x, w, b, c, y) }
    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result { self.0.linear_grad_weight(x, dy, dw, db) }
    fn linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, c: Curve, dx: Mat) -> Result { self.0.linear_grad_input(dy, w, x, c, dx) }
    fn sample_latent(&mut self, x: Rows, st: Mat, n: Noise, s: Buf, z: Mat, kl: Mat) -> Result { self.0.sample_latent(x, st, n, s, z, kl) }
    fn sample_latent_grad(&mut self, x: Rows, st: Mat, dz: Mat, n: Noise, s: Buf, sc: Buf, d: Mat) -> Result { self.0.sample_latent_grad(x, st, dz, n, s, sc, d) }
    fn likelihood(&mut self, x: Rows, k: Likelihood, l: Mat, s: Buf, sc: Buf, loss: Mat) -> Result { self.0.likelihood(x, k, l, s, sc, loss) }
    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, d: u64, s: Buf, sc: Buf) -> Result { self.0.adam(w, dw, m, v, len, d, s, sc) }
    fn top_k(&mut self, sc: Mat, seen: Rows, k: u32, i: Buf, v: Buf) -> Result { self.0.top_k(sc, seen, k, i, v) }
}

/// More users than a block of logits holds, more items than a chunk, more chunks than groups: the
/// division of real sizes, not only of tiny cases. It may not depend on the number of threads.
#[test]
fn many_users_and_items_are_divided_and_agree_with_the_definition() {
    let kinds = [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic];
    for (users, items, h) in [(1100, 40, 9), (600, 1500, 5), (3, 24_000, 4), (1, 641, 1)] {
        let events = |u: u32| (0..items).filter(move |i| (u * 7 + i * 3) % 11 < 2).collect::<Vec<u32>>();
        let plain = Matrix::from_rows(items, (0..users).map(events)).unwrap();
        let weights: Vec<f32> = (0..plain.events()).map(|i| 0.25 + (i % 5) as f32 / 8.0).collect();
        let weighted =
            Matrix::new(items, plain.indptr().to_vec(), plain.indices().to_vec(), Some(weights.into())).unwrap();
        let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<f64>>();
        let (g, w, b) = (wave(users as usize * h, 0.7), wave(h * items as usize, 1.3), wave(items as usize, 2.1));
        for (matrix, kind) in kinds.into_iter().flat_map(|kind| [(&plain, kind), (&weighted, kind)]) {
            let kind = Likelihood { kind, seen: 1.5, unseen: 0.5 };
            let layer = |threads, plainly| {
                let cpu = Cpu::<f64>::new(Some(threads)).unwrap();
                match plainly {
                    true => output_layer(&mut Lab::new(Plain(cpu), 0.0), matrix, kind, 5, h, &g, &w, &b),
                    false => output_layer(&mut Lab::new(cpu, 0.0), matrix, kind, 5, h, &g, &w, &b),
                }
            };
            let (ours, defined) = (layer(2, false), layer(1, true));
            for (a, b) in ours.0.iter().zip(&defined.0) {
                let biggest = b.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
                let terms = users.max(items) as usize;
                let tolerance =
                    Tolerance::new(Float::F64, Float::F64).terms(terms).magnitude(vec![biggest; b.len()]).factor(16.0);
                compare(&**a, &**b, &tolerance).unwrap();
            }
            assert_eq!(ours.1, defined.1);
            assert_eq!(ours, layer(1, false));
            assert_eq!(ours, layer(40, false));
        }
    }
    assert!(Cpu::<f64>::new(Some(2)).unwrap().logits_rows(1100, 40) < 1100, "one block would prove nothing");
}

#[test]
fn an_update_with_a_gradient_that_is_not_finite_changes_nothing_but_the_count() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut lab = Lab::new(Cpu::<f32>::new(Some(2)).unwrap(), 0.0);
        let n = 5000;
        let mut gradient = vec![1.0; n];
        gradient[n - 3] = bad;
        let before: Vec<f64> = (0..n).map(|i| f64::from(i as u32)).collect();
        let buf = |lab: &mut Lab<Cpu<f32>>, role, values: &[f64]| {
            let buf = lab.backend.alloc(role, n as u64).unwrap();
            lab.backend.upload(buf, 0, Host::F64(values)).unwrap();
            buf
        };
        let (w, dw) = (buf(&mut lab, Role::Weight, &before), buf(&mut lab, Role::Grad, &gradient));
        let (m, v) = (buf(&mut lab, Role::Moment, &before), buf(&mut lab, Role::Moment, &before));
        let adam = |lab: &mut Lab<Cpu<f32>>| {
            lab.backend.adam(w, dw, m, v, n as u64, 0, lab.step, lab.scale).unwrap();
            let mut state = ScaleState::default();
            lab.backend.download(lab.scale, 0, HostMut::Scale(&mut state)).unwrap();
            let mut after = vec![0.0; n];
            lab.backend.download(w, 0, HostMut::F64(&mut after)).unwrap();
            (state, after)
        };
        let (state, after) = adam(&mut lab);
        assert_eq!((state.finite, state.skipped, after), (0, 1, before.clone()));
        gradient[n - 3] = 1.0;
        lab.backend.upload(dw, 0, Host::F64(&gradient)).unwrap();
        let (state, after) = adam(&mut lab);
        assert_eq!((state.finite, state.skipped), (1, 1));
        assert!(after.iter().zip(&before).all(|(a, b)| a != b || *b > 1e6));
    }
}

#[test]
fn handles_that_are_wrong_are_errors() {
    let mut cpu = Cpu::<f32>::new(Some(1)).unwrap();
    let buf = cpu.alloc(Role::Act, 64).unwrap();
    let m = Mat { buf, rows: 2, cols: 16, stride: 16, offset: 0 };
    let outside = Mat { offset: 60, ..m };
    cpu.free(buf);
    cpu.free(buf);
    cpu.free(Buf(4_000_000));
    let fault = |r: Result| assert!(matches!(r, Err(Fault::Other(_))), "{r:?}");
    fault(cpu.linear(m, m, m, Curve::Tanh, m));
    fault(cpu.linear_grad_input(outside, m, m, Curve::Tanh, m));
    fault(cpu.upload(Buf(77), 0, Host::F32(&[1.0])));
    fault(cpu.download(buf, 0, HostMut::F32(&mut [0.0])));
    let small = cpu.alloc(Role::Act, 4).unwrap();
    fault(cpu.upload(small, 2, Host::F32(&[1.0; 3])));
    fault(cpu.upload(small, u64::MAX, Host::F32(&[1.0; 3])));
    let huge = cpu.alloc(Role::Act, u64::MAX / 8);
    assert!(matches!(huge, Err(Fault::OutOfMemory { .. })), "{huge:?}");
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
