//! Bad input: an exit code and one clear sentence, nothing half-written, no panic.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::common::{NO_DEVICES, SMALL, VAECF, fails, file, files, prepared, ratings, run, train, trained};

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Preparing fails because of the data, and leaves nothing.
fn cannot_prepare(dir: &Path, more: &[&str], words: &[&str]) {
    cannot_prepare_with(3, dir, more, words);
}

fn cannot_prepare_with(code: i32, dir: &Path, more: &[&str], words: &[&str]) {
    let before = files(dir);
    fails(dir, &[&["prepare", "-o", "data"], more].concat(), code, words);
    assert_eq!(files(dir), before);
}

#[test]
fn a_missing_file() {
    let dir = empty();
    cannot_prepare(dir.path(), &["none.csv"], &["none.csv", "no such file"]);
    fails(dir.path(), &["train", "none", "-o", "model"], 3, &["none"]);
    fails(dir.path(), &["evaluate", "none", "data"], 3, &["none", "no model"]);
    fails(dir.path(), &["recommend", "none", "users.csv"], 3, &["none", "no model"]);
    fails(dir.path(), &["compare", "a.json", "b.json"], 3, &["a.json", "no such file"]);
    fails(dir.path(), &["compare", ".", "."], 2, &["a folder", "vaecf evaluate -o"]);
    fails(dir.path(), &["train", "data", "-o", "model", "--config", "run.toml"], 3, &["run.toml", "no such file"]);
}

#[test]
fn ratings_where_a_data_set_or_a_model_belongs() {
    let dir = empty();
    ratings(dir.path(), 20);
    fails(dir.path(), &["train", "ratings.csv", "-o", "model"], 3, &["vaecf prepare ratings.csv"]);
    fails(dir.path(), &["evaluate", "ratings.csv", "data"], 3, &["no model", "vaecf train"]);
}

#[test]
fn an_empty_file() {
    let dir = empty();
    file(dir.path(), "ratings.csv", "");
    cannot_prepare(dir.path(), &["ratings.csv"], &["ratings.csv", "empty"]);
}

#[test]
fn a_wrong_column() {
    let dir = empty();
    ratings(dir.path(), 20);
    cannot_prepare_with(2, dir.path(), &["ratings.csv", "--item", "movie"], &["ratings.csv", "movie"]);
}

#[test]
fn text_where_a_number_belongs() {
    let dir = empty();
    file(dir.path(), "ratings.csv", "user,item,rating\nu1,i1,4\nu1,i2,good\n");
    cannot_prepare(dir.path(), &["ratings.csv", "--threshold", ">3"], &["ratings.csv:3", "good"]);
}

#[test]
fn a_truncated_gzip() {
    let dir = empty();
    ratings(dir.path(), 200);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&fs::read(dir.path().join("ratings.csv")).expect("ratings")).expect("memory");
    let packed = packed.finish().expect("memory");
    file(dir.path(), "ratings.csv.gz", &packed[..packed.len() / 2]);
    cannot_prepare(dir.path(), &["ratings.csv.gz"], &["ratings.csv.gz"]);
}

#[test]
fn a_zip_without_ratings() {
    let dir = empty();
    let mut packed = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in ["README.md", "movies.csv"] {
        packed.start_file(name, zip::write::SimpleFileOptions::default()).expect("memory");
        packed.write_all(b"movieId,title").expect("memory");
    }
    file(dir.path(), "ratings.zip", packed.finish().expect("memory").into_inner());
    cannot_prepare(dir.path(), &["ratings.zip"], &["ratings.zip", "movies.csv"]);
}

#[test]
fn one_user() {
    let dir = empty();
    ratings(dir.path(), 1);
    cannot_prepare_with(2, dir.path(), &["ratings.csv", "--validation", "1", "--test", "0"], &["hold out fewer"]);
    cannot_prepare(dir.path(), &["ratings.csv"], &["1 users is nobody"]);
}

#[test]
fn no_held_out_user_left() {
    let dir = empty();
    let rows: String = (0..60).map(|row| format!("u{},i{}\n", row / 3, row % 3)).collect();
    file(dir.path(), "ratings.csv", format!("user,item\n{rows}"));
    cannot_prepare(dir.path(), &["ratings.csv", "--min-user", "1"], &["held out"]);
    ratings(dir.path(), 60);
    cannot_prepare_with(2, dir.path(), &["ratings.csv", "--validation", "40", "--test", "40"], &["60"]);
}

#[test]
fn k_larger_than_the_catalogue() {
    let dir = trained();
    fails(dir.path(), &["recommend", "model", "ratings.csv", "-k", "31"], 2, &["31", "1 to 30"]);
    fails(dir.path(), &["recommend", "model", "ratings.csv", "-k", "0", "-o", "r.csv"], 2, &["1 to 30"]);
    assert!(!dir.path().join("r.csv").exists());
}

#[test]
fn unknown_item_ids() {
    let dir = trained();
    file(dir.path(), "users.csv", "user,item\na,t0-1\na,what\nb,never\nb,heard\n");
    let said = run(dir.path(), &["recommend", "model", "users.csv", "-k", "3", "--format", "json"], 0);
    assert!(said.stderr.contains("3 events") && said.stderr.contains("what, "), "{}", said.stderr);
    let lines: Vec<serde_json::Value> =
        said.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["user"], &lines[0]["popular"]), (&"a".into(), &false.into()));
    assert_eq!((&lines[1]["user"], &lines[1]["popular"]), (&"b".into(), &true.into()));
}

/// A tensor file, changed in a tensor's bytes, with the checksum that fits.
fn tamper(path: &Path, change: impl FnOnce(&mut [u8])) {
    let bytes = fs::read(path).expect("tensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let mut data = bytes[8 + length..].to_vec();
    change(&mut data);
    let said: String = serde_json::from_value(header["__metadata__"]["vaecf"].clone()).expect("metadata");
    let mut metadata: std::collections::BTreeMap<String, String> = serde_json::from_str(&said).expect("metadata");
    metadata.remove("crc32");
    let mut sum = crc32fast::Hasher::new();
    let tensors: std::collections::BTreeMap<_, _> =
        header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__").collect();
    for (name, tensor) in tensors {
        let at = |end: usize| tensor["data_offsets"][end].as_u64().expect("an offset") as usize;
        sum.update(name.as_bytes());
        sum.update(&data[at(0)..at(1)]);
    }
    for (key, value) in &metadata {
        sum.update(key.as_bytes());
        sum.update(value.as_bytes());
    }
    metadata.insert("crc32".into(), format!("{:08x}", sum.finalize()));
    header["__metadata__"]["vaecf"] = serde_json::to_string(&metadata).expect("JSON").into();
    let header = serde_json::to_vec(&header).expect("JSON");
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).expect("a writable file");
}

#[test]
fn nan_in_a_checkpoint() {
    let dir = trained();
    let weights = dir.path().join("model/model.safetensors");
    tamper(&weights, |_| ());
    run(dir.path(), &["evaluate", "model", "data"], 0);
    tamper(&weights, |data| data[400..404].copy_from_slice(&f32::NAN.to_le_bytes()));
    fails(dir.path(), &["evaluate", "model", "data"], 3, &["model.safetensors", "NaN"]);
    fails(dir.path(), &["recommend", "model", "ratings.csv"], 3, &["model.safetensors", "NaN"]);
    tamper(&dir.path().join("model/training.safetensors"), |data| data[400..404].fill(0xff));
    fails(dir.path(), &["train", "data", "-o", "model", "--resume"], 3, &["NaN"]);
}

#[test]
fn a_damaged_checkpoint() {
    let dir = trained();
    let path = dir.path().join("model/model.safetensors");
    let mut bytes = fs::read(&path).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).expect("a writable file");
    fails(dir.path(), &["evaluate", "model", "data"], 3, &["model.safetensors", "checksum"]);
    fs::write(&path, &bytes[..last / 2]).expect("a writable file");
    fails(dir.path(), &["evaluate", "model", "data"], 3, &["model.safetensors"]);
}

#[test]
fn a_checkpoint_of_another_shape() {
    let dir = trained();
    train(dir.path(), &["-o", "other", "--epochs", "1", "--latent", "5"]);
    fs::copy(dir.path().join("other/model.safetensors"), dir.path().join("model/model.safetensors")).expect("a copy");
    fails(dir.path(), &["evaluate", "model", "data"], 3, &["model.safetensors", "another shape"]);
    fails(dir.path(), &["recommend", "model", "ratings.csv"], 3, &["another shape"]);
}

#[test]
fn another_data_set() {
    let dir = trained();
    ratings(dir.path(), 60);
    run(dir.path(), &["prepare", "ratings.csv", "-o", "data", "--force", "--seed", "1"], 0);
    fails(dir.path(), &["train", "data", "-o", "model", "--resume"], 3, &["other training data"]);
    file(dir.path(), "few.csv", "user,item\na,1\na,2\na,3\na,4\na,5\nb,1\nb,2\nb,3\nb,4\nb,5\n");
    run(dir.path(), &["prepare", "few.csv", "-o", "few", "--validation", "0", "--test", "1"], 0);
    fails(dir.path(), &["evaluate", "model", "few"], 3, &["items"]);
    fails(dir.path(), &["evaluate", "model", "data", "--metrics", "rmse"], 2, &["gaussian-vae"]);
}

/// A run that needs more than the machine has says so before anything is made.
#[test]
fn a_run_that_cannot_fit() {
    let dir = prepared();
    let huge = ["train", "data", "-o", "model", "--hidden", "1000000", "--latent", "1000000"];
    fails(dir.path(), &huge, 4, &["GiB", "free"]);
    assert!(!dir.path().join("model").exists());
}

/// A file system of a few pages, where this machine lets a test mount one.
struct Tiny(std::path::PathBuf);

impl Tiny {
    fn mounted(at: std::path::PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).expect("a folder");
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "vaecf-test"]).arg(&at).stderr(Stdio::null()).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        eprintln!("skipped: this machine does not let a test mount a tmpfs");
        None
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let dir = trained();
    ratings(dir.path(), 1000);
    let Some(tiny) = Tiny::mounted(dir.path().join("tiny"), "16k") else { return };
    let none = std::collections::BTreeSet::new();
    for arguments in [
        &["prepare", "ratings.csv", "-o", "tiny/data"][..],
        &["recommend", "model", "ratings.csv", "-k", "20", "-o", "tiny/r.csv"],
        &["recommend", "model", "ratings.csv", "-k", "20", "-o", "tiny/r.parquet"],
    ] {
        fails(dir.path(), arguments, 1, &["disk is full"]);
        assert_eq!(files(&tiny.0), none, "{arguments:?}");
    }
    let wide = [&["train", "data", "-o", "tiny/model", "--hidden", "64"], &SMALL[2..]].concat();
    fails(dir.path(), &wide, 1, &["disk is full"]);
    assert!(!tiny.0.join("model/model.safetensors").exists() && !tiny.0.join("model/training.safetensors").exists());
    drop(tiny);

    let Some(page) = Tiny::mounted(dir.path().join("page"), "4k") else { return };
    fails(dir.path(), &["evaluate", "model", "data", "-o", "page/e.json"], 1, &["disk is full"]);
    fails(dir.path(), &["man", "page"], 1, &["disk is full"]);
    assert!(files(&page.0).iter().all(|name| name.ends_with(".1")), "a page is whole or not there");
}

#[test]
fn a_full_standard_output() {
    let Ok(full) = fs::File::options().write(true).open("/dev/full") else {
        eprintln!("skipped: this machine has no /dev/full");
        return;
    };
    let done = Command::new(VAECF).arg("doctor").stdout(full).output().expect("the binary starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("the disk is full") && !said.contains("panicked"), "{said}");
}

#[test]
fn an_unwritable_folder() {
    let dir = trained();
    // Results are renamed into place, which must not happen to a device.
    fails(
        dir.path(),
        &["recommend", "model", "ratings.csv", "--format", "csv", "--force", "-o", "/dev/null"],
        2,
        &["/dev/null"],
    );
    fails(dir.path(), &["evaluate", "model", "data", "-o", "none/e.json"], 2, &["none/e.json", "no such folder"]);
    // Not even the superuser makes folders in /proc, or in a file.
    for place in ["/proc", "ratings.csv"] {
        let at = |name: &str| format!("{place}/{name}");
        fails(dir.path(), &["prepare", "ratings.csv", "-o", &at("vaecf/data")], 1, &[place]);
        fails(dir.path(), &[&["train", "data", "-o", &at("vaecf/model")], &SMALL[..]].concat(), 1, &[place]);
        fails(dir.path(), &["recommend", "model", "ratings.csv", "-o", &at("r.csv")], 1, &[place]);
        fails(dir.path(), &["evaluate", "model", "data", "-o", &at("e.json")], 1, &[place]);
    }
}

/// Whoever reads the results may stop whenever they like: `vaecf ... | head -1`.
#[test]
fn a_closed_standard_output() {
    let dir = trained();
    for arguments in [
        &["recommend", "model", "ratings.csv", "-k", "20", "--format", "json", "-q"][..],
        &["recommend", "model", "ratings.csv", "-k", "20", "--format", "parquet", "-q"],
        &["evaluate", "model", "data", "--format", "json", "-q"],
        &["evaluate", "model", "data", "-q"],
        &["prepare", "ratings.csv", "-o", "again", "-q"],
        &["train", "data", "-o", "anew", "--epochs", "3", "--format", "json", "-q"],
        &["doctor"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let mut command = Command::new(VAECF);
        command.envs(NO_DEVICES).args(arguments).current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        drop(child.stdout.take());
        let done = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), said.as_ref()), (Some(0), ""), "{arguments:?}");
    }
    // The result of training is the folder, so a closed pipe does not stop it.
    assert!(dir.path().join("anew/model.safetensors").exists());
}

#[test]
fn wrong_words_on_the_command_line() {
    let dir = prepared();
    run(dir.path(), &[], 2);
    run(dir.path(), &["trian"], 2);
    let train = ["train", "data", "-o", "model"];
    for (wrong, word) in [
        (["--hidden", "six"], "600,300"),
        (["--member", "vae"], "mult-dae"),
        (["--curve", "bend"], "relu"),
        (["--metric", "ndgc@100"], "ndcg@k"),
        (["--batch", "some"], "--batch"),
        (["--threads", "0"], "--threads"),
        (["--device", " "], "a part of a device's name"),
    ] {
        let said = run(dir.path(), &[&train[..], &wrong].concat(), 2);
        assert!(said.stderr.contains(word), "{word}: {}", said.stderr);
    }
    for (wrong, word) in [
        (["--batch", "0"], "batch"),
        (["--epochs", "0"], "epochs"),
        (["--dropout", "1"], "dropout"),
        (["--lr", "NaN"], "learning rate"),
        (["--lr", "-1"], "learning rate"),
        (["--latent", "0"], "units"),
        (["--backend", "opencl"], "choose auto, cuda, wgpu, cpu"),
        (["--backend", "tpu"], "the path of a shared library"),
        (["--device", "3"], "one device"),
        (["--device", "rtx"], "one device"),
        (["--precision", "f16"], "f32"),
    ] {
        fails(dir.path(), &[&train[..], &wrong].concat(), 2, &[word]);
    }
    assert!(!dir.path().join("model").exists());
}
