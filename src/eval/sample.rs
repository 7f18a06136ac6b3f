//! What is known of one generated answer: a row of `samples.jsonl`.

use serde::{Deserialize, Serialize};

use crate::engine::{Finish, Generated};
use crate::stepflow::LayerStats;

use super::grade;
use super::problem::Problem;

/// One answer to one problem by one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The problem's id.
    pub problem: String,
    /// The problem's place in its file, from 0.
    pub index: usize,
    /// The arm's name.
    pub arm: String,
    /// The number of the sample, from 0.
    pub sample: usize,
    /// The seed of its sampler; the same in every arm.
    pub seed: u32,
    /// All that was generated.
    pub text: String,
    /// The answer found in it, in the form in which equal answers are equal.
    pub answer: Option<String>,
    /// Whether it is the right one; without an answer it is not.
    pub correct: bool,
    /// Whether generation came to its own end, rather than to a limit.
    pub finished: bool,
    /// Tokens.
    pub tokens: Tokens,
    /// Its share of the machine's time, in seconds.
    pub seconds: f64,
    /// What StepFlow did.
    pub stepflow: Repairs,
}

/// Tokens of a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: usize,
    /// Generated before thinking began: none in most families.
    pub question: usize,
    /// Generated as thinking.
    pub thinking: usize,
    /// Generated as summary.
    pub summary: usize,
}

impl Tokens {
    /// All that were generated.
    pub fn generated(&self) -> usize {
        self.question + self.thinking + self.summary
    }
}

/// Statistics of OEB and SMI over one sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Repairs {
    /// Rows that OEB looked at.
    pub rows_seen: u64,
    /// Rows that it lifted to their floor.
    pub rows_bridged: u64,
    /// Mean share of attention on the bridged segment before.
    pub mean_bridge_before: f64,
    /// The same after.
    pub mean_bridge_after: f64,
    /// Step starts that SMI injected into.
    pub injections: u64,
    /// Mean norm of what it injected, relative to the head output.
    pub mean_injected_norm: f64,
}

impl From<LayerStats> for Repairs {
    fn from(stats: LayerStats) -> Self {
        Self {
            rows_seen: stats.rows_seen,
            rows_bridged: stats.rows_bridged,
            mean_bridge_before: stats.mean_bridge_before(),
            mean_bridge_after: stats.mean_bridge_after(),
            injections: stats.injections,
            mean_injected_norm: stats.mean_injected_norm(),
        }
    }
}

impl Sample {
    /// Grades what was generated for a problem.
    pub fn graded(key: Key, arm: &str, seed: u32, problem: &Problem, generated: &Generated) -> Self {
        // Where thinking was never closed there is no reply to look for an answer in.
        let closed = generated.n_generated[2] > 0 || generated.finish == Finish::Stop;
        let reply = if closed { generated.summary.as_slice() } else { &[] };
        let found = grade::extract(&String::from_utf8_lossy(reply), problem.reference.kind());
        let [question, thinking, summary] = generated.n_generated;
        Self {
            problem: problem.id.clone(),
            index: key.index,
            arm: arm.to_owned(),
            sample: key.sample,
            seed,
            text: String::from_utf8_lossy(&generated.text).into_owned(),
            correct: found.as_deref().is_some_and(|found| grade::is_correct(found, &problem.reference)),
            answer: found.map(|found| grade::canonical(&found, &problem.reference)),
            finished: generated.finish == Finish::Stop,
            tokens: Tokens { prompt: generated.n_prompt, question, thinking, summary },
            seconds: generated.time.as_secs_f64(),
            stepflow: generated.stats.total().into(),
        }
    }

    /// What it is a sample of.
    pub fn key(&self) -> (usize, &str, usize) {
        (self.index, &self.arm, self.sample)
    }
}

/// Which sample of which problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The problem's place in its file, from 0.
    pub index: usize,
    /// The number of the sample, from 0.
    pub sample: usize,
}
