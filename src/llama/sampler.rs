//! llama.cpp's samplers, able to move between threads.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use super::{Context, Token};

/// A sampler, or a chain of them.
pub(crate) struct RawSampler(LlamaSampler);

// SAFETY: a sampler is memory of its own that no thread is tied to, and refers to nothing but a vocabulary, which is
// never written once its model is loaded.
unsafe impl Send for RawSampler {}

impl RawSampler {
    pub fn new(sampler: LlamaSampler) -> Self {
        Self(sampler)
    }

    /// Shows it a token that it did not choose. Returns whether it could take it: a grammar may not allow it.
    #[must_use]
    pub fn accept(&mut self, token: Token) -> bool {
        self.0.try_accept(LlamaToken(token.0)).is_ok()
    }

    /// Chooses a token from the logits of the batch's `row`, and remembers it.
    pub fn sample(&mut self, context: &Context, row: usize) -> Token {
        Token(self.0.sample(context.inner(), row as i32).0)
    }

    /// Removes, changes or chooses among `candidates`.
    pub fn apply(&mut self, candidates: &mut Candidates) {
        candidates.0.apply_sampler(&mut self.0);
    }
}

/// Tokens with their logits, on their way through a chain.
pub struct Candidates(LlamaTokenDataArray);

impl Candidates {
    /// All tokens with the logits of the batch's `row`.
    pub fn of(context: &Context, row: usize) -> Self {
        let logits = context.logits(row).iter().enumerate();
        let data = logits.map(|(token, &logit)| LlamaTokenData::new(LlamaToken(token as i32), logit, 0.0));
        Self(LlamaTokenDataArray::from_iter(data, false))
    }

    /// One token alone.
    pub fn one(token: Token) -> Self {
        Self(LlamaTokenDataArray::new(vec![LlamaTokenData::new(LlamaToken(token.0), 1.0, 0.0)], false))
    }

    /// The token that a chain has chosen.
    pub fn chosen(&self) -> Option<Token> {
        self.0.selected_token().map(|token| Token(token.0))
    }

    /// Whether every token has been ruled out.
    pub fn is_barren(&self) -> bool {
        self.0.data.iter().all(|candidate| candidate.logit() == f32::NEG_INFINITY)
    }

    /// The tokens with the probabilities that a chain has left them.
    pub fn probabilities(&self) -> Vec<(Token, f32)> {
        self.0.data.iter().map(|candidate| (Token(candidate.id().0), candidate.p())).collect()
    }

    /// The tokens with the probabilities that their logits alone give them.
    pub fn softmax(&self) -> Vec<(Token, f32)> {
        let max = self.0.data.iter().map(LlamaTokenData::logit).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = self.0.data.iter().map(|candidate| (candidate.logit() - max).exp()).sum();
        let probability = |candidate: &LlamaTokenData| (candidate.logit() - max).exp() / sum;
        self.0.data.iter().map(|candidate| (Token(candidate.id().0), probability(candidate))).collect()
    }
}
