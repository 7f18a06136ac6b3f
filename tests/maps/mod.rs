//! Traces of the embedded model, and the tables that `stepflow saliency` leaves of them.
#![allow(dead_code)] // Each test file uses some of it.

use std::collections::BTreeMap;
use std::path::Path;

use stepflow::trace::TraceFile;
use tempfile::TempDir;

use crate::program::{run, stepflow};

pub const QUESTION: &str =
    "Ann has 14 fewer coins than Bob. Ida has 9 coins. Bob has 3 dozen coins. How many coins does Ann have?";

/// A folder with `trace.json`, of an answer by the embedded model.
pub fn traced() -> (TempDir, TraceFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let outcome = run(stepflow(["-p", QUESTION, "-st", "-t", "1", "--save-trace", path.to_str().unwrap()]));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let trace = TraceFile::read(&std::fs::read(&path).unwrap()).unwrap();
    assert!(trace.steps.len() > 3, "{trace:?}");
    (folder, trace)
}

/// Rows of a table, by column name.
pub fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

pub fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap()
}
