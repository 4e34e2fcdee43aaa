//! The queue's clock, and what the device does at best by it.

use std::{collections::VecDeque, rc::Rc};

use vaecf_core::backend::{Backend, Ceilings, Curve, Fault, MARKS, Mark, Mat, Result, Role};

use crate::{
    Cuda,
    driver::{Context, Event, Stream},
};

/// The latest marks.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// The number of the first one that is kept.
    first: u64,
    events: VecDeque<Event>,
}

impl Clock {
    pub(crate) fn mark(&mut self, context: &Rc<Context>, stream: &Stream) -> Result<Mark> {
        let event = if self.events.len() == MARKS { self.events.pop_front() } else { None };
        let event = match event {
            Some(event) => {
                self.first += 1;
                event
            }
            None => context.event(true)?,
        };
        stream.record(&event)?;
        self.events.push_back(event);
        Ok(Mark(self.first + self.events.len() as u64 - 1))
    }

    pub(crate) fn seconds(&self, from: Mark, to: Mark) -> Result<f64> {
        let event = |Mark(number)| {
            let at = usize::try_from(u64::checked_sub(number, self.first)?).ok()?;
            self.events.get(at)
        };
        let (Some(earlier), Some(later)) = (event(from), event(to)) else {
            return Err(Fault::Other(format!("of marks {} and {} one is forgotten or was never given", from.0, to.0)));
        };
        earlier.sync()?;
        later.sync()?;
        // The driver does not say what it makes of an end that lies before the start.
        if to.0 < from.0 { Ok(-earlier.seconds_since(later)?) } else { later.seconds_since(earlier) }
    }
}

/// What a measurement has to take for the clock to be exact, in seconds.
const LONG: f64 = 5e-3;
/// Times that each is measured; the best counts, because a limit is what can be reached.
const TIMES: usize = 5;
/// Bytes that a copy reads, and sides of the matrices of a product, at the most.
const COPIED: u64 = 1 << 30;
const SIDE: u32 = 8192;

impl Cuda {
    pub(crate) fn measure_ceilings(&mut self) -> Result<Ceilings> {
        Ok(Ceilings { copy: self.copy_rate()?, products: self.product_rate()? })
    }

    /// The shortest of several runs, in seconds; one before them does not count.
    fn best(&mut self, run: &mut dyn FnMut(&mut Self) -> Result) -> Result<f64> {
        run(self)?;
        let mut best = f64::INFINITY;
        for _ in 0..TIMES {
            let from = self.mark()?;
            run(self)?;
            let to = self.mark()?;
            best = best.min(self.seconds(from, to)?);
        }
        Ok(best)
    }

    /// Bytes per second, read and written together, of a copy that is long enough to be measured.
    fn copy_rate(&mut self) -> Result<f64> {
        let most = COPIED.min(self.context.free_memory()? / 4);
        let (from, to) = (self.context.alloc(most)?, self.context.alloc(most)?);
        // No zeros, which some devices compress.
        self.main.fill(from.at(), 0x5a, most)?;
        let mut bytes = most.min(1 << 20);
        loop {
            let time = self.best(&mut |cuda| cuda.main.copy(from.at(), to.at(), bytes))?;
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
            time = (|| {
                for buf in [x, w] {
                    // Numbers as they come up, none of them zero.
                    self.upload_floats(buf, 0, len as usize, |i| (i % 61) as f64 / 61.0 - 0.51)?;
                }
                let mut product =
                    |cuda: &mut Self| cuda.linear(mat(x, side), mat(w, side), mat(b, 1), Curve::Identity, mat(y, side));
                self.best(&mut product)
            })();
        }
        bufs.into_iter().for_each(|buf| self.free(buf));
        time
    }
}
