//! The C header of the plugin border is made from the Rust sources, and is up to date.

use std::{collections::HashMap, fs, path::Path};

use cbindgen::{Builder, Config, DocumentationStyle, EnumConfig, ExportConfig, ItemType, Language, RenameRule, Style};
use vaecf_core::plugin::abi::VERSION;

/// What the header calls things.
const NAMES: [(&str, &str); 5] = [
    ("SeatV1", "seat"),
    ("VTableV1", "backend"),
    ("InfoV1", "info"),
    ("LikelihoodV1", "likelihood"),
    ("DecodeV1", "decode"),
];

/// What is in it although no field has its type.
const MORE: [&str; 9] =
    ["VTableV1", "Role", "Curve", "LikelihoodKind", "HostType", "Code", "Master", "StepParams", "ScaleState"];

fn source(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root")
}

/// The lines of a source that begin with a mark, without it.
fn marked<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.trim_start().strip_prefix(mark))
}

/// The description of a method of the trait.
fn method(contract: &str, name: &str) -> Vec<String> {
    let lines: Vec<_> = contract.lines().collect();
    let at = lines.iter().position(|line| line.trim_start().starts_with(&format!("fn {name}(")));
    let at = at.unwrap_or_else(|| panic!("core/src/backend.rs has no method {name}"));
    let from = lines[..at].iter().rposition(|line| !line.trim_start().starts_with("///")).map_or(0, |line| line + 1);
    marked(&lines[from..at].join("\n"), "///").map(str::to_owned).collect()
}

/// The words of the Rust documentation in those of C: links lose their brackets and targets, and types get
/// the names that they have in the header.
fn in_c(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let (name, mut after) = after.split_once("`]").expect("a link ends");
        if let Some(target) = after.strip_prefix('(') {
            after = target.split_once(')').expect("a target ends").1;
        }
        out += before;
        out += &name_in_c(name);
        rest = after;
    }
    (out + rest).replace(". the ", ". The ").replace("`u32::MAX`", "`UINT32_MAX`").replace("`u32", "`uint32_t")
}

/// `StepParams` as `step_params`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (at, c) in name.char_indices() {
        if at > 0 && c.is_uppercase() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

fn name_in_c(name: &str) -> String {
    let known = |name: &str| NAMES.iter().find(|(rust, _)| *rust == name).map_or(name, |(_, c)| c).to_owned();
    match name.split("::").collect::<Vec<_>>()[..] {
        ["Buf", "NONE"] => "`VAECF_NONE`".into(),
        ["Fault"] => "fault".into(),
        ["crate", "random"] => "the generator above".into(),
        ["crate", "random", "stream"] => "The stream".into(),
        ["crate", "device" | "model"] => "the host".into(),
        ["Backend", method] => format!("`{method}`"),
        [kind @ ("Role" | "Code" | "Curve" | "LikelihoodKind"), variant] => {
            format!("`VAECF_{}_{}`", snake(kind).to_uppercase(), snake(variant).to_uppercase())
        }
        [kind, field] => format!("`vaecf_{}.{field}`", snake(&known(kind))),
        [kind] if kind.starts_with(char::is_uppercase) => format!("`vaecf_{}`", snake(&known(kind))),
        _ => format!("`{name}`"),
    }
}

/// The header, from the sources.
fn header() -> String {
    let contract = source("core/src/backend.rs");
    let border = source("core/src/plugin/abi.rs");
    let intro: Vec<_> = marked(&border, "//!").chain(["", " # The contract"]).chain(marked(&contract, "//!")).collect();
    let intro: String = intro.iter().map(|line| format!("//{}\n", in_c(line))).collect();
    let config = Config {
        language: Language::C,
        cpp_compat: true,
        style: Style::Type,
        documentation_style: DocumentationStyle::C99,
        usize_is_size_t: true,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        // The guard by hand, so that the trailer lies inside it.
        header: Some(format!(
            "// Made from the Rust sources of vaecf; see docs/plugin.md.\n//\n{intro}\n\
             #ifndef VAECF_BACKEND_H\n#define VAECF_BACKEND_H"
        )),
        after_includes: Some(format!("\n// The version of the border that this is.\n#define VAECF_VERSION {VERSION}")),
        trailer: Some(
            "#if defined(_WIN32)\n#define VAECF_EXPORT __declspec(dllexport)\n#else\n#define VAECF_EXPORT \
             __attribute__((visibility(\"default\")))\n#endif\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n\
             // The function that a plugin exports: opens a backend and fills the table with it. Returns a\n\
             // `vaecf_code`.\n\
             VAECF_EXPORT int32_t vaecf_backend_v1(uint32_t host_version, vaecf_backend *out);\n\n\
             #ifdef __cplusplus\n}\n#endif\n\n#endif"
                .into(),
        ),
        export: ExportConfig {
            include: MORE.map(str::to_owned).into(),
            prefix: Some("vaecf_".into()),
            rename: renames(),
            item_types: vec![ItemType::Enums, ItemType::Structs, ItemType::Typedefs],
            ..ExportConfig::default()
        },
        enumeration: EnumConfig {
            rename_variants: RenameRule::QualifiedScreamingSnakeCase,
            prefix_with_name: false,
            ..EnumConfig::default()
        },
        ..Config::default()
    };
    let builder = ["core/src/backend.rs", "core/src/plugin/abi.rs"]
        .into_iter()
        .fold(Builder::new().with_config(config), |builder, path| builder.with_src(root().join(path)));
    let mut bytes = Vec::new();
    builder.generate().expect("the sources are understood").write(&mut bytes);
    let plain = plain_enumerations(&String::from_utf8(bytes).expect("UTF-8")).replace("vaecf_buf_NONE", "VAECF_NONE");
    let mut text = String::new();
    for line in plain.lines() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let method_name =
            words.strip_prefix("// [`Backend::").and_then(|rest| rest.split_once("`](backend::Backend::"));
        let lines = match method_name {
            Some((name, _)) => method(&contract, name).iter().map(|line| format!("{indent}//{line}")).collect(),
            None => vec![line.to_owned()],
        };
        for line in lines {
            text += in_c(&line).trim_end();
            text.push('\n');
        }
    }
    text
}

/// Enumerations as C99 has them. What fixes their type in newer languages is of no use here: they are passed as
/// integers.
fn plain_enumerations(text: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for line in text.lines() {
        let about_types = line.contains("__STDC_VERSION__") || line == "#ifndef __cplusplus";
        if line.starts_with("#if") && (about_types || depth > 0) {
            depth += 1;
        }
        if depth == 0 {
            out += line;
            // The brace belongs to the line of the name, which has been written.
            out += if line.starts_with("enum ") { "" } else { "\n" };
        }
        if line.starts_with("#endif") && depth > 0 {
            depth -= 1;
        }
    }
    out
}

/// Rust's names to C's; the prefix comes on top.
fn renames() -> HashMap<String, String> {
    let types = [
        "Buf",
        "Role",
        "Mat",
        "Rows",
        "Noise",
        "Curve",
        "LikelihoodKind",
        "StepParams",
        "ScaleState",
        "Master",
        "Graph",
        "Mark",
        "Ceilings",
        "Invitation",
        "HostType",
        "Code",
    ];
    let own = types.into_iter().map(|name| (name.to_owned(), snake(name)));
    own.chain(NAMES.map(|(rust, c)| (rust.to_owned(), c.to_owned()))).collect()
}

/// `VAECF_BLESS=1 cargo test -p vaecf-tests --test header` writes it anew.
#[test]
fn the_header_is_what_the_sources_say() {
    let path = root().join("core/include/vaecf_backend.h");
    let made = header();
    if std::env::var_os("VAECF_BLESS").is_some_and(|set| set == "1") {
        fs::write(&path, &made).expect("a writable folder");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(there.lines()).position(|(a, b)| a != b);
    assert!(
        made == there,
        "core/include/vaecf_backend.h differs from the sources at line {}; VAECF_BLESS=1 with this test writes it anew",
        differs.map_or(made.lines().count().min(there.lines().count()), |line| line) + 1
    );
    for rust in ["::", "[`", "crate"] {
        let line = made.lines().find(|line| line.contains(rust));
        assert_eq!(line, None, "{rust:?} means nothing in C");
    }
}
