//! Backends from shared libraries.
//!
//! A plugin is a shared library with one exported function, which fills a table of function pointers:
//! one for each method of [`Backend`](crate::backend::Backend). [`abi`] is that border, in the terms of
//! C; `core/include/vaecf_backend.h` is made from it. A backend in Rust crosses it by
//! [`export_backend!`](crate::export_backend), and [`load()`] makes any of them a
//! [`Backend`](crate::backend::Backend) again. `docs/plugin.md` shows how to write one.
//!
//! `unsafe` is confined to this module: the rest of the crate sees a trait like any other.

pub mod abi;
pub mod export;
mod load;

pub use load::link;
#[cfg(feature = "plugins")]
pub use load::load;

/// What a backend is asked for when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which device of the backend, from 0.
    pub device: u32,
    /// Threads of the host; none where the backend decides.
    pub threads: Option<usize>,
    /// The working precision, as in [`Info::precision`](crate::backend::Info::precision), or `auto`.
    pub precision: String,
}

impl Default for Request {
    fn default() -> Self {
        Self { device: 0, threads: None, precision: "auto".into() }
    }
}
