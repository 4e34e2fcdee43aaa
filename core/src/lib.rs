//! Collaborative filtering by variational autoencoders.
//!
//! Lists of "user touched item" become a [`dataset::Dataset`], which trains a model of the Mult-VAE
//! family (Liang, Krishnan, Hoffman, Jebara, WWW 2018) on any [`backend::Backend`].
//! This crate knows no particular backend, no command line and no global state.

pub mod backend;
#[cfg(feature = "files")]
pub mod checkpoint;
pub mod config;
pub mod dataset;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod events;
#[cfg(feature = "files")]
pub mod files;
pub mod layout;
pub mod math;
pub mod matrix;
pub mod metrics;
pub mod model;
pub mod popularity;
#[cfg(feature = "files")]
pub mod prepare;
#[cfg(feature = "files")]
pub mod prepared;
pub mod random;
#[cfg(feature = "files")]
pub mod ratings;
pub mod recommend;
pub mod report;
pub mod schedule;
pub mod split;
pub mod tensors;
pub mod trainer;

pub use error::{Error, Kind, Result};
