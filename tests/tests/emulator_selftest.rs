//! The emulator that the CUDA backend is tested on is itself tested: planted faults are found, right twins of them
//! are not accused, and fragments, conversions, streams and captures are those of the manuals.
#![cfg(target_os = "linux")]

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

/// One at a time: what is built lies in one folder.
static TURN: Mutex<()> = Mutex::new(());

/// Runs the emulator's own tests, a line each, and returns those lines.
fn selftest(environment: &[(&str, &str)]) -> (bool, Vec<String>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator/selftest/run.sh");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator-selftest");
    let mut command = Command::new("sh");
    let output = command.arg(script).arg(folder).envs(environment.iter().copied()).output().expect("a shell");
    let lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert!(!lines.is_empty(), "nothing ran: {}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), lines)
}

#[test]
fn every_planted_fault_is_found_and_nothing_else() {
    let (passed, lines) = selftest(&[]);
    let failed: Vec<_> = lines.iter().filter(|line| !line.starts_with("ok ")).collect();
    assert!(passed && failed.is_empty(), "{failed:#?}");
    assert!(lines.len() >= 90, "only {} checks ran", lines.len());
}

/// Without the watch nothing is found, so the checks above are able to fail.
#[test]
fn without_the_watch_planted_faults_are_missed() {
    let (passed, lines) = selftest(&[("VAECF_EMULATOR_WATCH", "0")]);
    assert!(!passed && lines.iter().any(|line| line.starts_with("FAILED")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("ok ")), "nothing ran: {lines:#?}");
}
