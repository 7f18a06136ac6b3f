//! What several test files need: real models, vectors, and skips that can be seen.
#![allow(dead_code)]

use std::io::Write;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// Says on stderr why a test did not run; with STEPFLOW_REQUIRE_ALL=1 a skip is a failure.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("STEPFLOW_REQUIRE_ALL").is_none(),
        "skipped although STEPFLOW_REQUIRE_ALL is set: {reason}"
    );
    // Not eprintln: the test harness would keep that to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// SmolLM2-135M-Instruct Q4_1 as scripts/fetch-smollm2 leaves it, or a visible skip.
pub fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("STEPFLOW_SMOLLM2").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
        cache.join("stepflow/SmolLM2-135M-Instruct.Q4_1.gguf")
    });
    if path.exists() {
        return Some(path);
    }
    skip(&format!("{} is missing; scripts/fetch-smollm2 fetches it", path.display()));
    None
}

/// Every vector file of that prefix: those in the folder that STEPFLOW_VECTORS names, or the repository's own.
pub fn vectors<T: DeserializeOwned>(prefix: &str) -> Vec<T> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors"));
    let folder = std::env::var_os("STEPFLOW_VECTORS").map_or(own, PathBuf::from);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".json")
    });
    paths.sort();
    assert!(!paths.is_empty(), "no {prefix}*.json in {}", folder.display());
    let read = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    paths.iter().map(read).collect()
}

/// Spearman's rank correlation; ties share their mean rank.
pub fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let ranks = |values: Vec<f64>| -> Vec<f64> {
        let rank = |x: &f64| {
            let below = values.iter().filter(|y| *y < x).count() as f64;
            let equal = values.iter().filter(|y| *y == x).count() as f64;
            below + (equal - 1.0) / 2.0
        };
        values.iter().map(rank).collect()
    };
    let (a, b) = (ranks(pairs.iter().map(|p| p.0).collect()), ranks(pairs.iter().map(|p| p.1).collect()));
    let mean = (pairs.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Of an even number of values the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}
