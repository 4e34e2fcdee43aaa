//! Results to standard output, everything else to standard error; neither being closed is an error.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    path::Path,
};

use clap::{ColorChoice, ValueEnum};
use serde::Serialize;
use vaecf_core::{Error, Result, files};

/// Why a command ends before it is done.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something went wrong, and the error says what.
    Failed(Error),
    /// The parser has already said what is wrong with the command line.
    Told,
    /// Nobody reads the results any more.
    ClosedOutput,
    /// `compare --gate` found the second evaluation worse.
    Gate,
    /// Another process of this command has told what is wrong, and ended with this code.
    Exit(i32),
    /// Ctrl-C, and what had to be saved is saved.
    Interrupted,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The result of a command.
pub(crate) type Done<T = ()> = std::result::Result<T, Stop>;

/// How a result is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// What a person sees while a command runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ui {
    pub(crate) color: bool,
    /// Notes are shown: not `--quiet`.
    pub(crate) notes: bool,
    /// Details are shown: `--verbose`.
    pub(crate) details: bool,
}

impl Ui {
    pub(crate) fn new(color: ColorChoice) -> Self {
        Self { color: color != ColorChoice::Never, notes: true, details: false }
    }

    /// A line on standard error.
    pub(crate) fn note(&self, line: impl fmt::Display) {
        if self.notes {
            to_stderr(format_args!("{line}"));
        }
    }

    /// A line on standard error for those who asked for more.
    pub(crate) fn detail(&self, line: impl fmt::Display) {
        if self.details {
            to_stderr(format_args!("{line}"));
        }
    }

    /// A line on standard error about something that is probably not meant.
    pub(crate) fn warn(&self, line: impl fmt::Display) {
        if self.notes {
            let (on, off) = if self.color { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
            to_stderr(format_args!("{on}warning:{off} {line}"));
        }
    }

    /// The last line of a command that failed.
    pub(crate) fn error(&self, error: &Error) {
        let (on, off) = if self.color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        to_stderr(format_args!("{on}error:{off} {error}"));
    }

    /// Whether a progress bar can be drawn.
    pub(crate) fn is_live(&self) -> bool {
        self.notes && io::stderr().is_terminal()
    }
}

fn to_stderr(line: fmt::Arguments<'_>) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Text to standard output.
pub(crate) fn print(text: impl fmt::Display) -> Done {
    with_stdout(|out| write!(out, "{text}"))
}

/// A value as indented JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Done {
    let text = to_json(value)?;
    with_stdout(|out| writeln!(out, "{text}"))
}

/// A value as indented JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("a result cannot be written as JSON: {e}")))
}

fn with_stdout(write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) -> Done {
    let mut out = io::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).map_err(|e| stdout_failed(&e))
}

/// What a failed write to standard output means.
pub(crate) fn stdout_failed(error: &io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::ClosedOutput,
        io::ErrorKind::StorageFull => {
            Stop::Failed(Error::failure("standard output: the disk is full; free some space and run again"))
        }
        _ => Stop::Failed(Error::failure(format!("standard output: writing failed: {error}"))),
    }
}

/// Refuses a result file that exists, unless it may be replaced, and whatever is no file: results are
/// renamed into place, which would put an end to a device.
pub(crate) fn vacant(path: &Path, force: bool) -> Result<()> {
    let refusal = match path.metadata() {
        Ok(found) if !found.is_file() => "it is not a file; name one, or leave it out to write to standard output",
        Ok(_) if !force => "it exists; choose another, or add --force to replace it",
        Err(_) if !files::folder_of(path).exists() => "there is no such folder to write it to; make it first",
        _ => return Ok(()),
    };
    Err(Error::usage(format!("{}: {refusal}", path.display())))
}

/// A text file beside a result.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    files::write_text(path, text)
}

/// Rows as columns: the first to the left, the others to the right, as wide as their widest cell.
pub(crate) struct Table(pub(crate) Vec<Vec<String>>);

impl Table {
    /// A table with a line of titles.
    pub(crate) fn titled<const N: usize>(titles: [&str; N]) -> Self {
        Self(vec![titles.map(String::from).to_vec()])
    }

    /// Appends a line.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.0.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.0 {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            });
            writeln!(f, "{}", cells.collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that suits them.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut size, mut unit) = (count as f64, 0);
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", units[unit]) }
}

/// A panic is a bug; a person gets one sentence that says so.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        to_stderr(format_args!("error: a bug in vaecf, please report it: {}{place}", what.unwrap_or("unknown")));
    }));
}
