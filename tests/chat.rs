//! What chat templates make of requests, and what answers are read as.

mod common;
mod templates;

use proptest::prelude::*;
use serde_json::json;
use stepflow::llama::chat::{
    Applied, ChatError, ChatInput, ChatTemplates, Message, ReasoningFormat, ToolCall, ToolChoice, TriggerKind,
    json_schema_to_grammar,
};
use stepflow::llama::{Model, ModelParams};
use templates::{BARE, CHANNELS, OPENED, TAGS, open, read, read_in, says, with_tools};

/// An answer of [`TAGS`] that calls two tools.
const CALLS: &str = r#"<think>
hm
</think>

<tool_call>
{"name": "weather", "arguments": {"city": "Tromsø \"N\"", "days": 3}}
</tool_call>
<tool_call>
{"name": "clock", "arguments": {"place": {"a": [1, {"b": null}]}}}
</tool_call>"#;

/// Templates, each with answers to a request with tools.
const ANSWERS: [(&str, &[&str]); 4] = [
    (TAGS, &["<think>\nIs it — cold?\n</think>\n\nIt is cold: −3 °C.", CALLS]),
    (OPENED, &["It is\ncold.\n</think>\n\nCold.", "no end of it"]),
    (
        CHANNELS,
        &[
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>It is cold.",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather \
             <|constrain|>json<|message|>{\"city\": \"Oslo\", \"days\": 3}",
        ],
    ),
    (BARE, &["Cold.", "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\", \"days\": 3}}"]),
];

fn message(reasoning: &str, content: &str) -> Message {
    Message {
        role: "assistant".to_owned(),
        content: content.to_owned(),
        reasoning_content: reasoning.to_owned(),
        tool_calls: Vec::new(),
    }
}

#[test]
fn a_built_in_template_goes_by_its_name() {
    let templates = open("command-r");
    let applied = templates.apply(&says("hi")).unwrap();
    let prompt = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>";
    assert_eq!(applied.prompt, prompt);
    assert_eq!(read(&applied, "<think>no</think>"), message("", "<think>no</think>"));
    let refused = templates.apply(&with_tools()).unwrap_err().to_string();
    assert!(refused.contains("tools: expected none"), "{refused}");

    // What resembles a built-in template is rendered as that one where Jinja is not wanted.
    let plain = ChatInput { jinja: false, ..says("hi") };
    assert_eq!(open(TAGS).apply(&plain).unwrap().prompt, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let unknown = open("{{ messages[0].content }}!").apply(&plain).unwrap_err().to_string();
    assert!(unknown.contains("not supported"), "{unknown}");
}

#[test]
fn reasoning_is_told_from_content() {
    let applied = open(TAGS).apply(&says("hi")).unwrap();
    assert_eq!(applied.prompt, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        (applied.thinking_start_tag.as_str(), applied.thinking_end_tags.join(" ")),
        ("<think>", "</think>".into())
    );
    assert_eq!(read(&applied, "<think>\nhm\n</think>\n\nhello"), message("hm\n", "hello"));
    // The prompt has opened the thinking.
    let applied = open(OPENED).apply(&says("hi")).unwrap();
    assert!(applied.supports_thinking && applied.prompt.ends_with("<think>\n"), "{}", applied.prompt);
    let found = read(&applied, "hm\n</think>\n\nhello");
    assert_eq!((found.reasoning_content.trim(), found.content.trim()), ("hm", "hello"));
    // It was cut off while it thought.
    let found = read(&applied, "hm");
    assert_eq!((found.reasoning_content.trim(), found.content.as_str()), ("hm", ""));
    let applied = open(CHANNELS).apply(&says("hi")).unwrap();
    let found =
        read(&applied, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>hello");
    assert_eq!(found, message("hm", "hello"));
    let applied = open(BARE).apply(&says("hi")).unwrap();
    assert!(!applied.supports_thinking);
    assert_eq!(read(&applied, "hello"), message("", "hello"));
}

#[test]
fn reasoning_may_stay_in_the_content() {
    let input = ChatInput { reasoning_format: ReasoningFormat::None, ..says("hi") };
    let found = read(&open(TAGS).apply(&input).unwrap(), "<think>\nhm\n</think>\n\nhello");
    assert_eq!(found, message("", "<think>\nhm\n</think>\n\nhello"));
}

#[test]
fn thinking_can_be_closed_in_the_prompt() {
    let templates = open(TAGS);
    let input = ChatInput { enable_thinking: false, ..says("hi") };
    let applied = templates.apply(&input).unwrap();
    assert!(applied.prompt.ends_with("<think>\n\n</think>\n\n"), "{}", applied.prompt);
    assert_eq!(read(&applied, "hello"), message("", "hello"));
    // A variable of the template does the same.
    let kwargs = json!({"enable_thinking": false}).as_object().unwrap().clone();
    let by_variable = templates.apply(&ChatInput { chat_template_kwargs: kwargs, ..says("hi") }).unwrap();
    assert_eq!(by_variable.prompt, applied.prompt);
}

#[test]
fn calls_of_tools_are_read() {
    let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
    let oslo = call("weather", r#"{"city": "Oslo", "days": 3}"#);
    let expected = [
        vec![
            call("weather", "{\"city\": \"Tromsø \\\"N\\\"\", \"days\": 3}"),
            call("clock", r#"{"place": {"a": [1, {"b": null}]}}"#),
        ],
        vec![oslo.clone()],
        vec![oslo],
    ];
    for ((source, answers), expected) in [&ANSWERS[0], &ANSWERS[2], &ANSWERS[3]].into_iter().zip(expected) {
        let applied = open(source).apply(&with_tools()).unwrap();
        let found = read(&applied, answers[1]);
        let calls: Vec<_> = found.tool_calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect();
        assert_eq!((calls, found.content.as_str()), (expected, ""));
        let good = |call: &ToolCall| call.id.len() == 32 && call.id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        assert!(found.tool_calls.iter().all(good), "{found:?}");
        assert!(found.tool_calls.windows(2).all(|calls| calls[0].id != calls[1].id), "{found:?}");
    }
}

#[test]
fn a_grammar_waits_for_a_call_unless_one_is_required() {
    let templates = open(TAGS);
    let lazy = templates.apply(&with_tools()).unwrap();
    assert!(lazy.grammar_lazy && lazy.grammar.contains("tool-weather ::="), "{}", lazy.grammar);
    let trigger = &lazy.grammar_triggers[0];
    assert_eq!((trigger.kind, trigger.value.trim(), trigger.token), (TriggerKind::Word, "<tool_call>", None));
    assert!(lazy.preserved_tokens.contains(&"<tool_call>".to_owned()));
    let required = ChatInput { tool_choice: ToolChoice::Required, ..with_tools() };
    let required = templates.apply(&required).unwrap();
    assert!(!required.grammar_lazy && !required.grammar.is_empty());
    let none = templates.apply(&ChatInput { tool_choice: ToolChoice::None, ..with_tools() }).unwrap();
    assert_eq!(none.grammar, "");
}

#[test]
fn a_schema_becomes_a_grammar() {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]});
    let grammar = json_schema_to_grammar(&schema).unwrap();
    assert!(grammar.contains("root ::=") && grammar.contains("[1-9]"), "{grammar}");
    for (source, _) in ANSWERS {
        let applied = open(source).apply(&ChatInput { json_schema: Some(schema.clone()), ..says("hi") }).unwrap();
        assert!(!applied.grammar_lazy && applied.grammar.contains("[1-9]"), "{}", applied.grammar);
    }
    let applied = open(BARE).apply(&ChatInput { json_schema: Some(schema), ..says("hi") }).unwrap();
    assert_eq!(read(&applied, r#"{"n": 4}"#), message("", r#"{"n": 4}"#));
    let error = json_schema_to_grammar(&json!({"type": "wheel"})).unwrap_err();
    assert!(matches!(&error, ChatError::Request(why) if why.contains("unrecognized type wheel")), "{error}");
}

#[test]
fn who_is_at_fault_is_told_with_the_reason() {
    let input = ChatInput { messages: json!([{"role": "poet", "content": "O"}]), ..ChatInput::default() };
    let error = open(OPENED).apply(&input).unwrap_err();
    assert!(matches!(&error, ChatError::Request(why) if why.contains("no role poet")), "{error}");
    let input = ChatInput { messages: json!([{"content": "O"}]), ..ChatInput::default() };
    let error = open(TAGS).apply(&input).unwrap_err();
    assert!(matches!(&error, ChatError::Request(why) if why.contains("Missing 'role'")), "{error}");
    let error = ChatTemplates::from_source("{{ 1 + }}", "", "").err().unwrap();
    assert!(matches!(&error, ChatError::Template(why) if why.contains("Unexpected token")), "{error}");
    let error = ChatTemplates::from_source("{{ raise_exception('never') }}", "", "").err().unwrap();
    assert!(matches!(&error, ChatError::Template(why) if why.contains("never")), "{error}");
    let number = ChatInput { json_schema: Some(json!({"type": "integer"})), ..says("hi") };
    let error = read_in(&open(TAGS).apply(&number).unwrap(), ["I will not."]).unwrap_err();
    assert!(matches!(&error, ChatError::Answer(why) if why.contains("does not match")), "{error}");
}

#[test]
fn a_message_is_continued() {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hel"}]);
    let continued = ChatInput {
        messages,
        add_generation_prompt: false,
        continue_final_message: json!(true),
        ..ChatInput::default()
    };
    let templates = open(BARE);
    let applied = templates.apply(&continued).unwrap();
    assert!(applied.prompt.ends_with("<|header|>assistant<|/header|>hel"), "{}", applied.prompt);
    let (whole, added) = read_in(&applied, ["l", "o"]).unwrap();
    assert_eq!((whole.content.as_str(), added.content.as_str()), ("hello", "lo"));
    let applied = templates.apply(&ChatInput { echo: true, ..continued }).unwrap();
    let (whole, added) = read_in(&applied, ["l", "o"]).unwrap();
    assert_eq!((whole.content.as_str(), added.content.as_str()), ("hello", "hello"));
}

#[test]
fn templates_are_used_from_many_threads() {
    let templates = open(TAGS);
    let expected = templates.apply(&with_tools()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..8).for_each(|_| assert_eq!(templates.apply(&with_tools()).unwrap(), expected)));
        }
    });
}

#[test]
fn a_model_brings_its_template() {
    let Some(path) = common::smollm2() else { return };
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let templates = ChatTemplates::open(&model, None).unwrap();
    assert_eq!(templates.source(), model.chat_template().unwrap());
    assert_eq!(templates.caps()["supports_string_content"], true);
    let applied = templates.apply(&says("hi")).unwrap();
    assert!(applied.prompt.ends_with("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"), "{}", applied.prompt);
    let other = ChatTemplates::open(&model, Some(OPENED)).unwrap();
    assert_eq!(other.source(), OPENED);
    // The model puts its first token there itself, or has none.
    assert!(!other.apply(&says("hi")).unwrap().prompt.starts_with("<s>"));
}

/// Without ids, which are random.
fn without_ids(mut message: Message) -> Message {
    message.tool_calls.iter_mut().for_each(|call| call.id.clear());
    message
}

fn applied() -> Vec<(Applied, &'static [&'static str])> {
    ANSWERS.iter().map(|(source, answers)| (open(source).apply(&with_tools()).unwrap(), *answers)).collect()
}

/// The text, cut before some of its characters.
fn cut<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| starts[cut.index(starts.len())]).collect();
    ends.push(text.len());
    ends.sort_unstable();
    let mut from = 0;
    ends.iter().map(|end| &text[std::mem::replace(&mut from, *end)..*end]).collect()
}

#[test]
fn deltas_come_to_the_message_wherever_the_answer_is_cut() {
    let applied = applied();
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..40);
    proptest!(ProptestConfig::with_cases(64), |(cuts in cuts)| {
        for (applied, answers) in &applied {
            for answer in *answers {
                let (whole, sum) = read_in(applied, cut(answer, &cuts)).unwrap();
                prop_assert_eq!(&sum, &whole);
                prop_assert_eq!(without_ids(whole), without_ids(read(applied, answer)));
            }
        }
    });
}

#[test]
fn letter_by_letter_is_as_good_as_at_once() {
    for (applied, answers) in applied() {
        for answer in answers {
            let pieces = answer.char_indices().map(|(at, letter)| &answer[at..at + letter.len_utf8()]);
            let (whole, sum) = read_in(&applied, pieces).unwrap();
            assert_eq!(sum, whole);
        }
    }
}
