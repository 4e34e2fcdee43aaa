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
fn a_fault_ends_with_code_5_and_the_command_that_repeats_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let bad = built::mutant_c("plugin_c_slope", "return 1.0 - y * y;", "return 1.0 - y;");
    let on = ["--backend", bad.to_str().expect("UTF-8")];
    let said = run(dir, &[&QUICK[..], &on].concat(), 5).stdout;
    assert!(said.contains("more failures of the same operations"), "{said}");
    assert!(said.trim_end().lines().last().expect("a verdict").starts_with("failed: "), "{said}");
    let repeat = said.lines().find_map(|line| line.trim().strip_prefix("repeat: vaecf ")).expect("a failure");
    // As a shell takes it apart: the trial's line is quoted.
    let (before, line) = repeat.split_once(" '").expect("a trial");
    let line = line.trim_end_matches('\'');
    let again: Vec<&str> = before.split(' ').chain([line]).collect();
    assert!(again.contains(&on[1]), "{again:?}");
    let one = run(dir, &again, 5).stdout;
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
    file(dir, "known.toml", known("cpu").replace("agrees", "agreed"));
    let said = run(dir, &[&QUICK[..], &["--known", "known.toml"]].concat(), 0).stderr;
    assert!(said.contains("matches no trial"), "{said}");
}

/// A crash, an exit and an endless loop are one failed trial each; the others still run.
#[test]
fn a_backend_that_does_not_come_back_is_a_failure_and_not_the_end() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let place = "TRY(matrix(b, y, VAECF_ROLE_ACT, y->rows, y->cols, &y_data));\n    TRY(scratch(b, y->cols, &sum));\n    for (uint32_t r = 0; r < y->rows; r++) {\n        const float *from = row_of(x_data, x, r);";
    let when = |what: &str| format!("if (y->rows == 16) {{ {what} }}\n    {place}");
    for (name, what, words) in [
        ("crashes", "abort();", "the backend crashed the process (signal 6)"),
        ("exits", "exit(0);", "the backend ended the process (code 0)"),
        ("hangs", "for (volatile int i = 0; i == 0;) {}", "it did not end within 2 seconds"),
        ("prints", "printf(\"here\"); return fail(b, \"no card\");", "linear: no card"),
    ] {
        let bad = built::mutant_c(&format!("plugin_c_{name}"), place, &when(what));
        let on = ["--backend", bad.to_str().expect("UTF-8"), "--limit", "2", "--only", "agrees linear users"];
        let said = run(dir, &[&QUICK[..], &on].concat(), 5).stdout;
        assert!(said.contains(words), "{name}: {said}");
        assert!(said.contains("FAILED agrees linear users=16 "), "{name}: {said}");
        let all = said.lines().find(|line| line.starts_with("all ")).expect("the sum");
        let numbers: Vec<u32> = all.split_whitespace().skip(1).take(3).map(|n| n.parse().expect("a number")).collect();
        assert!(numbers[0] > 30 && numbers[1] > 30 && numbers[2] == 1, "{name}: {said}");
    }
    // Where it does not even open, there is nothing to report.
    let bad =
        built::mutant_c("plugin_c_opens", "out->last_error = last_error;", "out->last_error = last_error; abort();");
    fails(dir, &["conform", "--backend", bad.to_str().expect("UTF-8")], 4, &["crashed the process (signal 6) while"]);
}

#[test]
fn what_is_absent_is_told_and_nothing_at_all_is_a_failure() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let partial = built::mutant_c("plugin_c_partial", "out->adam = adam;", "(void)adam;");
    let on = ["--backend", partial.to_str().expect("UTF-8")];
    let said = run(dir, &[&QUICK[..], &on].concat(), 0).stdout;
    assert!(said.contains("\nincomplete: what is there is right; absent: adam"), "{said}");
    let said = run(dir, &[&["conform", "--only", "agrees adam "], &on[..]].concat(), 5).stdout;
    assert!(said.contains("failed: nothing passed, for want of adam"), "{said}");
    run(dir, &[&["conform", "--trial", "agrees adam items=3 outer=1"], &on[..]].concat(), 5);
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
    fails(dir, &["conform", "--known", "known.toml"], 3, &["known.toml", "line 1", "trial"]);
    for nonsense in ["agrees linear keep=0.5", "noise linear users=3", "agrees linear users=4000000000", "agrees"] {
        run(dir, &["conform", "--trial", nonsense], 2);
    }
    let said = run(dir, &["conform", "--trial", "agrees linear users=many"], 2).stderr;
    assert!(said.contains("users=many"), "{said}");
    let listed = run(dir, &["conform", "--list", "--only", "agrees adam ", "-q"], 0).stdout;
    assert!(listed.lines().count() > 20 && listed.lines().all(|line| line.starts_with("agrees adam ")));
    assert!(fs::read_dir(dir).expect("a folder").count() == 1);
}
