//! What the documents name is there.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root").to_path_buf()
}

/// Words between backticks that look like a path of this repository.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let folders =
        ["core/", "backend-cpu/", "backend-cuda/", "cli/", "tests/", "benches/", "docs/", "examples/", ".ci/"];
    quoted.filter(move |word| folders.iter().any(|f| word.starts_with(f)) && !word.contains([' ', '*', '<', '{']))
}

#[test]
fn every_path_named_in_a_document_exists() {
    let root = root();
    let docs = std::fs::read_dir(root.join("docs")).expect("docs").map(|e| e.expect("an entry").path());
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|f| root.join(f));
    let mut named = 0;
    for document in docs.chain(top) {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|e| panic!("{}: {e}", document.display()));
        for path in paths(&text) {
            named += 1;
            assert!(root.join(path).exists(), "{} names {path}, which is gone", document.display());
        }
    }
    assert!(named > 20, "only {named} paths were found: the documents or this test have changed");
}

#[test]
fn a_path_that_is_gone_would_be_noticed() {
    assert_eq!(paths("see `core/src/gone.rs` and `Mat`").collect::<Vec<_>>(), ["core/src/gone.rs"]);
    assert!(!root().join("core/src/gone.rs").exists());
}

#[test]
fn the_architecture_page_stays_short() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    assert!(text.lines().count() <= 200);
}

/// `cargo run`, as the README has it, must find one program.
#[test]
fn the_workspace_has_one_program() {
    let members = std::fs::read_dir(root()).expect("the root").map(|entry| entry.expect("an entry").path());
    let programs = members.filter(|folder| {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        folder.join("src/main.rs").exists()
            || std::fs::read_dir(folder.join("src/bin")).is_ok_and(|mut bin| bin.next().is_some())
            || manifest.contains("[[bin]]")
    });
    assert_eq!(programs.collect::<Vec<_>>(), [root().join("cli")]);
}
