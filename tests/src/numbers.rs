//! The number types of a backend, which decide what its results may be off by.

use vaecf_core::{
    backend::{Info, Master, Role},
    random::Generator,
};

use crate::compare::{Float, Tolerance};

/// How a backend stores and rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Numbers {
    /// Activations, logits and their gradients; weights where operations read them.
    pub(crate) act: Float,
    /// Masters, moments, gradients, losses, and every sum.
    pub(crate) sum: Float,
    /// What the operands of products are rounded to, where that is less than they are stored in.
    pub(crate) operands: Option<Float>,
}

impl Numbers {
    /// Those that a backend says it has.
    ///
    /// # Errors
    /// A precision that is none of those the contract names, or that its sizes contradict.
    pub(crate) fn of(info: &Info) -> Result<Self, String> {
        let sum = match info.master {
            Master::F32 => Float::F32,
            Master::F64 => Float::F64,
        };
        let (act, operands) = match (info.precision.as_str(), sum) {
            ("f64", Float::F64) => (Float::F64, None),
            ("f32", Float::F32) => (Float::F32, None),
            ("tf32", Float::F32) => (Float::F32, Some(Float::Tf32)),
            ("f16", Float::F32) => (Float::F16, None),
            ("bf16", Float::F32) => (Float::Bf16, None),
            (precision, _) => {
                return Err(format!(
                    "the precision {precision:?} with masters of {:?} is none of f64, f32, tf32, f16, bf16 as the contract has them",
                    info.master
                ));
            }
        };
        let bytes = match act {
            Float::F16 | Float::Bf16 => 2,
            Float::Tf32 | Float::F32 => 4,
            Float::F64 => 8,
        };
        if info.act_bytes != bytes {
            return Err(format!("{} takes {bytes} bytes, and not {} as it says", info.precision, info.act_bytes));
        }
        Ok(Self { act, sum, operands })
    }

    /// The type that holds a role's values; of weights, the copy that operations read.
    pub(crate) fn role(self, role: Role) -> Float {
        match role {
            Role::Act | Role::Weight => self.act,
            _ => self.sum,
        }
    }

    /// What a result of a role may be off by, before its terms and magnitudes are known. `through`: it
    /// was made from intermediate results that are stored as activations are.
    pub(crate) fn tolerance(self, role: Role, through: bool) -> Tolerance {
        // Adam is the only one that writes weights, and it writes their masters.
        let store = if role == Role::Weight { self.sum } else { self.role(role) };
        let tolerance = Tolerance::new(store, self.sum).factor(4.0);
        match (self.operands, through) {
            (Some(operands), _) => tolerance.operands(operands),
            (None, true) if self.act != self.sum => tolerance.operands(self.act),
            _ => tolerance,
        }
    }
}

/// A value as a type stores it.
pub(crate) fn round(float: Float, x: f64) -> f64 {
    match float {
        Float::F16 => half::f16::from_f64(x).to_f64(),
        Float::Bf16 => half::bf16::from_f64(x).to_f64(),
        Float::Tf32 | Float::F32 => f64::from(x as f32),
        Float::F64 => x,
    }
}

/// Uniform values in (-1.5, 1.5).
pub(crate) fn uniform(random: &mut Generator) -> f64 {
    3.0 * random.unit() - 1.5
}
