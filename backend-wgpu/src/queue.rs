//! Work on its way to the device: recorded, encoded into one submission, and played again.

use std::{collections::HashMap, sync::Arc};

use vaecf_core::backend::{Buf, Fault, Result};

use crate::{
    context::Context,
    kernels::{Kernel, Kernels, PARAMS},
};

/// Calls that are submitted together at the most: the device begins while the rest of a step is still recorded.
const TOGETHER: usize = 64;

/// One piece of work.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// A kernel over a grid of workgroups.
    Run {
        kernel: Arc<Kernel>,
        group: wgpu::BindGroup,
        /// Its parameters' place.
        params: u32,
        grid: [u32; 3],
    },
    /// The first so many bytes of a buffer become zero.
    Clear { buffer: wgpu::Buffer, bytes: u64 },
    /// From one buffer to another.
    Copy { from: wgpu::Buffer, at: u64, to: wgpu::Buffer, bytes: u64 },
    /// Notes the time.
    Mark { set: wgpu::QuerySet, index: u32 },
}

/// Commands and their parameters.
#[derive(Debug, Default)]
struct Batch {
    commands: Vec<Command>,
    params: Vec<u8>,
}

/// A recording, its parameters on the device, and the buffers of the contract that it uses.
#[derive(Debug)]
struct Recording {
    commands: Vec<Command>,
    params: wgpu::BindGroup,
    bufs: Vec<Buf>,
}

/// The queue. Bind groups are kept: a step binds the same buffers each time.
#[derive(Debug)]
pub(crate) struct Queue {
    pending: Batch,
    /// What a recording holds so far.
    recording: Option<(Batch, Vec<Buf>)>,
    /// None where a buffer that it used was freed.
    recorded: Vec<Option<Recording>>,
    ring: wgpu::Buffer,
    ring_group: wgpu::BindGroup,
    groups: HashMap<(usize, Vec<wgpu::Buffer>), wgpu::BindGroup>,
}

fn params_group(context: &Context, kernels: &Kernels, buffer: &wgpu::Buffer) -> wgpu::BindGroup {
    let binding = wgpu::BufferBinding { buffer, offset: 0, size: std::num::NonZeroU64::new(PARAMS) };
    context.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &kernels.params,
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) }],
    })
}

fn params_buffer(context: &Context, bytes: u64) -> Result<wgpu::Buffer> {
    // One is bound even where there are none.
    context.buffer_for(bytes.max(PARAMS), wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST)
}

impl Queue {
    pub(crate) fn new(context: &Context, kernels: &Kernels) -> Result<Self> {
        let ring = params_buffer(context, TOGETHER as u64 * PARAMS)?;
        let ring_group = params_group(context, kernels, &ring);
        Ok(Self {
            pending: Batch::default(),
            recording: None,
            recorded: Vec::new(),
            ring,
            ring_group,
            groups: HashMap::new(),
        })
    }

    /// Whether calls are recorded now.
    pub(crate) fn records(&self) -> bool {
        self.recording.is_some()
    }

    /// Notes that a recording uses a buffer.
    pub(crate) fn used(&mut self, buf: Buf) {
        if let Some((_, bufs)) = self.recording.as_mut().filter(|(_, bufs)| !bufs.contains(&buf)) {
            bufs.push(buf);
        }
    }

    /// Issues a kernel on buffers, with parameters and so many workgroups.
    pub(crate) fn run(
        &mut self,
        context: &Context,
        kernel: &Arc<Kernel>,
        buffers: &[wgpu::Buffer],
        params: &[u8],
        groups: u64,
    ) -> Result {
        if groups == 0 {
            return Ok(());
        }
        let grid = spread(groups, context.limits.max_compute_workgroups_per_dimension)?;
        let group = self.group(context, kernel, buffers);
        let batch = self.recording.as_mut().map_or(&mut self.pending, |(batch, _)| batch);
        let at = batch.params.len();
        batch.params.extend_from_slice(params);
        batch.params.resize(at + PARAMS as usize, 0);
        batch.commands.push(Command::Run { kernel: Arc::clone(kernel), group, params: at as u32, grid });
        self.submit_if_many(context);
        Ok(())
    }

    /// Issues anything else.
    pub(crate) fn push(&mut self, context: &Context, command: Command) {
        self.recording.as_mut().map_or(&mut self.pending, |(batch, _)| batch).commands.push(command);
        self.submit_if_many(context);
    }

    fn submit_if_many(&mut self, context: &Context) {
        if self.pending.commands.len() >= TOGETHER {
            self.submit(context);
        }
    }

    fn group(&mut self, context: &Context, kernel: &Arc<Kernel>, buffers: &[wgpu::Buffer]) -> wgpu::BindGroup {
        let key = (kernel.id, buffers.to_vec());
        let make = || {
            let entries: Vec<_> = (0..)
                .zip(buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
                .collect();
            let layout = &kernel.layout;
            context.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
        };
        self.groups.entry(key).or_insert_with(make).clone()
    }

    /// Forgets how a buffer was bound.
    pub(crate) fn forget(&mut self, buffer: &wgpu::Buffer) {
        self.groups.retain(|(_, buffers), _| !buffers.contains(buffer));
    }

    /// Hands all that was issued to the device.
    pub(crate) fn submit(&mut self, context: &Context) {
        if self.pending.commands.is_empty() {
            return;
        }
        if !self.pending.params.is_empty() {
            context.queue.write_buffer(&self.ring, 0, &self.pending.params);
        }
        let mut encoder = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(&mut encoder, &self.pending.commands, &self.ring_group);
        context.queue.submit([encoder.finish()]);
        self.pending.commands.clear();
        self.pending.params.clear();
    }

    pub(crate) fn record(&mut self, context: &Context) -> Result {
        if self.recording.is_some() {
            return Err(Fault::Other("a recording was begun within a recording".into()));
        }
        self.submit(context);
        self.recording = Some(Default::default());
        Ok(())
    }

    /// Ends a recording; its number, from 1.
    pub(crate) fn end(&mut self, context: &Context, kernels: &Kernels) -> Result<u32> {
        let (batch, bufs) = self.recording.take().ok_or_else(|| Fault::Other("no recording was begun".into()))?;
        let params = params_buffer(context, batch.params.len() as u64)?;
        context.queue.write_buffer(&params, 0, &batch.params);
        let params = params_group(context, kernels, &params);
        self.recorded.push(Some(Recording { commands: batch.commands, params, bufs }));
        Ok(self.recorded.len() as u32)
    }

    /// Gives back the recordings that use a buffer, and with them all that they hold.
    pub(crate) fn freed(&mut self, buf: Buf) {
        for recording in &mut self.recorded {
            recording.take_if(|recording| recording.bufs.contains(&buf));
        }
    }

    /// Plays a recording, as long as all buffers it uses are live.
    pub(crate) fn replay(&mut self, context: &Context, number: u32) -> Result {
        self.submit(context);
        let recording = (number as usize).checked_sub(1).and_then(|i| self.recorded.get(i));
        let recording = recording.ok_or_else(|| Fault::Other(format!("{number} is no recording")))?;
        let recording = recording
            .as_ref()
            .ok_or_else(|| Fault::Other(format!("recording {number} used a buffer that was freed")))?;
        let mut encoder = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(&mut encoder, &recording.commands, &recording.params);
        context.queue.submit([encoder.finish()]);
        Ok(())
    }
}

fn encode(encoder: &mut wgpu::CommandEncoder, commands: &[Command], params_group: &wgpu::BindGroup) {
    let mut commands = commands.iter().peekable();
    while let Some(command) = commands.peek() {
        match command {
            Command::Run { .. } => {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                while let Some(Command::Run { kernel, group, params, grid: [x, y, z] }) = commands.peek() {
                    pass.set_pipeline(&kernel.pipeline);
                    pass.set_bind_group(0, params_group, &[*params]);
                    pass.set_bind_group(1, group, &[]);
                    pass.dispatch_workgroups(*x, *y, *z);
                    commands.next();
                }
            }
            Command::Clear { buffer, bytes } => {
                encoder.clear_buffer(buffer, 0, Some(*bytes));
                commands.next();
            }
            Command::Copy { from, at, to, bytes } => {
                encoder.copy_buffer_to_buffer(from, *at, to, 0, *bytes);
                commands.next();
            }
            Command::Mark { set, index } => {
                encoder.write_timestamp(set, *index);
                commands.next();
            }
        }
    }
}

/// Workgroups as a grid of which no side is longer than the device allows; some may be left over at its end.
fn spread(groups: u64, most: u32) -> Result<[u32; 3]> {
    let most = u64::from(most);
    let x = groups.min(most);
    let y = groups.div_ceil(x).min(most);
    let z = groups.div_ceil(x * y);
    if z > most {
        return Err(Fault::Other(format!("{groups} workgroups are more than the device takes at once")));
    }
    Ok([x as u32, y as u32, z as u32])
}
