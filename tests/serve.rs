//! `stepflow serve` as its clients see it.

mod program;
mod serving;
mod templates;

use serde_json::{Value, json};
use serving::Server;

const QUESTION: &str = "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?";

fn chat(more: Value) -> Value {
    let mut body =
        json!({ "messages": [{ "role": "user", "content": QUESTION }], "temperature": 0, "max_tokens": 100 });
    // With one slot (-np 1) and nothing taken from the cache, the same request gives the same bits.
    body["cache_prompt"] = false.into();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_chat_streamed_is_the_same_as_a_whole_one_and_thinking_is_apart() {
    let server = Server::start(&["-np", "1"]);
    let whole = server.ask("/v1/chat/completions", chat(json!({})));
    let message = &whole["choices"][0]["message"];
    let (thinking, content) = (text(message, "/reasoning_content"), text(message, "/content"));
    assert!(!thinking.is_empty() && content.contains("\\boxed"), "{whole}");
    assert!(!thinking.contains("think>") && !content.contains("think>"), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let usage = &whole["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let (chunks, done) = server.stream("/v1/chat/completions", chat(options));
    assert!(done);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": null }));
    let joined = |field: &str| -> String {
        chunks.iter().map(|chunk| text(chunk, &format!("/choices/0/delta/{field}"))).collect()
    };
    assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), (thinking, content));
    let last = chunks.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &usage["total_tokens"]));
    assert!(last["timings"]["predicted_n"].as_u64() > Some(10), "{last}");
}

#[test]
fn several_answers_probabilities_and_stop_texts() {
    let server = Server::start(&["-np", "2"]);
    let two = server.ask("/v1/chat/completions", chat(json!({ "n": 2, "temperature": 1.5, "seed": 7 })));
    let content = |i: usize| text(&two, &format!("/choices/{i}/message/reasoning_content"));
    assert!(content(0) != content(1) && !content(1).is_empty(), "{two}");
    let again = server.ask("/v1/chat/completions", chat(json!({ "temperature": 1.5, "seed": 7 })));
    assert_eq!(text(&again, "/choices/0/message/reasoning_content"), content(0), "a seed gives an answer again");

    let likely =
        server.ask("/v1/chat/completions", chat(json!({ "logprobs": true, "top_logprobs": 3, "max_tokens": 4 })));
    let tokens = likely["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 4, "{likely}");
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"]), (3, &token["id"]), "greedy takes the likeliest: {token}");
        let sum: f64 = top.iter().map(|entry| entry["logprob"].as_f64().unwrap().exp()).sum();
        assert!(sum > 0.0 && sum < 1.0 + 1e-6, "{token}");
    }

    let stopped = server.ask("/completion", json!({ "prompt": "<think>\nTom has 3", "temperature": 0, "stop": ["."] }));
    assert!(!text(&stopped, "/content").contains('.'), "{stopped}");
    assert_eq!((text(&stopped, "/stop_type"), text(&stopped, "/stopping_word")), ("word", "."));
}

#[test]
fn answers_keep_to_schemas_grammars_and_tools() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object", "required": ["n", "ok"], "additionalProperties": false,
        "properties": { "n": { "type": "integer", "minimum": 0, "maximum": 99 }, "ok": { "type": "boolean" } },
    });
    let format = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
    let answer = server.ask("/v1/chat/completions", chat(json!({ "response_format": format })));
    let object: Value = serde_json::from_str(text(&answer, "/choices/0/message/content")).expect("the schema's JSON");
    assert!(object["n"].is_u64() && object["ok"].is_boolean(), "{answer}");

    let gbnf = json!({ "prompt": "x", "grammar": "root ::= \"yes\" | \"no\"", "n_predict": 20 });
    assert!(["yes", "no"].contains(&text(&server.ask("/completion", gbnf), "/content")));

    // The embedded model's own template has no tools.
    let server = Server::start(&["-np", "1", "--chat-template", templates::BARE]);
    let tool = json!({ "type": "function", "function": {
        "name": "add", "parameters": { "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] },
    } });
    let asked = json!({ "tools": [tool], "tool_choice": "required", "max_tokens": 300 });
    let whole = server.ask("/v1/chat/completions", chat(asked.clone()));
    let call = &whole["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "add", "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    let arguments: Value = serde_json::from_str(text(call, "/function/arguments")).unwrap();
    assert!(arguments["a"].is_i64(), "{whole}");
    let mut streamed = chat(asked);
    streamed["stream"] = true.into();
    let (chunks, _) = server.stream("/v1/chat/completions", streamed);
    let calls = chunks.iter().flat_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0"));
    let parts: String = calls.map(|call| text(call, "/function/arguments")).collect();
    assert_eq!(parts, text(call, "/function/arguments"));
}

#[test]
fn stepflow_is_switched_by_the_request_and_says_what_it_did() {
    let server = Server::start(&["-np", "2"]);
    let ask = |stepflow: Value| server.ask("/v1/chat/completions", chat(json!({ "stepflow": stepflow })));
    assert!(ask(json!(false))["timings"]["stepflow"].is_null());
    let paper = ask(json!(true));
    assert!(paper["timings"]["stepflow"]["total"]["rows_bridged"].as_u64() > Some(0), "{paper}");
    assert!(paper["timings"]["stepflow"]["total"]["injections"].as_u64() > Some(0), "{paper}");
    let narrow = ask(json!({ "oeb": true, "oeb_layers": "1", "tau_max": 0.3 }));
    let layers = narrow["timings"]["stepflow"]["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| &layer["layer"]).collect::<Vec<_>>(), [&json!(1)], "{narrow}");
    for wrong in [json!({ "tau_max": 2 }), json!({ "oeb_layers": "0-99" }), json!({ "taumax": 0.1 }), json!("yes")] {
        server
            .post("/v1/chat/completions", &chat(json!({ "stepflow": wrong })))
            .assert_error(400, "invalid_request_error");
    }
    // `true` is what the server's flags say, where they turn a repair on.
    let oeb = Server::start(&["-np", "1", "--oeb"]);
    for stepflow in [json!(null), json!(true), json!({}), json!({ "tau_max": 0.3 })] {
        let answer = oeb.ask("/v1/chat/completions", chat(json!({ "stepflow": stepflow })));
        let total = &answer["timings"]["stepflow"]["total"];
        assert!(total["rows_bridged"].as_u64() > Some(0) && total["injections"] == 0, "{stepflow}: {total}");
    }
}

/// What runs beside a request, with other settings, changes nothing of it beyond what batching alone changes.
#[test]
fn requests_of_different_settings_run_side_by_side_as_each_alone() {
    let server = Server::start(&["-np", "8", "-c", "8192", "-fa", "off"]);
    let settings = [
        json!(false),
        json!(true),
        json!({ "tau_max": 0.5 }),
        json!({ "smi": true, "alpha": 0.5 }),
        json!({ "oeb": true, "oeb_layers": "0-1", "tau_max": 0.3 }),
        json!({ "oeb_layers": "0-5", "smi_layers": "3-11", "alpha": 0.3, "smi_window": "step" }),
        json!({ "tau_max": 1.0, "alpha": 1.0 }),
        json!({ "oeb": true, "tau_max": 0.05 }),
    ];
    let ask = |i: usize, stepflow: &Value| {
        let prompt = format!("<|im_start|>user\nTom has {} apples.<|im_end|>\n<|im_start|>assistant\n<think>\n", i + 2);
        let body = json!({
            "prompt": prompt, "temperature": 0, "max_tokens": 60, "stepflow": stepflow, "logprobs": 5,
            "cache_prompt": false,
        });
        server.ask("/v1/completions", body)["choices"][0].clone()
    };
    let differences = |of: &(dyn Fn(usize) -> Value + Sync)| -> (Vec<String>, Vec<f64>) {
        let alone: Vec<_> = (0..settings.len()).map(of).collect();
        let together: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..settings.len()).map(|i| scope.spawn(move || of(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let content = |choice: &Value| choice["logprobs"]["content"].clone();
        let texts = alone.iter().map(|choice| text(choice, "/text").to_owned()).collect();
        (texts, alone.iter().zip(&together).map(|(a, b)| serving::difference(&content(a), &content(b))).collect())
    };
    // Times 8, for repairs pass differences on to later layers; and what rounding of the result itself can give.
    let (plain, noise) = differences(&|i| ask(i, &json!(false)));
    let tolerance = 8.0 * noise.into_iter().fold(0.0, f64::max) + 1e-3;
    let (own, found) = differences(&|i| ask(i, &settings[i]));
    assert!(found.iter().all(|&difference| difference <= tolerance), "{found:?}, {tolerance} allowed");
    assert!(
        own.iter().zip(&plain).filter(|(own, plain)| own != plain).count() > 4,
        "the settings do something: {own:?}"
    );
}

#[test]
fn a_prompt_that_begins_the_same_is_not_decoded_again() {
    let server = Server::start(&["-np", "1", "-fa", "off"]);
    let probable = |stepflow: bool, cache_prompt: bool| {
        let more = json!({ "stepflow": stepflow, "cache_prompt": cache_prompt, "logprobs": true, "top_logprobs": 5 });
        server.ask("/v1/chat/completions", chat(more))
    };
    let mut noise = 0.0;
    for stepflow in [false, true] {
        let (first, second) = (probable(stepflow, false), probable(stepflow, true));
        let timings = &second["timings"];
        assert!(timings["cache_n"].as_u64() > timings["prompt_n"].as_u64(), "{second}");
        let content = |answer: &Value| answer["choices"][0]["logprobs"]["content"].clone();
        let difference = serving::difference(&content(&first), &content(&second));
        // What decoding a prompt in two parts changes of the plain model, times 8 as above.
        assert!(!stepflow || difference <= 8.0 * noise + 1e-3, "{difference}, where the plain model shows {noise}");
        // The noise of 8-bit activations; a prefix of another prompt's is far from it.
        assert!(difference <= 0.3, "{difference}");
        noise = difference;
    }
    assert_eq!(probable(false, false)["timings"]["cache_n"], 0);
}

#[test]
fn anthropic_and_responses_clients_get_their_own_forms() {
    let server = Server::start(&[]);
    let ask = json!({ "model": "m", "max_tokens": 100, "temperature": 0, "messages": [{ "role": "user", "content": QUESTION }] });
    let message = server.ask("/v1/messages", ask.clone());
    let kinds: Vec<_> = message["content"].as_array().unwrap().iter().map(|block| text(block, "/type")).collect();
    assert_eq!((kinds, text(&message, "/stop_reason")), (vec!["thinking", "text"], "end_turn"), "{message}");
    let mut streamed = ask;
    streamed["stream"] = true.into();
    let (events, _) = server.stream("/v1/messages", streamed);
    let kinds: Vec<_> = events.iter().map(|event| text(event, "/type")).collect();
    assert_eq!((kinds[0], kinds[1], *kinds.last().unwrap()), ("message_start", "content_block_start", "message_stop"));
    let said: String = events.iter().map(|event| text(event, "/delta/text")).collect();
    assert_eq!(said, text(&message, "/content/1/text"));
    server.post("/v1/messages", &json!({ "max_tokens": 1 })).assert_error(400, "invalid_request_error");
    for kind in ["text", "image"] {
        let result = json!([{ "type": "tool_result", "tool_use_id": "a", "content": [{ "type": kind, "text": "x" }] }]);
        let ask = json!({ "max_tokens": 1, "messages": [{ "role": "user", "content": result }] });
        assert_eq!(server.post("/v1/messages", &ask).status, if kind == "text" { 200 } else { 400 });
    }

    let ask = json!({ "input": QUESTION, "temperature": 0, "max_output_tokens": 100 });
    let response = server.ask("/v1/responses", ask.clone());
    assert_eq!(text(&response, "/output/1/content/0/text"), said, "{response}");
    let n_thinking = response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64();
    assert!(n_thinking > Some(5) && n_thinking < response["usage"]["output_tokens"].as_u64(), "{response}");
    let mut streamed = ask;
    streamed["stream"] = true.into();
    let (events, _) = server.stream("/v1/responses", streamed);
    let last = events.last().unwrap();
    assert_eq!(text(last, "/type"), "response.completed");
    assert_eq!(text(last, "/response/output/1/content/0/text"), said);
}

/// The steps of thinking as the map of an answer has them are those that its stream tells.
#[test]
fn streams_tell_where_steps_begin() {
    let server = Server::start(&[]);
    let mut n_steps = 0;
    for question in [QUESTION, "Rex has 4 coins. Tom has 9 coins more. How many coins do they have in all?", "Hi"] {
        let ask = json!({ "messages": [{ "role": "user", "content": question }], "stream": true, "return_steps": true, "temperature": 0 });
        let (events, _) = server.stream("/v1/chat/completions", ask.clone());
        let mut told: Vec<String> = Vec::new();
        for event in &events {
            if let Some(number) = event["thinking_step"].as_u64() {
                assert_eq!(number as usize, told.len() + 1, "{event}");
                told.push(String::new());
            }
            let thought =
                event.pointer("/choices/0/delta/reasoning_content").and_then(Value::as_str).unwrap_or_default();
            if !thought.is_empty() {
                told.last_mut().expect("a step before the first thought").push_str(thought);
            }
        }
        // What begins with the mark that closes thinking has no text.
        told.retain(|step| !step.trim().is_empty());
        let map = server.ask("/v1/saliency", json!({ "id": events[0]["id"] }));
        let steps: Vec<&Value> =
            map["steps"].as_array().unwrap().iter().filter(|step| step["segment"] == "thinking").collect();
        assert_eq!(told.len(), steps.len(), "{told:?}: {steps:?}");
        for (told, step) in told.iter().zip(&steps) {
            assert_eq!(told.trim(), text(step, "/text").trim().trim_end_matches("</think>").trim());
        }
        assert_eq!(map["steps"][1], *steps[0], "the question is step 0");
        n_steps += steps.len();
        let mut unasked = ask;
        unasked["return_steps"] = false.into();
        let (events, _) = server.stream("/v1/chat/completions", unasked);
        assert!(events.iter().all(|event| event["thinking_step"].is_null()));
    }
    assert!(n_steps > 3, "{n_steps}");
    for path in ["/completion", "/v1/completions"] {
        let ask = json!({ "prompt": "<think>\nLet me see.", "n_predict": 40, "stream": true, "return_steps": true });
        let (events, _) = server.stream(path, ask);
        assert_eq!(events.iter().find_map(|event| event["thinking_step"].as_u64()), Some(1), "{path}");
    }
    let refused = server.post("/v1/responses", &json!({ "input": "Hi", "stream": true, "return_steps": true }));
    assert!(refused.status == 400 && refused.body.contains("return_steps"), "{refused:?}");
}

#[test]
fn llama_servers_additions_are_for_who_asks_for_them() {
    let server = Server::start(&["--verbose", "-fa", "off"]);
    let ask = chat(json!({ "stream": true, "timings_per_token": true, "return_progress": true }));
    let (events, _) = server.stream("/v1/chat/completions", ask);
    let first = &events[0];
    assert!(first["choices"][0]["delta"]["role"] == "assistant" && first["timings"].is_null(), "{first}");
    assert_eq!(first["prompt_progress"]["processed"], 0, "{first}");
    assert!(events[events.len() / 2]["timings"]["predicted_n"].is_u64(), "{events:?}");
    let ask = json!({ "input": "hi", "max_output_tokens": 9, "stream": true, "timings_per_token": true, "return_progress": true });
    let (events, _) = server.stream("/v1/responses", ask);
    let with = |key: &str| -> Vec<_> {
        events.iter().filter(|event| !event[key].is_null()).map(|event| text(event, "/type")).collect()
    };
    assert!(with("prompt_progress").contains(&"response.in_progress"), "{events:?}");
    assert!(with("timings").iter().any(|kind| kind.ends_with(".delta")), "{events:?}");

    let whole = server.ask("/v1/chat/completions", chat(json!({ "max_tokens": 1 })));
    assert!(text(&whole, "/__verbose/prompt").ends_with("<think>\n"), "{whole}");
    let ask = |stepflow: bool| {
        let messages = json!([{ "role": "user", "content": QUESTION }]);
        server.ask("/v1/messages", json!({ "max_tokens": 50, "messages": messages, "stepflow": stepflow }))
    };
    assert!(ask(false)["timings"].is_null(), "Anthropic's answers have no such field");
    assert!(!ask(true)["timings"]["stepflow"].is_null());
}

#[test]
fn tokens_templates_and_the_servers_own_affairs() {
    let server = Server::start(&["--metrics", "-np", "2", "--alias", "b,a", "-c", "2048"]);
    let tokens = server.ask("/tokenize", json!({ "content": "Tom has 3" }))["tokens"].clone();
    assert_eq!(server.ask("/detokenize", json!({ "tokens": tokens }))["content"], "Tom has 3");
    let prompt = server.ask("/apply-template", chat(json!({})));
    assert!(text(&prompt, "/prompt").ends_with("<|im_start|>assistant\n<think>\n"), "{prompt}");
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    let props = server.get("/props").json();
    assert_eq!((&props["total_slots"], &props["default_generation_settings"]["n_ctx"]), (&json!(2), &json!(1024)));
    assert_eq!(props["stepflow"]["works"], "inside flash attention");
    let models = server.get("/v1/models").json();
    assert_eq!((text(&models, "/data/0/id"), &models["data"][0]["aliases"]), ("a", &json!(["a", "b"])));
    assert_eq!(server.get("/v1/models/b").json()["id"], "a");
    server.get("/v1/models/org/c").assert_error(404, "not_found_error");
    assert_eq!(server.get("/slots").json().as_array().unwrap().len(), 2);
    for _ in 0..5 {
        server.ask("/completion", json!({ "prompt": "x", "n_predict": 1 }));
        let metrics = server.get("/metrics").body;
        assert!(metrics.contains("\nllamacpp:requests_processing 0\n"), "an answer is over when its client has it");
    }
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("\nllamacpp:tokens_predicted_total 5\n"), "{metrics}");
    assert!(server.get("/").body.starts_with("<!doctype html>"));
    server.get("/nowhere").assert_error(404, "not_found_error");
    server.get("/completion").assert_error(405, "invalid_request_error");
    server.post("/v1/embeddings", &json!({})).assert_error(501, "not_supported_error");
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let server = Server::start(&["-np", "1"]);
    for (path, body, says) in [
        ("/v1/chat/completions", json!({}), "'messages' is required"),
        ("/v1/chat/completions", json!({ "messages": "hi" }), "messages: "),
        ("/v1/chat/completions", chat(json!({ "temperature": "hot" })), "temperature: "),
        ("/v1/chat/completions", chat(json!({ "response_format": { "type": "xml" } })), "response_format"),
        ("/v1/chat/completions", chat(json!({ "n": 0 })), "n: "),
        ("/completion", json!({ "prompt": 5 }), "prompt"),
        ("/completion", json!({ "prompt": [999_999_999] }), "expected a token"),
        ("/completion", json!({ "prompt": "x", "grammar": "root ::= (" }), "grammar"),
        ("/completion", json!({ "prompt": "x", "repeat_penalty": 0 }), "repeat_penalty"),
        ("/completion", json!({ "prompt": "x", "json_schema": { "type": "nonsense" } }), ""),
        ("/completion", json!({ "prompt": "" }), "empty"),
    ] {
        let response = server.post(path, &body);
        response.assert_error(400, "invalid_request_error");
        assert!(text(&response.json(), "/error/message").contains(says), "{body}: {response:?}");
    }
    let long = "apple ".repeat(5000);
    let response = server.post("/completion", &json!({ "prompt": long }));
    response.assert_error(400, "exceed_context_size_error");
    let error = &response.json()["error"];
    assert!(error["n_prompt_tokens"].as_u64() > error["n_ctx"].as_u64() && error["n_ctx"].is_u64(), "{error}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn step_maps_of_answers_at_once_and_as_jobs() {
    let server = Server::start(&[]);
    let answer = server.ask("/v1/chat/completions", chat(json!({})));
    let id = text(&answer, "/id");
    let maps = server.ask("/v1/saliency", json!({ "id": id }));
    let n = maps["steps"].as_array().unwrap().len();
    let rows = maps["layers"][0]["maps"][0]["values"].as_array().unwrap();
    assert!(n > 2 && rows.len() == n && rows[n - 1].as_array().unwrap().len() == n, "{maps}");
    let csv = server.post("/v1/saliency", &json!({ "id": id, "format": "csv", "layers": [0] })).body;
    assert!(csv.starts_with("run_id,method,layer,query_step,key_step,"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + n * (n + 1) / 2);

    let response = server.post("/v1/saliency", &json!({ "id": id, "method": "gradient", "layers": [0] }));
    assert_eq!(response.status, 202, "{response:?}");
    let job = text(&response.json(), "/id").to_owned();
    let found = loop {
        let found = server.get(&format!("/v1/saliency/{job}")).json();
        match text(&found, "/status") {
            "waiting" | "running" => std::thread::sleep(std::time::Duration::from_millis(20)),
            _ => break found,
        }
    };
    assert_eq!(text(&found, "/layers/0/maps/0/metric"), "saliency", "{found}");

    let probe = server.ask_accepted("/v1/saliency", json!({ "id": id, "method": "probe" }));
    let path = format!("/v1/saliency/{}", text(&probe, "/id"));
    assert_eq!(server.request("DELETE", &path, &[], "").json()["status"], "cancelled");
    server.get(&path).assert_error(404, "not_found_error");
    server.post("/v1/saliency", &json!({ "id": "nobody's" })).assert_error(404, "not_found_error");
    server
        .post("/v1/saliency", &json!({ "trace": { "stepflow_trace": 1 } }))
        .assert_error(400, "invalid_request_error");
}

/// A trace of `n` tokens, a step each.
fn trace_of_short_steps(n: usize) -> Value {
    let tokens = vec![json!({ "id": 5, "piece": "a", "segment": "thinking" }); n];
    let steps: Vec<_> = (0..n).map(|i| json!({ "segment": "thinking", "start": i, "end": i + 1 })).collect();
    json!({
        "stepflow_trace": 1, "model": {}, "family": "think-tags",
        "markers": { "think_start": "<think>", "think_end": "</think>" }, "tokens": tokens, "steps": steps,
    })
}

#[test]
fn attention_waits_for_no_job_and_a_cancelled_job_is_gone() {
    let server = Server::start(&[]);
    let (short, long) = (trace_of_short_steps(3), trace_of_short_steps(150));
    let probe = |trace: &Value| json!({ "trace": trace, "method": "probe" });
    let submit = |trace: &Value| {
        let job = server.ask_accepted("/v1/saliency", probe(trace));
        format!("/v1/saliency/{}", text(&job, "/id"))
    };
    let status = |path: &str| text(&server.get(path).json(), "/status").to_owned();
    // Some 270,000 forwards: it outlasts the test.
    let running = submit(&long);
    while status(&running) == "waiting" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let attention = || server.ask("/v1/saliency", json!({ "trace": short }));
    assert_eq!(text(&attention(), "/layers/11/maps/0/metric"), "attention");

    // More than tokio has threads that may block.
    for _ in 0..600 {
        let path = submit(&short);
        server.request("DELETE", &path, &[], "");
        server.get(&path).assert_error(404, "not_found_error");
    }
    let waiting: Vec<_> = (0..8).map(|_| submit(&short)).collect();
    assert!(waiting.iter().all(|path| status(path) == "waiting"));
    server.post("/v1/saliency", &probe(&short)).assert_error(429, "rate_limit_error");
    attention();
    server.request("DELETE", &waiting[3], &[], "");
    submit(&short);
    assert_eq!(status(&running), "running", "nothing of this has waited for it");

    server.request("DELETE", &running, &[], "");
    while status(&waiting[7]) != "done" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn maps_are_of_layers_that_exist_and_of_limited_size() {
    let server = Server::start(&[]);
    let refused = |body: Value, says: &str| {
        let response = server.post("/v1/saliency", &body);
        response.assert_error(400, "invalid_request_error");
        assert!(text(&response.json(), "/error/message").contains(says), "{response:?}");
    };
    let (short, long) = (trace_of_short_steps(3), trace_of_short_steps(600));
    refused(json!({ "trace": short, "layers": [] }), "layers: expected");
    refused(json!({ "trace": short, "layers": [0, 12, 3] }), "layers: layer 12");
    let layers = [vec![7; 100_000], vec![2]].concat();
    let maps = server.ask("/v1/saliency", json!({ "trace": short, "layers": layers }));
    let layers: Vec<_> = maps["layers"].as_array().unwrap().iter().map(|layer| &layer["layer"]).collect();
    assert_eq!(layers, [2, 7]);

    // 600 x 600 cells of 12 layers, and of 3 layers with 5 numbers each.
    refused(json!({ "trace": long }), "at most 4000000 cells, found 4320000");
    refused(json!({ "trace": long, "method": "probe", "layers": [0, 1, 2] }), "at most 4000000 cells, found 5400000");
    let maps = server.ask("/v1/saliency", json!({ "trace": long, "layers": [0] }));
    assert_eq!(maps["layers"][0]["maps"][0]["values"][599].as_array().unwrap().len(), 600);
}
