//! Backends from shared libraries, as a person meets them: good ones work like any other, bad ones are one
//! sentence and exit code 4.

use std::{fs, path::Path};

use crate::{
    built,
    common::{SMALL, fails, file, prepared, run, vaecf},
};

/// A copy of a library in a folder; its name with `./` in front.
fn here(dir: &Path, library: &Path) -> String {
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name");
    fs::copy(library, dir.join(name)).expect("a writable folder");
    format!("./{name}")
}

/// A small backend with a fault.
fn faulty(dir: &Path, faults: &[&str]) -> String {
    here(dir, &built::faulty(&format!("faulty{}", faults.concat().replace('=', "-")), faults))
}

#[test]
fn a_backend_in_c_trains_evaluates_and_recommends() {
    let dir = prepared();
    let dir = dir.path();
    let plugin = here(dir, built::plugin_c());
    let on = ["--backend", &plugin];
    let train = [&["train", "data", "-o", "model", "--epochs", "8", "-v"], &SMALL[..], &on].concat();
    let said = run(dir, &train, 0);
    assert!(said.stderr.contains("backend: plugin_c (one thread of plain C, f32)"), "{}", said.stderr);
    let measured = run(dir, &[&["evaluate", "model", "data", "--format", "json", "-q"], &on[..]].concat(), 0).stdout;
    let measured: serde_json::Value = serde_json::from_str(&measured).expect("JSON");
    let metrics = measured["metrics"].as_array().map_or(0, Vec::len);
    assert!(metrics > 0, "{measured}");
    file(dir, "histories.csv", "user,item\nnew,t0-1\nnew,t0-2\nnew,t0-4\n");
    let recommend = ["recommend", "model", "histories.csv", "-k", "3", "-q"];
    let said = run(dir, &[&recommend[..], &on].concat(), 0).stdout;
    assert_eq!(said.matches("t0-").count(), 3, "items of the same taste: {said}");
    let bench = ["bench", "--shape", "200x50x2000", "--steps", "1", "--rounds", "1", "-k", "5", "--format", "json"];
    assert!(run(dir, &[&bench[..], &on].concat(), 0).stdout.contains("one thread of plain C"));
}

#[test]
fn a_path_of_any_kind_names_a_plugin() {
    let dir = prepared();
    let dir = dir.path();
    let plugin = here(dir, built::plugin_c());
    let bare = plugin.strip_prefix("./").expect("a name in this folder");
    let whole = dir.join(bare);
    for name in [bare, &plugin, whole.to_str().expect("UTF-8")] {
        let demo = ["train", "data", "-o", "model", "--force", "--epochs", "1", "-q", "--backend", name];
        run(dir, &[&demo[..], &SMALL].concat(), 0);
    }
}

#[test]
fn bad_plugins_are_one_sentence() {
    let dir = prepared();
    let dir = dir.path();
    let train = [&["train", "data", "-o", "model", "--epochs", "1"], &SMALL[..]].concat();
    let refused = |plugin: &str, more: &[&str], code: i32, words: &[&str]| {
        let said = fails(dir, &[&train[..], &["--backend", plugin], more].concat(), code, words);
        assert!(said.contains(plugin), "the file is named: {said}");
        assert!(!dir.join("model").exists(), "nothing is left of {plugin}");
    };
    refused("./gone.so", &[], 4, &["there is no such file"]);
    refused("gone.so", &[], 4, &["there is no such file"]);
    refused("./data", &[], 4, &["a folder"]);
    file(dir, "text.so", "words");
    refused("./text.so", &[], 4, &["no shared library that can be loaded here"]);
    for (defines, words) in [
        (&["NO_SYMBOL"][..], "does not export vaecf_backend_v1"),
        (&["VERSION=0"], "older than 1"),
        (&["VERSION=2"], "newer than 1"),
        (&["SIZE=64"], "fills 64 bytes"),
        (&["NO_ALLOC"], "it has no alloc"),
        (&["REFUSES"], "no such card is plugged in"),
        (&["ALIGN_ZERO"], "align"),
        (&["NOT_UTF8"], "not UTF-8"),
    ] {
        refused(&faulty(dir, defines), &[], 4, &[words]);
    }
    let plugin = here(dir, built::plugin_c());
    refused(&plugin, &["--precision", "bf16"], 4, &["computes in f32, not in bf16"]);
    refused(&plugin, &["--device", "3"], 4, &["one device, 0"]);
    refused(&plugin, &["--device", "rtx"], 2, &["--device rtx", "by its number"]);
    let panics = here(dir, built::plugin_panics());
    refused(&panics, &["--precision", "f64"], 4, &["a bug of its own", "nobody has tried that"]);
    // This one takes any precision, and then computes in f32.
    let faulty = faulty(dir, &[]);
    refused(&faulty, &["--precision", "f64"], 2, &["computes in f32"]);
}

#[test]
fn an_operation_that_fails_ends_the_run_with_its_words() {
    let dir = prepared();
    let dir = dir.path();
    let train = [&["train", "data", "-o", "model", "--epochs", "1"], &SMALL[..], &["--backend"]].concat();
    let plugin = faulty(dir, &[]);
    fails(dir, &[&train[..], &[&plugin]].concat(), 4, &["is not supported by this backend"]);
    // A panic is an error like any other: one line, with its place. What failed before it had learned anything
    // may be begun again.
    let plugin = here(dir, built::plugin_panics());
    fails(dir, &[&train[..], &[&plugin]].concat(), 4, &["linear: ", "the card has melted", "panics.rs:"]);
}

#[test]
fn help_and_doctor_tell_of_plugins() {
    let help = vaecf(&["train", "--help"]).output().expect("it starts").stdout;
    assert!(String::from_utf8(help).expect("UTF-8").contains("shared library"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    assert!(run(dir.path(), &["doctor"], 0).stdout.contains("--backend ./libmine.so"));
}
