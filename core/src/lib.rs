//! Collaborative filtering by variational autoencoders.
//!
//! Lists of "user touched item" become a [`dataset::Dataset`], which trains a model of the Mult-VAE
//! family (Liang, Krishnan, Hoffman, Jebara, WWW 2018) on any [`backend::Backend`].
//! This crate knows no particular backend, no command line and no global state.

pub mod backend;
pub mod config;
pub mod dataset;
pub mod error;
pub mod events;
pub mod layout;
pub mod math;
pub mod matrix;
#[cfg(feature = "files")]
pub mod prepare;
#[cfg(feature = "files")]
pub mod prepared;
pub mod random;
#[cfg(feature = "files")]
pub mod ratings;
pub mod schedule;
pub mod split;

pub use error::{Error, Kind, Result};
