//! The suite: which trials there are, how one is run, and what is reported.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use proptest::strategy::ValueTree;
use serde::{Deserialize, Serialize};
use vaecf_core::{
    backend::{Backend, Info, LikelihoodKind},
    config::Member,
};

use crate::{
    case::{Case, Data, Fill, Op},
    checks, gradients,
    lab::{Tried, Wrong},
    numbers::Numbers,
    operations, step,
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
        Ok(Self { check, case, drawn: None })
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

/// A failure that is expected, and why. A trial that matches and passes is a failure, too: the entry
/// has to go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// The backend's name.
    pub backend: String,
    /// Part of the device's name; empty for all devices.
    #[serde(default)]
    pub device: String,
    /// Part of the trial's line.
    pub trial: String,
    /// Why, and what is to be done about it.
    pub reason: String,
}

impl Known {
    /// Those of this project's own backends: `tests/known.toml`.
    ///
    /// # Errors
    /// Where that file is not what it should be.
    pub fn listed() -> Result<Vec<Self>, String> {
        Self::parse(include_str!("../known.toml"))
    }

    /// A list in TOML: one `[[known]]` an entry.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct List {
            #[serde(default)]
            known: Vec<Known>,
        }
        toml::from_str::<List>(text).map(|list| list.known).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            format!("line {line}: {}", e.message().trim_end().replace('\n', ", "))
        })
    }

    fn matches(&self, backend: &str, device: &str, line: &str) -> bool {
        self.backend == backend && device.contains(&self.device) && line.contains(&self.trial)
    }
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything held; the worst error as a fraction of what is allowed.
    Passed {
        /// At most 1.
        worst: f64,
    },
    /// The backend does not have this.
    NotImplemented {
        /// The operation.
        what: String,
    },
    /// Something did not hold.
    Failed {
        /// In a sentence.
        what: String,
        /// The smallest trial that was found to fail.
        repeat: String,
    },
    /// It failed, and that is known.
    Known {
        /// Why.
        reason: String,
    },
}

/// All trials, in the order of the contract.
pub fn plan(options: &Options) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |check, case| trials.push(Trial { check, case, drawn: None });
    for check in [Check::Holds, Check::OutOfMemory, Check::Handles, Check::Reuse] {
        add(check, Case::of(Op::Memory));
    }
    add(Check::Grows, Case::of(Op::Adam));
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
    for (op, check) in
        Op::ALL.into_iter().flat_map(|op| all.map(|check| (op, check))).filter(|&(op, check)| checked(check, op))
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
        Check::Holds | Check::OutOfMemory | Check::Handles | Check::Reuse => op == Op::Memory,
        Check::Grows => op == Op::Adam,
        Check::Replays | Check::Planted | Check::Reaches => op == Op::Training,
        Check::TenSteps | Check::Oracle => op == Op::Step,
        drawn => checked(drawn, op),
    }
}

/// Whether cases of an operation are drawn for a check.
fn checked(check: Check, op: Op) -> bool {
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

/// Runs a trial. A random case that fails is made smaller first.
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
        Check::Holds | Check::OutOfMemory | Check::Handles | Check::Reuse => checks::memory(backend, check),
        Check::Grows => checks::grows(backend),
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
    tried.unwrap_or_else(|panic| Err(Wrong::Broken(format!("it panicked: {}", text(&*panic)))))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".into())
}

/// What an outcome means where some failures are expected.
pub fn judge(known: &[Known], backend: &str, device: &str, trial: &Trial, outcome: Outcome) -> Outcome {
    let line = trial.to_string();
    let Some(entry) = known.iter().find(|known| known.matches(backend, device, &line)) else { return outcome };
    match outcome {
        Outcome::Failed { .. } => Outcome::Known { reason: entry.reason.clone() },
        Outcome::Passed { .. } => Outcome::Failed {
            what: format!("it passes, and is listed as a known failure ({}): remove the entry", entry.reason),
            repeat: line,
        },
        other => other,
    }
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
    let mut report = Report::new(&backend.info(), options);
    for trial in trials {
        let outcome = run_known(backend, &options.known, &trial);
        watch(report.trials.len() + 1, all, &outcome);
        report.trials.push((trial, outcome));
    }
    if options.speed && options.filter.is_none() {
        report.speed = speed(backend, options.full);
    }
    report
}

/// Runs a trial; a failure that is listed is none, and a listed one that passes is.
pub fn run_known(backend: &mut dyn Backend, known: &[Known], trial: &Trial) -> Outcome {
    let outcome = run(backend, trial);
    let info = backend.info();
    judge(known, &info.name, &info.device, trial, outcome)
}

/// What an operation takes at one moderate shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Speed {
    /// The operation.
    pub op: Op,
    /// The shape.
    pub case: String,
    /// Seconds a call.
    pub seconds: f64,
    /// Floating-point operations of its products; none where there are none.
    pub flop: Option<f64>,
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

/// What the suite has found: its `Display` is a table for a bug report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of this suite.
    pub version: String,
    /// Operating system and processor family.
    pub system: String,
    /// The command that this is the report of; empty where a program has called the suite.
    pub command: String,
    /// The backend's name.
    pub backend: String,
    /// The device, with driver or thread count.
    pub device: String,
    /// The working precision.
    pub precision: String,
    /// Row strides are multiples of this many elements.
    pub align: u32,
    /// The loss scale that a run starts with.
    pub loss_scale: f32,
    /// Bytes that could be allocated, where known.
    pub memory: Option<u64>,
    /// Whether it promises the same bits for the same calls.
    pub deterministic: bool,
    /// Whether it can capture and replay.
    pub capture: bool,
    /// What random cases were drawn from.
    pub seed: u64,
    /// Random cases of each operation and check.
    pub cases: u32,
    /// Whether sizes that want a real device were among them.
    pub full: bool,
    /// What the lines of the trials had to contain.
    pub filter: Option<String>,
    /// Trials that were to be run.
    pub planned: usize,
    /// Every trial that was run, and how it ended.
    pub trials: Vec<(Trial, Outcome)>,
    /// Seconds by operation.
    pub speed: Vec<Speed>,
}

/// The trials of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Group {
    /// How many there are.
    pub trials: usize,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many failed as expected.
    pub known: usize,
    /// How many the backend does not have.
    pub absent: usize,
    /// The worst error of those that passed, as a fraction of what is allowed.
    pub worst: f64,
}

impl Report {
    /// A report of trials still to be run.
    pub fn new(info: &Info, options: &Options) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            command: String::new(),
            backend: info.name.clone(),
            device: info.device.clone(),
            precision: info.precision.clone(),
            align: info.align,
            loss_scale: info.loss_scale,
            memory: info.memory,
            deterministic: info.deterministic,
            capture: info.capture,
            seed: options.seed,
            cases: options.cases,
            full: options.full,
            filter: options.filter.clone(),
            planned: plan(options).len(),
            trials: Vec::new(),
            speed: Vec::new(),
        }
    }

    /// Whether something passed, nothing failed, everything that was planned was run, and no operation is
    /// there at some shapes and absent at others.
    pub fn passes(&self) -> bool {
        let all = self.group(|_| true);
        all.passed > 0 && all.failed == 0 && all.trials == self.planned && self.in_part().is_none()
    }

    /// An operation that is there at some shapes and absent at others.
    fn in_part(&self) -> Option<Op> {
        Op::ALL.into_iter().filter(|op| checked(Check::Agrees, *op) && *op != Op::Step).find(|op| {
            let Group { passed, absent, .. } = self.group(|trial| trial.case.op == *op && trial.check == Check::Agrees);
            passed > 0 && absent > 0
        })
    }

    /// The result in a sentence.
    pub fn verdict(&self) -> String {
        let Group { trials, passed, failed, known, .. } = self.group(|_| true);
        let absent = self.absent();
        if trials < self.planned {
            return format!("not finished: {trials} of {} trials were run, {failed} failed", self.planned);
        }
        if let (0, Some(op)) = (failed, self.in_part()) {
            return format!("failed: {} is there at some shapes and absent at others", op.name());
        }
        match (failed, passed) {
            (1.., _) => format!("failed: {failed} of {trials} trials"),
            (0, 0) if known > 0 => "failed: nothing passed, all that ran is known to fail".into(),
            (0, 0) if absent.is_empty() => "failed: no trial was run".into(),
            (0, 0) => format!("failed: nothing passed, for want of {}", absent.join(", ")),
            _ if absent.iter().any(|what| *what != "capture" && *what != "capture_begin") => {
                format!("incomplete: what is there is right; absent: {}", absent.join(", "))
            }
            _ => "passed".into(),
        }
    }

    /// The trials that failed, with what went wrong and the line that repeats it.
    pub fn failures(&self) -> impl Iterator<Item = (&Trial, &str, &str)> {
        self.trials.iter().filter_map(|(trial, outcome)| match outcome {
            Outcome::Failed { what, repeat } => Some((trial, what.as_str(), repeat.as_str())),
            _ => None,
        })
    }

    /// What the backend does not have, each once.
    pub fn absent(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for (_, outcome) in &self.trials {
            if let Outcome::NotImplemented { what } = outcome
                && !all.contains(&what.as_str())
            {
                all.push(what);
            }
        }
        all
    }

    /// The sum over some trials.
    pub fn group(&self, which: impl Fn(&Trial) -> bool) -> Group {
        let mut group = Group::default();
        for (_, outcome) in self.trials.iter().filter(|(trial, _)| which(trial)) {
            group.trials += 1;
            match outcome {
                Outcome::Passed { worst } => {
                    group.passed += 1;
                    group.worst = group.worst.max(*worst);
                }
                Outcome::NotImplemented { .. } => group.absent += 1,
                Outcome::Failed { .. } => group.failed += 1,
                Outcome::Known { .. } => group.known += 1,
            }
        }
        group
    }
}

/// Failures of one kind that are shown; the others are counted.
const SHOWN: usize = 3;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |x: bool| if x { "yes" } else { "no" };
        let Self { version, system, command, backend, device, precision, align, loss_scale, seed, .. } = self;
        writeln!(f, "vaecf conform {version}, {system}")?;
        if !command.is_empty() {
            writeln!(f, "command    {command}")?;
        }
        writeln!(f, "backend    {backend}, {precision}, rows aligned to {align}, loss scale {loss_scale}")?;
        writeln!(f, "device     {device}")?;
        writeln!(f, "promises   same bits: {}; capture: {}", yes(self.deterministic), yes(self.capture))?;
        let sizes = if self.full { "all sizes" } else { "small sizes" };
        let only = self.filter.as_ref().map(|only| format!(", only lines with {only:?}")).unwrap_or_default();
        let oracle = if cfg!(feature = "oracle") { "" } else { ", without candle" };
        writeln!(f, "trials     {} random cases of each kind from seed {seed}, {sizes}{only}{oracle}\n", self.cases)?;
        let timed = if self.speed.is_empty() { "" } else { "   us a call" };
        writeln!(f, "operation             trials  passed  failed   known  absent     worst{timed}")?;
        for op in Op::ALL {
            let group = self.group(|trial| trial.case.op == op);
            if group.trials > 0 {
                self.line(f, op.name(), group, self.speed.iter().find(|s| s.op == op))?;
            }
        }
        self.line(f, "all", self.group(|_| true), None)?;
        writeln!(f, "\nworst: the largest error as a fraction of what is allowed")?;
        if let Some(speed) = self.speed.iter().find(|s| s.op == Op::DecodeLossGrad).or(self.speed.first()) {
            writeln!(f, "us a call: at {}, and alike", speed.case)?;
        }
        let absent = self.absent();
        if !absent.is_empty() {
            writeln!(f, "absent: {}", absent.join(", "))?;
        }
        for (trial, outcome) in &self.trials {
            if let Outcome::Known { reason } = outcome {
                writeln!(f, "known: {trial}: {reason}")?;
            }
        }
        let mut alike = HashMap::new();
        for (trial, what, repeat) in self.failures() {
            let count = alike.entry((trial.check, trial.case.op)).or_insert(0_usize);
            *count += 1;
            if *count <= SHOWN {
                let again = if command.is_empty() { "--trial" } else { &format!("{command} --trial") };
                writeln!(f, "\nFAILED {trial}\n  {what}\n  repeat: {again} '{repeat}'")?;
            }
        }
        let hidden: usize = alike.values().map(|count| count.saturating_sub(SHOWN)).sum();
        if hidden > 0 {
            writeln!(f, "\nand {hidden} more failures of the same operations")?;
        }
        writeln!(f, "\n{}", self.verdict())
    }
}

impl Report {
    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str, group: Group, speed: Option<&Speed>) -> fmt::Result {
        let Group { trials, passed, failed, known, absent, worst } = group;
        let worst = if passed > 0 { format!("{worst:.3}") } else { "-".into() };
        write!(f, "{name:<20}{trials:>8}{passed:>8}{failed:>8}{known:>8}{absent:>8}{worst:>10}")?;
        if let Some(Speed { seconds, flop, .. }) = speed {
            write!(f, "{:>12.1}", seconds * 1e6)?;
            if let Some(flop) = flop {
                write!(f, "  {:.1} GFLOP/s", flop / seconds / 1e9)?;
            }
        }
        writeln!(f)
    }
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
