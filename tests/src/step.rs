//! Whole steps of training, and runs of many: what the model makes of the operations.

use vaecf_core::{
    Result,
    backend::{Backend, Curve, Info, LikelihoodKind, Role},
    config::{Member, ModelConfig, TrainConfig},
    device::Device,
    evaluate::{Judge, Options},
    forward_backend,
    matrix::Matrix,
    metrics::Metric,
    model::{Model, NoiseConfig, RunState, Workspace},
    popularity::Popularity,
    schedule,
    tensors::{Tensor, Tensors, Values},
    trainer::Trainer,
};
use vaecf_cpu::Cpu;

use crate::{
    case::Case,
    checks::truth,
    compare::{Tolerance, compare, matrix, reaches},
    lab::{Tried, Wrong, ensure},
    numbers::Numbers,
    operations::likelihood_of,
    planted,
    remote::with_device,
};

/// One step of training, in full: what a case of [`crate::Op::Step`] stands for.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model.
    pub config: ModelConfig,
    /// The histories.
    pub history: Matrix,
    /// The batch: rows of it.
    pub order: Vec<u32>,
    /// Of the noise, and of the weights to start from.
    pub seed: u64,
    /// Number of the update.
    pub update: u32,
    /// Probability to keep an event.
    pub keep: f32,
    /// Weight of the divergence.
    pub beta: f64,
    /// Weight decay.
    pub l2: f64,
    /// Adam's epsilon.
    pub eps: f64,
}

impl Step {
    /// What a case stands for.
    pub fn of(case: &Case) -> Self {
        let likelihood = likelihood_of(&Case { kind: LikelihoodKind::Gaussian, ..case.clone() });
        Self {
            config: ModelConfig {
                member: case.member,
                hidden: vec![case.inner; case.depth as usize],
                latent: case.outer,
                curve: case.curve,
                confidence_seen: likelihood.seen,
                confidence_unseen: likelihood.unseen,
            },
            history: case.history(),
            order: case.order()[case.first as usize..][..case.users as usize].to_vec(),
            seed: case.seed,
            update: 1 + (case.seed % 100_000) as u32,
            keep: case.keep as f32,
            beta: 0.3,
            l2: 0.02,
            eps: 1e-8,
        }
    }

    /// The settings of its update.
    pub fn train(&self) -> TrainConfig {
        TrainConfig {
            seed: self.seed,
            dropout: 1.0 - f64::from(self.keep),
            kl_cap: self.beta,
            kl_steps: 0.0,
            l2: self.l2,
            eps: self.eps,
            ..TrainConfig::paper()
        }
    }

    /// Takes `steps` steps on a device, from weights of the seed or from given ones.
    ///
    /// # Errors
    /// What the device reports.
    pub fn learn(&self, device: &Device, from: Option<&Tensors>, steps: u32) -> Result<Vec<Learned>> {
        let model = Model::random(device, &self.config, self.history.items(), self.seed)?;
        // Fresh biases are next to zero; larger ones show more.
        let mut before = model.weights()?;
        for (name, tensor) in &mut before.0 {
            let scale = if name.ends_with("bias") { 300.0 } else { 1.0 };
            match &mut tensor.values {
                Values::F32(v) => v.iter_mut().for_each(|x| *x *= scale as f32),
                Values::F64(v) => v.iter_mut().for_each(|x| *x *= scale),
            }
        }
        let before = from.cloned().unwrap_or(before);
        model.set_weights(&before)?;
        let count = self.order.len() as u32;
        let data = device.matrix(&self.history)?;
        let order = device.user_list(count, &data)?;
        order.write(0, &self.order)?;
        let space = Workspace::new(&model, count, 0)?;
        let run = RunState::new(&model, &space, count)?;
        if device.info().loss_scale != 1.0 {
            // Far from overflow, so that no update is skipped.
            run.set_scale(&vaecf_core::backend::ScaleState { scale: 64.0, ..run.scale()? })?;
        }
        let noise = NoiseConfig { seed: self.seed, dropout: 1.0 - f64::from(self.keep) };
        let mut learned = Vec::new();
        for step in 0..steps {
            space.set_step(&schedule::step(&self.train(), self.update + step, 0, count))?;
            model.learn(&mut device.queue(), data.listed(&order, 0, count), noise, &space, &run)?;
            let (nll, kl) = run.losses(0, count)?;
            learned.push(Learned {
                before: before.clone(),
                after: model.weights()?,
                gradient: run.gradient(&model)?,
                scale: f64::from(run.scale()?.scale),
                finite: run.scale()?.finite == 1,
                nll,
                kl,
            });
        }
        Ok(learned)
    }
}

/// What a step leaves behind.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The weights before the first step.
    pub before: Tensors,
    /// The weights after this one.
    pub after: Tensors,
    /// Its gradient: sums over the batch, times the loss scale.
    pub gradient: Tensors,
    /// The loss scale after it.
    pub scale: f64,
    /// Whether the update took place.
    pub finite: bool,
    /// Negative log-likelihood of each user.
    pub nll: Vec<f64>,
    /// Divergence of each user.
    pub kl: Vec<f64>,
}

/// The numbers of a tensor.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    match &tensor.values {
        Values::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Values::F64(v) => v.clone(),
    }
}

/// What a step is expected to give: losses and divergences of the users, gradients by name.
pub(crate) struct Expected {
    pub(crate) nll: Vec<f64>,
    pub(crate) kl: Vec<f64>,
    pub(crate) gradient: Vec<(String, Vec<f64>)>,
}

/// Steps of the backend under test and of the reference, from the same weights.
fn both(subject: &mut dyn Backend, step: &Step, steps: u32) -> Tried<(Vec<Learned>, Vec<Learned>)> {
    let ours = with_device(subject, |device| step.learn(device, None, steps))?;
    let device = Device::new(Box::new(truth()?));
    let first = ours.first().ok_or_else(|| Wrong::Broken("no step was taken".into()))?;
    let theirs = step.learn(&device, Some(&first.before), steps)?;
    Ok((ours, theirs))
}

/// One step against the reference, and against automatic differentiation.
pub(crate) fn one(subject: &mut dyn Backend, case: &Case, by_oracle: bool) -> Tried<f64> {
    let numbers = Numbers::of(&subject.info()).map_err(Wrong::Broken)?;
    let mut step = Step::of(case);
    if numbers.act != numbers.sum && step.config.curve == Curve::Relu {
        // Through several layers of a narrow type, an input next to relu's kink falls on either side of it.
        step.config.curve = Curve::Tanh;
    }
    let (ours, theirs) = both(subject, &step, 1)?;
    let (ours, theirs) = (&ours[0], &theirs[0]);
    let expected = if by_oracle {
        by_differentiation(&step, ours)?
    } else {
        let gradient = theirs.gradient.0.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect();
        Expected { nll: theirs.nll.clone(), kl: theirs.kl.clone(), gradient }
    };
    held(numbers, &step, ours, &expected, 1.0)
}

#[cfg(feature = "oracle")]
fn by_differentiation(step: &Step, ours: &Learned) -> Tried<Expected> {
    crate::oracle::expected(step, &ours.before).map_err(|e| Wrong::Broken(format!("the oracle failed: {e}")))
}

#[cfg(not(feature = "oracle"))]
fn by_differentiation(_: &Step, _: &Learned) -> Tried<Expected> {
    Err(Wrong::NotImplemented("automatic differentiation, in this build of the suite,".into()))
}

/// Losses and gradients within a band: `wide` times what one step may be off by.
pub(crate) fn held(numbers: Numbers, step: &Step, ours: &Learned, expected: &Expected, wide: f64) -> Tried<f64> {
    // Everything here is a few sums deep; the longest is over all units and items of the batch.
    let terms = 64 + step.history.items() as usize * step.order.len();
    let allowed = |v: &[f64]| band(numbers, v, wide).terms(terms);
    let mut worst = 0.0_f64;
    let mut hold = |name: &str, actual: &[f64], expected: &[f64]| -> Tried {
        let found = compare(actual, expected, &allowed(expected));
        worst = worst.max(found.map_err(|e| Wrong::Broken(format!("{name}: {e}")))?.fraction());
        Ok(())
    };
    ensure(ours.finite, || "the update was skipped".into())?;
    hold("nll", &ours.nll, &expected.nll)?;
    hold("kl", &ours.kl, &expected.kl)?;
    for (name, gradient) in &expected.gradient {
        let actual: Vec<f64> =
            ours.gradient.0.get(name).map(values).unwrap_or_default().iter().map(|g| g / ours.scale).collect();
        hold(name, &actual, gradient)?;
    }
    ensure(ours.gradient.0.len() == expected.gradient.len(), || "not all gradients are there".into())?;
    Ok(worst)
}

/// A tolerance for values that lie at the end of a chain of layers: of the largest of them.
fn band(numbers: Numbers, expected: &[f64], wide: f64) -> Tolerance {
    let biggest = expected.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
    // Twice what one operation may be off by: the other side of the comparison has a chain of its own.
    numbers.tolerance(Role::Value, true).factor(8.0).magnitude(vec![wide * biggest; expected.len()])
}

/// Ten steps. A step starts where the last has ended, so the band grows, for losses and gradients to twice
/// that of one step; weights may be off by what their changes so far may be off by.
pub(crate) fn ten(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let numbers = Numbers::of(&subject.info()).map_err(Wrong::Broken)?;
    // With an epsilon of one a step of Adam is smooth in its gradient: with a small one the first step is the
    // gradient's sign, and rounding decides it where the gradient is next to zero.
    let step = Step { eps: 1.0, ..Step::of(case) };
    let (ours, theirs) = both(subject, &step, 10)?;
    let (rate, users) = (step.train().lr, step.order.len() as f64);
    let mut worst = 0.0_f64;
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let gradient: Vec<(String, Vec<f64>)> =
            theirs.gradient.0.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect();
        // What the mean gradient is off by moves a weight by no more than the rate times that.
        let largest = gradient.iter().flat_map(|(_, g)| g).fold(0.0_f64, |a, g| a.max(g.abs())) / users;
        let moved = rate * (at as f64 + 1.0) * (1.0 + largest);
        let expected = Expected { nll: theirs.nll.clone(), kl: theirs.kl.clone(), gradient };
        let after = |wrong: Wrong| match wrong {
            Wrong::Broken(what) => Wrong::Broken(format!("step {}: {what}", at + 1)),
            wrong => wrong,
        };
        worst = worst.max(held(numbers, &step, ours, &expected, 1.0 + at as f64 / 9.0).map_err(after)?);
        for (name, tensor) in &theirs.after.0 {
            let (rows, cols) = (tensor.rows as usize, tensor.cols as usize);
            let (expected, actual) = (values(tensor), values(&ours.after.0[name]));
            // The weights themselves are masters: rounded once a step.
            let tolerance = numbers.tolerance(Role::Weight, true).factor(8.0).terms(64);
            let tolerance = tolerance.magnitude(vec![moved; expected.len()]);
            let found = compare(matrix(rows, cols, &actual), matrix(rows, cols, &expected), &tolerance);
            worst = worst.max(found.map_err(|e| after(Wrong::Broken(format!("{name} after it: {e}"))))?.fraction());
        }
    }
    Ok(worst)
}

fn config(member: Member) -> ModelConfig {
    let hidden = if member.is_variational() { vec![24] } else { vec![] };
    ModelConfig { hidden, latent: 12, ..ModelConfig::of(member) }
}

fn quick(case: &Case) -> TrainConfig {
    TrainConfig {
        seed: case.seed,
        batch: 32,
        epochs: 60,
        lr: 1e-2,
        dropout: 0.2,
        kl_cap: 0.01,
        kl_steps: 0.0,
        metric: "recall@1".into(),
        ..TrainConfig::paper()
    }
}

/// A short training finds what is planted in its data, which popularity cannot know.
pub(crate) fn planted(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let data = planted::circles(6, 5)?;
    let metric: Metric = "recall@1".parse()?;
    let found = with_device(subject, |device| -> Result<_> {
        let mut trainer = Trainer::new(device, &config(case.member), &quick(case), &data, None)?;
        trainer.run(&mut ())?;
        let model = trainer.into_best()?;
        let test = data.test.as_ref().ok_or_else(|| vaecf_core::Error::data("no test users"))?;
        Judge::new(&model, test, &Popularity::of(&data.train), &[metric], Options::default())?.evaluate(&model)
    })?;
    let value = found.value(metric).unwrap_or(f64::NAN);
    ensure(found.users_scored == 30 && value == 1.0, || format!("recall@1 is {value}, and the answer is known"))?;
    Ok(0.0)
}

/// Training on noisy data reaches the metric that single precision on the host reaches, to within a
/// standard error of the two: rounding, loss scaling and skipped updates cost nothing that can be seen.
pub(crate) fn metrics(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let data = planted::tastes(case.seed, 500, 120, 8)?;
    let metric: Metric = "ndcg@20".parse()?;
    let train = TrainConfig { epochs: 25, metric: "ndcg@20".into(), ..quick(case) };
    let config = ModelConfig { hidden: vec![32], latent: 16, ..ModelConfig::of(case.member) };
    let reach = |device: &Device| -> Result<(f64, f64)> {
        let mut trainer = Trainer::new(device, &config, &train, &data, None)?;
        trainer.run(&mut ())?;
        let model = trainer.into_best()?;
        let test = data.test.as_ref().ok_or_else(|| vaecf_core::Error::data("no test users"))?;
        let judge = Judge::new(&model, test, &Popularity::of(&data.train), &[metric], Options::default())?;
        let evaluation = judge.evaluate(&model)?;
        let found = evaluation.metrics.iter().find(|m| m.name == metric);
        let number = |x: Option<f64>| x.unwrap_or(f64::NAN);
        Ok((number(found.and_then(|m| m.value)), number(found.and_then(|m| m.standard_error))))
    };
    let (ours, error) = with_device(subject, reach)?;
    let (wanted, wanted_error) = reach(&Device::new(Box::new(Cpu::<f32>::new(Some(1))?)))?;
    ensure(reaches(ours, error, wanted, wanted_error), || {
        format!("NDCG@20 is {ours:.4} ({error:.4}), and {wanted:.4} ({wanted_error:.4}) in single precision")
    })?;
    Ok(0.0)
}

/// A run that replays its captured step is the run that issues every call.
pub(crate) fn captured(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let info = subject.info();
    if !info.capture {
        return Err(Wrong::NotImplemented("capture".into()));
    }
    let data = planted::circles(5, 7)?;
    let train = TrainConfig { epochs: 4, batch: 16, ..quick(case) };
    let run = |device: &Device| -> Result<_> {
        let mut trainer = Trainer::new(device, &config(case.member), &train, &data, None)?;
        trainer.run(&mut ())?;
        trainer.snapshot()
    };
    let replayed = with_device(subject, run)?;
    let eager = with_device(&mut Eager(subject), run)?;
    if info.deterministic {
        return ensure(replayed == eager, || "the run with a captured step is another run".into()).map(|()| 0.0);
    }
    let numbers = Numbers::of(&info).map_err(Wrong::Broken)?;
    let mut worst = 0.0_f64;
    for (name, tensor) in &eager.weights.0 {
        let expected = values(tensor);
        let updates = f64::from(eager.progress.update);
        worst = worst.max(
            compare(&values(&replayed.weights.0[name]), &expected, &band(numbers, &expected, updates))?.fraction(),
        );
    }
    Ok(worst)
}

/// A backend whose captures are not used.
struct Eager<'a>(&'a mut dyn Backend);

impl Backend for Eager<'_> {
    fn info(&self) -> Info {
        Info { capture: false, ..self.0.info() }
    }
    forward_backend! { self, self.0;
        alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
        logits_rows longest_list decode_loss_grad recommend
    }
}
