//! Buffers by handle, in pieces, and matrices in them.

use std::collections::BTreeMap;

use vaecf_core::{
    backend::{Buf, Fault, Mat, Result, Role, ScaleState},
    math::SingleStep,
};

use crate::{Precision, context::Context, cut::Cuts};

/// What lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Single precision; of weights the master, beside which there may be a copy in half.
    Single,
    /// Half precision: activations.
    Half,
    Index,
    Step,
    Scale,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single | Self::Half => "floats",
            Self::Index => "indices",
            Self::Step => "steps",
            Self::Scale => "scales",
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Single | Self::Index => 4,
            Self::Half => 2,
            Self::Step => size_of::<SingleStep>() as u64,
            Self::Scale => size_of::<ScaleState>() as u64,
        }
    }
}

/// A buffer of the contract: pieces of equal length but the last. Lists are one piece.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) kind: Kind,
    pub(crate) len: u64,
    /// Elements of a piece.
    pub(crate) each: u64,
    pub(crate) pieces: Vec<wgpu::Buffer>,
    /// Weights in half precision, as operations read them.
    pub(crate) copy: Vec<wgpu::Buffer>,
}

impl Buffer {
    /// Pieces of single precision.
    pub(crate) fn in_pieces(&self, buf: Buf) -> Result<&[wgpu::Buffer]> {
        match self.kind {
            Kind::Single => Ok(&self.pieces),
            _ => Err(Fault::Other(format!("handle {} is not in single precision", buf.0))),
        }
    }

    /// The only piece of a list.
    pub(crate) fn whole(&self) -> &wgpu::Buffer {
        &self.pieces[0]
    }
}

/// A matrix, and the pieces it lies in.
#[derive(Clone, Debug)]
pub(crate) struct Floats {
    pub(crate) mat: Mat,
    each: u64,
    pieces: Vec<wgpu::Buffer>,
}

/// Where part of a matrix begins: a buffer to be bound whole, and the first *four*, a group of four elements.
#[derive(Clone, Debug)]
pub(crate) struct At {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) four: u32,
}

impl Floats {
    /// Where it is cut.
    pub(crate) fn cuts(&self) -> Cuts {
        Cuts::new(self.mat, self.each)
    }

    /// Where the cell at this row and column begins; the column is a multiple of four.
    pub(crate) fn at(&self, row: u32, col: u32) -> At {
        let element = self.mat.offset + u64::from(row) * u64::from(self.mat.stride) + u64::from(col);
        // A matrix without elements may stand at the end.
        let piece = ((element / self.each) as usize).min(self.pieces.len() - 1);
        let within = element - piece as u64 * self.each;
        At { buffer: self.pieces[piece].clone(), four: (within / 4) as u32 }
    }

    /// Fours from one row to the next.
    pub(crate) fn stride(&self) -> u32 {
        self.mat.stride / 4
    }

    /// Rows `from..from + rows` of it.
    pub(crate) fn rows(&self, from: u32, rows: u32) -> Self {
        let offset = self.mat.offset + u64::from(from) * u64::from(self.mat.stride);
        Self { mat: Mat { rows, offset, ..self.mat }, ..self.clone() }
    }
}

/// All buffers. Handles are never used twice.
#[derive(Debug, Default)]
pub(crate) struct Table {
    buffers: BTreeMap<u32, Buffer>,
    last: u32,
}

impl Table {
    pub(crate) fn alloc(
        &mut self,
        context: &Context,
        precision: Precision,
        piece: u64,
        role: Role,
        len: u64,
    ) -> Result<Buf> {
        let kind = match role {
            Role::Act if precision == Precision::F16 => Kind::Half,
            Role::Weight | Role::Grad | Role::Moment | Role::Act | Role::Value => Kind::Single,
            Role::Index => Kind::Index,
            Role::Step => Kind::Step,
            Role::Scale => Kind::Scale,
        };
        let bytes = kind.bytes() + if role == Role::Weight && precision == Precision::F16 { 2 } else { 0 };
        let wanted = len.saturating_mul(bytes);
        // Some drivers promise any amount; where it is not known what there is, it is not a tebibyte. To ask takes time.
        if wanted > 1 << 20 && wanted > context.memory().unwrap_or(1 << 40) {
            return Err(Fault::OutOfMemory { device: context.found.name.clone(), wanted });
        }
        let is_list = !matches!(role, Role::Weight | Role::Grad | Role::Moment | Role::Act);
        let longest = longest_list(context);
        if is_list && len > longest {
            return Err(Fault::Other(format!(
                "a list of {len} elements does not fit the {longest} that {} can bind at once; use a smaller batch, or \
                 stream the data",
                context.found.name
            )));
        }
        let handle = self.last.checked_add(1).ok_or_else(|| Fault::Other("out of buffer handles".into()))?;
        let each = if is_list { len.max(1) } else { piece };
        let zeroed = |bytes: u64| -> Result<Vec<wgpu::Buffer>> {
            // At least one, so that there is something to bind.
            let count = len.div_ceil(each).max(1);
            (0..count).map(|i| context.buffer(bytes * each.min(len - i * each))).collect()
        };
        let pieces = zeroed(kind.bytes())?;
        let copied = role == Role::Weight && precision == Precision::F16;
        let copy = if copied { zeroed(2)? } else { Vec::new() };
        self.buffers.insert(handle, Buffer { kind, len, each, pieces, copy });
        self.last = handle;
        Ok(Buf(handle))
    }

    /// Takes a buffer out. Its memory is given back when the last work that uses it is done.
    pub(crate) fn remove(&mut self, buf: Buf) -> Option<Buffer> {
        self.buffers.remove(&buf.0)
    }

    /// A buffer of a kind.
    pub(crate) fn get(&self, buf: Buf, wanted: &'static str) -> Result<&Buffer> {
        match self.buffers.get(&buf.0) {
            Some(buffer) if buffer.kind.name() == wanted => Ok(buffer),
            _ => Err(Fault::Other(format!("{} is not a live handle of {wanted}", buf.0))),
        }
    }

    /// The same, for a range of it.
    pub(crate) fn range(&self, buf: Buf, at: u64, len: u64, wanted: &'static str) -> Result<&Buffer> {
        let buffer = self.get(buf, wanted)?;
        if at.checked_add(len).is_none_or(|end| end > buffer.len) {
            let has = buffer.len;
            let message = format!("{len} {wanted} from {at} on, of the {has} that handle {} has", buf.0);
            return Err(Fault::Other(message));
        }
        Ok(buffer)
    }

    fn mat(&self, mat: Mat) -> Result<&Buffer> {
        let empty = mat.rows == 0 || mat.cols == 0;
        let len = if empty { 0 } else { u64::from(mat.rows - 1) * u64::from(mat.stride) + u64::from(mat.cols) };
        self.range(mat.buf, mat.offset, len, "floats")
    }

    /// A matrix of activations or weights, as operations read and write it.
    pub(crate) fn act(&self, mat: Mat, precision: Precision) -> Result<Floats> {
        let buffer = self.mat(mat)?;
        let (pieces, half) = match buffer.copy.is_empty() {
            true => (&buffer.pieces, buffer.kind == Kind::Half),
            false => (&buffer.copy, true),
        };
        if half != (precision == Precision::F16) {
            return Err(Fault::Other(format!("handle {} is not of activations or weights", mat.buf.0)));
        }
        Ok(Floats { mat, each: buffer.each, pieces: pieces.clone() })
    }

    /// A matrix in single precision: gradients, losses.
    pub(crate) fn single(&self, mat: Mat) -> Result<Floats> {
        let buffer = self.mat(mat)?;
        match buffer.kind {
            Kind::Single => Ok(Floats { mat, each: buffer.each, pieces: buffer.pieces.clone() }),
            _ => Err(Fault::Other(format!("handle {} is not in single precision", mat.buf.0))),
        }
    }
}

/// Elements of the longest list, which is bound as a whole.
pub(crate) fn longest_list(context: &Context) -> u64 {
    let limits = &context.limits;
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 16 * 4
}
