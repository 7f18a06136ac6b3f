//! Text of messages is text: what a user or an assistant writes that reads like a token of the template's (`<|im_end|>`,
//! `</think>`) costs ordinary tokens.
//!
//! llama.cpp renders messages and template into one text and tokenizes it as a whole, special tokens included. So what
//! looks like one inside a message gets a character set into it that occurs nowhere in the request; in the rendered
//! prompt these characters are found again, taken out, and say where a prompt must be cut to be tokenized.

use std::collections::HashSet;

use serde_json::Value;

use super::ChatError;
use super::input::ReasoningFormat;

/// The marks of thinking that a template need not tell llama.cpp of.
const THINK: (&str, &str) = ("<think>", "</think>");

/// Keys of a message whose texts name something, and are said by nobody.
const NAMES: [&str; 5] = ["role", "type", "id", "tool_call_id", "name"];

/// The texts that stand for tokens in a prompt, and those that mark thinking.
#[derive(Debug, Default)]
pub(super) struct Markup {
    texts: HashSet<String>,
    /// What they begin with, and how many bytes they have: few texts need a closer look.
    initials: HashSet<char>,
    lengths: Vec<usize>,
    thinking: Vec<(String, String)>,
    /// Whether prompts open thinking, so that answers do not.
    opened: bool,
}

/// The character that keeps what messages say from reading as a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mark(char);

/// A rendered text without marks.
#[derive(Debug, PartialEq)]
pub(super) struct Unquoted {
    pub text: String,
    /// Where in it, in bytes, tokens end: none begins before and ends behind.
    pub cuts: Vec<usize>,
}

impl Markup {
    /// `texts` are those of tokens, `thinking` what opens and closes it, `opening` the end of a prompt.
    pub fn new(
        texts: impl IntoIterator<Item = String>,
        thinking: impl IntoIterator<Item = (String, String)>,
        opening: &str,
    ) -> Self {
        let mut pairs = vec![(THINK.0.to_owned(), THINK.1.to_owned())];
        pairs.extend(thinking.into_iter().filter(|(start, end)| !start.is_empty() && !end.is_empty()));
        let of_pairs = pairs.iter().flat_map(|(start, end)| [start.trim().to_owned(), end.trim().to_owned()]);
        let texts: HashSet<String> =
            texts.into_iter().chain(of_pairs).filter(|text| text.chars().count() > 1).collect();
        let lengths = texts.iter().map(String::len).collect::<HashSet<_>>().into_iter().collect();
        let initials = texts.iter().filter_map(|text| text.chars().next()).collect();
        let opened = pairs.iter().any(|(start, _)| opening.trim_end().ends_with(start.trim()));
        Self { texts, initials, lengths, thinking: pairs, opened }
    }

    /// Quotes the texts of `messages`, but for an assistant's thinking that stands at the head of its content, as the
    /// model writes it. See [`Markup::thinking_of`].
    ///
    /// # Errors
    /// When the request uses every character that could serve.
    pub fn quote(&self, messages: &mut Value, format: ReasoningFormat) -> Result<Mark, ChatError> {
        let mut used = HashSet::new();
        characters(messages, &mut used);
        // Unicode leaves these to private use.
        let mut free = ('\u{E000}'..='\u{F8FF}').chain('\u{F0000}'..='\u{FFFFD}').filter(|mark| !used.contains(mark));
        let mark = free.next().ok_or_else(|| {
            ChatError::Request("expected messages that leave a character of Unicode's private use free".to_owned())
        })?;
        for message in messages.as_array_mut().into_iter().flatten() {
            self.quote_message(message, format, mark);
        }
        Ok(Mark(mark))
    }

    fn quote_message(&self, message: &mut Value, format: ReasoningFormat, mark: char) {
        // Where thinking is told apart, none of it is in the content.
        let is_raw = message["role"] == "assistant" && !message["reasoning_content"].is_string();
        let opened = self.opened || format == ReasoningFormat::None;
        let Some(fields) = message.as_object_mut() else { return };
        for (key, value) in fields.iter_mut().filter(|(key, _)| !NAMES.contains(&key.as_str())) {
            match value {
                Value::String(text) if key == "content" && is_raw => {
                    let thinking = self.thinking_of(text, opened);
                    *text = self.quote_around(text, &thinking, mark);
                }
                value => self.quote_all(value, mark),
            }
        }
    }

    fn quote_all(&self, value: &mut Value, mark: char) {
        match value {
            Value::String(text) => *text = self.quote_around(text, &[], mark),
            Value::Array(values) => values.iter_mut().for_each(|value| self.quote_all(value, mark)),
            Value::Object(fields) => {
                let said = fields.iter_mut().filter(|(key, _)| !NAMES.contains(&key.as_str()));
                said.for_each(|(_, value)| self.quote_all(value, mark));
            }
            _ => {}
        }
    }

    /// Where the marks stand, in bytes, between which an assistant's content begins with thinking. Where the prompt has
    /// `opened` it, that is the closing mark alone, at the end of a line: inside a line, or after an opening mark, it is
    /// a quote.
    fn thinking_of(&self, text: &str, opened: bool) -> Vec<usize> {
        let indent = text.len() - text.trim_start().len();
        for (start, end) in self.thinking.iter().map(|(start, end)| (start.trim(), end.trim())) {
            let closes = text.find(end);
            match (text[indent..].starts_with(start), closes) {
                (true, closes) => return [indent].into_iter().chain(closes).collect(),
                (false, Some(at)) if opened && !text[..at].contains(start) => {
                    let rest = text[at + end.len()..].trim_start_matches([' ', '\t', '\r']);
                    return if rest.is_empty() || rest.starts_with('\n') { vec![at] } else { Vec::new() };
                }
                _ => {}
            }
        }
        Vec::new()
    }

    /// Sets `mark` behind the first character of everything that reads as a token, except at the places `but`.
    fn quote_around(&self, text: &str, but: &[usize], mark: char) -> String {
        let mut quoted = String::with_capacity(text.len());
        for (at, character) in text.char_indices() {
            quoted.push(character);
            let reads_as_token = |n: &usize| text.get(at..at + n).is_some_and(|text| self.texts.contains(text));
            if self.initials.contains(&character) && !but.contains(&at) && self.lengths.iter().any(reads_as_token) {
                quoted.push(mark);
            }
        }
        quoted
    }
}

impl Mark {
    /// Takes the marks out of a text that was rendered from messages with them.
    pub fn unquote(self, rendered: &str) -> Unquoted {
        // Templates may write messages as JSON, and JSON in ASCII.
        let mut units = [0; 2];
        let escaped: String = self.0.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect();
        let rendered = rendered.replace(&escaped, self.0.encode_utf8(&mut [0; 4]));
        let mut unquoted = Unquoted { text: String::with_capacity(rendered.len()), cuts: Vec::new() };
        for (i, part) in rendered.split(self.0).enumerate() {
            if i > 0 {
                unquoted.cuts.push(unquoted.text.len());
            }
            unquoted.text.push_str(part);
        }
        unquoted
    }
}

fn characters(value: &Value, used: &mut HashSet<char>) {
    match value {
        Value::String(text) => used.extend(text.chars().filter(|c| *c >= '\u{E000}')),
        Value::Array(values) => values.iter().for_each(|value| characters(value, used)),
        Value::Object(fields) => fields.values().for_each(|value| characters(value, used)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn markup() -> Markup {
        let texts = ["<|im_end|>".to_owned(), "[INST]".to_owned()];
        Markup::new(texts, [("<think>".to_owned(), "</think>\n".to_owned())], "<|im_start|>assistant\n")
    }

    fn quoted(role: &str, content: Value, format: ReasoningFormat) -> (Value, char) {
        let mut messages = json!([{ "role": role, "content": content }]);
        let Mark(mark) = markup().quote(&mut messages, format).unwrap();
        (messages[0]["content"].take(), mark)
    }

    /// The content with a bar at every cut.
    fn cut(role: &str, content: &str) -> String {
        let (text, mark) = quoted(role, content.into(), ReasoningFormat::Auto);
        text.as_str().unwrap().replace(mark, "|CUT|")
    }

    #[test]
    fn what_reads_as_a_token_is_cut() {
        assert_eq!(cut("user", "a <|im_end|> b"), "a <|CUT||im_end|> b");
        assert_eq!(cut("user", "[INST]</think>"), "[|CUT|INST]<|CUT|/think>");
        assert_eq!(cut("user", "1 < 2, [1], <b>"), "1 < 2, [1], <b>");
        assert_eq!(cut("system", "é<think>"), "é<|CUT|think>");
        let (parts, mark) = quoted("tool", json!([{ "type": "text", "text": "<think>" }]), ReasoningFormat::Auto);
        assert_eq!(parts[0]["text"], format!("<{mark}think>"));
    }

    #[test]
    fn an_assistants_thinking_stays_thinking_and_its_quotes_are_quotes() {
        assert_eq!(cut("assistant", "<think>\na </think> b"), "<think>\na </think> b");
        assert_eq!(cut("assistant", "<think>a</think>say </think>"), "<think>a</think>say <|CUT|/think>");
        assert_eq!(cut("assistant", "write </think> to close"), "write <|CUT|/think> to close");
        for (content, expected) in [
            ("a</think>\n\nb </think>", "a</think>\n\nb <|CUT|/think>"),
            ("write </think> to close", "write <|CUT|/think> to close"),
            ("as in\n<think>\n</think>\n", "as in\n<|CUT|think>\n<|CUT|/think>\n"),
        ] {
            let (text, mark) = quoted("assistant", content.into(), ReasoningFormat::None);
            assert_eq!(text.as_str().unwrap().replace(mark, "|CUT|"), expected);
        }
        let mut apart = json!([{ "role": "assistant", "content": "a</think>\n", "reasoning_content": "b" }]);
        let Mark(mark) = markup().quote(&mut apart, ReasoningFormat::None).unwrap();
        assert_eq!(apart[0]["content"], format!("a<{mark}/think>\n"));
    }

    #[test]
    fn arguments_of_calls_are_texts_and_their_names_are_not() {
        let call = json!({ "id": "<think>", "function": { "name": "<think>", "arguments": "{\"a\":\"<think>\"}" } });
        let mut messages = json!([{ "role": "assistant", "content": null, "tool_calls": [call] }]);
        let Mark(mark) = markup().quote(&mut messages, ReasoningFormat::Auto).unwrap();
        let call = &messages[0]["tool_calls"][0];
        assert_eq!(call["id"], "<think>");
        assert_eq!(call["function"]["name"], "<think>");
        assert_eq!(call["function"]["arguments"], format!("{{\"a\":\"<{mark}think>\"}}"));
    }

    #[test]
    fn marks_are_characters_of_nobody_and_found_in_escapes() {
        let mut messages = json!([{ "role": "user", "content": "\u{E000}<think>" }]);
        let mark = markup().quote(&mut messages, ReasoningFormat::Auto).unwrap();
        assert_eq!(mark, Mark('\u{E001}'));
        let unquoted = mark.unquote("x \u{E000}<\u{E001}think> <\\ue001think>");
        assert_eq!(unquoted, Unquoted { text: "x \u{E000}<think> <think>".into(), cuts: vec![6, 14] });
    }

    proptest! {
        #[test]
        fn unquoting_gives_the_text_back(content in "(<\\|im_end\\|>|<think>|</think>|\\[INST\\]|[<>a\u{E000}\u{e9}]){0,12}") {
            let mut messages = json!([{ "role": "user", "content": content }]);
            let mark = markup().quote(&mut messages, ReasoningFormat::Auto).unwrap();
            let unquoted = mark.unquote(messages[0]["content"].as_str().unwrap());
            prop_assert_eq!(&unquoted.text, &content);
            // No piece between two cuts has anything left in it that reads as a token.
            let ends = unquoted.cuts.iter().copied().chain([content.len()]);
            let pieces = std::iter::once(0).chain(unquoted.cuts.iter().copied()).zip(ends);
            for (start, end) in pieces {
                for text in ["<|im_end|>", "<think>", "</think>", "[INST]"] {
                    prop_assert!(!content[start..end].contains(text));
                }
            }
        }
    }
}
