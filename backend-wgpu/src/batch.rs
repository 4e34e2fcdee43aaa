//! Rows of a batch and their noise, as kernels see them.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use vaecf_core::{
    backend::{self, Result},
    random,
};

use crate::Wgpu;

/// Functions of kernels that read the lists.
pub(crate) const ROWS: &str = include_str!("../shaders/rows.wgsl");
pub(crate) const EVENTS: &str = include_str!("../shaders/events.wgsl");

/// Rows of a batch, as they are bound: see `rows.wgsl` and `events.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct BoundRows {
    pub(crate) indptr: wgpu::Buffer,
    pub(crate) indices: wgpu::Buffer,
    pub(crate) values: wgpu::Buffer,
    pub(crate) users: wgpu::Buffer,
    pub(crate) first: u32,
    /// Which lists there are: 1 row starts, 2 values, 4 users.
    pub(crate) flags: u32,
}

/// `Rows` in `common.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Rows {
    first: u32,
    count: u32,
    flags: u32,
    unused: u32,
}

/// `Noise` in `common.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Noise {
    seed: [u32; 2],
    stream: u32,
    keep: f32,
    inverse_keep: f32,
    threshold: u32,
    unused: [u32; 2],
}

impl BoundRows {
    /// Some of the rows.
    pub(crate) fn part(&self, rows: &Range<u32>) -> Rows {
        Rows { first: self.first + rows.start, count: rows.end - rows.start, flags: self.flags, unused: 0 }
    }
}

impl From<backend::Noise> for Noise {
    fn from(noise: backend::Noise) -> Self {
        let backend::Noise { seed, stream, keep } = noise;
        Self {
            seed: [seed as u32, (seed >> 32) as u32],
            stream,
            keep,
            inverse_keep: 1.0 / keep,
            // That of 1 is beyond 32 bits, and there is no draw.
            threshold: random::threshold(keep) as u32,
            unused: [0; 2],
        }
    }
}

impl Wgpu {
    /// Rows of a batch, with something bound for each list that there is not.
    pub(crate) fn rows(&mut self, x: backend::Rows) -> Result<BoundRows> {
        let flags =
            u32::from(!x.indptr.is_none()) | u32::from(!x.values.is_none()) << 1 | u32::from(!x.users.is_none()) << 2;
        Ok(BoundRows {
            indptr: self.whole(x.indptr, "indices")?,
            indices: self.whole(x.indices, "indices")?,
            values: self.whole(x.values, "floats")?,
            users: self.whole(x.users, "indices")?,
            first: x.first,
            flags,
        })
    }
}
