//! The server's page and the one that `stepflow saliency` leaves, as someone with a browser uses them.

mod common;
mod maps;
mod program;
mod serving;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maps::{number, table, traced};
use program::{Running, run, stepflow};
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

    /// Brings the pointer to a place in an element, in pixels from its middle.
    fn point(&self, css: &str, (x, y): (f64, f64)) {
        let origin = json!({ "element-6066-11e4-a52e-4f735466cecf": self.element(css) });
        let to = json!({ "type": "pointerMove", "origin": origin, "x": x as i64, "y": y as i64, "duration": 0 });
        self.command("/actions", json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": [to] }] }));
    }

    /// Clicks where the pointer is.
    fn click_here(&self) {
        let acts = ["pointerDown", "pointerUp"].map(|act| json!({ "type": act, "button": 0 }));
        self.command("/actions", json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": acts }] }));
    }

    /// Presses keys, whatever has the focus.
    fn press(&self, keys: &str) {
        let acts = |key: char| ["keyDown", "keyUp"].map(|act| json!({ "type": act, "value": key.to_string() }));
        let acts: Vec<Value> = keys.chars().flat_map(acts).collect();
        self.command("/actions", json!({ "actions": [{ "type": "key", "id": "keys", "actions": acts }] }));
    }

    fn focus(&self, css: &str) {
        self.run(&format!("document.querySelector('{css}').focus()"));
    }

    fn text(&self, css: &str) -> String {
        self.run(&format!("document.querySelector('{css}').textContent")).as_str().unwrap().to_owned()
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
    browser.wait("document.querySelectorAll('.step-map .passage').length > 2");
    browser.point(".step-map .passage", (0.0, 0.0));
    let said = browser.text(".step-map .said");
    assert!(said.starts_with("Step 0, question") && said.contains("most from step 0 ("), "{said}");

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
    browser.wait("document.querySelectorAll('.step-map .passage').length > 2");
    let steps =
        browser.run("[...document.querySelectorAll('.steps li')].map((item) => [item.value, item.textContent.trim()])");
    let steps = steps.as_array().unwrap();
    assert!(steps.len() > 1, "{steps:?}");
    for step in steps {
        let number = step[0].as_u64().unwrap();
        let passage = format!(".passage[data-step=\"{number}\"][data-segment=thinking] .words");
        let (words, expected) = (browser.text(&passage), step[1].as_str().unwrap());
        assert!(words.starts_with(expected), "{expected}: {words}");
    }
    // The question is step 0, and what follows the thinking is the answer.
    let segments = browser.run("[...document.querySelectorAll('.passage')].map((passage) => passage.dataset.segment)");
    let n_steps = segments.as_array().unwrap().len();
    assert!(n_steps >= steps.len() + 2, "{segments}");
    for (number, segment) in segments.as_array().unwrap().iter().enumerate() {
        let of_answer = if number > steps.len() { "summary" } else { "thinking" };
        assert_eq!(segment, if number == 0 { "question" } else { of_answer }, "{segments}");
    }
    // By the keyboard, from the first layer on.
    browser.focus(".step-map canvas");
    browser.press(&format!("\u{E014}{}\u{E015}", "\u{E013}".repeat(n_steps)));
    assert_eq!(browser.text(".step-map output"), "Layer 0");
    assert!(browser.text(".step-map .said").starts_with("Step 1, thinking"));

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

/// What the page is to show: the value of every layer, query and key.
struct Expected {
    layers: Vec<Vec<Vec<f64>>>,
}

impl Expected {
    fn read(cells: &std::path::Path) -> Self {
        let mut layers: BTreeMap<usize, Vec<Vec<f64>>> = BTreeMap::new();
        for row in &table(cells) {
            let rows = layers.entry(number(row, "layer") as usize).or_default();
            rows.resize(rows.len().max(number(row, "query_step") as usize + 1), Vec::new());
            rows[number(row, "query_step") as usize].push(number(row, "value"));
        }
        Self { layers: layers.into_values().collect() }
    }

    fn mean(&self, layers: std::ops::RangeInclusive<usize>, query: usize, key: usize) -> f64 {
        let n = layers.clone().count() as f64;
        layers.map(|layer| self.layers[layer][query][key]).sum::<f64>() / n
    }

    /// The ends of the colours, as numbers on the page are written. The first step draws from itself alone.
    fn limits(&self) -> [String; 2] {
        let values = self.layers.iter().flat_map(|rows| rows[1..].iter().flatten());
        let mut values: Vec<f64> = values.copied().filter(|value| *value > 0.0).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
        let high = at(0.999);
        [format!("{:.1e}", at(0.01).clamp(high / 1e4, high / 10.0)), format!("{high:.1e} share")]
    }
}

/// Checks that a cell is what the page says, and that the text is lit by its row: the more, the darker.
fn assert_shows(
    browser: &Browser,
    expected: &Expected,
    layers: std::ops::RangeInclusive<usize>,
    query: usize,
    key: usize,
) {
    let said = browser.text(".said");
    let amount = said.strip_prefix(&format!("Step {query} draws ")).and_then(|said| said.split(' ').next());
    let (amount, value) = (amount.expect(&said).parse::<f64>().unwrap(), expected.mean(layers.clone(), query, key));
    assert!((amount / value - 1.0).abs() < 1e-3, "{said}: {value}");
    assert!(said.contains(&format!(" from step {key}\n")), "{said}");
    assert_lit(browser, &(0..=query).map(|key| expected.mean(layers.clone(), query, key)).collect::<Vec<_>>());
}

fn assert_lit(browser: &Browser, row: &[f64]) {
    let lights = browser.run(
        "[...document.querySelectorAll('.passage')].filter((passage) => passage.style.background) \
         .map((passage) => getComputedStyle(passage).backgroundColor.match(/\\d+/g).reduce((sum, part) => sum + +part, 0))",
    );
    let lights: Vec<u64> = lights.as_array().unwrap().iter().map(|light| light.as_u64().unwrap()).collect();
    assert_eq!(lights.len(), row.len(), "the step and those before it");
    let strongest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    assert_eq!(Some(&lights[strongest]), lights.iter().min(), "{lights:?}: {row:?}");
    assert!(lights.iter().max() > lights.iter().min(), "{lights:?}: {row:?}");
    for (a, b) in (0..row.len()).flat_map(|a| (0..row.len()).map(move |b| (a, b))).filter(|&(a, b)| row[a] > row[b]) {
        assert!(lights[a] <= lights[b], "{a} and {b} of {lights:?}: {row:?}");
    }
    let said = browser.text(".said");
    assert!(said.contains(&format!("most from step {strongest} (")), "{said}");
}

#[test]
fn the_page_of_a_run_lights_in_the_text_what_a_step_draws_from() {
    let Some(browser) = Browser::open() else { return };
    let (folder, trace) = traced();
    let (path, out) = (folder.path().join("trace.json"), folder.path().join("maps"));
    // Attention is of one magnitude everywhere: no row is beyond the colours.
    let args = ["saliency", path.to_str().unwrap(), "--method", "attention", "-t", "1", "-o", out.to_str().unwrap()];
    let outcome = run(stepflow(args));
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    let expected = Expected::read(&out.join("cells.csv"));
    let (last_layer, last) = (expected.layers.len() - 1, trace.steps.len() - 1);
    browser.command("/url", json!({ "url": format!("file://{}", out.join("index.html").display()) }));
    browser.wait(&format!("document.querySelectorAll('.passage').length === {}", last + 1));
    let words = browser.run("document.querySelector('.passages').innerText");
    assert!(words.as_str().unwrap().contains("How many coins does Ann have?"), "{words}");
    let [low, high] = expected.limits();
    assert_eq!((browser.text(".scale span:first-child"), browser.text(".scale span:last-child")), (low, high));

    // A step in the text, then a cell of the map, which stays when it is clicked.
    assert_eq!(browser.text(".layers output"), format!("Layers 0–{last_layer}, mean"));
    browser.point(&format!(".passage[data-step=\"{}\"]", last - 1), (0.0, 0.0));
    assert_lit(&browser, &(0..last).map(|key| expected.mean(0..=last_layer, last - 1, key)).collect::<Vec<_>>());
    let side = browser.run("document.querySelector('canvas').clientWidth").as_f64().unwrap();
    let corner = (3.0 - side / 2.0, side / 2.0 - 3.0);
    browser.point("canvas", corner);
    assert_shows(&browser, &expected, 0..=last_layer, last, 0);
    browser.click_here();
    browser.point(".passage", (0.0, 0.0));
    assert_shows(&browser, &expected, 0..=last_layer, last, 0);
    let marked = "[document.querySelector('.passage.query').dataset.step, document.querySelector('.passage.key').dataset.step, \
                  document.querySelector('.mark.row').dataset.step]";
    assert_eq!(browser.run(marked), json!([last.to_string(), "0", last.to_string()]));

    // One layer, then as many as the second slider adds; the curves have a band there.
    browser.focus("input.last");
    browser.press("\u{E011}");
    browser.focus("input.first");
    browser.press("\u{E014}\u{E014}\u{E014}");
    assert_eq!(browser.text(".layers output"), "Layer 3");
    assert_shows(&browser, &expected, 3..=3, last, 0);
    let band =
        || browser.run("Number(document.getElementById('layers-shown').getAttribute('width'))").as_f64().unwrap();
    let one = band();
    browser.focus("input.last");
    browser.press("\u{E014}\u{E014}");
    assert_eq!(browser.text(".layers output"), "Layers 3–5, mean");
    assert_shows(&browser, &expected, 3..=5, last, 0);
    assert!((band() / one - 3.0).abs() < 1e-6, "{one}");

    // By the keyboard: a step up, a layer left, then let go.
    browser.focus("canvas");
    browser.press("\u{E013}\u{E012}");
    assert_eq!(browser.text(".layers output"), "Layers 2–4, mean");
    assert_lit(&browser, &(0..last).map(|key| expected.mean(2..=4, last - 1, key)).collect::<Vec<_>>());
    browser.press("\u{E00C}");
    let lit = "[...document.querySelectorAll('.passage')].filter((passage) => passage.style.background || passage.matches('.query')).length";
    assert_eq!(browser.run(lit), 0);
    // In the text the focus goes along.
    browser.focus(".passage[tabindex=\"0\"]");
    browser.press("\u{E013}");
    assert_eq!(browser.run("document.activeElement.dataset.step"), (last - 2).to_string());
    assert_lit(&browser, &(0..last - 1).map(|key| expected.mean(2..=4, last - 2, key)).collect::<Vec<_>>());
}
