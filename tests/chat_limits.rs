//! No request and no answer brings the process down: what llama.cpp would overflow its stack on, or take forever for,
//! is refused.

mod common;
mod templates;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use stepflow::llama::chat::{Applied, ChatError, ChatInput, ChatTemplates, json_schema_to_grammar};
use templates::{BARE, CHANNELS, OPENED, TAGS, open, read_in, says, with_tools};

/// `text` around itself.
fn nested(depth: usize, before: &str, middle: &str, after: &str) -> String {
    before.repeat(depth) + middle + &after.repeat(depth)
}

fn object(properties: usize) -> Value {
    let property = |i| (format!("key{i}"), json!({"type": "string"}));
    json!({"type": "object", "properties": (0..properties).map(property).collect::<Map<_, _>>()})
}

/// Schemas inside each other, through `$ref`s: `last` is the innermost.
fn chain(length: usize, link: impl Fn(Value) -> Value, last: Value) -> Value {
    let mut defs = Map::new();
    for i in 0..length {
        defs.insert(format!("d{i}"), link(json!({"$ref": format!("#/$defs/d{}", i + 1)})));
    }
    defs.insert(format!("d{length}"), last);
    json!({"$ref": "#/$defs/d0", "$defs": defs})
}

/// Schemas that are refused, and a word of the reason.
fn bad_schemas() -> Vec<(Value, &'static str)> {
    let string = json!({"type": "string"});
    let mut types = string.clone();
    for _ in 0..30 {
        types = json!({"type": ["object", "object"], "properties": {"a": types}});
    }
    let deep = nested(120, r#"{"items":"#, "{}", "}");
    let mut deeper: Value = serde_json::from_str(&deep).unwrap();
    (0..10).for_each(|_| deeper = json!({"items": deeper}));
    vec![
        (deeper, "inside each other"),
        (chain(4000, |next| json!({"items": next}), string.clone()), "inside each other"),
        (chain(40, |next| json!({"anyOf": [next, next]}), string.clone()), "expand"),
        (types, "expand"),
        (object(5000), "keys"),
        (object(3000), "properties"),
        (json!({"properties": {"é".repeat(100_000): {}}}), "bytes in the name of a property"),
        (json!({"$ref": "é".repeat(100_000)}), "bytes in a $ref"),
        (json!({"allOf": [{"$ref": "#/a"}], "a": {"$ref": "#/a"}}), "leads to itself"),
        (json!({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}), "leads to itself"),
        (json!({"allOf": [{"$ref": "#/a/0x"}], "a": [{"$ref": "#/a/-0"}]}), "leads to itself"),
        (json!({"$ref": "https://example.com/schema.json"}), "unsupported $ref"),
        (json!({"$ref": "file:///etc/passwd"}), "unsupported $ref"),
        (json!({"$ref": "/etc/passwd"}), "unsupported $ref"),
        (json!({"$ref": "#"}), "unsupported $ref"),
        (json!({"$ref": "#/nowhere"}), "cannot resolve"),
        (json!({"properties": {"a": 1}}), "must be an object"),
        (json!({"type": "array", "minItems": -1}), "non-negative"),
        (json!({"anyOf": []}), "must not be empty"),
        (json!({"type": "string", "pattern": "^(a$"}), "unbalanced"),
    ]
}

#[test]
fn bad_schemas_are_refused_at_once() {
    let templates = open(TAGS);
    for (schema, why) in bad_schemas() {
        let began = Instant::now();
        let function = json!({"name": "f", "parameters": {"type": "object", "properties": {"p": schema}}});
        let tools = json!([{"type": "function", "function": function}]);
        let as_tool = templates.apply(&ChatInput { tools, ..says("hi") });
        // A $ref inside a tool begins at the tool's parameters, so some lead nowhere there; all are refused.
        let found = as_tool.map(|_| ()).unwrap_err();
        assert!(matches!(&found, ChatError::Request(_)), "{found}");
        let answer = templates.apply(&ChatInput { json_schema: Some(schema.clone()), ..says("hi") }).map(|_| ());
        for found in [answer.unwrap_err(), json_schema_to_grammar(&schema).unwrap_err()] {
            assert!(
                matches!(&found, ChatError::Request(found) if found.contains(why)),
                "expected {why}, found {found}"
            );
        }
        // Milliseconds; the machine may be busy.
        assert!(began.elapsed() < Duration::from_secs(10), "{why}: {:?}", began.elapsed());
    }
}

#[test]
fn what_is_large_but_not_too_large_is_taken() {
    let schemas = [
        object(500),
        serde_json::from_str(&nested(60, r#"{"type":"object","properties":{"a":"#, "{}", "}}")).unwrap(),
        chain(100, |next| json!({"items": next}), json!({"type": "string"})),
        chain(10, |next| json!({"anyOf": [next, {"type": "null"}]}), json!({"type": "string"})),
        json!({"$ref": "#/node", "node": {"type": "object", "properties": {"next": {"$ref": "#/node"}}}}),
        json!({"type": "string", "maxLength": 2_000_000_000}),
        json!({"type": "integer", "minimum": i64::MIN, "exclusiveMaximum": i64::MIN}),
        json!({"type": "string", "pattern": format!("^{}$", "(".repeat(200))}),
        json!({"enum": (0..10_000).collect::<Vec<_>>()}),
        json!({"properties": {"é".repeat(512): {}}}),
    ];
    for schema in schemas {
        let began = Instant::now();
        if let Err(error) = json_schema_to_grammar(&schema) {
            assert!(error.to_string().contains("At least one of"), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[test]
fn requests_beyond_the_limits_are_refused() {
    let deep = |depth| nested(depth, "[", "", "]");
    let calls = |arguments: &str| {
        let call = json!({"type": "function", "function": {"name": "weather", "arguments": arguments}});
        ChatInput {
            messages: json!([
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "content": "ok"},
            ]),
            ..with_tools()
        }
    };
    let kwargs = |depth| -> ChatInput {
        let value = serde_json::from_str(&deep(depth)).unwrap();
        ChatInput { chat_template_kwargs: Map::from_iter([("x".to_owned(), value)]), ..says("hi") }
    };
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {}}});
    let many = Value::Array((0..2000).map(|i| tool(&format!("tool{i}"))).collect());
    let templates = open(TAGS);
    let bad = [
        (calls(&format!("{{\"a\": {}}}", deep(1_000_000))), "inside each other"),
        // A byte-order mark, which llama.cpp skips.
        (calls(&format!("\u{feff}{{\"a\": {}}}", deep(1_000_000))), "inside each other"),
        (calls("{"), "parse error"),
        (kwargs(127), "inside each other"),
        (ChatInput { tools: many, ..says("hi") }, "tools"),
        (ChatInput { tools: json!([tool(&"é".repeat(100_000))]), ..says("hi") }, "name of a tool"),
        (ChatInput { tools: json!([1]), ..says("hi") }, "tools"),
        (ChatInput { tools: json!({"a": 1}), ..says("hi") }, "'tools' to be an array"),
        (ChatInput { messages: json!("hi"), ..ChatInput::default() }, "'messages' to be an array"),
        (ChatInput { messages: json!([{"role": 1, "content": "a"}]), ..ChatInput::default() }, "string"),
        (ChatInput { messages: json!([{"role": "user", "content": 1}]), ..ChatInput::default() }, "'content'"),
        (
            ChatInput {
                messages: json!([{"role": "user", "content": [{"type": "image_url", "url": "file:///a"}]}]),
                ..ChatInput::default()
            },
            "Unsupported content part",
        ),
        (ChatInput { grammar: "root ::= \"a\"".to_owned(), ..with_tools() }, "grammar with tools"),
    ];
    for (input, why) in bad {
        let error = templates.apply(&input).unwrap_err();
        assert!(matches!(&error, ChatError::Request(found) if found.contains(why)), "expected {why}, found {error}");
    }
    for good in [calls(&format!("{{\"a\": {}}}", deep(100))), kwargs(100), says("a\0b"), says(&"[".repeat(1 << 20))] {
        templates.apply(&good).unwrap_or_else(|error| panic!("{error}"));
    }
    let nobody =
        ChatInput { add_generation_prompt: false, continue_final_message: json!(true), ..ChatInput::default() };
    for nothing in [ChatInput::default(), nobody] {
        assert!(templates.apply(&nothing).is_ok(), "no messages are no reason to fail");
    }
}

#[test]
fn deep_answers_need_no_deep_stack() {
    for (source, before) in [
        (TAGS, "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"place\": {\"a\": "),
        (CHANNELS, "<|channel|>commentary to=functions.clock<|message|>{\"place\": {\"a\": "),
    ] {
        let applied = open(source).apply(&with_tools()).unwrap();
        // Threads of a server have stacks of 2 MiB, as threads of tests have.
        for (depth, fits) in [(100, true), (9000, true), (1_000_000, false)] {
            let mut parser = applied.parser().unwrap();
            for open in ["[", "{\"a\":"] {
                let found = parser.push(before).and_then(|_| parser.push(&open.repeat(depth / 2)));
                if fits {
                    assert!(found.is_ok(), "{depth}: {:?}", found.err());
                    break;
                }
                assert!(matches!(&found, Err(ChatError::Answer(why)) if why.contains("brackets")), "{found:?}");
            }
        }
    }
}

/// What may come of an answer that is not what it should be: a message, or an error that blames the answer.
fn survives(applied: &Applied, answer: &str) {
    let middle = answer.char_indices().nth(answer.chars().count() / 2).map_or(0, |(at, _)| at);
    let (first, second) = answer.split_at(middle);
    if let Err(error) = read_in(applied, [first, second]) {
        assert!(matches!(error, ChatError::Answer(_)), "{error}");
    }
}

/// Answers that have something of every form.
const ANSWERS: [&str; 5] = [
    "<think>\nhm\n</think>\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Tromsø\", \"days\": \
     3}}\n</tool_call>",
    "<think>\nhm\n</think>\n\nIt is cold: −3 °C.",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather \
     <|constrain|>json<|message|>{\"city\": \"Oslo\", \"days\": 3}",
    "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\\u00e9\", \"days\": 3e1}}",
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
];

fn batter(templates: &[ChatTemplates]) {
    let applied: Vec<Applied> = templates.iter().filter_map(|templates| templates.apply(&with_tools()).ok()).collect();
    assert!(!applied.is_empty());
    for applied in &applied {
        for answer in ANSWERS {
            answer.char_indices().for_each(|(end, _)| survives(applied, &answer[..end]));
        }
    }
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6);
    proptest!(ProptestConfig::with_cases(64), |(changes in changes)| {
        for answer in ANSWERS {
            let mut bytes = answer.as_bytes().to_vec();
            for (at, byte, how) in &changes {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = *byte,
                    1 => bytes.insert(at, *byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            let answer = String::from_utf8_lossy(&bytes);
            applied.iter().for_each(|applied| survives(applied, &answer));
        }
    });
}

#[test]
fn any_beginning_and_any_change_of_an_answer_is_survived() {
    batter(&[TAGS, OPENED, CHANNELS, BARE].map(open));
}

/// With STEPFLOW_CHAT_TEMPLATES naming the folder models/templates of a llama.cpp. Its crate does not bring it.
#[test]
fn llama_cpps_own_templates_are_understood() {
    let Some(folder) = std::env::var_os("STEPFLOW_CHAT_TEMPLATES") else {
        return common::skip("STEPFLOW_CHAT_TEMPLATES is not set");
    };
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    let open = |path| open(&std::fs::read_to_string(path).unwrap());
    let templates: Vec<ChatTemplates> = paths.map(open).collect();
    assert!(templates.len() > 50, "{}", templates.len());
    for templates in &templates {
        let applied = templates.apply(&says("What is up?")).unwrap_or_else(|error| panic!("{error}"));
        assert!(applied.prompt.contains("What is up?"), "{}", applied.prompt);
    }
    batter(&templates);
}
