//! How fast the arms were. It depends on the machine and the moment, so it is no part of the summary.

use serde::Serialize;

use super::folder::Run;
use super::sample::Sample;

/// Speed of one arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// The arm's name.
    pub arm: String,
    /// Tokens generated per second, prompts included in the time.
    pub tokens_per_second: f64,
    /// Mean time of a problem, over all its samples.
    pub seconds_per_problem: f64,
    /// Time of a generated token over that of the first arm's; `None` for that arm itself.
    pub cost: Option<f64>,
}

/// The speed of every arm. Arms take turns during a run, so that a slow moment slows all of them.
pub fn speeds(run: &Run, samples: &[Sample]) -> Vec<Speed> {
    let mut speeds: Vec<Speed> = Vec::new();
    for (arm, _) in &run.arms {
        let own = || samples.iter().filter(|sample| sample.arm == *arm);
        let tokens: usize = own().map(|sample| sample.tokens.generated()).sum();
        let seconds: f64 = own().map(|sample| sample.seconds).sum();
        let problems = own().count().div_ceil(run.samples.max(1));
        let tokens_per_second = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        speeds.push(Speed {
            arm: arm.clone(),
            tokens_per_second,
            seconds_per_problem: if problems > 0 { seconds / problems as f64 } else { 0.0 },
            cost: speeds.first().map(|first| first.tokens_per_second / tokens_per_second.max(f64::MIN_POSITIVE)),
        });
    }
    speeds
}
