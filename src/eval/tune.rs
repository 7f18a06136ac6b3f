//! Choosing StepFlow's settings: a coarse grid for each repair, then the best of both together and its neighbours. Arms
//! race: those that are surely worse than the leader drop out, the others answer more problems.

use crate::stepflow::{LayerSelection, OebConfig, SmiConfig, StepFlowConfig};

use super::arm::Arm;
use super::stats::{Interval, mcnemar_exact, paired_bootstrap};

/// Shares of the problems after which the race is looked at.
const LAPS: [f64; 3] = [0.25, 0.5, 1.0];

const TAUS: [f32; 4] = [0.05, 0.15, 0.3, 0.6];
const ALPHAS: [f32; 4] = [0.03, 0.06, 0.15, 0.3];
const SHARES: [f64; 2] = [25.0, 50.0];

/// What is multiplied to get a neighbour of a setting.
const NEIGHBOURS: [f32; 2] = [0.7, 1.4];

/// An arm and what it made of the first problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The arm.
    pub arm: Arm,
    /// Whether each problem was answered rightly, in order.
    pub right: Vec<bool>,
}

impl Trial {
    fn new(arm: Arm) -> Self {
        Self { arm, right: Vec::new() }
    }

    /// Accuracy on the problems so far.
    pub fn accuracy(&self) -> f64 {
        self.right.iter().filter(|right| **right).count() as f64 / self.right.len().max(1) as f64
    }

    /// How it differs from another over the problems that both answered.
    pub fn against(&self, other: &Self) -> Comparison {
        let differences: Vec<i8> =
            self.right.iter().zip(&other.right).map(|(a, b)| i8::from(*a) - i8::from(*b)).collect();
        let count = |what: i8| differences.iter().filter(|&&d| d == what).count() as u64;
        let n = differences.len().max(1) as f64;
        Comparison {
            difference: (count(1) as f64 - count(-1) as f64) / n,
            interval: paired_bootstrap(&differences, 1),
            p: mcnemar_exact(count(1), count(-1)),
        }
    }
}

/// A paired difference of accuracies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The difference.
    pub difference: f64,
    /// Its bootstrap 95% interval.
    pub interval: Interval,
    /// Exact McNemar p.
    pub p: f64,
}

/// Has an arm answer the problems of a range, in order, and says which it got right.
type Answer<'a, E> = dyn FnMut(&Arm, std::ops::Range<usize>) -> Result<Vec<bool>, E> + 'a;

/// What tuning found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// The best arm; the baseline where nothing was better.
    pub best: Trial,
    /// The baseline.
    pub baseline: Trial,
    /// How many settings were tried.
    pub tried: usize,
}

/// Chooses among settings by their answers to `n` problems: `answer` has an arm answer those of a range, in order, and
/// says which it got right.
///
/// # Errors
/// Those of `answer`.
pub fn tune<E>(n: usize, answer: &mut Answer<'_, E>) -> Result<Tuned, E> {
    // Each repair has a race of its own, so that the weaker one is not lost before both are put together.
    let mut trials = vec![Trial::new(Arm::baseline())];
    let mut tried = 0;
    for coarse in [coarse_oeb(), coarse_smi()] {
        tried += coarse.len();
        let (baseline, others) = (trials.remove(0), std::mem::take(&mut trials));
        trials = std::iter::once(baseline).chain(coarse.into_iter().map(Trial::new)).collect();
        race(&mut trials, n, answer)?;
        trials.extend(others);
    }
    let finalists: Vec<Arm> = refined(&trials);
    tried += finalists.len();
    trials.extend(finalists.into_iter().map(Trial::new));
    race(&mut trials, n, answer)?;
    let baseline = trials[0].clone();
    Ok(Tuned { best: leader(&trials).clone(), baseline, tried })
}

/// Has all trials answer more and more of the problems; drops what is surely worse than the leader, but never the first,
/// and stops where the leader is surely better than the first and alone.
fn race<E>(trials: &mut Vec<Trial>, n: usize, answer: &mut Answer<'_, E>) -> Result<(), E> {
    for lap in LAPS {
        let goal = (n as f64 * lap).ceil() as usize;
        for trial in trials.iter_mut().filter(|trial| trial.right.len() < goal) {
            trial.right.extend(answer(&trial.arm, trial.right.len()..goal)?);
        }
        let leader = leader(trials).clone();
        let mut first = true;
        trials.retain(|trial| std::mem::take(&mut first) || trial.against(&leader).interval.high >= 0.0);
        let sure = leader.against(&trials[0]).interval.low > 0.0;
        if trials.len() <= 2 && sure {
            break;
        }
    }
    Ok(())
}

/// The most accurate; of equals the first, so that nothing is as good as something.
fn leader(trials: &[Trial]) -> &Trial {
    let mut best = &trials[0];
    for trial in trials {
        // Over the problems that both answered: a race may end early.
        if trial.against(best).difference > 0.0 {
            best = trial;
        }
    }
    best
}

fn coarse_oeb() -> Vec<Arm> {
    let oeb = |tau_max, share| OebConfig { tau_max, layers: LayerSelection::Percent(share) };
    let all = SHARES.iter().flat_map(|&share| TAUS.map(|tau| oeb(tau, share)));
    all.map(|oeb| arm(StepFlowConfig { oeb: Some(oeb), smi: None })).collect()
}

fn coarse_smi() -> Vec<Arm> {
    let smi = |alpha, share| SmiConfig { alpha, layers: LayerSelection::Percent(share), ..SmiConfig::default() };
    let all = SHARES.iter().flat_map(|&share| ALPHAS.map(|alpha| smi(alpha, share)));
    all.map(|smi| arm(StepFlowConfig { oeb: None, smi: Some(smi) })).collect()
}

/// The best OEB and the best SMI together, and neighbours of that.
fn refined(trials: &[Trial]) -> Vec<Arm> {
    let of = |is: fn(&StepFlowConfig) -> bool| {
        let own: Vec<Trial> = trials.iter().filter(|trial| is(&trial.arm.stepflow)).cloned().collect();
        (!own.is_empty()).then(|| leader(&own).arm.stepflow.clone())
    };
    let oeb = of(|config| config.oeb.is_some()).and_then(|config| config.oeb);
    let smi = of(|config| config.smi.is_some()).and_then(|config| config.smi);
    let mut configs = Vec::new();
    if oeb.is_some() && smi.is_some() {
        configs.push(StepFlowConfig { oeb: oeb.clone(), smi: smi.clone() });
    }
    for factor in NEIGHBOURS {
        if let Some(oeb) = &oeb {
            let oeb = OebConfig { tau_max: rounded(oeb.tau_max * factor).min(1.0), ..oeb.clone() };
            configs.push(StepFlowConfig { oeb: Some(oeb), smi: smi.clone() });
        }
        if let Some(smi) = &smi {
            let smi = SmiConfig { alpha: rounded(smi.alpha * factor), ..smi.clone() };
            configs.push(StepFlowConfig { oeb: oeb.clone(), smi: Some(smi) });
        }
    }
    configs.into_iter().map(arm).filter(|arm| trials.iter().all(|trial| trial.arm.stepflow != arm.stepflow)).collect()
}

/// To three decimals: nobody can tell more apart.
fn rounded(value: f32) -> f32 {
    (value * 1000.0).round() / 1000.0
}

/// An arm named after its settings.
fn arm(stepflow: StepFlowConfig) -> Arm {
    let arm = Arm { name: String::new(), stepflow };
    Arm { name: arm.settings(), ..arm }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Problems that an arm gets right when its chance beats the problem's own dice: paired, as real ones are.
    fn answers(
        chance: impl Fn(&StepFlowConfig) -> f64,
    ) -> impl FnMut(&Arm, std::ops::Range<usize>) -> Result<Vec<bool>, ()> {
        move |arm, range| {
            let dice = |i: usize| SplitMix64::new(i as u64).below(1000) as f64 / 1000.0;
            Ok(range.map(|i| dice(i) < chance(&arm.stepflow)).collect())
        }
    }

    #[test]
    fn finds_what_helps() {
        let chance = |config: &StepFlowConfig| {
            let oeb = config.oeb.as_ref().map_or(0.0, |oeb| 0.15 - (oeb.tau_max - 0.3).abs() as f64);
            let smi = config.smi.as_ref().map_or(0.0, |smi| 0.05 - (smi.alpha - 0.15).abs() as f64);
            0.5 + oeb + smi
        };
        let tuned = tune(400, &mut answers(chance)).unwrap();
        let (oeb, smi) = (tuned.best.arm.stepflow.oeb.clone().unwrap(), tuned.best.arm.stepflow.smi.clone().unwrap());
        assert_eq!((oeb.tau_max, smi.alpha), (0.3, 0.15));
        assert!(tuned.best.against(&tuned.baseline).interval.low > 0.0);
    }

    #[test]
    fn nothing_is_chosen_where_nothing_helps() {
        let chance = |config: &StepFlowConfig| if config.is_on() { 0.4 } else { 0.5 };
        let tuned = tune(200, &mut answers(chance)).unwrap();
        assert_eq!(tuned.best.arm.name, Arm::BASELINE);
        assert_eq!(tuned.best.accuracy(), tuned.baseline.accuracy());
    }

    #[test]
    fn what_is_surely_worse_answers_no_more_problems() {
        let mut asked = 0;
        let mut answer = answers(|config| if config.is_on() { 0.1 } else { 0.9 });
        let mut counting = |arm: &Arm, range: std::ops::Range<usize>| {
            asked += range.len();
            answer(arm, range)
        };
        tune(400, &mut counting).unwrap();
        // The baseline answers all, 16 arms a quarter of them, and there is nothing left to refine.
        assert_eq!(asked, 400 + 16 * 100);
    }
}
