//! A backend of your own, in a program of your own.
//!
//! It wraps the CPU's and changes one operation: every affine layer is computed by plain loops, and
//! counted. The suite says whether it still does what the contract asks for; then it trains a model and
//! recommends with it. Run it with `cargo run --release -p vaecf-tests --example custom_backend`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use vaecf_core::{
    Result,
    backend::{self, Backend, Curve, Host, HostMut, Info, Mat},
    config::{ModelConfig, TrainConfig},
    dataset::Dataset,
    device::Device,
    forward_backend,
    matrix::Matrix,
    popularity::Popularity,
    recommend::{Catalogue, Recommender},
    trainer::Trainer,
};
use vaecf_cpu::Cpu;
use vaecf_tests::{Options, suite};

/// The CPU backend with affine layers of its own.
struct Mine {
    cpu: Cpu<f32>,
    /// Multiplications so far; shared, because the device will own the backend.
    multiplications: Arc<AtomicU64>,
}

impl Mine {
    /// The cells of a matrix: rows lie `stride` elements apart, of which `cols` count.
    fn read(&mut self, mat: Mat) -> backend::Result<Vec<f32>> {
        let mut cells = vec![0.0; mat.rows as usize * mat.cols as usize];
        for (row, cells) in (0_u64..).zip(cells.chunks_exact_mut(mat.cols as usize)) {
            self.cpu.download(mat.buf, mat.offset + row * u64::from(mat.stride), HostMut::F32(cells))?;
        }
        Ok(cells)
    }
}

impl Backend for Mine {
    // All that stays as it is. The fused output layer is not among it: its default is made of the
    // operations here, so it gets the new affine layer, too.
    forward_backend! { self, self.cpu;
        alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }

    fn info(&self) -> Info {
        Info { name: "mine".into(), ..self.cpu.info() }
    }

    fn linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> backend::Result {
        let (inputs, weights, bias) = (self.read(x)?, self.read(w)?, self.read(b)?);
        let (m, n) = (x.cols as usize, y.cols as usize);
        for (row, inputs) in (0_u64..).zip(inputs.chunks_exact(m)) {
            let mut sums = bias.clone();
            for (&x, weights) in inputs.iter().zip(weights.chunks_exact(n)) {
                sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += x * w);
            }
            sums.iter_mut().for_each(|a| {
                *a = match curve {
                    Curve::Identity => *a,
                    Curve::Tanh => a.tanh(),
                    // Not by `max`, which loses what is not a number.
                    Curve::Relu if *a < 0.0 => 0.0,
                    Curve::Relu => *a,
                }
            });
            self.cpu.upload(y.buf, y.offset + row * u64::from(y.stride), Host::F32(&sums))?;
        }
        let count = u64::from(y.rows) * (m * n) as u64;
        self.multiplications.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

fn main() -> Result<()> {
    let multiplications = Arc::new(AtomicU64::new(0));
    let mut mine = Mine { cpu: Cpu::new(None)?, multiplications: Arc::clone(&multiplications) };

    // Does it do what the contract says? Small sizes and a few random cases: a quick look.
    let report = suite(&mut mine, &Options { full: false, cases: 4, ..Options::default() });
    println!("{report}");
    assert!(report.passes(), "a backend that does not keep the contract is of no use");

    // Whoever has tea has milk, and whoever has coffee has sugar.
    let items = ["tea", "milk", "coffee", "sugar"].into_iter().collect();
    let train = Matrix::from_rows(4, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3]])?;
    let users = (0..train.users()).map(|user| user.to_string()).collect();
    let data = Dataset::new(train, None, None, items, users)?;

    multiplications.store(0, Ordering::Relaxed);
    let device = Device::new(Box::new(mine));
    let model = ModelConfig { hidden: vec![16], latent: 4, ..ModelConfig::default() };
    let mut trainer = Trainer::new(&device, &model, &TrainConfig { lr: 0.01, ..TrainConfig::paper() }, &data, None)?;
    trainer.run(&mut ())?;
    let model = trainer.into_best()?;
    let popularity = Popularity::of(&data.train);
    let recommender = Recommender::new(&model, &popularity, Catalogue::default(), true, 1, 1)?;
    let best = recommender.recommend(&Matrix::from_rows(4, [[0]])?)?;
    println!("with tea goes {}", data.items.name(best[0].items[0].0));
    println!("{} multiplications in affine layers", multiplications.load(Ordering::Relaxed));
    assert_eq!(data.items.name(best[0].items[0].0), "milk");
    Ok(())
}

#[cfg(test)]
mod tests {
    /// The example is true: it runs with the tests.
    #[test]
    fn it_runs() {
        super::main().unwrap();
    }
}
