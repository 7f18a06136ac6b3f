//! A server of the program's, and a client that can misbehave.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::program::{Outcome, Running, stepflow};

/// A hang guard.
const LIMIT: Duration = Duration::from_secs(30);

/// `stepflow serve` on a free port, with the embedded model unless the flags name one.
pub struct Server {
    running: Running,
    pub address: SocketAddr,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Server {
    pub fn start(flags: &[&str]) -> Self {
        Self::run(Self::command(flags))
    }

    /// With `folder` for its working directory and temporary files.
    pub fn start_in(folder: &Path, flags: &[&str]) -> Self {
        let mut command = Self::command(flags);
        command.current_dir(folder).env("TMPDIR", folder);
        Self::run(command)
    }

    fn command(flags: &[&str]) -> Command {
        let mut command = stepflow(["serve", "--port", "0", "-t", "1"].iter().chain(flags));
        command.env_remove("LLAMA_API_KEY");
        command
    }

    fn run(command: Command) -> Self {
        let mut running = Running::start(command);
        running.wait_until(|_, stderr| stderr.contains("ready at http"));
        let said = running.stderr_so_far();
        let url = said.rsplit("ready at ").next().unwrap().split_whitespace().next().unwrap().to_owned();
        let address = url.split_once("://").unwrap().1.parse().unwrap();
        Self { running, address }
    }

    /// The end of a server that was told to end.
    pub fn finish(self) -> Outcome {
        self.running.finish()
    }

    pub fn interrupt(&self) {
        self.running.interrupt();
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends bytes as they are, and reads one response.
    pub fn raw(&self, request: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that has refused the request may not read the rest.
        let _ = stream.write_all(request);
        Response::read(stream)
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        send(self.connect(), &self.address.to_string(), method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, &[("Content-Type", "application/json")], &body.to_string())
    }

    /// The JSON of a response that must be 200.
    pub fn ask(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, &body);
        assert_eq!(response.status, 200, "{path} {body}: {response:?}");
        response.json()
    }

    /// The JSON of a response that must be 202.
    pub fn ask_accepted(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, &body);
        assert_eq!(response.status, 202, "{path} {body}: {response:?}");
        response.json()
    }

    /// The data of every event of a stream, and whether it ended with `[DONE]`.
    pub fn stream(&self, path: &str, body: Value) -> (Vec<Value>, bool) {
        let response = self.post(path, &body);
        assert_eq!(response.status, 200, "{path} {body}: {response:?}");
        assert!(response.header("content-type").unwrap().starts_with("text/event-stream"));
        let data: Vec<_> = response.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let done = data.last() == Some(&"[DONE]");
        let events = data[..data.len() - usize::from(done)].iter();
        (events.map(|data| serde_json::from_str(data).unwrap()).collect(), done)
    }
}

/// The largest difference of a log-probability between two answers' `logprobs.content`, up to where they part. Of unlikely
/// tokens the logarithm is all noise.
///
/// llama.cpp's sums depend on where in the cache a sequence lies and on what is decoded with it; so two greedy answers part
/// where two tokens are as likely as each other, on one processor and not on another.
pub fn difference(a: &Value, b: &Value) -> f64 {
    let (a, b) = (a.as_array().expect("logprobs"), b.as_array().expect("logprobs"));
    let mut worst = 0.0_f64;
    for (a, b) in a.iter().zip(b) {
        let of_b = |id: &Value| {
            let mut top = b["top_logprobs"].as_array().unwrap().iter();
            top.find(|entry| entry["id"] == *id).map(|entry| entry["logprob"].as_f64().unwrap())
        };
        for entry in a["top_logprobs"].as_array().unwrap() {
            let of_a = entry["logprob"].as_f64().unwrap();
            if of_a > 0.01_f64.ln() {
                let difference = (of_a - of_b(&entry["id"]).unwrap_or(f64::NEG_INFINITY)).abs();
                worst = if difference <= worst { worst } else { difference };
            }
        }
        if a["id"] != b["id"] {
            break;
        }
    }
    worst
}

/// Sends a request to `host`, and reads its response.
pub fn send(
    mut stream: TcpStream,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    // A server that has refused the request may not read the rest.
    let _ = stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    Response::read(stream)
}

impl Response {
    pub fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap_or_else(|error| panic!("no response: {error}"));
        let status = line.split_whitespace().nth(1).unwrap_or_else(|| panic!("no response: {line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut response = Self { status, headers, body: String::new() };
        let body = match (response.header("content-length"), response.header("transfer-encoding")) {
            (Some(length), _) => {
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                body
            }
            (None, Some("chunked")) => chunks(&mut reader),
            _ => Vec::new(),
        };
        response.body = String::from_utf8(body).unwrap();
        response
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is an error of this status and type.
    pub fn assert_error(&self, status: u16, kind: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        assert_eq!((&error["code"], &error["type"]), (&status.into(), &kind.into()), "{self:?}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
}

fn chunks(reader: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("cut off after {body:?}"));
        let mut chunk = vec![0; length + 2];
        reader.read_exact(&mut chunk).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..length]);
    }
}
