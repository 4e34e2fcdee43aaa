//! The least that each operation of a training step and of inference costs, and the time that it takes on a device that
//! copies and multiplies so fast: arithmetic, for which no such device is needed.
//!
//! `cargo run --release -p vaecf-benches --example roofline -- 4.3e12 790e12 2 500 4096 8192 24576`: bytes per second,
//! FLOP per second, bytes of an activation, users per batch. The model and the data have the published shape.

use std::sync::{Arc, Mutex, PoisonError};

use vaecf_benches::{
    measure::Bench,
    roofline::{Cost, Costs, Limit},
    synthetic::{self, Shape},
};
use vaecf_core::{
    Error, Result,
    backend::{
        self, Backend, Buf, Ceilings, Curve, Fault, Host, HostMut, Info, Likelihood, Master, Mat, Noise, Role, Rows,
    },
    config::ModelConfig,
    device::Device,
};

/// An operation, its shape and its cost.
type Row = (&'static str, String, Cost);

/// A device of paper: it computes nothing, and writes down what it would have to.
struct Paper {
    bytes: u32,
    events: f64,
    last: u32,
    rows: Arc<Mutex<Vec<Row>>>,
}

impl Paper {
    fn note(&self, name: &'static str, shape: String, cost: impl FnOnce(Costs) -> Cost) -> backend::Result {
        let costs = Costs::new(&self.info(), self.events);
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).push((name, shape, cost(costs)));
        Ok(())
    }
}

/// Rows of the batch and the sizes on both sides.
fn shape(rows: u32, from: u32, to: u32) -> String {
    format!("{rows} x {from} x {to}")
}

impl Backend for Paper {
    fn info(&self) -> Info {
        Info {
            name: "paper".into(),
            device: "paper".into(),
            precision: if self.bytes == 2 { "f16" } else { "f32" }.into(),
            master: Master::F32,
            memory: None,
            host_memory: false,
            act_bytes: self.bytes,
            weight_bytes: if self.bytes == 2 { 6 } else { 4 },
            align: 8,
            loss_scale: 1.0,
            deterministic: true,
            capture: false,
        }
    }

    fn alloc(&mut self, _role: Role, _len: u64) -> backend::Result<Buf> {
        self.last += 1;
        Ok(Buf(self.last))
    }

    fn free(&mut self, _buf: Buf) {}

    fn upload(&mut self, _dst: Buf, _at: u64, _src: Host<'_>) -> backend::Result {
        Ok(())
    }

    fn download(&mut self, _src: Buf, _at: u64, _dst: HostMut<'_>) -> backend::Result {
        Ok(())
    }

    fn sync(&mut self) -> backend::Result {
        Ok(())
    }

    fn encode_sparse(&mut self, x: Rows, w: Mat, _: Mat, _: Curve, noise: Noise, _: Buf, y: Mat) -> backend::Result {
        let keep = noise.keep;
        self.note("encode_sparse", shape(x.count, w.rows, w.cols), |c| c.keeping(keep).encode_sparse(x, w, y))
    }

    fn encode_sparse_grad(&mut self, x: Rows, dy: Mat, _: Noise, _: Buf, dw: Mat, _: Mat) -> backend::Result {
        self.note("encode_sparse_grad", shape(x.count, dw.rows, dw.cols), |c| c.encode_sparse_grad(x, dy, dw))
    }

    fn linear(&mut self, x: Mat, w: Mat, _: Mat, _: Curve, y: Mat) -> backend::Result {
        self.note("linear", shape(x.rows, w.rows, w.cols), |c| c.linear(x, w, y))
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, _: Mat) -> backend::Result {
        self.note("linear_grad_weight", shape(x.rows, dw.rows, dw.cols), |c| c.linear_grad_weight(x, dy, dw))
    }

    fn linear_grad_input(&mut self, dy: Mat, w: Mat, _: Mat, _: Curve, dx: Mat) -> backend::Result {
        self.note("linear_grad_input", shape(dy.rows, w.rows, w.cols), |c| c.linear_grad_input(dy, w, dx))
    }

    fn sample_latent(&mut self, x: Rows, stats: Mat, _: Noise, _: Buf, z: Mat, _: Mat) -> backend::Result {
        self.note("sample_latent", format!("{} x {}", x.count, z.cols), |c| c.sample_latent(stats, z))
    }

    fn sample_latent_grad(
        &mut self,
        x: Rows,
        stats: Mat,
        dz: Mat,
        _: Noise,
        _: Buf,
        _: Buf,
        _: Mat,
    ) -> backend::Result {
        self.note("sample_latent_grad", format!("{} x {}", x.count, dz.cols), |c| c.sample_latent_grad(stats, dz))
    }

    fn likelihood(&mut self, x: Rows, _: Likelihood, logits: Mat, _: Buf, _: Buf, _: Mat) -> backend::Result {
        self.note("likelihood", format!("{} x {}", x.count, logits.cols), |c| c.likelihood(x, logits))
    }

    fn adam(&mut self, _: Buf, _: Buf, _: Buf, _: Buf, len: u64, _: u64, _: Buf, _: Buf) -> backend::Result {
        self.note("adam", len.to_string(), |c| c.adam(len))
    }

    fn top_k(&mut self, scores: Mat, seen: Rows, k: u32, _: Buf, _: Buf) -> backend::Result {
        self.note("top_k", format!("{} x {}", scores.rows, scores.cols), |c| c.top_k(scores, seen, k))
    }

    fn ceilings(&mut self) -> backend::Result<Ceilings> {
        Err(Fault::Unsupported("ceilings"))
    }
}

fn main() -> Result<()> {
    let wrong =
        || Error::usage("wanted: bytes per second, FLOP per second, bytes of an activation, users per batch ...");
    let numbers: Vec<f64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [copy, products, bytes, batches @ ..] = &numbers[..] else { return Err(wrong()) };
    let ceilings = Ceilings { copy: *copy, products: *products };
    let most = batches.iter().copied().fold(0.0, f64::max);
    if batches.is_empty() || batches.iter().any(|batch| !(1.0..1e9).contains(batch)) {
        return Err(wrong());
    }
    let users = most as u32;
    let matrix = synthetic::matrix(Shape { users, events: 73 * u64::from(users), ..Shape::ML_20M }, 1)?;
    for &batch in batches {
        let rows = Arc::default();
        let events = matrix.events() as f64 / f64::from(users);
        let paper = Paper { bytes: *bytes as u32, events, last: 0, rows: Arc::clone(&rows) };
        let device = Device::new(Box::new(paper));
        let mut bench = Bench::new(&device, &matrix, &ModelConfig::default(), batch as u32, 100)?;
        let take = || std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner));
        take();
        bench.train(1, false)?;
        let training = take();
        bench.infer(1)?;
        for (what, rows) in [("training", training), ("inference", take())] {
            println!("{what}, {batch} users a batch");
            let mut sum = 0.0;
            for (name, shape, cost) in rows {
                let (seconds, limit) = cost.least(ceilings);
                let limit = if limit == Limit::Copy { "copy" } else { "products" };
                sum += seconds;
                let (mb, gflop) = (cost.bytes / 1e6, cost.flops / 1e9);
                println!("{name:<20} {shape:>22} {mb:>9.1} MB {gflop:>8.1} GFLOP {:>9.1} us  {limit}", 1e6 * seconds);
            }
            println!("{:<20} {:>65.1} us  {:.2} M users/s\n", "together", 1e6 * sum, batch / sum / 1e6);
        }
    }
    Ok(())
}
