//! The reasoning budget: thinking beyond it is closed, as the model itself would close it.

use crate::llama::{Model, Token};
use crate::trace::{Family, Markers};

use super::text::whole_characters;
use super::tokens::tokenize_on;

/// The budget of one answer.
pub(super) struct Budget {
    /// Thinking tokens that are free.
    tokens: usize,
    /// Thinking tokens so far.
    spent: usize,
    /// What is said before thinking closes: words, whatever tokens they name.
    message: String,
    /// What closes thinking.
    closing: String,
    /// Where Harmony's messages are; `None` for families that have but one.
    channel: Option<Channel>,
    /// The beginning of a character whose end has not come yet.
    cut_off: Vec<u8>,
    /// Tokens that close thinking once the budget is spent, the next one last; `None` until then.
    forced: Option<Vec<Token>>,
}

impl Budget {
    /// `tokens` of thinking, after which comes `message` and then what closes thinking.
    pub fn new(tokens: usize, message: &str, markers: &Markers) -> Self {
        let is_harmony = *markers == Family::Harmony.markers();
        let (message, closing) = match is_harmony {
            // A channel is of a message: the one that thinks ends, and the one that answers begins.
            true => (message.to_owned(), format!("<|end|><|start|>assistant{}", markers.think_end)),
            false => (format!("{message}\n"), markers.think_end.clone()),
        };
        let channel = is_harmony.then_some(Channel::None);
        Self { tokens, spent: 0, message, closing, channel, cut_off: Vec::new(), forced: None }
    }

    /// Takes in a token of the answer, or of what opens it.
    pub fn observe(&mut self, piece: &[u8], is_thinking: bool) {
        self.spent += usize::from(is_thinking && self.is_in_thoughts());
        if let Some(channel) = &mut self.channel {
            channel.read(piece);
        }
        self.cut_off.extend_from_slice(piece);
        self.cut_off.drain(..whole_characters(&self.cut_off));
    }

    /// The token that must come next whatever the model says. `is_thinking`: whether it would be thinking;
    /// `is_allowed`: whether the answer's grammar allows a token.
    pub fn forced_token(
        &mut self,
        is_thinking: bool,
        model: &Model,
        is_allowed: impl FnOnce(Token) -> bool,
    ) -> Option<Token> {
        let is_due = is_thinking && self.spent >= self.tokens && self.is_in_thoughts() && self.cut_off.is_empty();
        if self.forced.is_none() && is_due {
            let mut tokens =
                if self.message.is_empty() { Vec::new() } else { tokenize_on(model, &self.message, false) };
            tokens.extend(tokenize_on(model, &self.closing, true));
            // A grammar of tools or schemas that is not done with thinking goes first.
            if tokens.first().is_some_and(|&token| is_allowed(token)) {
                tokens.reverse();
                self.forced = Some(tokens);
            }
        }
        self.forced.as_mut()?.pop()
    }

    /// Whether thinking can be closed here: not in the head of a message, nor in a call of a tool.
    fn is_in_thoughts(&self) -> bool {
        self.channel.as_ref().is_none_or(|channel| *channel == Channel::Analysis)
    }
}

/// The channel of Harmony's that an answer is in.
#[derive(Debug, PartialEq)]
enum Channel {
    /// Between messages, or before a message names its channel.
    None,
    /// The head of a message, as far as it has come.
    Head(Vec<u8>),
    /// Thinking.
    Analysis,
    /// Calls of tools, and the answer.
    Other,
}

impl Channel {
    fn read(&mut self, piece: &[u8]) {
        match (piece, &mut *self) {
            (b"<|channel|>", _) => *self = Self::Head(Vec::new()),
            (b"<|message|>", Self::Head(head)) => {
                *self = if head.starts_with(b"analysis") { Self::Analysis } else { Self::Other };
            }
            (b"<|start|>" | b"<|end|>" | b"<|call|>" | b"<|return|>", _) => *self = Self::None,
            (piece, Self::Head(head)) => head.extend_from_slice(piece),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(markers: &Markers, pieces: &[&str]) -> (usize, bool) {
        let mut budget = Budget::new(100, "", markers);
        pieces.iter().for_each(|piece| budget.observe(piece.as_bytes(), true));
        (budget.spent, budget.is_in_thoughts())
    }

    #[test]
    fn harmonys_heads_and_calls_are_no_thoughts() {
        let harmony = Family::Harmony.markers();
        let analysis = ["<|channel|>", "analysis", "<|message|>", "I", " think"];
        assert_eq!(spent(&harmony, &analysis), (2, true));
        assert_eq!(spent(&harmony, &analysis[..2]), (0, false));
        let call = ["<|end|>", "<|start|>", "assistant", "<|channel|>", "comment", "ary to=f", "<|message|>", "{}"];
        assert_eq!(spent(&harmony, &[&analysis[..], &call].concat()), (3, false));
        assert_eq!(spent(&Family::ThinkTags.markers(), &["a", "b"]), (2, true));
    }

    #[test]
    fn no_character_is_cut() {
        let mut budget = Budget::new(0, "", &Family::ThinkTags.markers());
        budget.observe(&[0xF0, 0x9F], true);
        assert!(!budget.cut_off.is_empty());
        budget.observe(&[0xA4, 0x97], true);
        assert!(budget.cut_off.is_empty());
    }
}
