//! How large a request and an answer may be: llama.cpp recurses over them, and does some things in quadratic or
//! exponential time. Beyond the limits it would overflow its stack or not come back.

use std::collections::HashSet;

use serde_json::Value;

use super::{ChatError, ChatInput};

/// Arrays and objects inside each other, anywhere in a request.
const DEPTH: usize = 128;
/// Keys of an object, which llama.cpp compares one after the other.
const KEYS: usize = 4096;
/// Tools, of which it keeps every beginning of their list.
const TOOLS: usize = 1024;
/// Bytes in the name of a tool or a property, or in a `$ref`.
const NAME: usize = 1024;
/// Properties of an object, of which its grammar has every end of their list.
const PROPERTIES: usize = 512;
/// Schemas inside each other, through `$ref`s too.
const SCHEMA_DEPTH: usize = 256;
/// What the schemas of a request may cost, in bytes of rule names; as a measure of time too.
const BUDGET: usize = 1 << 20;
/// Brackets of an answer that are open at once before the parser needs a large stack.
const SHALLOW: usize = 128;
/// Brackets of an answer that may be open at once.
const OPEN_BRACKETS: usize = 10_000;

/// The request as JSON, if llama.cpp can be given it.
pub(super) fn request(input: &ChatInput) -> Result<String, ChatError> {
    let request = json(input)?;
    for arguments in input.messages.as_array().into_iter().flatten().flat_map(arguments) {
        structure(arguments)?;
    }
    let tools = input.tools.as_array().map_or(&[][..], Vec::as_slice);
    at_most("tools", TOOLS, tools.len())?;
    let mut budget = BUDGET;
    for function in tools.iter().map(|tool| &tool["function"]) {
        at_most("bytes in the name of a tool", NAME, function["name"].as_str().map_or(0, str::len))?;
        Schemas::check(&function["parameters"], &mut budget)?;
    }
    Schemas::check(input.json_schema.as_ref().unwrap_or(&Value::Null), &mut budget)?;
    Ok(request)
}

/// The schema as JSON, if llama.cpp can be given it.
pub(super) fn schema(schema: &Value) -> Result<String, ChatError> {
    let text = json(schema)?;
    Schemas::check(schema, &mut BUDGET.clone())?;
    Ok(text)
}

fn json(value: &impl serde::Serialize) -> Result<String, ChatError> {
    let text = serde_json::to_string(value).map_err(|error| ChatError::Internal(error.to_string()))?;
    structure(&text)?;
    Ok(text)
}

/// The arguments of the tools that a message calls, which are JSON in a string.
fn arguments(message: &Value) -> impl Iterator<Item = &str> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls.filter_map(|call| call["function"]["arguments"].as_str())
}

fn at_most(what: &str, limit: usize, found: usize) -> Result<(), ChatError> {
    match found <= limit {
        true => Ok(()),
        false => Err(ChatError::Request(format!("expected at most {limit} {what}, found {found}; send fewer"))),
    }
}

/// Whether JSON is neither too deep nor too wide. What is not JSON is left for llama.cpp to refuse.
fn structure(json: &str) -> Result<(), ChatError> {
    let mut keys = Vec::new();
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' => {
                keys.push(0);
                at_most("arrays and objects inside each other", DEPTH, keys.len())?;
            }
            b']' | b'}' => drop(keys.pop()),
            b':' => {
                if let Some(keys) = keys.last_mut() {
                    *keys += 1;
                    at_most("keys in an object", KEYS, *keys)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn skip_string(bytes: &mut impl Iterator<Item = u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

/// A walk through a schema that takes the ways of llama.cpp's converter, and as many steps.
struct Schemas<'a> {
    root: &'a Value,
    /// What `$ref`s were followed; the converter follows each once.
    followed: HashSet<&'a str>,
    budget: &'a mut usize,
}

impl<'a> Schemas<'a> {
    fn check(root: &'a Value, budget: &'a mut usize) -> Result<(), ChatError> {
        Self { root, followed: HashSet::new(), budget }.visit(root, 0, 0)
    }

    /// `name` is the length of the rule's name, `depth` the number of schemas around this one.
    fn visit(&mut self, schema: &'a Value, name: usize, depth: usize) -> Result<(), ChatError> {
        at_most("schemas inside each other", SCHEMA_DEPTH, depth)?;
        self.spend(32 + name)?;
        let reference = schema["$ref"].as_str();
        at_most("bytes in a $ref", NAME, reference.map_or(0, str::len))?;
        self.alternatives(schema, &mut Vec::new(), depth)?;
        if let Some(reference) = reference {
            return match self.followed.insert(reference) {
                true => self.visit(self.resolve(reference), reference.len(), depth + 1),
                false => Ok(()),
            };
        }
        // An array of types is as many schemas, each with all the rest.
        let copies = schema["type"].as_array().map_or(1, Vec::len);
        for _ in 0..copies {
            self.inside(schema, name, depth + 1)?;
        }
        Ok(())
    }

    fn inside(&mut self, schema: &'a Value, name: usize, depth: usize) -> Result<(), ChatError> {
        if let Some(properties) = schema["properties"].as_object() {
            at_most("properties of an object", PROPERTIES, properties.len())?;
            for (property, schema) in properties {
                at_most("bytes in the name of a property", NAME, property.len())?;
                self.visit(schema, name + 1 + property.len(), depth)?;
            }
        }
        for key in ["oneOf", "anyOf", "allOf", "items", "prefixItems", "additionalProperties"] {
            let schemas = match &schema[key] {
                Value::Array(schemas) => schemas.as_slice(),
                one => std::slice::from_ref(one),
            };
            for schema in schemas.iter().filter(|schema| schema.is_object()) {
                self.visit(schema, name + 8, depth)?;
            }
        }
        Ok(())
    }

    /// llama.cpp asks of what types a schema's instances are, for which it follows alternatives and `$ref`s along every
    /// way that meets no `$ref` twice.
    fn alternatives(&mut self, schema: &'a Value, way: &mut Vec<&'a str>, depth: usize) -> Result<(), ChatError> {
        at_most("schemas inside each other", SCHEMA_DEPTH, depth + way.len())?;
        self.spend(1)?;
        if let Some(reference) = schema["$ref"].as_str() {
            if way.contains(&reference) {
                return Ok(());
            }
            way.push(reference);
            let target = self.resolve(reference);
            if target["$ref"].as_str().is_some_and(|next| way.contains(&next)) {
                return Err(ChatError::Request(format!(
                    "expected a $ref to a schema, found {reference}, which leads to itself"
                )));
            }
            self.alternatives(target, way, depth)?;
            way.pop();
            return Ok(());
        }
        let copies = schema["type"].as_array().map_or(1, Vec::len);
        let alternatives = ["oneOf", "anyOf", "allOf"].map(|key| schema[key].as_array());
        for schema in alternatives.into_iter().flatten().flatten() {
            for _ in 0..copies {
                self.alternatives(schema, way, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Null if it leads nowhere, which llama.cpp refuses.
    fn resolve(&self, reference: &str) -> &'a Value {
        let Some(way) = reference.strip_prefix("#/") else { return &Value::Null };
        let step = |at: &'a Value, key: &str| match at {
            Value::Array(values) => values.get(number(key)?),
            value => value.get(key),
        };
        way.split('/').try_fold(self.root, step).unwrap_or(&Value::Null)
    }

    fn spend(&mut self, cost: usize) -> Result<(), ChatError> {
        let left = self.budget.checked_sub(cost);
        *self.budget = left.ok_or_else(|| {
            ChatError::Request(format!(
                "expected schemas that expand to at most {BUDGET} bytes of rule names, found more; send simpler ones"
            ))
        })?;
        Ok(())
    }
}

/// As C++ reads it: `0x` is 0, and so is `-0`.
fn number(text: &str) -> Option<usize> {
    let digits = text.trim_start().trim_start_matches(['+', '-']);
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// How many brackets of a text are open at once, wherever in it one begins to count.
#[derive(Default)]
pub(super) struct Nesting {
    open: usize,
    most: usize,
}

impl Nesting {
    /// The text goes on with `text`.
    pub(super) fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                b'[' | b'{' => self.open += 1,
                b']' | b'}' => self.open = self.open.saturating_sub(1),
                _ => {}
            }
            self.most = self.most.max(self.open);
        }
    }

    /// Whether a parser needs a large stack for it.
    pub(super) fn is_deep(&self) -> bool {
        self.most > SHALLOW
    }

    pub(super) fn check(&self) -> Result<(), ChatError> {
        match self.most <= OPEN_BRACKETS {
            true => Ok(()),
            false => Err(ChatError::Answer(format!(
                "expected an answer with at most {OPEN_BRACKETS} brackets open at once, found {}",
                self.most
            ))),
        }
    }
}
