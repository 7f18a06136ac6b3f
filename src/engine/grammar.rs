//! Grammars that an answer keeps to, in llama.cpp's GBNF.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;

use crate::llama::{Candidates, Model, RawSampler, Token};

use super::gbnf;

/// A grammar that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// llama.cpp refuses it.
    #[error("failed to parse grammar: expected GBNF with a rule named `root` that does not begin with itself")]
    Syntax,
    /// llama.cpp would overflow its stack, take too much memory, or not come back.
    #[error("grammar: {0}")]
    Excess(String),
    /// What stands in the prompt already is not a beginning of what the grammar describes.
    #[error("the grammar does not allow the text that the chat template opens the answer with")]
    Prefill,
}

/// When a grammar begins to hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Triggers {
    /// Regular expressions over the answer so far; the grammar applies from their first group on.
    pub patterns: Vec<String>,
    /// Tokens; the grammar applies from them on.
    pub tokens: Vec<Token>,
}

/// A grammar, and how far into it an answer has come.
pub struct Grammar {
    rules: RawSampler,
    /// Whether it holds while the model thinks, too.
    in_thinking: bool,
    /// A token came that it does not allow, forced from outside: it holds no more.
    broken: bool,
}

impl Grammar {
    /// A grammar for `model`. With `triggers` it begins to hold when one of them comes. `in_thinking`: whether it holds
    /// while the model thinks, too, and triggers count there: grammars that describe thinking, and those of tools that
    /// are called before the answer, as in Harmony.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(
        model: &Model,
        gbnf: &str,
        triggers: Option<&Triggers>,
        in_thinking: bool,
    ) -> Result<Self, GrammarError> {
        gbnf::check(gbnf).map_err(GrammarError::Excess)?;
        let rules = match triggers {
            None => LlamaSampler::grammar(model.inner(), gbnf, "root"),
            Some(Triggers { patterns, tokens }) => {
                let tokens: Vec<_> = tokens.iter().map(|token| LlamaToken(token.0)).collect();
                LlamaSampler::grammar_lazy_patterns(model.inner(), gbnf, "root", patterns, &tokens)
            }
        };
        let rules = RawSampler::new(rules.map_err(|_| GrammarError::Syntax)?);
        Ok(Self { rules, in_thinking, broken: false })
    }

    /// The same, after tokens of the prompt that open the answer.
    ///
    /// # Errors
    /// When it does not allow them.
    pub fn after(mut self, opening: &[Token]) -> Result<Self, GrammarError> {
        let allowed = opening.iter().all(|&token| self.permits(token) && self.rules.accept(token));
        if allowed { Ok(self) } else { Err(GrammarError::Prefill) }
    }

    /// Takes a token in.
    pub(super) fn accept(&mut self, token: Token, thinking: bool) {
        if !self.rests(thinking) {
            // An end that the grammar does not allow would abort llama.cpp.
            self.broken = !(self.permits(token) && self.rules.accept(token));
        }
    }

    /// Whether `token` may come next.
    pub(super) fn allows(&mut self, token: Token, thinking: bool) -> bool {
        self.rests(thinking) || self.permits(token)
    }

    /// Rules out what may not come next.
    pub(super) fn apply(&mut self, candidates: &mut Candidates) {
        self.rules.apply(candidates);
    }

    fn permits(&mut self, token: Token) -> bool {
        let mut alone = Candidates::one(token);
        self.rules.apply(&mut alone);
        !alone.is_barren()
    }

    fn rests(&self, thinking: bool) -> bool {
        self.broken || (thinking && !self.in_thinking)
    }
}
