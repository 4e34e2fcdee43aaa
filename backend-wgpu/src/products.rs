//! Products of matrices: which kernels make them.

mod coop;
mod template;
#[cfg(test)]
mod tests;
mod trial;
mod tune;

use vaecf_core::backend::Result;

pub(crate) use self::template::{Ends, Which};
use self::{coop::Matrices, template::Variant, tune::Tuning};
use crate::{Options, Precision, context::Context};

/// The sizes of a product. All that may change its bits follows from them: how it is shared among parts, and whether
/// the device's own matrices make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) which: Which,
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
}

impl Shape {
    /// Products of two numbers.
    pub(crate) fn work(self) -> u64 {
        u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    /// Parts in which its sums are made, one beside the other: a small output with long sums has too few tiles for a
    /// large device.
    pub(crate) fn parts(self) -> u32 {
        const ENOUGH: u64 = 1 << 22;
        const SHORTEST: u32 = 512;
        let outputs = (u64::from(self.m) * u64::from(self.n)).max(1);
        (ENOUGH / outputs).min(u64::from(self.k / SHORTEST)).clamp(1, 64) as u32
    }
}

/// The text of the kernel that adds up parts of a product.
pub(crate) fn join(precision: Precision, which: Which) -> String {
    precision.common() + &template::join(which)
}

/// Kernels that make a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// By the template.
    Tiles(Variant),
    /// By the device's own matrices.
    Matrices(Matrices),
    /// By the template, and wrong.
    #[cfg(test)]
    Wrong(Variant),
}

impl Maker {
    /// Rows and columns that a workgroup makes.
    pub(crate) fn tile(self) -> [u32; 2] {
        match self {
            Self::Tiles(variant) => [variant.tile_m, variant.tile_n],
            Self::Matrices(matrices) => matrices.tile(),
            #[cfg(test)]
            Self::Wrong(variant) => [variant.tile_m, variant.tile_n],
        }
    }

    /// The name of a kernel.
    pub(crate) fn name(self, which: Which, ends: Ends) -> String {
        format!("product {which:?} {ends:?} {self:?}")
    }

    /// The whole text of a kernel.
    pub(crate) fn text(self, precision: Precision, which: Which, ends: Ends) -> String {
        let common = precision.common();
        match self {
            Self::Tiles(variant) => common + &template::product(which, ends, variant),
            Self::Matrices(matrices) => matrices.text(&common, which, ends),
            #[cfg(test)]
            Self::Wrong(variant) => {
                common + &template::product(which, ends, variant).replacen(" = fma(", " = -fma(", 1)
            }
        }
    }
}

/// What multiplies where nothing else was tried.
pub(crate) const PLAIN: &str = "own shaders";

/// Which kernels make which products.
#[derive(Debug)]
pub(crate) struct Products {
    /// What the device's own matrices are used as, or why they are not.
    units: std::result::Result<coop::Units, String>,
    tuning: Tuning,
    /// Makes everything, in a trial.
    only: Option<Maker>,
}

impl Products {
    pub(crate) async fn new(context: &Context, options: &Options) -> Result<Self> {
        let units = match options.precision {
            Precision::F32 => Err(String::new()),
            Precision::F16 => coop::find(context).await,
        };
        Ok(Self { units, tuning: Tuning::new(context, options), only: None })
    }

    /// Those of a trial, in which one maker makes everything.
    pub(crate) fn only(maker: Maker) -> Self {
        Self { units: Err(String::new()), tuning: Tuning::default(), only: Some(maker) }
    }

    /// What makes a product.
    pub(crate) fn maker(&mut self, context: &Context, precision: Precision, shape: Shape) -> Maker {
        if let Some(maker) = self.only {
            return maker;
        }
        let matrices = self.units.as_ref().ok().and_then(|units| units.matrices(shape));
        match matrices {
            Some(matrices) => Maker::Matrices(matrices),
            None => Maker::Tiles(self.tuning.variant(context, precision, shape)),
        }
    }

    /// What multiplies, in words.
    pub(crate) fn describe(&self) -> String {
        match &self.units {
            Ok(units) => units.to_string(),
            Err(why) if why.is_empty() => PLAIN.into(),
            Err(why) => format!("{PLAIN} ({why})"),
        }
    }
}
