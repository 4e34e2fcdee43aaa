//! The whole step against an independent oracle: candle's automatic differentiation.
//!
//! The oracle is given the loss as model.md of the papers writes it, in f64 and with dense matrices,
//! and only shares with us the noise (the definition in `core::random`), never a gradient.

mod common;

use candle_core::{D, DType, Device as Candle, Result, Tensor, Var};
use common::{Case, case, learn};
use proptest::prelude::*;
use vaecf_core::{
    backend::Curve,
    config::Member,
    random::{self, stream},
    tensors,
};
use vaecf_cpu::Cpu;
use vaecf_tests::compare::{Float, Tolerance, compare, matrix};

/// A parameter as a variable of the oracle.
fn var(tensor: &tensors::Tensor) -> Result<Var> {
    let shape = (tensor.rows as usize, tensor.cols as usize);
    let values = common::values(tensor);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Candle::Cpu)?)
}

fn dense(case: &Case, cell: impl Fn(u32, u32, f64) -> f64) -> Result<Tensor> {
    let items = case.matrix.items() as usize;
    let mut all = vec![0.0; case.order.len() * items];
    for (row, &user) in all.chunks_exact_mut(items).zip(&case.order) {
        for (at, &item) in case.matrix.row(user).iter().enumerate() {
            let x = case.matrix.row_values(user).map_or(1.0, |v| f64::from(v[at]));
            row[item as usize] = cell(user, item, x);
        }
    }
    Tensor::from_vec(all, (case.order.len(), items), &Candle::Cpu)
}

fn curve(curve: Curve, x: Tensor) -> Result<Tensor> {
    match curve {
        Curve::Identity => Ok(x),
        Curve::Tanh => x.tanh(),
        Curve::Relu => x.relu(),
    }
}

/// Negative log-likelihood and KL divergence of each user, and gradients by name.
type Answer = (Vec<f64>, Vec<f64>, Vec<(String, Tensor)>);

/// The losses of the batch, and the gradient of the sum of `nll + beta kl` for every parameter.
fn oracle(case: &Case, weights: &tensors::Tensors) -> Result<Answer> {
    let vars: Vec<(&String, Var)> = weights.0.iter().map(|(n, t)| Ok((n, var(t)?))).collect::<Result<_>>()?;
    let get = |name: String| vars.iter().find(|(n, _)| **n == name).map(|(_, v)| v.as_tensor().clone()).unwrap();
    let affine = |x: &Tensor, layer: String| -> Result<Tensor> {
        x.matmul(&get(format!("{layer}.weight")))?.broadcast_add(&get(format!("{layer}.bias")))
    };
    let x = dense(case, |_, _, x| x)?;
    let norm = |user| {
        let row = case.matrix.row_values(user);
        let square: f64 =
            row.map_or(case.matrix.row(user).len() as f64, |v| v.iter().map(|&x| f64::from(x).powi(2)).sum());
        if square > 0.0 { square.sqrt() } else { 1.0 }
    };
    let keep = 1.0 - case.dropout as f64;
    let threshold = random::threshold(keep as f32);
    let kept = |u, i| random::keeps(case.seed, stream::DROPOUT, case.update, u, i, threshold);
    let mut h = dense(case, |u, i, x| if kept(u, i) { x / norm(u) / f64::from(keep as f32) } else { 0.0 })?;

    let config = &case.config;
    let n = config.hidden.len();
    for layer in 0..=n {
        let last = if config.member == Member::MultDae { config.curve } else { Curve::Identity };
        h = curve(if layer < n { config.curve } else { last }, affine(&h, format!("encoder.{layer}"))?)?;
    }
    let (batch, latent) = (case.order.len(), config.latent as usize);
    let (z, kl) = if config.member.is_variational() {
        let (mu, logvar) = (h.narrow(1, 0, latent)?, h.narrow(1, latent, latent)?);
        let draw = |user: &u32| -> Vec<f64> {
            let blocks = (0..latent.div_ceil(4) as u32)
                .flat_map(|at| random::normals::<f64>(case.seed, stream::LATENT, case.update, *user, at));
            blocks.take(latent).collect()
        };
        let eps: Vec<f64> = case.order.iter().flat_map(draw).collect();
        let eps = Tensor::from_vec(eps, (batch, latent), &Candle::Cpu)?;
        let z = (&mu + ((&logvar * 0.5)?.exp()? * eps)?)?;
        let kl = (((logvar.exp()? + mu.sqr()?)? - 1.0)? - &logvar)?.sum(D::Minus1)?.affine(0.5, 0.0)?;
        (z, kl)
    } else {
        (h, Tensor::zeros(batch, DType::F64, &Candle::Cpu)?)
    };
    let mut g = z;
    for layer in 0..n {
        g = curve(config.curve, affine(&g, format!("decoder.{layer}"))?)?;
    }
    let f = affine(&g, format!("decoder.{n}"))?;
    let nll = match config.member {
        Member::MultVae | Member::MultDae => {
            let lse = f.log_sum_exp(1)?.unsqueeze(1)?;
            (&x * f.broadcast_sub(&lse)?)?.sum(1)?.neg()?
        }
        Member::GaussianVae => {
            let seen = dense(case, |_, _, _| f64::from(config.confidence_seen) - f64::from(config.confidence_unseen))?;
            let c = (seen + f64::from(config.confidence_unseen))?;
            (c * (&x - &f)?.sqr()?)?.sum(1)?.affine(0.5, 0.0)?
        }
        Member::LogisticVae => {
            let soft = (f.relu()? + (f.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
            (soft - (&x * &f)?)?.sum(1)?
        }
    };
    let grads = (nll.sum_all()? + (kl.sum_all()? * case.beta)?)?.backward()?;
    let of = |(name, var): &(&String, Var)| -> Result<(String, Tensor)> {
        let zeros = || var.as_tensor().zeros_like();
        Ok(((*name).clone(), grads.get(var.as_tensor()).cloned().map_or_else(zeros, Ok)?))
    };
    Ok((nll.to_vec1()?, kl.to_vec1()?, vars.iter().map(of).collect::<Result<_>>()?))
}

/// One step on a backend against the oracle: losses per user, and every gradient.
fn agrees(case: &Case, float: Float) -> std::result::Result<(), TestCaseError> {
    let backend: Box<dyn vaecf_core::backend::Backend> = match float {
        Float::F64 => Box::new(Cpu::<f64>::new(Some(1)).unwrap()),
        _ => Box::new(Cpu::<f32>::new(Some(2)).unwrap()),
    };
    let step = learn(case, backend).unwrap();
    let (nll, kl, grads) = oracle(case, &step.before).unwrap();
    // Everything here is a few sums deep; the longest is over all units and items of the batch.
    let terms = 64 + case.matrix.items() as usize * case.order.len();
    let biggest = |v: &[f64]| v.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
    let allowed =
        |v: &[f64]| Tolerance::new(float, float).terms(terms).magnitude(vec![biggest(v); v.len()]).factor(16.0);
    compare(&*step.nll, &*nll, &allowed(&nll)).map_err(|e| TestCaseError::fail(format!("nll: {e}")))?;
    compare(&*step.kl, &*kl, &allowed(&kl)).map_err(|e| TestCaseError::fail(format!("kl: {e}")))?;
    for (name, expected) in grads {
        let ours = &step.gradient.0[&name];
        let expected = expected.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (rows, cols) = (ours.rows as usize, ours.cols as usize);
        compare(matrix(rows, cols, &common::values(ours)), matrix(rows, cols, &expected), &allowed(&expected))
            .map_err(|e| TestCaseError::fail(format!("{name}: {e}")))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_step_in_double_precision_agrees_with_automatic_differentiation(case in case()) {
        agrees(&case, Float::F64)?;
    }

    #[test]
    fn a_step_in_single_precision_agrees_with_automatic_differentiation(case in case()) {
        agrees(&case, Float::F32)?;
    }
}

/// The oracle can tell: a gradient that is off in one place does not pass.
#[test]
fn a_wrong_gradient_is_found() {
    let case = Case::example();
    let step = learn(&case, Box::new(Cpu::<f64>::new(Some(1)).unwrap())).unwrap();
    let other = Case { beta: case.beta + 0.01, ..case };
    let (_, _, grads) = oracle(&other, &step.before).unwrap();
    let differs = grads.into_iter().any(|(name, expected)| {
        let expected = expected.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let tolerance =
            Tolerance::new(Float::F64, Float::F64).terms(1000).magnitude(vec![1.0; expected.len()]).factor(16.0);
        compare(&*common::values(&step.gradient.0[&name]), &*expected, &tolerance).is_err()
    });
    assert!(differs);
}
