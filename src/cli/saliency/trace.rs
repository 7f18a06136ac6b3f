//! Whether a trace can be measured, and a model reads it as it is.

use anyhow::bail;
use stepflow::llama::{Model, Token};
use stepflow::trace::TraceFile;

/// The trace's tokens, which the model must read as the trace does.
pub fn tokens(trace: &TraceFile, model: &Model) -> anyhow::Result<Vec<Token>> {
    if trace.steps.len() < 2 || trace.tokens.len() < 2 {
        bail!("expected a trace of at least two steps, found {}", trace.steps.len());
    }
    for (position, token) in trace.tokens.iter().enumerate() {
        let known = usize::try_from(token.id).is_ok_and(|id| id < model.n_vocab());
        let piece = if known { model.piece(Token(token.id)) } else { Vec::new() };
        if piece != token.piece {
            bail!(
                "token {position} of the trace is {} as {:?}, in this model it is {}; use the model that the trace is of",
                token.id,
                String::from_utf8_lossy(&token.piece),
                if known { format!("{:?}", String::from_utf8_lossy(&piece)) } else { "none".to_owned() }
            );
        }
    }
    let (n, n_ctx) = (trace.tokens.len(), model.n_ctx_train() as usize);
    if n > n_ctx {
        say!("stepflow: the trace has {n} tokens, and the model was trained with {n_ctx}: beyond, it may know little");
    }
    Ok(trace.tokens.iter().map(|token| Token(token.id)).collect())
}
