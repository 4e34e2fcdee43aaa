//! The queue's clock: work is done when a call returns, so a mark is the moment at which it is made.

use std::{collections::VecDeque, time::Instant};

use vaecf_core::backend::{Fault, MARKS, Mark, Result};

/// The latest marks.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The number of the first one that is kept.
    first: u64,
    moments: VecDeque<Instant>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { first: 0, moments: VecDeque::with_capacity(MARKS) }
    }

    pub(crate) fn mark(&mut self) -> Mark {
        if self.moments.len() == MARKS {
            self.moments.pop_front();
            self.first += 1;
        }
        self.moments.push_back(Instant::now());
        Mark(self.first + self.moments.len() as u64 - 1)
    }

    pub(crate) fn seconds(&self, from: Mark, to: Mark) -> Result<f64> {
        let moment = |Mark(number)| {
            let at = usize::try_from(u64::checked_sub(number, self.first)?).ok()?;
            self.moments.get(at).copied()
        };
        let (Some(from), Some(to)) = (moment(from), moment(to)) else {
            return Err(Fault::Other(format!("of marks {} and {} one is forgotten or was never given", from.0, to.0)));
        };
        let ahead = to.checked_duration_since(from).map(|time| time.as_secs_f64());
        Ok(ahead.unwrap_or_else(|| -(from - to).as_secs_f64()))
    }
}
