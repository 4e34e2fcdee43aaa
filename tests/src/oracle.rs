//! The second opinion: candle's automatic differentiation.
//!
//! It is given the loss as the papers write it, in f64 and with dense matrices, and only shares with us
//! the noise (the definition in `core::random`), never a gradient.

use candle_core::{D, DType, Device as Candle, Result, Tensor, Var};
use vaecf_core::{
    backend::Curve,
    config::Member,
    random::{self, stream},
    tensors,
};

use crate::step::{Expected, Step, values};

/// A parameter as a variable of the oracle.
fn var(tensor: &tensors::Tensor) -> Result<Var> {
    let shape = (tensor.rows as usize, tensor.cols as usize);
    let values = values(tensor);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Candle::Cpu)?)
}

fn dense(step: &Step, cell: impl Fn(u32, u32, f64) -> f64) -> Result<Tensor> {
    let items = step.history.items() as usize;
    let mut all = vec![0.0; step.order.len() * items];
    for (row, &user) in all.chunks_exact_mut(items).zip(&step.order) {
        for (at, &item) in step.history.row(user).iter().enumerate() {
            let x = step.history.row_values(user).map_or(1.0, |v| f64::from(v[at]));
            row[item as usize] = cell(user, item, x);
        }
    }
    Tensor::from_vec(all, (step.order.len(), items), &Candle::Cpu)
}

fn curve(curve: Curve, x: Tensor) -> Result<Tensor> {
    match curve {
        Curve::Identity => Ok(x),
        Curve::Tanh => x.tanh(),
        Curve::Relu => x.relu(),
    }
}

/// The losses of the batch, and the gradient of the sum of `nll + beta kl` for every parameter.
pub(crate) fn expected(step: &Step, weights: &tensors::Tensors) -> Result<Expected> {
    let vars: Vec<(&String, Var)> = weights.0.iter().map(|(n, t)| Ok((n, var(t)?))).collect::<Result<_>>()?;
    let get = |name: String| vars.iter().find(|(n, _)| **n == name).map(|(_, v)| v.as_tensor().clone()).unwrap();
    let affine = |x: &Tensor, layer: String| -> Result<Tensor> {
        x.matmul(&get(format!("{layer}.weight")))?.broadcast_add(&get(format!("{layer}.bias")))
    };
    let x = dense(step, |_, _, x| x)?;
    let norm = |user| {
        let row = step.history.row_values(user);
        let square: f64 =
            row.map_or(step.history.row(user).len() as f64, |v| v.iter().map(|&x| f64::from(x).powi(2)).sum());
        if square > 0.0 { square.sqrt() } else { 1.0 }
    };
    let keep = f64::from(step.keep);
    let threshold = random::threshold(step.keep);
    let kept = |u, i| random::keeps(step.seed, stream::DROPOUT, step.update, u, i, threshold);
    let mut h = dense(step, |u, i, x| if kept(u, i) { x / norm(u) / keep } else { 0.0 })?;

    let config = &step.config;
    let n = config.hidden.len();
    for layer in 0..=n {
        let last = if config.member == Member::MultDae { config.curve } else { Curve::Identity };
        h = curve(if layer < n { config.curve } else { last }, affine(&h, format!("encoder.{layer}"))?)?;
    }
    let (batch, latent) = (step.order.len(), config.latent as usize);
    let (z, kl) = if config.member.is_variational() {
        let (mu, logvar) = (h.narrow(1, 0, latent)?, h.narrow(1, latent, latent)?);
        let draw = |user: &u32| -> Vec<f64> {
            let blocks = (0..latent.div_ceil(4) as u32)
                .flat_map(|at| random::normals::<f64>(step.seed, stream::LATENT, step.update, *user, at));
            blocks.take(latent).collect()
        };
        let eps: Vec<f64> = step.order.iter().flat_map(draw).collect();
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
            let seen = dense(step, |_, _, _| f64::from(config.confidence_seen) - f64::from(config.confidence_unseen))?;
            let c = (seen + f64::from(config.confidence_unseen))?;
            (c * (&x - &f)?.sqr()?)?.sum(1)?.affine(0.5, 0.0)?
        }
        Member::LogisticVae => {
            let soft = (f.relu()? + (f.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
            (soft - (&x * &f)?)?.sum(1)?
        }
    };
    let grads = (nll.sum_all()? + (kl.sum_all()? * step.beta)?)?.backward()?;
    let of = |(name, var): &(&String, Var)| -> Result<(String, Vec<f64>)> {
        let zeros = || var.as_tensor().zeros_like();
        let gradient = grads.get(var.as_tensor()).cloned().map_or_else(zeros, Ok)?;
        Ok(((*name).clone(), gradient.flatten_all()?.to_vec1()?))
    };
    Ok(Expected { nll: nll.to_vec1()?, kl: kl.to_vec1()?, gradient: vars.iter().map(of).collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use vaecf_core::device::Device;

    use super::*;
    use crate::{Case, Op, numbers::Numbers, step::held};

    /// The oracle can tell: with another weight of the divergence the step is not that of the oracle.
    #[test]
    fn a_wrong_gradient_is_found() {
        let step = Step::of(&Case::of(Op::Step));
        let device = Device::new(Box::new(crate::checks::truth().expect("a thread")));
        let learned = &step.learn(&device, None, 1).expect("a step")[0];
        let numbers = Numbers::of(device.info()).expect("numbers");
        let judge =
            |step: &Step| held(numbers, step, learned, &expected(step, &learned.before).expect("an answer"), 1.0);
        assert!(judge(&step).is_ok());
        assert!(judge(&Step { beta: step.beta + 0.001, ..step.clone() }).is_err());
    }
}
