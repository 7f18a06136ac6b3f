//! Odds-Equal Bridge against rows from the authors' code: the oracle and the host kernel.

mod common;

use serde::Deserialize;
use stepflow::kernels::host;
use stepflow::stepflow::oeb::{Group, bridge_row};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    segments: Vec<u8>,
    tau_max: f64,
    logits: Vec<Vec<f64>>,
    probs: Vec<Vec<f64>>,
    active: Vec<bool>,
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The query is the last key; its segment bridges the one before.
fn groups(segments: &[u8]) -> Vec<Option<Group>> {
    let own = *segments.last().unwrap();
    let group = |s: &u8| match *s {
        s if s == own => Group::Same,
        s if s + 1 == own => Group::Bridge,
        _ => Group::Other,
    };
    segments.iter().map(|s| Some(group(s))).collect()
}

fn worst(actual: impl Iterator<Item = f64>, expected: &[f64]) -> f64 {
    actual.zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, |w, e| if e <= w { w } else { e })
}

#[test]
fn oeb_vectors() {
    for file in common::vectors::<File>("oeb") {
        for (number, case) in file.cases.iter().enumerate() {
            let groups = groups(&case.segments);
            let keys = host::RowKeys::collect(groups.iter().copied());
            for (head, logits) in case.logits.iter().enumerate() {
                let what = format!("case {number}, head {head}");
                let before = softmax(logits);

                let mut row = before.clone();
                let changed = bridge_row(&mut row, &groups, case.tau_max, false);
                assert_eq!(changed, case.active[head], "{what}");
                // The vectors have nine digits.
                let error = worst(row.into_iter(), &case.probs[head]);
                assert!(error <= 1e-8, "{what}: oracle off by {error:e}");

                let mut row: Vec<f32> = before.iter().map(|p| *p as f32).collect();
                let outcome = host::bridge_row(&mut row, &keys, case.tau_max as f32, false);
                assert_eq!(outcome.changed, case.active[head], "{what}");
                // Float32 probabilities: half a unit in the last place of 1 is 6e-8, times factors of at most a few.
                let error = worst(row.into_iter().map(f64::from), &case.probs[head]);
                assert!(error <= 1e-6, "{what}: kernel off by {error:e}");
            }
        }
    }
}
