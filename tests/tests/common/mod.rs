//! Small cases of every member of the family, and one step on a backend.

#![allow(dead_code, reason = "each test program uses its part of this")]

use proptest::{collection::vec, prelude::*};
use vaecf_core::{
    Result,
    backend::{Backend, Curve},
    config::{Member, ModelConfig, TrainConfig},
    device::Device,
    matrix::Matrix,
    model::{Model, NoiseConfig, RunState, Workspace},
    schedule,
    tensors::{Tensor, Tensors, Values},
};

/// One step of training, in full.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) config: ModelConfig,
    pub(crate) matrix: Matrix,
    /// The batch: rows of the matrix.
    pub(crate) order: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) update: u32,
    pub(crate) dropout: f32,
    pub(crate) beta: f64,
    pub(crate) l2: f64,
}

impl Case {
    /// A case with nothing special about it.
    pub(crate) fn example() -> Self {
        Self {
            config: ModelConfig { hidden: vec![5], latent: 3, ..ModelConfig::of(Member::MultVae) },
            matrix: Matrix::from_rows(7, [vec![0, 3, 6], vec![1], vec![2, 3, 4, 5]]).unwrap(),
            order: vec![2, 0, 1],
            seed: 11,
            update: 3,
            dropout: 0.5,
            beta: 0.2,
            l2: 0.01,
        }
    }

    pub(crate) fn train(&self) -> TrainConfig {
        TrainConfig {
            seed: self.seed,
            dropout: f64::from(self.dropout),
            kl_cap: self.beta,
            kl_steps: 0.0,
            l2: self.l2,
            ..TrainConfig::paper()
        }
    }
}

/// A few users and items, with empty rows, one user or one item among them; weights or none.
pub(crate) fn matrix(largest_weight: f32) -> impl Strategy<Value = Matrix> {
    let cell = prop_oneof![3 => Just(None), 2 => (0.0..largest_weight).prop_map(Some)];
    let shape = (1_usize..7, 1_usize..12);
    let cells = shape.prop_flat_map(move |(users, items)| vec(vec(cell.clone(), items), users));
    (cells, any::<bool>()).prop_map(|(cells, weighted)| {
        let items = cells[0].len() as u32;
        let (mut indptr, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in &cells {
            for (item, value) in (0..).zip(row) {
                if let Some(value) = value {
                    indices.push(item);
                    values.push(*value);
                }
            }
            indptr.push(indices.len() as u64);
        }
        Matrix::new(items, indptr, indices, weighted.then(|| values.into())).unwrap()
    })
}

/// Any member, any depth, any curve, any small data.
pub(crate) fn case() -> impl Strategy<Value = Case> {
    let member = proptest::sample::select(Member::ALL.to_vec());
    let curves = prop_oneof![Just(Curve::Tanh), Just(Curve::Identity), Just(Curve::Relu)];
    let shape = (member, vec(1_u32..7, 0..3), 1_u32..6, curves, prop_oneof![Just(0.0), 0.0_f32..2.0]);
    let config = shape.prop_map(|(member, hidden, latent, curve, confidence_unseen)| ModelConfig {
        member,
        hidden,
        latent,
        curve,
        confidence_seen: 1.5,
        confidence_unseen,
    });
    let largest = |config: &ModelConfig| if config.member == Member::LogisticVae { 1.0 } else { 3.0 };
    let with_matrix = config.prop_flat_map(move |config| (matrix(largest(&config)), Just(config)));
    let order = with_matrix.prop_flat_map(|(matrix, config)| {
        let users: Vec<u32> = (0..matrix.users()).collect();
        let order = proptest::sample::subsequence(users, 1..=matrix.users() as usize).prop_shuffle();
        (order, Just(matrix), Just(config))
    });
    let dropout = prop_oneof![Just(0.0_f32), Just(0.5), 0.0_f32..0.9];
    let l2 = prop_oneof![Just(0.0), 0.0..0.1];
    (order, any::<u64>(), 1_u32..100_000, dropout, 0.0..1.0, l2).prop_map(
        |((order, matrix, config), seed, update, dropout, beta, l2)| Case {
            config,
            matrix,
            order,
            seed,
            update,
            dropout,
            beta,
            l2,
        },
    )
}

/// What one step leaves behind.
pub(crate) struct Step {
    pub(crate) before: Tensors,
    pub(crate) after: Tensors,
    pub(crate) gradient: Tensors,
    pub(crate) moments: [Tensors; 2],
    pub(crate) nll: Vec<f64>,
    pub(crate) kl: Vec<f64>,
}

/// One step of training on a backend, from fresh weights.
pub(crate) fn learn(case: &Case, backend: Box<dyn Backend>) -> Result<Step> {
    learn_from(case, backend, None)
}

/// The same, from given weights.
pub(crate) fn learn_from(case: &Case, backend: Box<dyn Backend>, weights: Option<&Tensors>) -> Result<Step> {
    let device = Device::new(backend);
    let model = Model::random(&device, &case.config, case.matrix.items(), case.seed)?;
    // Fresh biases are next to zero; larger ones show more.
    let mut before = model.weights()?;
    for (name, tensor) in &mut before.0 {
        let scale = if name.ends_with("bias") { 300.0 } else { 1.0 };
        match &mut tensor.values {
            Values::F32(v) => v.iter_mut().for_each(|x| *x *= scale as f32),
            Values::F64(v) => v.iter_mut().for_each(|x| *x *= scale),
        }
    }
    let before = weights.cloned().unwrap_or(before);
    model.set_weights(&before)?;
    let count = case.order.len() as u32;
    let data = device.matrix(&case.matrix)?;
    let order = device.user_list(count, &data)?;
    order.write(0, &case.order)?;
    let space = Workspace::new(&model, count, 0)?;
    let run = RunState::new(&model, &space, count)?;
    space.set_step(&schedule::step(&case.train(), case.update, 0, count))?;
    let noise = NoiseConfig { seed: case.seed, dropout: f64::from(case.dropout) };
    model.learn(&mut device.queue(), data.listed(&order, 0, count), noise, &space, &run)?;
    let (nll, kl) = run.losses(0, count)?;
    Ok(Step {
        before,
        after: model.weights()?,
        gradient: run.gradient(&model)?,
        moments: run.moments(&model)?,
        nll,
        kl,
    })
}

/// The numbers of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    match &tensor.values {
        Values::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Values::F64(v) => v.clone(),
    }
}
