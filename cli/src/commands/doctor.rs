//! `vaecf doctor`: what was found on this machine.

use clap::Args;
use serde::Serialize;
use vaecf_core::plugin::abi::VERSION;

use super::Context;
use crate::{
    backend,
    options::{Global, Precision},
    output::{Done, Format, Table, Ui, bytes, print, print_json},
};

/// Show what was found on this machine: processor, memory, backends, and why one is absent.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf doctor
  vaecf doctor --format json")]
pub(crate) struct Doctor {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    system: String,
    threads: usize,
    vectors: Vec<&'static str>,
    memory_free: Option<u64>,
    backends: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    name: &'static str,
    works: bool,
    /// The device, or why there is none.
    about: String,
    /// What else the backend knows of it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<(String, String)>,
}

impl Doctor {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let mut memory_free = None;
        let mut find = |row: &backend::Row| {
            let global =
                Global { backend: row.name.into(), device: None, precision: Precision::Auto, ..context.global.clone() };
            let (works, about) = match (row.open)(&global, &Ui { notes: false, ..context.ui }) {
                Ok(backend) => {
                    let info = backend.info();
                    memory_free = info.memory.filter(|_| info.host_memory).or(memory_free);
                    let same = match info.deterministic {
                        true => "same bits every run",
                        false => "bits may differ from run to run",
                    };
                    let precision = match row.name {
                        "cpu" => "f32, f64 as the reference",
                        "cuda" => "f16 unless --precision says bf16, tf32 or f32",
                        "wgpu" => "f32, f16 by --precision",
                        _ => &info.precision,
                    };
                    (true, format!("{}; {precision}; {same}", info.device))
                }
                Err(error) => (false, error.to_string()),
            };
            Finding { name: row.name, works, about, details: (row.details)() }
        };
        let mut backends: Vec<_> = backend::ALL.iter().map(&mut find).collect();
        let plugins = Finding {
            name: "plugins",
            works: true,
            about: format!("shared libraries for version {VERSION} of the interface: --backend ./libmine.so"),
            details: Vec::new(),
        };
        backends.push(plugins);
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            vectors: vectors(),
            memory_free,
            backends,
        };
        match self.format {
            Format::Json => print_json(&findings),
            Format::Table => print(table(&findings)),
        }
    }
}

fn table(findings: &Findings) -> String {
    let Findings { version, system, threads, vectors, memory_free, backends } = findings;
    let memory = memory_free.map_or_else(|| "unknown".into(), bytes);
    let vectors = if vectors.is_empty() { "none known".into() } else { vectors.join(" ") };
    let line = |name: &str, about: &str| format!("{name:<10}{about}\n");
    let mut text = line("vaecf", version) + &line("system", system);
    text += &line("threads", &threads.to_string());
    text += &line("vectors", &vectors);
    text += &line("free", &format!("{memory} of memory"));
    let mut table = Table(Vec::new());
    for Finding { name, works, about, details } in backends {
        let state = if *works { "works " } else { "absent" };
        table.row([format!("{name:<10}{state}  {about}")]);
        for (what, is) in details {
            table.row([format!("{:<18}{what}: {is}", "")]);
        }
    }
    format!("{text}\nbackends\n{table}")
}

/// Vector instructions of this processor.
fn vectors() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
            ("avx", is_x86_feature_detected!("avx")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        found.extend(known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    found.extend(std::arch::is_aarch64_feature_detected!("neon").then_some("neon"));
    found
}
