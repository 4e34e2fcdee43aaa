//! The limit of this machine: the `gemm` crate's own rate on the shapes of the output layer.

use std::time::Instant;

use ::gemm::Parallelism;
use serde::Serialize;

use crate::measure::Median;

/// GFLOP/s of the three products of the output layer, each by itself.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gemm {
    /// `[B, H] x [H, I]`.
    pub forward: f64,
    /// `[H, B] x [B, I]`.
    pub grad_weight: f64,
    /// `[B, I] x [I, H]`.
    pub grad_input: f64,
}

impl Gemm {
    /// All three one after the other, as a step needs them.
    pub fn together(self) -> f64 {
        3.0 / (1.0 / self.forward + 1.0 / self.grad_weight + 1.0 / self.grad_input)
    }

    /// The best of the three: what the crate can do on this machine.
    pub fn best(self) -> f64 {
        self.forward.max(self.grad_weight).max(self.grad_input)
    }
}

/// Operands of the three products, allocated once.
pub struct Products {
    batch: usize,
    hidden: usize,
    items: usize,
    stride: usize,
    g: Vec<f32>,
    w: Vec<f32>,
    f: Vec<f32>,
    dg: Vec<f32>,
    pool: rayon::ThreadPool,
}

impl Products {
    /// Random operands; zeros would run faster.
    ///
    /// # Errors
    /// Where threads cannot be started.
    pub fn new(batch: u32, hidden: u32, items: u32, threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let (batch, hidden, items) = (batch as usize, hidden as usize, items as usize);
        let stride = items.next_multiple_of(16);
        let mut state = 1_u32;
        let mut random = |n: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 16_777_216.0 - 0.5
            };
            (0..n).map(|_| next()).collect()
        };
        Ok(Self {
            g: random(batch * hidden),
            w: random(hidden * stride),
            f: random(batch * stride),
            dg: random(batch * hidden),
            batch,
            hidden,
            items,
            stride,
            pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build()?,
        })
    }

    /// The rate of each product, median of `rounds` runs.
    pub fn measure(&mut self, rounds: usize) -> Gemm {
        let Self { batch, hidden, items, stride, g, w, f, dg, pool } = self;
        let (b, h, i) = (*batch, *hidden, *items);
        let (hs, is) = (h as isize, *stride as isize);
        let parallel = Parallelism::Rayon(pool.current_num_threads());
        let flops = 2.0 * (b * h * i) as f64;
        let rate = |product: &mut dyn FnMut()| {
            product();
            let seconds = (0..rounds).map(|_| {
                let start = Instant::now();
                product();
                start.elapsed().as_secs_f64()
            });
            flops / Median::of(seconds.collect()).median / 1e9
        };
        // Row-major [m, k] x [k, n], by strides (row, column).
        let gemm = |m: usize,
                    n: usize,
                    k: usize,
                    c: (*mut f32, isize),
                    a: (*const f32, isize, isize),
                    b: (*const f32, isize, isize)| {
            // SAFETY: the callers below pass operands of exactly these sizes and strides, and `c` is
            // exclusively borrowed and overlaps neither.
            unsafe {
                ::gemm::gemm(
                    m, n, k, c.0, 1, c.1, false, a.0, a.2, a.1, b.0, b.2, b.1, 0.0, 1.0, false, false, false, parallel,
                );
            }
        };
        pool.install(|| {
            let forward = rate(&mut || gemm(b, i, h, (f.as_mut_ptr(), is), (g.as_ptr(), hs, 1), (w.as_ptr(), is, 1)));
            let grad_weight =
                rate(&mut || gemm(h, i, b, (w.as_mut_ptr(), is), (g.as_ptr(), 1, hs), (f.as_ptr(), is, 1)));
            let grad_input =
                rate(&mut || gemm(b, h, i, (dg.as_mut_ptr(), hs), (f.as_ptr(), is, 1), (w.as_ptr(), 1, is)));
            Gemm { forward, grad_weight, grad_input }
        })
    }
}
