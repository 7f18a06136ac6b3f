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

fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
