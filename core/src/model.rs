//! The family's forward and backward pass, as a short list of backend calls. Nothing else.
//!
//! Shapes in comments: B users of the batch, I items, H hidden units, K latent units.

use crate::{
    backend::{Curve, Decode, Host, HostMut, Master, Mat, Noise, Role, Rows, ScaleState},
    config::ModelConfig,
    device::{self, Buffer, Device, DeviceMatrix, Queue},
    error::{Error, Result},
    layout::{Layer, Layout},
    random::{Generator, stream},
    schedule,
    tensors::{Tensors, Values},
};

/// A model whose weights lie on a device.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    layout: Layout,
    items: u32,
    weights: Buffer,
    device: Device,
}

/// Seed and dropout of a training run.
#[derive(Clone, Copy, Debug)]
pub struct NoiseConfig {
    /// The run's seed.
    pub seed: u64,
    /// Probability to drop an input event.
    pub dropout: f64,
}

impl Model {
    /// A model with fresh weights: Glorot uniform matrices, biases from a normal distribution of
    /// deviation 0.001 cut at two deviations (as the published code has it).
    ///
    /// # Errors
    /// Where the configuration cannot be a model, or the device has no room.
    pub fn random(device: &Device, config: &ModelConfig, items: u32, seed: u64) -> Result<Self> {
        let model = Self::blank(device, config, items)?;
        let mut arena = vec![0.0; model.layout.len as usize];
        for (number, parameter) in (0..).zip(model.layout.parameters()) {
            let mut random = Generator::new(seed, stream::WEIGHTS, number);
            let bias = parameter.offset >= model.layout.decayed;
            let limit = (6.0 / (f64::from(parameter.rows) + f64::from(parameter.cols))).sqrt();
            for row in 0..parameter.rows {
                for weight in &mut arena[parameter.row(row)] {
                    *weight = if bias {
                        0.001 * std::iter::repeat_with(|| random.normal()).find(|x| x.abs() <= 2.0).unwrap_or(0.0)
                    } else {
                        limit * (2.0 * random.unit() - 1.0)
                    };
                }
            }
        }
        model.weights.upload(0, Host::F64(&arena))?;
        Ok(model)
    }

    /// A model with the given weights. In a group all members make this call, with the same.
    ///
    /// # Errors
    /// Where a weight is missing, of another shape or not finite, the device has no room, or a member of the group has
    /// another model.
    pub fn load(device: &Device, config: &ModelConfig, items: u32, weights: &Tensors) -> Result<Self> {
        let own = || format!("{config:?} {items} {}", weights.checksum()).into_bytes();
        device.group().agree("the model and its weights", own)?;
        Self::load_alone(device, config, items, weights)
    }

    /// The same on one member, whatever the others do.
    pub(crate) fn load_alone(device: &Device, config: &ModelConfig, items: u32, weights: &Tensors) -> Result<Self> {
        let model = Self::blank(device, config, items)?;
        model.set_weights(weights)?;
        Ok(model)
    }

    /// A model of zeros.
    pub(crate) fn blank(device: &Device, config: &ModelConfig, items: u32) -> Result<Self> {
        let layout = Layout::new(config, items, device.info().align)?;
        let weights = device.alloc(Role::Weight, layout.len)?;
        Ok(Self { config: config.clone(), layout, items, weights, device: device.clone() })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where its parameters lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many items it ranks.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// The device it lies on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weights, without padding, in the precision of the device's masters.
    ///
    /// # Errors
    /// What the device reports.
    pub fn weights(&self) -> Result<Tensors> {
        read_arena(&self.device, &self.layout, &self.weights)
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// Where a weight is missing, of another shape or not finite.
    pub fn set_weights(&self, weights: &Tensors) -> Result<()> {
        write_arena(&self.layout, weights, &self.weights)
    }

    /// The weights of the group's root become those of all its members.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn share_weights(&self) -> Result<()> {
        self.device.broadcast(&self.weights)
    }

    /// A layer's weight and bias.
    fn parameters(&self, layer: &Layer) -> (Mat, Mat) {
        (layer.weight.in_arena(self.weights.buf()), layer.bias.in_arena(self.weights.buf()))
    }

    /// The encoder, up to the latent statistics `[B, 2K]` (or the latent layer `[B, K]` of `mult-dae`).
    fn encode(&self, q: &mut Queue<'_>, x: Rows, dropout: Noise, space: &Workspace) -> Result<Mat> {
        let mut layers = self.layout.encoder.iter().zip(&space.encoded);
        let mut y = Mat { buf: crate::backend::Buf::NONE, rows: 0, cols: 0, stride: 0, offset: 0 };
        if let Some((layer, &(_, out))) = layers.next() {
            let (w, b) = self.parameters(layer);
            y = out.top(x.count);
            q.encode_sparse(x, w, b, layer.curve, dropout, space.step.buf(), y)?;
        }
        for (layer, &(_, out)) in layers {
            let (w, b) = self.parameters(layer);
            let input = std::mem::replace(&mut y, out.top(x.count));
            q.linear(input, w, b, layer.curve, y)?;
        }
        Ok(y)
    }

    /// The decoder up to its last layer, whose operands are returned.
    fn decode(&self, q: &mut Queue<'_>, z: Mat, space: &Workspace) -> Result<Decode> {
        let (mut g, mut curve) = (z, self.latent_curve());
        for (layer, &(_, out)) in self.layout.decoder.iter().zip(&space.decoded) {
            let (w, b) = self.parameters(layer);
            let input = std::mem::replace(&mut g, out.top(z.rows));
            q.linear(input, w, b, layer.curve, g)?;
            curve = layer.curve;
        }
        let (w, b) = self.parameters(self.output());
        Ok(Decode { g, w, b, curve, logits: space.logits.1 })
    }

    fn output(&self) -> &Layer {
        &self.layout.decoder[self.layout.decoder.len() - 1]
    }

    /// The curve whose output the decoder's input is.
    fn latent_curve(&self) -> Curve {
        if self.config.member.is_variational() { Curve::Identity } else { self.config.curve }
    }

    /// Forward, loss, backward and update for one batch. The step buffer of `space` names update and
    /// window; per-user losses land in the run's matrices.
    ///
    /// # Errors
    /// What the device reports.
    pub fn learn(
        &self,
        q: &mut Queue<'_>,
        x: Rows,
        noise: NoiseConfig,
        space: &Workspace,
        run: &RunState,
    ) -> Result<()> {
        let (step, scale) = (space.step.buf(), run.scale.buf());
        let keep = (1.0 - noise.dropout) as f32;
        let dropout = Noise { seed: noise.seed, stream: stream::DROPOUT, keep };
        let latent = Noise { seed: noise.seed, stream: stream::LATENT, keep: 1.0 };
        let top = |&(_, m): &(Buffer, Mat)| m.top(x.count);
        let grad = |layer: &Layer| (layer.weight.in_arena(run.gradient.buf()), layer.bias.in_arena(run.gradient.buf()));

        let stats = self.encode(q, x, dropout, space)?;
        let z = match &space.latent {
            Some(latent_space) => {
                let z = top(latent_space);
                q.sample_latent(x, stats, latent, step, z, run.kl.1)?;
                z
            }
            None => stats,
        };
        let decode = self.decode(q, z, space)?;

        // Backward. `dy` is the gradient before the curve of the layer being left.
        let d_latent = top(&run.d_latent);
        let mut dy = run.d_decoded.last().map_or(d_latent, top);
        let (dw, db) = grad(self.output());
        q.decode_loss_grad(x, decode, self.config.likelihood(), step, scale, run.nll.1, dw, db, dy)?;
        // Of the gradients the largest is made first: its sum over the group may be taken beside what follows.
        let gradient = run.gradient.buf();
        q.all_reduce(gradient, dw.offset, self.layout.decayed - dw.offset)?;
        for at in (0..space.decoded.len()).rev() {
            let layer = &self.layout.decoder[at];
            let (input, curve, dx) = match at {
                0 => (z, self.latent_curve(), d_latent),
                _ => (top(&space.decoded[at - 1]), self.layout.decoder[at - 1].curve, top(&run.d_decoded[at - 1])),
            };
            let (w, _) = self.parameters(layer);
            let (dw, db) = grad(layer);
            q.linear_grad_weight(input, dy, dw, db)?;
            q.linear_grad_input(dy, w, input, curve, dx)?;
            dy = dx;
        }
        let n = space.encoded.len();
        if space.latent.is_some() {
            let dstats = top(&run.d_encoded[n - 1]);
            q.sample_latent_grad(x, stats, dy, latent, step, scale, dstats)?;
            dy = dstats;
        }
        for at in (1..n).rev() {
            let layer = &self.layout.encoder[at];
            let (w, _) = self.parameters(layer);
            let (dw, db) = grad(layer);
            let (input, dx) = (top(&space.encoded[at - 1]), top(&run.d_encoded[at - 1]));
            q.linear_grad_weight(input, dy, dw, db)?;
            q.linear_grad_input(dy, w, input, self.layout.encoder[at - 1].curve, dx)?;
            dy = dx;
        }
        let (dw, db) = grad(&self.layout.encoder[0]);
        q.encode_sparse_grad(x, dy, dropout, step, dw, db)?;
        q.all_reduce(gradient, 0, self.output().weight.offset)?;
        q.all_reduce(gradient, self.layout.decayed, self.layout.len - self.layout.decayed)?;
        let (m, v) = (run.moments[0].buf(), run.moments[1].buf());
        q.adam(self.weights.buf(), run.gradient.buf(), m, v, self.layout.len, self.layout.decayed, step, scale)
    }

    /// The `k` best items for `count` histories from row `first` on, best first, with their scores:
    /// `[count * k]` each. Items of the same rows of `seen` are left out. No dropout, `z = mu`.
    ///
    /// # Errors
    /// What the device reports, or that `k` is beyond what `space` has room for.
    pub fn rank(
        &self,
        histories: &DeviceMatrix,
        seen: Option<&DeviceMatrix>,
        first: u32,
        count: u32,
        k: u32,
        space: &Workspace,
    ) -> Result<(Vec<u32>, Vec<f32>)> {
        self.begin_rank(histories, seen, first, count, k, space)?;
        space.rankings(count, k)
    }

    /// The same without waiting for it: the rankings are read by [`Workspace::rankings`], before which more may be
    /// asked for in another workspace.
    ///
    /// # Errors
    /// As of [`Model::rank`].
    pub fn begin_rank(
        &self,
        histories: &DeviceMatrix,
        seen: Option<&DeviceMatrix>,
        first: u32,
        count: u32,
        k: u32,
        space: &Workspace,
    ) -> Result<()> {
        let (items, values) = space.room(count, k)?;
        if histories.items() != self.items {
            return Err(Error::data(format!(
                "the histories are over {} items, the model over {}: they belong to different data sets",
                histories.items(),
                self.items
            )));
        }
        space.step.upload(0, Host::Step(&schedule::inference(0)))?;
        let mut q = self.device.queue();
        let decode = self.score(&mut q, histories.window(first, count), space)?;
        let none = Rows {
            indptr: crate::backend::Buf::NONE,
            indices: crate::backend::Buf::NONE,
            values: crate::backend::Buf::NONE,
            users: crate::backend::Buf::NONE,
            first,
            count,
        };
        let seen = seen.map_or(none, |s| s.window(first, count));
        q.recommend(decode, seen, k, items.buf(), values.buf())
    }

    /// The scores of all items for `count` histories, `[count, I]`: what `gaussian-vae` predicts.
    /// At most as many rows as the workspace has for logits.
    ///
    /// # Errors
    /// What the device reports.
    pub fn scores(&self, histories: &DeviceMatrix, first: u32, count: u32, space: &Workspace) -> Result<Vec<f64>> {
        space.step.upload(0, Host::Step(&schedule::inference(0)))?;
        let mut q = self.device.queue();
        let Decode { g, w, b, logits, .. } = self.score(&mut q, histories.window(first, count), space)?;
        let out = logits.top(count);
        q.linear(g, w, b, Curve::Identity, out)?;
        drop(q);
        let mut scores = Vec::with_capacity(count as usize * self.items as usize);
        for row in 0..u64::from(count) {
            scores.extend(space.logits.0.read(row * u64::from(out.stride), self.items as usize)?);
        }
        Ok(scores)
    }

    /// Encoder and decoder without noise, up to the operands of the output layer.
    fn score(&self, q: &mut Queue<'_>, x: Rows, space: &Workspace) -> Result<Decode> {
        let none = Noise { seed: 0, stream: stream::DROPOUT, keep: 1.0 };
        let stats = self.encode(q, x, none, space)?;
        let mean = if self.config.member.is_variational() { stats.columns(0, self.config.latent) } else { stats };
        self.decode(q, mean, space)
    }
}

/// Activations for batches up to a size, allocated once.
#[derive(Debug)]
pub struct Workspace {
    batch: u32,
    encoded: Vec<(Buffer, Mat)>,
    latent: Option<(Buffer, Mat)>,
    decoded: Vec<(Buffer, Mat)>,
    logits: (Buffer, Mat),
    step: Buffer,
    ranked: Option<(Buffer, Buffer)>,
}

impl Workspace {
    /// Room for batches up to `batch` users and rankings up to `k` items (none where `k` is 0); for fewer users where
    /// their rankings would be longer than a list on the device can be.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn new(model: &Model, batch: u32, k: u32) -> Result<Self> {
        let device = &model.device;
        let listed = device.longest_list() / u64::from(k.max(1));
        let batch = batch.min(u32::try_from(listed).unwrap_or(u32::MAX).max(1));
        let rows = |layers: &[Layer]| -> Result<Vec<_>> {
            layers.iter().map(|l| device.activations(batch, l.weight.cols)).collect()
        };
        let hidden = model.layout.decoder.len() - 1;
        let len = u64::from(batch) * u64::from(k);
        Ok(Self {
            batch,
            encoded: rows(&model.layout.encoder)?,
            latent: match model.config.member.is_variational() {
                true => Some(device.activations(batch, model.config.latent)?),
                false => None,
            },
            decoded: rows(&model.layout.decoder[..hidden])?,
            logits: device.activations(device.logits_rows(batch, model.items), model.items)?,
            step: device::step_buffer(device, &schedule::inference(0))?,
            ranked: match k {
                0 => None,
                _ => Some((device.alloc(Role::Index, len)?, device.alloc(Role::Value, len)?)),
            },
        })
    }

    /// Users of the largest batch it has room for.
    pub fn batch(&self) -> u32 {
        self.batch
    }

    /// Rows of logits it holds: the most [`Model::scores`] gives at once.
    pub fn logits_rows(&self) -> u32 {
        self.logits.1.rows
    }

    /// The items of `count` rankings of `k`, best first, and their scores: `[count * k]` each, of the latest
    /// [`Model::begin_rank`].
    ///
    /// # Errors
    /// What the device reports, or that there is no room for so many.
    pub fn rankings(&self, count: u32, k: u32) -> Result<(Vec<u32>, Vec<f32>)> {
        let (items, values) = self.room(count, k)?;
        let len = count as usize * k as usize;
        let mut scores = vec![0.0; len];
        values.download(0, HostMut::F32(&mut scores))?;
        Ok((items.read_indices(0, len)?, scores))
    }

    fn room(&self, count: u32, k: u32) -> Result<&(Buffer, Buffer)> {
        let len = u64::from(count) * u64::from(k);
        self.ranked.as_ref().filter(|(items, _)| len <= items.len()).ok_or_else(|| {
            Error::failure(format!(
                "a bug in vaecf, please report it: {count} rankings of {k} items in too small a workspace"
            ))
        })
    }

    /// Names update and window of the next batch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn set_step(&self, step: &crate::backend::StepParams) -> Result<()> {
        self.step.upload(0, Host::Step(step))
    }
}

/// What training needs beside the weights and the activations: gradients, moments, losses.
#[derive(Debug)]
pub struct RunState {
    gradient: Buffer,
    moments: [Buffer; 2],
    scale: Buffer,
    d_encoded: Vec<(Buffer, Mat)>,
    d_latent: (Buffer, Mat),
    d_decoded: Vec<(Buffer, Mat)>,
    nll: (Buffer, Mat),
    kl: (Buffer, Mat),
}

impl RunState {
    /// For batches up to that of `space` and losses of `users` users.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn new(model: &Model, space: &Workspace, users: u32) -> Result<Self> {
        let device = &model.device;
        let like = |(_, mat): &(Buffer, Mat)| device.activations(mat.rows, mat.cols);
        let losses = || -> Result<(Buffer, Mat)> {
            let buffer = device.alloc(Role::Value, u64::from(users))?;
            let mat = Mat { buf: buffer.buf(), rows: users, cols: 1, stride: 1, offset: 0 };
            Ok((buffer, mat))
        };
        let len = model.layout.len;
        // A deterministic latent layer has its gradient where a sampled one has that of z.
        let n = space.encoded.len();
        let sampled = space.latent.is_some();
        Ok(Self {
            gradient: device.alloc(Role::Grad, len)?,
            moments: [device.alloc(Role::Moment, len)?, device.alloc(Role::Moment, len)?],
            scale: device::scale_buffer(
                device,
                &ScaleState { scale: device.info().loss_scale, ..ScaleState::default() },
            )?,
            d_encoded: space.encoded[..if sampled { n } else { n - 1 }].iter().map(like).collect::<Result<_>>()?,
            d_latent: like(space.latent.as_ref().unwrap_or(&space.encoded[n - 1]))?,
            d_decoded: space.decoded.iter().map(like).collect::<Result<_>>()?,
            nll: losses()?,
            kl: losses()?,
        })
    }

    /// Negative log-likelihood and KL divergence of the users at positions `first..first + count`.
    ///
    /// # Errors
    /// What the device reports, faults of earlier work included.
    pub fn losses(&self, first: u32, count: u32) -> Result<(Vec<f64>, Vec<f64>)> {
        let (at, n) = (u64::from(first), count as usize);
        Ok((self.nll.0.read(at, n)?, self.kl.0.read(at, n)?))
    }

    /// Adam's moments, without padding.
    ///
    /// # Errors
    /// What the device reports.
    pub fn moments(&self, model: &Model) -> Result<[Tensors; 2]> {
        let read = |b| read_arena(&model.device, &model.layout, b);
        Ok([read(&self.moments[0])?, read(&self.moments[1])?])
    }

    /// Replaces Adam's moments.
    ///
    /// # Errors
    /// Where one is missing, of another shape or not finite.
    pub fn set_moments(&self, model: &Model, moments: &[Tensors; 2]) -> Result<()> {
        write_arena(&model.layout, &moments[0], &self.moments[0])?;
        write_arena(&model.layout, &moments[1], &self.moments[1])
    }

    /// The moments of the group's root become those of all its members.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn share_moments(&self, model: &Model) -> Result<()> {
        self.moments.iter().try_for_each(|moment| model.device.broadcast(moment))
    }

    /// The gradient of the last batch: sums over its users, times the loss scale.
    ///
    /// # Errors
    /// What the device reports.
    pub fn gradient(&self, model: &Model) -> Result<Tensors> {
        read_arena(&model.device, &model.layout, &self.gradient)
    }

    /// The loss scale and the updates skipped.
    ///
    /// # Errors
    /// What the device reports.
    pub fn scale(&self) -> Result<ScaleState> {
        let mut state = ScaleState::default();
        self.scale.download(0, HostMut::Scale(&mut state))?;
        Ok(state)
    }

    /// Sets the loss scale, where a run goes on.
    ///
    /// # Errors
    /// What the device reports.
    pub fn set_scale(&self, state: &ScaleState) -> Result<()> {
        self.scale.upload(0, Host::Scale(state))
    }
}

/// An arena of the device as named tensors without padding.
fn read_arena(device: &Device, layout: &Layout, arena: &Buffer) -> Result<Tensors> {
    let len = layout.len as usize;
    match device.info().master {
        Master::F32 => {
            let mut all = vec![0.0_f32; len];
            arena.download(0, HostMut::F32(&mut all))?;
            Ok(Tensors::gather(layout, &all, Values::F32))
        }
        Master::F64 => {
            let mut all = vec![0.0_f64; len];
            arena.download(0, HostMut::F64(&mut all))?;
            Ok(Tensors::gather(layout, &all, Values::F64))
        }
    }
}

/// Named tensors to an arena of the device. All of them are checked before the first is written.
fn write_arena(layout: &Layout, tensors: &Tensors, arena: &Buffer) -> Result<()> {
    arena.upload(0, Host::F64(&tensors.scatter(layout)?))
}
