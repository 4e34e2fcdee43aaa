//! One arena for all parameters; gradients and moments have the same shape.
//!
//! Weight matrices come first, biases after them, so that weight decay is a prefix, a finite check
//! and Adam are one pass, and data parallelism is one all-reduce. Rows are padded to the backend's
//! alignment; files hold them without padding.

use crate::{
    backend::{Buf, Curve, Mat},
    config::{Member, ModelConfig},
    error::{Error, Result},
};

/// A parameter's place in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in files: `encoder.0.weight`, `decoder.1.bias`.
    pub name: String,
    /// Rows: inputs of the layer, or 1 for a bias.
    pub rows: u32,
    /// Columns: outputs of the layer.
    pub cols: u32,
    /// Elements from row to row.
    pub stride: u32,
    /// First element.
    pub offset: u64,
}

impl Parameter {
    /// The parameter as a matrix in an arena.
    pub fn in_arena(&self, arena: Buf) -> Mat {
        Mat { buf: arena, rows: self.rows, cols: self.cols, stride: self.stride, offset: self.offset }
    }

    /// The arena range of one row.
    pub fn row(&self, row: u32) -> std::ops::Range<usize> {
        let start = self.offset as usize + row as usize * self.stride as usize;
        start..start + self.cols as usize
    }
}

/// One affine layer and the curve behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `[inputs, outputs]`.
    pub weight: Parameter,
    /// `[1, outputs]`.
    pub bias: Parameter,
    /// Curve of its output.
    pub curve: Curve,
}

/// All layers of a model, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// From the items to the latent statistics.
    pub encoder: Vec<Layer>,
    /// From the latent sample to the items.
    pub decoder: Vec<Layer>,
    /// Elements at the start of the arena that decay: the weights.
    pub decayed: u64,
    /// Elements of the arena.
    pub len: u64,
}

/// The smallest multiple of `align` that holds `n`.
pub fn padded(n: u32, align: u32) -> u32 {
    n.div_ceil(align) * align
}

impl Layout {
    /// The layout of a model of `items` items on a backend that wants rows aligned to `align` elements.
    ///
    /// # Errors
    /// Where the configuration cannot be a model, or there are no items.
    pub fn new(config: &ModelConfig, items: u32, align: u32) -> Result<Self> {
        config.check()?;
        if items == 0 {
            return Err(Error::data("a model of no items: the data set has no items"));
        }
        if items > u32::MAX - align {
            return Err(Error::data(format!("{items} items are more than a model can have")));
        }
        let variational = config.member.is_variational();
        let hidden = config.hidden.iter().copied();
        let stats = if variational { 2 * config.latent } else { config.latent };
        let encoder: Vec<u32> = [items].into_iter().chain(hidden.clone()).chain([stats]).collect();
        let decoder: Vec<u32> = [config.latent].into_iter().chain(hidden.rev()).chain([items]).collect();

        let mut len = 0;
        let mut place = |name: String, rows: u32, cols: u32| {
            let parameter = Parameter { name, rows, cols, stride: padded(cols, align), offset: len };
            len += u64::from(rows) * u64::from(parameter.stride);
            parameter
        };
        let mut weights = |part: &str, sizes: &[u32]| -> Vec<Parameter> {
            sizes.windows(2).enumerate().map(|(i, s)| place(format!("{part}.{i}.weight"), s[0], s[1])).collect()
        };
        let (encoder, decoder) = (weights("encoder", &encoder), weights("decoder", &decoder));
        let decayed = len;
        let mut layers = |weights: Vec<Parameter>, last: Curve| -> Vec<Layer> {
            let n = weights.len();
            let with_bias = |(i, weight): (usize, Parameter)| {
                let name = weight.name.replace("weight", "bias");
                let bias = Parameter { name, rows: 1, cols: weight.cols, stride: weight.stride, offset: len };
                len += u64::from(bias.stride);
                Layer { weight, bias, curve: if i + 1 == n { last } else { config.curve } }
            };
            weights.into_iter().enumerate().map(with_bias).collect()
        };
        let latent = if config.member == Member::MultDae { config.curve } else { Curve::Identity };
        let encoder = layers(encoder, latent);
        let decoder = layers(decoder, Curve::Identity);
        Ok(Self { encoder, decoder, decayed, len })
    }

    /// All layers, encoder first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// All parameters, weights before biases within a layer.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.layers().flat_map(|l| [&l.weight, &l.bias])
    }

    /// Parameters that are not padding.
    pub fn count(&self) -> u64 {
        self.parameters().map(|p| u64::from(p.rows) * u64::from(p.cols)).sum()
    }
}
