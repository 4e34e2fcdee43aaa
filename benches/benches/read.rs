//! `cargo bench --bench read`: a `ratings.csv` of 20 million rows to a prepared data set, on one thread.
//! Prints rows per second, and the peak memory of the process as a multiple of the data set's size.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    time::Instant,
};

use vaecf_core::{
    Error, Result,
    dataset::Dataset,
    prepare::{PrepareOptions, prepare},
    random::{Generator, stream},
};

const ROWS: u32 = 20_000_263;
const USERS: u32 = 138_493;
const ITEMS: u32 = 26_744;

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::failure(format!("no temporary folder: {e}")))?;
    let ratings = folder.path().join("ratings.csv");
    generate(&ratings).map_err(|e| Error::io("writing", &ratings, &e))?;
    println!("{:<28} {:>12} {:>12} {:>10} {:>10}", "20,000,263 rows", "M rows/s", "data set MB", "peak MB", "peak/set");
    for (name, threshold) in [("threshold >3.5", Some(">3.5")), ("all rows", None)] {
        let out = folder.path().join(name.replace(' ', "-"));
        let options = PrepareOptions { threshold: threshold.map(str::parse).transpose()?, ..PrepareOptions::default() };
        // Memory is measured from here: the first run may not hide behind the second, which needs more.
        reset_peak();
        let start = Instant::now();
        let (data, _) = prepare(ratings.as_path().into(), &options)?;
        data.save(&out, &serde_json::Value::Null, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let (size, peak) = (size(&out), peak());
        drop(data);
        let rate = f64::from(ROWS) / seconds / 1e6;
        println!("{name:<28} {rate:>12.2} {:>12.1} {:>10.1} {:>10.2}", size / 1e6, peak / 1e6, peak / size);
        let start = Instant::now();
        let events = Dataset::open(&out)?.train.events();
        println!("{:<28} {:>12.2} ms for {events} events", "  opens in", start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Sorted by user, then item, as MovieLens is; CRLF, as it is.
fn generate(path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(b"userId,movieId,rating,timestamp\r\n")?;
    for user in 0..USERS {
        let mut random = Generator::new(1, stream::SYNTHETIC, user);
        let rows = ROWS / USERS + u32::from(user < ROWS % USERS);
        // Steps from item to item: about evenly through the catalogue, never the same twice.
        let mut item = 0;
        for left in (1..=rows).rev() {
            item += 1 + random.below((2 * (ITEMS - item - left) / left).clamp(1, ITEMS - item - left + 1));
            let rating = 1 + random.below(10);
            write!(
                out,
                "{},{item},{}.{},{}\r\n",
                user + 1,
                rating / 2,
                rating % 2 * 5,
                789_652_009 + random.below(1 << 29)
            )?;
        }
    }
    out.flush()
}

fn size(folder: &Path) -> f64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|f| f.metadata().ok()).map(|m| m.len() as f64).sum()
}

/// Starts the kernel's record of peak memory anew; where that cannot be done the figure is an upper bound.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident memory in bytes; NaN where the system does not tell.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()).map_or(f64::NAN, |kb| kb * 1024.0)
}
