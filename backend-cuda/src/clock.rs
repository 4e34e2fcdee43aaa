//! The queue's clock, and what the device does at best by it.

use std::{collections::VecDeque, rc::Rc};

use vaecf_core::{
    backend::{Ceilings, Fault, MARKS, Mark, Result},
    ceilings,
};

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

/// Bytes that a copy reads at the most.
const COPIED: u64 = 1 << 30;

impl Cuda {
    pub(crate) fn measure_ceilings(&mut self) -> Result<Ceilings> {
        let most = COPIED.min(self.context.free_memory()? / 4);
        let (from, to) = (self.context.alloc(most)?, self.context.alloc(most)?);
        // No zeros, which some devices compress.
        self.main.fill(from.at(), 0x5a, most)?;
        let copy = ceilings::copy_rate(self, most, |cuda, bytes| cuda.main.copy(from.at(), to.at(), bytes))?;
        drop((from, to));
        Ok(Ceilings { copy, products: ceilings::product_rate(self)? })
    }
}
