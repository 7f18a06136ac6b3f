//! The server's page, as someone with a browser uses it.

mod common;
mod program;
mod serving;

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use program::Running;
use serde_json::{Value, json};
use serving::{Response, Server, send};

/// A hang guard: answers take a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// A headless Chromium, by chromedriver (W3C WebDriver).
struct Browser {
    _driver: Running,
    address: String,
    session: String,
}

impl Browser {
    /// `None`, visibly, where there is no chromedriver.
    fn open() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if Command::new("chromedriver").arg("--version").output().is_err() {
            common::skip("no chromedriver for the page; Debian has it as chromium-driver");
            return None;
        }
        let mut driver = Running::start(command);
        driver.wait_until(|stdout, _| String::from_utf8_lossy(stdout).contains("successfully on port"));
        let said = driver.stdout_so_far();
        let port: String =
            said.split("successfully on port ").nth(1)?.chars().take_while(char::is_ascii_digit).collect();
        let mut browser = Self { _driver: driver, address: format!("127.0.0.1:{port}"), session: String::new() };
        let options = json!({ "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let begun = browser.call("POST", "/session", &wanted);
        browser.session = format!("/session/{}", begun["sessionId"].as_str().expect("a session"));
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let response: Response =
            send(stream, &self.address, method, path, &[("Content-Type", "application/json")], &body);
        assert_eq!(response.status, 200, "{method} {path} {body}: {response:?}");
        response.json()["value"].clone()
    }

    fn command(&self, path: &str, body: Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), &body)
    }

    fn element(&self, css: &str) -> String {
        let found = self.command("/element", json!({ "using": "css selector", "value": css }));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    fn click(&self, css: &str) {
        self.command(&format!("/element/{}/click", self.element(css)), json!({}));
    }

    fn write(&self, css: &str, text: &str) {
        self.command(&format!("/element/{}/value", self.element(css)), json!({ "text": text }));
    }

    fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({ "script": format!("return {script}"), "args": [] }))
    }

    /// Waits until an expression of the page is true.
    fn wait(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.run(expression) != json!(true) {
            assert!(
                Instant::now() < deadline,
                "never: {expression}; the page: {}",
                self.run("document.body.innerText")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.call("DELETE", &self.session.clone(), &json!({}));
        }
    }
}

#[test]
fn a_click_through() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&["--stepflow"]);
    browser.command("/url", json!({ "url": format!("http://{}/", server.address) }));
    browser.wait("document.getElementById('model').textContent.endsWith('.gguf')");
    assert_eq!(browser.run("document.getElementById('stepflow').checked"), true, "the server's own setting");

    browser.write("#prompt", "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?");
    browser.click("#send");
    browser.wait("document.querySelector('.show-map') !== null");
    assert_eq!(browser.run("document.querySelector('details').open"), false, "thinking is folded");
    assert_eq!(browser.run("document.querySelector('details .text').textContent.length > 20"), true);
    browser.wait("document.querySelector('.assistant > .text math menclose[notation=box]') !== null");
    let speed = browser.run("document.querySelector('.speed').textContent");
    assert!(speed.as_str().unwrap().ends_with("tokens/s"), "{speed}");
    let repairs = browser.run("document.querySelector('.repairs').textContent");
    assert!(repairs.as_str().unwrap().contains("rows bridged"), "{repairs}");

    browser.click("details summary");
    assert_eq!(browser.run("document.querySelector('details').open"), true);
    browser.click(".show-map");
    browser.wait("document.querySelectorAll('.map rect').length > 5");
    browser.run("document.querySelector('.map rect').onmouseenter()");
    let words = browser.run("document.querySelector('.words').textContent");
    assert!(words.as_str().unwrap().contains("(question)"), "{words}");

    browser.click("#stepflow");
    browser.write("#prompt", "Rex has 4 coins.\u{E007}");
    browser.wait("document.querySelectorAll('.speed').length === 2");
    assert_eq!(browser.run("document.querySelectorAll('.repairs').length"), 1, "switched off");
    // A chat that is cleared while an answer runs has nothing of that answer.
    browser.write("#prompt", "Tell me a long story.\u{E007}");
    browser.wait("document.querySelectorAll('.assistant').length === 3");
    browser.click("#clear");
    browser.wait("document.getElementById('send').textContent === 'Send'");
    assert_eq!(browser.run("document.getElementById('chat').children.length"), 0);
    assert_eq!(browser.run("document.querySelector('[aria-current]')"), Value::Null, "the chat is a new one");
}

const QUESTION: &str = "Tom has 3 apples. Ann has 2 more apples than Tom. How many apples does Ann have?\u{E007}";

/// Opens the page of a server, and records what it asks for.
fn visit(browser: &Browser, server: &Server) {
    browser.command("/url", json!({ "url": format!("http://{}/", server.address) }));
    browser.wait("document.getElementById('model').textContent.endsWith('.gguf')");
    browser.run(
        "((fetch) => { window.sent = []; window.fetch = (path, options) => { \
         if (path.startsWith('/v1/chat')) sent.push(JSON.parse(options.body)); return fetch(path, options); }; })(fetch)",
    );
}

/// Opens the page with a chat in which this was answered.
fn visit_answer(browser: &Browser, server: &Server, content: &str) {
    visit(browser, server);
    let answer =
        json!({ "role": "assistant", "content": content, "reasoning_content": "Hm.", "steps": ["Is it $x^2$?"] });
    let chat = json!({ "id": "a", "title": "A", "updated": 1, "messages": [{ "role": "user", "content": "<b>Hi</b>" }, answer] });
    browser.run(&format!("localStorage.setItem('stepflow.chat.a', {})", json!(chat.to_string())));
    visit(browser, server);
    browser.wait("document.querySelector('.assistant > .markdown') !== null");
}

#[test]
fn answers_are_markdown_with_formulas_and_code_can_be_copied() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&[]);
    let content = "# So\n\n**It** costs $5 and $6, $x^2$, \\(a < b\\) and\n\n\\[\\boxed{\\frac{1}{2}}\\]\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n\
        ```python\nprint(\"$x$\")\n```\n\nBroken: $\\frac{1$.";
    visit_answer(&browser, &server, content);
    for (css, n) in [("math", 3), ("math[display=block] menclose mfrac", 1), ("strong", 1), ("td", 2), ("pre code", 1)]
    {
        assert_eq!(
            browser.run(&format!("document.querySelectorAll('.assistant > .markdown {css}').length")),
            n,
            "{css}"
        );
    }
    let text = browser.run("document.querySelector('.assistant > .markdown').textContent");
    for part in ["costs $5 and $6,", "print(\"$x$\")", "Broken: $\\frac{1$."] {
        assert!(text.as_str().unwrap().contains(part), "{part}: {text}");
    }
    assert_eq!(browser.run("document.querySelector('.user').textContent"), "<b>Hi</b>");
    assert_eq!(browser.run("document.querySelectorAll('.steps li math msup').length"), 1);

    for (button, expected) in [(".copy-code", "print(\"$x$\")\n"), (".copy", content)] {
        browser.click(button);
        browser.wait(&format!("document.querySelector('{button}').textContent === 'Copied'"));
        browser.run("document.getElementById('prompt').value = ''");
        browser.write("#prompt", "\u{E009}v\u{E000}");
        assert_eq!(browser.run("document.getElementById('prompt').value"), expected, "{button}");
    }
}

#[test]
fn a_hostile_answer_is_text() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&[]);
    let content = "<script>window.hit = 1</script><img src=x onerror=\"window.hit = 2\">\n\n<svg onload=\"window.hit = 3\">\n\n\
        [click](javascript:window.hit=4) ![x](http://127.0.0.1:1/x.png) $\\href{javascript:window.hit=5}{x}$\n\n\
        </div></section><h1 id=\"model\" style=\"position:fixed\">taken over</h1>";
    visit_answer(&browser, &server, content);
    assert_eq!(
        browser.run("document.querySelectorAll('.assistant :is(script, img, svg, iframe, [style], [id])').length"),
        0
    );
    assert_eq!(
        browser.run("[...document.querySelectorAll('.assistant a')].map((a) => a.href)"),
        json!(["http://127.0.0.1:1/x.png"])
    );
    let text = browser.run("document.querySelector('.assistant > .markdown').textContent");
    assert!(text.as_str().unwrap().contains("<script>window.hit = 1</script>"), "{text}");
    assert_eq!(browser.run("window.hit ?? null"), Value::Null);
}

#[test]
fn steps_have_the_numbers_of_the_map_and_an_answer_can_be_had_anew() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&["--stepflow"]);
    visit(&browser, &server);
    browser.write("#prompt", QUESTION);
    browser.wait("document.querySelector('.show-map') !== null");
    browser.click(".show-map");
    browser.wait("document.querySelectorAll('.map rect').length > 5");
    // The pointer, which came to lie on the map, goes elsewhere.
    browser.click("#prompt");
    let steps =
        browser.run("[...document.querySelectorAll('.steps li')].map((item) => [item.value, item.textContent.trim()])");
    let steps = steps.as_array().unwrap();
    assert!(steps.len() > 1, "{steps:?}");
    for step in steps {
        let number = step[0].as_u64().unwrap();
        browser.run(&format!("document.querySelector('[data-cell=\"{number},0\"]').onmouseenter()"));
        let words = browser.run("document.querySelector('.words').textContent");
        let expected = format!("from {number} (thinking): {}", step[1].as_str().unwrap());
        assert!(words.as_str().unwrap().contains(&expected), "{expected}: {words}");
    }
    let size = browser.run("document.querySelector('.size').textContent");
    let n_layers = browser.run("Number(document.querySelector('.layer').max) + 1");
    let n_steps = size.as_str().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert_eq!(size, format!("{n_steps} steps, {n_layers} layers"));
    // The question is step 0, and what follows the thinking is the answer.
    assert!(n_steps >= steps.len() + 2, "{size}");
    // By the keyboard, from the first layer on.
    browser.run("(document.querySelector('.layer').value = 0, document.querySelector('.layer').oninput())");
    assert_eq!(browser.run("document.querySelector('.layer-number').textContent"), " 0");
    browser.run("document.querySelector('.map svg').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown' }))");
    assert_eq!(browser.run("document.querySelector('rect.here').dataset.cell"), format!("{},0", steps.len() + 1));
    for number in steps.len() + 1..n_steps {
        browser.run(&format!("document.querySelector('[data-cell=\"{number},0\"]').onmouseenter()"));
        let words = browser.run("document.querySelector('.words').textContent");
        assert!(words.as_str().unwrap().contains(&format!("from {number} (summary)")), "{words}");
    }

    let said = browser.run("document.querySelector('.assistant > .text').textContent");
    browser.click(".regenerate");
    browser.wait("sent.length === 2 && document.querySelector('.show-map') !== null");
    assert_eq!(browser.run("sent[1].messages.length"), 1, "without the answer that it replaces");
    browser.wait("document.querySelector('.assistant > .markdown') !== null");
    assert_eq!(browser.run("document.querySelector('.assistant > .text').textContent"), said, "greedily, the same");
    assert_eq!(browser.run("document.querySelectorAll('.assistant').length"), 1);
}

#[test]
fn settings_are_sent_and_kept_and_chats_survive_a_reload() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&["--stepflow"]);
    visit(&browser, &server);
    browser.click("#show-settings");
    for (name, value) in [
        ("temperature", "0"),
        ("top_k", "5"),
        ("seed", "7"),
        ("max_tokens", "30"),
        ("tau_max", "0.2"),
        ("system", "Be brief."),
    ] {
        browser.write(&format!("[name={name}]"), value);
    }
    browser.click("#close-settings");
    browser.write("#prompt", QUESTION);
    browser.wait("document.querySelector('.speed') !== null");
    let sent = browser.run("sent[0]");
    let expected = json!({
        "temperature": 0, "top_k": 5, "max_tokens": 30, "seed": 7, "stepflow": { "oeb": true, "smi": true, "tau_max": 0.2 },
        "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": QUESTION.trim_end_matches('\u{E007}') }],
        "stream": true, "return_steps": true,
    });
    assert_eq!(sent, expected, "and nothing that was left empty");
    assert_eq!(browser.run("document.querySelector('.speed').textContent.split(',')[0]"), "30 tokens");

    visit(&browser, &server);
    browser.wait(
        "document.querySelectorAll('.user, .assistant').length === 2 && document.querySelector('.speed') !== null",
    );
    assert_eq!(browser.run("document.querySelector('[aria-current]').textContent.slice(0, 16)"), "Tom has 3 apples");
    browser.click("#show-settings");
    assert_eq!(browser.run("document.querySelector('[name=top_k]').value"), "5");
    browser.click("#reset");
    browser.click("#close-settings");
    browser.click("#stepflow");
    browser.click("#clear");
    browser.write("#prompt", "Rex has 4 coins.\u{E007}");
    browser.wait("document.querySelector('.speed') !== null");
    let keys = browser.run("[Object.keys(sent[0]).sort().join(' '), sent[0].stepflow, sent[0].messages.length]");
    assert_eq!(keys, json!(["messages return_steps stepflow stream", false, 1]));

    browser.click(".rename");
    browser.command("/alert/text", json!({ "text": "Coins" }));
    browser.command("/alert/accept", json!({}));
    visit(&browser, &server);
    assert_eq!(
        browser.run("[...document.querySelectorAll('.open')].map((item) => item.textContent.slice(0, 5))"),
        json!(["Coins", "Tom h"])
    );
    browser.click(".delete");
    browser.command("/alert/accept", json!({}));
    assert_eq!(browser.run("document.querySelectorAll('.open').length"), 1);
    browser.click(".open");
    browser.wait("document.querySelectorAll('.user, .assistant').length === 2");
}

#[test]
fn what_the_browser_cannot_keep_is_told_and_not_lost() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&[]);
    visit(&browser, &server);
    browser.run("(() => { try { for (let n = 20; n >= 0; n -= 1) localStorage.x = (localStorage.x ?? '') + 'x'.repeat(2 ** n); } catch {} \
        for (let n = 22; n >= 0; n -= 1) { try { localStorage['y' + n] = 'y'.repeat(2 ** n); } catch {} } })()");
    browser.write("#prompt", "Rex has 4 coins.\u{E007}");
    browser.wait("document.querySelector('.speed') !== null");
    let notice = browser.run("document.getElementById('notice').textContent");
    assert!(notice.as_str().unwrap().starts_with("This browser's storage is full"), "{notice}");
    browser.click("#clear");
    browser.click(".open");
    assert_eq!(browser.run("document.querySelectorAll('.user, .assistant').length"), 2, "while the page is open");
}

#[test]
fn an_answer_can_be_stopped_and_what_came_is_kept() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&[]);
    visit(&browser, &server);
    browser.write("#prompt", QUESTION);
    browser.wait("document.querySelector('.assistant') !== null");
    browser.run("document.getElementById('form').requestSubmit()");
    browser.wait("document.getElementById('send').textContent === 'Send'");
    let state = browser
        .run("[document.querySelectorAll('.assistant').length, document.getElementById('prompt').value.length > 0]");
    assert!(state == json!([1, false]) || state == json!([0, true]), "the answer so far, or the question: {state}");
}

#[test]
fn a_key_is_asked_for_where_one_is_needed() {
    let Some(browser) = Browser::open() else { return };
    let server = Server::start(&["--api-key", "sk-x"]);
    browser.command("/url", json!({ "url": format!("http://{}/", server.address) }));
    browser.wait("document.getElementById('model').textContent === 'Invalid API Key'");
    browser.write("#prompt", "Rex has 4 coins.\u{E007}");
    browser.wait("document.querySelector('.error') !== null");
    let prompt = browser.run("document.getElementById('prompt').value");
    assert_eq!(
        (prompt, browser.run("document.querySelectorAll('.user').length + localStorage.length")),
        (json!("Rex has 4 coins."), json!(0)),
        "not answered, not said"
    );
    browser.write("#key", "sk-x\u{E004}");
    browser.wait("document.getElementById('model').textContent.endsWith('.gguf')");
}
