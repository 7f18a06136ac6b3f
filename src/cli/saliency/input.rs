//! What is to be measured: traces, or conversations that become traces.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use stepflow::engine::{Message, recorded};
use stepflow::llama::Model;
use stepflow::trace::{Family, Markers, Segment, TraceFile};

use super::args::InputArgs;
use crate::cli::exit::Usage;
use crate::cli::flags::FamilyArgs;
use crate::cli::{input, report, setup};

/// A trace, or what becomes one once there is a model.
pub struct Input {
    /// Where it comes from.
    pub name: String,
    source: Source,
}

enum Source {
    Trace(TraceFile),
    Conversation(Vec<Message>),
}

/// A line of a JSONL file.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected {\"messages\": [...]}, {\"prompt\": \"...\", \"reply\": \"...\"}, or a message with \
    \"role\" and \"content\" as text"
)]
enum Line {
    Conversation { messages: Vec<Said> },
    Pair { prompt: String, reply: String },
    Message(Said),
}

/// A message as APIs write it.
#[derive(Deserialize)]
struct Said {
    role: String,
    content: Option<Content>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

/// What was said: text, or parts of it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: String,
}

impl From<Said> for Message {
    fn from(said: Said) -> Self {
        let content = match said.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("\n"),
        };
        Self { role: said.role, content, reasoning_content: said.reasoning_content.or(said.reasoning) }
    }
}

/// Reads all that the flags name.
pub fn read(args: &InputArgs) -> anyhow::Result<Vec<Input>> {
    if let (Some(prompt), Some(reply)) = (&args.prompt, &args.reply) {
        let source = Source::Conversation(pair(args.escape.read(prompt), input::text_of(reply)?));
        return Ok(vec![Input { name: "reply".to_owned(), source }]);
    }
    let mut inputs: Vec<Input> = Vec::new();
    for path in &args.files {
        let text = input::text_of(path)?;
        for input in of_file(path, text.as_bytes()).with_context(|| path.display().to_string())? {
            if inputs.iter().any(|other| other.name == input.name) {
                bail!(Usage(format!("two traces are called {}; give their files different names", input.name)));
            }
            inputs.push(input);
        }
    }
    args.check(&inputs)?;
    Ok(inputs)
}

fn of_file(path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<Input>> {
    let stem = path.file_stem().filter(|_| path.as_os_str() != "-");
    let name = stem.map_or("stdin".to_owned(), |stem| stem.to_string_lossy().into_owned());
    // Inside of a text these quotes would be escaped.
    let key = b"\"stepflow_trace\"";
    if bytes.windows(key.len()).any(|window| window == key) {
        return Ok(vec![Input { name, source: Source::Trace(TraceFile::read(bytes)?) }]);
    }
    let conversations = conversations(bytes)?;
    let several = conversations.len() > 1;
    let numbered = |i: usize| if several { format!("{name}-{}", i + 1) } else { name.clone() };
    Ok(conversations
        .into_iter()
        .enumerate()
        .map(|(i, messages)| Input { name: numbered(i), source: Source::Conversation(messages) })
        .collect())
}

/// The conversations of a JSONL file: one a line, or one of which each line is a message.
fn conversations(bytes: &[u8]) -> anyhow::Result<Vec<Vec<Message>>> {
    let (mut conversations, mut messages) = (Vec::new(), Vec::new());
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let line: Line = serde_json::from_slice(line).map_err(|error| {
            let reason = error.to_string().replace(char::is_control, " ");
            anyhow::anyhow!("neither a trace of --save-trace nor a conversation as JSONL: line {}: {reason}", i + 1)
        })?;
        match line {
            Line::Conversation { messages } => conversations.push(messages.into_iter().map(Message::from).collect()),
            Line::Pair { prompt, reply } => conversations.push(pair(prompt, reply)),
            Line::Message(message) => messages.push(message.into()),
        }
    }
    match (conversations.is_empty(), messages.is_empty()) {
        (true, true) => bail!("it is empty; expected a trace of --save-trace or a conversation as JSONL"),
        (true, false) => Ok(vec![messages]),
        (false, true) => Ok(conversations),
        (false, false) => bail!("some lines are messages, others whole conversations; expected one or the other"),
    }
}

fn pair(prompt: String, reply: String) -> Vec<Message> {
    vec![Message::new("user", prompt), Message::new("assistant", reply)]
}

impl InputArgs {
    /// No flag may be without effect.
    fn check(&self, inputs: &[Input]) -> Result<(), Usage> {
        let flags = [
            ("--chat-template", self.template.chat_template.is_some()),
            ("--chat-template-file", self.template.chat_template_file.is_some()),
            ("--chat-template-kwargs", self.template.chat_template_kwargs.is_some()),
        ];
        let given = flags.into_iter().find(|(_, given)| *given);
        let trace = inputs.iter().find(|input| matches!(input.source, Source::Trace(_)));
        match (given, trace) {
            (Some((flag, _)), Some(trace)) => {
                Err(Usage(format!("{flag} is for conversations; {} is a trace, which has its prompt", trace.name)))
            }
            _ => Ok(()),
        }
    }
}

impl Input {
    /// The trace, as `model` reads it.
    pub fn trace(self, args: &InputArgs, model: &Model) -> anyhow::Result<TraceFile> {
        let flags = &args.family;
        let marked = flags.family.is_some() || flags.think_start.is_some() || flags.think_end.is_some();
        let trace = match self.source {
            Source::Trace(trace) if marked => relabelled(&trace, flags)?,
            Source::Trace(trace) => return Ok(trace),
            Source::Conversation(messages) => {
                let template = setup::chat_template(&args.template, model)?;
                let trace = recorded(model, &template, &setup::family_params(flags), &messages)?;
                if trace.steps.len() < 2 {
                    return Err(nothing_opens(trace.family, &trace.markers));
                }
                trace
            }
        };
        if marked {
            report::warn_if_family_does_not_fit(flags, model);
            warn_if_nothing_closes(&self.name, &trace);
        }
        Ok(trace)
    }
}

/// A trace by the marks that the flags name, the rest as it has them.
fn relabelled(trace: &TraceFile, flags: &FamilyArgs) -> anyhow::Result<TraceFile> {
    let marks = (flags.think_start.as_deref(), flags.think_end.as_deref());
    let own = if marks == (None, None) { trace.family } else { Family::Custom };
    let family = flags.family.unwrap_or(own);
    let markers = flags.family.map_or_else(|| trace.markers.clone(), Family::markers).with(marks.0, marks.1);
    trace.relabelled(family, &markers).ok_or_else(|| nothing_opens(family, &markers))
}

fn nothing_opens(family: Family, markers: &Markers) -> anyhow::Error {
    let start = markers.think_start.as_deref().unwrap_or("an answer");
    anyhow!(
        "expected a question and thinking, found one step: the reply is empty, or nothing in it reads `{start}` (family \
         {family}); --family, --think-start and --think-end name other marks"
    )
}

fn warn_if_nothing_closes(name: &str, trace: &TraceFile) {
    if trace.tokens.last().is_some_and(|token| token.segment == Segment::Thinking) {
        let (closing, family) = (trace.markers.closing(), trace.family);
        say!(
            "stepflow: {name} has thinking and no summary: {closing}, which would close it, does not occur (family {family})"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jsonl_holds_one_conversation_or_several() {
        let message = r#"{"role": "user", "content": "a"}"#;
        let answer = r#"{"role": "assistant", "content": "c", "reasoning_content": "b", "id": 7}"#;
        let parts = r#"{"role": "user", "content": [{"type": "text", "text": "a"}]}"#;
        let thought = r#"{"role": "assistant", "content": null, "reasoning": "b"}"#;
        let both = conversations(format!("{parts}\n{thought}").as_bytes()).unwrap();
        assert_eq!((both[0][0].content.as_str(), both[0][1].reasoning_content.as_deref()), ("a", Some("b")));
        let one = conversations(format!("{message}\n{answer}\n").as_bytes()).unwrap();
        assert_eq!((one.len(), one[0].len()), (1, 2));
        assert_eq!(one[0][1].reasoning_content.as_deref(), Some("b"));
        let line = format!("{{\"messages\": [{message}, {answer}]}}\n\n{{\"prompt\": \"a\", \"reply\": \"c\"}}");
        let several = conversations(line.as_bytes()).unwrap();
        assert_eq!(several[0], one[0]);
        assert_eq!(several[1], [Message::new("user", "a"), Message::new("assistant", "c")]);
    }

    #[test]
    fn other_files_are_refused_in_one_line() {
        for (bytes, expected) in [
            (b"".as_slice(), "empty"),
            (b"GGUF\x03\0", "line 1"),
            (b"{\"role\": \"user\", \"content\": \"a\"}\n[1]", "line 2"),
            (b"{\"role\": \"user\", \"content\": \"\xff\"}", "line 1"),
            (b"{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}", "as text"),
            (b"{\"role\": \"user\", \"content\": \"a\"}\n{\"messages\": []}", "one or the other"),
        ] {
            let error = conversations(bytes).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
