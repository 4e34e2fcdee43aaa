//! A model against the held-out part of a data set.

use crate::{
    config::Member,
    dataset::Part,
    device::DeviceMatrix,
    error::{Error, Result},
    group::Group,
    matrix::Matrix,
    metrics::{self, Measure, Metric, Scorer, User},
    model::{Model, Workspace},
    popularity::Popularity,
    report::Evaluation,
};

/// Users ranked at once.
pub const BATCH: u32 = 512;

/// How an evaluation ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Users ranked at once.
    pub batch: u32,
    /// Whether items of the history are left out of the ranking.
    pub mask: bool,
    /// Whether every user's values are kept for the report.
    pub keep_values: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch: BATCH, mask: true, keep_values: false }
    }
}

/// A held-out part made ready, so that it can be judged again and again.
#[derive(Debug)]
pub struct Judge {
    metrics: Vec<Metric>,
    popularity: Popularity,
    options: Options,
    depth: u32,
    predicts: bool,
    group: Group,
    history: Matrix,
    target: Matrix,
    on_device: DeviceMatrix,
    space: Workspace,
}

impl Judge {
    /// Copies the histories to the model's device and allocates what ranking needs. `popularity` is
    /// that of the training users. In a group all members make this call, with the same.
    ///
    /// # Errors
    /// Where nobody has a target, a metric asks for what the model does not give, the device has no room, or a member of
    /// the group was given something else.
    pub fn new(
        model: &Model,
        part: &Part,
        popularity: &Popularity,
        metrics: &[Metric],
        options: Options,
    ) -> Result<Self> {
        if part.target.events() == 0 {
            return Err(Error::data("no held-out user has a target, so there is nothing to score"));
        }
        let predicts = metrics.iter().any(|m| matches!(m.measure(), Measure::Rmse | Measure::Mae));
        if predicts && model.config().member != Member::GaussianVae {
            return Err(Error::usage(format!(
                "rmse and mae compare predicted values, which only gaussian-vae gives; this model is a {}",
                model.config().member.name()
            )));
        }
        let depth = metrics::depth(metrics, &part.target).max(1);
        let batch = options.batch.clamp(1, part.history.users().max(1));
        let asked = || {
            let parts = [part.history.checksum(), part.target.checksum(), popularity.checksum()];
            format!("{batch} {} {metrics:?} {parts:?}", options.mask).into_bytes()
        };
        model.device().group().agree("what is evaluated and how", asked)?;
        Ok(Self {
            metrics: metrics.to_vec(),
            popularity: popularity.clone(),
            options,
            depth,
            predicts,
            group: model.device().group().clone(),
            history: part.history.clone(),
            target: part.target.clone(),
            on_device: model.device().matrix(&part.history)?,
            space: Workspace::new(model, batch, depth)?,
        })
    }

    /// Scores every user of the part. In a group each member ranks some of the batches, which are those of one device,
    /// and all of them score all rankings in one order: the figures are the same, to the last digit.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn evaluate(&self, model: &Model) -> Result<Evaluation> {
        self.score(&self.group, self.predicts, |first, count, ranked| {
            let seen = self.options.mask.then_some(&self.on_device);
            ranked.extend(model.rank(&self.on_device, seen, first, count, self.depth, &self.space)?.0);
            if !self.predicts {
                return Ok(None);
            }
            let mut predicted = Vec::new();
            for from in (first..first + count).step_by(self.space.logits_rows() as usize) {
                let rows = self.space.logits_rows().min(first + count - from);
                let scores = model.scores(&self.on_device, from, rows, &self.space)?;
                for (user, row) in (from..).zip(scores.chunks_exact(model.items() as usize)) {
                    predicted.extend(self.target.row(user).iter().map(|&item| row[item as usize] as f32));
                }
            }
            Ok(Some(predicted))
        })
    }

    /// The same users, ranked by popularity alone.
    ///
    /// # Errors
    /// Where a metric needs predicted values.
    pub fn baseline(&self) -> Result<Evaluation> {
        self.score(&Group::default(), false, |first, count, ranked| {
            let mut ranking = vec![0; self.depth as usize];
            for user in first..first + count {
                let seen: &[u32] = if self.options.mask { self.history.row(user) } else { &[] };
                self.popularity.rank(seen, &mut ranking);
                ranked.extend_from_slice(&ranking);
            }
            Ok(None)
        })
    }

    /// Batches of users through `rank`, which appends their rankings and, if it `predicts`, gives the predicted
    /// values of all their target items. Members of a group take turns, a batch each.
    fn score(
        &self,
        group: &Group,
        predicts: bool,
        rank: impl Fn(u32, u32, &mut Vec<u32>) -> Result<Option<Vec<f32>>>,
    ) -> Result<Evaluation> {
        let scorer = Scorer::new(&self.metrics, &self.popularity);
        let mut scorer = if self.options.keep_values { scorer.keep_values() } else { scorer };
        let (users, batch) = (self.history.users(), self.space.batch());
        let count = |first: u32| batch.min(users.saturating_sub(first));
        let mut ranked = Vec::new();
        let turns = (0..users).step_by(batch as usize).collect::<Vec<_>>();
        for turns in turns.chunks(group.world() as usize) {
            ranked.clear();
            let predicted = match turns.get(group.rank() as usize) {
                Some(&first) => rank(first, count(first), &mut ranked)?,
                None => None,
            };
            let rankings = group.all_gather(bytemuck::cast_slice(&ranked))?;
            let predicted = group.all_gather(bytemuck::cast_slice(predicted.as_deref().unwrap_or_default()))?;
            for ((&first, ranked), predicted) in turns.iter().zip(&rankings).zip(&predicted) {
                let ranked: Vec<u32> = bytemuck::pod_collect_to_vec(ranked);
                let predicted: Vec<f32> = bytemuck::pod_collect_to_vec(predicted);
                self.score_batch(&mut scorer, first, &ranked, predicts.then_some(&predicted))?;
            }
        }
        Ok(scorer.finish())
    }

    /// Users from `first` on, by their rankings.
    fn score_batch(
        &self,
        scorer: &mut Scorer,
        first: u32,
        ranked: &[u32],
        mut predicted: Option<&[f32]>,
    ) -> Result<()> {
        for (user, ranking) in (first..).zip(ranked.chunks_exact(self.depth as usize)) {
            let target = self.target.row(user);
            let own = predicted.as_mut().map(|rest| {
                let (own, others) = rest.split_at(target.len());
                *rest = others;
                own
            });
            scorer.user(&User {
                ranking,
                target,
                values: self.target.row_values(user),
                predicted: own,
                history: self.history.row(user).len() as u32,
            })?;
        }
        Ok(())
    }
}
