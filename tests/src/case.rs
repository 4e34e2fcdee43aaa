//! Cases as data: one operation at one shape. A case prints as one line, and the line is the case.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vaecf_core::{
    backend::{Curve, LikelihoodKind},
    config::Member,
    matrix::Matrix,
    random::{Generator, stream},
};

use crate::{numbers, op::Op};

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
    /// Members of the group.
    pub world: u32,
    /// Whether its sums may travel in half precision.
    pub half: bool,
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
            world: 2,
            half: false,
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
        if !(1..=64).contains(&case.world) {
            return Err(format!("{text:?}: a group has 1 to 64 members here"));
        }
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
        let cells = match known {
            Op::Adam => items.into(),
            // Beside the arena there is a layer.
            Op::Group => u64::from(items) + rows * u64::from(outer),
            _ => rows * u64::from(items.max(outer).max(inner).max(k)),
        };
        if cells > 1 << 28 || depth > 8 {
            return Err(format!("{text:?} is larger than this suite makes cases"));
        }
        Ok(case)
    }
}
impl Case {
    /// A case of an operation with nothing special about it.
    pub fn of(op: Op) -> Self {
        let keep = if matches!(op, Op::EncodeSparse | Op::EncodeSparseGrad | Op::Step) { 0.6 } else { 1.0 };
        Self { op, keep, ..Self::default() }
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

#[cfg(test)]
mod tests {
    use proptest::strategy::ValueTree;

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
}
