//! Which cases there are: the shapes that are known to go wrong, and those drawn at random.

use proptest::{
    prelude::*,
    sample::select,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use vaecf_core::{
    backend::{Curve, LikelihoodKind},
    config::Member,
};

use crate::{
    case::{Case, Data, Fill},
    op::Op,
};

/// Sizes around those at which kernels have their tiles.
const TILES: [u32; 18] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];

/// The same for larger tiles and blocks.
const WIDE: [u32; 13] = [255, 256, 257, 511, 512, 513, 639, 640, 641, 1023, 1024, 1025, 1281];

impl Case {
    /// The shapes that are known to go wrong. `full` adds those that take a real device: large tiles,
    /// more items than 16 bits can count, more bytes than one binding of WebGPU holds.
    pub fn edges(op: Op, full: bool) -> Vec<Self> {
        if op == Op::Group {
            return Self::groups(full);
        }
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

    /// Case `number` of those drawn from `seed`, and how it shrinks.
    pub(crate) fn random(op: Op, seed: u64, number: u32, full: bool) -> Option<impl ValueTree<Value = Self>> {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..12].copy_from_slice(&number.to_le_bytes());
        bytes[12] = op as u8;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        cases(op, full).new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).ok()
    }
}

impl Case {
    /// Groups of one to three, whose sums are of a few elements, of more than a kernel takes at once, and of sizes that
    /// are no multiple of anything.
    fn groups(full: bool) -> Vec<Self> {
        let base = Self::of(Op::Group);
        let sizes = [(5, 37, 19, 23), (1, 1, 1, 1), (9, 4099, 8, 16), (3, 250, 70, 9)];
        let mut cases = Vec::new();
        for world in [1, 2, 3] {
            for half in [false, true] {
                cases.extend(sizes.iter().map(|&(users, items, inner, outer)| Self {
                    world,
                    half,
                    users,
                    items,
                    inner,
                    outer,
                    ..base.clone()
                }));
            }
        }
        if full {
            // More than is packed at once where sums travel in half precision.
            cases.push(Self { half: true, items: (1 << 24) + 1001, ..base.clone() });
        }
        cases
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
                ..Case::default()
            };
            case.settle();
            case
        },
    )
}
#[cfg(test)]
mod tests {
    use vaecf_core::random::{self, stream};

    use super::*;

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
