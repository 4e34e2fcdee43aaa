//! What every backend of vaecf is held to.

pub mod compare;
pub mod planted;
