//! What is differentiated, chunk by chunk, and its derivative by the logits.

use rayon::prelude::*;

use super::lanes::{exponentials, largest};

/// What is asked of the tokens that count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seed {
    /// How surprising each is, in nats.
    Surprise,
    /// Its logit.
    Logit,
}

impl Seed {
    /// For each row of logits the token that it should have told, if it counts. Logits become derivatives by them, of the mean over
    /// all that count; returns the sum.
    pub fn differentiate(self, logits: &mut [f32], targets: &[Option<usize>], n_counted: usize) -> f64 {
        let n_vocab = logits.len() / targets.len();
        let of_row = |(logits, target): (&mut [f32], &Option<usize>)| {
            let Some(target) = *target else {
                logits.fill(0.0);
                return 0.0;
            };
            match self {
                Self::Surprise => surprise(logits, target, n_counted),
                Self::Logit => {
                    let logit = f64::from(logits[target]);
                    logits.fill(0.0);
                    logits[target] = 1.0 / n_counted as f32;
                    logit
                }
            }
        };
        let values: Vec<f64> = logits.par_chunks_mut(n_vocab).zip(targets).map(of_row).collect();
        values.iter().sum()
    }
}

fn surprise(logits: &mut [f32], target: usize, n_counted: usize) -> f64 {
    let most = largest(logits);
    let wanted = f64::from(logits[target]) - f64::from(most);
    exponentials(logits, most);
    let sum: f64 = logits.iter().map(|x| f64::from(*x)).sum();
    let scale = (1.0 / (sum * n_counted as f64)) as f32;
    logits.iter_mut().for_each(|x| *x *= scale);
    logits[target] -= 1.0 / n_counted as f32;
    sum.ln() - wanted
}
