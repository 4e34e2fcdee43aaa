//! `cargo bench --bench scaling`: what sums over a group take, and training steps of 1, 2 and 4 members at the
//! MovieLens-20M shape, all on the cores of this machine, beside what `vaecf plan` computes from the machine's limits. A
//! JSON file for `benches/results` goes to the path in `VAECF_BENCH_JSON`.

use std::path::PathBuf;

use vaecf_benches::{scaling, synthetic};
use vaecf_core::{Error, Result, config::ModelConfig, files};

fn main() -> Result<()> {
    let options = scaling::Options {
        worlds: vec![1, 2, 4],
        carriers: vec![("threads", scaling::over_threads), ("TCP", scaling::over_tcp)],
        lens: vec![16, 1 << 14, 1 << 18, 1 << 22],
        batch: 500,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        steps: 6,
        rounds: 7,
    };
    let matrix = synthetic::matrix(synthetic::Shape::ML_20M, 98765)?;
    let figures = scaling::run(&ModelConfig::default(), &matrix, &options)?;
    println!("{figures}");
    if let Some(path) = std::env::var_os("VAECF_BENCH_JSON").map(PathBuf::from) {
        let json = serde_json::to_string_pretty(&figures).map_err(|e| Error::failure(e.to_string()))?;
        files::write_text(&path, &(json + "\n"))?;
    }
    Ok(())
}
