//! Generates the samples of a run.

use std::collections::HashSet;

use crate::engine::{EngineError, Job, Parallel, Sampler, SamplingParams};
use crate::llama::{Model, Token};

use super::arm::Arm;
use super::problem::Problem;

use super::sample::{Key, Sample};

/// How much work an arm does before the next one has its turn, in samples for each slot. More keeps the slots fuller,
/// less spreads a slow moment of the machine more evenly over the arms.
const TURN: usize = 8;

/// What is to be generated.
pub struct Plan<'a> {
    /// Every problem of the run, whatever its shard.
    pub problems: &'a [Problem],
    /// The prompt of each: its tokens, and how many come before the opening of the answer.
    pub prompts: &'a [(Vec<Token>, usize)],
    /// The arms.
    pub arms: &'a [Arm],
    /// Samples for each problem and arm.
    pub samples: usize,
    /// Sampling; its seed is that of the run.
    pub sampling: &'a SamplingParams,
    /// Tokens to generate at most.
    pub max_tokens: usize,
}

impl Plan<'_> {
    /// Generates what is asked for of the problems `indices` and not `done` yet, arm after arm for a few problems at a
    /// time. Every sample is handed to `finished` as soon as it ends.
    ///
    /// # Errors
    /// When a setting is wrong, decoding fails or is interrupted, or `finished` fails.
    pub fn run<E: From<EngineError>>(
        &self,
        parallel: &mut Parallel,
        model: &Model,
        indices: &[usize],
        done: &HashSet<(usize, String, usize)>,
        finished: &mut dyn FnMut(Sample) -> Result<(), E>,
    ) -> Result<(), E> {
        let turn = (TURN * parallel.slots()).div_ceil(self.samples.max(1));
        for indices in indices.chunks(turn) {
            for arm in self.arms {
                parallel.configure(&arm.stepflow).map_err(EngineError::from)?;
                let keys = indices.iter().flat_map(|&index| (0..self.samples).map(move |sample| Key { index, sample }));
                let open = keys.filter(|key| !done.contains(&(key.index, arm.name.clone(), key.sample)));
                let mut jobs = open.map(|key| (key, self.job(key, model)));
                parallel.run(&mut jobs, &mut |key, generated| {
                    let problem = &self.problems[key.index];
                    finished(Sample::graded(key, &arm.name, self.seed(key), problem, &generated))
                })?;
            }
        }
        Ok(())
    }

    fn job(&self, key: Key, model: &Model) -> Job {
        let (tokens, question) = self.prompts[key.index].clone();
        let sampling = SamplingParams { seed: Some(self.seed(key)), ..self.sampling.clone() };
        Job { tokens, question, max_tokens: self.max_tokens, sampler: Sampler::new(&sampling, model) }
    }

    /// The seed of a sample: the same in every arm, another for every problem and sample.
    fn seed(&self, key: Key) -> u32 {
        let place = ((key.index as u64) << 32) | key.sample as u64;
        crate::random::SplitMix64::new(u64::from(self.sampling.seed.unwrap_or_default()) ^ place.rotate_left(17)).next()
            as u32
    }
}
