//! What a chat template makes of a request.

use serde::{Deserialize, Deserializer, Serialize};

use super::parser::Parser;
use super::quoted::{Mark, Unquoted};
use super::{ChatError, Token};

/// How a [`GrammarTrigger`] is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerKind {
    /// A token.
    Token,
    /// A text.
    Word,
    /// A regular expression, found anywhere.
    Pattern,
    /// A regular expression of everything up to the trigger.
    PatternFull,
}

/// What brings a lazy grammar into force.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GrammarTrigger {
    /// How it is recognised.
    #[serde(rename = "type")]
    pub kind: TriggerKind,
    /// The text or expression.
    pub value: String,
    /// The token, for [`TriggerKind::Token`].
    #[serde(deserialize_with = "token")]
    pub token: Option<Token>,
}

fn token<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Token>, D::Error> {
    i32::deserialize(from).map(|number| (number >= 0).then_some(Token(number)))
}

/// The prompt of a request, and all that its answer is to be generated and read with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Applied {
    /// The text that the model reads.
    pub prompt: String,
    /// Where in it, in bytes, tokens end: what a message says is text, and reads as no token of the template's.
    #[serde(skip)]
    pub cuts: Vec<usize>,
    /// The end of it that opens the answer. A grammar is told of it, and so is the parser, which already knows it.
    pub generation_prompt: String,
    /// What the answer must obey (GBNF); empty for nothing.
    pub grammar: String,
    /// Whether the grammar is in force only from one of `grammar_triggers` on.
    pub grammar_lazy: bool,
    /// What brings it into force.
    pub grammar_triggers: Vec<GrammarTrigger>,
    /// Special tokens that must be in the text of the answer for it to be understood.
    pub preserved_tokens: Vec<String>,
    /// Texts at which generation stops.
    pub additional_stops: Vec<String>,
    /// Whether the template has the model think.
    pub supports_thinking: bool,
    /// What opens thinking; empty if nothing does.
    pub thinking_start_tag: String,
    /// What closes it.
    pub thinking_end_tags: Vec<String>,
    /// llama.cpp's name for the kind of parser.
    pub format: String,
    format_id: i32,
    parser: String,
    is_continuation: bool,
    #[serde(skip)]
    echo: bool,
}

/// What [`Parser`] is made from.
#[derive(Serialize)]
struct ParserParams<'a> {
    format_id: i32,
    generation_prompt: &'a str,
    parser: &'a str,
    is_continuation: bool,
}

impl Applied {
    /// The same, without the marks in what is quoted.
    pub(super) fn unquoted(self, mark: Mark, echo: bool) -> Self {
        let Unquoted { text: prompt, cuts } = mark.unquote(&self.prompt);
        let generation_prompt = mark.unquote(&self.generation_prompt).text;
        Self { prompt, cuts, generation_prompt, echo, ..self }
    }

    /// A parser for one answer.
    ///
    /// # Errors
    /// When the message to be continued cannot be read.
    pub fn parser(&self) -> Result<Parser, ChatError> {
        let params = ParserParams {
            format_id: self.format_id,
            generation_prompt: &self.generation_prompt,
            parser: &self.parser,
            is_continuation: self.is_continuation,
        };
        let params = serde_json::to_string(&params).map_err(|error| ChatError::Internal(error.to_string()))?;
        Parser::open(&params, self.echo, &self.generation_prompt)
    }
}
