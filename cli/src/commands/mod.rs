//! One file a command.

mod bench;
mod compare;
mod completions;
mod conform;
mod demo;
mod doctor;
mod evaluate;
mod plan;
mod prepare;
mod recommend;
mod train;

use clap::Subcommand;
use vaecf_core::{Result, device::Device, group::Group};

use crate::{
    backend, members,
    options::{Cli, Global},
    output::{Done, Ui},
    run_file::Settings,
};

/// What can be done, in the order in which it is done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a data set from ratings: read, filter, map ids, split
    Prepare(Box<prepare::Prepare>),
    /// Train a model on a prepared data set
    Train(Box<train::Train>),
    /// Measure a model on held-out users
    Evaluate(evaluate::Evaluate),
    /// Compare two evaluations, user by user
    Compare(compare::Compare),
    /// Recommend items for histories
    Recommend(Box<recommend::Recommend>),
    /// See it work on data that comes with it
    Demo(demo::Demo),
    /// Measure training and inference on this machine
    Bench(bench::Bench),
    /// Compute what many devices would make of a training step
    Plan(Box<plan::Plan>),
    /// Put a backend to the conformance suite
    Conform(conform::Conform),
    /// Show what was found on this machine
    Doctor(doctor::Doctor),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Write the man pages
    Man(completions::Man),
}

/// What every command has at hand.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) settings: Settings,
    pub(crate) ui: Ui,
    /// What this is a member of.
    pub(crate) group: Group,
    /// Sums over the group may travel in half precision.
    pub(crate) half_sums: bool,
}

impl Context {
    /// The seed that was asked for, or that of the published split.
    pub(crate) fn seed(&self) -> u64 {
        self.global.seed.unwrap_or(98765)
    }

    /// The device that was asked for.
    pub(crate) fn device(&self) -> Result<Device> {
        backend::open(self)
    }
}

/// Runs the chosen command.
pub(crate) fn run(cli: Cli, settings: Settings, ui: &Ui) -> Done {
    let Cli { global, command } = cli;
    let ui = Ui { notes: !global.quiet, details: global.verbose > 0, ..*ui };
    let context = Context { global, settings, ui, group: Group::default(), half_sums: false };
    match command {
        Command::Prepare(command) => command.run(context),
        Command::Train(command) => members::run(context, &command.several, |member| command.run(member)),
        Command::Evaluate(command) => members::run(context, &command.several, |member| command.run(&member)),
        Command::Compare(command) => command.run(&context),
        Command::Recommend(command) => members::run(context, &command.several, |member| command.run(&member)),
        Command::Demo(command) => command.run(&context),
        Command::Bench(command) => command.run(&context),
        Command::Plan(command) => command.run(&context),
        Command::Conform(command) => command.run(&context),
        Command::Doctor(command) => command.run(&context),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(&context),
    }
}
