//! What commands give, in every form.

use std::fs;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use crate::common::{SMALL, fails, file, files, prepared, run, train, trained, vaecf};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

#[test]
fn help_has_examples_everywhere() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for command in [
        "prepare",
        "train",
        "evaluate",
        "compare",
        "recommend",
        "demo",
        "bench",
        "plan",
        "doctor",
        "completions",
        "man",
    ] {
        for flag in ["--help", "-h"] {
            let said = run(dir.path(), &[command, flag], 0);
            assert!(
                said.stdout.contains("Examples:") && said.stdout.contains(&format!("vaecf {command}")),
                "{command}"
            );
        }
    }
    assert!(run(dir.path(), &["--help"], 0).stdout.contains("Exit codes"));
    assert!(run(dir.path(), &["--version"], 0).stdout.starts_with("vaecf "));
}

#[test]
fn prepare_says_what_was_kept() {
    let dir = trained();
    file(dir.path(), "more.csv", "user,item\na,1\na,1\n,2\nb,1\n");
    let said = run(dir.path(), &["prepare", "ratings.csv", "more.csv", "-o", "data2", "--format", "json"], 0);
    let report = json(&said.stdout);
    assert_eq!(report["repeats"], 1);
    assert_eq!(report["read"]["missing_id"], 1);
    assert_eq!(report["split"]["rare_user"], 2);
    let said = run(dir.path(), &["prepare", "ratings.csv", "more.csv", "-o", "data3"], 0);
    for words in ["repeats of a pair", "users with too few events", "validation", "test"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
}

#[test]
fn the_planted_tastes_are_found() {
    let dir = trained();
    train(dir.path(), &["-o", "good", "--epochs", "60", "--lr", "0.02", "--patience", "0"]);
    let evaluate = ["evaluate", "good", "data", "--metrics", "recall@5,ndcg@5", "--baseline"];
    let report = json(&run(dir.path(), &[&evaluate[..], &["--format", "json"]].concat(), 0).stdout);
    let recall = report["metrics"][0]["value"].as_f64().expect("a value");
    let popular = report["baseline"]["metrics"][0]["value"].as_f64().expect("a value");
    assert!(recall > 0.9 && recall > popular, "recall@5 is {recall}, by popularity {popular}");
    assert_eq!(report["part"], "test");
    let table = run(dir.path(), &evaluate, 0).stdout;
    assert!(table.contains("popularity") && table.contains("recall@5"), "{table}");
    let other =
        run(dir.path(), &["evaluate", "good", "data", "--part", "validation", "--metrics-profile", "lightgcn"], 0);
    assert!(other.stdout.contains("recall-all@20") && other.stdout.contains("validation users"), "{}", other.stdout);
}

#[test]
fn values_of_every_user() {
    let dir = trained();
    for form in ["csv", "parquet"] {
        let name = format!("users.{form}");
        run(dir.path(), &["evaluate", "model", "data", "--metrics", "ndcg@5,mrr@5", "--per-user", &name], 0);
    }
    let text = fs::read_to_string(dir.path().join("users.csv")).expect("a table");
    let header = text.lines().next().expect("a header");
    assert!(header.starts_with("user,") && header.contains("ndcg@5") && header.contains("mrr@5"), "{header}");
    assert_eq!(text.lines().count(), 13, "a header and twelve test users");
    assert!(text.lines().skip(1).all(|line| line.starts_with('u')));
    let parquet = SerializedFileReader::new(fs::File::open(dir.path().join("users.parquet")).expect("a file"));
    assert_eq!(parquet.expect("Parquet").metadata().file_metadata().num_rows(), 12);
}

#[test]
fn compare_and_its_gate() {
    let dir = trained();
    train(dir.path(), &["-o", "good", "--epochs", "60", "--lr", "0.02", "--patience", "0"]);
    for (model, to) in [("model", "a.json"), ("good", "b.json")] {
        run(dir.path(), &["evaluate", model, "data", "--metrics", "ndcg@5,recall@5", "-o", to], 0);
    }
    run(dir.path(), &["compare", "a.json", "b.json", "--gate"], 0);
    run(dir.path(), &["compare", "a.json", "a.json", "--gate"], 0);
    let said = run(dir.path(), &["compare", "b.json", "a.json", "--gate"], 5);
    assert!(said.stdout.contains("worse") && said.stderr.contains("gate"), "{}", said.stdout);
    let rows = json(&run(dir.path(), &["compare", "a.json", "b.json", "--format", "json"], 0).stdout);
    assert_eq!((&rows[0]["metric"], &rows[0]["verdict"]), (&"ndcg@5".into(), &"better".into()));
}

#[test]
fn recommendations_for_a_file_in_every_form() {
    let dir = trained();
    // In any order, from rows, and as lists.
    file(dir.path(), "rows.csv", "item,user\nt0-1,a\nt1-2,b\nt0-2,a\n");
    file(dir.path(), "lists.txt", "a t0-1 t0-2\nb t1-2\n");
    let of = |from: &str, to: &str| {
        run(dir.path(), &["recommend", "model", from, "-k", "4", "-o", to], 0);
        fs::read(dir.path().join(to)).expect("a result")
    };
    let csv = String::from_utf8(of("rows.csv", "rows-out.csv")).expect("UTF-8");
    assert_eq!(csv.lines().next(), Some("user,rank,item,score,popular"));
    assert_eq!(csv.lines().count(), 1 + 2 * 4);
    assert!(csv.lines().nth(1).is_some_and(|line| line.starts_with("a,1,") && line.ends_with("false")));
    assert!(!csv.contains(",t0-1,") || csv.lines().filter(|l| l.contains(",t0-1,")).all(|l| l.starts_with('b')));
    assert_eq!(csv.into_bytes(), of("lists.txt", "lists-out.csv"));
    of("rows.csv", "r.parquet");
    let parquet = fs::File::open(dir.path().join("r.parquet")).expect("a file");
    let parquet = SerializedFileReader::new(parquet).expect("Parquet");
    assert_eq!(parquet.metadata().file_metadata().num_rows(), 8);
    let lines = String::from_utf8(of("rows.csv", "r.jsonl")).expect("UTF-8");
    assert_eq!(
        lines.lines().map(|line| json(line)["items"].as_array().map_or(0, Vec::len)).collect::<Vec<_>>(),
        [4, 4]
    );
    // Batches do not change what is recommended.
    let one = run(dir.path(), &["recommend", "model", "rows.csv", "--batch", "1", "--format", "csv"], 0).stdout;
    assert_eq!(one, run(dir.path(), &["recommend", "model", "rows.csv", "--format", "csv"], 0).stdout);
    let left_in = run(dir.path(), &["recommend", "model", "rows.csv", "-k", "30", "--no-mask", "--format", "csv"], 0);
    assert_eq!(left_in.stdout.lines().count(), 1 + 2 * 30);
}

#[test]
fn recommendations_for_known_users() {
    let dir = trained();
    let data = ["recommend", "model", "--data", "data", "--format", "csv", "-k", "2"];
    let all = run(dir.path(), &data, 0).stdout;
    assert_eq!(all.lines().count(), 1 + 120 * 2);
    let two = run(dir.path(), &[&data[..], &["--users", "u3,u5,nobody"]].concat(), 0);
    assert!(two.stderr.contains("nobody"), "{}", two.stderr);
    let users: Vec<_> = two.stdout.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    assert_eq!(users, ["u3", "u3", "u5", "u5"]);
    file(dir.path(), "some.txt", "u3\nu5\n");
    assert_eq!(run(dir.path(), &[&data[..], &["--users", "some.txt"]].concat(), 0).stdout, two.stdout);
    run(dir.path(), &[&data[..], &["--users", "nobody"]].concat(), 3);
}

#[test]
fn recommendations_for_standard_input() {
    let dir = trained();
    let ask = |text: &str, code: i32| {
        let mut command = vaecf(&["recommend", "model", "-", "-k", "3", "--format", "json"]);
        let done = command.current_dir(dir.path()).write_stdin(text).output().expect("the binary starts");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{text}: {said}");
        let lines = String::from_utf8(done.stdout).expect("UTF-8");
        (lines.lines().map(json).collect::<Vec<_>>(), said)
    };
    let (one, _) = ask("[\"t0-1\", \"t0-2\"]", 0);
    assert_eq!((one.len(), &one[0]["user"], one[0]["items"].as_array().map(Vec::len)), (1, &Value::Null, Some(3)));
    let (many, said) = ask("{\"user\": 7, \"items\": [\"t0-1\", \"t0-2\"]}\n{\"items\": []}\n[99]\n", 0);
    assert_eq!((&many[0]["user"], &many[0]["items"]), (&"7".into(), &one[0]["items"]));
    assert!(many[1]["popular"] == true && many[2]["popular"] == true);
    assert!(said.contains("99") && said.contains("2 of 3 users"), "{said}");
    let (marked, _) = ask("\u{feff}[\"t0-1\", \"t0-2\"]", 0);
    assert_eq!(marked, one);
    for (wrong, why) in [
        ("[\"t0-1\"", "not JSON"),
        ("{\"user\": 1}", "no list of items"),
        ("t0-1,t0-2", "not JSON"),
        ("[1.5]", "whole number"),
        ("{\"items\": [1], \"weights\": []}", "not a weight for each item"),
    ] {
        let (_, said) = ask(wrong, 3);
        assert!(said.contains("standard input, history 1") && said.contains(why), "{said}");
    }
}

#[test]
fn allowed_and_denied_items() {
    let dir = trained();
    file(dir.path(), "some.txt", "\u{feff}t2-1\nt2-2\nt2-3\nno-such\n");
    let recommend = ["recommend", "model", "ratings.csv", "--format", "csv", "-k", "1"];
    let items = |more: &[&str]| -> Vec<String> {
        let said = run(dir.path(), &[&recommend[..], more].concat(), 0);
        assert!(said.stderr.contains("no-such"), "{}", said.stderr);
        said.stdout.lines().skip(1).filter_map(|line| line.split(',').nth(2)).map(String::from).collect()
    };
    let listed = ["t2-1", "t2-2", "t2-3"];
    assert!(items(&["--allow", "some.txt"]).iter().all(|item| listed.contains(&item.as_str())));
    assert!(items(&["--deny", "some.txt"]).iter().all(|item| !listed.contains(&item.as_str())));
}

/// Weights come with the histories wherever these come from, and a list that is shorter than asked for
/// is given whole.
#[test]
fn histories_have_the_weights_that_the_model_was_trained_with() {
    let dir = prepared();
    run(dir.path(), &["prepare", "ratings.csv", "-o", "heavy", "--weights", "-q"], 0);
    run(dir.path(), &[&["train", "heavy", "-o", "model", "-q", "--epochs", "3"], &SMALL[..]].concat(), 0);
    let recommend = ["recommend", "model", "--format", "json", "-k", "4", "-q"];
    let of_u3 = |more: &[&str]| {
        let said = run(dir.path(), &[&recommend[..], more].concat(), 0).stdout;
        said.lines().map(json).find(|line| line["user"] == "u3").expect("u3")["items"].clone()
    };
    let known = of_u3(&["--data", "heavy"]);
    let from_file = of_u3(&["ratings.csv"]);
    // In `ratings` the value of u3's item i is 1 + (3 + i) % 5. Whether u3 was held out or not, the file has all of it.
    let kept: Vec<u32> = (0..10).filter(|item| *item != 3).collect();
    let items: Vec<String> = kept.iter().map(|item| format!("t0-{item}")).collect();
    let weights: Vec<u32> = kept.iter().map(|item| 1 + (3 + item) % 5).collect();
    let ask = |history: Value| {
        let mut command = vaecf(&[&recommend[..], &["-"]].concat());
        let done =
            command.current_dir(dir.path()).write_stdin(history.to_string()).output().expect("the binary starts");
        json(&String::from_utf8_lossy(&done.stdout))["items"].clone()
    };
    let heavy = ask(serde_json::json!({ "items": items, "weights": weights }));
    assert_eq!(heavy, from_file);
    assert_ne!(heavy, ask(serde_json::json!({ "items": items })));
    assert!(known.as_array().is_some_and(|items| items.len() == 4));

    file(dir.path(), "two.txt", "t2-1\nt2-2\n");
    let said = run(dir.path(), &[&recommend[..], &["ratings.csv", "--allow", "two.txt"]].concat(), 0);
    assert!(said.stdout.lines().map(json).all(|line| line["items"].as_array().is_some_and(|items| items.len() <= 2)));
    file(dir.path(), "none.txt", "no-such\n");
    fails(dir.path(), &["recommend", "model", "ratings.csv", "-q", "--allow", "none.txt"], 2, &["no item is left"]);
    fails(dir.path(), &["recommend", "model", "-", "--header", "true"], 2, &["come from no file"]);
}

/// What was prepared with a threshold recommends with it; files without values have all their rows.
#[test]
fn the_threshold_goes_with_the_model() {
    let dir = prepared();
    run(dir.path(), &["prepare", "ratings.csv", "-o", "liked", "--threshold", ">1", "-q", "--min-user", "1"], 0);
    run(dir.path(), &[&["train", "liked", "-o", "model", "-q", "--epochs", "2"], &SMALL[..]].concat(), 0);
    let recommend =
        |file: &str, code: i32| run(dir.path(), &["recommend", "model", file, "-k", "3", "--format", "json"], code);
    file(dir.path(), "mixed.csv", "user,item,rating\na,t0-1,5\na,t0-2,1\n");
    file(dir.path(), "liked.csv", "user,item\na,t0-1\n");
    let (mixed, liked) = (recommend("mixed.csv", 0), recommend("liked.csv", 0));
    assert_eq!(mixed.stdout, liked.stdout);
    assert!(mixed.stderr.contains("1 events are left out"), "{}", mixed.stderr);
    file(dir.path(), "list.txt", "a t0-1\nb t0-1 t1-2 t1-3\n");
    assert_eq!(recommend("list.txt", 0).stdout.lines().count(), 2);
    file(dir.path(), "hated.csv", "user,item,rating\na,t0-1,1\n");
    fails(dir.path(), &["recommend", "model", "hated.csv"], 3, &["no value passes the threshold"]);
    fails(dir.path(), &["prepare", "ratings.csv", "-o", "none", "--threshold", ">5"], 3, &["none of 972 values is >5"]);

    // One array in .json, one object a line in .jsonl.
    for (batch, name) in [("1", "one.json"), ("100", "all.json")] {
        run(dir.path(), &["recommend", "model", "ratings.csv", "-k", "2", "-o", name, "--batch", batch, "-q"], 0);
    }
    let text = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a result");
    assert_eq!(json(&text("all.json")).as_array().map(Vec::len), Some(120));
    assert_eq!(text("all.json"), text("one.json"));
}

#[test]
fn colours_only_where_they_are_wanted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let colored = |arguments: &[&str], no_color: Option<&str>| {
        let mut command = vaecf(&[&["evaluate", "none", "none"], arguments].concat());
        no_color.map(|value| command.env("NO_COLOR", value));
        let done = command.current_dir(dir.path()).output().expect("the binary starts");
        done.stderr.contains(&0x1b)
    };
    assert!(!colored(&[], None), "no terminal, no colours");
    assert!(colored(&["--color", "always"], None));
    assert!(!colored(&["--color", "never"], None));
    assert!(!colored(&["--color", "auto"], Some("1")));
}

#[test]
fn the_log_is_json_lines() {
    let dir = trained();
    let said =
        run(dir.path(), &[&["train", "data", "-o", "b", "--epochs", "2", "--format", "json"], &SMALL[..]].concat(), 0);
    let lines: Vec<_> = said.stdout.lines().map(json).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().expect("an event")).collect();
    assert_eq!(events, ["begin", "epoch", "epoch", "end"]);
    assert!(lines[0]["plan"]["parameters"].as_u64().is_some_and(|count| count > 500));
    assert!(lines[1]["validation"]["value"].is_f64());
    assert_eq!(fs::read_to_string(dir.path().join("b/training.jsonl")).expect("a log"), said.stdout);
    for words in ["backend: cpu", "chosen automatically", "memory: about", "parameters", "epoch 2"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    let files = files(&dir.path().join("b"));
    let expected =
        ["config.json", "items.csv", "model.safetensors", "run.toml", "training.jsonl", "training.safetensors"];
    assert!(files.iter().eq(expected), "{files:?}");
}

#[test]
fn doctor_completions_and_man_pages() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let found = json(&run(dir.path(), &["doctor", "--format", "json"], 0).stdout);
    let backends = found["backends"].as_array().expect("a list");
    assert!(backends.iter().any(|row| row["name"] == "cpu" && row["works"] == true), "{found}");
    // Whether there is no driver, or a driver whose devices are hidden from the tests.
    assert!(run(dir.path(), &["doctor"], 0).stdout.contains("NVIDIA driver"));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(run(dir.path(), &["completions", shell], 0).stdout.contains("recommend"), "{shell}");
    }
    run(dir.path(), &["man", "man1"], 0);
    let pages = files(&dir.path().join("man1"));
    assert!(pages.contains("vaecf.1") && pages.contains("vaecf-train.1"), "{pages:?}");
}

/// The demo from end to end, cut short: the data comes with the binary, and -o keeps everything.
#[test]
fn the_demo() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let said = run(dir.path(), &["demo", "--epochs", "1", "-o", "demo"], 0);
    for words in ["popularity", "recall@20", "What goes with python3-numpy", "1,500"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    run(dir.path(), &["evaluate", "demo/model", "demo/data", "-q"], 0);
    run(dir.path(), &["demo", "-o", "demo"], 2);
}

#[test]
fn bench_gives_figures_for_any_shape() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let small = ["bench", "--shape", "300x60x4000", "--batch", "50", "--steps", "1", "--rounds", "1", "-k", "5"];
    let figures = json(&run(dir.path(), &[&small[..], &["--format", "json", "-o", "here.json"]].concat(), 0).stdout);
    assert_eq!(figures["data"][0], 300);
    let setting = &figures["settings"][0];
    assert!(setting["ours"]["train"]["median"].as_f64().expect("a rate") > 0.0);
    assert!(setting["ceilings"]["copy"].as_f64().expect("a rate") > 0.0);
    assert!(setting["latency"]["p99"].as_f64().expect("seconds") > 0.0);
    let lists = ["--batch", "20,50", "--precision", "f32,f64", "--format", "json"];
    let tiny = ["bench", "--shape", "60x20x400", "--steps", "1", "--rounds", "1", "-k", "5"];
    let settings = json(&run(dir.path(), &[&tiny[..], &lists].concat(), 0).stdout)["settings"].clone();
    let of = |setting: &serde_json::Value| (setting["precision"].clone(), setting["batch"].clone());
    let expected = [("f32", 20), ("f32", 50), ("f64", 20), ("f64", 50)];
    let settings = settings.as_array().expect("a list");
    assert!(settings.iter().map(of).eq(expected.map(|(precision, batch)| (precision.into(), batch.into()))));
    assert_eq!(figures, json(&fs::read_to_string(dir.path().join("here.json")).expect("the file")));
    let table = run(dir.path(), &small, 0).stdout;
    assert!(table.contains("decode_loss_grad") && table.contains("best rate"), "{table}");
    run(dir.path(), &["bench", "--shape", "round"], 2);
    let said = run(dir.path(), &[&small[..], &["--peer", "no-such-python"]].concat(), 1);
    assert!(said.stderr.contains("no-such-python"), "{}", said.stderr);
}

#[test]
fn plans_of_many_devices() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let table = run(dir.path(), &["plan"], 0).stdout;
    for words in ["A forecast, not a measurement", "H200", "data sheet", "10,000,000 items", "does not fit", "products"]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    let plan = |more: &[&str]| json(&run(dir.path(), &[&["plan", "--format", "json"], more].concat(), 0).stdout);
    let found = plan(&["--devices", "1,16", "--items", "20108,1000000", "--scaling", "strong"]);
    assert_eq!(found["tables"].as_array().map(Vec::len), Some(2));
    let rows = &found["tables"][0]["rows"];
    assert_eq!((&rows[0]["nodes"], &rows[1]["nodes"]), (&1.into(), &2.into()));
    assert_eq!((&rows[0]["efficiency"], &rows[0]["sent"]), (&1.0.into(), &0.into()));
    let seconds = |plan: &Value, row: usize| plan["tables"][0]["rows"][row]["seconds"].as_f64().expect("seconds");
    let one = ["--devices", "16", "--items", "20108"];
    for slower in
        [&["--network", "25gbe", "--adapters", "1"][..], &["--nodes", "16", "--adapters", "1"], &["--attained", "0.5"]]
    {
        assert!(seconds(&plan(&[&one[..], slower].concat()), 0) > seconds(&found, 1), "{slower:?}");
    }
    let given = plan(&["--products", "1", "--bandwidth", "100", "--memory", "1", "--link", "2@30", "--hosts", "pcie4"]);
    assert_eq!((&given["rates"], &given["link"]["rate"]), (&"given".into(), &2e9.into()));
    assert_eq!(given["path"]["hosts"]["copy"], 31.5e9);
    assert!(
        run(dir.path(), &["plan", "--cut", "items", "--device-kind", "l40s"], 0).stdout.contains("nothing trains so")
    );

    for (wrong, words) in [
        (&["--nodes", "9", "--devices", "8"][..], "--nodes 9"),
        (&["--precision", "f64"], "f64"),
        (&["--precision", "bf16", "--device-kind", "v100"], "V100"),
        (&["--hidden", "0"], "units"),
    ] {
        fails(dir.path(), &[&["plan"], wrong].concat(), 2, &[words]);
    }
    for wrong in [["--link", "string"], ["--attained", "1.5"], ["--products", "-1"], ["--model", "none"]] {
        run(dir.path(), &[&["plan"], &wrong[..]].concat(), 2);
    }
}

#[test]
fn plans_in_the_documents_are_what_the_command_prints() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scaling.md");
    let page = fs::read_to_string(page).expect("docs/scaling.md");
    for plan in ["plan", "plan --items 1000000,10000000 --cut items --scaling strong"] {
        assert!(page.contains(&format!("`vaecf {plan}`")), "{plan}");
        let printed = run(dir.path(), &plan.split(' ').collect::<Vec<_>>(), 0).stdout;
        assert!(page.contains(printed.trim_end()), "docs/scaling.md has other figures than vaecf {plan}:\n{printed}");
    }
}

#[test]
fn a_plan_of_devices_like_this_one() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let measure = ["plan", "--measure", "--items", "2000", "--devices", "2", "--format", "json"];
    let plan = json(&run(dir.path(), &[&measure[..], &["--backend", "cpu", "--threads", "1"]].concat(), 0).stdout);
    assert_eq!((&plan["rates"], &plan["precision"]), (&"measured".into(), &"f32".into()));
    assert!(plan["path"]["hosts"]["copy"].is_null());
    for rate in ["/products", "/bandwidth", "/link/rate", "/link/latency", "/tables/0/rows/0/parts/exposed"] {
        assert!(plan.pointer(rate).and_then(Value::as_f64).is_some_and(|rate| rate > 0.0), "{rate}: {plan}");
    }
    run(dir.path(), &[&measure[..], &["--products", "1"]].concat(), 2);
}

#[test]
fn an_option_that_the_split_does_not_look_at_is_refused() {
    let dir = trained();
    let prepare = ["prepare", "ratings.csv", "-o", "other"];
    for wrong in [["--split", "published", "--targets", "0.3"], ["--split", "leave-last", "--held-out", "5"]] {
        let said = run(dir.path(), &[&prepare[..], &wrong].concat(), 2);
        assert!(said.stderr.contains("has no meaning in this split"), "{}", said.stderr);
    }
    let said = run(dir.path(), &[&prepare[..], &["--held-out", "7", "--test", "5", "--format", "json"]].concat(), 0);
    let report = json(&said.stdout);
    assert_eq!((&report["validation"]["users"], &report["test"]["users"]), (&7.into(), &5.into()));
}
