//! The ends of the number types: rounding, what is too large or too small, and what is not a number.

use vaecf_core::{
    backend::{
        Backend, Buf, Curve, Host, HostMut, Likelihood, LikelihoodKind, Mat, Role, Rows, ScaleState, StepParams,
    },
    layout::padded,
};

use crate::{
    compare::{Float, first_difference},
    lab::{Tried, Wrong, ensure},
    numbers::{Numbers, round},
    op::Op,
};

/// Where activations are stored in fewer digits than sums have, a result is the nearest number there is, of two that are
/// equally near the even one, and infinite from halfway beyond the largest; so is the copy of a weight that was updated.
pub(crate) fn stores(q: &mut dyn Backend, op: Op) -> Tried<f64> {
    let float = Numbers::of(&q.info()).map_err(Wrong::Broken)?.act;
    // Of bf16, devices may take the smallest for zero.
    let (largest, smallest) = match float {
        Float::F16 => (half::f16::MAX.to_f64(), 2f64.powi(-24)),
        Float::Bf16 => (half::bf16::MAX.to_f64(), 0.0),
        Float::Tf32 | Float::F32 | Float::F64 => return Ok(0.0),
    };
    // A weight and a bias, which lie far apart; their sums are exact. From 1 to the next number it is twice `half`.
    let half = float.roundoff();
    let mut terms = vec![(f64::NAN, 0.0)];
    for sign in [1.0, -1.0] {
        for unit in [1.0 / 64.0, 1.0, 512.0].map(|unit| sign * unit) {
            for steps in [0.0, 1.0, 2.0, 7.0] {
                terms.extend([0.0, 0.5, 1.0, 1.5].map(|part| (unit * (1.0 + 2.0 * steps * half), unit * part * half)));
            }
        }
        let unit = sign * largest / (2.0 - 2.0 * half);
        terms.extend([0.5, 1.0, 1.5].map(|part| (sign * largest, unit * part * half)));
        terms.push((sign * f64::INFINITY, 0.0));
    }
    let (weights, biases): (Vec<f64>, Vec<f64>) = terms.iter().copied().unzip();
    // Halves of the smallest numbers.
    let small: Vec<f64> = (-9..9).map(|n| f64::from(n) * smallest).collect();
    let mut sums: Vec<f64> = terms.iter().map(|(w, b)| w + b).chain(small.iter().map(|w| w / 2.0)).collect();
    let zeros = vec![0.0; sums.len()];
    let got = if op == Op::Adam {
        // There is no update of the others.
        sums.retain(|sum| sum.is_finite());
        layer(q, 1.0, &sums, &zeros[..sums.len()], Curve::Identity, true)?
    } else {
        let far = layer(q, 1.0, &weights, &biases, Curve::Identity, false)?;
        let near = layer(q, 0.5, &small, &zeros[..small.len()], Curve::Identity, false)?;
        [far, near].concat()
    };
    // Zero has one sign here.
    let got: Vec<f64> = got.iter().map(|x| x + 0.0).collect();
    let expected: Vec<f64> = sums.iter().map(|&sum| round(float, sum) + 0.0).collect();
    match first_difference(&got, &expected) {
        None => Ok(0.0),
        Some(at) => {
            Err(Wrong::Broken(format!("{:e} is stored as {:e} and should be {:e}", sums[at], got[at], expected[at])))
        }
    }
}

/// What is not finite shows in what is made of it, because an update is skipped where it shows: a sum through any curve,
/// and of a logit the loss and, unless that is infinite and the gradient is not, the gradient.
pub(crate) fn spreads(q: &mut dyn Backend, op: Op) -> Tried<f64> {
    if op == Op::Linear {
        for curve in [Curve::Identity, Curve::Tanh, Curve::Relu] {
            let y = layer(q, 1.0, &[f64::NAN, 0.25, f64::INFINITY], &[0.0, 0.0, f64::NEG_INFINITY], curve, false)?;
            let seen = [true, false, true].iter().zip(&y).all(|(bad, y)| *bad == y.is_nan());
            ensure(seen, || format!("through {curve:?} NaN, 0.25 and inf - inf are {y:?}"))?;
        }
        return Ok(0.0);
    }
    for kind in [LikelihoodKind::Multinomial, LikelihoodKind::Gaussian, LikelihoodKind::Logistic] {
        for bad in [f64::NAN, f64::INFINITY] {
            let (loss, df) = row(q, kind, &[1.0, 0.5, bad, -1.0, 0.25])?;
            ensure(!loss.is_finite(), || format!("{kind:?}: a logit is {bad}, and the loss {loss}"))?;
            let shows = !df[2].is_finite() || kind == LikelihoodKind::Logistic && bad.is_infinite();
            ensure(shows, || format!("{kind:?}: a logit is {bad}, and the gradient {df:?}"))?;
        }
    }
    Ok(0.0)
}

/// `curve(x w + b)` of one number, where asked for after an update of the weights that changes nothing.
fn layer(q: &mut dyn Backend, x: f64, w: &[f64], b: &[f64], curve: Curve, updated: bool) -> Tried<Vec<f64>> {
    let n = w.len() as u32;
    let stride = padded(n, q.info().align);
    let roles = [Role::Act, Role::Act, Role::Weight, Role::Weight, Role::Grad, Role::Moment, Role::Moment];
    let bufs = roles.into_iter().map(|role| q.alloc(role, stride.into())).collect::<Result<Vec<_>, _>>()?;
    let [xb, yb, wb, bb, dw, m, v] = bufs[..] else { return Err(Wrong::Broken("buffers are missing".into())) };
    let [step, scale] = settings(q)?;
    for (buf, values) in [(xb, &[x][..]), (wb, w), (bb, b)] {
        q.upload(buf, 0, Host::F64(values))?;
    }
    if updated {
        q.adam(wb, dw, m, v, n.into(), 0, step, scale)?;
    }
    let row = |buf, cols| Mat { buf, rows: 1, cols, stride, offset: 0 };
    q.linear(row(xb, 1), row(wb, n), row(bb, n), curve, row(yb, n))?;
    let mut y = vec![0.0; w.len()];
    q.download(yb, 0, HostMut::F64(&mut y))?;
    bufs.into_iter().chain([step, scale]).for_each(|buf| q.free(buf));
    Ok(y)
}

/// Loss and gradient of logits, of which the first is that of the only event.
fn row(q: &mut dyn Backend, kind: LikelihoodKind, f: &[f64]) -> Tried<(f64, Vec<f64>)> {
    let cols = f.len() as u32;
    let stride = padded(cols, q.info().align);
    let (fb, loss) = (q.alloc(Role::Act, stride.into())?, q.alloc(Role::Value, 1)?);
    let (indptr, indices) = (q.alloc(Role::Index, 2)?, q.alloc(Role::Index, 1)?);
    let [step, scale] = settings(q)?;
    q.upload(indptr, 0, Host::U32(&[0, 1]))?;
    q.upload(fb, 0, Host::F64(f))?;
    let x = Rows { indptr, indices, values: Buf::NONE, users: Buf::NONE, first: 0, count: 1 };
    let logits = Mat { buf: fb, rows: 1, cols, stride, offset: 0 };
    let losses = Mat { buf: loss, rows: 1, cols: 1, stride: 1, offset: 0 };
    q.likelihood(x, Likelihood { kind, seen: 2.0, unseen: 0.5 }, logits, step, scale, losses)?;
    let (mut df, mut told) = (vec![0.0; f.len()], [0.0]);
    q.download(fb, 0, HostMut::F64(&mut df))?;
    q.download(loss, 0, HostMut::F64(&mut told))?;
    [fb, loss, indptr, indices, step, scale].into_iter().for_each(|buf| q.free(buf));
    Ok((told[0], df))
}

/// A step in which nothing moves, and no loss scale.
fn settings(q: &mut dyn Backend) -> Tried<[Buf; 2]> {
    let (step, scale) = (q.alloc(Role::Step, 1)?, q.alloc(Role::Scale, 1)?);
    let params = StepParams { update: 1, eps: 1.0, correction1: 1.0, correction2: 1.0, ..bytemuck::Zeroable::zeroed() };
    q.upload(step, 0, Host::Step(&params))?;
    q.upload(scale, 0, Host::Scale(&ScaleState::default()))?;
    Ok([step, scale])
}
