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
            scores.push(context.surprise(i - done, *target));
        }
        done = end;
        progress(&scores);
    }
    Ok(scores)
}
