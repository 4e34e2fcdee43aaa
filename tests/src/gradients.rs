//! Gradients of a backend beside central differences of the loss, which is written out here once more, in
//! double precision and as the papers have it.

use vaecf_core::{
    backend::{Backend, Curve, LikelihoodKind, Role},
    random::{self, stream},
};

use crate::{
    case::Case,
    checks::truth,
    lab::{Lab, Mode, Tried},
    numbers::Numbers,
    op::Op,
    operations::{activated, affine, events, inputs, likelihood_of, perform},
};

/// A gradient of the backend, and the same by differences.
type Pair = (&'static str, Vec<f64>, Vec<f64>);

/// A case small enough for differences.
pub(crate) fn small(case: &Case) -> Case {
    let Case { users, items, inner, outer, .. } = *case;
    // A list's first row may be any user; a window needs no gradient of its own.
    Case {
        users: users.clamp(1, 4),
        items: items.min(14),
        inner: inner.min(7),
        outer: outer.min(9),
        scale: 1.0,
        ..case.clone()
    }
}

/// The derivative of `loss` at `x`, good to eight digits or so.
fn differences(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            let mut shifted = |d: f64| {
                x[i] = at + d;
                let y = loss(&x);
                x[i] = at;
                y
            };
            (shifted(h) - shifted(-h)) / (2.0 * h)
        })
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The negative log-likelihood of a row (Liang et al. 2018, equations 2 to 4).
fn loss(case: &Case, f: &[f64], row: &[(usize, f64)]) -> f64 {
    let kind = likelihood_of(case);
    let mut x = vec![0.0; f.len()];
    row.iter().for_each(|&(item, value)| x[item] = value);
    match kind.kind {
        LikelihoodKind::Multinomial => {
            let log_sum = f.iter().map(|f| f.exp()).sum::<f64>().ln();
            x.iter().zip(f).map(|(x, f)| x * (log_sum - f)).sum()
        }
        LikelihoodKind::Gaussian => {
            let mut c = vec![f64::from(kind.unseen); f.len()];
            row.iter().for_each(|&(item, _)| c[item] = f64::from(kind.seen));
            x.iter().zip(f).zip(c).map(|((x, f), c)| c / 2.0 * (x - f) * (x - f)).sum()
        }
        LikelihoodKind::Logistic => x.iter().zip(f).map(|(x, f)| (1.0 + f.exp()).ln() - x * f).sum(),
    }
}

/// All gradients of an operation.
pub(crate) fn of(subject: &mut dyn Backend, case: &Case, numbers: Numbers) -> Tried<Vec<Pair>> {
    let (taken, _) = perform(subject, case, numbers, Mode::Eager, false)?;
    let got = |name: &str| taken.iter().find(|t| t.name == name).map(|t| t.values.clone()).unwrap_or_default();
    let mut reference = truth()?;
    let lab = Lab::new(&mut reference, case, numbers, Mode::Eager)?;
    let (b, i, m, n) = (case.users as usize, case.items as usize, case.inner as usize, case.outer as usize);
    let (history, order) = (case.history(), case.order());
    Ok(match case.op {
        Op::LinearGradWeight => {
            let (x, dy) = (lab.draw(Role::Act, 0, b * m), lab.draw(Role::Act, 1, b * n));
            let (w, bias) = (vec![0.25; m * n], vec![0.5; n]);
            vec![
                ("dw", got("dw"), differences(&w, |w| dot(&affine(&x, w, &bias, b, m), &dy))),
                ("db", got("db"), differences(&bias, |bias| dot(&affine(&x, &w, bias, b, m), &dy))),
            ]
        }
        Op::LinearGradInput => {
            let (dy, w) = (lab.draw(Role::Act, 0, b * n), lab.draw(Role::Weight, 1, m * n));
            let (x, _) = activated(&lab, 2, b * m);
            // What the curve's input was; of relu only where it is known, well away from the kink.
            let curve = |a: f64| match case.curve {
                Curve::Identity => a,
                Curve::Tanh => a.tanh(),
                Curve::Relu => a.max(0.0),
            };
            let before = |&x: &f64| match case.curve {
                Curve::Identity => x,
                Curve::Tanh => x.atanh(),
                Curve::Relu => {
                    if x > 0.0 {
                        x.max(1e-3)
                    } else {
                        -1.0
                    }
                }
            };
            let a: Vec<f64> = x.iter().map(before).collect();
            let bias = vec![0.0; n];
            let through = |a: &[f64]| affine(&a.iter().map(|&a| curve(a)).collect::<Vec<_>>(), &w, &bias, b, m);
            vec![("dx", got("dx"), differences(&a, |a| dot(&through(a), &dy)))]
        }
        Op::EncodeSparseGrad => {
            let dy = lab.draw(Role::Act, 0, b * n);
            let rows = inputs(case, &history, &order, lab.params.update);
            let through = |w: &[f64], bias: &[f64]| {
                let sum = |(row, dy): (&Vec<(usize, f64)>, &[f64])| {
                    let own: f64 = row.iter().map(|&(item, x)| x * dot(&w[item * n..][..n], dy)).sum();
                    own + dot(bias, dy)
                };
                rows.iter().zip(dy.chunks_exact(n)).map(sum).sum()
            };
            let (w, bias) = (vec![0.25; i * n], vec![0.5; n]);
            vec![
                ("dw", got("dw"), differences(&w, |w| through(w, &bias))),
                ("db", got("db"), differences(&bias, |bias| through(&w, bias))),
            ]
        }
        Op::SampleLatentGrad => {
            let (stats, dz) = (lab.draw(Role::Act, 0, b * 2 * n), lab.draw(Role::Act, 1, b * n));
            let (update, beta) = (lab.params.update, lab.params.beta);
            let draw = |&user: &u32| {
                let blocks = (0..n.div_ceil(4) as u32)
                    .flat_map(move |at| random::normals::<f64>(case.seed, stream::LATENT, update, user, at));
                blocks.take(n).map(|eps| eps * case.keep).collect::<Vec<f64>>()
            };
            let eps: Vec<f64> = order[case.first as usize..][..b].iter().flat_map(draw).collect();
            let through = |stats: &[f64]| {
                let rows = stats.chunks_exact(2 * n).zip(eps.chunks_exact(n)).zip(dz.chunks_exact(n));
                let of = |((stats, eps), dz): ((&[f64], &[f64]), &[f64])| {
                    let (mu, logvar) = stats.split_at(n);
                    let each = |k: usize| {
                        let z = mu[k] + (logvar[k] / 2.0).exp() * eps[k];
                        z * dz[k] + beta / 2.0 * (logvar[k].exp() + mu[k] * mu[k] - 1.0 - logvar[k])
                    };
                    (0..n).map(each).sum::<f64>()
                };
                rows.map(of).sum()
            };
            vec![("dstats", got("dstats"), differences(&stats, through))]
        }
        Op::Likelihood => {
            let f = lab.draw(Role::Act, 0, b * i);
            let rows = events(case, &history, &order);
            let through = |f: &[f64]| f.chunks_exact(i).zip(&rows).map(|(f, row)| loss(case, f, row)).sum();
            vec![("logits", got("logits"), differences(&f, through))]
        }
        Op::DecodeLossGrad => {
            let (g, _) = activated(&lab, 0, b * m);
            let (w, bias) = (lab.draw(Role::Weight, 1, m * i), lab.draw(Role::Weight, 2, i));
            let rows = events(case, &history, &order);
            let through = |w: &[f64], bias: &[f64]| -> f64 {
                let f = affine(&g, w, bias, b, m);
                f.chunks_exact(i).zip(&rows).map(|(f, row)| loss(case, f, row)).sum()
            };
            vec![
                ("dw", got("dw"), differences(&w, |w| through(w, &bias))),
                ("db", got("db"), differences(&bias, |bias| through(&w, bias))),
            ]
        }
        _ => Vec::new(),
    })
}
