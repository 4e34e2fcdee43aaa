//! A backend that panics: in `linear`, or, asked for f64, when it is opened.

use vaecf_core::{
    Result,
    backend::{self, Backend, Curve, Mat},
    forward_backend,
    plugin::Request,
};
use vaecf_cpu::Cpu;

struct Panics(Cpu<f32>);

impl Backend for Panics {
    forward_backend! { self, self.0;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    fn linear(&mut self, _: Mat, _: Mat, _: Mat, _: Curve, _: Mat) -> backend::Result {
        panic!("the card\nhas melted");
    }
}

fn open(request: &Request) -> Result<Panics> {
    assert!(request.precision != "f64", "nobody has tried that");
    Ok(Panics(Cpu::new(request.threads)?))
}

vaecf_core::export_backend!(open);
