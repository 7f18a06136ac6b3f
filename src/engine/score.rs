//! Teacher-forced scoring: how surprised the model is by every token of a given text.

use crate::llama::{Batch, Context, LlamaError, Model, Row, Token};
use crate::trace::{Markers, Step, Tracker};

use super::session::row;

/// The rows of a given sequence, and its steps. The first `n_prompt` tokens count as prompt, the others as generated.
pub fn label(model: &Model, markers: Markers, tokens: &[Token], n_prompt: usize) -> (Vec<Row>, Vec<Step>) {
    let mut tracker = Tracker::new(markers);
    let label = |(position, &token): (usize, &Token)| {
        let tracked = tracker.push(&model.piece(token), position >= n_prompt);
        row(token, position, &tracked, false)
    };
    let rows = tokens.iter().enumerate().map(label).collect();
    (rows, tracker.steps())
}

/// Negative log-likelihood, in nats, of every token but the first: entry `i` scores token `i + 1` of `rows`.
///
/// `rows` is one sequence in order; which logits are wanted is decided here. `progress` is shown the scores so far after
/// every batch, so that they are not lost when a later one fails.
///
/// # Errors
/// As [`Context::decode`].
pub fn score(
    context: &mut Context,
    mut rows: Vec<Row>,
    mut progress: impl FnMut(&[f64]),
) -> Result<Vec<f64>, LlamaError> {
    let targets: Vec<_> = rows.iter().skip(1).map(|row| row.token).collect();
    let mut scores = Vec::with_capacity(targets.len());
    let mut done = 0;
    while done < rows.len() {
        let end = rows.len().min(done + context.max_batch());
        for (i, row) in rows[done..end].iter_mut().enumerate() {
            row.logits = done + i < targets.len();
        }
        let batch = Batch { rows: rows[done..end].to_vec() };
        context.decode(&batch)?;
        for (i, target) in targets.iter().enumerate().take(end).skip(done) {
            scores.push(surprise(context.logits(i - done), target.0 as usize));
        }
        done = end;
        progress(&scores);
    }
    Ok(scores)
}

/// `-ln softmax(logits)[target]`, in nats.
fn surprise(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max - logits[target]) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certain_token_is_no_surprise() {
        assert!(surprise(&[0.0, 100.0], 1) < 1e-12);
        // ln 2: two equal tokens.
        assert!((surprise(&[3.0, 3.0], 0) - std::f64::consts::LN_2).abs() < 1e-12);
    }
}
