//! A backend of one's own, begun: the CPU backend with one operation replaced.
//!
//! This is how to get from a working backend to another one: replace an operation, run
//! `vaecf conform --backend target/debug/examples/libplugin_rust.so`, replace the next. As a package of its
//! own it takes `crate-type = ["cdylib"]` in `Cargo.toml`, and `vaecf-core` without its default features.

use vaecf_core::{
    Error, Result,
    backend::{self, Backend, Curve, Host, HostMut, Info, Mat},
    forward_backend,
    plugin::Request,
};
use vaecf_cpu::Cpu;

/// The CPU backend, with products in plain loops.
pub(crate) struct Plain {
    inner: Cpu<f32>,
}

/// Opens the backend that was asked for.
///
/// # Errors
/// One sentence, which a person sees behind the path of the library.
pub(crate) fn open(request: &Request) -> Result<Plain> {
    if request.device > 0 {
        return Err(Error::usage(format!("there is one device, 0, and no {}", request.device)));
    }
    if !["auto", "f32"].contains(&request.precision.as_str()) {
        return Err(Error::usage(format!("it computes in f32, not in {}", request.precision)));
    }
    Ok(Plain { inner: Cpu::new(request.threads)? })
}

vaecf_core::export_backend!(open);

impl Plain {
    /// All from a matrix's first element to its last.
    fn read(&mut self, m: Mat) -> backend::Result<Vec<f32>> {
        let len = if m.rows == 0 { 0 } else { (m.rows as usize - 1) * m.stride as usize + m.cols as usize };
        let mut values = vec![0.0; len];
        self.inner.download(m.buf, m.offset, HostMut::F32(&mut values))?;
        Ok(values)
    }
}

impl Backend for Plain {
    // The operations that are not ours yet. `decode_loss_grad` and `recommend` are left out: their defaults
    // are made of the operations here, `linear` among them.
    forward_backend! { self, self.inner;
        alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    fn info(&self) -> Info {
        Info { name: "plugin_rust".into(), ..self.inner.info() }
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> backend::Result {
        // A backend with kernels of its own would run them on its buffers; here the values come to us.
        let (xs, ws, bs) = (self.read(x)?, self.read(w)?, self.read(b)?);
        let mut row: Vec<f32> = vec![0.0; y.cols as usize];
        for r in 0..y.rows as usize {
            row.copy_from_slice(&bs[..y.cols as usize]);
            for m in 0..w.rows as usize {
                let factor = xs[r * x.stride as usize + m];
                for (y, w) in row.iter_mut().zip(&ws[m * w.stride as usize..]) {
                    *y += factor * w;
                }
            }
            for y in &mut row {
                *y = match curve {
                    Curve::Identity => *y,
                    Curve::Tanh => y.tanh(),
                    // Not by `max`, which loses what is not a number.
                    Curve::Relu if *y < 0.0 => 0.0,
                    Curve::Relu => *y,
                };
            }
            // Row by row: what pads the rows stays zero.
            self.inner.upload(y.buf, y.offset + r as u64 * u64::from(y.stride), Host::F32(&row))?;
        }
        Ok(())
    }
}
