//! Who and what `stepflow serve` refuses, and that it lives on.

mod common;
mod program;
mod serving;
mod tiny;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use serving::{Response, Server};
use tiny::{Arch, WeightType};

const KEY: &str = "sk-one-of-the-keys";

fn lives(server: &Server) {
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn wrong_missing_and_almost_right_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("other\n\n{KEY}\n")).unwrap();
    let server = Server::start(&["--api-key-file", file.to_str().unwrap(), "--metrics"]);
    let body = json!({ "prompt": "x", "n_predict": 1 }).to_string();
    let ask = |headers: &[(&str, &str)]| server.request("POST", "/completion", headers, &body);
    for headers in [
        &[][..],
        &[("Authorization", "Bearer ")],
        &[("Authorization", KEY)],
        &[("Authorization", "Bearer sk-one-of-the-key")],
        &[("Authorization", "Bearer sk-one-of-the-keyss")],
        &[("Authorization", "Basic sk-one-of-the-keys")],
        &[("X-Api-Key", "Other")],
        &[("Cookie", KEY)],
        // The first of two counts; a later one does not make up for it.
        &[("Authorization", "Bearer wrong"), ("Authorization", "Bearer sk-one-of-the-keys")],
    ] {
        ask(headers).assert_error(401, "authentication_error");
    }
    // Used again and again a key stays good.
    for _ in 0..3 {
        assert_eq!(ask(&[("Authorization", &format!("Bearer {KEY}"))]).status, 200);
        assert_eq!(ask(&[("X-Api-Key", "other")]).status, 200);
    }
    for path in ["/v1/models", "/props", "/slots", "/metrics", "/nowhere", "/v1/saliency/x"] {
        server.get(path).assert_error(401, "authentication_error");
    }
    for path in ["/health", "/v1/health", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn a_key_that_no_header_could_carry_is_refused_at_the_start() {
    for key in ["with space", "\u{e9}"] {
        let outcome = program::run(program::stepflow(["serve", "--port", "0", "--api-key", key]));
        outcome.assert_fails(2, "visible ASCII");
    }
}

#[test]
fn bodies_and_heads_that_are_too_large() {
    let server = Server::start(&["--max-body", "1000"]);
    let body = json!({ "prompt": "x".repeat(2000) });
    server.post("/completion", &body).assert_error(413, "invalid_request_error");
    // Said to be larger than anything, and never sent.
    let head = "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n{";
    server.raw(head.as_bytes()).assert_error(413, "invalid_request_error");
    let response = server
        .raw(format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(1_000_000)).as_bytes());
    assert_eq!(response.status, 431, "{response:?}");
    let many: String = (0..200).map(|i| format!("X-{i}: y\r\n")).collect();
    let response = server.raw(format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").as_bytes());
    assert_eq!(response.status, 431, "{response:?}");
    lives(&server);
}

#[test]
fn small_requests_that_would_take_much_are_refused() {
    let server = Server::start(&["-np", "1"]);
    let rules: String = (0..18_000).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    for body in [
        // Deep enough to overflow a stack.
        json!({ "prompt": "a", "grammar": format!("root ::= r0\n{rules}r18000 ::= \"a\"\n") }),
        json!({ "prompt": vec!["a"; 1000], "n": 128 }),
        json!({ "prompt": "a", "logit_bias": vec![json!([5, 1.0]); 100_000] }),
        json!({ "prompt": "a", "logit_bias": { "x ".repeat(100_000): 1 } }),
        json!({ "prompt": "a", "samplers": "t".repeat(100_000) }),
        json!({ "prompt": "a", "n_probs": 1_000_000 }),
        json!({ "prompt": "a", "dry_sequence_breakers": ["\0"] }),
        json!({ "prompt": "a", "dry_sequence_breakers": vec!["x"; 1000] }),
        json!({ "prompt": "a", "stop": vec!["x"; 1000] }),
        json!({ "prompt": "a", "repeat_last_n": -5 }),
    ] {
        server.post("/completion", &body).assert_error(400, "invalid_request_error");
    }
    let doubling: String = (0..50).map(|i| format!("r{i} ::= r{} | r{}\n", i + 1, i + 1)).collect();
    for grammar in [
        "root ::= ".to_owned() + &"(".repeat(60_000),
        format!("root ::= r0\n{doubling}r50 ::= \"a\"\n"),
        "root ::= b root\nb ::= c\nc ::= \"\"\n".to_owned(),
        "root ::= \"x\"{3,2}\n".to_owned(),
        "a ::= root{0}\n".to_owned(),
    ] {
        server
            .post("/completion", &json!({ "prompt": "a", "grammar": grammar }))
            .assert_error(400, "invalid_request_error");
    }
    // An end that the grammar does not allow, forced: words, and no token.
    let forced = json!({
        "messages": [{ "role": "user", "content": "a" }], "grammar": "root ::= \"yes\"", "max_tokens": 30,
        "reasoning_budget_tokens": 0, "reasoning_budget_message": "<|im_end|><|endoftext|>",
    });
    assert_eq!(server.post("/v1/chat/completions", &forced).status, 200);
    let huge = json!({ "prompt": "a", "n_predict": 1, "repeat_last_n": i32::MAX, "dry_penalty_last_n": i32::MAX });
    assert_eq!(server.post("/completion", &huge).status, 200);
    lives(&server);
}

#[test]
fn anthropics_clients_get_errors_in_their_own_form() {
    let server = Server::start(&["--api-key", KEY]);
    let key = [("X-Api-Key", KEY)];
    for (headers, body, status) in [(&[][..], "{}", 401), (&key, "{", 400), (&key, "[]", 400), (&key, "{}", 400)] {
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            let response = server.request("POST", path, headers, body);
            assert_eq!((response.status, &response.json()["type"]), (status, &json!("error")), "{response:?}");
            assert!(response.json()["error"]["message"].is_string(), "{response:?}");
        }
    }
}

#[test]
fn clients_that_send_slowly_or_nothing_are_let_go() {
    let server = Server::start(&["--timeout", "1"]);
    let started = Instant::now();
    let mut head = server.connect();
    head.write_all(b"GET /health HTTP/1.1\r\nHo").unwrap();
    let mut body = server.connect();
    body.write_all(b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let mut drip = server.connect();
    drip.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    // A byte now and then does not keep a connection open.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(250));
        let _ = drip.write_all(b"X");
    }
    Response::read(body).assert_error(408, "invalid_request_error");
    for mut stream in [head, drip] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    lives(&server);
}

#[test]
fn more_connections_than_there_may_be_wait_for_others_to_end() {
    let server = Server::start(&["--max-connections", "2", "--timeout", "1"]);
    let _silent = [server.connect(), server.connect()];
    lives(&server);
}

#[test]
fn no_text_of_a_request_leads_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "the-secret-text").unwrap();
    let path = secret.to_str().unwrap();
    let server = Server::start(&[]);
    let climbing = format!("../../../../../../../..{path}");
    let message = |content: serde_json::Value| json!([{ "role": "user", "content": content }]);
    for name in [path, &climbing, &format!("file://{path}")] {
        for (endpoint, body) in [
            ("/completion", json!({ "prompt": name, "n_predict": 1, "grammar": name })),
            ("/completion", json!({ "prompt": "x", "n_predict": 1, "json_schema": { "$ref": name } })),
            (
                "/completion",
                json!({ "prompt": "x", "n_predict": 1, "model": name, "lora": name, "slot_save_path": name }),
            ),
            (
                "/v1/chat/completions",
                json!({ "messages": message(json!(name)), "chat_template": name, "max_tokens": 1 }),
            ),
            (
                "/v1/chat/completions",
                json!({ "messages": message(json!([{ "type": "image_url", "image_url": { "url": name } }])) }),
            ),
            (
                "/v1/chat/completions",
                json!({ "messages": message(json!("{% include x %}")), "chat_template_kwargs": { "x": name }, "max_tokens": 1 }),
            ),
            ("/apply-template", json!({ "messages": message(json!("x")), "chat_template_file": name })),
            ("/v1/saliency", json!({ "id": name })),
            ("/v1/saliency", json!({ "trace": name })),
            ("/tokenize", json!({ "content": name })),
        ] {
            let response = server.post(endpoint, &body);
            assert!(response.status != 500 && !response.body.contains("the-secret-text"), "{body}: {response:?}");
        }
        for target in [name.to_owned(), format!("/{name}"), format!("/v1/saliency/{}", name.replace('/', "%2F"))] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let response = server.raw(request.as_bytes());
            assert!(response.status >= 400 && !response.body.contains("the-secret-text"), "{target}: {response:?}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is written");
    lives(&server);
}

#[test]
fn headers_cannot_be_smuggled_in() {
    let server = Server::start(&["--cors-origins", "https://good.example", "--alias", "m"]);
    for origin in ["https://evil.example", "https://good.example\r\nX-Injected: 1", "https://good.example.evil"] {
        let request =
            format!("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: {origin}\r\n\r\n");
        let response = server.raw(request.as_bytes());
        let allowed = response.header("access-control-allow-origin");
        assert!(allowed.is_none_or(|allowed| allowed == "https://good.example"), "{response:?}");
        assert!(response.header("x-injected").is_none(), "{response:?}");
    }
    // What a client names comes back in bodies alone.
    let body =
        json!({ "model": "m\r\nX-Injected: 1", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
    assert!(server.post("/v1/messages", &body).header("x-injected").is_none());
    for request in [
        "GET /health\r\nX: y HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: y\r\n\r\n",
        "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
        "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        assert_eq!(server.raw(request.as_bytes()).status, 400, "{request:?}");
    }
    lives(&server);
}

#[test]
fn foreign_pages_may_not_use_it_unless_they_are_named() {
    let body = json!({ "prompt": "x", "n_predict": 1 }).to_string();
    let ask = |server: &Server, origin: &str| server.request("POST", "/completion", &[("Origin", origin)], &body);
    let closed = Server::start(&[]);
    ask(&closed, "https://evil.example").assert_error(403, "permission_error");
    assert_eq!(ask(&closed, &format!("http://{}", closed.address)).status, 200, "its own page may");
    let preflight = closed.request("OPTIONS", "/completion", &[("Origin", "https://evil.example")], "");
    assert!(preflight.header("access-control-allow-origin").is_none(), "{preflight:?}");

    let open = Server::start(&["--cors-origins", "https://good.example,localhost"]);
    for origin in ["https://good.example", "http://localhost:3000"] {
        let response = ask(&open, origin);
        assert_eq!((response.status, response.header("access-control-allow-origin")), (200, Some(origin)));
        let preflight = open.request("OPTIONS", "/completion", &[("Origin", origin)], "");
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"), "{preflight:?}");
    }
    ask(&open, "https://evil.example").assert_error(403, "permission_error");
}

#[test]
fn the_page_runs_its_own_scripts_alone_and_its_markdown_is_guarded() {
    let server = Server::start(&["--api-key", KEY]);
    let bearer = format!("Bearer {KEY}");
    for path in ["/", "/index.html", "/page/main.js", "/page/style.css"] {
        let response = server.get(path);
        assert_eq!(response.status, 200, "{path}");
        let policy = response.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    }
    let page = server.get("/").body;
    assert!(!page.contains(" style=") && !page.contains(" on") && !page.contains("<style"), "{page}");
    assert_eq!(server.get("/page/none.js").status, 401);
    let render = |body: Value, keys: &[(&str, &str)]| {
        let headers = [&[("Content-Type", "application/json")], keys].concat();
        server.request("POST", "/page/markdown", &headers, &body.to_string())
    };
    let key = [("Authorization", bearer.as_str())];
    render(json!({ "texts": ["a"] }), &[]).assert_error(401, "authentication_error");
    for body in [json!({}), json!({ "texts": "a" }), json!({ "texts": [1] }), json!({ "texts": [], "more": 1 })] {
        render(body, &key).assert_error(400, "invalid_request_error");
    }
    render(json!({ "texts": ["a".repeat(200_001)] }), &key).assert_error(400, "invalid_request_error");
    let foreign = [key[0], ("Origin", "http://evil.example")];
    assert_eq!(render(json!({ "texts": ["a"] }), &foreign).status, 403);
    let deep = format!("\\[{}\\]", "\\bf".repeat(1300));
    let response = render(json!({ "texts": ["**a** <b>", deep, ""] }), &key);
    assert_eq!(response.json()["html"][0], "<p><strong>a</strong> &lt;b&gt;</p>\n");
    assert_eq!(response.json()["html"].as_array().map(Vec::len), Some(3));
    let closed = Server::start(&["--no-page"]);
    assert_eq!(closed.post("/page/markdown", &json!({ "texts": ["a"] })).status, 404);
}

#[test]
fn what_does_not_fit_the_queue_is_told_to_come_again() {
    let server = Server::start(&["-np", "1", "--queue", "1"]);
    let body = json!({ "prompt": "<think>\nTom", "n_predict": 400, "ignore_eos": true });
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| server.post("/completion", &body))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(statuses.iter().any(|response| response.status == 200));
    let refused: Vec<_> = statuses.iter().filter(|response| response.status != 200).collect();
    assert!(!refused.is_empty());
    for response in refused {
        response.assert_error(429, "rate_limit_error");
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
    }
    lives(&server);
}

#[test]
fn a_client_that_is_gone_frees_its_slot() {
    let server = Server::start(&["-np", "1", "-c", "8192"]);
    let body = json!({ "prompt": "<think>\nTom", "n_predict": 8000, "ignore_eos": true, "stream": true }).to_string();
    let mut client = server.connect();
    let head = format!("POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.write_all(head.as_bytes()).unwrap();
    client.read_exact(&mut [0; 2000]).unwrap();
    let busy = || server.get("/slots").json()[0]["is_processing"].as_bool().unwrap();
    assert!(busy());
    drop(client);
    let gone = Instant::now();
    while busy() {
        assert!(gone.elapsed() < Duration::from_secs(5), "the slot is still at work");
    }
    let generated = server.get("/metrics");
    generated.assert_error(501, "not_supported_error");
}

/// GPT-OSS's words are split by std::regex, which recurses over every letter of a word.
#[test]
fn a_word_without_end_has_its_tokens() {
    let model = tiny::tiny(Arch::GptOss, WeightType::F16);
    let server = Server::start(&["-m", model.to_str().unwrap()]);
    let word = "a".repeat(100_000);
    let tokens = server.ask("/tokenize", json!({ "content": word }))["tokens"].clone();
    assert!(server.ask("/detokenize", json!({ "tokens": tokens }))["content"] == word);
}

#[test]
fn names_that_could_be_a_foreign_pages_are_not_the_servers() {
    let ask = |server: &Server, host: &str| {
        server
            .raw(
                format!(
                    "GET /props HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n\r\n"
                )
                .as_bytes(),
            )
            .status
    };
    let server = Server::start(&["--cors-origins", "https://llm.example"]);
    for (host, status) in [
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("llm.example", 200),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:80", 403),
    ] {
        assert_eq!(ask(&server, host), status, "{host}");
    }
    assert_eq!(ask(&Server::start(&["--api-key", KEY]), "any.example"), 200, "a foreign page has no key");
}

#[test]
fn the_end_waits_for_answers_and_takes_no_more() {
    let server = Server::start(&["-np", "1"]);
    let body = json!({ "prompt": "<think>\nTom", "n_predict": 600, "ignore_eos": true });
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| server.post("/completion", &body));
        while !server.get("/slots").json()[0]["is_processing"].as_bool().unwrap() {}
        server.interrupt();
        assert_eq!(answer.join().unwrap().json()["tokens_predicted"], 600);
    });
    let outcome = server.finish();
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
}

#[test]
fn killed_under_load_it_leaves_no_file_and_starts_again_on_the_same_port() {
    let folder = tempfile::TempDir::new().unwrap();
    let server = Server::start_in(folder.path(), &["-np", "2"]);
    let port = server.address.port().to_string();
    let question = json!([{ "role": "user", "content": "Tom has 3 apples and eats 1. How many are left?" }]);
    let answer = server.ask("/v1/chat/completions", json!({ "messages": question, "max_tokens": 60 }));
    server.ask_accepted("/v1/saliency", json!({ "id": answer["id"], "method": "probe" }));
    let endless = json!({ "prompt": "<think>\nTom", "ignore_eos": true, "stream": true }).to_string();
    let clients = [(); 4].map(|()| {
        let mut client = server.connect();
        write!(
            client,
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{endless}",
            endless.len()
        )
        .unwrap();
        client
    });
    let mut cut_off = server.connect();
    cut_off.write_all(b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").unwrap();
    while server.get("/slots").json().as_array().unwrap().iter().any(|slot| slot["is_processing"] == false) {}
    drop(server);
    drop(clients);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let server = Server::start(&["--port", &port]);
    assert_eq!(server.address.port().to_string(), port);
    lives(&server);
}

#[test]
fn places_that_cannot_be_had_are_named() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let taken = program::run(program::stepflow(["serve", "--port", &port]));
    taken.assert_fails(1, &format!("cannot listen on 127.0.0.1:{port}"));
    let no_host = program::run(program::stepflow(["serve", "--host", "no.such.host.invalid"]));
    no_host.assert_fails(1, "no.such.host.invalid");
    let no_key = program::run(program::stepflow(["serve", "--ssl-key-file", "x"]));
    no_key.assert_fails(2, "--ssl-cert-file");
    let no_file = program::run(program::stepflow([
        "serve",
        "--port",
        "0",
        "--ssl-key-file",
        "no-key",
        "--ssl-cert-file",
        "no-cert",
    ]));
    no_file.assert_fails(1, "no-cert");
}

/// Runs a tool; `None`, visibly, where there is none.
fn tool(name: &str, args: &[&str]) -> Option<std::process::Output> {
    let output = std::process::Command::new(name).args(args).output();
    if output.is_err() {
        common::skip(&format!("no {name} for TLS"));
    }
    output.ok()
}

#[test]
fn tls_by_certificate_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("cert.pem"));
    let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-nodes"];
    let files = ["-newkey", "rsa:2048", "-keyout", &key, "-out", &certificate];
    let Some(made) = tool("openssl", &[&["req", "-x509"][..], &subject, &files].concat()) else { return };
    assert!(made.status.success(), "{made:?}");
    let server = Server::start(&["--ssl-key-file", &key, "--ssl-cert-file", &certificate]);
    let url = format!("https://{}/health", server.address);
    let Some(answer) = tool("curl", &["-s", "--cacert", &certificate, &url]) else { return };
    assert_eq!(String::from_utf8_lossy(&answer.stdout), r#"{"status":"ok"}"#, "{answer:?}");
    let stranger = tool("curl", &["-s", &url]).unwrap();
    assert!(!stranger.status.success() && stranger.stdout.is_empty(), "an unknown certificate: {stranger:?}");
    let plain = tool("curl", &["-s", &url.replace("https", "http")]).unwrap();
    assert!(plain.stdout.is_empty(), "no answer without TLS: {plain:?}");

    std::fs::write(&certificate, "no certificate").unwrap();
    let flags = ["serve", "--port", "0", "--ssl-key-file", &key, "--ssl-cert-file", &certificate];
    program::run(program::stepflow(flags)).assert_fails(1, "expected a certificate in PEM");
}
