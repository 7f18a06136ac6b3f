//! Which of its tools a request lets the model call.

use serde_json::{Map, Value};

use crate::llama::chat::ToolChoice;

use super::error::ApiError;
use super::request::read_at;

/// The tools that the model is told of, null for none, and whether it calls them.
pub fn choose(tools: Option<&Value>, choice: Option<&Value>) -> Result<(Value, ToolChoice), ApiError> {
    let tools = tools.and_then(Value::as_array).filter(|tools| !tools.is_empty());
    let (names, choice) = match choice {
        None | Some(Value::Null) => (None, ToolChoice::Auto),
        Some(Value::Object(choice)) => some_of_them(choice).map(|(names, choice)| (Some(names), choice))?,
        Some(choice) => (None, read_at("tool_choice", choice)?),
    };
    let Some(tools) = tools else { return Ok((Value::Null, choice)) };
    let Some(names) = names else { return Ok((tools.clone().into(), choice)) };
    let named = |name: &&str| {
        let tool = tools.iter().find(|tool| name_of(tool) == Some(*name)).cloned();
        tool.ok_or_else(|| ApiError::invalid(format!("tool_choice: expected one of the tools, found `{name}`")))
    };
    Ok((names.iter().map(named).collect::<Result<Vec<_>, _>>()?.into(), choice))
}

/// OpenAI's `function` and `allowed_tools`: the names, and whether one of them must be called.
fn some_of_them(choice: &Map<String, Value>) -> Result<(Vec<&str>, ToolChoice), ApiError> {
    let whole = || Value::Object(choice.clone());
    let wrong = || ApiError::invalid(format!("tool_choice: expected a function or allowed_tools, found {}", whole()));
    match choice.get("type").and_then(Value::as_str) {
        Some("function") => {
            let name = choice.get("function").unwrap_or(&Value::Null).get("name").or(choice.get("name"));
            Ok((vec![name.and_then(Value::as_str).ok_or_else(wrong)?], ToolChoice::Required))
        }
        Some("allowed_tools") => {
            let allowed = choice.get("allowed_tools").and_then(Value::as_object).unwrap_or(choice);
            let tools = allowed.get("tools").and_then(Value::as_array).ok_or_else(wrong)?;
            let names = tools.iter().map(|tool| name_of(tool).ok_or_else(wrong)).collect::<Result<_, _>>()?;
            let mode = allowed.get("mode").map_or(Ok(ToolChoice::Auto), |mode| read_at("tool_choice.mode", mode))?;
            Ok((names, mode))
        }
        _ => Err(wrong()),
    }
}

/// A grammar of llama.cpp's in which a call of a tool is demanded, without the text that it allows before the call: there
/// a model could say anything, up to its limit of tokens.
pub fn at_once(grammar: &str) -> String {
    let rule = |line: &str| match line.split_once(" ::= ") {
        Some(("root", body)) => format!("root ::= {}", without_text(body)),
        // Harmony's messages before the one that calls.
        Some(("any", "preamble | analysis")) => "any ::= analysis".to_owned(),
        _ => line.to_owned(),
    };
    grammar.lines().map(rule).collect::<Vec<_>>().join("\n")
}

/// The words of a rule that are not `until-N?`, outside of brackets, where they would be of thinking.
fn without_text(body: &str) -> String {
    let (mut depth, mut in_quotes) = (0_usize, false);
    let mut kept = Vec::new();
    for word in body.split(' ') {
        let is_text = word.strip_prefix("until-").and_then(|rest| rest.strip_suffix('?'));
        let is_text = is_text.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        if !(is_text && depth == 0 && !in_quotes) {
            kept.push(word);
        }
        let mut escaped = false;
        for byte in word.bytes() {
            match byte {
                b'"' if !escaped => in_quotes = !in_quotes,
                b'(' if !in_quotes => depth += 1,
                b')' if !in_quotes => depth = depth.saturating_sub(1),
                _ => {}
            }
            escaped = byte == b'\\' && !escaped;
        }
    }
    kept.join(" ")
}

/// The arguments of a call in a conversation's history, as text that is JSON.
///
/// # Errors
/// When they are not; the message begins with `place`.
pub fn arguments(place: &str, arguments: Option<&Value>) -> Result<String, ApiError> {
    match arguments {
        None | Some(Value::Null) => Ok("{}".to_owned()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok("{}".to_owned()),
        Some(Value::String(text)) => match serde_json::from_str::<Value>(text) {
            Ok(_) => Ok(text.clone()),
            Err(error) => Err(ApiError::invalid(format!(
                "{place}: expected JSON, found text that {}; send the whole of it, or leave the call out",
                if error.is_eof() { "is cut off".to_owned() } else { format!("is none: {error}") },
            ))),
        },
        // As some servers send them.
        Some(object @ Value::Object(_)) => Ok(object.to_string()),
        Some(other) => Err(ApiError::invalid(format!("{place}: expected JSON in a string, found {other}"))),
    }
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_demanded_call_comes_at_once() {
        let grammar = "root ::= \"<|im_start|>( \" space (\"<think>\" until-13 \"</think>\")? until-191? tool-calls\n\
                       until-191 ::= | [<] until-191-01";
        assert_eq!(
            at_once(grammar),
            "root ::= \"<|im_start|>( \" space (\"<think>\" until-13 \"</think>\")? tool-calls\n\
             until-191 ::= | [<] until-191-01"
        );
        assert_eq!(at_once("root ::= (until-1? \"a\")? b"), "root ::= (until-1? \"a\")? b");
    }

    #[test]
    fn arguments_are_json() {
        for (given, expected) in [
            (json!(null), "{}"),
            (json!(""), "{}"),
            (json!(" \n"), "{}"),
            (json!("{\"a\": 1}"), "{\"a\": 1}"),
            (json!({ "a": 1 }), "{\"a\":1}"),
        ] {
            assert_eq!(arguments("x", Some(&given)).unwrap(), expected);
        }
        for wrong in [json!("{\"a\": "), json!("{"), json!("a"), json!("{\"a\": \"b"), json!(1), json!([1])] {
            let message = arguments("messages[1]", Some(&wrong)).unwrap_err().to_string();
            assert!(message.starts_with("messages[1]: expected JSON"), "{message}");
        }
    }

    #[test]
    fn the_model_is_told_of_what_it_may_call() {
        let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
        let tools = json!([tool("a"), tool("b")]);
        let both = || tools.clone();
        for (choice, expected) in [
            (json!(null), (both(), ToolChoice::Auto)),
            (json!("required"), (both(), ToolChoice::Required)),
            (tool("b"), (json!([tool("b")]), ToolChoice::Required)),
            (json!({ "type": "function", "name": "a" }), (json!([tool("a")]), ToolChoice::Required)),
            (
                json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "type": "function", "name": "a" }] }),
                (json!([tool("a")]), ToolChoice::Auto),
            ),
            (
                json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required", "tools": [tool("b")] } }),
                (json!([tool("b")]), ToolChoice::Required),
            ),
        ] {
            assert_eq!(choose(Some(&tools), Some(&choice)).unwrap(), expected, "{choice}");
        }
        for wrong in [json!("always"), tool("c"), json!({ "type": "function" }), json!({}), json!(1)] {
            assert!(choose(Some(&tools), Some(&wrong)).is_err(), "{wrong}");
        }
        assert_eq!(choose(Some(&json!([])), Some(&json!("none"))).unwrap(), (Value::Null, ToolChoice::None));
    }
}
