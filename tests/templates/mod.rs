//! Chat templates in the manner of published ones, as small as llama.cpp still understands them.
#![allow(dead_code, reason = "each test file uses its own part")]

use serde_json::{Value, json};
use stepflow::llama::chat::{Applied, ChatInput, ChatTemplates, Delta, Message};

/// Thinks unless told otherwise, calls tools in JSON between tags: Qwen3.
pub const TAGS: &str = r#"
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
    {{- '\n</tools>\nCall one so:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

/// The prompt opens thinking, and only roles by turns are allowed: QwQ-32B and DeepSeek-R1's distillates.
pub const OPENED: &str = r#"{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.role == 'assistant' %}{{- message.content.split('</think>')[-1] + eos_token }}
    {%- else %}{{- message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|><think>\n' }}{%- endif %}"#;

/// Channels: GPT-OSS.
pub const CHANNELS: &str = r#"
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<|start|>assistant to=functions.' + call.function.name + '<|channel|>commentary json<|message|>' }}
            {{- call.function.arguments | tojson + '<|call|>' }}
        {%- endfor %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"#;

/// A tool's call is all of an answer: Llama 3.3.
pub const BARE: &str = r#"{{- bos_token }}
{%- if tools %}
    {{- '<|header|>system<|/header|>Answer {"name": a function, "parameters": its arguments} to call one of:' }}
    {%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|header|>' + message.role + '<|/header|>' }}
    {%- if message.tool_calls %}
        {{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
        {{- message.tool_calls[0].function.arguments | tojson + '}' }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>' }}{%- endif %}"#;

pub fn open(source: &str) -> ChatTemplates {
    ChatTemplates::from_source(source, "<s>", "</s>").unwrap_or_else(|error| panic!("{error}"))
}

pub fn says(content: &str) -> ChatInput {
    ChatInput { messages: json!([{"role": "user", "content": content}]), ..ChatInput::default() }
}

/// A tool for the weather and one for the time.
pub fn tools() -> Value {
    let tool = |name: &str, parameters: Value| {
        let function = json!({"name": name, "description": "What it says.", "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    let weather = json!({
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    });
    let place = json!({"type": "object", "properties": {"place": {"type": "object"}}, "required": ["place"]});
    json!([tool("weather", weather), tool("clock", place)])
}

pub fn with_tools() -> ChatInput {
    ChatInput { tools: tools(), parallel_tool_calls: true, ..says("How is the weather?") }
}

/// The message that an answer is, read at once.
pub fn read(applied: &Applied, answer: &str) -> Message {
    read_in(applied, [answer]).unwrap_or_else(|error| panic!("{error}: {answer}")).0
}

/// The message that the pieces are, and what its deltas come to.
pub fn read_in<'a>(
    applied: &Applied,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Result<(Message, Message), stepflow::llama::chat::ChatError> {
    let mut parser = applied.parser()?;
    let mut sum = Message { role: "assistant".to_owned(), ..Message::default() };
    for piece in pieces {
        parser.push(piece)?.iter().for_each(|delta| add(&mut sum, delta));
    }
    let (message, deltas) = parser.finish()?;
    deltas.iter().for_each(|delta| add(&mut sum, delta));
    Ok((message, sum))
}

fn add(sum: &mut Message, delta: &Delta) {
    sum.content += &delta.content;
    sum.reasoning_content += &delta.reasoning_content;
    if let Some(call) = &delta.tool_call {
        if sum.tool_calls.len() <= call.index {
            sum.tool_calls.resize_with(call.index + 1, Default::default);
        }
        let whole = &mut sum.tool_calls[call.index];
        whole.id += &call.id;
        whole.name += &call.name;
        whole.arguments += &call.arguments;
    }
}
