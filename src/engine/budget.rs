//! The reasoning budget: thinking beyond it is closed.

use crate::llama::{Model, Token};
use crate::trace::Markers;

/// The budget of one answer.
pub(super) struct Budget {
    /// Thinking tokens that are free.
    tokens: usize,
    /// What is said before thinking closes: words, whatever tokens they name.
    message: String,
    think_end: String,
    /// Tokens that close thinking once the budget is spent, the next one last; `None` until then.
    forced: Option<Vec<Token>>,
}

impl Budget {
    /// `tokens` of thinking, after which comes `message` and then the closing marker.
    pub fn new(tokens: usize, message: &str, markers: &Markers) -> Self {
        Self { tokens, message: format!("{message}\n"), think_end: markers.think_end.clone(), forced: None }
    }

    /// The token that must come next whatever the model says.
    pub fn forced_token(&mut self, thinking: bool, n_thinking: usize, model: &Model) -> Option<Token> {
        if self.forced.is_none() && thinking && n_thinking >= self.tokens {
            let mut tokens = model.tokenize(&self.message, false, false);
            tokens.extend(model.tokenize(&self.think_end, false, true));
            tokens.reverse();
            self.forced = Some(tokens);
        }
        self.forced.as_mut()?.pop()
    }
}
