//! `cargo bench`: users per second at the MovieLens-20M shape, beside the machine's limit and, where
//! `VAECF_PYTHON` names a Python with torch, beside PyTorch. A JSON file for `benches/results` goes
//! to the path in `VAECF_BENCH_JSON`.

use std::path::PathBuf;

use vaecf_benches::{run, synthetic};
use vaecf_core::{Result, backend::Backend, config::ModelConfig};
use vaecf_cpu::Cpu;

fn main() -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = run::Options {
        precisions: vec!["f32".into()],
        batches: vec![500],
        steps: None,
        rounds: 5,
        k: 100,
        group_of_one: false,
        threads,
        python: std::env::var_os("VAECF_PYTHON").map(PathBuf::from),
        peer_options: Vec::new(),
    };
    let matrix = synthetic::matrix(synthetic::Shape::ML_20M, 98765)?;
    let cpu = |_: &str| -> Result<Box<dyn Backend>> { Ok(Box::new(Cpu::<f32>::new(Some(threads))?)) };
    let figures = run::run(cpu, &ModelConfig::default(), &matrix, &options)?;
    println!("{figures}");
    if let Some(path) = std::env::var_os("VAECF_BENCH_JSON").map(PathBuf::from) {
        let json = serde_json::to_string_pretty(&figures).map_err(|e| vaecf_core::Error::failure(e.to_string()))?;
        vaecf_core::files::write_text(&path, &(json + "\n"))?;
    }
    Ok(())
}
