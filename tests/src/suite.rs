//! The suite: which trials there are, and how one is run.

use std::{
    any::Any,
    collections::HashSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use proptest::strategy::ValueTree;
use serde::{Deserialize, Serialize};
use vaecf_core::{
    backend::{Backend, LikelihoodKind},
    config::Member,
};

use crate::{
    case::{Case, Data, Fill},
    checks, extremes, gradients, groups,
    lab::{Tried, Wrong},
    numbers::Numbers,
    op::Op,
    operations,
    report::{Known, Outcome, Report, Speed, judge},
    step,
};

/// What a case is put to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Buffers hold what is uploaded, rounded to nearest, and begin as zeros.
    Holds,
    /// More memory than there is: an error that says so, and work goes on.
    OutOfMemory,
    /// Handles that were freed, never given out, or of another kind, as any argument: an error, and work goes on.
    Handles,
    /// What is uploaded after a first use counts in the second.
    Reuse,
    /// Marks come in order, and the time between them is that of the queue.
    Clock,
    /// What an operation stores is the nearest number of the narrower type, and infinite beyond the largest.
    Stores,
    /// What is not finite shows in what is made of it.
    Spreads,
    /// The loss scale doubles after a number of good updates, where a backend scales; elsewhere it stays.
    Grows,
    /// The reference agrees, nothing else is touched, the same bits come twice where promised, a replay
    /// is the call, an override is its definition.
    Agrees,
    /// A gradient is the central difference of its loss.
    Differences,
    /// Identities that need no reference.
    Identities,
    /// Noise is the definition's, element by element.
    Noise,
    /// A whole step has the gradients of automatic differentiation.
    Oracle,
    /// Ten steps stay within a growing band of the reference.
    TenSteps,
    /// A run that replays a captured step is the run that does not.
    Replays,
    /// A short training finds the answer planted in its data.
    Planted,
    /// Training reaches the metric of single precision, to within a standard error.
    Reaches,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::OutOfMemory => "out_of_memory",
            Self::Handles => "handles",
            Self::Reuse => "reuse",
            Self::Clock => "clock",
            Self::Stores => "stores",
            Self::Spreads => "spreads",
            Self::Grows => "grows",
            Self::Agrees => "agrees",
            Self::Differences => "differences",
            Self::Identities => "identities",
            Self::Noise => "noise",
            Self::Oracle => "oracle",
            Self::TenSteps => "ten_steps",
            Self::Replays => "replays",
            Self::Planted => "planted",
            Self::Reaches => "reaches",
        }
    }
}

/// A check of a case: one line of the suite. It prints as a line, and the line repeats it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Trial {
    /// What it is put to.
    pub check: Check,
    /// The case.
    pub case: Case,
    /// Where it was drawn: seed, number, and whether among all sizes. Such a case is made smaller when it fails.
    drawn: Option<(u64, u32, bool)>,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.check.name(), self.case)
    }
}

impl From<Trial> for String {
    fn from(trial: Trial) -> Self {
        trial.to_string()
    }
}

impl TryFrom<String> for Trial {
    type Error = String;

    fn try_from(line: String) -> Result<Self, String> {
        line.parse()
    }
}

impl FromStr for Trial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (check, case) =
            text.trim().split_once(' ').ok_or("a trial is a check and a case: agrees linear users=3")?;
        let check: Check =
            serde_json::from_value(check.into()).map_err(|_| format!("{check:?} is not a check, such as agrees"))?;
        let case: Case = case.parse()?;
        if !applies(check, case.op) {
            return Err(format!("{} says nothing about {}", check.name(), case.op.name()));
        }
        Ok(Self { check, case: fit(check, &case), drawn: None })
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What random cases are drawn from.
    pub seed: u64,
    /// Random cases for each operation and check.
    pub cases: u32,
    /// Also sizes that want a real device: tiles of a thousand, more items than 16 bits count, weights of
    /// 133 MB.
    pub full: bool,
    /// Only trials whose line contains this.
    pub filter: Option<String>,
    /// Failures that are expected.
    pub known: Vec<Known>,
    /// Whether to time each operation.
    pub speed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, cases: 24, full: true, filter: None, known: Vec::new(), speed: true }
    }
}

/// All trials, in the order of the contract.
pub fn plan(options: &Options) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |check, case| trials.push(Trial { check, case, drawn: None });
    for check in [Check::Holds, Check::OutOfMemory, Check::Handles, Check::Reuse, Check::Clock] {
        add(check, Case::of(Op::Memory));
    }
    add(Check::Grows, Case::of(Op::Adam));
    for (check, op) in [
        (Check::Stores, Op::Linear),
        (Check::Stores, Op::Adam),
        (Check::Spreads, Op::Linear),
        (Check::Spreads, Op::Likelihood),
    ] {
        add(check, Case::of(op));
    }
    for op in Op::ALL {
        Case::edges(op, options.full)
            .into_iter()
            .filter(|_| checked(Check::Agrees, op))
            .for_each(|case| add(Check::Agrees, case));
    }
    for member in Member::ALL {
        let case = Case { member, ..Case::of(Op::Step) };
        for (depth, seed) in [(1, 3), (2, 4), (0, 5)] {
            add(Check::TenSteps, Case { depth, seed, users: 9, items: 30, ..case.clone() });
        }
        let case = Case { member, ..Case::of(Op::Training) };
        for check in [Check::Replays, Check::Planted, Check::Reaches] {
            add(check, case.clone());
        }
    }
    let all = [Check::Agrees, Check::Differences, Check::Identities, Check::Noise, Check::Oracle];
    // A group takes its time and is tried at sizes that were chosen.
    let drawn = |op, check| checked(check, op) && op != Op::Group;
    for (op, check) in
        Op::ALL.into_iter().flat_map(|op| all.map(|check| (op, check))).filter(|&(op, check)| drawn(op, check))
    {
        for number in 0..options.cases {
            let drawn = Some((options.seed, number, options.full));
            let case = Case::random(op, options.seed, number, options.full).map(|tree| fit(check, &tree.current()));
            trials.extend(case.map(|case| Trial { check, case, drawn }));
        }
    }
    let mut lines = HashSet::new();
    trials.retain(|trial: &Trial| lines.insert(trial.to_string()));
    trials.sort_by_key(|trial| trial.case.op);
    if let Some(filter) = &options.filter {
        trials.retain(|trial| trial.to_string().contains(filter.as_str()));
    }
    trials
}

/// Whether a check is one of an operation's.
fn applies(check: Check, op: Op) -> bool {
    match check {
        Check::Holds | Check::OutOfMemory | Check::Handles | Check::Reuse | Check::Clock => op == Op::Memory,
        Check::Grows => op == Op::Adam,
        Check::Stores => matches!(op, Op::Linear | Op::Adam),
        Check::Spreads => matches!(op, Op::Linear | Op::Likelihood),
        Check::Replays | Check::Planted | Check::Reaches => op == Op::Training,
        Check::TenSteps | Check::Oracle => op == Op::Step,
        drawn => checked(drawn, op),
    }
}

/// Whether cases of an operation are drawn for a check.
pub(crate) fn checked(check: Check, op: Op) -> bool {
    match check {
        Check::Agrees => !matches!(op, Op::Memory | Op::Training),
        Check::Differences => matches!(
            op,
            Op::LinearGradWeight
                | Op::LinearGradInput
                | Op::EncodeSparseGrad
                | Op::SampleLatentGrad
                | Op::Likelihood
                | Op::DecodeLossGrad
        ),
        Check::Identities => matches!(op, Op::Likelihood | Op::SampleLatent | Op::EncodeSparse | Op::TopK | Op::Adam),
        Check::Noise => matches!(op, Op::EncodeSparse | Op::EncodeSparseGrad | Op::SampleLatent),
        Check::Oracle => op == Op::Step && cfg!(feature = "oracle"),
        _ => false,
    }
}

/// A case as a check can use it.
fn fit(check: Check, case: &Case) -> Case {
    let mut case = case.clone();
    match check {
        Check::Differences => case = gradients::small(&case),
        Check::Identities if case.op != Op::TopK => {
            case.data = Data::Random;
            // Two rows, to be compared with each other; no events; no noise; the softmax, not scaled.
            case.users = case.users.max(2);
            match case.op {
                Op::EncodeSparse => case.fill = Fill::Empty,
                Op::SampleLatent => case.keep = 0.0,
                _ => (case.kind, case.scale) = (LikelihoodKind::Multinomial, 1.0),
            }
        }
        Check::Identities => case.users = case.users.max(1),
        // Noise is about places: every event must count for something, and some must be dropped.
        Check::Noise => {
            case.weights = false;
            case.users = case.users.max(1);
            if case.fill == Fill::Empty {
                case.fill = Fill::Full;
            }
            if case.op == Op::SampleLatent {
                case.keep = 1.0;
            } else if case.keep >= 1.0 {
                case.keep = 0.5;
            }
            // Weights are a diagonal here, a column an item or a user.
            (case.items, case.users) = (case.items.min(200), case.users.min(200));
        }
        _ => {}
    }
    case.settle();
    case
}

/// Opens the backend of a member of a group, by its rank: each on a device of its own. Where there are not so many, it
/// is an error of [`Kind::Usage`](vaecf_core::Kind::Usage) or [`Kind::Device`](vaecf_core::Kind::Device).
pub type Open<'a> = &'a (dyn Fn(u32) -> vaecf_core::Result<Box<dyn Backend>> + Sync);

/// Runs a trial of several devices ([`Op::Group`]), each opened for it and used by a thread of its own.
pub fn run_group(open: Open<'_>, trial: &Trial) -> Outcome {
    match groups::agrees(open, &trial.case) {
        Ok(worst) => Outcome::Passed { worst },
        Err(Wrong::NotImplemented(what)) => Outcome::NotImplemented { what },
        Err(Wrong::Broken(what)) => Outcome::Failed { what, repeat: trial.to_string() },
    }
}

/// Runs a trial. A random case that fails is made smaller first. Those of several devices are for [`run_group`].
pub fn run(backend: &mut dyn Backend, trial: &Trial) -> Outcome {
    let what = match attempt(backend, trial.check, &trial.case) {
        Ok(worst) => return Outcome::Passed { worst },
        Err(Wrong::NotImplemented(what)) => return Outcome::NotImplemented { what },
        Err(Wrong::Broken(what)) => what,
    };
    let (mut what, mut case) = (what, trial.case.clone());
    if let Some(mut tree) = trial.drawn.and_then(|(seed, number, full)| Case::random(case.op, seed, number, full)) {
        let mut smaller = tree.simplify();
        for _ in 0..200 {
            if !smaller {
                break;
            }
            let next = fit(trial.check, &tree.current());
            smaller = match attempt(backend, trial.check, &next) {
                Err(Wrong::Broken(wrong)) => {
                    (what, case) = (wrong, next);
                    tree.simplify()
                }
                _ => tree.complicate(),
            };
        }
    }
    Outcome::Failed { what, repeat: Trial { case, ..trial.clone() }.to_string() }
}

fn attempt(backend: &mut dyn Backend, check: Check, case: &Case) -> Tried<f64> {
    let tried = catch_unwind(AssertUnwindSafe(|| match check {
        _ if case.op == Op::Group => Err(Wrong::NotImplemented("group".into())),
        Check::Holds | Check::OutOfMemory | Check::Handles | Check::Reuse => checks::memory(backend, check),
        Check::Clock => checks::clock(backend),
        Check::Grows => checks::grows(backend),
        Check::Stores => extremes::stores(backend, case.op),
        Check::Spreads => extremes::spreads(backend, case.op),
        Check::Agrees if case.op == Op::Step => step::one(backend, case, false),
        Check::Agrees => checks::agrees(backend, case),
        Check::Differences => checks::gradient(backend, case),
        Check::Identities => checks::identity(backend, case),
        Check::Noise => checks::noise(backend, case),
        Check::Oracle => step::one(backend, case, true),
        Check::TenSteps => step::ten(backend, case),
        Check::Replays => step::captured(backend, case),
        Check::Planted => step::planted(backend, case),
        Check::Reaches => step::metrics(backend, case),
    }));
    tried.unwrap_or_else(|panic| Err(panicked(&*panic)))
}

pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Wrong {
    Wrong::Broken(format!("it panicked: {}", text(panic)))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".into())
}

/// Runs all of it on a backend.
///
/// ```
/// use vaecf_tests::{Options, suite};
///
/// // In the tests of a backend of your own; here it is the CPU's, and a part of the trials.
/// let mut backend = vaecf_cpu::Cpu::<f32>::new(None)?;
/// let report = suite(&mut backend, &Options { filter: Some("agrees adam ".into()), ..Options::default() });
/// assert!(report.passes(), "{report}");
/// # Ok::<(), vaecf_core::Error>(())
/// ```
pub fn suite(backend: &mut dyn Backend, options: &Options) -> Report {
    suite_watched(backend, options, &mut |_, _, _| {})
}

/// The same, telling after each trial how many are done of how many, and how it ended.
pub fn suite_watched(
    backend: &mut dyn Backend,
    options: &Options,
    watch: &mut dyn FnMut(usize, usize, &Outcome),
) -> Report {
    let trials = plan(options);
    let all = trials.len();
    let mut report = Report::new(&backend.info(), options, all);
    for trial in trials {
        let outcome = run_known(backend, None, &options.known, &trial);
        watch(report.trials.len() + 1, all, &outcome);
        report.trials.push((trial, outcome));
    }
    if options.speed && options.filter.is_none() {
        report.speed = speed(backend, options.full);
    }
    report
}

/// Runs a trial; a failure that is listed is none, and a listed one that passes is. Several devices are opened by `open`.
pub fn run_known(backend: &mut dyn Backend, open: Option<Open<'_>>, known: &[Known], trial: &Trial) -> Outcome {
    let outcome = match open {
        Some(open) if trial.case.op == Op::Group => run_group(open, trial),
        _ => run(backend, trial),
    };
    let info = backend.info();
    judge(known, &info.name, &info.device, trial, outcome)
}

/// What each operation takes, at a smaller shape where not `full`. Those that fail, or are not there, have
/// no speed.
pub fn speed(backend: &mut dyn Backend, full: bool) -> Vec<Speed> {
    let Ok(numbers) = Numbers::of(&backend.info()) else { return Vec::new() };
    let mut time = |op| {
        let (users, items, units) = if full { (256, 4096, 256) } else { (32, 512, 64) };
        let items = if op == Op::Adam { items * units } else { items };
        let case = Case { users, items, inner: units, outer: units, k: 100, first: 0, ..Case::of(op) };
        let timed = catch_unwind(AssertUnwindSafe(|| operations::time(backend, &case, numbers)));
        let Ok(Ok((seconds, flop))) = timed else { return None };
        Some(Speed { op, case: case.to_string(), seconds, flop: (flop > 0.0).then_some(flop) })
    };
    Op::ALL.into_iter().filter(|op| checked(Check::Agrees, *op) && *op != Op::Step).filter_map(&mut time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::with_fault;

    fn known(trial: &str) -> Vec<Known> {
        let text = format!("[[known]]\nbackend = 'mutant'\ntrial = '{trial}'\nreason = 'a test'\n");
        Known::parse(&text).expect("a list")
    }

    /// The mutant whose bias has no gradient, at one trial.
    fn report(known: Vec<Known>, filter: &str) -> Report {
        let mut backend = with_fault((Op::LinearGradWeight, "the bias has no gradient")).expect("a backend");
        suite(&mut *backend, &Options { known, filter: Some(filter.into()), full: false, ..Options::default() })
    }

    #[test]
    fn a_known_failure_is_none_and_an_unexpected_pass_is_one() {
        let (fails, passes) = ("agrees linear_grad_weight users=5 inner=1 ", "agrees linear users=5 inner=1 ");
        assert!(!report(Vec::new(), fails).passes());
        let expected = report(known(fails), fails);
        assert!(expected.group(|_| true).known > 0 && expected.group(|_| true).failed == 0);
        // What is expected to fail does not count as something that passed.
        assert!(!expected.passes());
        assert!(report(Vec::new(), passes).passes());
        let unexpected = report(known(passes), passes);
        assert!(!unexpected.passes());
        assert!(unexpected.to_string().contains("remove the entry"), "{unexpected}");
        // An entry for another backend or device is not meant.
        let other = known(passes).into_iter().map(|known| Known { device: "another".into(), ..known }).collect();
        assert!(report(other, passes).passes());
    }

    #[test]
    fn no_trials_are_a_failure() {
        let nothing = report(Vec::new(), "no such trial");
        assert_eq!(nothing.trials.len(), 0);
        assert!(!nothing.passes());
    }

    #[test]
    fn a_failure_says_what_repeats_it_and_a_drawn_one_is_made_smaller() {
        let report = report(Vec::new(), "agrees linear_grad_weight");
        let (trial, _, repeat) = report.failures().last().expect("a failure");
        let smaller: Trial = repeat.parse().expect("a trial");
        assert!(
            smaller.case.users <= trial.case.users && smaller.case.inner == 1 && smaller.case.outer == 1,
            "{repeat}"
        );
        let mut backend = with_fault((Op::LinearGradWeight, "the bias has no gradient")).expect("a backend");
        assert!(matches!(run(&mut *backend, &smaller), Outcome::Failed { .. }));
    }

    #[test]
    fn the_list_of_known_failures_can_be_read_and_a_wrong_one_is_refused() {
        Known::listed().expect("the project's own list");
        let missing = Known::parse("[[known]]\nbackend = 'cpu'\n").expect_err("an entry without a trial");
        assert!(missing.contains("trial"), "{missing}");
    }

    #[test]
    fn every_trial_is_the_line_it_prints() {
        let trials = plan(&Options::default());
        assert!(trials.len() > 1000);
        for trial in trials {
            let again: Trial = trial.to_string().parse().expect("a trial");
            assert_eq!((again.check, again.case), (trial.check, trial.case));
        }
    }
}
