//! The one place in the workspace where floats are compared.
//!
//! A value is accepted where `|actual - expected|` is at most
//!
//! ```text
//! c * (u_store * |expected| + (u_acc * sqrt(K) + u_op) * sum |a||b| + tiny)
//! ```
//!
//! `u_store` is the unit roundoff of the type that holds the result, `u_acc` that of the type that
//! sums, `K` the number of terms in the sum, `sum |a||b|` what the sum would be without cancellation
//! (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1; the square root because
//! rounding errors are as good as independent), `u_op` that of a type to which the terms themselves were
//! rounded, where they were, and `tiny` the smallest value the storage keeps.
//! There is no way to ask for a bare tolerance: a caller says how the value came about.

use std::fmt;

/// A floating-point type, by its rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 11 bits of significand.
    F16,
    /// 8 bits of significand.
    Bf16,
    /// 11 bits of significand, and the exponent of f32: operands of tensor cores.
    Tf32,
    /// 24 bits of significand.
    F32,
    /// 53 bits of significand.
    F64,
}

impl Float {
    /// The largest relative error of rounding to nearest.
    pub fn roundoff(self) -> f64 {
        let bits = match self {
            Self::F16 | Self::Tf32 => 11,
            Self::Bf16 => 8,
            Self::F32 => 24,
            Self::F64 => 53,
        };
        2f64.powi(-bits)
    }

    /// What may be lost next to zero. Devices may flush subnormals, except those of f16.
    pub fn tiny(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-24),
            Self::Bf16 | Self::Tf32 | Self::F32 => f64::from(f32::MIN_POSITIVE),
            Self::F64 => f64::MIN_POSITIVE,
        }
    }
}

/// How the compared values came about, which is what they may be off by.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    rounding: Option<(Float, Float)>,
    operands: Option<Float>,
    factor: f64,
    terms: usize,
    magnitude: Option<Vec<f64>>,
}

impl Tolerance {
    /// The largest factor that [`compare`] accepts. Whoever needs more has a fault to find.
    pub const MAX_FACTOR: f64 = 16.0;

    /// Equal values only (0 and -0 are equal).
    pub const EXACT: Self = Self { rounding: None, operands: None, factor: 0.0, terms: 0, magnitude: None };

    /// Values stored as `store` that were computed in `accumulate`: one term, factor 2.
    pub fn new(store: Float, accumulate: Float) -> Self {
        Self { rounding: Some((store, accumulate)), operands: None, factor: 2.0, terms: 1, magnitude: None }
    }

    /// What each term was rounded to: the operands of a product, or intermediate results that were stored.
    #[must_use]
    pub fn operands(self, float: Float) -> Self {
        Self { operands: Some(float), ..self }
    }

    /// The number `K` of terms that each value sums.
    #[must_use]
    pub fn terms(self, terms: usize) -> Self {
        Self { terms, ..self }
    }

    /// `sum |a||b|` of each value. Left out, it is `|expected|`, which is right for sums whose terms
    /// all have one sign.
    #[must_use]
    pub fn magnitude(self, magnitude: impl Into<Vec<f64>>) -> Self {
        Self { magnitude: Some(magnitude.into()), ..self }
    }

    /// The factor `c`, at most [`Tolerance::MAX_FACTOR`].
    #[must_use]
    pub fn factor(self, factor: f64) -> Self {
        Self { factor, ..self }
    }

    /// The part of a value that it may be off by where the terms have one sign.
    fn relative(&self) -> f64 {
        self.rounding.map_or(0.0, |(store, accumulate)| self.factor * (store.roundoff() + self.summed(accumulate)))
    }

    /// The part of the magnitude that a sum may be off by.
    fn summed(&self, accumulate: Float) -> f64 {
        accumulate.roundoff() * (self.terms as f64).sqrt() + self.operands.map_or(0.0, Float::roundoff)
    }

    fn allowed(&self, at: usize, expected: f64) -> f64 {
        let Some((store, accumulate)) = self.rounding else { return 0.0 };
        let magnitude = self.magnitude.as_ref().map_or(expected.abs(), |m| m[at]);
        let stored = store.roundoff() * expected.abs();
        let summed = self.summed(accumulate) * magnitude;
        self.factor * (stored + summed + store.tiny())
    }
}

/// Values with their shape. A slice is a vector; [`matrix`] and [`scalar`] make the others.
#[derive(Clone, Debug)]
pub struct Values {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// A matrix of `cols` columns, row by row.
pub fn matrix<T: Copy + Into<f64>>(rows: usize, cols: usize, values: &[T]) -> Values {
    Values { shape: vec![rows, cols], values: values.iter().map(|&v| v.into()).collect() }
}

/// A single value.
pub fn scalar(value: impl Into<f64>) -> Values {
    Values { shape: vec![], values: vec![value.into()] }
}

impl<T: Copy + Into<f64>> From<&[T]> for Values {
    fn from(values: &[T]) -> Self {
        Self { shape: vec![values.len()], values: values.iter().map(|&v| v.into()).collect() }
    }
}

impl<T: Copy + Into<f64>> From<&Vec<T>> for Values {
    fn from(values: &Vec<T>) -> Self {
        values.as_slice().into()
    }
}

impl<T: Copy + Into<f64>, const N: usize> From<[T; N]> for Values {
    fn from(values: [T; N]) -> Self {
        values.as_slice().into()
    }
}

/// A pair of values, where it lies, and how its error compares with what is allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// One index per dimension.
    pub at: Vec<usize>,
    /// The value under test.
    pub actual: f64,
    /// What it should be.
    pub expected: f64,
    /// The largest error allowed here.
    pub allowed: f64,
    /// The error as a fraction of `allowed`: at most 1 where the value passes; infinite where an
    /// error met no allowance, or where a value is not a number.
    pub fraction: f64,
}

/// What a comparison that passed has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    /// How many values were compared. Zero passes, and says so here.
    pub compared: usize,
    /// The pair with the largest fraction, the first of equals; none where nothing was compared.
    pub pair: Option<Pair>,
}

impl Worst {
    /// The largest error as a fraction of what is allowed; 0 where nothing was compared.
    pub fn fraction(&self) -> f64 {
        self.pair.as_ref().map_or(0.0, |pair| pair.fraction)
    }
}

/// Why a comparison failed. Its `Debug` is its sentence, so that `unwrap` prints something to read.
#[derive(Clone, PartialEq)]
pub enum Mismatch {
    /// The shapes differ.
    Shape {
        /// Of the values under test.
        actual: Vec<usize>,
        /// Of the expected values.
        expected: Vec<usize>,
    },
    /// The number of values is not what the shape says.
    Length {
        /// How many values there are.
        values: usize,
        /// What the shape says.
        shape: Vec<usize>,
    },
    /// The tolerance itself is at fault.
    Tolerance(String),
    /// Values that are off.
    Values {
        /// How many are off.
        wrong: usize,
        /// Of how many.
        compared: usize,
        /// Where the first of them lies, which is where a kernel's fault often starts.
        first: Vec<usize>,
        /// The one with the largest fraction.
        worst: Pair,
    },
}

/// Compares values with what they should be.
///
/// A value that is not a number never passes, not even where one is expected. An infinite value
/// passes only where the same infinity is expected.
///
/// # Errors
/// Says what is wrong: the shape, the tolerance, or which values and by how much.
pub fn compare(
    actual: impl Into<Values>,
    expected: impl Into<Values>,
    tolerance: &Tolerance,
) -> Result<Worst, Mismatch> {
    let (actual, expected) = (actual.into(), expected.into());
    if actual.shape != expected.shape {
        return Err(Mismatch::Shape { actual: actual.shape, expected: expected.shape });
    }
    for side in [&actual, &expected] {
        let cells = side.shape.iter().try_fold(1usize, |cells, &n| cells.checked_mul(n));
        if cells != Some(side.values.len()) {
            return Err(Mismatch::Length { values: side.values.len(), shape: side.shape.clone() });
        }
    }
    check(tolerance, expected.values.len())?;

    let (mut wrong, mut first, mut worst) = (0, None, None::<Pair>);
    for (at, (&actual, &expected)) in actual.values.iter().zip(&expected.values).enumerate() {
        let pair = judge(at, actual, expected, tolerance);
        // Not `fraction > 1`, which a fraction that is not a number would pass.
        let passes = pair.fraction <= 1.0;
        if !passes {
            wrong += 1;
            first.get_or_insert(at);
        }
        if worst.as_ref().is_none_or(|w| pair.fraction > w.fraction) {
            worst = Some(pair);
        }
    }
    let compared = expected.values.len();
    let worst = worst.map(|pair| Pair { at: unravel(pair.at[0], &expected.shape), ..pair });
    match (first.map(|at| unravel(at, &expected.shape)), worst) {
        (Some(first), Some(worst)) => Err(Mismatch::Values { wrong, compared, first, worst }),
        (_, pair) => Ok(Worst { compared, pair }),
    }
}

/// The tolerance is checked before it is used: one that is not a number, or that is wide, would pass
/// anything.
fn check(tolerance: &Tolerance, values: usize) -> Result<(), Mismatch> {
    let Tolerance { factor, magnitude, .. } = tolerance;
    if !(0.0..=Tolerance::MAX_FACTOR).contains(factor) {
        return Err(Mismatch::Tolerance(format!("a factor of {factor} is not within 0 to {}", Tolerance::MAX_FACTOR)));
    }
    // No sum of numbers that carry information is off by a tenth.
    let relative = tolerance.relative();
    if relative >= 0.1 {
        return Err(Mismatch::Tolerance(format!("it allows {relative:.2} of a value, which any fault would pass")));
    }
    let Some(magnitude) = magnitude else { return Ok(()) };
    if magnitude.len() != values {
        return Err(Mismatch::Tolerance(format!("{} magnitudes for {values} values", magnitude.len())));
    }
    match magnitude.iter().find(|m| !(m.is_finite() && **m >= 0.0)) {
        Some(m) => Err(Mismatch::Tolerance(format!("{m} is not a magnitude"))),
        None => Ok(()),
    }
}

/// Whether two sequences are the same bits, taking any NaN for any other: the first place where not.
/// A length that differs is a difference at the end of the shorter.
pub fn first_difference(a: &[f64], b: &[f64]) -> Option<usize> {
    let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    a.iter().zip(b).position(|pair| !same(pair)).or((a.len() != b.len()).then_some(a.len().min(b.len())))
}

/// Whether a mean is at least as good as another, or worse by no more than a standard error of the two.
/// Something that is not a number is never good enough, and neither is a mean whose error is unknown.
pub fn reaches(mean: f64, error: f64, wanted: f64, wanted_error: f64) -> bool {
    // Written so that NaN gives false.
    error >= 0.0 && wanted_error >= 0.0 && mean >= wanted - error.hypot(wanted_error)
}

fn judge(at: usize, actual: f64, expected: f64, tolerance: &Tolerance) -> Pair {
    let allowed = tolerance.allowed(at, expected);
    let error = (actual - expected).abs();
    let fraction = if actual == expected {
        0.0
    } else if !actual.is_finite() || !expected.is_finite() || allowed == 0.0 {
        f64::INFINITY
    } else {
        error / allowed
    };
    Pair { at: vec![at], actual, expected, allowed, fraction }
}

fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let i = at % n;
            at /= n;
            i
        })
        .collect();
    index.reverse();
    index
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, actual, expected, allowed, fraction } = self;
        let error = (actual - expected).abs();
        write!(
            f,
            "at {at:?}: {actual:?} should be {expected:?}, off by {error:.3e}, allowed {allowed:.3e} ({fraction:.2} times)"
        )
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { actual, expected } => write!(f, "the shape is {actual:?} and should be {expected:?}"),
            Self::Length { values, shape } => write!(f, "{values} values do not fill the shape {shape:?}"),
            Self::Tolerance(fault) => write!(f, "the tolerance is at fault: {fault}"),
            Self::Values { wrong, compared, first, worst } => {
                write!(f, "{wrong} of {compared} values are off, the first at {first:?}; worst {worst}")
            }
        }
    }
}

impl fmt::Debug for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    //! The faults of comparators met elsewhere, each tried on this one.

    use super::*;

    const TYPES: [Float; 5] = [Float::F16, Float::Bf16, Float::Tf32, Float::F32, Float::F64];

    fn single() -> Tolerance {
        Tolerance::new(Float::F32, Float::F32)
    }

    fn passes(actual: &[f64], expected: &[f64], tolerance: &Tolerance) -> bool {
        compare(actual, expected, tolerance).is_ok()
    }

    #[test]
    fn an_error_in_either_direction_is_caught() {
        assert!(!passes(&[-100.0], &[1.0], &single()));
        assert!(!passes(&[100.0], &[1.0], &single()));
        assert!(!passes(&[1.0], &[-1.0], &single()));
        assert!(!passes(&[-1.0], &[1.0], &single()));
    }

    #[test]
    fn nan_never_passes() {
        for tolerance in [single(), single().factor(16.0).terms(1000), Tolerance::EXACT] {
            assert!(!passes(&[f64::NAN], &[1.0], &tolerance));
            assert!(!passes(&[1.0], &[f64::NAN], &tolerance));
            assert!(!passes(&[f64::NAN], &[f64::NAN], &tolerance));
            assert!(!passes(&[1.0, f64::NAN, 1.0], &[1.0, 1.0, 1.0], &tolerance));
        }
        assert!(compare([f32::NAN], [f32::NAN], &single()).is_err());
    }

    #[test]
    fn infinity_passes_only_as_itself() {
        let inf = f64::INFINITY;
        assert!(passes(&[inf, -inf], &[inf, -inf], &single()));
        assert!(!passes(&[1.0], &[inf], &single()), "a relative tolerance of infinity accepts everything");
        assert!(!passes(&[inf], &[1.0], &single()));
        assert!(!passes(&[-inf], &[inf], &single()));
        assert!(!passes(&[f64::MAX], &[inf], &single()));
    }

    #[test]
    fn lengths_and_shapes_are_compared() {
        assert!(!passes(&[1.0], &[1.0, 2.0], &single()));
        assert!(!passes(&[1.0, 2.0], &[1.0], &single()));
        assert!(!passes(&[], &[1.0], &single()));
        assert!(!passes(&[1.0], &[], &single()));
        let six = [0.0; 6];
        assert!(compare(matrix(2, 3, &six), matrix(2, 3, &six), &single()).is_ok());
        assert!(compare(matrix(2, 3, &six), matrix(3, 2, &six), &single()).is_err());
        assert!(compare(matrix(2, 3, &six), six, &single()).is_err());
        assert!(compare(matrix(2, 2, &six), matrix(2, 2, &six), &single()).is_err());
        assert!(compare(matrix(usize::MAX, 2, &six), matrix(usize::MAX, 2, &six), &single()).is_err());
        assert!(compare(scalar(1.0), [1.0], &single()).is_err());
    }

    #[test]
    fn zeros_and_nothing_give_a_fraction_that_is_a_number() {
        let zeros = compare([0.0; 4], [0.0; 4], &Tolerance::EXACT).unwrap();
        assert_eq!((zeros.compared, zeros.fraction()), (4, 0.0));
        let nothing = compare([0f64; 0], [0f64; 0], &single()).unwrap();
        assert_eq!((nothing.compared, nothing.fraction()), (0, 0.0));
    }

    #[test]
    fn a_mean_does_not_hide_one_wrong_value() {
        let expected = vec![1.0; 100_000];
        let mut actual = expected.clone();
        actual[77_777] = 1.000_001;
        let Err(Mismatch::Values { wrong, compared, first, .. }) = compare(&actual, &expected, &single()) else {
            panic!("one wrong value passed")
        };
        assert_eq!((wrong, compared, first), (1, 100_000, vec![77_777]));
    }

    #[test]
    fn ten_percent_is_off_in_every_type() {
        for float in TYPES {
            let widest = Tolerance::new(float, Float::F32).factor(Tolerance::MAX_FACTOR).terms(10_000);
            for expected in [1e-3, 1.0, 1e3] {
                assert!(!passes(&[expected * 1.1], &[expected], &widest), "{float:?}");
                assert!(!passes(&[0.0], &[expected], &widest), "{float:?}");
            }
        }
    }

    #[test]
    fn a_tolerance_that_would_pass_anything_is_refused() {
        for factor in [f64::NAN, f64::INFINITY, -1.0, 17.0] {
            assert!(!passes(&[1.0], &[1.0], &single().factor(factor)));
        }
        assert!(!passes(&[1.0], &[1.0], &single().terms(1 << 50)));
        assert!(!passes(&[1.0], &[1.0], &Tolerance::new(Float::F16, Float::F16).terms(1 << 20)));
        for magnitude in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(!passes(&[1.0], &[1.0], &single().magnitude([magnitude])));
        }
        assert!(!passes(&[1.0, 1.0], &[1.0, 1.0], &single().magnitude([1.0])));
        assert!(!passes(&[1.0], &[1.0], &single().magnitude([1.0, 1.0])));
    }

    #[test]
    fn one_rounding_passes_and_a_few_more_do_not() {
        for float in TYPES {
            let tolerance = Tolerance::new(float, float).factor(1.0).terms(0);
            let ulp = 2.0 * float.roundoff();
            assert!(passes(&[1.0 + ulp / 2.0], &[1.0], &tolerance), "{float:?}");
            assert!(!passes(&[1.0 + 2.0 * ulp], &[1.0], &tolerance), "{float:?}");
        }
    }

    #[test]
    fn the_sum_has_its_own_part() {
        // 10,000 terms of size 1 that cancel to 1e-3: the error follows the terms, not the result.
        let (terms, off) = (10_000, 0.1);
        let sum = single().terms(terms);
        assert!(!passes(&[1e-3 + off], &[1e-3], &sum));
        assert!(passes(&[1e-3 + off], &[1e-3], &sum.clone().magnitude([terms as f64])));
        assert!(!passes(&[1e-3 + 2.0 * off], &[1e-3], &sum.magnitude([terms as f64])));
        // An expected zero leaves the sum's part alone.
        assert!(passes(&[1e-7], &[0.0], &single().magnitude([1.0])));
        assert!(!passes(&[1e-6], &[0.0], &single().magnitude([1.0])));
        assert!(!passes(&[1e-30], &[0.0], &single()));
    }

    #[test]
    fn rounded_operands_have_their_own_part() {
        // Terms of size 100 that cancel to 1: each may be off by an eleventh bit.
        let (plain, rounded) = (single().magnitude([100.0]), single().magnitude([100.0]).operands(Float::Tf32));
        assert!(!passes(&[1.05], &[1.0], &plain));
        assert!(passes(&[1.05], &[1.0], &rounded));
        assert!(!passes(&[1.2], &[1.0], &rounded));
        assert!(!passes(&[1.0], &[1.0], &single().operands(Float::Bf16).factor(16.0).terms(1 << 42)));
    }

    #[test]
    fn the_same_bits_are_told_from_the_same_values() {
        let nan = f64::from_bits(f64::NAN.to_bits() | 1);
        assert_eq!(first_difference(&[1.0, f64::NAN], &[1.0, nan]), None);
        assert_eq!(first_difference(&[1.0, 0.0], &[1.0, -0.0]), Some(1));
        assert_eq!(first_difference(&[f64::NAN], &[1.0]), Some(0));
        assert_eq!(first_difference(&[1.0], &[1.0, 2.0]), Some(1));
        assert_eq!(first_difference(&[], &[]), None);
    }

    #[test]
    fn a_mean_reaches_another_within_their_common_error() {
        assert!(reaches(0.5, 0.0, 0.5, 0.0) && reaches(0.9, 0.0, 0.5, 0.0));
        assert!(reaches(0.46, 0.03, 0.5, 0.04) && !reaches(0.44, 0.03, 0.5, 0.04));
        let nan = f64::NAN;
        for [a, b, c, d] in [[nan, 1.0, 0.0, 1.0], [1.0, nan, 0.0, 1.0], [1.0, 1.0, nan, 1.0], [1.0, 1.0, 0.0, nan]] {
            assert!(!reaches(a, b, c, d));
        }
        assert!(!reaches(0.4, -1.0, 0.5, 1.0));
    }

    #[test]
    fn next_to_zero_storage_may_flush() {
        assert!(compare([0.0], [1e-38], &single()).is_ok());
        assert!(compare([0.0], [2f64.powi(-25)], &Tolerance::new(Float::F16, Float::F32)).is_ok());
        assert!(compare([0.0], [1e-5], &Tolerance::new(Float::F16, Float::F32)).is_err());
        assert!(compare([0.0], [1e-38], &Tolerance::EXACT).is_err());
    }

    #[test]
    fn the_worst_pair_is_found_and_told() {
        let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let worst = compare(matrix(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.000_000_1, 6.0]), matrix(2, 3, &expected), &single());
        let worst = worst.unwrap();
        assert_eq!(worst.pair.as_ref().unwrap().at, [1, 1]);
        assert!(worst.fraction() > 0.0 && worst.fraction() < 1.0);
        let off = compare(matrix(2, 3, &[1.0, 2.0, 3.1, 4.0, 5.0, 7.0]), matrix(2, 3, &expected), &single());
        let Err(Mismatch::Values { wrong, first, worst, .. }) = off else { panic!("passed") };
        assert_eq!((wrong, first, worst.at), (2, vec![0, 2], vec![1, 2]));
        let told = compare([1.5], [1.0], &Tolerance::EXACT).unwrap_err().to_string();
        assert!(told.contains("at [0]: 1.5 should be 1.0"), "{told}");
    }

    #[test]
    fn exact_is_exact() {
        assert!(passes(&[0.1 + 0.2], &[0.1 + 0.2], &Tolerance::EXACT));
        assert!(!passes(&[0.1 + 0.2], &[0.3], &Tolerance::EXACT));
        assert!(passes(&[-0.0], &[0.0], &Tolerance::EXACT));
    }
}
