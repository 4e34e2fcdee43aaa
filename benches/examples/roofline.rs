//! The least that each operation of a training step and of inference costs, and the time that it takes on a device that
//! copies and multiplies so fast: arithmetic, for which no such device is needed.
//!
//! `cargo run --release -p vaecf-benches --example roofline -- 4.3e12 790e12 2 500 4096 8192 24576`: bytes per second,
//! FLOP per second, bytes of an activation, users per batch. The model and the data have the published shape.

use vaecf_benches::{
    measure::Bench,
    synthetic::{self, Shape},
};
use vaecf_core::{
    Error, Result,
    backend::Ceilings,
    config::ModelConfig,
    device::Device,
    paper::{self, Entry},
    roofline::{Call, Limit},
};

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
    let info = paper::info("paper", if *bytes < 4.0 { "f16" } else { "f32" });
    for &batch in batches {
        let events = matrix.events() as f64 / f64::from(users);
        let (paper, sheet) = paper::paper(&info, events, false);
        let device = Device::new(paper);
        let mut bench = Bench::new(&device, &matrix, &ModelConfig::default(), batch as u32, 100)?;
        paper::take(&sheet);
        bench.train(1, false)?;
        let training = paper::take(&sheet);
        bench.infer(1)?;
        for (what, rows) in [("training", training), ("inference", paper::take(&sheet))] {
            println!("{what}, {batch} users a batch");
            let mut sum = 0.0;
            let calls = rows.into_iter().filter_map(|entry| match entry {
                Entry::Call(call) => Some(call),
                Entry::Sum { .. } => None,
            });
            for Call { name, shape, cost } in calls {
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
