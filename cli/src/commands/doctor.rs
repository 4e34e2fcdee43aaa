//! `vaecf doctor`: what was found on this machine.

use clap::Args;
use serde::Serialize;
use vaecf_core::plugin::abi::VERSION;

use super::Context;
use crate::{
    backend,
    options::Precision,
    output::{Done, Format, Table, bytes, print, print_json},
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
}

impl Doctor {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let quiet = crate::output::Ui { notes: false, ..context.ui };
        let mut global = context.global.clone();
        (global.backend, global.device, global.precision) = ("cpu".into(), 0, Precision::Auto);
        let cpu = backend::open(&global, &quiet);
        let memory_free = cpu.as_ref().ok().and_then(vaecf_core::device::Device::memory);
        let cpu = match &cpu {
            Ok(device) => {
                let info = device.info();
                let same = if info.deterministic { "same bits every run" } else { "bits may differ from run to run" };
                Finding {
                    name: "cpu",
                    works: true,
                    about: format!("{}; f32, f64 as the reference; {same}", info.device),
                }
            }
            Err(error) => Finding { name: "cpu", works: false, about: error.to_string() },
        };
        let absent = backend::ABSENT.map(|(name, why)| Finding { name, works: false, about: why.into() });
        let plugins = Finding {
            name: "plugins",
            works: true,
            about: format!("shared libraries for version {VERSION} of the interface: --backend ./libmine.so"),
        };
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            vectors: vectors(),
            memory_free,
            backends: std::iter::once(cpu).chain(absent).chain([plugins]).collect(),
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
    for Finding { name, works, about } in backends {
        let state = if *works { "works " } else { "absent" };
        table.row([format!("{name:<10}{state}  {about}")]);
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
