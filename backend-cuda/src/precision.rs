//! What is computed in.

/// What activations, logits and the weights that operations read are stored in, and how they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Single precision.
    F32,
    /// Stored in single precision, multiplied with 11 bits; compute capability 8.0 and later.
    Tf32,
    /// Half precision of 11 bits, with a loss scale.
    #[default]
    F16,
    /// Half precision of 8 bits and the range of single precision; compute capability 8.0 and later.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Tf32, Self::F16, Self::Bf16];

    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// What things are stored in, as the kernels' names have it.
    pub(crate) fn storage(self) -> &'static str {
        match self {
            Self::F32 | Self::Tf32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn bytes(self) -> u32 {
        if self.is_half() { 2 } else { 4 }
    }
}
