//! The CUDA backend.

pub mod blob;
