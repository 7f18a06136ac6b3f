//! A conversation that was had elsewhere, as a trace.

use crate::llama::Model;
use crate::trace::{Family, Markers, TraceFile, Tracker};

use super::session::{markers_of, prompt_rows, trace_file};
use super::tokens::prompt_tokens;
use super::{ChatTemplate, Message, SessionParams, TemplateError};

/// Why a conversation is no trace.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// Nothing was asked, or nothing answered.
    #[error("expected messages that end with an assistant's, after a user's; found {0}")]
    NoAnswer(String),
    /// The template does not take it.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The trace that a session of `model` would have left, had it said the last of these `messages`: the template renders
/// those before it, and the answer's tokens follow. What was thought is `reasoning_content`, or stands in `content` as the
/// model writes it. Of `params` the family and its markers count.
///
/// # Errors
/// When the last message is no assistant's or the only one, or the template refuses the others.
pub fn recorded(
    model: &Model,
    template: &ChatTemplate,
    params: &SessionParams,
    messages: &[Message],
) -> Result<TraceFile, RecordedError> {
    let asked = |before: &[Message]| before.iter().any(|message| message.role == "user");
    let answered = messages.split_last().filter(|(last, before)| last.role == "assistant" && asked(before));
    let (answer, before) = answered.ok_or_else(|| {
        let last = messages.last().map_or("no last one".to_owned(), |last| format!("a last one by {:?}", last.role));
        RecordedError::NoAnswer(format!("{} messages and {last}", messages.len()))
    })?;
    let (family, _, markers) = markers_of(model, params);
    let prompt = template.render(before)?;
    let (mut tokens, question) = prompt_tokens(model, &prompt);
    let mut tracker = Tracker::new(markers.clone());
    prompt_rows(model, &mut tracker, &tokens, question, 0);
    for token in model.tokenize(&as_written(answer, family, &markers, &prompt.opening), false, true) {
        tracker.push(&model.piece(token), true);
        tokens.push(token);
    }
    Ok(trace_file(model, family, &markers, &tokens, &tracker))
}

/// An answer's text as the model writes it after `opening`, markers included.
fn as_written(answer: &Message, family: Family, markers: &Markers, opening: &str) -> String {
    let start = markers.think_start.as_deref().unwrap_or_default();
    let opened = !start.is_empty() && opening.trim_end().ends_with(start);
    let (content, end) = (answer.content.trim_start(), &markers.think_end);
    let Some(thinking) = answer.reasoning_content.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
        let inside = content.strip_prefix(start).filter(|_| opened);
        return inside.unwrap_or(content).trim_start().to_owned();
    };
    let start = if opened { "" } else { start };
    match family {
        Family::ThinkTags | Family::Custom => {
            let line_break = if start.is_empty() { "" } else { "\n" };
            format!("{start}{line_break}{thinking}\n{end}\n\n{content}")
        }
        Family::Harmony => format!("{start}{thinking}<|end|><|start|>assistant{end}{content}"),
        Family::Implicit if content.contains(end) => format!("{thinking}\n\n{content}"),
        Family::Implicit => format!("{thinking}\n\n{end}\n\n{content}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(family: Family, opening: &str, thinking: Option<&str>, content: &str) -> String {
        let answer = Message { reasoning_content: thinking.map(str::to_owned), ..Message::new("assistant", content) };
        as_written(&answer, family, &family.markers(), opening)
    }

    #[test]
    fn thinking_stands_between_the_familys_marks() {
        let tags = |opening, thinking, content| written(Family::ThinkTags, opening, thinking, content);
        assert_eq!(tags("<|assistant|>", Some("So.\n"), "4"), "<think>\nSo.\n</think>\n\n4");
        assert_eq!(tags("<|assistant|><think>\n", Some("So."), "\n4"), "So.\n</think>\n\n4");
        assert_eq!(tags("<|assistant|>", None, "<think>So.</think>4"), "<think>So.</think>4");
        assert_eq!(tags("<|assistant|><think>\n", None, "<think>\nSo.</think>4"), "So.</think>4");
        assert_eq!(tags("<|assistant|><think>\n", None, "So.</think>4"), "So.</think>4");
        assert_eq!(
            written(Family::Harmony, "<|start|>assistant", Some("So."), "4"),
            "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>4"
        );
        assert_eq!(written(Family::Implicit, "A:", Some("So."), "4"), "So.\n\n**Final Answer**\n\n4");
        assert_eq!(written(Family::Implicit, "A:", Some("So."), "**Final Answer** 4"), "So.\n\n**Final Answer** 4");
    }
}
