//! A product on a device of its own: what a kernel does there, even to the device, is nobody else's matter.

use std::time::Instant;

use vaecf_core::backend::{Backend, Buf, Curve, Host, HostMut, Mat, Result, Role};

use super::{Maker, Products, Shape, Which};
use crate::{Options, Precision, Wgpu, context::Context};

/// The device, and operands: columns of wider matrices, between which there are no numbers.
#[derive(Debug)]
pub(crate) struct Trial {
    wgpu: Wgpu,
    shape: Shape,
    bufs: Vec<Buf>,
    a: Mat,
    b: Mat,
    beside: Mat,
    c: Mat,
    sums: Mat,
}

const NOTHING: Mat = Mat { buf: Buf::NONE, rows: 0, cols: 0, stride: 0, offset: 0 };

/// Columns of others before and behind those of a matrix.
const BEFORE: u32 = 4;
const BEHIND: u32 = 8;

impl Trial {
    pub(crate) async fn new(context: &Context, precision: Precision, shape: Shape, maker: Maker) -> Result<Self> {
        let context = context.another().await?;
        let options = Options { precision, ..Options::default() };
        let wgpu = Wgpu::on(context, &options, Products::only(maker))?;
        let [a, b, beside, c, sums] = [NOTHING; 5];
        let mut trial = Self { wgpu, shape, bufs: Vec::new(), a, b, beside, c, sums };
        trial.reshape(shape)?;
        Ok(trial)
    }

    /// Takes other operands.
    pub(crate) fn reshape(&mut self, shape: Shape) -> Result {
        let Shape { which, m, n, k } = shape;
        self.shape = shape;
        self.bufs.drain(..).for_each(|buf| self.wgpu.free(buf));
        let (a, b) = match which {
            Which::Forward => ((m, k), (k, n)),
            Which::GradWeight => ((k, m), (k, n)),
            Which::GradInput => ((m, k), (n, k)),
        };
        let (out, beside) = match which {
            Which::GradWeight => (Role::Grad, (1, n)),
            Which::Forward => (Role::Act, (1, n)),
            Which::GradInput => (Role::Act, (m, n)),
        };
        self.a = self.mat(Role::Act, a, 1)?;
        self.b = self.mat(Role::Act, b, 2)?;
        self.beside = self.mat(Role::Act, beside, 3)?;
        self.c = self.mat(out, (m, n), 4)?;
        self.sums = self.mat(Role::Grad, (1, n), 5)?;
        Ok(())
    }

    /// A matrix of numbers between -1 and 1.
    fn mat(&mut self, role: Role, (rows, cols): (u32, u32), seed: u32) -> Result<Mat> {
        let stride = BEFORE + cols.next_multiple_of(4) + BEHIND;
        let mut numbers = vec![f32::NAN; rows.max(1) as usize * stride as usize];
        let mut state = seed;
        for row in numbers.chunks_mut(stride as usize).take(rows as usize) {
            for number in &mut row[BEFORE as usize..(BEFORE + cols) as usize] {
                // Numerical Recipes, ranqd1; its upper bits.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *number = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            }
        }
        let buf = self.wgpu.alloc(role, numbers.len() as u64)?;
        self.bufs.push(buf);
        self.wgpu.upload(buf, 0, Host::F32(&numbers))?;
        Ok(Mat { buf, rows, cols, stride, offset: BEFORE.into() })
    }

    /// Makes the product, by some kernels.
    pub(crate) fn multiply(&mut self, maker: Maker) -> Result {
        self.wgpu.products = Products::only(maker);
        let Self { wgpu, a, b, beside, c, sums, .. } = self;
        match self.shape.which {
            Which::Forward => wgpu.op_linear(*a, *b, *beside, Curve::Identity, *c),
            Which::GradWeight => wgpu.op_linear_grad_weight(*a, *b, *c, *sums, false),
            Which::GradInput => wgpu.op_linear_grad_input(*a, *b, *beside, Curve::Tanh, *c),
        }
    }

    /// Seconds that it takes, so many times one after the other.
    pub(crate) fn seconds(&mut self, maker: Maker, times: u32) -> Result<f64> {
        self.wgpu.sync()?;
        let start = Instant::now();
        for _ in 0..times {
            self.multiply(maker)?;
        }
        self.wgpu.sync()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// All that there is of the output and around it, when the product was made over sevens.
    pub(crate) fn output(&mut self, maker: Maker) -> Result<Vec<f32>> {
        let mut numbers = vec![7.0; self.c.rows as usize * self.c.stride as usize];
        self.wgpu.upload(self.c.buf, 0, Host::F32(&numbers))?;
        self.multiply(maker)?;
        self.wgpu.download(self.c.buf, 0, HostMut::F32(&mut numbers))?;
        Ok(numbers)
    }
}
