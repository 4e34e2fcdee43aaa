//! What the figures were taken on.

use std::process::Command;

use serde::Serialize;

/// Machine, commit and version.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor as it calls itself.
    pub cpu: String,
    /// Logical processors.
    pub cpus: usize,
    /// Operating system and architecture.
    pub system: String,
    /// Short commit of the working tree, with `+` where it was changed; empty outside a checkout.
    pub commit: String,
    /// Version of vaecf.
    pub version: &'static str,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split(": ").nth(1));
        let git = |arguments: &[&str]| {
            let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let changed = git(&["status", "--porcelain", "-uno"]).is_some_and(|s| !s.is_empty());
        Self {
            cpu: cpu.unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            commit: git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default() + if changed { "+" } else { "" },
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}
