//! What a request may say, field by field. A field is served, or it changes nothing of the answer and is taken, or it is
//! refused by name: none that would change the answer is passed over in silence.
//!
//! A field that is nobody's name is taken, and its name logged once, unless it is nearly the name of one that is served,
//! or belongs to another API or server and promises something.

use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::{Map, Value};

use super::bodies::{ChatFields, CompletionFields, OpenAiFields};
use super::error::ApiError;
use super::request::Generate;

/// An API, of which each has its own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/completion`, llama-server's own.
    Native,
    /// `/v1/messages`, Anthropic's.
    Messages,
    /// `/v1/responses`.
    Responses,
}

/// The names that an object may have.
pub struct Table {
    served: Vec<&'static str>,
}

/// Fields that say who asks, or how an answer is stored, paid, cached or computed: it is the same without them.
const IDLE: &str = "model user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention \
    prediction cache_control inference_geo include truncation max_tool_calls n_cache_reuse n_keep n_discard \
    sse_ping_interval t_max_prompt_ms backend_sampling speculative.type speculative.n_max speculative.n_min \
    speculative.p_min speculative.ngram_size_n speculative.ngram_size_m speculative.ngram_min_hits";

/// Fields of other servers that ask for nothing where they are 1 or true.
const NEUTRAL_AT_ONE: &str = "repetition_penalty rep_pen encoder_repetition_penalty typical tfs_z length_penalty best_of \
    guidance_scale do_sample skip_special_tokens spaces_between_special_tokens add_special_tokens include_reasoning \
    separate_reasoning";

/// Fields that are refused where they ask for something, and what to do.
const REFUSED: [(&str, &str); 40] = [
    ("suffix", "models are not asked to fill in between here; send the whole prompt"),
    ("lora", "adapters are chosen when the server starts, with --lora"),
    ("functions", "send them as `tools`"),
    ("function_call", "send `tool_choice`"),
    ("audio", "this server answers with text alone"),
    ("modalities", "this server answers with text alone"),
    ("reasoning_control", "end an answer by closing its connection, or send `reasoning_budget_tokens`"),
    ("web_search_options", "this server does not search; offer the model a tool of your own"),
    ("verbosity", "ask for it in the prompt"),
    ("reasoning", "send `reasoning_effort`, or `reasoning_budget_tokens` for a limit"),
    ("thinking", "send `reasoning_budget_tokens` for a limit, or `reasoning_effort` \"none\" for no thinking"),
    ("n_indent", "no grammar of indentation is made here"),
    ("adaptive_target", "there is no adaptive sampler here; see `samplers`"),
    ("adaptive_decay", "there is no adaptive sampler here; see `samplers`"),
    ("image_data", "this server reads text alone"),
    ("multimodal_data", "this server reads text alone"),
    ("grammar_lazy", "send `tools` for a grammar that waits"),
    ("grammar_triggers", "send `tools` for a grammar that waits"),
    ("preserved_tokens", "special tokens are no text of an answer here"),
    ("parse_tool_calls", "calls are read where there are `tools`; send none"),
    ("input_prefix", "models are not asked to fill in between here"),
    ("input_suffix", "models are not asked to fill in between here"),
    ("input_extra", "models are not asked to fill in between here"),
    ("conversation", "this server keeps no conversations; send the whole of it"),
    ("previous_response_id", "this server keeps no conversations; send the whole of it"),
    ("background", "answers are not kept for later here; wait for the response, or stream it"),
    ("mcp_servers", "this server calls no other; offer the model tools of your own"),
    ("container", "this server runs no code; offer the model a tool of your own"),
    ("context_management", "this server edits no conversation; send what the model is to read"),
    ("chat_template", "a server has one template, from its flag --chat-template"),
    ("documents", "put them into a message"),
    ("stop_token_ids", "send their texts as `stop`"),
    ("min_tokens", "send `ignore_eos`, or a `logit_bias` on the end token"),
    ("allowed_token_ids", "send `grammar`"),
    ("bad_words", "send `logit_bias`"),
    ("include_stop_str_in_output", "stop texts are no part of answers here"),
    ("truncate_prompt_tokens", "send the part that the model is to read"),
    ("num_ctx", "the context is sized when the server starts, with -c"),
    ("think", "send `reasoning_effort` \"none\" for no thinking"),
    ("options", "send what is in it as fields of the request"),
];

/// Names that other APIs and servers have for a field that is served here.
const MEANT: [(&str, &str); 41] = [
    ("guided_json", "json_schema"),
    ("guided_grammar", "grammar"),
    ("guided_regex", "grammar"),
    ("guided_choice", "grammar"),
    ("structured_outputs", "json_schema` or `grammar"),
    ("format", "response_format"),
    ("output_format", "response_format"),
    ("regex", "grammar"),
    ("ebnf", "grammar"),
    ("repetition_penalty", "repeat_penalty"),
    ("rep_pen", "repeat_penalty"),
    ("rep_pen_range", "repeat_last_n"),
    ("penalty_last_n", "repeat_last_n"),
    ("typical", "typical_p"),
    ("temp", "temperature"),
    ("nsigma", "top_n_sigma"),
    ("mirostat_mode", "mirostat"),
    ("num_predict", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("max_length", "max_tokens"),
    ("max_output_tokens", "max_tokens"),
    ("min_length", "ignore_eos"),
    ("best_of_n", "n"),
    ("num_return_sequences", "n"),
    ("random_seed", "seed"),
    ("sampler_seed", "seed"),
    ("stop_sequence", "stop"),
    ("stop_sequences", "stop"),
    ("stopping_strings", "stop"),
    ("prompt_logprobs", "echo` with `logprobs"),
    ("enable_thinking", "chat_template_kwargs"),
    ("thinking_budget", "reasoning_budget_tokens"),
    ("reasoning_budget", "reasoning_budget_tokens"),
    ("max_thinking_tokens", "reasoning_budget_tokens"),
    ("max_reasoning_tokens", "reasoning_budget_tokens"),
    ("include_reasoning", "reasoning_format"),
    ("separate_reasoning", "reasoning_format"),
    ("system", "messages"),
    ("system_prompt", "messages"),
    ("instructions", "messages"),
    ("sampler_order", "samplers"),
];

/// Other fields that promise something and have nothing here that does it.
const PROMISES: &str = "use_beam_search length_penalty early_stopping do_sample tfs_z top_a epsilon_cutoff eta_cutoff \
    smoothing_factor smoothing_curve dynamic_temperature no_repeat_ngram_size encoder_repetition_penalty guidance_scale \
    negative_prompt skip_special_tokens spaces_between_special_tokens add_special_tokens logits_processors ban_eos_token \
    banned_tokens custom_token_bans reasoning_split transforms plugins safe_prompt moderation chat_format chat_parser \
    grammar_type generation_prompt reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_end_tags";

/// Anthropic's fields beside those of all endpoints.
const MESSAGES: [&str; 8] =
    ["messages", "system", "max_tokens", "stop_sequences", "thinking", "tools", "tool_choice", "output_config"];

/// The fields of `/v1/responses` beside those of all endpoints.
const RESPONSES: [&str; 8] =
    ["input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "max_output_tokens", "reasoning", "text"];

/// What these two have no place for in their answers.
const NO_PLACE: &str = "n n_cmpl logprobs top_logprobs n_probs post_sampling_probs return_tokens return_steps response_fields verbose echo";

impl Table {
    /// A table of these names alone.
    pub fn of(served: &[&'static str]) -> Self {
        Self { served: served.to_vec() }
    }

    /// What an API serves.
    fn of_api(api: Api) -> &'static Self {
        static TABLES: LazyLock<[Table; 5]> = LazyLock::new(|| {
            let with = |more: &[&'static str]| Table { served: [names_of::<Generate>(), more].concat() };
            let (chat, native) = (names_of::<ChatFields>(), names_of::<CompletionFields>());
            let as_chat = |own: &[&'static str]| {
                let Table { mut served } = with(chat);
                served.retain(|name| *name != "messages" && !is_word_of(NO_PLACE, name));
                Table { served: [&served, own].concat() }
            };
            let openai = with(&[native, names_of::<OpenAiFields>()].concat());
            [with(chat), openai, with(native), as_chat(&MESSAGES), as_chat(&RESPONSES)]
        });
        &TABLES[api as usize]
    }

    /// The name that was probably meant.
    fn nearest(&self, name: &str) -> Option<&'static str> {
        let name = snake_case(name);
        let allowed = if name.len() < 5 { 1 } else { 2 };
        let distance = |served: &&'static str| strsim::osa_distance(&name, served);
        let nearest = self.served.iter().copied().filter(|served| served.len() > 2).min_by_key(distance)?;
        (distance(&nearest) <= allowed.min(nearest.len() / 3)).then_some(nearest)
    }
}

/// Refuses what a request of `api` has no business to say. Returns names that are nobody's.
///
/// # Errors
/// When a field would change the answer and is not served.
pub fn check(api: Api, body: &Value) -> Result<Vec<String>, ApiError> {
    let table = Table::of_api(api);
    let mut unknown = Vec::new();
    for (name, value) in body.as_object().into_iter().flatten() {
        if table.served.contains(&name.as_str()) || is_word_of(IDLE, name) || asks_nothing(name, value) {
            continue;
        }
        if let Some((_, instead)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(ApiError::invalid(format!("{name}: not served; {instead}")));
        }
        let meant = MEANT.iter().find(|(other, _)| other == name).map(|(_, meant)| *meant);
        if let Some(meant) = meant.or_else(|| table.nearest(name)) {
            return Err(ApiError::invalid(format!("{name}: no field of this API; expected `{meant}`")));
        }
        if is_word_of(PROMISES, name) {
            return Err(ApiError::invalid(format!("{name}: not served; leave it out, or give it as null")));
        }
        if let Some(other) = api_of(name) {
            return Err(ApiError::invalid(format!("{name}: no field of this API, but of {other}")));
        }
        unknown.push(name.clone());
    }
    Ok(unknown)
}

/// Refuses names that an object in a request does not have.
///
/// # Errors
/// When there is one.
pub fn check_object(place: &str, object: &Map<String, Value>, table: &Table) -> Result<(), ApiError> {
    let Some(name) = object.keys().find(|name| !table.served.contains(&name.as_str())) else { return Ok(()) };
    let expected = match table.nearest(name) {
        Some(nearest) => format!("`{nearest}`"),
        None => table.served.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    Err(ApiError::invalid(format!("{place}.{name}: no such field; expected {expected}")))
}

/// Whether a field leaves everything as it is.
fn asks_nothing(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        // On by default.
        Value::Bool(on) if name == "parse_tool_calls" => *on,
        Value::Bool(on) => !on || is_word_of(NEUTRAL_AT_ONE, name),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => is_word_of(NEUTRAL_AT_ONE, name),
            Some(0.0) => is_word_of(PROMISES, name) || REFUSED.iter().any(|(refused, _)| *refused == name),
            _ => false,
        },
        Value::String(text) => text.is_empty() || (name == "verbosity" && text == "medium"),
        Value::Array(values) => values.iter().all(|value| name == "modalities" && value == "text"),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// The API that has a field which another lacks.
fn api_of(name: &str) -> Option<&'static str> {
    let apis = [
        (Api::Chat, "/v1/chat/completions"),
        (Api::Completions, "/v1/completions"),
        (Api::Messages, "/v1/messages"),
        (Api::Responses, "/v1/responses"),
    ];
    apis.into_iter().find(|(api, _)| Table::of_api(*api).served.contains(&name)).map(|(_, path)| path)
}

fn is_word_of(words: &str, name: &str) -> bool {
    words.split_ascii_whitespace().any(|word| word == name)
}

/// `maxTokens` and `max-tokens` as `max_tokens`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        match c {
            'A'..='Z' => {
                if !snake.is_empty() && !snake.ends_with('_') {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            '-' | ' ' | '.' => snake.push('_'),
            c => snake.push(c),
        }
    }
    snake
}

/// The names of a struct's fields, as serde knows them.
fn names_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It asks for a struct and gets nothing but an error.
    let _ = T::deserialize(Names(&mut names));
    names
}

struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("no value"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(api: Api, body: Value) -> String {
        check(api, &body).map(|unknown| format!("taken: {unknown:?}")).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn fields_are_known_from_what_reads_them() {
        assert!(names_of::<Generate>().contains(&"temperature"));
        for (api, field) in [(Api::Chat, "messages"), (Api::Native, "prompt"), (Api::Messages, "system")] {
            assert!(Table::of_api(api).served.contains(&field), "{field}");
        }
    }

    #[test]
    fn near_misses_are_told_what_was_meant() {
        for (name, meant) in [
            ("max_token", "max_tokens"),
            ("maxTokens", "max_tokens"),
            ("max-tokens", "max_tokens"),
            ("mesages", "messages"),
            ("temprature", "temperature"),
            ("Temperature", "temperature"),
            ("tool", "tools"),
            ("tool_choise", "tool_choice"),
            ("respones_format", "response_format"),
            ("responseFormat", "response_format"),
            ("top_logprob", "top_logprobs"),
            ("logit-bias", "logit_bias"),
            ("presence_penalti", "presence_penalty"),
            ("guided_json", "json_schema"),
            ("repetition_penalty", "repeat_penalty"),
            ("stop_sequences", "stop"),
        ] {
            let said = refusal(Api::Chat, json!({ name: 2 }));
            let is_refused = said.starts_with(&format!("{name}: ")) && said.contains(meant);
            assert!(is_refused, "{said}");
        }
    }

    #[test]
    fn what_promises_something_is_refused_and_what_does_not_is_taken() {
        for name in ["min_tokens", "suffix", "lora", "functions", "use_beam_search", "input", "best_of", "reasoning"] {
            assert!(refusal(Api::Chat, json!({ name: 2 })).starts_with(&format!("{name}: ")), "{name}");
            assert_eq!(refusal(Api::Chat, json!({ name: null })), "taken: []");
        }
        for name in ["user", "metadata", "store", "service_tier", "model"] {
            assert_eq!(refusal(Api::Responses, json!({ name: "x" })), "taken: []", "{name}");
        }
        for neutral in
            [json!({ "repetition_penalty": 1.0 }), json!({ "min_tokens": 0 }), json!({ "modalities": ["text"] })]
        {
            assert_eq!(refusal(Api::Chat, neutral), "taken: []");
        }
        assert!(refusal(Api::Chat, json!({ "parse_tool_calls": false })).starts_with("parse_tool_calls: "));
        for (api, field) in [(Api::Messages, "logprobs"), (Api::Responses, "messages"), (Api::Responses, "n")] {
            assert!(refusal(api, json!({ field: 2 })).starts_with(&format!("{field}: ")), "{field}");
        }
        assert_eq!(refusal(Api::Native, json!({ "x_my_tag": "x" })), "taken: [\"x_my_tag\"]");
    }

    #[test]
    fn the_page_for_users_has_every_name() {
        let page = include_str!("../../docs/requests.md");
        let names = REFUSED.iter().map(|(name, _)| *name).chain(IDLE.split_ascii_whitespace());
        names.for_each(|name| assert!(page.contains(&format!("`{name}`")), "{name}"));
    }

    #[test]
    fn no_field_is_served_and_refused() {
        for api in [Api::Native, Api::Completions, Api::Chat] {
            let served = &Table::of_api(api).served;
            for name in REFUSED.iter().map(|(name, _)| *name).chain(IDLE.split_ascii_whitespace()) {
                assert!(!served.contains(&name), "{name} of {api:?}");
            }
            assert!(served.iter().all(|name| MEANT.iter().all(|(other, _)| other != name)));
        }
    }
}
