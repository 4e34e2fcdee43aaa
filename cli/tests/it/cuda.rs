//! `--backend cuda` as a person meets it, on stand-ins for NVIDIA's libraries: where all is well it works like any
//! other, and whatever is missing or goes wrong is one sentence and exit code 4.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Child},
    time::{Duration, Instant},
};

use assert_cmd::Command;
use vaecf_tests::compare::{Float, Tolerance, compare};

use crate::{
    built,
    common::{BENCH, SMALL, file, has_all_figures, no_drafts, prepared, vaecf},
    group::{self, epochs},
};

/// The binary with the stand-ins, as this environment has them.
fn emulated(libraries: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = vaecf(arguments);
    command.env("LD_LIBRARY_PATH", libraries).envs(environment.iter().copied());
    command
}

/// Runs it, and returns what it printed and said.
fn run(dir: &Path, environment: &[(&str, &str)], arguments: &[&str], code: i32) -> (String, String) {
    run_with(built::emulator(), dir, environment, arguments, code)
}

fn run_with(
    libraries: &Path,
    dir: &Path,
    environment: &[(&str, &str)],
    arguments: &[&str],
    code: i32,
) -> (String, String) {
    let output = emulated(libraries, environment, arguments).current_dir(dir).output().expect("the binary starts");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert_eq!(output.status.code(), Some(code), "{environment:?} {arguments:?}\n{out}\n{err}");
    assert!(!err.contains("panicked") && !err.contains("a bug in vaecf"), "{err}");
    (out, err)
}

/// Runs what must fail with exit code 4: one sentence with all of `words` in it.
fn refused(libraries: &Path, dir: &Path, environment: &[(&str, &str)], arguments: &[&str], words: &[&str]) {
    let (_, err) = run_with(libraries, dir, environment, arguments, 4);
    let errors: Vec<_> = err.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "one sentence: {err}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in: {}", errors[0]);
    }
    no_drafts(dir);
}

const TRAIN: [&str; 6] = ["train", "data", "-q", "--backend", "cuda", "-o"];

fn training<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&TRAIN[..], &[model], &SMALL[..], more].concat()
}

fn bits(dir: &Path, model: &str) -> [Vec<u8>; 2] {
    ["model.safetensors", "training.safetensors"].map(|name| fs::read(dir.join(model).join(name)).expect(name))
}

#[test]
fn it_trains_evaluates_and_recommends_in_every_precision() {
    let dir = prepared();
    let dir = dir.path();
    file(dir, "histories.csv", "user,item\nnew,t0-1\nnew,t0-2\nnew,t0-4\n");
    for precision in ["f32", "tf32", "f16", "bf16"] {
        let on = ["--backend", "cuda", "--precision", precision];
        let (_, said) = run(
            dir,
            &[],
            &[&["train", "data", "-o", precision, "--epochs", "8", "-v", "--lr", "0.01"], &SMALL[..], &on].concat(),
            0,
        );
        assert!(said.contains("backend: cuda (Emulated GPU") && said.contains("cuBLASLt"), "{said}");
        let (measured, _) =
            run(dir, &[], &[&["evaluate", precision, "data", "--format", "json", "-q"], &on[..]].concat(), 0);
        assert!(measured.contains("ndcg"), "{measured}");
        let recommend = ["recommend", precision, "histories.csv", "-k", "3", "-q"];
        let (items, _) = run(dir, &[], &[&recommend[..], &on].concat(), 0);
        assert_eq!(items.matches("t0-").count(), 3, "{precision}: items of the same taste: {items}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_whatever_the_order_of_threads_and_queues() {
    let dir = prepared();
    let dir = dir.path();
    for (model, seed) in [("a", "1"), ("b", "2"), ("c", "3")] {
        run(dir, &[("VAECF_EMULATOR_SEED", seed)], &training(model, &["--epochs", "3"]), 0);
    }
    assert!(bits(dir, "a") == bits(dir, "b") && bits(dir, "a") == bits(dir, "c"));
}

/// A folder with some of the stand-ins, by what they are called there and what they are.
fn folder_with(dir: &Path, name: &str, libraries: &[(&str, &str)]) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir(&folder).expect("a folder");
    for (called, is) in libraries {
        std::os::unix::fs::symlink(built::emulator().join(is), folder.join(called)).expect("a link");
    }
    folder
}

#[test]
fn a_driver_of_cuda_12_works_with_the_cublaslt_of_its_time_and_not_with_a_later_one() {
    let dir = prepared();
    let driver = [("libcuda.so", "libcuda.so.1"), ("libcuda.so.1", "libcuda.so.1")];
    let product = |name| (name, "libcublasLt.so.13");
    let train = [&["train", "data", "-v", "--backend", "cuda", "--epochs", "1"], &SMALL[..]].concat();
    let old = [("VAECF_EMULATOR_DRIVER", "12000")];
    for (folder, product, with) in [
        ("twelve", product("libcublasLt.so.12"), ", cuBLASLt 1"),
        (
            "thirteen",
            product("libcublasLt.so.13"),
            "own kernels (cuBLASLt is not installed (pip install nvidia-cublas-cu12",
        ),
    ] {
        let libraries = folder_with(dir.path(), folder, &[&driver[..], &[product]].concat());
        let model = format!("model-{folder}");
        let (_, said) = run_with(&libraries, dir.path(), &old, &[&train[..], &["-o", &model]].concat(), 0);
        assert!(said.contains(with), "{said}");
    }
}

#[test]
fn without_cublaslt_its_own_products_take_over() {
    let dir = prepared();
    let alone = folder_with(dir.path(), "alone", &[("libcuda.so", "libcuda.so.1"), ("libcuda.so.1", "libcuda.so.1")]);
    let train = [&["train", "data", "-o", "model", "-v", "--backend", "cuda", "--epochs", "2"], &SMALL[..]].concat();
    let (_, said) = run_with(&alone, dir.path(), &[], &train, 0);
    assert!(said.contains("own kernels (cuBLASLt is not installed"), "{said}");
}

#[test]
fn auto_takes_a_device_that_works_and_else_says_why_not() {
    let dir = prepared();
    let dir = dir.path();
    let auto = |model| [&["train", "data", "--epochs", "1", "-o", model], &SMALL[..]].concat();
    let (_, said) = run(dir, &[], &auto("gpu"), 0);
    assert!(said.contains("backend: cuda (Emulated GPU"), "{said}");
    let (_, said) = run(dir, &[("VAECF_EMULATOR_DEVICES", "0")], &auto("cpu"), 0);
    assert!(said.contains("backend: cpu") && said.contains("the NVIDIA driver finds no device"), "{said}");
}

#[test]
fn whatever_is_missing_is_a_sentence() {
    let dir = prepared();
    let dir = dir.path();
    let here = built::emulator();
    let train = training("model", &[]);
    let refused = |environment: &[(&str, &str)], more: &[&str], words: &[&str]| {
        refused(here, dir, environment, &[&train[..], more].concat(), words);
        assert!(!dir.join("model/model.json").exists(), "nothing was trained");
    };
    refused(&[("VAECF_EMULATOR_DEVICES", "0")], &[], &["finds no device"]);
    refused(&[("VAECF_EMULATOR_DRIVER", "11040")], &[], &["too old", "CUDA 11.4", "525"]);
    refused(&[("VAECF_EMULATOR_INIT_ERROR", "34")], &[], &["stub", "LD_LIBRARY_PATH"]);
    refused(&[("VAECF_EMULATOR_INIT_ERROR", "803")], &[], &["restart"]);
    refused(&[("VAECF_EMULATOR_INIT_ERROR", "999")], &[], &["does not start"]);
    refused(&[("VAECF_EMULATOR_CAPABILITY", "6.1")], &[], &["6.1", "7.5"]);
    refused(&[("VAECF_EMULATOR_CAPABILITY", "7.5")], &["--precision", "bf16"], &["bf16", "f16 or f32"]);
    // No driver at all: a folder with nothing in it.
    let empty = dir.join("empty");
    fs::create_dir(&empty).expect("a folder");
    self::refused(&empty, dir, &[("CUDA_VISIBLE_DEVICES", "")], &train, &["NVIDIA driver"]);
    // Another number than there are devices is a mistake of who typed it.
    let (_, said) = run(dir, &[], &[&train[..], &["--device", "3"]].concat(), 2);
    assert!(said.contains("--device 3") && said.contains("one device, 0"), "{said}");
}

#[test]
fn a_device_is_chosen_by_a_part_of_its_name_and_a_run_file_keeps_it() {
    let dir = prepared();
    let dir = dir.path();
    let two = [("VAECF_EMULATOR_DEVICES", "2")];
    let train = |model, device| training(model, &["--epochs", "1", "--device", device]);
    run(dir, &[], &train("a", "emulated gpu"), 0);
    let text = |model: &str| fs::read_to_string(dir.join(model).join("run.toml")).expect("a run file");
    assert!(text("a").contains("device = \"emulated gpu\""), "{}", text("a"));
    run(dir, &[], &["train", "data", "-o", "b", "-q", "--config", "a/run.toml"], 0);
    assert!(text("a") == text("b") && bits(dir, "a") == bits(dir, "b"));
    for (environment, device, words) in [
        (&[][..], "1e3", &["--device 1e3", "no device is called so", "0 (Emulated GPU"][..]),
        (&two, "gpu", &["--device gpu", "more than one", "0 (Emulated GPU", "1 (Emulated GPU"]),
    ] {
        let (_, said) = run(dir, environment, &train("c", device), 2);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    run(dir, &two, &train("d", "1"), 0);
    run(dir, &two, &["train", "data", "-o", "e", "-q", "--config", "d/run.toml"], 0);
    assert!(text("d").contains("device = 1\n") && text("d") == text("e"), "{}", text("d"));
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old() {
    let dir = prepared();
    let old = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator-old");
    built::emulator_without(&old, "cuGraphLaunch");
    refused(&old, dir.path(), &[], &training("model", &[]), &["too old", "cuGraphLaunch", "525"]);
}

#[test]
fn a_device_that_is_too_small_is_a_sentence_before_and_during_the_run() {
    let dir = prepared();
    let dir = dir.path();
    let here = built::emulator();
    let with = |bytes: &str, words: &[&str]| {
        refused(here, dir, &[("VAECF_EMULATOR_MEMORY", bytes)], &training("model", &[]), words);
    };
    // No room for the library's workspace of 32 MiB, and then none for anything; and a few KiB beside it.
    with("1000", &["this run needs"]);
    with("33560000", &["this run needs", "smaller batch"]);
    // What has no plan beforehand says so when it asks for memory.
    run(dir, &[], &training("model", &["--epochs", "1"]), 0);
    let evaluate = ["evaluate", "model", "data", "--backend", "cuda"];
    refused(here, dir, &[("VAECF_EMULATOR_MEMORY", "33560000")], &evaluate, &["out of memory", "smaller batch"]);
}

#[test]
fn a_device_that_is_lost_leaves_the_checkpoint_to_go_on_from() {
    let dir = prepared();
    let dir = dir.path();
    run(dir, &[], &training("whole", &["--epochs", "6"]), 0);
    run(dir, &[], &training("parts", &["--epochs", "3"]), 0);
    let before = bits(dir, "parts");
    let resume = ["train", "data", "-q", "--backend", "cuda", "-o", "parts", "--resume", "--epochs", "6"];
    refused(built::emulator(), dir, &[("VAECF_EMULATOR_LOST_AFTER", "60")], &resume, &["the device was lost"]);
    assert!(bits(dir, "parts") == before, "the checkpoint is not what it was");
    run(dir, &[], &resume, 0);
    assert!(bits(dir, "parts") == bits(dir, "whole"), "the run that went on is another one");
}

#[test]
fn data_larger_than_asked_for_stream_to_the_same_bits() {
    let dir = prepared();
    let dir = dir.path();
    run(dir, &[], &training("resident", &["--epochs", "3"]), 0);
    for seed in ["1", "2"] {
        let streamed = [&training(seed, &["--epochs", "3"])[..], &["--data-memory", "4000"]].concat();
        run(dir, &[("VAECF_EMULATOR_SEED", seed)], &streamed, 0);
        assert!(bits(dir, "resident") == bits(dir, seed), "streamed with seed {seed}");
    }
}

/// What the library's workspace takes, and a little more than the model: the data do not fit beside it.
#[test]
fn data_that_do_not_fit_stream_by_themselves() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path();
    let mut text = String::from("user,item\n");
    for user in 0..40_000_u32 {
        for event in 0..12 {
            text += &format!("{user},{}\n", (user * 7 + event * 11) % 90);
        }
    }
    file(dir, "ratings.csv", text);
    run(dir, &[], &["prepare", "ratings.csv", "-o", "data", "-q", "--held-out", "50"], 0);
    let train = |model| {
        [
            "train",
            "data",
            "--backend",
            "cuda",
            "--epochs",
            "1",
            "--batch",
            "8000",
            "--hidden",
            "8",
            "--latent",
            "4",
            "-o",
            model,
        ]
    };
    let (_, said) = run(dir, &[], &train("resident"), 0);
    assert!(!said.contains("in chunks"), "{said}");
    let memory = [("VAECF_EMULATOR_MEMORY", "40200000")];
    let (_, said) = run(dir, &memory, &train("streamed"), 0);
    assert!(said.contains("in chunks"), "{said}");
    assert!(bits(dir, "resident") == bits(dir, "streamed"));
}

/// Two devices whose sums the stand-in for NCCL makes, telling each other in a folder of their own.
fn two_devices<'a>(between: &'a Path, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    fs::create_dir_all(between).expect("a folder");
    let folder = ("VAECF_EMULATOR_NCCL_FOLDER", between.to_str().expect("UTF-8"));
    [&[("VAECF_EMULATOR_DEVICES", "2"), folder], more].concat()
}

#[test]
fn two_devices_train_the_model_of_one() {
    let dir = prepared();
    let dir = dir.path();
    let between = dir.join("between");
    run(dir, &[], &training("one", &["--epochs", "3", "--precision", "f32"]), 0);
    for (model, more) in [("two", &[][..]), ("half", &["--half-sums"])] {
        let train = ["--epochs", "3", "--precision", "f32", "--devices", "0,1"];
        run(dir, &two_devices(&between, &[]), &training(model, &[&train[..], more].concat()), 0);
        let [one, two] = ["one", model].map(|model| epochs(dir, model).concat());
        let float = if more.is_empty() { Float::F16 } else { Float::Bf16 };
        compare(two.as_slice(), one.as_slice(), &Tolerance::new(float, float)).unwrap();
    }
    assert_eq!(fs::read_dir(&between).expect("a folder").count(), 0, "members leave nothing behind");
}

#[test]
fn what_goes_wrong_between_devices_is_a_sentence() {
    let dir = prepared();
    let dir = dir.path();
    assert!(run(dir, &[], &["doctor"], 0).0.contains("NCCL 2.27.3"));
    let between = dir.join("between");
    for (told, words) in [
        (("VAECF_EMULATOR_NCCL_VERSION", "21304"), &["NCCL is too old", "version 2.13.4", "install version 2.14"][..]),
        (("VAECF_EMULATOR_NCCL_INIT_ERROR", "2"), &["NCCL reports: unhandled system error", "joining"]),
        (("VAECF_EMULATOR_NCCL_MISSING", "1"), &["waited 2 seconds, which is the limit", "to join it"]),
        (("VAECF_EMULATOR_NCCL_STUCK_AFTER", "9"), &["waited 2 seconds, which is the limit", "to make a sum"]),
        (("VAECF_EMULATOR_NCCL_REMOTE_AFTER", "9"), &["NCCL reports: remote process exited", "Connection closed"]),
    ] {
        let train = training("model", &["--epochs", "9", "--force", "--devices", "0,1", "--group-timeout", "2"]);
        refused(built::emulator(), dir, &two_devices(&between, &[told]), &train, words);
    }
}

/// Two processes, whose devices are joined: the model of two devices in one. A member that cannot join says why at once,
/// and one that is stopped or killed is named by the other, whose device can only tell that it waits.
#[test]
fn two_processes_train_and_name_who_fails() {
    let dir = prepared();
    let dir = dir.path();
    let between = dir.join("between");
    let libraries = ("LD_LIBRARY_PATH", built::emulator().to_str().expect("UTF-8"));
    let on = [&two_devices(&between, &[])[..], &[libraries]].concat();
    let both = |wrong: &[(&str, &str)], arguments: &[&str]| {
        let port = group::port();
        let second = [&on[..], wrong].concat();
        let root = group::member_in(&on, dir, 0, 2, port, arguments);
        [root, group::member_in(&second, dir, 1, 2, port, arguments)]
    };
    let train = ["--epochs", "3", "--precision", "f32"];
    run(dir, &two_devices(&between, &[]), &training("devices", &[&train[..], &["--devices", "0,1"]].concat()), 0);
    for (code, said) in both(&[], &training("processes", &train)).map(group::ended) {
        assert_eq!(code, Some(0), "{}", said.stderr);
    }
    assert!(bits(dir, "devices") == bits(dir, "processes"));

    let begun = Instant::now();
    let [root, other] = both(&[("VAECF_EMULATOR_NCCL_INIT_ERROR", "2")], &training("none", &train)).map(group::ended);
    assert!(begun.elapsed() < Duration::from_secs(30), "at once, not after the limit");
    assert!(other.1.stderr.contains("error: rank 1: NCCL reports: unhandled system error"), "{}", other.1.stderr);
    assert!(root.1.stderr.contains("stopped, because rank 1 ") && root.1.stderr.contains("NCCL"), "{}", root.1.stderr);

    for (signal, words) in [("-STOP", "was not heard of for"), ("-KILL", "ended without a word")] {
        let long = ["--epochs", "100000", "--group-timeout", "3", "--checkpoint-seconds", "0", "--force"];
        let [root, mut other] = both(&[], &training("ended", &long));
        group::reaches(dir, "ended", 3);
        let send = |name: &str, child: &Child| {
            let sent = process::Command::new("kill").args([name, &child.id().to_string()]).status();
            assert!(sent.is_ok_and(|status| status.success()));
        };
        send(signal, &other);
        let (code, said) = group::ended(root);
        assert_eq!(code, Some(1), "{}", said.stderr);
        assert!(said.stderr.contains("stopped, because rank 1 ") && said.stderr.contains(words), "{}", said.stderr);
        send("-KILL", &other);
        other.wait().expect("an end");
        fs::remove_dir_all(dir.join("ended")).expect("a folder");
        fs::remove_dir_all(&between).expect("a folder");
        fs::create_dir(&between).expect("a folder");
    }
}

#[test]
fn a_bench_of_the_device() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let told = [("VAECF_EMULATOR_NCCL_FOLDER", dir.path().to_str().expect("UTF-8"))];
    let (out, _) = run(dir.path(), &told, &[&BENCH[..], &["--backend", "cuda", "--group-of-one"]].concat(), 0);
    let setting = has_all_figures(&out, "Emulated GPU");
    assert!(setting["group_of_one"]["median"].as_f64() > Some(0.0), "{setting}");
    assert!(setting["memory"]["used"].as_u64() > Some(0), "{setting}");
}
