//! Runs that stop and go on, and folders that are not overwritten.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::common::{NO_DEVICES, SMALL, VAECF, fails, file, files, no_drafts, prepared, run, train};

/// The weights and the whole state of a run.
fn bits(dir: &Path, model: &str) -> [Vec<u8>; 2] {
    ["model.safetensors", "training.safetensors"].map(|name| fs::read(dir.join(model).join(name)).expect(name))
}

/// The epochs in a log, in order.
fn epochs(dir: &Path, model: &str) -> Vec<u64> {
    let text = fs::read_to_string(dir.join(model).join("training.jsonl")).expect("a log");
    let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    values.filter(|line| line["event"] == "epoch").filter_map(|line| line["epoch"].as_u64()).collect()
}

fn start(dir: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(VAECF);
    command.envs(NO_DEVICES).args(["train", "data"]).args(SMALL).args(arguments).current_dir(dir);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one() {
    let dir = prepared();
    for precision in ["f32", "f64"] {
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}-{precision}"));
        train(dir.path(), &["-o", &whole, "--epochs", "7", "--precision", precision]);
        train(dir.path(), &["-o", &parts, "--epochs", "3", "--precision", precision]);
        run(
            dir.path(),
            &["train", "data", "-q", "-o", &parts, "--resume", "--epochs", "7", "--precision", precision],
            0,
        );
        assert!(bits(dir.path(), &whole) == bits(dir.path(), &parts), "{precision}: the bits differ");
        assert_eq!(epochs(dir.path(), &parts), (1..=7).collect::<Vec<_>>());
    }
}

/// The same seed gives the same bits, another seed others.
#[test]
fn a_run_repeats() {
    let dir = prepared();
    train(dir.path(), &["-o", "a", "--epochs", "3"]);
    train(dir.path(), &["-o", "b", "--epochs", "3"]);
    train(dir.path(), &["-o", "c", "--epochs", "3", "--seed", "7"]);
    train(dir.path(), &["-o", "d", "--epochs", "3", "--threads", "1"]);
    assert!(bits(dir.path(), "a") == bits(dir.path(), "b"));
    assert!(bits(dir.path(), "a") != bits(dir.path(), "c"));
    assert!(bits(dir.path(), "a") == bits(dir.path(), "d"), "the number of threads changes the bits");
}

/// Where the data lie changes no bit, is no setting of the run, and may change when it goes on.
#[test]
fn data_that_pass_through_the_device_give_the_same_bits() {
    let dir = prepared();
    train(dir.path(), &["-o", "whole", "--epochs", "3"]);
    train(dir.path(), &["-o", "chunks", "--epochs", "2", "--data-memory", "1MiB"]);
    run(dir.path(), &["train", "data", "-q", "-o", "chunks", "--resume", "--epochs", "3", "--data-memory", "all"], 0);
    assert!(bits(dir.path(), "whole") == bits(dir.path(), "chunks"));
    assert!(!fs::read_to_string(dir.path().join("chunks/run.toml")).expect("a run file").contains("data-memory"));
    let log = fs::read_to_string(dir.path().join("chunks/training.jsonl")).expect("a log");
    assert!(log.contains(r#""streamed":"#), "{log}");
    let with = |size| ["train", "data", "-o", "none", "--data-memory", size];
    fails(dir.path(), &with("9"), 2, &["9 bytes", "smaller batch"]);
    assert!(run(dir.path(), &with("much"), 2).stderr.contains("512MiB"));
}

/// Killed again and again, wherever it happens to be, a run still ends with the same bits.
#[test]
fn a_run_survives_being_killed() {
    let dir = prepared();
    let limits = ["--epochs", "60", "--patience", "0"];
    train(dir.path(), &[&["-o", "whole"], &limits[..]].concat());
    let ready = dir.path().join("killed/config.json");
    // Moments of a fixed sequence that looks like chance.
    let moments = (1_u64..=12).map(|n| n * 0x9E37_79B9 % 53);
    for moment in moments {
        let how = if ready.exists() { "--resume" } else { "--force" };
        let mut child = start(dir.path(), &[&["-o", "killed", "--checkpoint-seconds", "0", how], &limits[..]].concat());
        thread::sleep(Duration::from_millis(10 + 3 * moment));
        child.kill().expect("a signal");
        child.wait().expect("it ends");
    }
    let how = if ready.exists() { "--resume" } else { "--force" };
    train(dir.path(), &[&["-o", "killed", how, "--checkpoint-seconds", "30"], &limits[..]].concat());
    assert!(bits(dir.path(), "whole") == bits(dir.path(), "killed"), "the bits differ");
    assert_eq!(epochs(dir.path(), "killed"), (1..=60).collect::<Vec<_>>());
    no_drafts(dir.path());
}

/// Ctrl-C saves the run, says how to go on, and exits 130; going on gives the same bits.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_the_run() {
    let dir = prepared();
    let limits = ["--epochs", "400", "--patience", "0"];
    let child = start(dir.path(), &[&["-o", "model", "--checkpoint-seconds", "1000"], &limits[..]].concat());
    let log = dir.path().join("model/training.jsonl");
    let begun = Instant::now();
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 4 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no epoch in a minute");
        thread::sleep(Duration::from_millis(2));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signal.is_ok_and(|status| status.success()));
    let done = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume") && !said.contains("panicked"), "{said}");
    assert!(epochs(dir.path(), "model").len() < 400, "it was not interrupted");

    train(dir.path(), &["-o", "model", "--resume"]);
    train(dir.path(), &[&["-o", "whole"], &limits[..]].concat());
    // The checkpoint interval is no part of the state.
    assert!(bits(dir.path(), "whole") == bits(dir.path(), "model"), "the bits differ");
    no_drafts(dir.path());
}

#[test]
fn nothing_is_overwritten_without_force() {
    let dir = prepared();
    train(dir.path(), &["-o", "model", "--epochs", "2"]);
    let before = bits(dir.path(), "model");
    let again = [&["train", "data", "-o", "model", "--epochs", "1"], &SMALL[..]].concat();
    fails(dir.path(), &again, 2, &["model", "--force", "--resume"]);
    assert!(bits(dir.path(), "model") == before);
    // A run that cannot begin replaces nothing, even with --force.
    let huge = ["train", "data", "-o", "model", "--force", "--hidden", "1000000", "--latent", "1000000"];
    fails(dir.path(), &huge, 4, &["GiB"]);
    assert!(bits(dir.path(), "model") == before);
    train(dir.path(), &["-o", "model", "--epochs", "1", "--force"]);
    assert!(bits(dir.path(), "model") != before);
    assert_eq!(epochs(dir.path(), "model"), [1]);

    // Killed while it began anew, a run leaves no card; its folder is still that of a model.
    fs::remove_file(dir.path().join("model/config.json")).expect("a card");
    fails(dir.path(), &again, 2, &["model", "--force"]);
    train(dir.path(), &["-o", "model", "--epochs", "1", "--force"]);

    // What is no model is never replaced.
    let kept = files(&dir.path().join("data"));
    for force in [&[][..], &["--force"]] {
        let onto = [&["train", "data", "-o", "data", "--epochs", "1"], &SMALL[..], force].concat();
        fails(dir.path(), &onto, 2, &["not a model"]);
    }
    assert_eq!(files(&dir.path().join("data")), kept);

    fails(dir.path(), &["prepare", "ratings.csv", "-o", "data"], 2, &["data", "--force"]);
    run(dir.path(), &["prepare", "ratings.csv", "-o", "data", "--force"], 0);
    for arguments in [
        &["recommend", "model", "ratings.csv", "-o", "ratings.csv"][..],
        &["evaluate", "model", "data", "-o", "ratings.csv"],
        &["evaluate", "model", "data", "--per-user", "ratings.csv"],
        &["bench", "--shape", "10x10x20", "-o", "ratings.csv"],
    ] {
        fails(dir.path(), arguments, 2, &["ratings.csv", "--force"]);
    }
}

#[test]
fn a_run_goes_on_as_it_began() {
    let dir = prepared();
    train(dir.path(), &["-o", "model", "--epochs", "2"]);
    let resume = ["train", "data", "-o", "model", "--resume"];
    fails(dir.path(), &[&resume[..], &["--lr", "0.1"]].concat(), 2, &["--epochs"]);
    fails(dir.path(), &[&resume[..], &["--latent", "9"]].concat(), 2, &["--epochs"]);
    fails(dir.path(), &[&resume[..], &["--seed", "9"]].concat(), 2, &["--epochs"]);
    fails(dir.path(), &[&resume[..], &["--preset", "large-batch"]].concat(), 2, &["--epochs"]);
    fails(dir.path(), &[&resume[..], &["--precision", "f64", "--epochs", "3"]].concat(), 2, &["precision", "f64"]);
    fails(dir.path(), &["train", "data", "-o", "none", "--resume"], 3, &["none", "no model"]);
    assert!(!dir.path().join("none").exists());
}

/// The file beside a result makes the same result again, and the command line wins over it.
#[test]
fn a_run_file_goes_round() {
    let dir = prepared();
    train(dir.path(), &["-o", "a", "--epochs", "3", "--hidden", "8,6", "--member", "logistic-vae", "--lr", "2e-3"]);
    run(dir.path(), &["train", "data", "-o", "b", "-q", "--config", "a/run.toml"], 0);
    assert!(bits(dir.path(), "a") == bits(dir.path(), "b"));
    let text = |model: &str| fs::read_to_string(dir.path().join(model).join("run.toml")).expect("a run file");
    assert_eq!(text("a"), text("b"));
    assert!(text("a").contains("lr = 0.002") && text("a").contains("hidden = [8, 6]"), "{}", text("a"));

    run(
        dir.path(),
        &["train", "data", "-o", "c", "-q", "--config", "a/run.toml", "--epochs", "1", "--hidden", "none"],
        0,
    );
    assert!(text("c").contains("epochs = 1") && text("c").contains("hidden = []"), "{}", text("c"));
    run(dir.path(), &["train", "data", "-o", "d", "-q", "--config", "c/run.toml"], 0);
    assert!(bits(dir.path(), "c") == bits(dir.path(), "d"));

    // The output may be in the file, too, and options may have defaults in it for every command.
    file(
        dir.path(),
        "prepare.toml",
        "output = \"data2\"\nmin-user = 2\nquiet = true\nvalidation = \"20%\"\ndevice = \"1e3\"\n",
    );
    let said = run(dir.path(), &["prepare", "ratings.csv", "--config", "prepare.toml"], 0);
    assert_eq!(said.stderr, "");
    run(dir.path(), &["prepare", "ratings.csv", "--config", "data2/run.toml", "-o", "data3"], 0);
    let train = |data: &str| fs::read(dir.path().join(data).join("train.safetensors")).expect("a data set");
    assert!(train("data2") == train("data3") && train("data2") != train("data"));
    // A name that looks like a number in another form is still a name.
    for data in ["data2", "data3"] {
        assert!(text(data).contains("device = \"1e3\"\n"), "{}", text(data));
    }
}

#[test]
fn a_wrong_run_file() {
    let dir = prepared();
    let with = ["train", "data", "-o", "model", "--config", "run.toml"];
    for (text, code, words) in [
        ("learning-rate = 1\n", 2, &["run.toml", "learning-rate", "vaecf train"][..]),
        ("kl_cap = 1\n", 2, &["run.toml", "kl_cap", "`kl-cap`"]),
        ("config = \"a\"\n", 2, &["run.toml", "config"]),
        ("force = 1\n", 2, &["run.toml", "force", "true or false"]),
        ("[train]\nlr = 1\n", 2, &["run.toml", "train"]),
        ("lr = \n", 3, &["run.toml:1", "TOML"]),
    ] {
        file(dir.path(), "run.toml", text);
        fails(dir.path(), &with, code, words);
    }
    file(dir.path(), "run.toml", "epochs = \"many\"\n");
    let said = run(dir.path(), &with, 2);
    assert!(said.stderr.contains("many") && said.stderr.contains("--epochs"), "{}", said.stderr);
    assert!(!dir.path().join("model").exists());
}
