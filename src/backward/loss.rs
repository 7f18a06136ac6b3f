//! The loss of a chunk of tokens, and its derivative by their logits.

use rayon::prelude::*;

use super::lanes::{exponentials, largest};

/// For each row of logits the token that it should have told, if the loss counts it. Logits become the loss's derivatives by
/// them; returns the sum of the surprises in nats.
pub(super) fn differentiate(logits: &mut [f32], targets: &[Option<usize>], n_counted: usize) -> f64 {
    let n_vocab = logits.len() / targets.len();
    let surprises: Vec<f64> = logits
        .par_chunks_mut(n_vocab)
        .zip(targets)
        .map(|(logits, target)| {
            let Some(target) = *target else {
                logits.fill(0.0);
                return 0.0;
            };
            let most = largest(logits);
            let wanted = f64::from(logits[target]) - f64::from(most);
            exponentials(logits, most);
            let sum: f64 = logits.iter().map(|x| f64::from(*x)).sum();
            let scale = (1.0 / (sum * n_counted as f64)) as f32;
            logits.iter_mut().for_each(|x| *x *= scale);
            logits[target] -= 1.0 / n_counted as f32;
            sum.ln() - wanted
        })
        .collect();
    surprises.iter().sum()
}
