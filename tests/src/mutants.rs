//! Backends with one fault each: the proof that the suite can fail.

mod mutant;

use mutant::Mutant;
use vaecf_core::backend::Backend;
use vaecf_cpu::Cpu;

use crate::{
    Narrow, Recorded, Summed,
    op::Op,
    report::Outcome,
    suite::{Open, Options, plan, run_known},
};

/// Every fault, and the operation that has it.
pub const FAULTS: &[(Op, &str)] = &[
    (Op::Memory, "buffers begin as they were left"),
    (Op::Memory, "an upload begins at the buffer's start"),
    (Op::Memory, "a freed buffer lives on"),
    (Op::Memory, "too large a buffer ends in a panic"),
    (Op::Memory, "numbers are cut instead of rounded"),
    (Op::Memory, "large buffers are not cleared"),
    (Op::Memory, "the clock runs backwards"),
    (Op::Memory, "seconds are milliseconds"),
    (Op::EncodeSparse, "lists of users are read in 16 bits"),
    (Op::Linear, "weights are those of the first use"),
    (Op::Linear, "the second tile both ways is wrong"),
    (Op::SampleLatent, "a handle that is wrong is no error"),
    (Op::Likelihood, "squared errors stop at item 200"),
    (Op::Adam, "threads reach 16 million elements"),
    (Op::Adam, "only the start is looked at for what is not finite"),
    (Op::Adam, "an update is never good again"),
    (Op::Adam, "skipped updates are counted to one"),
    (Op::DecodeLossGrad, "the fused scale is left out beyond 640 items"),
    (Op::DecodeLossGrad, "the second block is wrong in the second chunk"),
    (Op::EncodeSparse, "rows begin one event late"),
    (Op::EncodeSparse, "rows end one event early"),
    (Op::EncodeSparse, "items are counted in 16 bits"),
    (Op::EncodeSparse, "the kept are not scaled up"),
    (Op::EncodeSparse, "the norm is that of what was kept"),
    (Op::EncodeSparse, "noise is counted by position"),
    (Op::EncodeSparse, "noise is that of the step before"),
    (Op::EncodeSparse, "noise is that of the first step"),
    (Op::EncodeSparse, "half of the seed is ignored"),
    (Op::EncodeSparse, "weights of events are ignored"),
    (Op::EncodeSparse, "the step's window is ignored"),
    (Op::EncodeSparse, "rows without events stay as they were"),
    (Op::EncodeSparseGrad, "items outside the batch keep their gradient"),
    (Op::EncodeSparseGrad, "another mask than before"),
    (Op::EncodeSparseGrad, "the order of the sum is left to chance"),
    (Op::Linear, "the sign is flipped"),
    (Op::Linear, "the bias is dropped"),
    (Op::Linear, "the last column is skipped"),
    (Op::Linear, "the last row is skipped"),
    (Op::Linear, "the curve is left out"),
    (Op::Linear, "rows are read without their stride"),
    (Op::Linear, "sums are half precision"),
    (Op::Linear, "padding is written"),
    (Op::Linear, "an element before the output is written"),
    (Op::Linear, "an input is overwritten"),
    (Op::LinearGradWeight, "the gradient is added to what was there"),
    (Op::LinearGradWeight, "the last row of the batch is left out"),
    (Op::LinearGradWeight, "the bias has no gradient"),
    (Op::LinearGradInput, "the curve's slope is left out"),
    (Op::LinearGradInput, "the slope is taken of the wrong argument"),
    (Op::SampleLatent, "the divergence is not halved"),
    (Op::SampleLatent, "the deviation is the variance"),
    (Op::SampleLatent, "inference is noisy"),
    (Op::SampleLatent, "divergences land at the batch's position"),
    (Op::SampleLatentGrad, "other noise than before"),
    (Op::SampleLatentGrad, "the divergence is not scaled"),
    (Op::Likelihood, "the softmax does not subtract its maximum"),
    (Op::Likelihood, "the last item is left out"),
    (Op::Likelihood, "the loss scale is left out"),
    (Op::Likelihood, "weights of events are ignored"),
    (Op::Likelihood, "confidences are swapped"),
    (Op::Adam, "weights do not decay"),
    (Op::Adam, "biases decay, too"),
    (Op::Adam, "moments are not corrected"),
    (Op::Adam, "the two decays are swapped"),
    (Op::Adam, "the gradient is a sum"),
    (Op::Adam, "the loss scale stays in"),
    (Op::Adam, "epsilon is left out"),
    (Op::Adam, "the last element is skipped"),
    (Op::Adam, "what is not finite is taken for zero"),
    (Op::Adam, "skipped updates are not counted"),
    (Op::TopK, "the history is not masked"),
    (Op::TopK, "ties go to the larger item"),
    (Op::TopK, "what is not a number comes first"),
    (Op::TopK, "missing items are item 0"),
    (Op::TopK, "one item too many is written"),
    (Op::DecodeLossGrad, "the fused bias has no gradient"),
    (Op::DecodeLossGrad, "the fused slope is left out"),
    (Op::DecodeLossGrad, "the second block is that of the first"),
    (Op::Recommend, "the fused bias is dropped"),
    (Op::Recommend, "the last item is never recommended"),
    (Op::Training, "a replay has the captured step"),
    (Op::Likelihood, "losses are narrow"),
    (Op::Adam, "masters are narrow"),
    (Op::Adam, "the loss scale never falls"),
    (Op::Adam, "the loss scale never grows"),
    (Op::Training, "the narrow copy of the weights is that of the start"),
    (Op::Linear, "a curve takes what is not a number for zero"),
    (Op::Likelihood, "logits that are not numbers are left out"),
    (Op::Linear, "results are cut instead of rounded"),
    (Op::Linear, "results beyond the largest are the largest"),
    (Op::Adam, "the narrow copy of the weights is cut"),
    (Op::Group, "sums are averages"),
    (Op::Group, "the last member is left out of sums"),
    (Op::Group, "a member counts itself twice"),
    (Op::Group, "members have sums of other bits"),
    (Op::Group, "what is not finite is lost in sums"),
    (Op::Group, "what is not a number is lost in sums"),
    (Op::Group, "sums are rounded to half precision"),
    (Op::Group, "a sum begins at the buffer's start"),
    (Op::Group, "a sum ends one element early"),
    (Op::Group, "a sum begins one element early"),
    (Op::Group, "an update does not wait for sums"),
    (Op::Group, "what is written over a sum is lost"),
    (Op::Group, "every seventh sum is left out"),
    (Op::Group, "all is passed on by rank 0"),
    (Op::Group, "one element more is passed on"),
    (Op::Group, "operations read weights as they were before they were passed on"),
];

/// Those of them that half precision has: see [`Narrow`].
const OF_NARROW: [&str; 8] = [
    "losses are narrow",
    "masters are narrow",
    "the loss scale never falls",
    "the loss scale never grows",
    "the narrow copy of the weights is that of the start",
    "results are cut instead of rounded",
    "results beyond the largest are the largest",
    "the narrow copy of the weights is cut",
];

/// What caught a mutant: the trial's line, and how many were run until then.
#[derive(Clone, Debug, PartialEq)]
pub struct Caught {
    /// The trial that failed.
    pub by: String,
    /// What it said.
    pub what: String,
    /// Trials until then.
    pub after: usize,
}

/// Puts a backend to the suite until something fails; trials of `op` come first. `None` where all pass. The members of
/// groups are opened by `open`.
pub fn hunt(backend: &mut dyn Backend, open: Open<'_>, op: Op, options: &Options) -> Option<Caught> {
    let mut trials = plan(options);
    trials.sort_by_key(|trial| trial.case.op != op);
    trials.iter().enumerate().find_map(|(at, trial)| match run_known(backend, Some(open), &[], trial) {
        Outcome::Failed { what, .. } => Some(Caught { by: trial.to_string(), what, after: at + 1 }),
        _ => None,
    })
}

/// A backend with a fault of [`FAULTS`], captures included.
///
/// # Errors
/// Where the threads do not start.
pub fn with_fault(fault: (Op, &'static str)) -> vaecf_core::Result<Box<dyn Backend>> {
    if OF_NARROW.contains(&fault.1) {
        return Ok(Box::new(Narrow::f16(Mutant::new(fault)?).with(fault.1)));
    }
    if fault.0 == Op::Group {
        return Ok(Box::new(Recorded::new(Summed::new(Cpu::<f32>::new(Some(1))?).with(fault.1))));
    }
    let mutant = Recorded::new(Mutant::new(fault)?);
    Ok(Box::new(if fault == (Op::Training, "a replay has the captured step") { mutant.frozen() } else { mutant }))
}
