//! A prepared data set comes back as it was, is whole or absent, and tells when it is damaged.
#![cfg(feature = "files")]

mod common;

use std::{fs, path::Path};

use common::{all, message, text};
use proptest::prelude::*;
use vaecf_core::{
    Kind,
    dataset::Dataset,
    prepare::PrepareOptions,
    prepared::{Manifest, verify},
    split::{HeldOut, Split},
};

fn sample(weights: bool) -> Dataset {
    let mut file = "user,item,value\n".to_owned();
    for n in 0..300 {
        file += &format!("\"u, {}\",ü{},{}\n", n / 10, n * 7 % 23, n % 5);
    }
    let split = Split::Strong { validation: HeldOut::Users(3), test: HeldOut::Users(4), targets: 0.2 };
    text(&file, &PrepareOptions { split, weights, ..all() }).unwrap().0
}

fn made() -> serde_json::Value {
    serde_json::json!({"by": "a test"})
}

/// The names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_opened() {
    for weights in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("data");
        let dataset = sample(weights);
        dataset.save(&target, &made(), false).unwrap();
        assert_eq!(names(folder.path()), ["data"]);
        let opened = Dataset::open(&target).unwrap();
        assert_eq!(opened, dataset);
        verify(&target).unwrap();
        let manifest = Manifest::read(&target).unwrap();
        assert_eq!(manifest.made, made());
        assert_eq!((manifest.train_users, manifest.train_events), (dataset.train.users(), dataset.train.events()));
        assert_eq!(manifest.files.len(), 5);
        // A person can look at it, and others may read it.
        let items = fs::read_to_string(target.join("items.csv")).unwrap();
        assert!(items.starts_with("item,count\nü0,"), "{items}");
        let users = fs::read_to_string(target.join("users.csv")).unwrap();
        assert!(users.starts_with("user\n\"u, "), "{users}");
        let mode = |name: &str| fs::metadata(target.join(name)).unwrap().permissions();
        assert_eq!(mode("train.safetensors"), mode("dataset.json"));
    }
}

#[test]
fn only_a_data_set_is_overwritten_and_only_with_force() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("data");
    let (first, second) = (sample(false), sample(true));
    fs::create_dir(&target).unwrap();
    first.save(&target, &made(), false).unwrap();
    let error = second.save(&target, &made(), false).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("--force"), "{error}");
    let mapped = Dataset::open(&target).unwrap();
    second.save(&target, &made(), true).unwrap();
    // What is open stays what it was.
    assert_eq!(mapped, first);
    assert_eq!(Dataset::open(&target).unwrap(), second);
    assert_eq!(names(folder.path()), ["data"]);
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "precious").unwrap();
    assert_eq!(first.save(&other, &made(), true).unwrap_err().kind(), Kind::Usage);
    assert_eq!(names(&other), ["thesis.tex"]);
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(first.save(&file, &made(), true).is_err());
    assert!(first.save(&file.join("data"), &made(), true).is_err());
    assert!(first.save(Path::new("/"), &made(), true).is_err());
    assert_eq!(names(folder.path()), ["data", "file", "other"]);
}

#[test]
fn what_is_no_data_set_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(Dataset::open(folder.path())).contains("this is not a prepared data set"));
    assert!(message(Dataset::open(&folder.path().join("x"))).contains("no such file or folder"));
    let target = folder.path().join("data");
    sample(false).save(&target, &made(), false).unwrap();
    let manifest = fs::read_to_string(target.join("dataset.json")).unwrap();
    let newer = manifest.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(newer, manifest);
    fs::write(target.join("dataset.json"), newer).unwrap();
    assert!(message(Dataset::open(&target)).contains("version 2 is newer than 1"));
    fs::write(target.join("dataset.json"), "{}").unwrap();
    assert!(message(Dataset::open(&target)).contains("not the description of a data set"));
    fs::write(target.join("dataset.json"), &manifest[..manifest.len() / 2]).unwrap();
    assert!(message(Dataset::open(&target)).contains("damaged"));
}

proptest! {
    #![proptest_config(common::cases(48))]

    /// A damaged file never brings anything down, and is never taken for whole.
    #[test]
    fn damage_is_found(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("data");
        let dataset = sample(true);
        dataset.save(&target, &made(), false).unwrap();
        let names = names(&target);
        let path = target.join(&names[file.index(names.len())]);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        let same = bytes == fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let opened = Dataset::open(&target);
        let json = path.ends_with("dataset.json");
        match verify(&target) {
            // Whatever of the description was changed, the data is what it was.
            Ok(()) => prop_assert!((same || json) && opened.unwrap() == dataset),
            Err(_) => prop_assert!(!same),
        }
    }
}
