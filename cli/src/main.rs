//! The command line: what was typed becomes calls of the library, and what those say becomes tables,
//! files and exit codes.

// Both macros panic where the other end of the pipe is gone; see `output`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod backend;
mod commands;
mod interrupt;
mod members;
#[cfg(feature = "mpi")]
mod mpi;
mod options;
mod output;
mod run_file;
mod sheet;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};
use output::{Stop, Ui};
use vaecf_core::{Error, Kind};

fn main() -> ExitCode {
    leave_the_display_alone();
    output::report_panics();
    let code = std::panic::catch_unwind(|| run(std::env::args_os().collect())).unwrap_or(1);
    #[cfg(feature = "mpi")]
    mpi::end(code);
    ExitCode::from(code)
}

/// Where nobody is at a display, Mesa's Vulkan layer that looks for the one in use says on standard error that there is
/// none. It is for programs that show something.
fn leave_the_display_alone() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the only thread yet, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Runs one command; the exit code is what is left of it.
fn run(typed: Vec<OsString>) -> u8 {
    let color = options::color_of(&typed);
    let command = options::Cli::command().color(color);
    let ui = Ui::new(color);
    let done = run_file::arguments(&command, typed).map_err(Stop::from).and_then(|all| {
        let matches = match command.clone().try_get_matches_from(all) {
            Ok(matches) => matches,
            Err(e) => {
                // Help and version are results: a closed pipe is no error. Everything else is a usage error.
                let _ = e.print();
                return if e.use_stderr() { Err(Stop::Told) } else { Ok(()) };
            }
        };
        let cli = options::Cli::from_arg_matches(&matches).map_err(|e| Error::usage(e.to_string()))?;
        let settings = run_file::settings(&command, &matches);
        commands::run(cli, settings, &ui)
    });
    match done {
        Ok(()) | Err(Stop::ClosedOutput) => 0,
        Err(Stop::Told) => 2,
        Err(Stop::Gate) => 5,
        Err(Stop::Exit(code)) => u8::try_from(code).unwrap_or(1),
        Err(Stop::Interrupted) => 130,
        Err(Stop::Failed(error)) => {
            ui.error(&error);
            match error.kind() {
                Kind::Failure => 1,
                Kind::Usage => 2,
                Kind::Data => 3,
                Kind::Device => 4,
            }
        }
    }
}
