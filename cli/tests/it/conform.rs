//! `vaecf conform`, on good backends and on bad ones.

use std::fs;

use crate::{
    built,
    common::{fails, file, run},
};

/// A quick look: small sizes and few random cases.
const QUICK: [&str; 4] = ["conform", "--small", "--cases", "2"];

#[test]
fn the_cpu_passes_and_the_table_says_on_what() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let said = run(dir.path(), &[&QUICK[..], &["--threads", "1"]].concat(), 0).stdout;
    for word in ["backend    cpu, f32", "1 thread", "same bits: yes", "decode_loss_grad", "GFLOP/s", "absent: "] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let all = said.lines().find(|line| line.starts_with("all ")).expect("the sum");
    let numbers: Vec<&str> = all.split_whitespace().collect();
    assert!(numbers[1].parse::<u32>().expect("trials") > 500 && numbers[3] == "0", "{all}");
}

#[test]
fn a_backend_in_c_passes_and_the_report_is_json_on_request() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plugin = built::plugin_c().to_str().expect("UTF-8");
    let said = run(dir.path(), &[&QUICK[..], &["--backend", plugin, "--format", "json"]].concat(), 0).stdout;
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["backend"], "plugin_c");
    let trials = report["trials"].as_array().expect("trials");
    let ended = |how: &str| trials.iter().filter(|trial| trial[1].get(how).is_some()).count();
    assert_eq!((ended("failed"), ended("known")), (0, 0));
    assert!(ended("passed") > 500);
    // What it does not implement is told, and is no failure.
    assert_eq!(ended("not_implemented"), trials.len() - ended("passed"));
    assert!(said.contains("capture"));
}

#[test]
fn a_fault_ends_with_code_5_and_a_line_that_repeats_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let bad = built::mutant_c("plugin_c_slope", "return 1.0 - y * y;", "return 1.0 - y;");
    let on = ["--backend", bad.to_str().expect("UTF-8")];
    let said = run(dir, &[&QUICK[..], &on].concat(), 5).stdout;
    let repeat = said.lines().find_map(|line| line.trim().strip_prefix("repeat: vaecf conform --trial '"));
    let line = repeat.expect("a failure").trim_end_matches('\'');
    let one = run(dir, &[&["conform", "--trial", line], &on[..]].concat(), 5).stdout;
    assert!(one.starts_with("FAILED: "), "{one}");
    let fine = run(dir, &["conform", "--trial", line], 0).stdout;
    assert!(fine.starts_with("passed"), "{fine}");

    // What is known is no failure, until it passes.
    let known = |backend: &str| format!("[[known]]\nbackend = '{backend}'\ntrial = '{line}'\nreason = 'the slope'\n");
    file(dir, "known.toml", known("plugin_c"));
    let one = run(dir, &[&["conform", "--trial", line, "--known", "known.toml"], &on[..]].concat(), 0).stdout;
    assert!(one.contains("the slope"), "{one}");
    file(dir, "known.toml", known("cpu"));
    let one = run(dir, &["conform", "--trial", line, "--known", "known.toml"], 5).stdout;
    assert!(one.contains("remove the entry"), "{one}");
}

#[test]
fn a_backend_that_panics_fails_and_does_not_take_the_suite_with_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let plugin = built::plugin_panics().to_str().expect("UTF-8");
    let said = run(dir.path(), &[&QUICK[..], &["--backend", plugin, "--only", "agrees linear "]].concat(), 5).stdout;
    assert!(said.contains("the card has melted"), "{said}");
}

#[test]
fn what_cannot_be_run_is_one_sentence() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    fails(dir, &["conform", "--only", "no such trial"], 2, &["\"no such trial\"", "--list"]);
    fails(dir, &["conform", "--backend", "./gone.so"], 4, &["./gone.so", "no such file"]);
    fails(dir, &["conform", "--known", "gone.toml"], 3, &["gone.toml"]);
    file(dir, "known.toml", "[[known]]\nbackend = 'cpu'\n");
    fails(dir, &["conform", "--known", "known.toml"], 2, &["known.toml", "line 1", "trial"]);
    let said = run(dir, &["conform", "--trial", "agrees linear users=many"], 2).stderr;
    assert!(said.contains("users=many"), "{said}");
    let listed = run(dir, &["conform", "--list", "--only", "agrees adam ", "-q"], 0).stdout;
    assert!(listed.lines().count() > 20 && listed.lines().all(|line| line.starts_with("agrees adam ")));
    assert!(fs::read_dir(dir).expect("a folder").count() == 1);
}
