//! What an answer must be an instance of: `response_format` and `json_schema`.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{self, Table};

/// What `response_format` has, and OpenAI's `json_schema` in it.
const FORMAT: [&str; 6] = ["type", "schema", "json_schema", "name", "strict", "description"];
const WRAPPED: [&str; 4] = ["schema", "name", "strict", "description"];

/// The schema that a request demands of its answer, if it demands one.
///
/// # Errors
/// When it is not clear what is demanded.
pub fn demanded(response_format: Option<&Value>, json_schema: Option<&Value>) -> Result<Option<Value>, ApiError> {
    let own = json_schema.filter(|schema| !schema.is_null());
    let of_format = match response_format {
        None | Some(Value::Null) => None,
        Some(Value::Object(format)) => of_format(format, own)?,
        Some(other) => return Err(wrong(&format!("expected an object, found {other}"))),
    };
    let schema = match (of_format, own) {
        (Some(schema), Some(own)) if schema != *own => {
            return Err(ApiError::invalid("expected a schema in response_format or in json_schema, found two"));
        }
        (of_format, own) => of_format.or(own.cloned()),
    };
    match schema {
        // An empty schema means any object.
        Some(Value::Object(schema)) if schema.is_empty() => Ok(Some(any())),
        Some(other) if !other.is_object() && !other.is_boolean() => {
            Err(wrong(&format!("expected the schema to be an object, found {other}")))
        }
        schema => Ok(schema),
    }
}

fn any() -> Value {
    json!({ "type": "object" })
}

fn wrong(what: &str) -> ApiError {
    ApiError::invalid(format!("response_format: {what}"))
}

/// `own`: the schema that stands beside `response_format`.
fn of_format(format: &Map<String, Value>, own: Option<&Value>) -> Result<Option<Value>, ApiError> {
    fields::check_object("response_format", format, &Table::of(&FORMAT))?;
    let beside = format.get("schema").filter(|schema| !schema.is_null());
    match format.get("type") {
        Some(Value::String(kind)) if kind == "text" => match beside.or(format.get("json_schema")) {
            None => Ok(None),
            Some(_) => Err(wrong("a schema needs the type json_schema or json_object, found text")),
        },
        Some(Value::String(kind)) if kind == "json_object" => Ok(Some(beside.or(own).cloned().unwrap_or_else(any))),
        Some(Value::String(kind)) if kind == "json_schema" => {
            let wrapped = wrapped(format.get("json_schema"))?;
            let schema = wrapped.as_ref().or(beside).or(own).cloned();
            schema.map(Some).ok_or_else(|| wrong("expected a schema in json_schema.schema, found none"))
        }
        None | Some(Value::Null) if format.is_empty() => Ok(None),
        found => {
            let found = found.map_or_else(|| "nothing".to_owned(), Value::to_string);
            Err(wrong(&format!("type must be one of \"text\", \"json_object\" or \"json_schema\", but got: {found}")))
        }
    }
}

/// The schema in OpenAI's wrapper, which also gives it a name.
fn wrapped(wrapper: Option<&Value>) -> Result<Option<Value>, ApiError> {
    match wrapper {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(wrapper)) => {
            fields::check_object("response_format.json_schema", wrapper, &Table::of(&WRAPPED))?;
            Ok(wrapper.get("schema").filter(|schema| !schema.is_null()).cloned())
        }
        Some(other) => Err(wrong(&format!("expected json_schema to be an object with a schema, found {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_may_stand_in_several_places() {
        let schema = json!({ "type": "integer" });
        for format in [
            json!({ "type": "json_schema", "json_schema": { "name": "n", "strict": true, "schema": schema } }),
            json!({ "type": "json_schema", "schema": schema }),
            json!({ "type": "json_schema", "name": "n", "schema": schema }),
            json!({ "type": "json_object", "schema": schema }),
        ] {
            assert_eq!(demanded(Some(&format), None).unwrap().as_ref(), Some(&schema), "{format}");
        }
        assert_eq!(demanded(None, Some(&schema)).unwrap().as_ref(), Some(&schema));
        assert_eq!(demanded(Some(&json!({ "type": "json_schema" })), Some(&schema)).unwrap().as_ref(), Some(&schema));
        assert_eq!(demanded(Some(&json!({ "type": "json_object" })), None).unwrap(), Some(any()));
        assert_eq!(demanded(None, Some(&json!({}))).unwrap(), Some(any()));
        for nothing in [json!(null), json!({ "type": "text" }), json!({})] {
            assert_eq!(demanded(Some(&nothing), None).unwrap(), None, "{nothing}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for format in [
            json!({ "type": "json_schema" }),
            json!({ "type": "json_schema", "json_schema": {} }),
            json!({ "type": "json_schema", "json_schema": { "name": "n" } }),
            json!({ "type": "json_schema", "json_schema": { "type": "object", "properties": {} } }),
            json!({ "type": "json_schema", "json_schema": "x" }),
            json!({ "type": "json_schema", "shema": { "type": "object" } }),
            json!({ "schema": { "type": "object" } }),
            json!({ "json_schema": { "schema": {} } }),
            json!({ "type": "text", "schema": { "type": "object" } }),
            json!({ "type": "regex", "pattern": "a" }),
            json!({ "type": 1 }),
            json!({ "type": "json_object", "schema": 5 }),
            json!("json_object"),
            json!([]),
        ] {
            assert!(demanded(Some(&format), None).is_err(), "{format}");
        }
        assert!(
            demanded(Some(&json!({ "type": "json_object", "schema": { "type": "object" } })), Some(&json!(true)))
                .is_err()
        );
    }
}
