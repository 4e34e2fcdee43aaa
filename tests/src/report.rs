//! How trials end, which failures are known, and the table that a person reads.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};
use vaecf_core::backend::Info;

use crate::{
    op::Op,
    suite::{Check, Options, Trial, checked},
};

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

/// Whether a backend may leave it out and still be whole: also a group of as many devices as there are not.
fn is_optional(what: &str) -> bool {
    ["capture", "mark", "group"].contains(&what) || what.starts_with("group of ")
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
    pub fn new(info: &Info, options: &Options, planned: usize) -> Self {
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
            planned,
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
        Op::ALL.into_iter().filter(|op| checked(Check::Agrees, *op) && !matches!(op, Op::Step | Op::Group)).find(|op| {
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
            _ if absent.iter().any(|what| !is_optional(what)) => {
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

    /// What the backend does not have, each once; what it may leave out comes last.
    pub fn absent(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for (_, outcome) in &self.trials {
            if let Outcome::NotImplemented { what } = outcome
                && !all.contains(&what.as_str())
            {
                all.push(what);
            }
        }
        all.sort_by_key(|what| is_optional(what));
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
