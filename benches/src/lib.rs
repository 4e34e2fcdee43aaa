//! Measuring: every figure beside its peer or its limit, taken in the same run.

pub mod gemm;
pub mod machine;
pub mod measure;
pub mod peer;
pub mod run;
pub mod scaling;
pub mod synthetic;
pub mod timed;
