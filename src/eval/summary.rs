//! What a run says: accuracy of every arm, its difference to the first one, and which problems flipped.
//!
//! Nothing here depends on when or in what order the samples were made. Speed does, and is kept apart: [`super::speed`].

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::folder::Run;
use super::sample::{Repairs, Sample};
use super::stats::{Interval, mcnemar_exact, paired_bootstrap, wilson};

/// Seed of the bootstrap: a summary is the same every time.
const BOOTSTRAP_SEED: u64 = 1979;

/// The results of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// The problem file's name.
    pub problems: String,
    /// Problems whose samples are all there; only they count.
    pub n_problems: usize,
    /// Problems of the run that are not complete.
    pub n_missing: usize,
    /// Every arm, with one sample and with votes of several.
    pub results: Vec<Outcome>,
}

/// How an arm did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The arm's name.
    pub arm: String,
    /// Its settings.
    pub settings: String,
    /// Samples that vote on each problem; the first ones. A tie goes to the answer that came first.
    pub votes: usize,
    /// Problems answered rightly.
    pub correct: u64,
    /// Share of them.
    pub accuracy: f64,
    /// Wilson's 95% interval of it.
    pub interval: Interval,
    /// Problems in which no answer was found.
    pub without_answer: u64,
    /// Samples that ran into a limit.
    pub unfinished: u64,
    /// Mean tokens generated for a problem, by all that vote.
    pub tokens: f64,
    /// Mean of them that are thinking.
    pub thinking_tokens: f64,
    /// Rows bridged over rows seen.
    pub bridged_share: f64,
    /// Mean injections in a sample.
    pub injections: f64,
    /// The difference to the first arm with as many votes; `None` for that arm itself.
    pub difference: Option<Difference>,
}

/// A paired comparison over the same problems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Accuracy minus that of the first arm.
    pub accuracy: f64,
    /// Bootstrap 95% interval of it, over problems.
    pub interval: Interval,
    /// Exact two-sided McNemar p.
    pub p: f64,
    /// Problems that only this arm answers rightly.
    pub gained: Vec<String>,
    /// Problems that only the first arm answers rightly.
    pub lost: Vec<String>,
}

/// What one arm made of one problem.
struct Ballot<'a> {
    problem: &'a str,
    correct: bool,
    answered: bool,
    samples: Vec<&'a Sample>,
}

impl Summary {
    /// Sums up the samples of a run; those of problems that are not complete are left out.
    pub fn new(run: &Run, samples: &[Sample]) -> Self {
        let mut by_problem: BTreeMap<usize, HashMap<(&str, usize), &Sample>> = BTreeMap::new();
        for sample in samples {
            by_problem.entry(sample.index).or_default().insert((&sample.arm, sample.sample), sample);
        }
        by_problem.retain(|_, samples| samples.len() == run.arms.len() * run.samples);
        let mut results: Vec<Outcome> = Vec::new();
        for votes in vote_sizes(run.samples) {
            let mut first: Option<Vec<Ballot<'_>>> = None;
            for (arm, settings) in &run.arms {
                let ballots: Vec<_> = by_problem.values().map(|samples| Ballot::of(samples, arm, votes)).collect();
                let difference = first.as_ref().map(|first| Difference::between(&ballots, first));
                results.push(Outcome::new(arm, settings, votes, &ballots, difference));
                first.get_or_insert(ballots);
            }
        }
        let n_expected = run.indices().count();
        let name = run.model.get("name").or(run.model.get("file")).and_then(|name| name.as_str());
        Self {
            model: name.unwrap_or_default().to_owned(),
            problems: run.problems.clone(),
            n_problems: by_problem.len(),
            n_missing: n_expected.saturating_sub(by_problem.len()),
            results,
        }
    }

    /// As JSON, the flipped problems by name.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }
}

/// 1, 2, 4, ... and all of them.
fn vote_sizes(samples: usize) -> Vec<usize> {
    let mut sizes: Vec<_> = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < samples).collect();
    sizes.push(samples);
    sizes
}

impl<'a> Ballot<'a> {
    fn of(samples: &HashMap<(&str, usize), &'a Sample>, arm: &str, votes: usize) -> Self {
        let samples: Vec<&Sample> = (0..votes).filter_map(|sample| samples.get(&(arm, sample)).copied()).collect();
        let elected = elect(&samples);
        Self {
            problem: samples.first().map_or("", |sample| &sample.problem),
            correct: elected.is_some_and(|sample| sample.correct),
            answered: elected.is_some(),
            samples,
        }
    }
}

/// The first sample with the answer that most samples give; of answers with equally many, the one that came first.
fn elect<'a>(samples: &[&'a Sample]) -> Option<&'a Sample> {
    let votes = |answer: &str| samples.iter().filter(|sample| sample.answer.as_deref() == Some(answer)).count();
    let mut elected: Option<(&Sample, usize)> = None;
    for &sample in samples {
        let Some(answer) = &sample.answer else { continue };
        let count = votes(answer);
        if elected.is_none_or(|(_, most)| count > most) {
            elected = Some((sample, count));
        }
    }
    elected.map(|(sample, _)| sample)
}

impl Outcome {
    fn new(arm: &str, settings: &str, votes: usize, ballots: &[Ballot<'_>], difference: Option<Difference>) -> Self {
        let n = ballots.len() as u64;
        let count = |is: fn(&Ballot<'_>) -> bool| ballots.iter().filter(|ballot| is(ballot)).count() as u64;
        let samples = || ballots.iter().flat_map(|ballot| &ballot.samples);
        let mean = |total: usize, count: usize| if count == 0 { 0.0 } else { total as f64 / count as f64 };
        let correct = count(|ballot| ballot.correct);
        let repairs = |of: fn(&Repairs) -> u64| samples().map(|sample| of(&sample.stepflow)).sum::<u64>() as usize;
        Self {
            arm: arm.to_owned(),
            settings: settings.to_owned(),
            votes,
            correct,
            accuracy: mean(correct as usize, ballots.len()),
            interval: wilson(correct, n),
            without_answer: count(|ballot| !ballot.answered),
            unfinished: samples().filter(|sample| !sample.finished).count() as u64,
            tokens: mean(samples().map(|sample| sample.tokens.generated()).sum(), ballots.len()),
            thinking_tokens: mean(samples().map(|sample| sample.tokens.thinking).sum(), ballots.len()),
            bridged_share: mean(repairs(|r| r.rows_bridged), repairs(|r| r.rows_seen)),
            injections: mean(repairs(|r| r.injections), samples().count()),
            difference,
        }
    }
}

impl Difference {
    fn between(ours: &[Ballot<'_>], first: &[Ballot<'_>]) -> Self {
        let pairs = || ours.iter().zip(first);
        let flipped = |won: bool| {
            let flips = pairs().filter(move |(ours, first)| ours.correct == won && first.correct != won);
            flips.map(|(ours, _)| ours.problem.to_owned()).collect::<Vec<_>>()
        };
        let (gained, lost) = (flipped(true), flipped(false));
        let differences: Vec<i8> =
            pairs().map(|(ours, first)| i8::from(ours.correct) - i8::from(first.correct)).collect();
        let n = differences.len().max(1) as f64;
        Self {
            accuracy: (gained.len() as f64 - lost.len() as f64) / n,
            interval: paired_bootstrap(&differences, BOOTSTRAP_SEED),
            p: mcnemar_exact(gained.len() as u64, lost.len() as u64),
            gained,
            lost,
        }
    }
}
