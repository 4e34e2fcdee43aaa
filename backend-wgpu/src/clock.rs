//! The queue's clock, and what the device does at best by it.

use std::time::Instant;

use vaecf_core::backend::{Backend, Ceilings, Curve, Fault, Host, MARKS, Mark, Mat, Result, Role};

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

/// What a measurement has to take for the clock to be exact, in seconds.
const LONG: f64 = 5e-3;
/// Times that each is measured; the best counts, because a limit is what can be reached.
const TIMES: usize = 5;
/// Bytes that a copy reads, and sides of the matrices of a product, at the most.
const COPIED: u64 = 1 << 30;
const SIDE: u32 = 8192;

impl Wgpu {
    pub(crate) fn measure_ceilings(&mut self) -> Result<Ceilings> {
        Ok(Ceilings { copy: self.copy_rate()?, products: self.product_rate()? })
    }

    /// The shortest of several runs, in seconds; one before them does not count. By the device's clock where it has one.
    fn best(&mut self, run: &mut dyn FnMut(&mut Self) -> Result) -> Result<f64> {
        run(self)?;
        let mut best = f64::INFINITY;
        for _ in 0..TIMES {
            let time = if self.context.found.timestamps {
                let from = self.mark()?;
                run(self)?;
                let to = self.mark()?;
                self.seconds(from, to)?
            } else {
                self.sync()?;
                let from = Instant::now();
                run(self)?;
                self.sync()?;
                from.elapsed().as_secs_f64()
            };
            best = best.min(time);
        }
        Ok(best)
    }

    /// Bytes per second, read and written together, of a copy that is long enough to be measured.
    fn copy_rate(&mut self) -> Result<f64> {
        let room = self.context.memory().map_or(COPIED, |memory| memory / 4);
        let most = COPIED.min(room).min(self.context.limits.max_buffer_size) / 4 * 4;
        let mut bytes = most.min(1 << 20);
        loop {
            let [from, to] = [self.context.buffer(bytes)?, self.context.buffer(bytes)?];
            // No zeros, which some devices compress.
            let some: Vec<u8> = (0..bytes.min(1 << 20)).map(|at| (at % 251) as u8).collect();
            for at in (0..bytes).step_by(1 << 20) {
                self.context.queue.write_buffer(&from, at, &some[..(bytes - at).min(1 << 20) as usize]);
            }
            let copy = Command::Copy { from, at: 0, to, bytes };
            let time = self.best(&mut |wgpu| {
                wgpu.queue.push(&wgpu.context, copy.clone());
                Ok(())
            })?;
            if time >= LONG || bytes == most {
                return Ok(2.0 * bytes as f64 / time);
            }
            bytes = (2 * bytes).min(most);
        }
    }

    /// FLOP per second of a square product that is long enough to be measured.
    fn product_rate(&mut self) -> Result<f64> {
        let mut side = 256;
        loop {
            let time = self.product_time(side)?;
            if time >= LONG || side == SIDE {
                return Ok(2.0 * f64::from(side).powi(3) / time);
            }
            side *= 2;
        }
    }

    fn product_time(&mut self, side: u32) -> Result<f64> {
        let len = u64::from(side) * u64::from(side);
        let mut bufs = Vec::new();
        let mut time = Ok(0.0);
        for role in [Role::Act, Role::Weight, Role::Weight, Role::Act] {
            match self.alloc(role, if bufs.len() == 2 { side.into() } else { len }) {
                Ok(buf) => bufs.push(buf),
                Err(fault) => time = Err(fault),
            }
        }
        if let (Ok(_), &[x, w, b, y]) = (&time, &bufs[..]) {
            let mat = |buf, rows| Mat { buf, rows, cols: side, stride: side, offset: 0 };
            // Numbers as they come up, none of them zero.
            let some: Vec<f32> = (0..len).map(|i| (i % 61) as f32 / 61.0 - 0.51).collect();
            time = [x, w].iter().try_for_each(|&buf| self.upload(buf, 0, Host::F32(&some))).and_then(|()| {
                let mut product =
                    |wgpu: &mut Self| wgpu.linear(mat(x, side), mat(w, side), mat(b, 1), Curve::Identity, mat(y, side));
                self.best(&mut product)
            });
        }
        bufs.into_iter().for_each(|buf| self.free(buf));
        time
    }
}
