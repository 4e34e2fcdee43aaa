//! `--backend wgpu` as a person meets it, on Vulkan drivers in software, where this machine has them: it works like any
//! other, and whatever is missing or goes wrong is one sentence and exit code 4. What these drivers never do by
//! themselves a layer between makes them do (`tests/vulkan/faults.c`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use vaecf_tests::compare::{Float, Tolerance, compare};

use crate::{
    built,
    common::{self, BENCH, NO_DEVICES, SMALL, VAECF, fails, file, has_all_figures, no_drafts, prepared, vaecf},
};

/// Mesa's driver in software, where it is installed. Its device is called llvmpipe.
fn lavapipe() -> Option<PathBuf> {
    let folders = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().filter_map(Result::ok);
    let found = files
        .map(|file| file.path())
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"lvp_icd")));
    if found.is_none() {
        eprintln!("skipped: this machine has no Vulkan driver in software (mesa-vulkan-drivers)");
    }
    found
}

/// The environment of a machine with that driver and nothing else.
fn software(driver: &Path) -> Vec<(&'static str, String)> {
    let driver = driver.to_str().expect("UTF-8").to_owned();
    vec![("VK_DRIVER_FILES", driver.clone()), ("VK_ICD_FILENAMES", driver)]
}

/// The same where something goes wrong.
fn faulty(driver: &Path, fault: &'static str, value: &str) -> Vec<(&'static str, String)> {
    let mut environment = software(driver);
    environment.push(("VK_INSTANCE_LAYERS", "VK_LAYER_VAECF_faults".into()));
    environment.push(("VK_LAYER_PATH", built::vulkan_faults().to_str().expect("UTF-8").into()));
    environment.push((fault, value.into()));
    environment
}

/// Runs the binary in an environment, and returns what it printed and said.
fn run(dir: &Path, environment: &[(&'static str, String)], arguments: &[&str], code: i32) -> (String, String) {
    let mut command = vaecf(arguments);
    let output = command.envs(environment.iter().cloned()).current_dir(dir).output().expect("the binary starts");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert_eq!(output.status.code(), Some(code), "{environment:?} {arguments:?}\n{out}\n{err}");
    assert!(!err.contains("panicked") && !err.contains("a bug in vaecf"), "{err}");
    (out, err)
}

/// Runs what must fail: one sentence with all of `words` in it.
fn refused(dir: &Path, environment: &[(&'static str, String)], arguments: &[&str], code: i32, words: &[&str]) {
    let (_, err) = run(dir, environment, arguments, code);
    let errors: Vec<_> = err.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "one sentence: {err}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in: {}", errors[0]);
    }
    no_drafts(dir);
}

fn training<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "data", "-q", "--backend", "wgpu", "-o", model], &SMALL[..], more].concat()
}

fn bits(dir: &Path, model: &str) -> [Vec<u8>; 2] {
    ["model.safetensors", "training.safetensors"].map(|name| fs::read(dir.join(model).join(name)).expect(name))
}

#[test]
fn without_any_driver_it_is_a_sentence_and_auto_is_the_processor() {
    let dir = prepared();
    let dir = dir.path();
    fails(dir, &training("model", &[]), 4, &["no adapter was found", "Vulkan", "mesa-vulkan-drivers"]);
    assert!(!dir.join("model").exists(), "nothing was trained");
    let auto = [&["train", "data", "--epochs", "1", "-o", "cpu"], &SMALL[..]].concat();
    let said = common::run(dir, &auto, 0);
    assert!(said.stderr.contains("backend: cpu") && said.stderr.contains("no adapter was found"), "{}", said.stderr);
    let doctor = common::run(dir, &["doctor"], 0).stdout;
    assert!(doctor.contains("wgpu      absent"), "{doctor}");
}

#[test]
fn a_precision_that_it_does_not_have_is_a_sentence() {
    let dir = prepared();
    for precision in ["f64", "bf16", "tf32"] {
        let train = training("model", &["--precision", precision]);
        fails(dir.path(), &train, 2, &["the wgpu backend computes in f32 or f16"]);
    }
}

#[test]
fn it_trains_evaluates_and_recommends_in_every_precision() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    file(dir, "histories.csv", "user,item\nnew,t0-1\nnew,t0-2\nnew,t0-4\n");
    for precision in ["f32", "f16"] {
        let on = ["--backend", "wgpu", "--precision", precision];
        let train =
            [&["train", "data", "-o", precision, "--epochs", "8", "-v", "--lr", "0.01"], &SMALL[..], &on].concat();
        let (_, said) = run(dir, &here, &train, 0);
        assert!(said.contains("backend: wgpu (llvmpipe") && said.contains(precision), "{said}");
        let evaluate = [&["evaluate", precision, "data", "--format", "json", "-q"], &on[..]].concat();
        assert!(run(dir, &here, &evaluate, 0).0.contains("ndcg"));
        let recommend = [&["recommend", precision, "histories.csv", "-k", "3", "-q"], &on[..]].concat();
        let (items, _) = run(dir, &here, &recommend, 0);
        assert_eq!(items.matches("t0-").count(), 3, "{precision}: items of the same taste: {items}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_streamed_too() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    for (model, more) in [("a", &[][..]), ("b", &[]), ("streamed", &["--data-memory", "4000"])] {
        run(dir, &here, &training(model, &[&["--epochs", "3"], more].concat()), 0);
        assert!(bits(dir, "a") == bits(dir, model), "{model}");
    }
}

/// Two devices of one adapter, whose sums pass through the host, train the model of one to rounding.
#[test]
fn several_devices_train_the_model_of_one() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    let loss = |model: &str, more: &[&str]| -> Vec<f64> {
        let all = [&["train", "data", "--backend", "wgpu", "--epochs", "3", "-o", model], &SMALL[..], more].concat();
        let (_, said) = run(dir, &here, &all, 0);
        assert!(more.is_empty() || said.contains("group: 2 members, over threads"), "{said}");
        let log = fs::read_to_string(dir.join(model).join("training.jsonl")).expect("a log");
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        lines.filter_map(|line| line["nll"].as_f64()).collect()
    };
    let (one, two) = (loss("one", &[]), loss("two", &["--devices", "llvmpipe,llvmpipe"]));
    assert_eq!(one.len(), 3);
    compare(&two, &one, &Tolerance::new(Float::F16, Float::F32)).unwrap();
    let evaluate = ["evaluate", "two", "data", "--format", "json", "--backend", "wgpu"];
    let several = [&evaluate[..], &["--devices", "llvmpipe,llvmpipe"]].concat();
    assert_eq!(run(dir, &here, &evaluate, 0).0, run(dir, &here, &several, 0).0);
}

#[test]
fn an_adapter_in_software_is_never_chosen_by_itself_and_says_what_it_is() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    let train = |model, more: &[&'static str]| {
        run(dir, &here, &[&["train", "data", "--epochs", "1", "-o", model], &SMALL[..], more].concat(), 0).1
    };
    let said = train("a", &[]);
    assert!(said.contains("backend: cpu") && said.contains("llvmpipe") && said.contains("in software"), "{said}");
    let said = train("b", &["--backend", "wgpu"]);
    let lines = said.lines().filter(|line| line.contains("in software")).count();
    assert!(lines == 1 && said.contains("no graphics device was found"), "{said}");
    // Whoever names it means it.
    let said = train("c", &["--device", "LLVMpipe", "-v"]);
    assert!(said.contains("backend: wgpu (llvmpipe") && said.contains("in software"), "{said}");
    assert!(!said.contains("no graphics device was found"), "{said}");
    let text = |model: &str| fs::read_to_string(dir.join(model).join("run.toml")).expect("a run file");
    assert!(text("c").contains("device = \"LLVMpipe\""), "{}", text("c"));
    run(dir, &here, &["train", "data", "-o", "d", "-q", "--config", "c/run.toml"], 0);
    assert!(text("c") == text("d") && bits(dir, "c") == bits(dir, "d"));

    for (device, words) in [("geforce", ["--device geforce", "llvmpipe"]), ("7", ["--device 7", "llvmpipe"])] {
        refused(dir, &here, &training("none", &["--device", device]), 2, &words);
    }
    let (doctor, _) = run(dir, &here, &["doctor"], 0);
    let row = doctor.lines().find(|line| line.starts_with("wgpu      works")).expect("it works");
    assert!(row.contains("llvmpipe") && row.contains("in software"), "{doctor}");
    let device = doctor.lines().find(|line| line.contains("device 0: llvmpipe")).expect("the adapter");
    for word in ["Vulkan", "Mesa", "in software", "buffers of", "in a shader", "in a workgroup", "timestamps"] {
        assert!(device.contains(word), "{word:?} is not in: {device}");
    }
}

#[test]
fn an_interrupt_saves_the_run() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    let limits = ["--epochs", "40", "--patience", "0"];
    let mut command = Command::new(VAECF);
    command.args(training("model", &limits)).current_dir(dir).envs(NO_DEVICES).envs(here.iter().cloned());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let begun = Instant::now();
    while fs::read_to_string(dir.join("model/training.jsonl")).map_or(0, |text| text.lines().count()) < 4 {
        let ended = child.try_wait().expect("a process");
        assert!(ended.is_none() && begun.elapsed() < Duration::from_secs(120), "no epoch in two minutes: {ended:?}");
        thread::sleep(Duration::from_millis(2));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signal.is_ok_and(|status| status.success()));
    let done = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(130), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    run(dir, &here, &["train", "data", "-q", "--backend", "wgpu", "-o", "model", "--resume"], 0);
    run(dir, &here, &training("whole", &limits), 0);
    assert!(bits(dir, "whole") == bits(dir, "model"), "the bits differ");
}

#[test]
fn a_device_that_is_lost_leaves_the_checkpoint_to_go_on_from() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    run(dir, &here, &training("whole", &["--epochs", "6"]), 0);
    run(dir, &here, &training("parts", &["--epochs", "3"]), 0);
    let before = bits(dir, "parts");
    let resume = ["train", "data", "-q", "--backend", "wgpu", "-o", "parts", "--resume", "--epochs", "6"];
    for submissions in ["3", "20"] {
        let lost = faulty(&driver, "VAECF_VULKAN_LOST_AFTER", submissions);
        refused(dir, &lost, &resume, 4, &["the device was lost", "llvmpipe", "last checkpoint"]);
        assert!(bits(dir, "parts") == before, "the checkpoint is not what it was");
    }
    run(dir, &here, &resume, 0);
    assert!(bits(dir, "parts") == bits(dir, "whole"), "the run that went on is another one");
}

#[test]
fn what_the_driver_refuses_is_a_sentence() {
    let Some(driver) = lavapipe() else { return };
    let (dir, here) = (prepared(), software(&driver));
    let dir = dir.path();
    let train = training("model", &["--epochs", "1"]);
    let refused = |fault, value, words: &[&str]| {
        refused(dir, &faulty(&driver, fault, value), &train, 4, words);
        assert!(!dir.join("model/model.safetensors").exists(), "nothing was trained");
    };
    refused("VAECF_VULKAN_NO_DEVICE", "1", &["llvmpipe", "gives no device"]);
    refused("VAECF_VULKAN_MEMORY", "1000", &["llvmpipe", "memory"]);
    refused("VAECF_VULKAN_PIPELINES", "0", &["llvmpipe", "lost"]);
    run(dir, &here, &train, 0);
    // A model that the device has no room for, in a driver that counts.
    let wide = ["train", "data", "-q", "--backend", "wgpu", "-o", "wide", "--hidden", "4000", "--latent", "1000"];
    let memory = faulty(&driver, "VAECF_VULKAN_MEMORY", "100000000");
    self::refused(dir, &memory, &wide, 4, &["llvmpipe", "out of memory", "smaller batch or model"]);
}

#[test]
fn a_bench_of_the_device() {
    let Some(driver) = lavapipe() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    for precision in ["f32", "f16"] {
        let on = ["--backend", "wgpu", "--precision", precision];
        let (out, _) = run(dir.path(), &software(&driver), &[&BENCH[..], &on].concat(), 0);
        has_all_figures(&out, "llvmpipe");
    }
}
