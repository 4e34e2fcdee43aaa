//! The queue's clock, and what the device does at best by it.

use vaecf_core::{
    backend::{Ceilings, Fault, MARKS, Mark, Result},
    ceilings,
};

use crate::{
    Wgpu,
    context::Context,
    queue::{Command, Queue},
};

/// The latest marks.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Where the device notes times; none where it does not.
    set: Option<wgpu::QuerySet>,
    /// The number of the next mark.
    next: u64,
}

impl Clock {
    pub(crate) fn new(context: &Context) -> Self {
        let descriptor = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: MARKS as u32 };
        Self { set: context.found.timestamps.then(|| context.device.create_query_set(&descriptor)), next: 0 }
    }

    pub(crate) fn mark(&mut self, context: &Context, queue: &mut Queue) -> Result<Mark> {
        let set = self.set.clone().ok_or(Fault::Unsupported("mark"))?;
        if queue.records() {
            return Err(Fault::Other("time cannot be noted while calls are recorded".into()));
        }
        let index = (self.next % MARKS as u64) as u32;
        queue.push(context, Command::Mark { set, index });
        self.next += 1;
        Ok(Mark(self.next - 1))
    }
}

impl Wgpu {
    pub(crate) async fn seconds_async(&mut self, from: Mark, to: Mark) -> Result<f64> {
        let set = self.clock.set.clone().ok_or(Fault::Unsupported("seconds"))?;
        let next = self.clock.next;
        if [from, to].iter().any(|mark| mark.0 >= next || mark.0 + (MARKS as u64) < next) {
            return Err(Fault::Other(format!("of marks {} and {} one is forgotten or was never given", from.0, to.0)));
        }
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = self.context.buffer_for(512, usage)?;
        self.queue.submit(&self.context);
        let mut encoder = self.context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (mark, offset) in [(from, 0), (to, 256)] {
            let index = (mark.0 % MARKS as u64) as u32;
            encoder.resolve_query_set(&set, index..index + 1, &resolved, offset);
        }
        self.context.queue.submit([encoder.finish()]);
        let bytes = self.fetch(&resolved, 0, 264).await?;
        let ticks = |at: usize| bytemuck::pod_read_unaligned::<u64>(&bytes[at..at + 8]);
        let passed = ticks(256).wrapping_sub(ticks(0)).cast_signed();
        Ok(passed as f64 * f64::from(self.context.queue.get_timestamp_period()) * 1e-9)
    }
}

/// Bytes that a copy reads at the most.
const COPIED: u64 = 1 << 30;
/// Bytes that are filled at once.
const FILLED: u64 = 1 << 20;

impl Wgpu {
    pub(crate) fn measure_ceilings(&mut self) -> Result<Ceilings> {
        let room = self.context.memory().map_or(COPIED, |memory| memory / 4);
        let most = COPIED.min(room).min(self.context.limits.max_buffer_size) / 4 * 4;
        let [from, to] = [self.context.buffer(most)?, self.context.buffer(most)?];
        // No zeros, which some devices compress.
        let some: Vec<u8> = (0..most.min(FILLED)).map(|at| (at % 251) as u8).collect();
        for at in (0..most).step_by(FILLED as usize) {
            self.context.queue.write_buffer(&from, at, &some[..(most - at).min(FILLED) as usize]);
            self.context.queue.submit([]);
        }
        let copy = ceilings::copy_rate(self, most, |wgpu, bytes| {
            let copy = Command::Copy { from: from.clone(), at: 0, to: to.clone(), bytes };
            wgpu.queue.push(&wgpu.context, copy);
            Ok(())
        })?;
        drop((from, to));
        Ok(Ceilings { copy, products: ceilings::product_rate(self)? })
    }
}
