//! Small data with a plan, and how the binary is run and judged.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;

/// The path of the binary.
pub(crate) const VAECF: &str = env!("CARGO_BIN_EXE_vaecf");

/// The environment in which this machine has no device but its processor: `auto` is the CPU.
pub(crate) const NO_DEVICES: [(&str, &str); 3] =
    [("CUDA_VISIBLE_DEVICES", ""), ("VK_DRIVER_FILES", "/no/driver.json"), ("VK_ICD_FILENAMES", "/no/driver.json")];

/// The binary, without what the environment of the tests may say about colours, and without the devices of this
/// machine.
pub(crate) fn vaecf(arguments: &[&str]) -> Command {
    let mut command = Command::new(VAECF);
    command.env_remove("NO_COLOR").envs(NO_DEVICES).args(arguments);
    command
}

/// What a run of the binary said.
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary in a folder and checks the exit code, and that nothing panicked.
pub(crate) fn run(dir: &Path, arguments: &[&str], code: i32) -> Said {
    let output = vaecf(arguments).current_dir(dir).output().expect("the binary starts");
    let said = Said {
        stdout: String::from_utf8(output.stdout).expect("results are UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
    };
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{}\n{}", said.stdout, said.stderr);
    assert!(!said.stderr.contains("panicked") && !said.stderr.contains("a bug in vaecf"), "{}", said.stderr);
    said
}

/// Runs what must fail: one error of one line, with all of `words` in it, and nothing half-written.
pub(crate) fn fails(dir: &Path, arguments: &[&str], code: i32, words: &[&str]) -> String {
    let said = run(dir, arguments, code);
    let errors: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "one sentence: {}", said.stderr);
    assert_eq!(said.stderr.lines().last(), Some(errors[0]), "the error comes last: {}", said.stderr);
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in: {}", errors[0]);
    }
    assert_eq!(said.stdout, "", "a failed command has no result");
    no_drafts(dir);
    errors[0].to_owned()
}

/// Nothing half-written lies anywhere in a folder.
pub(crate) fn no_drafts(dir: &Path) {
    for name in files(dir) {
        assert!(!name.contains(".writing-") && !name.contains(".tmp"), "{name} was left behind");
    }
}

/// All files in a folder and below, by their paths in it.
pub(crate) fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("a name");
        if entry.file_type().expect("a type").is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.insert(name);
        }
    }
    found
}

/// A file with this text.
pub(crate) fn file(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a writable folder");
    path
}

/// `users` users of three tastes, each with 8 of the 10 items of the taste; ids are words.
pub(crate) fn ratings(dir: &Path, users: u32) {
    let mut text = String::from("user,item,rating\n");
    for user in 0..users {
        for item in (0..10).filter(|item| *item != user % 10 && *item != (user / 10 + 3) % 10) {
            text += &format!("u{user},t{}-{item},{}\n", user % 3, 1 + (user + item) % 5);
        }
    }
    file(dir, "ratings.csv", text);
}

/// What makes training quick.
pub(crate) const SMALL: [&str; 8] = ["--hidden", "8", "--latent", "4", "--batch", "16", "--threads", "2"];

/// A bench that is over soon.
pub(crate) const BENCH: [&str; 13] = [
    "bench",
    "--shape",
    "200x50x2000",
    "--steps",
    "1",
    "--rounds",
    "1",
    "-k",
    "5",
    "--batch",
    "50",
    "--format",
    "json",
];

/// Checks what that printed of a device that has a clock and says how much memory it has: every figure is there.
pub(crate) fn has_all_figures(printed: &str, device: &str) {
    let found: serde_json::Value = serde_json::from_str(printed).expect("JSON");
    let setting = &found["settings"][0];
    assert!(setting["device"].as_str().is_some_and(|said| said.contains(device)), "{found}");
    for figure in ["ours/train/median", "ours/infer/median", "eager/median", "ceilings/copy", "ceilings/products"] {
        let value = setting.pointer(&format!("/{figure}")).and_then(serde_json::Value::as_f64);
        assert!(value.is_some_and(|value| value > 0.0), "{figure}: {setting}");
    }
    for figure in ["memory/planned", "memory/used"] {
        let value = setting.pointer(&format!("/{figure}")).and_then(serde_json::Value::as_u64);
        assert!(value > Some(0), "{figure}: {setting}");
    }
    for part in ["training", "inference"] {
        let rows = setting[part].as_array().expect("rows");
        let timed = rows.iter().all(|row| row["milliseconds"].as_f64() > Some(0.0));
        assert!(!rows.is_empty() && timed, "{part}: {setting}");
    }
}

/// A folder with `ratings.csv`, and `data/` prepared from it.
pub(crate) fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    ratings(dir.path(), 120);
    run(dir.path(), &["prepare", "ratings.csv", "-o", "data", "-q"], 0);
    dir
}

/// The same, and `model/` trained on it.
pub(crate) fn trained() -> tempfile::TempDir {
    let dir = prepared();
    train(dir.path(), &["-o", "model", "--epochs", "4"]);
    dir
}

/// Trains a small model on `data/`.
pub(crate) fn train(dir: &Path, more: &[&str]) -> Said {
    run(dir, &[&["train", "data", "-q"], &SMALL[..], more].concat(), 0)
}
