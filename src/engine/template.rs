//! Chat templates: from messages to the text that a model was trained on.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What was thought before it was said; templates decide whether to repeat it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    /// A message without thinking.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into(), reasoning_content: None }
    }
}

/// A chat template that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(String);

/// ChatML, for models that bring no template; llama.cpp's choice too.
const CHATML: &str = "{%- for message in messages -%}\
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

/// A compiled Jinja chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    kwargs: serde_json::Map<String, serde_json::Value>,
}

/// A rendered prompt, in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The conversation so far, up to the end of the last message.
    pub conversation: String,
    /// What opens the answer: the header of an assistant message, and `<think>` where the template opens thinking.
    pub opening: String,
}

/// Whether a source is meant for a template's name: rendered, every prompt would be that word.
fn is_name(source: &str) -> bool {
    !source.is_empty() && source.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

impl ChatTemplate {
    /// Compiles a template. `None` or `chatml` is ChatML. `bos` and `eos` are the texts of the model's first and last
    /// token; `kwargs` are further variables of the template, such as `enable_thinking`.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn new(
        source: Option<&str>,
        bos: String,
        eos: String,
        kwargs: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateError> {
        let source = match source {
            None | Some("chatml") => CHATML.to_owned(),
            Some(name) if is_name(name) => {
                return Err(TemplateError(format!(
                    "expected Jinja, found the name `{name}`; of the templates that llama.cpp has built in, a chat knows \
                     chatml alone"
                )));
            }
            Some(source) => source.to_owned(),
        };
        let mut environment = Environment::new();
        // As Python's transformers set Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError(one_line(&e)))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned("chat", source.clone()).map_err(|e| TemplateError(one_line(&e)))?;
        Ok(Self { environment, source, bos, eos, kwargs })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation that ends with a user's message.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<Prompt, TemplateError> {
        let full = self.render_once(messages, true)?;
        // Where a template writes something else without the opening, all of it counts as opening.
        let conversation = self.render_once(messages, false).unwrap_or_default();
        Ok(match full.strip_prefix(&conversation) {
            Some(opening) => Prompt { opening: opening.to_owned(), conversation },
            None => Prompt { conversation: String::new(), opening: full },
        })
    }

    fn render_once(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let mut variables = serde_json::json!({
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos,
            "eos_token": self.eos,
        });
        if let Some(variables) = variables.as_object_mut() {
            variables.extend(self.kwargs.clone());
        }
        let template = self.environment.get_template("chat").map_err(|e| TemplateError(one_line(&e)))?;
        template.render(Serde(&variables)).map_err(|e| TemplateError(one_line(&e)))
    }
}

/// Today's date, as templates ask for it.
fn strftime_now(state: &minijinja::State<'_, '_>, format: String) -> Result<Value, minijinja::Error> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let kwargs = minijinja::value::Kwargs::from_iter([("format", Value::from(format))]);
    minijinja_contrib::filters::datetimeformat(state, Value::from(now), kwargs).map(Value::from)
}

fn one_line(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{line}", error.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: Option<&str>) -> ChatTemplate {
        ChatTemplate::new(source, "<s>".into(), "</s>".into(), serde_json::Map::new()).unwrap()
    }

    #[test]
    fn chatml_is_the_default() {
        let prompt = template(None).render(&[Message::new("user", "Hi")]).unwrap();
        assert_eq!(prompt.conversation, "<|im_start|>user\nHi<|im_end|>\n");
        assert_eq!(prompt.opening, "<|im_start|>assistant\n");
    }

    #[test]
    fn python_methods_and_opened_thinking() {
        let source = "{{ bos_token }}{% for m in messages %}{% set c = m.content.split('</think>')[-1].strip() %}\
                      [{{ m['role'].upper() }}]{{ c }}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}";
        let prompt = template(Some(source)).render(&[Message::new("user", "x</think> y ")]).unwrap();
        assert_eq!(prompt.conversation, "<s>[USER]y");
        assert_eq!(prompt.opening, "[A]<think>\n");
    }

    #[test]
    fn broken_and_refusing_templates_say_so_in_one_line() {
        let broken = ChatTemplate::new(Some("{% if %}"), String::new(), String::new(), serde_json::Map::new());
        let message = broken.err().unwrap().to_string();
        assert!(message.starts_with("chat template: ") && !message.contains('\n'), "{message}");
        let named = ChatTemplate::new(Some("llama3"), String::new(), String::new(), serde_json::Map::new());
        assert!(named.err().unwrap().to_string().contains("`llama3`"));
        let refusing = template(Some("{{ raise_exception('roles must alternate') }}"));
        let message = refusing.render(&[]).unwrap_err().to_string();
        assert!(message.contains("roles must alternate") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn dates_for_templates_that_ask() {
        let prompt = template(Some("{{ strftime_now('%Y-%m-%d') }}")).render(&[]).unwrap();
        let date = prompt.conversation;
        assert_eq!(date.len(), "2026-01-31".len(), "{date}");
        assert!(date.starts_with("20"), "{date}");
    }
}
