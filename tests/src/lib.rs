//! What every backend of vaecf is held to.

mod case;
mod cases;
mod checks;
pub mod compare;
mod extremes;
mod gradients;
mod groups;
mod lab;
pub mod mutants;
mod narrow;
mod numbers;
mod op;
mod operations;
#[cfg(feature = "oracle")]
mod oracle;
pub mod planted;
mod recorded;
mod remote;
mod report;
mod step;
mod suite;
mod summed;
mod swapped;

pub use case::{Case, Data, Fill};
pub use cases::cases;
pub use checks::Plain;
pub use narrow::Narrow;
pub use op::Op;
pub use recorded::Recorded;
pub use report::{Group, Known, Outcome, Report, Speed, judge};
pub use step::{Learned, Step, values};
pub use suite::{Check, Open, Options, Trial, plan, run, run_group, run_known, speed, suite, suite_watched};
pub use summed::Summed;
