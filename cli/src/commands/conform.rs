//! `vaecf conform`: does a backend do what the contract says?
//!
//! The trials run in a process of their own, so that a backend that crashes, hangs or ends the process is one
//! failed trial, and the others still run. That process is this program again, with `--worker N`: it runs
//! the trials from number N on, and tells of each in a line.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use vaecf_core::{Error, Kind, Result};
use vaecf_tests::{Known, Options, Outcome, Report, Speed, Trial, judge, plan, run_known, speed};

use super::Context;
use crate::{
    backend, interrupt,
    options::{Global, Precision},
    output::{Done, Format, Stop, print, print_json, stdout_failed},
};

/// Put a backend to the conformance suite: every operation against the reference, with a table for a bug
/// report.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf conform                                     the backend that would be chosen
  vaecf conform --backend ./libmine.so              a backend of your own
  vaecf conform --only 'agrees linear '             some of the trials
  vaecf conform --list                              the trials' lines
  vaecf conform --trial 'agrees linear users=3 inner=1 outer=1'

Exits with 5 where a trial fails, or where none passes because what it needs is absent. What a backend does not
have is listed, and is no failure.")]
pub(crate) struct Conform {
    /// Only trials whose line contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// One trial, by its line
    #[arg(long, value_name = "LINE", conflicts_with_all = ["only", "list", "cases", "small"])]
    trial: Option<Trial>,
    /// Print the lines of the trials and run nothing
    #[arg(long)]
    list: bool,
    /// Random cases of each operation and check, drawn from --seed (1 unless given)
    #[arg(long, value_name = "N", default_value_t = 24)]
    cases: u32,
    /// About three quarters of the trials, of sizes up to a hundred: for slow devices, or a quick look
    #[arg(long)]
    small: bool,
    /// Failures that are expected: a TOML file whose list `known` has backend, device, trial, reason
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Seconds that one trial may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Run the trials from this one on, and tell of each in a line
    #[arg(long, hide = true, value_name = "N")]
    worker: Option<usize>,
}

/// What the process that runs the trials tells: one line each, after [`MARK`].
#[derive(Debug, Deserialize, Serialize)]
enum Told {
    /// The backend is open; a report without trials.
    Open(Box<Report>),
    /// A trial begins.
    Begin(usize),
    /// It has ended.
    End(usize, Outcome),
    /// All trials are done, and this is how long operations take.
    Speed(Vec<Speed>),
}

/// Begins a line that is meant for this program: a backend may print lines of its own.
const MARK: &str = "@vaecf ";

/// Processes that may end before their time until the rest is given up.
const CRASHES: u32 = 25;

/// Trials that may take too long until the rest is given up.
const HANGS: u32 = 3;

impl Conform {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let options = Options {
            seed: context.global.seed.unwrap_or(1),
            cases: self.cases,
            full: !self.small,
            filter: self.only.clone(),
            known: self.known()?,
            ..Options::default()
        };
        let trials = match &self.trial {
            Some(trial) => vec![trial.clone()],
            None => plan(&options),
        };
        if trials.is_empty() {
            let only = self.only.as_deref().unwrap_or_default();
            return Err(Error::usage(format!("no trial's line contains {only:?}; --list shows them all")).into());
        }
        if self.list {
            let lines: Vec<String> = trials.iter().map(Trial::to_string).collect();
            return match self.format {
                Format::Json => print_json(&lines),
                Format::Table => print(lines.join("\n") + "\n"),
            };
        }
        if let Some(from) = self.worker {
            return self.work(context, &options, &trials, from);
        }
        let report = self.watch(context, &options, &trials)?;
        if let Some(entry) = self.unmatched(&options, &report) {
            context.ui.warn(format_args!("the known failure {:?} matches no trial of this run", entry.trial));
        }
        match (self.format, self.trial.is_some(), report.trials.first()) {
            (Format::Json, true, Some((_, outcome))) => print_json(outcome),
            (Format::Table, true, Some((_, outcome))) => print(told(outcome)),
            (Format::Json, ..) => print_json(&report),
            (Format::Table, ..) => print(&report),
        }?;
        match (interrupt::asked(), report.passes()) {
            (true, _) => Err(Stop::Interrupted),
            (_, true) => Ok(()),
            // Of a single trial that is known to fail, that is the expected end.
            _ if matches!(&report.trials[..], [(_, Outcome::Known { .. })]) => Ok(()),
            _ => Err(Stop::Gate),
        }
    }

    /// The project's own list, and the one that was given.
    fn known(&self) -> Result<Vec<Known>> {
        let mut known = Known::listed().map_err(Error::failure)?;
        if let Some(path) = &self.known {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
            let wrong = |e| Error::data(format!("{}, {e}; see tests/known.toml for the form", path.display()));
            known.extend(Known::parse(&text).map_err(wrong)?);
        }
        Ok(known)
    }

    /// An entry for this backend that no trial has met, where all trials were run.
    fn unmatched<'a>(&self, options: &'a Options, report: &Report) -> Option<&'a Known> {
        let whole = self.only.is_none() && self.trial.is_none();
        options.known.iter().find(|known| {
            let here = known.backend == report.backend && report.device.contains(&known.device);
            whole && here && !report.trials.iter().any(|(trial, _)| trial.to_string().contains(&known.trial))
        })
    }

    /// Runs the trials from one on, here. A backend is opened anew after a failure, which may have broken it.
    fn work(&self, context: &Context, options: &Options, trials: &[Trial], from: usize) -> Done {
        let mut backend = backend::choose(&context.global, &context.ui)?;
        let name = backend.info().name;
        let members = |rank| backend::member(&context.global, &name, rank, &context.ui);
        let report = Report::new(&backend.info(), options, trials.len());
        tell(&Told::Open(Box::new(report)))?;
        for (at, trial) in trials.iter().enumerate().skip(from) {
            tell(&Told::Begin(at))?;
            let outcome = run_known(&mut *backend, Some(&members), &options.known, trial);
            let failed = matches!(outcome, Outcome::Failed { .. });
            tell(&Told::End(at, outcome))?;
            if failed {
                drop(backend);
                backend = backend::choose(&context.global, &context.ui)?;
            }
        }
        let timed = self.trial.is_none() && self.only.is_none();
        tell(&Told::Speed(if timed { speed(&mut *backend, options.full) } else { Vec::new() }))
    }

    /// Has the trials run by other processes, one after the other where one ends before its time.
    fn watch(&self, context: &Context, options: &Options, trials: &[Trial]) -> Done<Report> {
        interrupt::listen()?;
        let bar = if context.ui.is_live() && trials.len() > 1 { bar(trials.len()) } else { ProgressBar::hidden() };
        let mut report: Option<Report> = None;
        let (mut next, mut failed, mut crashes, mut hangs) = (0, 0, 0, 0);
        while next < trials.len() && crashes < CRASHES && hangs < HANGS && !interrupt::asked() {
            let mut worker = Worker::start(next, report.is_none())?;
            let mut running = None;
            let end = loop {
                let limit = Duration::from_secs(self.limit);
                match worker.hear(limit) {
                    Heard::Told(Told::Open(open)) => {
                        report.get_or_insert_with(|| Report { command: command(&context.global), ..*open });
                    }
                    Heard::Told(Told::Begin(at)) => {
                        running = Some(at);
                        context.ui.detail(format_args!("{}", trials[at]));
                    }
                    Heard::Told(Told::End(at, outcome)) => {
                        failed += u32::from(matches!(outcome, Outcome::Failed { .. }));
                        bar.inc(1);
                        bar.set_message(format!("{failed} failed"));
                        report.iter_mut().for_each(|report| report.trials.push((trials[at].clone(), outcome.clone())));
                        (next, running) = (at + 1, None);
                    }
                    Heard::Told(Told::Speed(speed)) => {
                        report.iter_mut().for_each(|report| report.speed.clone_from(&speed));
                    }
                    Heard::Late => {
                        hangs += 1;
                        worker.kill();
                        break format!("it did not end within {} seconds", self.limit);
                    }
                    Heard::Interrupted => {
                        worker.kill();
                        break String::new();
                    }
                    Heard::Gone(status) => {
                        crashes += u32::from(next < trials.len());
                        break ended(status);
                    }
                }
            };
            let Some(report) = &mut report else {
                return Err(match worker.code() {
                    // It has said itself why it could not open the backend.
                    Some(code @ 1..) => Stop::Exit(code),
                    _ if interrupt::asked() => Stop::Interrupted,
                    _ => Error::new(Kind::Device, format!("{}: {end} while it was opened", context.global.backend))
                        .into(),
                });
            };
            if interrupt::asked() {
                break;
            }
            if let Some(at) = running {
                let outcome = Outcome::Failed { what: end, repeat: trials[at].to_string() };
                let outcome = judge(&options.known, &report.backend, &report.device, &trials[at], outcome);
                failed += u32::from(matches!(outcome, Outcome::Failed { .. }));
                bar.inc(1);
                report.trials.push((trials[at].clone(), outcome));
                next = at + 1;
            }
        }
        bar.finish_and_clear();
        report.ok_or(Stop::Interrupted)
    }
}

/// The process that runs the trials.
struct Worker {
    child: Child,
    lines: Receiver<Told>,
}

/// What comes from it next.
enum Heard {
    Told(Told),
    /// Nothing, for longer than a trial may take.
    Late,
    Interrupted,
    /// It has ended.
    Gone(ExitStatus),
}

impl Worker {
    /// Starts at a trial. Only the first says what it has to say; the others would say it again.
    fn start(from: usize, aloud: bool) -> Result<Self> {
        let failed = |e: &std::io::Error| Error::failure(format!("the process for the trials did not start: {e}"));
        let this = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut command = Command::new(this);
        command.args(std::env::args_os().skip(1)).arg("--worker").arg(from.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if !aloud {
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn().map_err(|e| failed(&e))?;
        let (send, lines) = channel();
        let out = child.stdout.take();
        std::thread::spawn(move || {
            let lines = out.into_iter().flat_map(|out| BufReader::new(out).lines());
            for line in lines.map_while(std::result::Result::ok) {
                // What a backend prints without an end of line stands before ours.
                let ours = line.split_once(MARK).and_then(|(_, text)| serde_json::from_str(text).ok());
                if ours.is_some_and(|told| send.send(told).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn hear(&mut self, limit: Duration) -> Heard {
        let start = Instant::now();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(200)) {
                Ok(told) => return Heard::Told(told),
                Err(RecvTimeoutError::Timeout) if interrupt::asked() => return Heard::Interrupted,
                Err(RecvTimeoutError::Timeout) if start.elapsed() > limit => return Heard::Late,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => match self.child.wait() {
                    Err(_) => return Heard::Late,
                    Ok(status) => {
                        // An interrupt from the terminal reaches both processes, the other perhaps first.
                        std::thread::sleep(Duration::from_millis(if status.success() { 0 } else { 100 }));
                        return if interrupt::asked() { Heard::Interrupted } else { Heard::Gone(status) };
                    }
                },
            }
        }
    }

    fn kill(&mut self) {
        // It may have ended by itself meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The exit code, where it has ended with one.
    fn code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A line for the process that watches.
fn tell(told: &Told) -> Done {
    let text = serde_json::to_string(told).map_err(|e| Error::failure(format!("a result cannot be told: {e}")))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").and_then(|()| out.flush()).map_err(|e| stdout_failed(&e))
}

/// How a process ended that had more to do.
fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("the backend crashed the process (signal {signal})");
    }
    format!("the backend ended the process (code {})", status.code().unwrap_or(-1))
}

/// The command that asks for the same backend; a trial's line can be added.
fn command(global: &Global) -> String {
    let quoted = |text: &str| match text.contains(|c: char| c.is_whitespace() || "'\"\\$*?;&|<>()".contains(c)) {
        true => format!("'{}'", text.replace('\'', r"'\''")),
        false => text.to_owned(),
    };
    let mut command = String::from("vaecf conform");
    if global.backend != "auto" {
        command += &format!(" --backend {}", quoted(&global.backend));
    }
    if let Some(device) = &global.device {
        command += &format!(" --device {}", quoted(&device.to_string()));
    }
    if global.precision != Precision::Auto {
        command += &format!(" --precision {}", global.precision.name());
    }
    if let Some(threads) = global.threads {
        command += &format!(" --threads {threads}");
    }
    command
}

fn bar(trials: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} trials, {msg}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(trials as u64).with_style(style).with_message("0 failed")
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed { worst } => format!("passed; the worst error is {worst:.3} of what is allowed\n"),
        Outcome::NotImplemented { what } => format!("absent: {what}\n"),
        Outcome::Known { reason } => format!("failed, as is known: {reason}\n"),
        Outcome::Failed { what, .. } => format!("FAILED: {what}\n"),
    }
}
