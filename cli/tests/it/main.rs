//! The real binary, from outside: what a person types, sees and finds in folders.

mod bad_input;
mod commands;
mod common;
mod plugins;
mod training;
