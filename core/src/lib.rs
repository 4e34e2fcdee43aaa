//! Collaborative filtering by variational autoencoders.
//!
//! Lists of "user touched item" become a [`dataset::Dataset`], which trains a model of the Mult-VAE
//! family (Liang, Krishnan, Hoffman, Jebara, WWW 2018) on any [`backend::Backend`].
//! This crate knows no particular backend, no command line and no global state.
//!
//! In reading order: [`dataset`] holds what is trained on ([`matrix`], or from files `prepare` and
//! `ratings`), [`device`] owns a backend, [`trainer`] makes a [`model`] on it, [`evaluate`] measures it,
//! [`recommend`] asks it. The crate `vaecf-cpu` is a backend, and begins with an example of all of that
//! in memory. To serve a model that `vaecf train` wrote:
//!
//! ```no_run
//! # #[cfg(feature = "files")]
//! # fn serve(backend: Box<dyn vaecf_core::backend::Backend>) -> vaecf_core::Result<()> {
//! use vaecf_core::{checkpoint::ModelFolder, device::Device, matrix::Matrix, recommend::{Catalogue, Recommender}};
//!
//! let saved = ModelFolder::new("model/").read()?;
//! let device = Device::new(backend);
//! let model = saved.on(&device)?;
//! // 20 items a user, up to 256 users at once, nothing that a user has already.
//! let (k, batch, mask) = (20, 256, true);
//! let recommender = Recommender::new(&model, &saved.popularity, Catalogue::default(), mask, k, batch)?;
//! let known = saved.items.lookup();
//! let history: Vec<u32> = ["1196", "260"].iter().filter_map(|id| known.get(id).copied()).collect();
//! for (item, score) in &recommender.recommend(&Matrix::from_rows(model.items(), [history])?)?[0].items {
//!     println!("{} {score}", saved.items.name(*item));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The feature `files` (on by default) reads and writes files; without it the crate builds for wasm32.
//! The feature `plugins` (off by default) loads backends from shared libraries.

pub mod backend;
pub mod ceilings;
#[cfg(feature = "files")]
pub mod checkpoint;
pub mod config;
pub mod dataset;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod events;
mod feed;
#[cfg(feature = "files")]
pub mod files;
mod forward;
pub mod group;
pub mod layout;
pub mod math;
pub mod matrix;
pub mod metrics;
pub mod model;
pub mod paper;
pub mod plugin;
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
pub mod roofline;
pub mod scaling;
pub mod schedule;
pub mod split;
pub mod tensors;
pub mod trainer;

pub use error::{Error, Kind, Result};
