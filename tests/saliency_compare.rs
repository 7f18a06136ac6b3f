//! `stepflow saliency compare` on runs that the test makes.
#![cfg(unix)]

mod common;
mod maps;
mod program;

use std::path::Path;

use maps::{QUESTION, number, table, traced};
use program::{run, stepflow};
use serde_json::json;

fn measure(input: &Path, out: &Path, flags: &[&str]) {
    let args = ["saliency", input.to_str().unwrap(), "-t", "1", "-o", out.to_str().unwrap()];
    let outcome = run(stepflow(args.iter().chain(flags)));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
}

fn compare(a: &Path, b: &Path, out: &Path) -> program::Outcome {
    run(stepflow(["saliency", "compare", a.to_str().unwrap(), b.to_str().unwrap(), "-o", out.to_str().unwrap()]))
}

#[test]
fn two_runs_of_a_trace_compare_step_by_step() {
    let (folder, trace) = traced();
    let path = |name: &str| folder.path().join(name);
    measure(&path("trace.json"), &path("all"), &["--method", "gradient"]);
    measure(&path("trace.json"), &path("summary"), &["--method", "gradient", "--loss", "summary"]);
    let n = trace.steps.len();

    let outcome = compare(&path("all"), &path("all"), &path("same"));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let same = table(&path("same").join("differences.csv"));
    assert_eq!(same.len(), 12 * n * (n + 1) / 2);
    assert!(same.iter().all(|row| number(row, "difference") == 0.0 && number(row, "a") == number(row, "b")));

    let outcome = compare(&path("all"), &path("summary"), &path("other"));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    assert!(outcome.text().contains("lock_in: 0."), "{outcome:?}");
    let rows = table(&path("other").join("differences.csv"));
    // A row's shares add up to one on either side, wherever the loss hangs on the row at all.
    let row = |layer: &str, query: usize| -> f64 {
        let of = rows.iter().filter(|row| row["layer"] == layer && row["query"] == query.to_string());
        of.map(|row| number(row, "b")).sum()
    };
    for query in 0..n {
        assert!((row("0", query) - 1.0).abs() < 1e-9, "{query}: {}", row("0", query));
    }
    let cells = table(&path("all").join("cells.csv"));
    let of_last = |row: &&std::collections::BTreeMap<String, String>| {
        row["layer"] == "5" && row["metric"] == "saliency" && row["query_step"] == (n - 1).to_string()
    };
    let total: f64 = cells.iter().filter(of_last).map(|row| number(row, "value")).sum();
    let first = cells.iter().find(of_last).unwrap();
    let found = rows.iter().find(|row| row["layer"] == "5" && row["query"] == (n - 1).to_string()).unwrap();
    assert!((number(found, "a") - number(first, "value") / total).abs() < 1e-9, "{found:?}");
    for metric in table(&path("other").join("metrics.csv")) {
        assert!(metric["p"].is_empty() && metric["n_a"] == "1", "{metric:?}");
    }
    for picture in ["curves.svg", "curves.png", "differences.svg", "differences.png"] {
        assert!(std::fs::metadata(path("other").join(picture)).is_ok_and(|file| file.len() > 1_000), "{picture}");
    }
}

#[test]
fn two_groups_of_runs_are_tested_layer_by_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Short answers in one group, in the other such that think at length of anything but the question.
    let long = "Let me see what this could be about. ".repeat(12);
    let group = |name: &str, thinking: &str| {
        let reply = |i: usize| format!("{thinking}So {i} it must be, says Ann.\n</think>\n\nAnn has {i} coins.");
        let lines: Vec<String> =
            (10..20).map(|i| json!({ "prompt": QUESTION, "reply": reply(i) }).to_string()).collect();
        std::fs::write(path(&format!("{name}.jsonl")), lines.join("\n")).unwrap();
        measure(&path(&format!("{name}.jsonl")), &path(name), &["--method", "attention"]);
    };
    group("short", "Bob has 3 dozen coins. ");
    group("long", &long);
    let outcome = compare(&path("short"), &path("long"), &path("out"));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let line = outcome.text().lines().find(|line| line.starts_with("question_share")).unwrap().to_owned();
    assert!(line.contains("B is below A in layers "), "{line}");
    let rows = table(&path("out").join("metrics.csv"));
    assert_eq!(rows.len(), 6 * 12);
    for row in rows.iter().filter(|row| row["metric"] == "question_share") {
        assert_eq!((row["n_a"].as_str(), row["n_b"].as_str()), ("10", "10"));
        assert!(number(row, "p_holm") >= number(row, "p") && number(row, "p") > 0.0, "{row:?}");
        assert!((-1.0..=1.0).contains(&number(row, "delta")), "{row:?}");
    }
    // Different traces have no steps in common, but segments.
    let differences = table(&path("out").join("differences.csv"));
    assert_eq!(differences.len(), 12 * 6);
    assert!(differences.iter().any(|row| row["query"] == "thinking" && row["key"] == "question"));
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_line() {
    let (folder, _) = traced();
    let path = |name: &str| folder.path().join(name);
    let refused = |b: &str, says: &str| {
        compare(&path("a"), &path(b), &path("out")).assert_fails(1, says);
        assert!(!path("out").exists(), "{says}");
    };
    measure(&path("trace.json"), &path("a"), &["--method", "attention", "--layers", "0-3"]);
    measure(&path("trace.json"), &path("exact"), &["--method", "gradient"]);
    measure(&path("trace.json"), &path("deep"), &["--method", "attention", "--layers", "4-11"]);
    // Of one side, all must be alike.
    measure(&path("trace.json"), &path("mixed/1"), &["--method", "gradient", "--layers", "0-3"]);
    measure(&path("trace.json"), &path("mixed/2"), &["--method", "gradient", "--layers", "0-3", "--loss", "summary"]);
    refused("mixed", "loss of summary; expected them to be measured alike");
    std::fs::create_dir(path("empty")).unwrap();
    refused("exact", "measured alike");
    refused("deep", "layers 4-11; expected them to be measured alike");
    refused("empty", "found no run.json");
    refused("nowhere", "nowhere");
    let damage = |name: &str, content: &str| {
        std::fs::create_dir_all(path("damaged")).unwrap();
        for file in ["run.json", "steps.csv", "layers.csv", "cells.csv"] {
            std::fs::copy(path("a").join(file), path("damaged").join(file)).unwrap();
        }
        std::fs::write(path("damaged").join(name), content).unwrap();
        refused("damaged", name);
    };
    damage("run.json", "{}");
    let cut: Vec<String> =
        std::fs::read_to_string(path("a/cells.csv")).unwrap().lines().take(30).map(str::to_owned).collect();
    damage("cells.csv", &cut.join("\n"));
    damage("cells.csv", "layer,query_step,key_step,metric,value\n0,900,0,attention,1\n");
    damage("cells.csv", "layer,query_step,key_step,metric,value\n");
    damage("cells.csv", "layer,query_step\n0,1\n");
    damage("layers.csv", "layer,metric,value\nx,lock_in,1\n");
    damage("steps.csv", "segment\nmiddle\n");
}
