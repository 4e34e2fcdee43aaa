//! Named tensors on the host: what checkpoints hold, independent of any device's padding.

use std::collections::BTreeMap;

use crate::{
    backend::Master,
    error::{Error, Result},
    layout::{Layout, Parameter},
};

/// The numbers of a tensor, in the precision they were computed in.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    fn get(&self, at: usize) -> f64 {
        match self {
            Self::F32(v) => f64::from(v[at]),
            Self::F64(v) => v[at],
        }
    }
}

/// A dense matrix; a bias has one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Row-major, `rows * cols`.
    pub values: Values,
}

/// Tensors by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors(pub BTreeMap<String, Tensor>);

impl Tensors {
    /// The precision of the numbers; none where there are none.
    pub(crate) fn master(&self) -> Option<Master> {
        self.0.values().next().map(|tensor| match tensor.values {
            Values::F32(_) => Master::F32,
            Values::F64(_) => Master::F64,
        })
    }

    /// What tells them from others: a checksum of names, shapes and numbers.
    pub(crate) fn checksum(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        for (name, tensor) in &self.0 {
            sum.update(name.as_bytes());
            sum.update(bytemuck::bytes_of(&[tensor.rows, tensor.cols]));
            match &tensor.values {
                Values::F32(values) => sum.update(bytemuck::cast_slice(values)),
                Values::F64(values) => sum.update(bytemuck::cast_slice(values)),
            }
        }
        sum.finalize()
    }

    /// Takes the parameters of a layout out of an arena.
    pub(crate) fn gather<T: Copy>(layout: &Layout, arena: &[T], wrap: impl Fn(Vec<T>) -> Values) -> Self {
        let tensor = |p: &Parameter| {
            let values = (0..p.rows).flat_map(|r| &arena[p.row(r)]).copied().collect();
            (p.name.clone(), Tensor { rows: p.rows, cols: p.cols, values: wrap(values) })
        };
        Self(layout.parameters().map(tensor).collect())
    }

    /// Lays the parameters of a layout out in an arena, zero between them.
    pub(crate) fn scatter(&self, layout: &Layout) -> Result<Vec<f64>> {
        let mut arena = vec![0.0; layout.len as usize];
        for p in layout.parameters() {
            let tensor = self.0.get(&p.name).ok_or_else(|| Error::data(format!("there is no tensor {}", p.name)))?;
            let cols = p.cols as usize;
            if (tensor.rows, tensor.cols) != (p.rows, p.cols) || tensor.values.len() != p.rows as usize * cols {
                return Err(Error::data(format!(
                    "{} is {} x {}, this model needs {} x {}: the file belongs to a model of another shape",
                    p.name, tensor.rows, tensor.cols, p.rows, p.cols
                )));
            }
            for row in 0..p.rows {
                for (col, to) in arena[p.row(row)].iter_mut().enumerate() {
                    *to = tensor.values.get(row as usize * cols + col);
                    if !to.is_finite() {
                        return Err(Error::data(format!(
                            "{} holds {to} at row {row}, column {col}: the file is damaged",
                            p.name
                        )));
                    }
                }
            }
        }
        Ok(arena)
    }
}
