//! Each operation once: its arguments from a case, and what its results may be off by.

use vaecf_core::{
    backend::{Backend, Buf, Curve, Decode, Likelihood, LikelihoodKind, Mat, Noise, Role, Rows},
    matrix::Matrix,
    random::{self, stream},
};

use crate::{
    case::{Case, Data, Fill},
    compare::Tolerance,
    lab::{Lab, Mode, Taken, Tried, ensure},
    numbers::{Numbers, round},
    op::Op,
};

/// How a result came about: see [`crate::compare`].
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    role: Role,
    terms: usize,
    /// `sum |a||b|` of each value.
    magnitude: Vec<f64>,
    /// Made from intermediate results that are stored as activations are.
    through: bool,
    /// No rounding takes place at all.
    exact: bool,
}

impl Bound {
    fn new(role: Role, terms: usize, magnitude: Vec<f64>) -> Self {
        Self { role, terms, magnitude, through: false, exact: false }
    }

    fn exact() -> Self {
        Self { exact: true, ..Self::new(Role::Index, 0, Vec::new()) }
    }

    fn exact_if(self, exact: bool) -> Self {
        Self { exact: self.exact || exact, ..self }
    }

    fn through(self) -> Self {
        Self { through: true, ..self }
    }

    pub(crate) fn magnitude(&self) -> &[f64] {
        &self.magnitude
    }

    pub(crate) fn with(self, magnitude: Vec<f64>) -> Self {
        Self { magnitude, ..self }
    }

    pub(crate) fn tolerance(self, numbers: Numbers) -> Tolerance {
        if self.exact {
            return Tolerance::EXACT;
        }
        numbers.tolerance(self.role, self.through).terms(self.terms).magnitude(self.magnitude)
    }

    /// A value as the result's type stores it. Weights that an operation writes are masters.
    pub(crate) fn stored(&self, numbers: Numbers, x: f64) -> f64 {
        match self.role {
            Role::Index => x,
            Role::Weight => round(numbers.sum, x),
            role => round(numbers.role(role), x),
        }
    }
}

/// Carries out a case on a backend. The bounds come with the results where they are asked for.
pub(crate) fn perform(
    backend: &mut dyn Backend,
    case: &Case,
    numbers: Numbers,
    mode: Mode,
    judged: bool,
) -> Tried<(Vec<Taken>, Vec<Bound>)> {
    let scales = backend.info().loss_scale != 1.0;
    let mut lab = Lab::new(backend, case, numbers, mode)?;
    let bounds = issue(&mut lab, judged)?;
    let mut taken = lab.take()?;
    if case.op == Op::Adam {
        let (before, state) = (lab.before(), lab.scale_state()?);
        // Only a backend that scales moves the scale: down where it skips, up after a number of good updates.
        let moved = state.scale != before.scale;
        let allowed = match (scales, state.finite == 0) {
            (false, true) => !moved && state.good == before.good,
            (true, true) => state.scale == before.scale / 2.0 && state.good == 0,
            (true, false) if moved => state.scale == before.scale * 2.0 && state.good == 0,
            (_, false) => !moved && state.good == before.good + 1,
        };
        ensure(allowed, || format!("the loss scale was {before:?}, and now {state:?}"))?;
        let values = vec![f64::from(state.finite), f64::from(state.skipped)];
        taken.push(Taken { name: "scale", rows: 1, cols: 2, values });
    }
    if matches!(case.op, Op::TopK | Op::Recommend) {
        // A score that is not a number is ranked, and never equal to itself: its place is compared.
        if let Some(values) = taken.iter_mut().find(|t| t.name == "values") {
            let mut places = Taken { name: "not a number", ..values.clone() };
            places.values.iter_mut().for_each(|x| *x = f64::from(u8::from(x.is_nan())));
            values.values.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
            taken.push(places);
        }
    }
    Ok((taken, bounds))
}

/// Seconds that one call takes, and the floating-point operations of its products.
pub(crate) fn time(backend: &mut dyn Backend, case: &Case, numbers: Numbers) -> Tried<(f64, f64)> {
    let mut lab = Lab::new(backend, case, numbers, Mode::Timed)?;
    issue(&mut lab, false)?;
    let (b, i, m, n) = dims(case);
    let products = match case.op {
        Op::Linear | Op::LinearGradWeight | Op::LinearGradInput => 2 * b * m * n,
        Op::DecodeLossGrad => 6 * b * m * i,
        Op::Recommend => 2 * b * m * i,
        _ => 0,
    };
    Ok((lab.seconds, products as f64))
}

fn issue(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    match lab.case.op {
        Op::EncodeSparse => encode_sparse(lab),
        Op::EncodeSparseGrad => encode_sparse_grad(lab),
        Op::Linear => linear(lab, judged),
        Op::LinearGradWeight => linear_grad_weight(lab, judged),
        Op::LinearGradInput => linear_grad_input(lab, judged),
        Op::SampleLatent => sample_latent(lab),
        Op::SampleLatentGrad => sample_latent_grad(lab),
        Op::Likelihood => likelihood(lab),
        Op::Adam => adam(lab),
        Op::TopK => top_k(lab),
        Op::DecodeLossGrad => decode_loss_grad(lab, judged),
        Op::Recommend => recommend(lab, judged),
        Op::Memory | Op::Step | Op::Training | Op::Group => Ok(Vec::new()),
    }
}

fn dims(case: &Case) -> (usize, usize, usize, usize) {
    (case.users as usize, case.items as usize, case.inner as usize, case.outer as usize)
}

fn abs(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.abs()).collect()
}

/// `a[m, k] b[k, n]`.
pub(crate) fn product(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    if n == 0 || k == 0 {
        return c;
    }
    for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
            c.iter_mut().zip(b).for_each(|(c, &b)| *c += a * b);
        }
    }
    c
}

/// The transpose of `a[m, n]`.
fn transposed(a: &[f64], m: usize, n: usize) -> Vec<f64> {
    (0..m * n).map(|at| a[at % m * n + at / m]).collect()
}

pub(crate) fn column_sums(a: &[f64], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    a.chunks_exact(n).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, x)| *s += x));
    sums
}

/// Whether whole numbers stay whole numbers.
fn whole(case: &Case) -> bool {
    case.data == Data::Integers && case.curve != Curve::Tanh
}

pub(crate) fn dropout(case: &Case) -> Noise {
    Noise { seed: case.seed, stream: stream::DROPOUT, keep: case.keep as f32 }
}

pub(crate) fn latent(case: &Case) -> Noise {
    Noise { seed: case.seed, stream: stream::LATENT, keep: case.keep as f32 }
}

pub(crate) fn likelihood_of(case: &Case) -> Likelihood {
    // Powers of two, so that whole numbers stay exact; unseen items count for nothing in every other case.
    Likelihood { kind: case.kind, seen: 2.0, unseen: if case.seed.is_multiple_of(2) { 0.0 } else { 0.5 } }
}

/// The rows of the batch as the first layer sees them: user, and per event item and input.
pub(crate) fn inputs(case: &Case, history: &Matrix, order: &[u32], update: u32) -> Vec<Vec<(usize, f64)>> {
    let keep = f64::from(case.keep as f32);
    let threshold = random::threshold(case.keep as f32);
    let of = |&user: &u32| {
        let x = |at: usize| history.row_values(user).map_or(1.0, |v| f64::from(v[at]));
        let items = history.row(user);
        let norm = (0..items.len()).map(|at| x(at) * x(at)).sum::<f64>().sqrt();
        let kept = |item| random::keeps(case.seed, stream::DROPOUT, update, user, item, threshold);
        let all = items.iter().enumerate().filter(|(_, item)| kept(**item));
        // A row whose weights are all zero is zero.
        all.map(|(at, &item)| (item as usize, if norm > 0.0 { x(at) / norm / keep } else { 0.0 })).collect()
    };
    order[case.first as usize..][..case.users as usize].iter().map(of).collect()
}

/// Inputs whose norms and scales are powers of two.
fn exact_inputs(case: &Case) -> bool {
    case.fill == Fill::Squares && !case.weights && [1.0, 0.5].contains(&case.keep) && case.data == Data::Integers
}

fn encode_sparse(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, i, _, h) = dims(case);
    let (history, order) = (case.history(), case.order());
    let (w, bias) = (lab.draw(Role::Weight, 0, i * h), lab.draw(Role::Weight, 1, h));
    let x = lab.rows(&history, &order, true)?;
    let (wm, bm) = (lab.input("w", Role::Weight, i, h, &w)?, lab.input("b", Role::Weight, 1, h, &bias)?);
    let y = lab.output("y", Role::Act, b, h)?;
    lab.call(|q, step, _| q.encode_sparse(x, wm, bm, case.curve, dropout(case), step, y))?;
    let inputs = inputs(case, &history, &order, lab.params.update);
    let longest = inputs.iter().map(Vec::len).max().unwrap_or(0);
    let mut magnitude = Vec::with_capacity(b * h);
    for row in &inputs {
        let mut sums = abs(&bias);
        for &(item, x) in row {
            sums.iter_mut().zip(&w[item * h..]).for_each(|(s, w)| *s += x * w.abs());
        }
        magnitude.extend(sums);
    }
    Ok(vec![Bound::new(Role::Act, longest + 1, magnitude).exact_if(exact_inputs(case) && whole(case))])
}

fn encode_sparse_grad(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, i, _, h) = dims(case);
    let (history, order) = (case.history(), case.order());
    let dy = lab.draw(Role::Act, 0, b * h);
    let x = lab.rows(&history, &order, true)?;
    let dym = lab.input("dy", Role::Act, b, h, &dy)?;
    let (dw, db) = (lab.output("dw", Role::Grad, i, h)?, lab.output("db", Role::Grad, 1, h)?);
    lab.call(|q, step, _| q.encode_sparse_grad(x, dym, dropout(case), step, dw, db))?;
    let mut magnitude = vec![0.0; i * h];
    for (row, dy) in inputs(case, &history, &order, lab.params.update).iter().zip(dy.chunks_exact(h)) {
        for &(item, x) in row {
            magnitude[item * h..][..h].iter_mut().zip(dy).for_each(|(s, dy)| *s += x * dy.abs());
        }
    }
    let exact = exact_inputs(case);
    Ok(vec![
        Bound::new(Role::Grad, b, magnitude).exact_if(exact),
        Bound::new(Role::Grad, b, column_sums(&abs(&dy), h)).exact_if(case.data == Data::Integers),
    ])
}

fn linear(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, m, n) = dims(case);
    let (x, w) = (lab.draw(Role::Act, 0, b * m), lab.draw(Role::Weight, 1, m * n));
    let bias = lab.draw(Role::Weight, 2, n);
    let (xm, wm) = (lab.view("x", b, m, &x)?, lab.input("w", Role::Weight, m, n, &w)?);
    let bm = lab.input("b", Role::Weight, 1, n, &bias)?;
    let y = lab.output("y", Role::Act, b, n)?;
    lab.call(|q, _, _| q.linear(xm, wm, bm, case.curve, y))?;
    if !judged {
        return Ok(Vec::new());
    }
    Ok(vec![Bound::new(Role::Act, m + 1, affine(&abs(&x), &abs(&w), &abs(&bias), b, m)).exact_if(whole(case))])
}

/// `x[b, m] w + bias`.
pub(crate) fn affine(x: &[f64], w: &[f64], bias: &[f64], b: usize, m: usize) -> Vec<f64> {
    let mut y = product(x, w, b, m, bias.len());
    y.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    y
}

fn linear_grad_weight(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, m, n) = dims(case);
    let (x, dy) = (lab.draw(Role::Act, 0, b * m), lab.draw(Role::Act, 1, b * n));
    let (xm, dym) = (lab.input("x", Role::Act, b, m, &x)?, lab.input("dy", Role::Act, b, n, &dy)?);
    let (dw, db) = (lab.output("dw", Role::Grad, m, n)?, lab.output("db", Role::Grad, 1, n)?);
    lab.call(|q, _, _| q.linear_grad_weight(xm, dym, dw, db))?;
    if !judged {
        return Ok(Vec::new());
    }
    let exact = case.data == Data::Integers;
    let magnitude = product(&transposed(&abs(&x), b, m), &abs(&dy), m, b, n);
    Ok(vec![
        Bound::new(Role::Grad, b, magnitude).exact_if(exact),
        Bound::new(Role::Grad, b, column_sums(&abs(&dy), n)).exact_if(exact),
    ])
}

/// Outputs of a curve, and the curve's slope there.
pub(crate) fn activated(lab: &Lab<'_>, number: u32, len: usize) -> (Vec<f64>, Vec<f64>) {
    let mut x = lab.draw(Role::Act, number, len);
    match lab.case.curve {
        Curve::Identity => {}
        Curve::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
        Curve::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
    }
    lab.round(Role::Act, &mut x);
    let slope = |&x: &f64| match lab.case.curve {
        Curve::Identity => 1.0,
        Curve::Tanh => 1.0 - x * x,
        Curve::Relu => f64::from(u8::from(x > 0.0)),
    };
    let slopes = x.iter().map(slope).collect();
    (x, slopes)
}

fn linear_grad_input(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, m, n) = dims(case);
    let (dy, w) = (lab.draw(Role::Act, 0, b * n), lab.draw(Role::Weight, 1, m * n));
    let (x, slope) = activated(lab, 2, b * m);
    let (dym, wm) = (lab.input("dy", Role::Act, b, n, &dy)?, lab.input("w", Role::Weight, m, n, &w)?);
    let xm = lab.input("x", Role::Act, b, m, &x)?;
    let dx = lab.output("dx", Role::Act, b, m)?;
    lab.call(|q, _, _| q.linear_grad_input(dym, wm, xm, case.curve, dx))?;
    if !judged {
        return Ok(Vec::new());
    }
    Ok(vec![Bound::new(Role::Act, n, input_gradient(&abs(&dy), &abs(&w), &slope, b, m, n)).exact_if(whole(case))])
}

/// `(dy[b, n] w[m, n]^T) * slope[b, m]`.
fn input_gradient(dy: &[f64], w: &[f64], slope: &[f64], b: usize, m: usize, n: usize) -> Vec<f64> {
    let mut dx = product(dy, &transposed(w, m, n), b, n, m);
    dx.iter_mut().zip(slope).for_each(|(dx, slope)| *dx *= slope);
    dx
}

/// No standard normal draw of 24 bits is larger: sqrt(-2 ln 2^-24).
const LARGEST_DRAW: f64 = 5.8;

fn sample_latent(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, _, k) = dims(case);
    let (history, order) = (Case { fill: Fill::One, items: 1, ..case.clone() }.history(), case.order());
    let stats = lab.draw(Role::Act, 0, b * 2 * k);
    let x = lab.rows(&history, &order, true)?;
    let sm = lab.input("stats", Role::Act, b, 2 * k, &stats)?;
    let (z, kl) = (lab.output("z", Role::Act, b, k)?, lab.per_user("kl")?);
    lab.call(|q, step, _| q.sample_latent(x, sm, latent(case), step, z, kl))?;
    let (mut far, mut sums) = (Vec::new(), Vec::new());
    for (mu, logvar) in stats.chunks_exact(2 * k).map(|row| row.split_at(k)) {
        far.extend(mu.iter().zip(logvar).map(|(m, v)| m.abs() + (v / 2.0).exp() * LARGEST_DRAW));
        sums.push(mu.iter().zip(logvar).map(|(m, v)| (v.exp() + m * m + 1.0 + v.abs()) / 2.0).sum());
    }
    Ok(vec![Bound::new(Role::Act, 4, far).exact_if(case.keep == 0.0), Bound::new(Role::Value, k, sums)])
}

fn sample_latent_grad(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, _, k) = dims(case);
    let (history, order) = (Case { fill: Fill::One, items: 1, ..case.clone() }.history(), case.order());
    let (stats, dz) = (lab.draw(Role::Act, 0, b * 2 * k), lab.draw(Role::Act, 1, b * k));
    let x = lab.rows(&history, &order, true)?;
    let (sm, dzm) = (lab.input("stats", Role::Act, b, 2 * k, &stats)?, lab.input("dz", Role::Act, b, k, &dz)?);
    let dstats = lab.output("dstats", Role::Act, b, 2 * k)?;
    lab.call(|q, step, scale| q.sample_latent_grad(x, sm, dzm, latent(case), step, scale, dstats))?;
    let beta = lab.params.beta * case.scale;
    let mut far = Vec::new();
    for (row, dz) in stats.chunks_exact(2 * k).zip(dz.chunks_exact(k)) {
        let (mu, logvar) = row.split_at(k);
        far.extend(mu.iter().zip(dz).map(|(mu, dz)| dz.abs() + beta * mu.abs()));
        far.extend(
            logvar
                .iter()
                .zip(dz)
                .map(|(v, dz)| 0.5 * dz.abs() * LARGEST_DRAW * (v / 2.0).exp() + 0.5 * beta * (v.exp() + 1.0)),
        );
    }
    Ok(vec![Bound::new(Role::Act, 4, far)])
}

/// Logits: in extreme cases so large that their exponentials are infinite.
fn logits(lab: &Lab<'_>, number: u32, len: usize) -> Vec<f64> {
    let mut f = lab.draw(Role::Act, number, len);
    if lab.case.data == Data::Extreme {
        f.iter_mut().for_each(|f| *f *= 400.0);
        // In every other row one stands out by so much that no other will do for the maximum.
        let mut random = lab.case.generator(5);
        for row in f.chunks_exact_mut(lab.case.items as usize).skip(1).step_by(2) {
            row[random.below(lab.case.items) as usize] = 1000.0;
        }
        lab.round(Role::Act, &mut f);
    }
    f
}

/// What loss and gradient of one row may be off by, given what its logits are off by in units of their
/// rounding.
fn likelihood_bound(case: &Case, f: &[f64], off: &[f64], row: &[(usize, f64)]) -> (f64, Vec<f64>) {
    let kind = likelihood_of(case);
    let total: f64 = row.iter().map(|(_, x)| x).sum();
    let mut far;
    let mut loss = 0.0;
    match kind.kind {
        LikelihoodKind::Multinomial => {
            let top = f.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = f.iter().map(|f| (f - top).exp()).sum();
            let share = |f: f64| (f - top).exp() / sum;
            let common: f64 = f.iter().zip(off).map(|(&f, off)| share(f) * (off + top - f)).sum();
            far = f
                .iter()
                .zip(off)
                .map(|(&f, off)| total * share(f) * (1.0 + (top - f) + off + common))
                .collect::<Vec<_>>();
            for &(item, x) in row {
                loss += x * ((top - f[item]) + sum.ln() + off[item] + common + 1.0);
                far[item] += x;
            }
        }
        LikelihoodKind::Gaussian => {
            let (c1, c0) = (f64::from(kind.seen), f64::from(kind.unseen));
            far = f.iter().zip(off).map(|(f, off)| c0 * (f.abs() + off)).collect::<Vec<_>>();
            loss += f.iter().zip(off).map(|(f, off)| c0 * (f * f + f.abs() * off)).sum::<f64>();
            for &(item, x) in row {
                far[item] = c1 * (f[item].abs() + x + off[item]);
                loss += c1 * (f[item].abs() + x) * (f[item].abs() + x + off[item]);
            }
        }
        LikelihoodKind::Logistic => {
            let sigmoid = |f: f64| 1.0 / (1.0 + (-f).exp());
            far = f.iter().zip(off).map(|(&f, off)| sigmoid(f) * (1.0 + off)).collect::<Vec<_>>();
            loss += f.iter().zip(off).map(|(&f, off)| f.max(0.0) + 1.0 + sigmoid(f) * off).sum::<f64>();
            for &(item, x) in row {
                far[item] += x;
                loss += x * (f[item].abs() + off[item]);
            }
        }
    }
    far.iter_mut().for_each(|far| *far *= case.scale);
    (loss, far)
}

/// The rows of the batch with their weights, neither normalised nor dropped.
pub(crate) fn events(case: &Case, history: &Matrix, order: &[u32]) -> Vec<Vec<(usize, f64)>> {
    let of = |&user: &u32| {
        let x = |at: usize| history.row_values(user).map_or(1.0, |v| f64::from(v[at]));
        history.row(user).iter().enumerate().map(|(at, &item)| (item as usize, x(at))).collect()
    };
    order[case.first as usize..][..case.users as usize].iter().map(of).collect()
}

fn likelihood(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, i, ..) = dims(case);
    let (history, order) = (case.history(), case.order());
    let f = logits(lab, 0, b * i);
    let x = lab.rows(&history, &order, true)?;
    let (fm, loss) = (lab.in_place("logits", Role::Act, b, i, &f)?, lab.per_user("loss")?);
    lab.call(|q, step, scale| q.likelihood(x, likelihood_of(case), fm, step, scale, loss))?;
    let (mut losses, mut far) = (Vec::new(), Vec::new());
    for (f, row) in f.chunks_exact(i).zip(events(case, &history, &order)) {
        let (loss, df) = likelihood_bound(case, f, &vec![0.0; i], &row);
        losses.push(loss);
        // An exponential next to zero may be zero, before it is multiplied.
        let total: f64 = row.iter().map(|(_, x)| x).sum();
        let least = lab.numbers.sum.tiny() / lab.numbers.sum.roundoff() * total * case.scale;
        far.extend(df.iter().map(|df| df + least));
    }
    let exact = whole(case) && case.kind == LikelihoodKind::Gaussian && !case.weights;
    Ok(vec![Bound::new(Role::Act, i, far).exact_if(exact), Bound::new(Role::Value, i, losses).exact_if(exact)])
}

fn adam(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let len = case.items as usize;
    let decayed = len - case.outer as usize;
    let w = lab.draw(Role::Weight, 0, len);
    let mut random = case.generator(3);
    let mut dw: Vec<f64> = lab.draw(Role::Grad, 1, len).iter().map(|g| g * case.scale).collect();
    let m: Vec<f64> = lab.draw(Role::Moment, 2, len).iter().map(|m| m / 8.0).collect();
    // Not next to zero, where the root of a sum that cancelled would say nothing.
    let mut v: Vec<f64> = (0..len).map(|_| 0.001 + random.unit() / 100.0).collect();
    lab.round(Role::Moment, &mut v);
    if case.data == Data::Extreme {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][random.below(3) as usize];
        let last = len - 1;
        dw[if random.below(2) == 0 { last } else { random.below(case.items) as usize }] = bad;
    }
    let (wb, dwb) =
        (lab.arena("w", Role::Weight, Some(&w), len, true)?, lab.arena("dw", Role::Grad, Some(&dw), len, false)?);
    let (mb, vb) =
        (lab.arena("m", Role::Moment, Some(&m), len, true)?, lab.arena("v", Role::Moment, Some(&v), len, true)?);
    lab.call(|q, step, scale| q.adam(wb, dwb, mb, vb, len as u64, decayed as u64, step, scale))?;
    // What operations then read is the new weights, whatever copies of them there are: a sum of nothing and a bias.
    let (x, none) =
        (lab.input("x", Role::Act, 1, 1, &[0.0])?, lab.input("none", Role::Weight, 1, len, &vec![0.0; len])?);
    let read = lab.output("read", Role::Act, 1, len)?;
    if lab.mode != Mode::Timed {
        let bias = Mat { buf: wb, offset: 0, ..none };
        lab.call(|q, _, _| q.linear(x, none, bias, Curve::Identity, read))?;
    }
    let p = lab.params;
    let (mut far_w, mut far_m, mut far_v) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..len {
        let l2 = if at < decayed { p.l2 } else { 0.0 };
        let g = dw[at] * p.grad_factor / case.scale + l2 * w[at];
        let size = (dw[at] * p.grad_factor / case.scale).abs() + l2 * w[at].abs();
        let new_v = p.beta2 * v[at] + (1.0 - p.beta2) * g * g;
        let size_m = p.beta1 * m[at].abs() + (1.0 - p.beta1) * size;
        far_m.push(size_m);
        far_v.push(p.beta2 * v[at] + (1.0 - p.beta2) * size * size);
        far_w.push(w[at].abs() + p.lr / p.correction1 * size_m / ((new_v / p.correction2).sqrt() + p.eps));
    }
    if case.data == Data::Extreme {
        // Nothing but the count changes.
        return Ok((0..5).map(|_| Bound::exact()).collect());
    }
    let bound = |role, far| Bound::new(role, 4, far);
    let read = bound(Role::Act, far_w.clone());
    Ok(vec![bound(Role::Weight, far_w), bound(Role::Moment, far_m), bound(Role::Moment, far_v), read, Bound::exact()])
}

/// The histories to be left out; a case without events asks with no matrix at all, every other time.
fn seen(lab: &mut Lab<'_>) -> Tried<Rows> {
    let case = lab.case;
    let rows = lab.rows(&case.history(), &case.order(), false)?;
    let none = case.fill == Fill::Empty && case.seed % 2 == 1;
    let absent = Rows { indptr: Buf::NONE, indices: Buf::NONE, values: Buf::NONE, users: Buf::NONE, ..rows };
    Ok(if none { absent } else { rows })
}

/// The scores that a case of [`Op::TopK`] ranks.
pub(crate) fn ranked_scores(lab: &Lab<'_>) -> Vec<f64> {
    let case = lab.case;
    let mut scores = lab.draw(Role::Act, 0, (case.users * case.items) as usize);
    if case.data == Data::Extreme {
        let mut random = case.generator(4);
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0];
        scores.iter_mut().for_each(|x| {
            if random.below(2) == 0 {
                *x = odd[random.below(6) as usize];
            }
        });
    }
    scores
}

fn top_k(lab: &mut Lab<'_>) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, i, ..) = dims(case);
    let k = case.k as usize;
    let scores = ranked_scores(lab);
    let seen = seen(lab)?;
    let sm = lab.input("scores", Role::Act, b, i, &scores)?;
    let (items, values) = (lab.ranked("items", b, k)?, lab.arena("values", Role::Value, None, b * k, true)?);
    lab.call(|q, _, _| q.top_k(sm, seen, case.k, items, values))?;
    Ok((0..3).map(|_| Bound::exact()).collect())
}

/// The arguments of the output layer, on the host.
pub(crate) struct OutputLayer {
    pub(crate) g: Vec<f64>,
    pub(crate) w: Vec<f64>,
    pub(crate) bias: Vec<f64>,
    slope: Vec<f64>,
}

impl OutputLayer {
    fn of(lab: &Lab<'_>) -> Self {
        let (b, i, h, _) = dims(lab.case);
        // Rankings have no gradient, so no curve.
        let (g, slope) = match lab.case.op {
            Op::Recommend => (lab.draw(Role::Act, 0, b * h), Vec::new()),
            _ => activated(lab, 0, b * h),
        };
        let (mut w, bias) = (lab.draw(Role::Weight, 1, h * i), lab.draw(Role::Weight, 2, i));
        if lab.case.data == Data::Extreme {
            w.iter_mut().for_each(|w| *w *= 100.0);
            lab.round(Role::Weight, &mut w);
        }
        Self { g, w, bias, slope }
    }

    /// Logits, and what each is off by in units of rounding: `|g||w| + |b|`.
    pub(crate) fn logits(&self, b: usize, h: usize) -> (Vec<f64>, Vec<f64>) {
        (affine(&self.g, &self.w, &self.bias, b, h), affine(&abs(&self.g), &abs(&self.w), &abs(&self.bias), b, h))
    }

    fn place(&self, lab: &mut Lab<'_>, g: Mat) -> Tried<Decode> {
        let (_, i, h, _) = dims(lab.case);
        let (w, b) = (lab.input("w", Role::Weight, h, i, &self.w)?, lab.input("b", Role::Weight, 1, i, &self.bias)?);
        let rows = lab.logits_rows();
        Ok(Decode { g, w, b, curve: lab.case.curve, logits: lab.scratch("logits", rows, i)? })
    }
}

fn decode_loss_grad(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, i, h, _) = dims(case);
    let (history, order) = (case.history(), case.order());
    let layer = OutputLayer::of(lab);
    let x = lab.rows(&history, &order, true)?;
    let g = lab.input("g", Role::Act, b, h, &layer.g)?;
    let decode = layer.place(lab, g)?;
    let loss = lab.per_user("loss")?;
    let (dw, db) = (lab.output("dw", Role::Grad, h, i)?, lab.output("db", Role::Grad, 1, i)?);
    let dg = lab.output("dg", Role::Act, b, h)?;
    let kind = likelihood_of(case);
    lab.call(|q, step, scale| q.decode_loss_grad(x, decode, kind, step, scale, loss, dw, db, dg))?;
    if !judged {
        return Ok(Vec::new());
    }
    let (f, off) = layer.logits(b, h);
    let (mut losses, mut df) = (Vec::new(), Vec::new());
    for ((f, off), row) in f.chunks_exact(i).zip(off.chunks_exact(i)).zip(events(case, &history, &order)) {
        let (loss, far) = likelihood_bound(case, f, off, &row);
        losses.push(loss);
        df.extend(far);
    }
    // Next to zero a type loses a fixed amount, and not a part of the value.
    let least = lab.numbers.act.tiny() / lab.numbers.act.roundoff();
    df.iter_mut().for_each(|df| *df += least);
    let terms = b + i + h;
    let exact = whole(case) && case.kind == LikelihoodKind::Gaussian && !case.weights;
    let bound = |role, far| Bound::new(role, terms, far).through().exact_if(exact);
    Ok(vec![
        bound(Role::Value, losses),
        bound(Role::Grad, product(&transposed(&abs(&layer.g), b, h), &df, h, b, i)),
        bound(Role::Grad, column_sums(&df, i)),
        bound(Role::Act, input_gradient(&df, &abs(&layer.w), &layer.slope, b, h, i)),
    ])
}

fn recommend(lab: &mut Lab<'_>, judged: bool) -> Tried<Vec<Bound>> {
    let case = lab.case;
    let (b, _, h, _) = dims(case);
    let k = case.k as usize;
    let layer = OutputLayer::of(lab);
    let seen = seen(lab)?;
    let g = lab.view("g", b, h, &layer.g)?;
    let decode = layer.place(lab, g)?;
    let (items, values) = (lab.ranked("items", b, k)?, lab.arena("values", Role::Value, None, b * k, true)?);
    lab.call(|q, _, _| q.recommend(decode, seen, case.k, items, values))?;
    if !judged || case.data == Data::Integers {
        return Ok((0..3).map(|_| Bound::exact()).collect());
    }
    // Near ties may fall either way: the ranking is judged by its scores.
    let (_, off) = layer.logits(b, h);
    Ok(vec![Bound::new(Role::Act, h + 1, off)])
}

/// The scores that a case of [`Op::Recommend`] ranks.
pub(crate) fn scores(lab: &Lab<'_>) -> Vec<f64> {
    let (b, _, h, _) = dims(lab.case);
    OutputLayer::of(lab).logits(b, h).0
}
