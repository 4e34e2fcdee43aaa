//! What can be typed before any command is chosen.

use std::{ffi::OsString, fmt, io::IsTerminal, path::PathBuf, str::FromStr};

use clap::{ArgAction, Args, ColorChoice, Parser, ValueEnum};
use vaecf_core::ratings::{Format as Form, ReadOptions};

use crate::commands::Command;

/// Collaborative filtering by variational autoencoders: from a ratings file to recommendations.
#[derive(Debug, Parser)]
#[command(
    name = "vaecf",
    version,
    propagate_version = true,
    subcommand_required = true,
    args_override_self = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:
  vaecf demo                                        see it work on data that comes with it
  vaecf prepare ratings.csv --threshold '>3.5' -o data/
  vaecf train data/ -o model/
  vaecf evaluate model/ data/ --baseline
  vaecf recommend model/ histories.csv -k 20 -o recommendations.parquet

Exit codes: 0 done, 1 failure, 2 usage, 3 data, 4 device, 5 gate failed, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// What computes: auto (the first of these that works), cuda, wgpu, cpu, or a shared library such as ./libmine.so
    #[arg(long, global = true, value_name = "NAME", default_value = "auto")]
    pub(crate) backend: String,
    /// Which device of the backend: a number from 0 (the first unless given), or a part of its name, such as `rtx`
    #[arg(long, global = true, value_name = "N|NAME")]
    pub(crate) device: Option<Pick>,
    /// Which of the members of a group on this host this is
    #[arg(skip)]
    pub(crate) place: Place,
    /// Working precision; f64 is the reference, tf32 is f32 with products of operands rounded to 11 bits
    #[arg(long, global = true, value_enum, default_value_t = Precision::Auto)]
    pub(crate) precision: Precision,
    /// Threads of the CPU; all of them unless given
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Seed of everything random; 98765 unless given (`conform`: 1)
    #[arg(long, global = true, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colours; auto follows the terminal and NO_COLOR
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    /// Read options from a TOML file (`batch = 500`); the command line wins
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Global {
    /// The device that was asked for; unless one was, each member of a group on a host has one of its own.
    pub(crate) fn device(&self) -> Pick {
        self.device.clone().unwrap_or(Pick::Number(self.place.rank))
    }
}

/// Which device of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    /// By its number, from 0.
    Number(u32),
    /// By a part of its name, in capitals or not.
    Name(String),
}

impl FromStr for Pick {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.parse() {
            Ok(number) => Ok(Self::Number(number)),
            Err(_) if text.is_empty() => Err("a number, or a part of a device's name".into()),
            Err(_) => Ok(Self::Name(text.into())),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&threads| threads > 0).ok_or_else(|| "a whole number from 1".into())
}

/// Which of the members on one host this is; the only one unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    /// Members that compute on the same cores, this one among them.
    pub(crate) sharing: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self { rank: 0, world: 1, sharing: 1 }
    }
}

/// What is asked of a command that can run on several devices.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Several devices")]
pub(crate) struct Several {
    /// Devices that share the work, each as --device has it, such as 0,1,2,3; of the cpu, each takes its share of the cores.
    /// A launcher such as mpirun, srun or torchrun starts a process for each instead
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', conflicts_with = "device")]
    pub(crate) devices: Vec<Pick>,
    /// Seconds that a device or process is waited for before all of them give up
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = seconds)]
    pub(crate) group_timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|&seconds: &f64| seconds > 0.0 && seconds < 1e9);
    seconds.ok_or_else(|| "a number of seconds above 0".into())
}

/// The precision of activations and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    Auto,
    F32,
    F64,
    Tf32,
    F16,
    Bf16,
}

impl Precision {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// Whether to use colours: needed before anything is parsed, because parsing may fail in colour.
pub(crate) fn color_of(typed: &[OsString]) -> ColorChoice {
    let words: Vec<_> = typed.iter().filter_map(|word| word.to_str()).collect();
    let after = words.iter().position(|&word| word == "--color").and_then(|at| words.get(at + 1).copied());
    match words.iter().find_map(|word| word.strip_prefix("--color=")).or(after) {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ if std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty()) => ColorChoice::Never,
        _ if std::io::stderr().is_terminal() => ColorChoice::Auto,
        _ => ColorChoice::Never,
    }
}

/// How files of ratings are read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Reading")]
pub(crate) struct Reading {
    /// The form of the files, where their content does not tell: table, dat, list, netflix, msweb, parquet
    #[arg(long, value_name = "FORM")]
    input_format: Option<Form>,
    /// What stands between the columns of a table; `tab` is a tab
    #[arg(long, value_name = "CHAR", value_parser = delimiter)]
    delimiter: Option<char>,
    /// Whether a table has a header
    #[arg(long, value_name = "BOOL")]
    header: Option<bool>,
    /// Whether `"` around a field quotes it, or is a character like any other
    #[arg(long, value_name = "BOOL")]
    quoting: Option<bool>,
    /// The column of users: a name, or a number from 1
    #[arg(long, value_name = "COLUMN")]
    user: Option<String>,
    /// The column of items
    #[arg(long, value_name = "COLUMN")]
    item: Option<String>,
    /// The column of values
    #[arg(long, value_name = "COLUMN")]
    value: Option<String>,
    /// The column of times
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// Count lines that cannot be read instead of stopping
    #[arg(long)]
    skip_bad_lines: bool,
}

impl Reading {
    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions {
            format: self.input_format,
            delimiter: self.delimiter,
            header: self.header,
            quoting: self.quoting,
            user: self.user.clone(),
            item: self.item.clone(),
            value: self.value.clone(),
            time: self.time.clone(),
            skip_bad_lines: self.skip_bad_lines,
        }
    }
}

fn delimiter(text: &str) -> Result<char, String> {
    let mut chars = text.chars();
    match (text, chars.next(), chars.next()) {
        ("tab" | "\\t", ..) => Ok('\t'),
        (_, Some(one), None) => Ok(one),
        _ => Err("one character, or tab".into()),
    }
}
