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
    let said = browser.run("document.querySelector('.assistant > .text').textContent");
    assert!(said.as_str().unwrap().contains("\\boxed"), "{said}");
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
    assert_eq!(browser.run("messages.length"), 0);
    assert_eq!(browser.run("document.getElementById('chat').children.length"), 0);
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
        (prompt, browser.run("messages.length")),
        (json!("Rex has 4 coins."), json!(0)),
        "not answered, not said"
    );
    browser.write("#key", "sk-x\u{E004}");
    browser.wait("document.getElementById('model').textContent.endsWith('.gguf')");
}
