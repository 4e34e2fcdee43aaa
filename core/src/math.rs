//! The model's mathematics on one row, written once for every backend that runs on the host.
//!
//! All functions are generic over [`Real`], free of branches in their loops, and always inlined, so
//! that a caller compiled for wider vectors gets wider vectors. Device kernels restate them and are
//! held to them. Loops sum into `LANES` partial sums, because a float sum in one variable
//! cannot be vectorised.

use crate::{
    backend::{Curve, Likelihood, LikelihoodKind, Master, Noise},
    random,
};

/// The floats of the host: f32 computes, f64 is the reference.
pub trait Real:
    num_traits::Float + num_traits::NumAssign + std::iter::Sum + bytemuck::Pod + Send + Sync + std::fmt::Debug + 'static
{
    /// Which of the two it is.
    const MASTER: Master;
    /// A score and an item as one integer: see [`Real::rank`].
    type Rank: Ord + Copy + Send + Sync + std::fmt::Debug;
    /// The place of a score in a ranking: the better comes first, NaN last, and among equals (0 and -0
    /// are equal) the smaller item. Integers are sorted much faster than pairs are compared.
    fn rank(self, item: u32) -> Self::Rank;
    /// The score and the item of a rank.
    fn unrank(rank: Self::Rank) -> (Self, u32);
    /// Rounded from double precision.
    fn of(x: f64) -> Self;
    /// Widened to double precision.
    fn wide(self) -> f64;
    /// e^x, to a relative error of 2 roundoffs (2^-24 in f32). In f32 it is 0 below -87, where it would
    /// soon be subnormal, and infinite above 88.
    fn expo(self) -> Self;
    /// tanh x, to a relative error of 4 roundoffs.
    fn tanh_(self) -> Self;
    /// log(1 + x) for 0 <= x <= 1, to a relative error of 4 roundoffs.
    fn log1p_unit(self) -> Self;
    /// `bits / 2^24`, exactly, for up to 2^24.
    fn share_of_24_bits(bits: u32) -> Self;
    /// log x for normal 0 < x <= 1, to a relative error of 4 roundoffs.
    fn ln_unit(self) -> Self;
    /// Sine and cosine of a share 0 <= x < 1 of a full turn, to an absolute error of 2 roundoffs.
    fn sin_cos_turn(self) -> (Self, Self);
}

impl Real for f64 {
    const MASTER: Master = Master::F64;
    type Rank = u128;
    #[inline(always)]
    fn rank(self, item: u32) -> u128 {
        let bits = if self.is_nan() { u64::MAX } else { (self + 0.0).to_bits() };
        // Rising bits for falling scores: above zero all but the sign is turned over.
        let falling = if self > 0.0 || bits == 0 { bits ^ (u64::MAX >> 1) } else { bits };
        u128::from(falling) << 32 | u128::from(item)
    }
    #[inline(always)]
    fn unrank(rank: u128) -> (Self, u32) {
        let falling = (rank >> 32) as u64;
        let bits = if falling >> 63 == 0 { falling ^ (u64::MAX >> 1) } else { falling };
        (Self::from_bits(bits), rank as u32)
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn expo(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn tanh_(self) -> Self {
        self.tanh()
    }
    #[inline(always)]
    fn log1p_unit(self) -> Self {
        self.ln_1p()
    }
    #[inline(always)]
    fn share_of_24_bits(bits: u32) -> Self {
        Self::from(bits) / 16_777_216.0
    }
    #[inline(always)]
    fn ln_unit(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn sin_cos_turn(self) -> (Self, Self) {
        (std::f64::consts::TAU * self).sin_cos()
    }
}

impl Real for f32 {
    const MASTER: Master = Master::F32;
    type Rank = u64;
    #[inline(always)]
    fn rank(self, item: u32) -> u64 {
        let bits = if self.is_nan() { u32::MAX } else { (self + 0.0).to_bits() };
        let falling = if self > 0.0 || bits == 0 { bits ^ (u32::MAX >> 1) } else { bits };
        u64::from(falling) << 32 | u64::from(item)
    }
    #[inline(always)]
    fn unrank(rank: u64) -> (Self, u32) {
        let falling = (rank >> 32) as u32;
        let bits = if falling >> 31 == 0 { falling ^ (u32::MAX >> 1) } else { falling };
        (Self::from_bits(bits), rank as u32)
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as Self
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    /// x = n ln 2 + r, |r| <= ln(2)/2; e^r by its series to the seventh term; 2^n by the exponent bits.
    /// Comparisons are written so that NaN stays NaN.
    #[inline(always)]
    fn expo(self) -> Self {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4; // ln 2 in two parts, the first exact in n * ln 2
        let p = 1.0 / 5040.0;
        let p = p * r + 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = (p * r * r + r) + 1.0;
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        let y = p * power;
        let y = if self < -87.0 { 0.0 } else { y };
        if self > 88.0 { Self::INFINITY } else { y }
    }

    /// x plus a polynomial next to zero (Moshier's Cephes library, tanhf), and else 1 - 2 / (e^2x + 1).
    #[inline(always)]
    fn tanh_(self) -> Self {
        let s = self * self;
        let p = -5.704_988_7e-3;
        let p = p * s + 2.063_909e-2;
        let p = p * s - 5.373_971_5e-2;
        let p = p * s + 0.133_314_42;
        let p = p * s - 0.333_332_8;
        let small = p * s * self + self;
        let large = (1.0 - 2.0 / ((2.0 * self.abs()).expo() + 1.0)).copysign(self);
        if self.abs() < 0.625 { small } else { large }
    }

    /// log(1 + x) = 2 artanh(x / (2 + x)), whose argument is at most 1/3.
    #[inline(always)]
    fn log1p_unit(self) -> Self {
        let t = self / (2.0 + self);
        let s = t * t;
        let p = 1.0 / 15.0;
        let p = p * s + 1.0 / 13.0;
        let p = p * s + 1.0 / 11.0;
        let p = p * s + 1.0 / 9.0;
        let p = p * s + 1.0 / 7.0;
        let p = p * s + 1.0 / 5.0;
        let p = p * s + 1.0 / 3.0;
        2.0 * (p * s * t + t)
    }

    #[inline(always)]
    fn share_of_24_bits(bits: u32) -> Self {
        // As i32, which vectors convert in one instruction.
        bits as i32 as Self / 16_777_216.0
    }

    /// x = 2^e m with m next to 1, and a polynomial for m (Moshier's Cephes library, logf).
    #[inline(always)]
    fn ln_unit(self) -> Self {
        const ROOT_HALF: u32 = 0x3f35_04f3;
        // Subtracted from the bits, the root of 1/2 turns the exponent over where m does.
        let shifted = self.to_bits().wrapping_sub(ROOT_HALF);
        let e = (shifted as i32 >> 23) as Self;
        let m = Self::from_bits((shifted & 0x007f_ffff).wrapping_add(ROOT_HALF)) - 1.0;
        let p = 7.037_683_6e-2;
        let p = p * m - 1.151_461e-1;
        let p = p * m + 1.167_699_9e-1;
        let p = p * m - 1.242_014_1e-1;
        let p = p * m + 1.424_932_3e-1;
        let p = p * m - 1.666_805_8e-1;
        let p = p * m + 2.000_071_5e-1;
        let p = p * m - 2.499_999_4e-1;
        let p = p * m + 0.333_333_3;
        let s = m * m;
        let small = p * m * s + e * -2.121_944_4e-4 - 0.5 * s;
        m + small + e * 0.693_359_4
    }

    /// The nearest quarter turn, and polynomials for what is left of it (Cephes, sinf and cosf).
    #[inline(always)]
    fn sin_cos_turn(self) -> (Self, Self) {
        let quarter = (4.0 * self + 0.5) as i32;
        let t = std::f32::consts::TAU * (self - 0.25 * quarter as Self);
        let s = t * t;
        let p = -1.951_529_6e-4;
        let p = p * s + 8.332_161e-3;
        let p = p * s - 1.666_665_5e-1;
        let sin = p * s * t + t;
        let p = 2.443_315_7e-5;
        let p = p * s - 1.388_731_6e-3;
        let p = p * s + 4.166_664_6e-2;
        let cos = p * s * s - 0.5 * s + 1.0;
        let (a, b) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
        (if quarter & 2 == 0 { a } else { -a }, if (quarter + 1) & 2 == 0 { b } else { -b })
    }
}

/// Partial sums of a vectorised reduction: two AVX-512 registers of f32.
const LANES: usize = 32;

/// Folds a row into one value: `lane` combines element-wise, `join` the partial results at the end.
#[inline(always)]
fn fold<T: Real>(row: &[T], start: T, mut lane: impl FnMut(T, T) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (a, &x) in lanes.iter_mut().zip(chunk) {
            *a = lane(*a, x);
        }
    }
    let mut tail = start;
    for &x in rest {
        tail = lane(tail, x);
    }
    lanes.into_iter().fold(tail, join)
}

/// Replaces every element by `f(element)` and sums what `f` gives beside it.
#[inline(always)]
fn map_sum<T: Real>(row: &mut [T], mut f: impl FnMut(T) -> (T, T)) -> T {
    let mut lanes = [T::zero(); LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (a, x) in lanes.iter_mut().zip(chunk) {
            let (new, add) = f(*x);
            *x = new;
            *a += add;
        }
    }
    let mut tail = T::zero();
    for x in rest {
        let (new, add) = f(*x);
        *x = new;
        tail += add;
    }
    lanes.into_iter().fold(tail, |a, b| a + b)
}

/// The loss of one user against the full history, and `scale` times its gradient in place of the
/// logits. `items` ascend; `values` are their weights, ones where absent.
///
/// Liang et al. 2018: multinomial eq. 2, Gaussian eq. 3, logistic eq. 4, negated.
#[inline(always)]
pub fn likelihood<T: Real>(kind: Likelihood, items: &[u32], values: Option<&[T]>, logits: &mut [T], scale: T) -> T {
    let history = Stretch { from: 0, items, values };
    let part = likelihood_part(kind, history, logits, scale);
    likelihood_rest(kind, history, part, part, logits, scale);
    part.loss(kind)
}

/// A user's history among consecutive items.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a, T> {
    /// The first of those items.
    pub from: u32,
    /// The items of the history among them, ascending.
    pub items: &'a [u32],
    /// Their weights, ones where absent.
    pub values: Option<&'a [T]>,
}

impl<T: Real> Stretch<'_, T> {
    /// How many items of the history there are.
    #[inline(always)]
    fn len(&self) -> usize {
        self.items.len()
    }

    /// The position of an item of the history in the stretch, and its weight.
    #[inline(always)]
    fn seen(&self, at: usize) -> (usize, T) {
        ((self.items[at] - self.from) as usize, self.values.map_or(T::one(), |v| v[at]))
    }
}

/// What a stretch of a user's logits tells about the loss of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Part<T> {
    /// Multinomial: the largest logit.
    top: T,
    /// Multinomial: the sum of e^(f - top).
    sum: T,
    /// Multinomial: the sum of the history's weights.
    total: T,
    /// The loss; multinomial: what is known of it before all sums are, -sum x (f - top).
    loss: T,
}

impl<T: Real> Default for Part<T> {
    fn default() -> Self {
        Self { top: T::zero(), sum: T::zero(), total: T::zero(), loss: T::zero() }
    }
}

impl<T: Real> Part<T> {
    /// What two stretches tell together.
    #[inline(always)]
    pub fn join(self, other: Self) -> Self {
        let top = if self.top > other.top { self.top } else { other.top };
        let loss = |part: Self| part.loss + part.total * (top - part.top);
        let sum = |part: Self| part.sum * (part.top - top).expo();
        Self { top, sum: sum(self) + sum(other), total: self.total + other.total, loss: loss(self) + loss(other) }
    }

    /// The loss, where the parts of all items are joined.
    #[inline(always)]
    pub fn loss(self, kind: Likelihood) -> T {
        match kind.kind {
            LikelihoodKind::Multinomial => self.total * self.sum.ln() + self.loss,
            LikelihoodKind::Gaussian | LikelihoodKind::Logistic => self.loss,
        }
    }
}

/// The first half of [`likelihood`] on a stretch of the logits. What it leaves in their place and what
/// it returns are for [`likelihood_rest`].
#[inline(always)]
pub fn likelihood_part<T: Real>(kind: Likelihood, history: Stretch<'_, T>, logits: &mut [T], scale: T) -> Part<T> {
    let alone = |loss| Part { loss, ..Part::default() };
    match kind.kind {
        LikelihoodKind::Multinomial => {
            let top =
                fold(logits, T::neg_infinity(), |a, x| if a > x { a } else { x }, |a, b| if a > b { a } else { b });
            let (mut total, mut loss) = (T::zero(), T::zero());
            for at in 0..history.len() {
                let (item, x) = history.seen(at);
                total += x;
                loss -= x * (logits[item] - top);
            }
            let sum = map_sum(logits, |f| {
                let e = (f - top).expo();
                (e, e)
            });
            Part { top, sum, total, loss }
        }
        LikelihoodKind::Gaussian => {
            let (c1, c0) = (T::of(f64::from(kind.seen)), T::of(f64::from(kind.unseen)));
            let half = T::of(0.5);
            let unseen = |f: T| (scale * c0 * f, half * c0 * f * f);
            // From gap to gap: the two confidences may not be told apart afterwards (c0 may be zero).
            let (mut loss, mut from) = (T::zero(), 0);
            for at in 0..history.len() {
                let (item, x) = history.seen(at);
                loss += map_sum(&mut logits[from..item], unseen);
                let miss = logits[item] - x;
                logits[item] = scale * c1 * miss;
                loss += half * c1 * miss * miss;
                from = item + 1;
            }
            alone(loss + map_sum(&mut logits[from..], unseen))
        }
        LikelihoodKind::Logistic => {
            let mut hit = T::zero();
            for at in 0..history.len() {
                let (item, x) = history.seen(at);
                hit += x * logits[item];
            }
            let all = map_sum(logits, |f| {
                let e = (-f.abs()).expo();
                let sigmoid = if f < T::zero() { e } else { T::one() } / (T::one() + e);
                let positive = if f < T::zero() { T::zero() } else { f };
                (scale * sigmoid, positive + e.log1p_unit())
            });
            for at in 0..history.len() {
                let (item, x) = history.seen(at);
                logits[item] -= scale * x;
            }
            alone(all - hit)
        }
    }
}

/// The second half: `scale` times the gradient, given what the stretch told and what `all` of them do.
#[inline(always)]
pub fn likelihood_rest<T: Real>(
    kind: Likelihood,
    history: Stretch<'_, T>,
    part: Part<T>,
    all: Part<T>,
    logits: &mut [T],
    scale: T,
) {
    if kind.kind == LikelihoodKind::Multinomial {
        let factor = scale * all.total / all.sum * (part.top - all.top).expo();
        logits.iter_mut().for_each(|e| *e *= factor);
        for at in 0..history.len() {
            let (item, x) = history.seen(at);
            logits[item] -= scale * x;
        }
    }
}

/// Whether no element is infinite or NaN.
#[inline(always)]
pub fn all_finite<T: Real>(row: &[T]) -> bool {
    // Zero times a finite number is zero; times any other it is NaN, which no sum gets rid of.
    fold(row, T::zero(), |a, x| a + x * T::zero(), |a, b| a + b) == T::zero()
}

/// What one draw of latent noise is made of: the key of the run, the update and the user.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The operation's noise.
    pub noise: Noise,
    /// The update.
    pub update: u32,
    /// Row of the user in the data set.
    pub user: u32,
}

/// Calls `f(k, eps_k)` for each latent unit.
#[inline(always)]
fn for_each_normal<T: Real>(draw: Draw, units: usize, mut f: impl FnMut(usize, T)) {
    /// Blocks of four that are drawn together.
    const BLOCKS: usize = 16;
    let Draw { noise, update, user } = draw;
    for from in (0..units).step_by(4 * BLOCKS) {
        let eps = if noise.keep > 0.0 {
            random::normals_lanes::<T, BLOCKS>(noise.seed, noise.stream, update, user, from as u32 / 4)
        } else {
            [[T::zero(); 4]; BLOCKS]
        };
        for (k, &e) in (from..units).zip(eps.as_flattened()) {
            f(k, e);
        }
    }
}

/// Reparameterisation: `z = mu + exp(logvar / 2) eps`; returns the KL divergence from the standard
/// normal, `1/2 sum (exp(logvar) + mu^2 - 1 - logvar)`. Liang et al. 2018, section 2.3.
#[inline(always)]
pub fn sample_latent<T: Real>(stats: &[T], draw: Draw, z: &mut [T]) -> T {
    let (mu, logvar) = stats.split_at(z.len());
    let half = T::of(0.5);
    for_each_normal(draw, z.len(), |k, eps: T| z[k] = mu[k] + (half * logvar[k]).expo() * eps);
    mu.iter().zip(logvar).map(|(&m, &v)| half * (v.expo() + m * m - T::one() - v)).sum()
}

/// Gradient of [`sample_latent`] and of `beta` times its KL divergence:
/// `dmu = dz + beta mu`, `dlogvar = 1/2 dz eps exp(logvar / 2) + beta / 2 (exp(logvar) - 1)`.
#[inline(always)]
pub fn sample_latent_grad<T: Real>(stats: &[T], draw: Draw, dz: &[T], beta: T, dstats: &mut [T]) {
    let (mu, logvar) = stats.split_at(dz.len());
    let (dmu, dlogvar) = dstats.split_at_mut(dz.len());
    let half = T::of(0.5);
    for_each_normal(draw, dz.len(), |k, eps: T| {
        dmu[k] = dz[k] + beta * mu[k];
        let deviation = (half * logvar[k]).expo();
        dlogvar[k] = half * (dz[k] * eps * deviation + beta * (deviation * deviation - T::one()));
    });
}

/// `row = curve(row)`.
#[inline(always)]
pub fn apply_curve<T: Real>(curve: Curve, row: &mut [T]) {
    match curve {
        Curve::Identity => {}
        Curve::Tanh => row.iter_mut().for_each(|y| *y = y.tanh_()),
        Curve::Relu => row.iter_mut().for_each(|y| *y = if *y < T::zero() { T::zero() } else { *y }),
    }
}

/// `grad *= curve'`, where `y` is the curve's output.
#[inline(always)]
pub fn apply_curve_grad<T: Real>(curve: Curve, y: &[T], grad: &mut [T]) {
    match curve {
        Curve::Identity => {}
        Curve::Tanh => grad.iter_mut().zip(y).for_each(|(d, &y)| *d *= T::one() - y * y),
        Curve::Relu => grad.iter_mut().zip(y).for_each(|(d, &y)| *d = if y > T::zero() { *d } else { T::zero() }),
    }
}

/// `1 / |x|_2` of a row, zero for an empty one.
#[inline(always)]
pub fn inverse_norm<T: Real>(items: &[u32], values: Option<&[T]>) -> T {
    let square = values.map_or_else(|| T::of(items.len() as f64), |v| v.iter().map(|&x| x * x).sum());
    if square > T::zero() { square.sqrt().recip() } else { T::zero() }
}

/// The constants of one Adam update, in the working precision.
#[derive(Clone, Copy, Debug)]
pub struct Adam<T> {
    /// What a summed gradient is multiplied with.
    pub grad_factor: T,
    /// Added to the gradient per unit of weight; zero for biases.
    pub l2: T,
    /// Decay of the first moment.
    pub beta1: T,
    /// Decay of the second moment.
    pub beta2: T,
    /// 1 - beta1, rounded once: 1 minus the rounded beta would be 1e-5 off in f32.
    pub gain1: T,
    /// 1 - beta2.
    pub gain2: T,
    /// Added to the root.
    pub eps: T,
    /// lr / (1 - beta1^t).
    pub rate: T,
    /// 1 / sqrt(1 - beta2^t).
    pub root: T,
}

/// A step as the kernels of devices read it: in single precision, with what can be worked out beforehand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SingleStep {
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

impl SingleStep {
    /// The fields in this order: update, first, beta, and those of [`Adam`], not divided by the loss scale, which only
    /// the device knows.
    pub fn new(step: &crate::backend::StepParams) -> Self {
        let Adam { grad_factor, l2, beta1, beta2, gain1, gain2, eps, rate, root } = Adam::<f32>::new(step, 1.0);
        let (update, first, beta) = (step.update, step.first, step.beta as f32);
        Self { update, first, beta, grad_factor, l2, beta1, beta2, gain1, gain2, eps, rate, root }
    }
}

impl<T: Real> Adam<T> {
    /// The constants of an update.
    pub fn new(step: &crate::backend::StepParams, loss_scale: f32) -> Self {
        Self {
            grad_factor: T::of(step.grad_factor / f64::from(loss_scale)),
            l2: T::of(step.l2),
            beta1: T::of(step.beta1),
            beta2: T::of(step.beta2),
            gain1: T::of(1.0 - step.beta1),
            gain2: T::of(1.0 - step.beta2),
            eps: T::of(step.eps),
            rate: T::of(step.lr / step.correction1),
            root: T::of(step.correction2.sqrt().recip()),
        }
    }

    /// Updates a stretch of the arena (Kingma and Ba 2015, algorithm 1).
    #[inline(always)]
    pub fn update(&self, w: &mut [T], dw: &[T], m: &mut [T], v: &mut [T]) {
        for (((w, &dw), m), v) in w.iter_mut().zip(dw).zip(m).zip(v) {
            let g = dw * self.grad_factor + self.l2 * *w;
            *m = self.beta1 * *m + self.gain1 * g;
            *v = self.beta2 * *v + self.gain2 * g * g;
            *w -= self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}
