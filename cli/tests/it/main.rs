//! The real binary, from outside: what a person types, sees and finds in folders.

mod bad_input;
#[path = "../../../tests/tests/built/mod.rs"]
mod built;
mod commands;
mod common;
mod conform;
#[cfg(target_os = "linux")]
mod cuda;
mod group;
mod plugins;
mod training;
#[cfg(target_os = "linux")]
mod wgpu;
