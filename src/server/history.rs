//! The messages of a request, checked and brought into one form: content is one text, arguments of calls are JSON, and
//! what the system says comes first and at once.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::tools;

/// What stands between the blocks of one message.
pub const BETWEEN_BLOCKS: &str = "\n";

/// What stands between messages that become one.
const BETWEEN_MESSAGES: &str = "\n\n";

/// The messages as a template gets them. `continues`: whether the last one is gone on with; its blocks are left to llama.cpp,
/// which joins them in a way of its own.
///
/// # Errors
/// When one of them is not what a message can be; its place is named.
pub fn history(messages: &[Map<String, Value>], continues: bool) -> Result<Vec<Value>, ApiError> {
    let mut history: Vec<Map<String, Value>> = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let is_open = continues && i + 1 == messages.len();
        let content = message.get("content").filter(|_| is_open).cloned();
        let mut message = read_message(&format!("messages[{i}]"), message)?;
        if let Some(content) = content {
            message.insert("content".into(), content);
        }
        match history.last_mut().filter(|last| is_system(last) && is_system(&message)) {
            Some(system) => join(system, &message),
            None => history.push(message),
        }
    }
    Ok(history.into_iter().map(Value::Object).collect())
}

fn read_message(place: &str, message: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let mut message = message.clone();
    let role = message.get("role").and_then(Value::as_str);
    let Some(role) = role else {
        return Err(ApiError::invalid(format!(
            "{place}.role: expected system, user, assistant or tool, found nothing"
        )));
    };
    let is_assistant = role == "assistant";
    if role == "developer" {
        // OpenAI's newer name, which few templates know.
        message.insert("role".into(), "system".into());
    }
    match message.get("content") {
        None if is_assistant && message.contains_key("tool_calls") => {}
        None => {
            return Err(ApiError::invalid(match is_assistant {
                true => "Assistant message must contain either 'content' or 'tool_calls'!",
                false => "All non-assistant messages must contain 'content'",
            }));
        }
        Some(content) => {
            let content = content_of(content)?;
            message.insert("content".into(), content);
        }
    }
    for (i, call) in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let place = format!("{place}.tool_calls[{i}].function.arguments");
        if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
            let arguments = tools::arguments(&place, function.get("arguments"))?;
            function.insert("arguments".into(), arguments.into());
        }
    }
    Ok(message)
}

/// The text of a message's content, or null.
fn content_of(content: &Value) -> Result<Value, ApiError> {
    match content {
        Value::Null | Value::String(_) => Ok(content.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().map(text_of_part).collect::<Result<Vec<_>, _>>()?;
            Ok(texts.join(BETWEEN_BLOCKS).into())
        }
        _ => Err(ApiError::invalid("Expected 'content' to be a string or an array")),
    }
}

fn text_of_part(part: &Value) -> Result<&str, ApiError> {
    let kind = part.get("type").and_then(Value::as_str);
    let text = |field: &str| {
        let text = part.get(field).and_then(Value::as_str);
        text.ok_or_else(|| ApiError::invalid(format!("expected a part of 'content' to have a '{field}'")))
    };
    match kind {
        Some("text") => text("text"),
        Some("refusal") => text("refusal"),
        Some(kind @ ("image_url" | "input_audio" | "video_url")) => {
            Err(ApiError::invalid(format!("{kind}: this server reads text alone; it has no multimodal projector")))
        }
        Some(kind) => Err(ApiError::invalid(format!("unsupported content[].type: {kind}"))),
        None => Err(ApiError::invalid("expected every part of 'content' to have a 'type'")),
    }
}

fn is_system(message: &Map<String, Value>) -> bool {
    message.get("role").and_then(Value::as_str) == Some("system")
}

/// Templates know one message of the system's.
fn join(system: &mut Map<String, Value>, more: &Map<String, Value>) {
    let text =
        |message: &Map<String, Value>| message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
    let texts = [text(system), text(more)];
    let said: Vec<_> = texts.iter().filter(|text| !text.is_empty()).map(String::as_str).collect();
    system.insert("content".into(), said.join(BETWEEN_MESSAGES).into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(messages: Value) -> Result<Value, ApiError> {
        let messages: Vec<_> = messages.as_array().unwrap().iter().map(|m| m.as_object().unwrap().clone()).collect();
        history(&messages, false).map(Value::from)
    }

    #[test]
    fn blocks_are_lines_and_systems_are_one() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let read = read(json!([
            { "role": "system", "content": "one" },
            { "role": "developer", "content": parts },
            { "role": "system", "content": "" },
            { "role": "user", "content": parts },
            { "role": "developer", "content": "later" },
        ]));
        let expected = json!([
            { "role": "system", "content": "one\n\na\nb" },
            { "role": "user", "content": "a\nb" },
            { "role": "system", "content": "later" },
        ]);
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn arguments_that_are_cut_off_name_their_message() {
        let message = |arguments: &str| {
            let call = json!({ "id": "1", "function": { "name": "f", "arguments": arguments } });
            json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": null, "tool_calls": [call] }])
        };
        let error = read(message("{\"city\": \"Pa")).unwrap_err().to_string();
        assert!(error.starts_with("messages[1].tool_calls[0].function.arguments: "), "{error}");
        assert_eq!(read(message("")).unwrap()[1]["tool_calls"][0]["function"]["arguments"], "{}");
    }
}
