//! What requests to `stepflow serve` say is done, or refused by name.

mod program;
mod serving;
mod templates;
mod tiny;

use serde_json::{Value, json};
use serving::Server;
use tiny::{Arch, WeightType};

const CHAT: &str = "/v1/chat/completions";

fn says(content: &str, more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": content }], "temperature": 0, "max_tokens": 60 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The message of an error of status 400.
fn refusal(server: &Server, path: &str, body: &Value) -> String {
    let response = server.post(path, body);
    assert_eq!(response.status, 400, "{path} {body}: {response:?}");
    text(&response.json(), "/error/message").to_owned()
}

#[test]
fn harmony_answers_after_a_thinking_budget() {
    let model = tiny::tiny(Arch::GptOss, WeightType::F32);
    let server = Server::start(&["-np", "1", "-m", model.to_str().unwrap()]);
    let thought = json!({ "role": "assistant", "reasoning_content": "One. Two.", "content": "" });
    let asked = |more: Value| {
        let mut body = json!({
            "messages": [{ "role": "user", "content": "x" }, thought], "temperature": 0, "max_tokens": 120,
            "continue_final_message": "reasoning_content", "add_generation_prompt": false, "ignore_eos": true,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for budget in ["reasoning_budget_tokens", "thinking_budget_tokens"] {
        let answer = server.ask(CHAT, asked(json!({ budget: 8, "reasoning_budget_message": "Enough." })));
        let message = &answer["choices"][0]["message"];
        let (thinking, content) = (text(message, "/reasoning_content"), text(message, "/content"));
        assert!(!content.is_empty() && !content.contains("<|"), "{answer}");
        assert!(thinking.ends_with("Enough.") && !thinking.contains("<|"), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    // What a grammar demands is of the answer, and holds there.
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [7] } }, "required": ["n"] });
    let answer = server.ask(CHAT, asked(json!({ "reasoning_budget_tokens": 4, "json_schema": schema })));
    let content: Value = serde_json::from_str(text(&answer, "/choices/0/message/content")).expect("the schema's JSON");
    assert_eq!(content, json!({ "n": 7 }), "{answer}");
}

/// Cut off anywhere in a mark, whole and streamed answers show the same, and nothing of the mark.
#[test]
fn an_answer_cut_off_in_a_mark_shows_nothing_of_it() {
    let harmony = tiny::tiny(Arch::GptOss, WeightType::F32);
    let llama = tiny::tiny(Arch::Llama, WeightType::F32);
    for (model, answer) in [
        (&harmony, "<|channel|>analysis<|message|>So<|end|><|start|>assistant<|channel|>final<|message|>4"),
        (&llama, "So.\n</think>\n\n4"),
    ] {
        let server = Server::start(&["-np", "1", "-m", model.to_str().unwrap()]);
        let n = server.ask("/tokenize", json!({ "content": answer }))["tokens"].as_array().unwrap().len();
        // GBNF names a special token only by its text, which any tokens spell.
        let grammar = format!("root ::= {}", json!(answer));
        for max_tokens in 1..n + 8 {
            let more = json!({ "grammar": grammar, "max_tokens": max_tokens, "reasoning_format": "auto" });
            let whole = server.ask(CHAT, says("x", more.clone()));
            let mut streamed = says("x", more);
            streamed["stream"] = true.into();
            let (chunks, _) = server.stream(CHAT, streamed);
            for field in ["content", "reasoning_content"] {
                let joined: String =
                    chunks.iter().map(|chunk| text(chunk, &format!("/choices/0/delta/{field}"))).collect();
                let said = text(&whole, &format!("/choices/0/message/{field}"));
                assert_eq!(joined, said, "{max_tokens} of {answer}: {field} of {whole}");
                assert!(!said.contains(['<', '|']), "{max_tokens} of {answer}: {field} of {whole}");
            }
        }
    }
}

#[test]
fn fields_that_would_change_an_answer_are_served_or_refused() {
    let server = Server::start(&["-np", "1"]);
    let completions = "/v1/completions";
    for (path, field, value) in [
        (completions, "suffix", json!("x")),
        (completions, "best_of", json!(3)),
        (completions, "lora", json!([{ "id": 0, "scale": 1.0 }])),
        (completions, "response_format", json!({ "type": "json_schema" })),
        (completions, "max_token", json!(1)),
        (completions, "messages", json!([{ "role": "user", "content": "x" }])),
        ("/completion", "n_indent", json!(2)),
        ("/completion", "echo", json!(true)),
        (CHAT, "functions", json!([{ "name": "f" }])),
        (CHAT, "lora", json!([{ "id": 0, "scale": 1.0 }])),
        (CHAT, "guided_json", json!({ "type": "object" })),
        (CHAT, "min_tokens", json!(3)),
        (CHAT, "repetition_penalty", json!(1.2)),
        (CHAT, "reasoning", json!({ "effort": "high" })),
        (CHAT, "thinking", json!({ "type": "enabled" })),
        (CHAT, "response_format", json!({ "schema": {} })),
        (CHAT, "response_format", json!({ "type": "json_schema" })),
        (CHAT, "mesages", json!([])), /* empty: asks for nothing */
        (CHAT, "maxTokens", json!(5)),
        (CHAT, "stop_sequences", json!(["x"])),
        (CHAT, "system", json!("Be brief.")),
    ] {
        let body = match path {
            CHAT => says("x", json!({ field: value })),
            _ => json!({ "prompt": "x", "max_tokens": 1, field: value }),
        };
        if field == "mesages" {
            server.ask(path, body);
            continue;
        }
        let message = refusal(&server, path, &body);
        assert!(message.starts_with(field), "{path} {field}: {message}");
    }
    for (path, field, value) in [
        ("/v1/messages", "tools", json!([{ "type": "web_search_20250305", "name": "web_search" }])),
        ("/v1/messages", "output_config", json!({ "efort": "low" })),
        ("/v1/messages", "mcp_servers", json!([{ "url": "x" }])),
        ("/v1/messages", "logprobs", json!(true)),
        ("/v1/messages", "thinking", json!({ "type": "enabled", "budget": 5 })),
        ("/v1/responses", "conversation", json!("conv_1")),
        ("/v1/responses", "prompt", json!({ "id": "pmpt_1" })),
        ("/v1/responses", "background", json!(true)),
        ("/v1/responses", "tools", json!([{ "type": "web_search" }])),
        ("/v1/responses", "previous_response_id", json!("resp_1")),
        ("/v1/responses", "text", json!({ "formt": {} })),
        ("/v1/responses", "top_logprobs", json!(3)),
    ] {
        let body = match path {
            "/v1/messages" => says("x", json!({ field: value })),
            _ => json!({ "input": "x", field: value }),
        };
        let message = refusal(&server, path, &body);
        assert!(message.starts_with(field), "{path} {field}: {message}");
    }
    // What changes nothing is taken, for clients send it.
    let idle = json!({ "user": "me", "metadata": { "a": "b" }, "store": true, "service_tier": "auto", "x_tag": 1 });
    server.ask(CHAT, says("x", idle));
    let enforced = json!({ "type": "json_schema", "schema": { "enum": ["blue"] } });
    let answer = server.ask(CHAT, says("x", json!({ "response_format": enforced, "reasoning_budget_tokens": 4 })));
    assert_eq!(text(&answer, "/choices/0/message/content"), "\"blue\"", "{answer}");
    let answer = server.ask(completions, json!({ "prompt": "x", "max_tokens": 20, "response_format": enforced }));
    assert_eq!(text(&answer, "/choices/0/text"), "\"blue\"");
    let config =
        json!({ "output_config": { "format": enforced }, "thinking": { "type": "enabled", "budget_tokens": 4 } });
    let answer = server.ask("/v1/messages", says("x", config));
    assert_eq!(text(&answer, "/content/1/text"), "\"blue\"", "{answer}");
}

#[test]
fn a_prompt_is_echoed_with_what_its_tokens_were_likely() {
    // Without flash attention, as `score` computes.
    let server = Server::start(&["-np", "2", "-fa", "off"]);
    let prompt = "Tom has 3 apples. Ann has 2";
    let ask = |more: Value| {
        let mut body = json!({ "prompt": prompt, "echo": true, "temperature": 0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ask("/v1/completions", body)["choices"][0].clone()
    };
    let echoed = ask(json!({ "max_tokens": 0, "logprobs": 2 }));
    assert_eq!(text(&echoed, "/text"), prompt);
    let logprobs = &echoed["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let n = list("tokens").len();
    assert!(list("token_logprobs")[0].is_null() && list("token_logprobs")[1..].iter().all(|p| p.as_f64() <= Some(0.0)));
    assert!(list("top_logprobs")[1..].iter().all(|top| top.as_object().unwrap().len() == 2), "{logprobs}");
    assert_eq!((list("text_offset").len(), list("top_logprobs").len()), (n, n));
    let joined: String = list("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    assert_eq!(joined, prompt);

    // The same as `score` says. Both round to 8 bits what they multiply, in other batches and another cache.
    let scored = program::run(program::stepflow(["score", "-p", prompt, "--json", "-t", "1", "-fa", "off"]));
    let scored: Value = serde_json::from_slice(&scored.stdout).unwrap();
    let nll = scored["tokens"].as_array().unwrap().iter().filter_map(|token| token["nll"].as_f64());
    for (p, nll) in list("token_logprobs")[1..].iter().zip(nll) {
        assert!((p.as_f64().unwrap() + nll).abs() <= 0.02, "{p} against {nll}");
    }

    // With an answer behind it, streamed or not, in several prompts and of several answers.
    let whole = ask(json!({ "max_tokens": 3, "logprobs": 0 }));
    assert!(text(&whole, "/text").starts_with(prompt) && text(&whole, "/text").len() > prompt.len());
    assert_eq!(whole["logprobs"]["tokens"].as_array().unwrap().len(), n + 3);
    let body =
        json!({ "prompt": prompt, "echo": true, "temperature": 0, "max_tokens": 3, "stream": true, "logprobs": 0 });
    let (chunks, _) = server.stream("/v1/completions", body);
    let streamed: String = chunks.iter().map(|chunk| text(chunk, "/choices/0/text")).collect();
    assert_eq!(streamed, text(&whole, "/text"));
    let tokens: usize =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["tokens"].as_array()).map(Vec::len).sum();
    assert_eq!(tokens, n + 3);
    let plain = ask(json!({ "max_tokens": 1, "prompt": ["x = ", "y = "], "n": 2 }));
    assert!(text(&plain, "/text").starts_with("x = ") && plain["logprobs"].is_null());
}

/// Text is held back while a character is not whole, at white space before a mark, and in the mark itself.
#[test]
fn streams_tell_the_probability_of_every_token_once() {
    let server = Server::start(&["-np", "1"]);
    let grammar = "root ::= \"a \u{1F917}\u{e9}  b\"";
    for more in [
        json!({ "max_tokens": 60 }),
        json!({ "max_tokens": 30, "reasoning_budget_tokens": 6 }),
        json!({ "max_tokens": 60, "reasoning_budget_tokens": 3, "grammar": grammar }),
        json!({ "max_tokens": 60, "stop": [" apples and"] }),
        json!({ "max_tokens": 1 }),
        json!({ "max_tokens": 13, "reasoning_budget_tokens": 6, "reasoning_budget_message": "  \n " }),
    ] {
        let mut body = says("Tom has 3 apples. How many apples does Tom have?", more);
        for (name, value) in [("logprobs", json!(true)), ("top_logprobs", json!(1)), ("cache_prompt", json!(false))] {
            body[name] = value;
        }
        let whole = server.ask(CHAT, body.clone());
        body["stream"] = true.into();
        let (chunks, _) = server.stream(CHAT, body.clone());
        let ids = |content: &Value| {
            content.as_array().into_iter().flatten().map(|entry| entry["id"].clone()).collect::<Vec<_>>()
        };
        let expected = ids(&whole["choices"][0]["logprobs"]["content"]);
        let streamed: Vec<_> =
            chunks.iter().flat_map(|chunk| ids(&chunk["choices"][0]["logprobs"]["content"])).collect();
        assert_eq!(streamed, expected, "{body}");
        let n = whole["usage"]["completion_tokens"].as_u64().unwrap() as usize;
        let ends = usize::from(whole["choices"][0]["finish_reason"] == "stop");
        assert!(expected.len() == n || expected.len() + ends == n, "{} of {n}: {whole}", expected.len());
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let server = Server::start(&["-np", "1"]);
    for (path, field, body) in [
        (CHAT, "max_tokens", says("x", json!({}))),
        (CHAT, "max_completion_tokens", says("x", json!({ "max_tokens": null }))),
        (CHAT, "top_k", says("x", json!({ "max_tokens": 1 }))),
        (CHAT, "seed", says("x", json!({ "max_tokens": 1 }))),
        (CHAT, "n", says("x", json!({ "max_tokens": 1, "n_cmpl": null }))),
        ("/v1/completions", "max_tokens", json!({ "prompt": "x" })),
        ("/v1/completions", "logprobs", json!({ "prompt": "x", "max_tokens": 1 })),
        ("/completion", "n_predict", json!({ "prompt": "x" })),
        ("/completion", "n_probs", json!({ "prompt": "x", "n_predict": 1 })),
        ("/v1/messages", "max_tokens", says("x", json!({}))),
        ("/v1/responses", "max_output_tokens", json!({ "input": "x" })),
    ] {
        let with = |value: Value| {
            let mut body = body.clone();
            body[field] = value;
            body
        };
        server.ask(path, with(json!(3.0)));
        server.ask(path, with(serde_json::from_str("3e0").unwrap()));
        let message = refusal(&server, path, &with(json!(3.5)));
        assert!(message.contains("3.5"), "{path} {field}: {message}");
    }
    let answer = server.ask("/completion", json!({ "prompt": [1.0, 2.0, 3.0], "n_predict": 4.0 }));
    assert_eq!((&answer["tokens_evaluated"], &answer["tokens_predicted"]), (&json!(3), &json!(4)));
    let budget = json!({ "thinking": { "type": "enabled", "budget_tokens": 5.0 }, "max_tokens": 12.0 });
    server.ask("/v1/messages", says("x", budget));
}

#[test]
fn text_of_messages_is_text() {
    let server = Server::start(&["-np", "1"]);
    let n = |messages: Value| {
        let counted = server.ask("/v1/chat/completions/input_tokens", json!({ "messages": messages }));
        counted["input_tokens"].as_u64().unwrap()
    };
    let user = |content: &str| json!([{ "role": "user", "content": content }]);
    for mark in ["</think>", "<think>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"] {
        let ordinary = n(user(&format!("a {mark} b"))) - n(user("a  b"));
        assert!(ordinary > 1, "{mark} costs {ordinary} tokens in a message");
        let rendered = server.ask("/apply-template", json!({ "messages": user(mark) }));
        assert!(text(&rendered, "/prompt").contains(&format!("user\n{mark}<|im_end|>")), "{rendered}");
        let quoted = json!([
            { "role": "user", "content": "x" }, { "role": "assistant", "content": format!("write {mark} here") },
            { "role": "user", "content": "y" },
        ]);
        let rendered = server.ask("/apply-template", json!({ "messages": quoted }));
        assert!(text(&rendered, "/prompt").contains(&format!("write {mark} here")), "{rendered}");
    }
    // Nor do they end thinking, or begin it anew: the tracker of steps sees the prompt's own mark alone.
    let answer = server.ask(CHAT, says("What of </think> and <|im_end|>?", json!({ "max_tokens": 12 })));
    let map = server.ask("/v1/saliency", json!({ "id": answer["id"], "layers": [0] }));
    let segments: Vec<_> = map["steps"].as_array().unwrap().iter().map(|step| text(step, "/segment")).collect();
    assert_eq!(segments[0], "question");
    assert!(segments[1..].iter().all(|segment| *segment != "question") && segments.len() > 1, "{segments:?}");

    let prompt = |path: &str, body: Value| text(&server.ask(path, body), "/prompt").to_owned();
    let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
    let of_parts = prompt("/apply-template", json!({ "messages": [{ "role": "user", "content": parts }] }));
    assert!(of_parts.contains("user\na\nb<|im_end|>"), "{of_parts}");
    let systems = json!([{ "role": "system", "content": "One." }, { "role": "developer", "content": "Two." }, { "role": "user", "content": "x" }]);
    let of_systems = prompt("/apply-template", json!({ "messages": systems }));
    assert_eq!(of_systems.matches("<|im_start|>system").count(), 1, "{of_systems}");
    assert!(of_systems.contains("One.\n\nTwo."), "{of_systems}");
}

#[test]
fn calls_in_the_history_have_whole_arguments() {
    let server = Server::start(&["-np", "1", "--chat-template", templates::TAGS]);
    let with = |arguments: Value| {
        let call = json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": arguments } });
        let messages = json!([
            { "role": "user", "content": "x" }, { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "1", "content": "y" },
        ]);
        json!({ "messages": messages, "max_tokens": 1 })
    };
    for whole in [json!("{\"a\": 1}"), json!(""), json!(null), json!({ "a": 1 })] {
        server.ask(CHAT, with(whole));
    }
    for cut in ["{\"a\": ", "{", "{\"a\": \"b", "[1,"] {
        let message = refusal(&server, CHAT, &with(json!(cut)));
        assert!(message.starts_with("messages[1].tool_calls[0].function.arguments: "), "{message}");
    }
    let item = json!([{ "type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"a\"" }]);
    let message = refusal(&server, "/v1/responses", &json!({ "input": item }));
    assert!(message.starts_with("input[0].arguments: "), "{message}");
}

/// A demanded call begins with the first token after thinking, whatever the model would rather say.
#[test]
fn a_required_call_comes_at_once() {
    let tool = json!({ "type": "function", "function": {
        "name": "add", "parameters": { "type": "object", "properties": { "a": { "enum": [1] } }, "required": ["a"] },
    } });
    for template in [templates::TAGS, templates::BARE] {
        let server = Server::start(&["-np", "1", "--chat-template", template]);
        for choice in [json!("required"), json!({ "type": "function", "function": { "name": "add" } })] {
            let more = json!({ "tools": [tool], "tool_choice": choice, "max_tokens": 200 });
            let answer = server.ask(CHAT, says("How many apples does Tom have?", more));
            let message = &answer["choices"][0]["message"];
            assert_eq!(message["tool_calls"][0]["function"]["name"], "add", "{answer}");
            assert_eq!(text(message, "/content"), "", "{answer}");
        }
    }
}

/// The chat renders as the server does: `enable_thinking` is true unless said otherwise, and what Python's engine knows is
/// known.
#[test]
fn the_chat_and_the_server_render_alike() {
    let model = tiny::tiny(Arch::Qwen3, WeightType::F32);
    let model = model.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let loop_of = |body: &str| format!("{{% for message in messages %}}{body}{{% endfor %}}");
    for (i, source) in [
        loop_of("{% generation %}{{ message.content }}{% endgeneration %}"),
        loop_of("{{ message | tojson(ensure_ascii=False) }}"),
        loop_of("{{ message.content }}") + "{% if enable_thinking %}<think>{% else %}</think>{% endif %}",
        loop_of("{{ message.content }}") + "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}",
        loop_of("{{ message.content ~ none }}"),
        loop_of("{{ message['role'].upper() + ': ' + message.content.strip() }}{{ '\n' }}"),
        loop_of("{{ '%s-%s' | format(message.role, message.content) }}"),
        loop_of("{% set c = message.content.split('n')[-1] %}{{ c | trim }}{{ loop.index0 }}"),
        loop_of("{{ message.content }}")
            + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}".to_owned() + &loop_of("{{ m(message.content) }}"),
        "chatml".to_owned(),
        "llama3".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let trace = folder.path().join(format!("{i}.json"));
        let flags = ["-m", model, "-p", "an \u{e9}ne", "-st", "-n", "1", "-t", "1", "-c", "256", "--chat-template"];
        let flags = [&flags[..], &[&source, "--save-trace", trace.to_str().unwrap()]].concat();
        let chatted = program::run(program::stepflow(flags));
        assert_eq!(chatted.code(), Some(0), "{source}: {}", chatted.stderr);
        let trace = stepflow::trace::TraceFile::read(&std::fs::read(trace).unwrap()).unwrap();
        let read: Vec<u8> = trace.tokens.iter().flat_map(|token| token.piece.clone()).collect();
        let server = Server::start(&["-np", "1", "-m", model, "--chat-template", &source]);
        let messages = json!([{ "role": "user", "content": "an \u{e9}ne" }]);
        let rendered = server.ask("/apply-template", json!({ "messages": messages }));
        let rendered = text(&rendered, "/prompt").to_owned();
        assert!(!rendered.is_empty(), "{source}");
        assert!(String::from_utf8_lossy(&read).starts_with(&rendered), "{source}: {rendered:?}");
    }
}

/// The embedded model's template knows no `enable_thinking`; that thinking is not wanted holds all the same.
#[test]
fn thinking_that_is_not_wanted_is_closed_at_once() {
    let server = Server::start(&["-np", "1"]);
    for more in [
        json!({ "reasoning_effort": "none" }),
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
        json!({ "reasoning_budget_tokens": 0 }),
    ] {
        let answer = server.ask(CHAT, says("Tom has 3 apples. How many apples does Tom have?", more.clone()));
        let message = &answer["choices"][0]["message"];
        assert_eq!(text(message, "/reasoning_content"), "", "{more}: {answer}");
        assert!(!text(message, "/content").is_empty(), "{more}: {answer}");
    }
    let answer = server.ask("/v1/messages", says("Tom has 3 apples.", json!({ "thinking": { "type": "disabled" } })));
    assert_eq!(text(&answer, "/content/0/type"), "text", "{answer}");
    let message = refusal(&server, CHAT, &says("x", json!({ "reasoning_budget": 3 })));
    assert!(message.contains("reasoning_budget_tokens"), "{message}");
}
