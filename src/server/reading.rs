//! From the text of answers to messages: thinking, content and calls of tools apart.

use crate::llama::chat::{Applied, Delta, Message, Parser};
use crate::trace::Markers;

use super::error::ApiError;
use super::generation::{Answer, Update};

/// A reader for each answer of a request.
pub struct Readers(Vec<Reader>);

struct Reader {
    form: Form,
    calls_tools: bool,
    /// Whether anything was told of it.
    told: bool,
}

/// What an answer is read as.
enum Form {
    /// As its template has it.
    Template(Box<Parser>),
    /// Thinking between the family's markers, and content: of models whose template says nothing of thinking.
    Marked(Marked),
    /// As it is: it had not the form that its template demands.
    Plain,
}

impl Readers {
    /// For `n` answers. `markers` tell thinking apart where the template's own parser cannot.
    pub fn new(applied: &Applied, markers: Option<&Markers>, n: usize) -> Result<Self, ApiError> {
        let form = || -> Result<Form, ApiError> {
            Ok(match markers {
                Some(markers) => Form::Marked(Marked::new(markers, applied)),
                None => Form::Template(Box::new(applied.parser()?)),
            })
        };
        let readers = (0..n).map(|_| Ok(Reader { form: form()?, calls_tools: false, told: false }));
        Ok(Self(readers.collect::<Result<_, ApiError>>()?))
    }

    /// What an update adds to its answer. Of one that is cut off, what may be the beginning of a mark is not told.
    pub fn deltas(&mut self, index: usize, answer: &Answer, update: &Update) -> Vec<Delta> {
        let reader = &mut self.0[index];
        let is_complete = update.ended && answer.is_complete();
        let mut deltas = match &mut reader.form {
            Form::Template(parser) => match read(parser, &update.text, is_complete) {
                Some(deltas) => deltas,
                None => {
                    reader.form = Form::Plain;
                    plain(&update.text)
                }
            },
            Form::Marked(marked) => marked.push(&update.text, is_complete),
            Form::Plain => plain(&update.text),
        };
        if is_complete && !reader.told && deltas.is_empty() {
            // Nothing in it is meant for the user; as in llama-server, all of it is shown.
            deltas = plain(&answer.text);
        }
        reader.told |= !deltas.is_empty();
        reader.calls_tools |= deltas.iter().any(|delta| delta.tool_call.is_some());
        deltas
    }

    /// Whether an answer has called a tool so far.
    pub fn calls_tools(&self, index: usize) -> bool {
        self.0[index].calls_tools
    }

    /// The whole message of an answer that is over.
    pub fn message(&mut self, index: usize, answer: &Answer) -> Message {
        let plain = || Message { role: "assistant".to_owned(), content: answer.text.clone(), ..Message::default() };
        let is_complete = answer.is_complete();
        match &mut self.0[index].form {
            Form::Template(parser) => match read(parser, &answer.text, is_complete).map(|_| parser.message()) {
                Some(Ok(message)) if !is_empty(&message) || !is_complete => message,
                _ => plain(),
            },
            Form::Marked(marked) => {
                marked.text.clone_from(&answer.text);
                let (reasoning_content, content) = marked.split(is_complete);
                Message { reasoning_content: reasoning_content.to_owned(), content: content.to_owned(), ..plain() }
            }
            Form::Plain => plain(),
        }
    }
}

/// What `text` adds to an answer; `None` when that leaves its template's form.
fn read(parser: &mut Parser, text: &str, is_complete: bool) -> Option<Vec<Delta>> {
    let mut deltas = if text.is_empty() { Vec::new() } else { parser.push(text).ok()? };
    // An answer that does not end as its template has it has been read as far as it goes.
    if is_complete && let Ok((_, rest)) = parser.finish() {
        deltas.extend(rest);
    }
    Some(deltas)
}

fn plain(text: &str) -> Vec<Delta> {
    let delta = || Delta { reasoning_content: String::new(), content: text.to_owned(), tool_call: None };
    if text.is_empty() { Vec::new() } else { vec![delta()] }
}

fn is_empty(message: &Message) -> bool {
    message.content.is_empty() && message.reasoning_content.is_empty() && message.tool_calls.is_empty()
}

/// An answer with thinking between markers.
struct Marked {
    think_start: String,
    think_end: String,
    /// Whether the prompt has opened thinking.
    opened: bool,
    text: String,
    /// Bytes of reasoning and of content that were told.
    told: (usize, usize),
}

impl Marked {
    fn new(markers: &Markers, applied: &Applied) -> Self {
        let think_start = markers.think_start.clone().unwrap_or_default();
        let opened = applied.generation_prompt.trim_end().ends_with(&think_start);
        Self { think_start, think_end: markers.think_end.clone(), opened, text: String::new(), told: (0, 0) }
    }

    fn push(&mut self, text: &str, is_complete: bool) -> Vec<Delta> {
        self.text.push_str(text);
        let (reasoning, content) = self.split(is_complete);
        let (more, further) = (reasoning[self.told.0..].to_owned(), content[self.told.1..].to_owned());
        self.told = (reasoning.len(), content.len());
        let delta = |reasoning_content, content| Delta { reasoning_content, content, tool_call: None };
        let mut deltas = Vec::new();
        if !more.is_empty() {
            deltas.push(delta(more, String::new()));
        }
        if !further.is_empty() {
            deltas.push(delta(String::new(), further));
        }
        deltas
    }

    /// Reasoning and content of the text so far. What may be the beginning of a marker, and white space at the end of the
    /// reasoning, is not told until it is known what it is.
    fn split(&self, is_complete: bool) -> (&str, &str) {
        let trimmed = self.text.trim_start();
        let thought = match trimmed.strip_prefix(&self.think_start) {
            Some(thought) => thought,
            None if !is_complete && self.think_start.starts_with(trimmed) => return ("", ""),
            None if self.opened => trimmed,
            None => return ("", &self.text),
        };
        match thought.split_once(&self.think_end) {
            Some((reasoning, content)) => (reasoning.trim(), content.trim_start()),
            None if is_complete => (thought.trim(), ""),
            None => (thought[..thought.len() - overlap(thought, &self.think_end)].trim(), ""),
        }
    }
}

/// Length of the longest end of `text` that `marker` begins with.
fn overlap(text: &str, marker: &str) -> usize {
    let starts = marker.char_indices().map(|(at, _)| at).skip(1);
    starts.filter(|&n| text.ends_with(&marker[..n])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marked(opened: bool) -> Marked {
        let (think_start, think_end) = ("<think>".to_owned(), "</think>".to_owned());
        Marked { think_start, think_end, opened, text: String::new(), told: (0, 0) }
    }

    fn streamed(opened: bool, pieces: &[&str]) -> (String, String) {
        let mut marked = marked(opened);
        let (mut reasoning, mut content) = (String::new(), String::new());
        for (i, piece) in pieces.iter().enumerate() {
            for delta in marked.push(piece, i + 1 == pieces.len()) {
                reasoning.push_str(&delta.reasoning_content);
                content.push_str(&delta.content);
            }
        }
        (reasoning, content)
    }

    #[test]
    fn thinking_is_told_apart_however_it_is_opened() {
        let expected = ("a b".to_owned(), "c".to_owned());
        assert_eq!(streamed(true, &["a ", "b\n</th", "ink>\n", "\nc"]), expected);
        assert_eq!(streamed(false, &["<thi", "nk>\na b", "</think>", "c"]), expected);
        assert_eq!(streamed(false, &["<", "b> no"]), (String::new(), "<b> no".to_owned()));
        assert_eq!(streamed(true, &["cut </thi"]), ("cut </thi".to_owned(), String::new()));
    }

    proptest! {
        /// However an answer is cut into pieces, the same is told.
        #[test]
        fn cuts_do_not_matter(text in "(<think>)?[ab<\n\u{e9}]{0,8}(</think>)?[ab<\n]{0,8}", opened: bool, cut in 0usize..40, next in 0usize..40) {
            let at = |n: usize| (0..=n.min(text.len())).rev().find(|&n| text.is_char_boundary(n)).unwrap_or(0);
            let (a, b) = (at(cut.min(next)), at(cut.max(next)));
            prop_assert_eq!(streamed(opened, &[&text[..a], &text[a..b], &text[b..]]), streamed(opened, &[&text]));
        }
    }
}
