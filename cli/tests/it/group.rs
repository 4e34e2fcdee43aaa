//! Several devices and several processes: the run of one, whoever starts them, and whatever happens to one of them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use vaecf_tests::compare::{Float, Tolerance, compare};

use crate::common::{NO_DEVICES, Said, VAECF, fails, file, no_drafts, prepared, run, trained};

/// What makes training quick, whoever does it: of the settings of [`crate::common::SMALL`] all but the threads.
const TRAIN: [&str; 9] = ["train", "data", "--hidden", "8", "--latent", "4", "--batch", "15", "--patience=0"];

/// Longer than anything here takes that goes well, and shorter than the limit that members wait for each other.
const SOON: Duration = Duration::from_secs(60);

/// All that a run leaves but for what says when and how fast.
fn bits(dir: &Path, model: &str) -> [Vec<u8>; 2] {
    ["model.safetensors", "training.safetensors"].map(|name| fs::read(dir.join(model).join(name)).expect(name))
}

/// The epochs in a log: losses and validations, as they are written.
pub(crate) fn epochs(dir: &Path, model: &str) -> Vec<[f64; 3]> {
    let text = fs::read_to_string(dir.join(model).join("training.jsonl")).expect("a log");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let figures = |line: Value| {
        ["/nll", "/kl", "/validation/value"].map(|at| line.pointer(at).and_then(Value::as_f64).expect("a figure"))
    };
    lines.filter(|line| line["event"] == "epoch").map(figures).collect()
}

/// Two logs of runs in double precision are one, to single precision.
fn same_curve(dir: &Path, one: &str, other: &str) {
    let [one, other] = [one, other].map(|model| epochs(dir, model).concat());
    compare(one.as_slice(), other.as_slice(), &Tolerance::new(Float::F32, Float::F32)).unwrap();
}

/// A port that nobody listens at.
pub(crate) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|at| at.local_addr()).expect("a free port").port()
}

/// A member's process, with the variables that launchers have agreed on.
fn member(dir: &Path, rank: u32, world: u32, port: u16, arguments: &[&str]) -> Child {
    member_in(&[], dir, rank, world, port, arguments)
}

/// The same with more of an environment.
pub(crate) fn member_in(
    environment: &[(&str, &str)],
    dir: &Path,
    rank: u32,
    world: u32,
    port: u16,
    arguments: &[&str],
) -> Child {
    let mut command = Command::new(VAECF);
    command.env_remove("NO_COLOR").envs(NO_DEVICES).envs(environment.iter().copied());
    command.current_dir(dir).args(arguments);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
    command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", world.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

/// Waits for a process, but not for ever.
pub(crate) fn ended(mut child: Child) -> (Option<i32>, Said) {
    let begun = Instant::now();
    while child.try_wait().expect("a process").is_none() {
        if begun.elapsed() > SOON {
            child.kill().expect("a signal");
            let said = said(child.wait_with_output().expect("an end"));
            panic!("it has not ended in {SOON:?}: {}", said.stderr);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("an end");
    (output.status.code(), said(output))
}

fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Said { stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs a command as so many processes, all of which end well. What they said, in the order of ranks.
fn processes(dir: &Path, world: u32, arguments: &[&str]) -> Vec<Said> {
    let port = port();
    let members: Vec<_> = (0..world).map(|rank| member(dir, rank, world, port, arguments)).collect();
    let ends = members.into_iter().map(ended).map(|(code, said)| {
        assert_eq!(code, Some(0), "{}", said.stderr);
        said
    });
    ends.collect()
}

/// So many shares of the CPU.
fn devices(count: usize) -> String {
    vec!["0"; count].join(",")
}

/// Waits until a run has written so many epochs to its log.
pub(crate) fn reaches(dir: &Path, model: &str, lines: usize) {
    let begun = Instant::now();
    let log = dir.join(model).join("training.jsonl");
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < lines {
        assert!(begun.elapsed() < SOON, "no epoch");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn several_devices_and_several_processes_train_the_model_of_one() {
    let dir = prepared();
    let train = |output: &str, more: &[&str]| {
        let all = [&TRAIN[..], &["-o", output, "--epochs", "4", "--precision", "f64"], more].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let words = |all: &[String]| -> Vec<String> { all.to_vec() };
    let call = |all: &[String]| run(dir.path(), &all.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    call(&train("one", &["--threads", "1"]));
    for world in 2..=4_u32 {
        let [inside, apart] = ["devices", "processes"].map(|name| format!("{name}-{world}"));
        let said = call(&train(&inside, &["--devices", &devices(world as usize), "--threads", "1"]));
        assert!(said.stderr.contains(&format!("group: {world} members, over threads")), "{}", said.stderr);
        same_curve(dir.path(), &inside, "one");

        let all = words(&train(&apart, &["--threads", "1"]));
        let said = processes(dir.path(), world, &all.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said[0].stderr.contains("over TCP") && said[0].stdout.contains("best epoch"), "{}", said[0].stderr);
        for other in &said[1..] {
            assert_eq!((other.stdout.as_str(), other.stderr.as_str()), ("", ""), "the root speaks for all");
        }
        // Sums are in the order of ranks, whatever is between them.
        assert!(bits(dir.path(), &apart) == bits(dir.path(), &inside), "{world} processes are not {world} devices");
    }
    no_drafts(dir.path());
}

#[test]
fn evaluation_and_recommendation_are_the_same_bytes() {
    let dir = trained();
    let evaluate = ["evaluate", "model", "data", "--format", "json", "--batch", "5", "--threads", "1"];
    let recommend =
        ["recommend", "model", "--data", "data", "-k", "4", "--batch", "7", "--format", "csv", "--threads", "1"];
    for command in [&evaluate[..], &recommend] {
        let one = run(dir.path(), command, 0).stdout;
        assert!(one.len() > 100);
        for world in [2, 3] {
            let inside = run(dir.path(), &[command, &["--devices", &devices(world)]].concat(), 0).stdout;
            assert!(inside == one, "{world} devices: {command:?}");
            let apart = processes(dir.path(), world as u32, command);
            assert!(apart[0].stdout == one, "{world} processes: {command:?}");
            assert!(apart[1..].iter().all(|said| said.stdout.is_empty()));
        }
    }
    // Histories come from the root's standard input, one after the other and at leisure.
    let port = port();
    let arguments = ["recommend", "model", "-", "-k", "3", "--format", "json", "--batch", "1", "--group-timeout", "1"];
    let other = member(dir.path(), 1, 2, port, &arguments);
    let mut root = Command::new(VAECF);
    root.envs(NO_DEVICES).current_dir(dir.path()).args(arguments);
    root.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port.to_string())]);
    root.envs([("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")]);
    let mut root = root.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut input = root.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(root.stdout.take().expect("a pipe")).lines();
    for history in ["[\"t0-1\", \"t0-2\"]\n", "[\"t1-4\"]\n", "[\"t2-4\"]\n"] {
        // Longer than members wait for each other otherwise, also before the first.
        thread::sleep(Duration::from_millis(1300));
        input.write_all(history.as_bytes()).expect("it reads");
        // The answer does not wait for the next history.
        assert!(answers.next().expect("an answer").expect("UTF-8").contains("items"));
    }
    drop(input);
    let (code, said) = ended(root);
    assert_eq!(code, Some(0), "{}", said.stderr);
    assert_eq!(ended(other).0, Some(0));
}

/// Members that were given different things are refused by name, and not made into figures.
#[test]
fn members_with_different_models_or_requests_are_refused() {
    let dir = trained();
    let again = [&TRAIN[..], &["-o", "other", "--epochs", "1", "--seed", "3", "-q"]].concat();
    run(dir.path(), &again, 0);
    let evaluate = ["evaluate", "model", "data", "--threads", "1"];
    let recommend = ["recommend", "model", "--data", "data", "--threads", "1"];
    for (command, other, words) in [
        (
            &evaluate[..],
            ["evaluate", "other", "data", "--threads", "1"].to_vec(),
            "the model and its weights of rank 1",
        ),
        (&evaluate, [&evaluate[..], &["--batch", "7"]].concat(), "what is evaluated and how of rank 1"),
        (&evaluate, [&evaluate[..], &["--metrics", "recall@5"]].concat(), "what is evaluated and how of rank 1"),
        (
            &recommend,
            ["recommend", "other", "--data", "data", "--threads", "1"].to_vec(),
            "the model and its weights of rank 1",
        ),
        (&recommend, [&recommend[..], &["-k", "3"]].concat(), "what is recommended of rank 1"),
        (&recommend, [&recommend[..], &["--no-mask"]].concat(), "what is recommended of rank 1"),
    ] {
        let port = port();
        let members = [member(dir.path(), 0, 2, port, command), member(dir.path(), 1, 2, port, &other)];
        for (code, said) in members.map(ended) {
            assert_eq!(code, Some(2), "{}", said.stderr);
            assert!(said.stdout.is_empty() && said.stderr.contains(words), "{words}: {}", said.stderr);
        }
    }
}

/// A member that is stopped while the root waits for nobody's histories but its own does not hold it for ever.
#[cfg(unix)]
#[test]
fn a_member_that_is_stopped_is_named() {
    let dir = trained();
    let port = port();
    let arguments = ["recommend", "model", "-", "-k", "3", "--format", "json", "--batch", "1", "--group-timeout", "1"];
    let signal = |child: &Child, name: &str| {
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    };
    let mut root = Command::new(VAECF);
    root.envs(NO_DEVICES).current_dir(dir.path()).args(arguments);
    root.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port.to_string())]);
    root.envs([("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")]);
    let mut root = root.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut other = member(dir.path(), 1, 2, port, &arguments);
    let mut input = root.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(root.stdout.take().expect("a pipe")).lines();
    input.write_all(b"[\"t0-1\"]\n").expect("it reads");
    assert!(answers.next().is_some());
    signal(&other, "-STOP");
    input.write_all(b"[\"t0-2\"]\n").expect("it reads");
    let (code, said) = ended(root);
    assert_eq!(code, Some(1));
    assert!(
        said.stderr.contains("rank 1 ") && said.stderr.contains("was not heard of for 1 seconds"),
        "{}",
        said.stderr
    );
    signal(&other, "-KILL");
    other.wait().expect("an end");
}

/// Kills a member in mid-run; all others end soon, say whose end it was, and the run goes on with another number of
/// members, from a checkpoint that is whole.
#[cfg(unix)]
#[test]
fn a_member_that_is_killed_ends_all_and_the_run_goes_on_without_it() {
    let dir = prepared();
    let long = [&TRAIN[..], &["--epochs", "100000", "--checkpoint-seconds", "0", "--threads", "1"]].concat();
    for victim in 0..3_u32 {
        let model = format!("model-{victim}");
        let arguments = [&long[..], &["-o", &model]].concat();
        let port = port();
        let mut members: Vec<_> = (0..3).map(|rank| Some(member(dir.path(), rank, 3, port, &arguments))).collect();
        reaches(dir.path(), &model, 4);
        let mut killed = members[victim as usize].take().expect("a member");
        killed.kill().expect("a signal");
        let of = format!("process {}", killed.id());
        let begun = Instant::now();
        killed.wait().expect("an end");
        for other in members.into_iter().flatten() {
            let (code, said) = ended(other);
            assert_eq!(code, Some(1), "{}", said.stderr);
            let last = said.stderr.lines().last().unwrap_or_default();
            assert!(last.starts_with("error: ") && last.contains(&format!("rank {victim} ")), "{}", said.stderr);
            assert!(last.contains(&of) && last.contains("ended without a word"), "{last}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "noticed at once, not after a limit");

        let (epochs, more) = (epochs(dir.path(), &model).len(), "--epochs");
        let enough = (epochs + 3).to_string();
        let on = [&TRAIN[..1], &["data", "-o", &model, "--resume", more, &enough, "--devices", "0,0"]].concat();
        assert!(run(dir.path(), &on, 0).stderr.contains("going on after epoch"));
        assert_eq!(self::epochs(dir.path(), &model).len(), epochs + 3);
        let evaluate = ["evaluate", &model, "data"];
        run(dir.path(), &evaluate, 0);
    }
}

/// An interrupt of any member saves the run of all.
#[cfg(unix)]
#[test]
fn an_interrupt_of_one_member_saves_the_run() {
    let dir = prepared();
    let whole = [&TRAIN[..], &["--epochs", "400", "--threads", "1", "-o", "whole", "--devices", "0,0"]].concat();
    run(dir.path(), &whole, 0);
    let long = [&TRAIN[..], &["--epochs", "400", "--threads", "1", "-o", "model"]].concat();
    let port = port();
    let members: Vec<_> = (0..2).map(|rank| member(dir.path(), rank, 2, port, &long)).collect();
    reaches(dir.path(), "model", 3);
    let signal = Command::new("kill").args(["-INT", &members[1].id().to_string()]).status();
    assert!(signal.is_ok_and(|status| status.success()));
    let ends: Vec<_> = members.into_iter().map(ended).collect();
    for (code, said) in &ends {
        assert_eq!(*code, Some(130), "{}", said.stderr);
    }
    assert!(ends[0].1.stderr.contains("--resume") && ends[1].1.stderr.is_empty());
    let at = epochs(dir.path(), "model").len();
    assert!(at < 400, "it was not interrupted");
    processes(dir.path(), 2, &["train", "data", "-o", "model", "--resume", "--threads", "1"]);
    assert!(bits(dir.path(), "model") == bits(dir.path(), "whole"), "the bits differ");
}

#[test]
fn a_member_that_is_missing_or_started_otherwise_is_a_sentence() {
    let dir = prepared();
    let train = [&TRAIN[..], &["-o", "model", "--epochs", "2", "--threads", "1"]].concat();
    let with_limit = [&train[..], &["--group-timeout", "1"]].concat();

    // The root alone, and another without its root.
    let (code, said) = ended(member(dir.path(), 0, 3, port(), &with_limit));
    assert_eq!(code, Some(1));
    assert!(said.stderr.contains("ranks 1 and 2") && said.stderr.contains("MASTER_ADDR"), "{}", said.stderr);
    let (code, said) = ended(member(dir.path(), 1, 3, port(), &with_limit));
    assert_eq!(code, Some(1));
    assert!(said.stderr.contains("127.0.0.1") && said.stderr.contains("MASTER_ADDR"), "{}", said.stderr);
    assert!(!dir.path().join("model").exists());

    // What one member finds wrong, all are told.
    let port = port();
    let root = member(dir.path(), 0, 2, port, &train);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = member(elsewhere.path(), 1, 2, port, &train);
    let (code, said) = ended(other);
    assert_eq!(code, Some(3));
    assert!(said.stderr.starts_with("error: rank 1: data: there is no"), "{}", said.stderr);
    let (code, said) = ended(root);
    assert_eq!(code, Some(1));
    assert!(
        said.stderr.contains("stopped, because rank 1") && said.stderr.contains("data: there is no"),
        "{}",
        said.stderr
    );

    // Half-set environments.
    for (set, words) in [
        (&[("RANK", "0")][..], ["RANK", "WORLD_SIZE"]),
        (&[("RANK", "3"), ("WORLD_SIZE", "2")], ["RANK", "WORLD_SIZE"]),
        (&[("OMPI_COMM_WORLD_SIZE", "2")], ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]),
    ] {
        let mut command = Command::new(VAECF);
        command.envs(NO_DEVICES).envs(set.iter().copied()).current_dir(dir.path()).args(&train);
        let output = command.output().expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    // Both ways at once.
    let mut command = Command::new(VAECF);
    command.envs(NO_DEVICES).envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
    let output = command.current_dir(dir.path()).args(&train).args(["--devices", "0,0"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--devices"));
    let both = [&train[..], &["--devices", "0,0", "--device", "0"]].concat();
    assert!(run(dir.path(), &both, 2).stderr.contains("--devices"));
    let run_file = file(dir.path(), "one.toml", "device = 0\n");
    let of_one = ["--config", run_file.to_str().expect("UTF-8"), "-o", "several", "--devices", "0,0", "-q"];
    run(dir.path(), &[&TRAIN[..], &of_one, &["--epochs", "1"]].concat(), 0);
    fails(dir.path(), &[&train[..], &["--devices", "0,0", "--half-sums"]].concat(), 2, &["--half-sums", "cpu"]);
}

/// One device among several that fails is named once.
#[test]
fn an_error_of_one_device_is_said_once() {
    let dir = prepared();
    let train = [&TRAIN[..], &["-o", "model", "--epochs", "2", "--backend", "cpu"]].concat();
    let said = fails(dir.path(), &[&train[..], &["--devices", "0,rtx"]].concat(), 2, &["rtx"]);
    assert!(said.starts_with("error: rank 1: --device rtx"), "{said}");
    fails(dir.path(), &[&train[..], &["--devices", "0,0", "--lr", "1e30"]].concat(), 1, &["not finite"]);
}

/// Open MPI's launcher, which may be root's in a container, with more members than there are cores. The members meet over
/// MPI where the binary is built with it, and else over TCP.
#[cfg(target_os = "linux")]
mod mpirun {
    use super::*;

    const CARRIER: &str = if cfg!(feature = "mpi") { "over MPI" } else { "over TCP" };

    /// The launcher with so many members, or none where there is none; `.ci/run` installs one.
    fn mpirun(dir: &Path, world: u32, arguments: &[&str]) -> Option<Command> {
        if Command::new("mpirun").arg("--version").output().is_err() {
            eprintln!("skipped: no mpirun on this machine");
            return None;
        }
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", &world.to_string(), VAECF]);
        command.args(arguments).current_dir(dir).envs(NO_DEVICES).env_remove("NO_COLOR");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some(command)
    }

    #[test]
    fn it_starts_the_run_of_one() {
        let dir = prepared();
        let settings = ["--epochs", "3", "--threads", "1", "--precision", "f64"];
        run(dir.path(), &[&TRAIN[..], &["-o", "one"], &settings].concat(), 0);
        for world in [2, 4] {
            let [inside, apart] = ["devices", "mpirun"].map(|name| format!("{name}-{world}"));
            let arguments = [&TRAIN[..], &["-o", &apart], &settings].concat();
            let Some(mut command) = mpirun(dir.path(), world, &arguments) else { return };
            let (code, said) = ended(command.spawn().expect("mpirun starts"));
            assert_eq!(code, Some(0), "{}", said.stderr);
            assert!(said.stderr.contains(&format!("group: {world} members, {CARRIER}")), "{}", said.stderr);
            assert_eq!(said.stdout.matches("best epoch").count(), 1, "the root speaks for all: {}", said.stdout);
            let devices = devices(world as usize);
            run(dir.path(), &[&TRAIN[..], &["-o", &inside, "--devices", &devices], &settings].concat(), 0);
            assert!(bits(dir.path(), &inside) == bits(dir.path(), &apart), "sums are in the order of ranks");
            same_curve(dir.path(), &apart, "one");

            let evaluate = ["evaluate", &apart, "data", "--format", "json", "--threads", "1"];
            let (code, said) = ended(mpirun(dir.path(), world, &evaluate).unwrap().spawn().expect("mpirun starts"));
            assert_eq!(code, Some(0), "{}", said.stderr);
            assert!(said.stdout == run(dir.path(), &evaluate, 0).stdout);
        }
    }

    /// The process of a member, found by what its launcher has set and by the folder it runs in.
    fn process(dir: &Path, rank: u32) -> Option<u32> {
        let of_rank = format!("OMPI_COMM_WORLD_RANK={rank}");
        let wanted = fs::canonicalize(dir).ok()?;
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let variables = fs::read(entry.path().join("environ")).ok()?;
            let there = fs::read_link(entry.path().join("cwd")).ok()? == wanted;
            let is_ours = fs::read_link(entry.path().join("exe")).ok()? == fs::canonicalize(VAECF).ok()?;
            let has_rank = variables.split(|&byte| byte == 0).any(|variable| variable == of_rank.as_bytes());
            (there && is_ours && has_rank).then_some(id)
        })
    }

    #[test]
    fn a_member_that_is_killed_ends_all() {
        for victim in 0..3 {
            let dir = prepared();
            let long = ["-o", "model", "--epochs", "100000", "--checkpoint-seconds", "0", "--threads", "1"];
            let Some(mut command) = mpirun(dir.path(), 3, &[&TRAIN[..], &long].concat()) else { return };
            let launcher = command.spawn().expect("mpirun starts");
            reaches(dir.path(), "model", 4);
            let id = process(dir.path(), victim).expect("a member's process");
            let signal = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            assert!(signal.is_ok_and(|status| status.success()));
            let begun = Instant::now();
            let (code, said) = ended(launcher);
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", said.stderr);
            assert!(code != Some(0) && said.stderr.contains(&format!("rank {victim}")), "{}", said.stderr);
            assert!((0..3).all(|rank| process(dir.path(), rank).is_none()), "nobody is left");
            let enough = (epochs(dir.path(), "model").len() + 2).to_string();
            run(dir.path(), &["train", "data", "-o", "model", "--resume", "--epochs", &enough], 0);
        }
    }
}
