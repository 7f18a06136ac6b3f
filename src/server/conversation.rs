//! A conversation that a request wants to go on: what it says, rendered, and how its answers are made and read.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::engine::{Prompt as Rendered, Triggers, enable_thinking, prompt_tokens};
use crate::llama::Model;
use crate::llama::chat::{
    Applied, ChatInput, GrammarTrigger, ReasoningFormat, ToolChoice, TriggerKind, json_schema_to_grammar,
};
use crate::trace::Family;

use super::app::{App, Ready};
use super::bodies::ChatFields;
use super::error::ApiError;
use super::generation::{Generation, Reply};
use super::history::history;
use super::plan::{GrammarPlan, Plan, Prompt};
use super::reading::Readers;
use super::request::{Generate, read};
use super::{schema, tools};

/// Likeliest tokens that `logprobs` reports where `top_logprobs` says nothing; llama-server's number.
const TOP_LOGPROBS: usize = 20;

/// A conversation, rendered, and how its answers are to be read.
pub struct Conversation {
    applied: Applied,
    fields: ChatFields,
    reasoning_format: ReasoningFormat,
    /// What the answer must be an instance of.
    schema: Option<Value>,
    enable_thinking: bool,
}

impl Conversation {
    /// Renders the conversation of a request.
    pub fn read(app: &App, ready: &Ready, body: &Value) -> Result<Self, ApiError> {
        let fields: ChatFields = read(body)?;
        let input = input(app, ready, &fields)?;
        let (reasoning_format, enable_thinking) = (input.reasoning_format, input.enable_thinking);
        let applied = ready.templates.apply(&input)?;
        Ok(Self { applied, fields, reasoning_format, schema: input.json_schema, enable_thinking })
    }

    pub fn has_tools(&self) -> bool {
        self.fields.tools.as_ref().and_then(Value::as_array).is_some_and(|tools| !tools.is_empty())
    }

    /// What reads its `n` answers.
    pub fn readers(&self, ready: &Ready, n: usize) -> Result<Readers, ApiError> {
        let apart = self.reasoning_format != ReasoningFormat::None;
        Readers::new(&self.applied, Some(&ready.markers).filter(|_| apart && self.is_marked(ready)), n)
    }

    /// Whether the family's marks tell thinking from the answer: llama.cpp knows of none in this template, and no grammar
    /// of its making is in the way.
    fn is_marked(&self, ready: &Ready) -> bool {
        let Some(start) = ready.markers.think_start.as_ref().filter(|_| self.applied.thinking_end_tags.is_empty())
        else {
            return false;
        };
        let is_opened = self.applied.generation_prompt.trim_end().ends_with(start.as_str());
        self.applied.grammar.is_empty() || self.own_grammar().is_some() || (self.schema.is_some() && is_opened)
    }

    fn own_grammar(&self) -> Option<&String> {
        self.fields.grammar.as_ref().filter(|grammar| !grammar.is_empty())
    }

    /// The text that the model reads.
    pub fn text(&self) -> &str {
        &self.applied.prompt
    }

    /// Whether it asks for the probabilities of tokens.
    pub fn has_logprobs(&self) -> bool {
        self.fields.logprobs == Some(true)
    }

    /// Its tokens.
    pub fn prompt(&self, model: &Model) -> Prompt {
        let (tokens, question) = prompt_tokens(model, &Rendered::from(&self.applied));
        Prompt { tokens, added: 0, question }
    }

    /// Puts its answers in line.
    pub fn start(
        self,
        app: &Arc<App>,
        ready: &Ready,
        generate: &Generate,
        reply: impl FnOnce(&Self, &Plan, &[Prompt]) -> Result<Box<dyn Reply>, ApiError>,
    ) -> Result<Generation, ApiError> {
        let fields = &self.fields;
        let n_probs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
            (true, top) => Some(top.unwrap_or(TOP_LOGPROBS)),
            (false, Some(_)) => return Err(ApiError::invalid("top_logprobs requires logprobs to be set to true")),
            (false, None) => None,
        };
        let mut plan = Plan::new(app, ready, generate, n_probs)?;
        plan.stop.extend(self.applied.additional_stops.iter().cloned());
        plan.preserved = self.applied.preserved_tokens.iter().filter_map(|text| ready.model.token_of(text)).collect();
        plan.grammar = self.grammar(ready)?;
        plan.budget = self.budget(app);
        let prompts = [self.prompt(&ready.model)];
        let reply = reply(&self, &plan, &prompts)?;
        plan.start(app, ready, &prompts, reply)
    }

    fn grammar(&self, ready: &Ready) -> Result<Option<GrammarPlan>, ApiError> {
        let applied = &self.applied;
        if let Some(gbnf) = self.own_grammar() {
            return GrammarPlan::own(gbnf.clone(), false).map(Some);
        }
        if let Some(schema) = self.schema.as_ref().filter(|_| self.is_marked(ready)) {
            return Ok(Some(GrammarPlan { gbnf: json_schema_to_grammar(schema)?, ..GrammarPlan::default() }));
        }
        if applied.grammar.is_empty() {
            return Ok(None);
        }
        // What the template opens the answer with is part of the grammars that llama.cpp makes.
        let opening = match applied.grammar_lazy {
            true => Vec::new(),
            false => ready.model.tokenize(&applied.generation_prompt, false, true),
        };
        let triggers = applied.grammar_lazy.then(|| triggers(applied, &ready.model));
        // Harmony's channels of tools come before the one that ends thinking.
        let in_thinking = !applied.grammar_lazy || ready.family == Family::Harmony;
        let demands_call = self.has_tools() && self.schema.is_none() && !applied.grammar_lazy;
        let gbnf = if demands_call { tools::at_once(&applied.grammar) } else { applied.grammar.clone() };
        Ok(Some(GrammarPlan { gbnf, triggers, in_thinking, opening }))
    }

    /// Where a template leaves no choice, thinking that is not wanted is closed at once.
    fn budget(&self, app: &App) -> Option<(usize, String)> {
        if !self.enable_thinking {
            return Some((0, String::new()));
        }
        let own = self.fields.reasoning_budget_tokens.or(self.fields.thinking_budget_tokens);
        let tokens = own.and_then(|tokens| usize::try_from(tokens).ok()).or(app.options.reasoning_budget)?;
        Some((tokens, self.fields.reasoning_budget_message.clone().unwrap_or_default()))
    }
}

/// Efforts that clients ask for, besides none; what they mean is the template's.
const EFFORTS: [&str; 6] = ["minimal", "low", "medium", "high", "xhigh", "max"];

/// What the template is given.
fn input(app: &App, ready: &Ready, fields: &ChatFields) -> Result<ChatInput, ApiError> {
    let options = &app.options;
    let Some(messages) = &fields.messages else { return Err(ApiError::invalid("'messages' is required")) };
    let (tools, tool_choice) = tools::choose(fields.tools.as_ref(), fields.tool_choice.as_ref())?;
    let can_call = ready.templates.caps().get("supports_tools").and_then(Value::as_bool).unwrap_or(true);
    if !tools.is_null() && !can_call {
        if tool_choice == ToolChoice::Required {
            return Err(ApiError::invalid(
                "tool_choice: the model's chat template has no place for tools to be called from",
            ));
        }
        // As in llama-server, whose clients offer tools to any model.
        app.say_once("tools", "tools, which this model's chat template has no place for; see --chat-template");
    }
    let grammar = fields.grammar.clone().unwrap_or_default();
    if !tools.is_null() && fields.grammar.is_some() && tool_choice != ToolChoice::None {
        return Err(ApiError::invalid("Cannot use custom grammar constraints with tools."));
    }
    let json_schema = schema::demanded(fields.response_format.as_ref(), fields.json_schema.as_ref())?;
    if json_schema.is_some() && !grammar.is_empty() {
        return Err(ApiError::invalid("Cannot use both json_schema and grammar"));
    }
    let mut kwargs = options.template_kwargs.clone();
    kwargs.extend(fields.chat_template_kwargs.clone().unwrap_or_default());
    let of_kwargs = enable_thinking(&kwargs).map_err(|error| ApiError::invalid(error.to_string()))?;
    let mut enable_thinking = of_kwargs.or(options.enable_thinking).unwrap_or(true);
    match fields.reasoning_effort.as_deref() {
        None | Some("") => {}
        Some("none") => {
            enable_thinking = false;
            kwargs.shift_remove("reasoning_effort");
        }
        Some(effort) if !EFFORTS.contains(&effort) => {
            let expected = EFFORTS.join(", ");
            return Err(ApiError::invalid(format!("reasoning_effort: expected none, {expected}, found '{effort}'")));
        }
        Some(effort) => {
            kwargs.insert("reasoning_effort".into(), effort.into());
        }
    }
    let (continue_final_message, add_generation_prompt) = continuation(app, fields, messages)?;
    Ok(ChatInput {
        messages: history(messages, !add_generation_prompt && continue_final_message != Value::Bool(false))?.into(),
        tools,
        tool_choice,
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or_else(|| {
            ready.templates.caps().get("supports_parallel_tool_calls").and_then(Value::as_bool).unwrap_or(false)
        }),
        json_schema,
        grammar,
        jinja: options.jinja,
        add_generation_prompt,
        continue_final_message,
        reasoning_format: fields.reasoning_format.unwrap_or(options.reasoning_format),
        enable_thinking,
        chat_template_kwargs: kwargs,
        echo: fields.echo.unwrap_or(false),
    })
}

/// Whether the last message is gone on with, and whether a new one is opened.
fn continuation(app: &App, fields: &ChatFields, messages: &[Map<String, Value>]) -> Result<(Value, bool), ApiError> {
    let role = |message: &Map<String, Value>| message.get("role").and_then(Value::as_str) == Some("assistant");
    let by_assistant = messages.last().is_some_and(role);
    let asked =
        fields.continue_final_message.clone().filter(|value| !matches!(value, Value::Null | Value::Bool(false)));
    let add_generation_prompt = fields.add_generation_prompt.unwrap_or(true);
    let (continuation, add_generation_prompt) = match asked {
        Some(_) if add_generation_prompt => {
            let message = "Cannot set both add_generation_prompt and continue_final_message to true.";
            return Err(ApiError::invalid(message));
        }
        Some(asked) => (asked, false),
        None if app.options.prefill_assistant && by_assistant => {
            if messages.len() > 1 && role(&messages[messages.len() - 2]) {
                let message = "Cannot have 2 or more assistant messages at the end of the list.";
                return Err(ApiError::invalid(message));
            }
            (Value::Bool(true), false)
        }
        None => return Ok((Value::Bool(false), add_generation_prompt)),
    };
    let calls_tools = messages.last().and_then(|message| message.get("tool_calls")?.as_array());
    if calls_tools.is_some_and(|calls| !calls.is_empty()) {
        return Err(ApiError::invalid("Cannot continue an assistant message that contains tool calls."));
    }
    Ok((continuation, add_generation_prompt))
}

fn triggers(applied: &Applied, model: &Model) -> Triggers {
    let mut triggers = Triggers::default();
    for GrammarTrigger { kind, value, token } in &applied.grammar_triggers {
        // A word that is one token needs no search of the text.
        let as_token = token.or_else(|| model.token_of(value).filter(|_| *kind == TriggerKind::Word));
        match (as_token, kind) {
            (Some(token), _) => triggers.tokens.push(token),
            (None, TriggerKind::Word | TriggerKind::Token) => triggers.patterns.push(escaped(value)),
            (None, TriggerKind::Pattern) => triggers.patterns.push(value.clone()),
            (None, TriggerKind::PatternFull) => {
                triggers.patterns.push(format!("^{}$", value.trim_start_matches('^').trim_end_matches('$')));
            }
        }
    }
    triggers
}

/// A regular expression that finds `text`.
fn escaped(text: &str) -> String {
    let mut expression = String::new();
    for character in text.chars() {
        if r"\.^$|()[]{}*+?".contains(character) {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
}
