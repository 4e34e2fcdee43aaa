//! Cases as data: one operation at one shape. A case prints as one line, and the line is the case.

use std::{fmt, str::FromStr};

use proptest::{
    prelude::*,
    sample::select,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde::{Deserialize, Serialize};
use vaecf_core::{
    backend::{Curve, LikelihoodKind},
    config::Member,
    matrix::Matrix,
    random::{Generator, stream},
};

use crate::numbers;

/// What is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Buffers: what is allocated, copied and freed.
    Memory,
    /// The operation of the same name, as the others below.
    EncodeSparse,
    /// First layer, backward.
    EncodeSparseGrad,
    /// Affine layer.
    Linear,
    /// Its weights' gradient.
    LinearGradWeight,
    /// Its input's gradient.
    LinearGradInput,
    /// The latent sample.
    SampleLatent,
    /// Its gradient.
    SampleLatentGrad,
    /// Loss and gradient of the logits.
    Likelihood,
    /// The update.
    Adam,
    /// Rankings.
    TopK,
    /// The whole output layer, for training.
    DecodeLossGrad,
    /// The whole output layer, for ranking.
    Recommend,
    /// One step of training: all of the above as the model calls them.
    Step,
    /// Runs of many steps.
    Training,
}

impl Op {
    /// All of them, in the order of the contract.
    pub const ALL: [Self; 15] = [
        Self::Memory,
        Self::EncodeSparse,
        Self::EncodeSparseGrad,
        Self::Linear,
        Self::LinearGradWeight,
        Self::LinearGradInput,
        Self::SampleLatent,
        Self::SampleLatentGrad,
        Self::Likelihood,
        Self::Adam,
        Self::TopK,
        Self::DecodeLossGrad,
        Self::Recommend,
        Self::Step,
        Self::Training,
    ];

    /// The name, that of the method where it is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EncodeSparse => "encode_sparse",
            Self::EncodeSparseGrad => "encode_sparse_grad",
            Self::Linear => "linear",
            Self::LinearGradWeight => "linear_grad_weight",
            Self::LinearGradInput => "linear_grad_input",
            Self::SampleLatent => "sample_latent",
            Self::SampleLatentGrad => "sample_latent_grad",
            Self::Likelihood => "likelihood",
            Self::Adam => "adam",
            Self::TopK => "top_k",
            Self::DecodeLossGrad => "decode_loss_grad",
            Self::Recommend => "recommend",
            Self::Step => "step",
            Self::Training => "training",
        }
    }

    /// The fields of [`Case`] that matter to it.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Memory => &["seed"],
            Self::EncodeSparse => &[
                "users", "items", "outer", "fill", "weights", "listed", "first", "curve", "keep", "gap", "data", "seed",
            ],
            Self::EncodeSparseGrad => {
                &["users", "items", "outer", "fill", "weights", "listed", "first", "keep", "gap", "data", "seed"]
            }
            Self::Linear => &["users", "inner", "outer", "curve", "view", "gap", "data", "seed"],
            Self::LinearGradWeight => &["users", "inner", "outer", "gap", "data", "seed"],
            Self::LinearGradInput => &["users", "inner", "outer", "curve", "gap", "data", "seed"],
            Self::SampleLatent => &["users", "outer", "listed", "first", "keep", "gap", "data", "seed"],
            Self::SampleLatentGrad => &["users", "outer", "listed", "first", "keep", "scale", "gap", "data", "seed"],
            Self::Likelihood => {
                &["users", "items", "fill", "weights", "listed", "first", "kind", "scale", "gap", "data", "seed"]
            }
            Self::Adam => &["items", "outer", "scale", "data", "seed"],
            Self::TopK => &["users", "items", "k", "fill", "listed", "first", "gap", "data", "seed"],
            Self::DecodeLossGrad => &[
                "users", "items", "inner", "fill", "weights", "listed", "first", "curve", "kind", "scale", "gap",
                "data", "seed",
            ],
            Self::Recommend => {
                &["users", "items", "inner", "k", "fill", "listed", "first", "view", "gap", "data", "seed"]
            }
            Self::Step => {
                &["member", "depth", "users", "items", "inner", "outer", "fill", "weights", "curve", "keep", "seed"]
            }
            Self::Training => &["member", "seed"],
        }
    }
}

/// How full the rows of a history are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// A few events a row, and every fourth row empty.
    Mixed,
    /// No events at all.
    Empty,
    /// One event a row.
    One,
    /// Every item.
    Full,
    /// The first row has every item, the others one or none.
    Huge,
    /// 1, 4 or 16 events a row, so that norms are exact.
    Squares,
}

/// What the numbers are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Uniform in (-1.5, 1.5).
    Random,
    /// Whole numbers from -2 to 2: results are exact, and scores tie.
    Integers,
    /// As large as the type allows without the result being infinite: a softmax must subtract its
    /// maximum. Scores: not a number and infinities, too. Gradients of an update: one is not finite.
    Extreme,
}

/// One operation at one shape.
///
/// Of the fields only those that matter to the operation are printed; the others have their default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// Member of the family (whole steps).
    pub member: Member,
    /// Hidden layers on each side (whole steps).
    pub depth: u32,
    /// Rows of the batch.
    pub users: u32,
    /// Items; elements of the arena (`adam`).
    pub items: u32,
    /// Inputs of a layer; hidden units.
    pub inner: u32,
    /// Outputs of a layer; latent units; elements that do not decay (`adam`).
    pub outer: u32,
    /// Length of a ranking.
    pub k: u32,
    /// How full the histories are.
    pub fill: Fill,
    /// Whether events have weights.
    pub weights: bool,
    /// Whether the batch is a list of users, out of order, or consecutive rows.
    pub listed: bool,
    /// Position of the first row; half of it comes from the step where there is one.
    pub first: u32,
    /// Curve of the layer.
    pub curve: Curve,
    /// Likelihood.
    pub kind: LikelihoodKind,
    /// Probability to keep an event; latent noise: 1 draws, 0 does not.
    pub keep: f64,
    /// Loss scale.
    pub scale: f64,
    /// Whether the input is a few columns of a wider matrix.
    pub view: bool,
    /// Row strides are longer than they need to be by so many alignments.
    pub gap: u32,
    /// What the numbers are like.
    pub data: Data,
    /// What they are drawn from.
    pub seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            op: Op::Memory,
            member: Member::MultVae,
            depth: 1,
            users: 5,
            items: 37,
            inner: 19,
            outer: 23,
            k: 7,
            fill: Fill::Mixed,
            weights: false,
            listed: true,
            first: 3,
            curve: Curve::Tanh,
            kind: LikelihoodKind::Multinomial,
            keep: 1.0,
            scale: 1.0,
            view: false,
            gap: 0,
            data: Data::Random,
            seed: 1,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op.name())?;
        let all = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        for field in self.op.fields() {
            match &all[field] {
                serde_json::Value::String(word) => write!(f, " {field}={word}")?,
                value => write!(f, " {field}={value}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let op = words.next().ok_or("a case begins with an operation, such as linear")?;
        let known: Op = serde_json::from_value(op.into()).map_err(|_| format!("{op:?} is not an operation"))?;
        let mut all = serde_json::Map::from_iter([("op".to_owned(), op.into())]);
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not of the form key=value"))?;
            if !known.fields().contains(&key) {
                return Err(format!("{key} means nothing to {op}, which has {}", known.fields().join(", ")));
            }
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            all.insert(key.to_owned(), value);
        }
        let case: Self = serde_json::from_value(all.into()).map_err(|e| format!("{text:?} is not a case: {e}"))?;
        let Self { users, items, inner, outer, k, depth, first, gap, keep, scale, .. } = case;
        if items == 0 || inner == 0 || k == 0 || outer == 0 && known != Op::Adam {
            return Err(format!("{text:?}: only users and first may be 0"));
        }
        if known == Op::Adam && outer > items {
            return Err(format!("{text:?}: outer is how many of the items do not decay"));
        }
        if !((0.0..=1.0).contains(&keep) && scale > 0.0 && scale.is_finite()) {
            return Err(format!("{text:?}: keep is a probability, and scale is positive"));
        }
        // An arena is one row; the sides of everything else multiply.
        let rows = u64::from(users.max(inner).max(first)) + 64 * u64::from(gap);
        let cells = if known == Op::Adam { items.into() } else { rows * u64::from(items.max(outer).max(inner).max(k)) };
        if cells > 1 << 28 || depth > 8 {
            return Err(format!("{text:?} is larger than this suite makes cases"));
        }
        Ok(case)
    }
}

/// Sizes around those at which kernels have their tiles.
const TILES: [u32; 18] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];

/// The same for larger tiles and blocks.
const WIDE: [u32; 13] = [255, 256, 257, 511, 512, 513, 639, 640, 641, 1023, 1024, 1025, 1281];

impl Case {
    /// A case of an operation with nothing special about it.
    pub fn of(op: Op) -> Self {
        let keep = if matches!(op, Op::EncodeSparse | Op::EncodeSparseGrad | Op::Step) { 0.6 } else { 1.0 };
        Self { op, keep, ..Self::default() }
    }

    /// The shapes that are known to go wrong. `full` adds those that take a real device: large tiles,
    /// more items than 16 bits can count, more bytes than one binding of WebGPU holds.
    pub fn edges(op: Op, full: bool) -> Vec<Self> {
        let has = |field: &str| op.fields().contains(&field);
        let base = Self::of(op);
        let mut cases = Vec::new();
        let sizes: Vec<u32> = TILES.into_iter().filter(|&n| full || n < 100).collect();
        // A size by itself, the others small, and every size as another variant: what goes wrong only in the second
        // tile goes wrong there for one likelihood, for weights, for a scale.
        let mut grow = |at: u32, n: u32, base: &Self| {
            let mut add = |field: &str, case: Self| cases.extend(has(field).then_some(case));
            add("users", Self { users: n, ..base.clone() });
            add("items", Self { items: n, k: base.k.min(n), ..base.clone() });
            add("inner", Self { inner: n, ..base.clone() });
            add("outer", Self { outer: n, items: base.items.max(n + at % 3), ..base.clone() });
            add("k", Self { k: n, items: n + at % 3, ..base.clone() });
        };
        for (at, &n) in (0..).zip(&sizes) {
            grow(at, n, &base.variant(at));
        }
        let both = |users, items, inner, outer| Self { users, items, inner, outer, k: 100, ..base.clone() };
        let mut blocks = vec![both(65, 66, 67, 68)];
        if full {
            // Each of the wide sizes as every likelihood and curve there is.
            let variants = if has("kind") {
                6
            } else if has("curve") {
                3
            } else {
                2
            };
            for (at, &n) in (0..).zip(&WIDE) {
                (0..variants).for_each(|turn| grow(at, n, &base.variant(at + turn)));
            }
            blocks.extend([both(129, 130, 131, 132), both(300, 700, 40, 260), both(1100, 1300, 9, 65)]);
        }
        for (at, block) in (0..).zip(blocks) {
            cases.extend((0..6).map(|turn| block.variant(at + turn)));
        }
        let mut add = |case: Self| cases.push(case);
        if has("users") {
            add(Self { users: 0, ..base.clone() });
            if has("first") {
                add(Self { first: 0, listed: false, ..base.clone() });
                add(Self { first: 40, listed: false, ..base.clone() });
                add(Self { first: 40, ..base.clone() });
            }
        }
        if has("fill") {
            for fill in [Fill::Empty, Fill::One, Fill::Full, Fill::Huge, Fill::Squares] {
                add(Self { fill, users: 9, items: 70, ..base.clone() });
            }
        }
        if has("weights") {
            for fill in [Fill::Mixed, Fill::Full] {
                add(Self { weights: true, fill, ..base.clone() });
            }
        }
        if has("curve") {
            for curve in [Curve::Identity, Curve::Relu] {
                add(Self { curve, ..base.clone() });
                add(Self { curve, data: Data::Integers, fill: Fill::Squares, keep: 1.0, ..base.clone() });
            }
        }
        if has("kind") {
            for kind in [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic] {
                for fill in [Fill::Mixed, Fill::Full, Fill::Empty] {
                    add(Self { kind, fill, weights: true, scale: 8.0, ..base.clone() });
                    add(Self { kind, fill, ..base.clone() });
                }
                add(Self { kind, data: Data::Extreme, items: 150, ..base.clone() });
                add(Self { kind, data: Data::Extreme, items: 700, users: 16, ..base.clone() });
                // Rows of which all logits are far below zero.
                add(Self { kind, data: Data::Extreme, items: 1, users: 16, ..base.clone() });
                add(Self { kind, data: Data::Integers, curve: Curve::Identity, ..base.clone() });
                add(Self { kind, items: 1, fill: Fill::Full, ..base.clone() });
            }
        }
        if has("keep") {
            let keeps: &[f64] = if has("fill") { &[1.0, 0.5, 0.01] } else { &[0.0] };
            for &keep in keeps {
                add(Self { keep, data: Data::Integers, fill: Fill::Squares, curve: Curve::Identity, ..base.clone() });
                add(Self { keep, seed: 0xfedc_ba98_7654_3210, ..base.clone() });
            }
        }
        if has("keep") && has("fill") {
            add(Self { fill: Fill::Full, users: 9, items: 60, first: 0, listed: false, ..Self::at_threshold(op) });
        }
        if has("scale") {
            add(Self { scale: 1024.0, ..base.clone() });
        }
        if has("view") {
            add(Self { view: true, ..base.clone() });
            add(Self { view: true, users: 33, inner: 17, ..base.clone() });
        }
        if has("k") {
            for data in [Data::Integers, Data::Extreme] {
                for fill in [Fill::Mixed, Fill::Full, Fill::Huge, Fill::Empty] {
                    add(Self { data, fill, k: 20, ..base.clone() });
                }
            }
            add(Self { k: base.items, ..base.clone() });
            add(Self { k: 1, data: Data::Integers, items: 129, ..base.clone() });
            if full {
                add(Self { k: 2500, data: Data::Integers, items: 3000, ..base.clone() });
            }
        }
        if has("inner") {
            add(Self { data: Data::Integers, curve: Curve::Identity, users: 33, inner: 65, outer: 34, ..base.clone() });
        }
        if op == Op::Adam {
            add(Self { outer: 0, ..base.clone() });
            add(Self { outer: base.items, ..base.clone() });
            add(Self { data: Data::Extreme, ..base.clone() });
            add(Self { data: Data::Extreme, items: 5000, ..base.clone() });
            // What is not finite anywhere in a block and in a vector.
            (0..8).for_each(|seed| add(Self { data: Data::Extreme, items: 900 + seed as u32, seed, ..base.clone() }));
            if full {
                for items in [4095, 4097, 65_537, 1_000_003] {
                    add(Self { items, outer: 1000, scale: 4.0, ..base.clone() });
                }
                // More than 65,535 groups of 256 threads reach, and what is not finite far behind the start.
                add(Self { items: (1 << 24) + 77, outer: 1000, ..base.clone() });
                (1..5).for_each(|seed| add(Self { data: Data::Extreme, items: 300_007, seed, ..base.clone() }));
            }
        }
        if full && has("first") && !has("items") {
            add(Self { first: 140_000, users: 20, ..base.clone() });
        }
        if full && has("items") && has("users") && op != Op::Step {
            // More items than 16 bits count, and more blocks than one grid dimension has.
            for items in [65_535, 65_536, 65_537, 70_001] {
                add(Self { items, k: 100, inner: 6, outer: 7, users: 3, ..base.clone() });
            }
            add(Self { items: 65_537, k: 1024, fill: Fill::Huge, inner: 3, outer: 2, users: 2, ..base.clone() });
            if has("first") {
                // Users, and positions in their list, beyond 16 bits.
                for listed in [false, true] {
                    add(Self { first: 140_000, users: 20, listed, ..base.clone() });
                }
            }
            if has("inner") || has("outer") {
                // Weights of 133 MB: beyond the smallest binding that WebGPU promises.
                add(Self { items: 65_000, inner: 512, outer: 512, users: 2, ..base.clone() });
            }
        }
        if op == Op::Step {
            for member in Member::ALL {
                for depth in [0, 1, 2] {
                    add(Self { member, depth, ..base.clone() });
                }
                for curve in [Curve::Identity, Curve::Relu] {
                    add(Self { member, curve, weights: true, ..base.clone() });
                }
                add(Self { member, users: 1, items: 1, inner: 1, outer: 1, ..base.clone() });
                add(Self { member, users: 40, items: 130, inner: 33, outer: 17, keep: 0.5, ..base.clone() });
            }
        }
        cases.iter_mut().for_each(Self::settle);
        cases
    }

    /// Where one of the draws for the first users and items is the threshold itself, which does not keep.
    fn at_threshold(op: Op) -> Self {
        Self { keep: 0.5, seed: 1_447_457, ..Self::of(op) }
    }

    /// The same shape with everything else as in turn `at`.
    fn variant(&self, at: u32) -> Self {
        let kinds = [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic];
        let curves = [Curve::Tanh, Curve::Relu, Curve::Identity];
        let fills = [Fill::Mixed, Fill::Huge, Fill::Mixed, Fill::Full, Fill::One];
        Self {
            kind: kinds[at as usize % 3],
            curve: curves[at as usize % 3],
            fill: fills[at as usize % 5],
            weights: at % 2 == 1,
            scale: [1.0, 8.0, 64.0][at as usize / 2 % 3],
            listed: at % 4 != 2,
            gap: at % 2,
            seed: 100 + u64::from(at),
            ..self.clone()
        }
    }

    /// Gives every field that does not matter its default, and the others what they can be.
    pub(crate) fn settle(&mut self) {
        let fields = self.op.fields();
        self.k = self.k.max(1);
        if self.op == Op::Adam {
            self.outer = self.outer.min(self.items);
        }
        let (Ok(default), Ok(mut own)) = (serde_json::to_value(Self::default()), serde_json::to_value(&*self)) else {
            return;
        };
        let Some(map) = own.as_object_mut() else { return };
        for (field, value) in map {
            if field != "op" && !fields.contains(&field.as_str()) {
                *value = default[field].clone();
            }
        }
        if let Ok(settled) = serde_json::from_value(own) {
            *self = settled;
        }
    }

    /// Case `number` of those drawn from `seed`, and how it shrinks.
    pub(crate) fn random(op: Op, seed: u64, number: u32, full: bool) -> Option<impl ValueTree<Value = Self>> {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..12].copy_from_slice(&number.to_le_bytes());
        bytes[12] = op as u8;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        cases(op, full).new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).ok()
    }

    /// A generator for what is drawn in this case.
    pub(crate) fn generator(&self, number: u32) -> Generator {
        Generator::new(self.seed, stream::SYNTHETIC, number)
    }

    /// Histories of the users that the batch is taken from: a few more than the batch has.
    pub(crate) fn history(&self) -> Matrix {
        let mut random = self.generator(1);
        let users = self.users + self.first + 3;
        let (mut indptr, mut items) = (vec![0_u64], Vec::new());
        for user in 0..users {
            let n = self.items;
            let want = match self.fill {
                Fill::Empty => 0,
                Fill::One => 1,
                Fill::Full => n,
                // The row that is full is in the batch whatever the list: every seventh is.
                Fill::Huge => {
                    if user % 7 == 3 {
                        n
                    } else {
                        user % 2
                    }
                }
                Fill::Squares => [1, 4, 16][user as usize % 3],
                Fill::Mixed => {
                    if user % 4 == 2 {
                        0
                    } else {
                        1 + random.below(1 + n.min(40) / 3)
                    }
                }
            };
            let mut row: Vec<u32> =
                if want >= n { (0..n).collect() } else { (0..want).map(|_| random.below(n)).collect() };
            row.sort_unstable();
            row.dedup();
            if self.fill == Fill::Squares {
                // Draws that coincide must not leave a length that is no square.
                row.truncate(match row.len() {
                    16.. => 16,
                    4.. => 4,
                    1.. => 1,
                    _ => 0,
                });
            }
            // The last item is where a column gets lost.
            if self.fill == Fill::Mixed && user % 3 == 1 && row.last().is_some_and(|&last| last + 1 < n) {
                row.push(n - 1);
            }
            items.extend_from_slice(&row);
            indptr.push(items.len() as u64);
        }
        let weights = self.weights.then(|| {
            let top = if self.kind == LikelihoodKind::Logistic || self.member == Member::LogisticVae { 4 } else { 12 };
            let mut weights: Vec<f32> = items.iter().map(|_| (random.below(top) + 1) as f32 / 4.0).collect();
            if matches!(self.op, Op::EncodeSparse | Op::EncodeSparseGrad) {
                // Events that count for nothing: such a row has no norm.
                let rows = indptr.windows(2).skip(4).step_by(5);
                rows.for_each(|row| weights[row[0] as usize..row[1] as usize].fill(0.0));
            }
            weights
        });
        Matrix::new(self.items, indptr, items, weights.map(Into::into)).expect("sorted, and below the number of items")
    }

    /// The batch: all users of the history in some order, of which the window takes its part.
    pub(crate) fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.users + self.first + 3).collect();
        if self.listed {
            self.generator(2).shuffle(&mut order);
        }
        order
    }

    /// Numbers for an argument, the `number`-th of its operation.
    pub(crate) fn numbers(&self, number: u32, len: usize) -> Vec<f64> {
        let mut random = self.generator(16 + number);
        let draw = || match self.data {
            Data::Integers => f64::from(random.below(5)) - 2.0,
            _ => numbers::uniform(&mut random),
        };
        std::iter::repeat_with(draw).take(len).collect()
    }
}

/// Small cases of an operation, and where `full` some of several tiles and blocks; they shrink towards few
/// users, short rows and plain numbers.
pub fn cases(op: Op, full: bool) -> impl Strategy<Value = Case> {
    let small = || (0_u32..24, 1_u32..90, 1_u32..40, 1_u32..40, 1_u32..30).boxed();
    let large = (0_u32..700, 1_u32..1500, 1_u32..70, 1_u32..140, 1_u32..200).boxed();
    // A step of large layers is made of operations that are tried by themselves.
    let others = if full && op != Op::Step { large } else { small() };
    let sizes = prop_oneof![3 => small(), 1 => others];
    let fills = select(vec![Fill::One, Fill::Mixed, Fill::Empty, Fill::Full, Fill::Huge, Fill::Squares]);
    let rows = (fills, any::<bool>(), any::<bool>(), 0_u32..9);
    let curve = select(vec![Curve::Identity, Curve::Tanh, Curve::Relu]);
    let kind = select(vec![LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic]);
    let keeps =
        if op == Op::SampleLatent || op == Op::SampleLatentGrad { vec![1.0, 0.0] } else { vec![1.0, 0.5, 0.8, 0.1] };
    let scales = select(vec![1.0, 2.0, 64.0]);
    let layer = (curve, kind, select(keeps), scales, any::<bool>(), 0_u32..3);
    let datas = match op {
        Op::TopK => vec![Data::Random, Data::Integers, Data::Extreme],
        _ => vec![Data::Random, Data::Random, Data::Integers],
    };
    let model = (select(Member::ALL.to_vec()), 0_u32..3);
    (sizes, rows, layer, model, select(datas), any::<u64>()).prop_map(
        move |((users, items, inner, outer, k), (fill, weights, listed, first), layer, (member, depth), data, seed)| {
            let (curve, kind, keep, scale, view, gap) = layer;
            let users = if op == Op::Step { users.max(1) } else { users };
            let mut case = Case {
                op,
                member,
                depth,
                users,
                items,
                inner,
                outer,
                k,
                fill,
                weights,
                listed,
                first,
                curve,
                kind,
                keep,
                scale,
                view,
                gap,
                data,
                seed,
            };
            case.settle();
            case
        },
    )
}

#[cfg(test)]
mod tests {
    use vaecf_core::random;

    use super::*;

    #[test]
    fn a_case_is_what_it_prints() {
        for op in Op::ALL {
            for case in Case::edges(op, true) {
                assert_eq!(case.to_string().parse(), Ok(case));
            }
            for number in 0..50 {
                let case = Case::random(op, 3, number, true).expect("a strategy that never gives up").current();
                assert_eq!(case.to_string().parse(), Ok(case));
            }
        }
        for nonsense in [
            "",
            "nothing",
            "linear users",
            "linear users=-1",
            "linear colour=3",
            "linear keep=0.5",
            "linear inner=0",
            "top_k data=odd",
            "step keep=7",
            "linear users=4000000000",
        ] {
            assert!(nonsense.parse::<Case>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_cases() {
        let draw = |seed| {
            (0..20).map(|n| Case::random(Op::Linear, seed, n, true).expect("a case").current()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn a_draw_is_the_threshold() {
        let case = Case::at_threshold(Op::EncodeSparse);
        let (seed, update, threshold) = (case.seed, 1 + (case.seed % 100_000) as u32, random::threshold(0.5));
        let keeps = |user, item, threshold| random::keeps(seed, stream::DROPOUT, update, user, item, threshold);
        let there =
            (0..9).any(|user| (0..60).any(|item| keeps(user, item, threshold) != keeps(user, item, threshold + 1)));
        assert!(there);
    }

    #[test]
    fn edges_hold_what_they_promise() {
        for op in Op::ALL {
            let (small, full) = (Case::edges(op, false), Case::edges(op, true));
            assert!(small.iter().all(|case| case.items < 6000 && case.users < 100), "{op:?}");
            assert!(small.len() <= full.len());
        }
        let full = Case::edges(Op::TopK, true);
        assert!(full.iter().any(|case| case.items > 65_536) && full.iter().any(|case| case.users == 0));
    }
}
