//! How a server is set up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::llama::chat::ReasoningFormat;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Addresses or names to listen on.
    pub hosts: Vec<String>,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Answers generated side by side.
    pub slots: usize,
    /// Answers that can wait for a slot.
    pub queue: usize,
    /// Keys of which a request must have one; none must if there are none.
    pub keys: Vec<String>,
    /// Origins whose pages may use the server: `*` is all of them, `localhost` every port of this machine.
    pub cors_origins: Vec<String>,
    /// Certificates and private key, PEM; without them there is no TLS.
    pub tls: Option<Tls>,
    /// Time that a client has to send a request's head, and its body.
    pub read_timeout: Duration,
    /// Bytes that a request's body can have.
    pub max_body: usize,
    /// Connections that are open at a time.
    pub max_connections: usize,
    /// Names that the model goes by, the first one in answers.
    pub aliases: Vec<String>,
    /// Tags that the model is listed with.
    pub tags: Vec<String>,
    /// Whether there is `/metrics`.
    pub metrics: bool,
    /// Whether there is `/slots`.
    pub slots_endpoint: bool,
    /// Whether there is a page to chat on.
    pub page: bool,
    /// Whether answers tell the prompt and the settings that they were made with, where a request says nothing.
    pub verbose: bool,
    /// Whether the model runs with a LoRA adapter.
    pub lora: bool,
    /// Tokens that an answer has at most where its request says nothing.
    pub max_tokens: Option<usize>,
    /// What becomes of thinking where a request says nothing.
    pub reasoning_format: ReasoningFormat,
    /// Whether the model may think where a request says nothing; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// Tokens of thinking where a request says nothing.
    pub reasoning_budget: Option<usize>,
    /// Whether the chat template is run as Jinja.
    pub jinja: bool,
    /// Variables of the chat template; a request's come over them.
    pub template_kwargs: Map<String, Value>,
    /// Whether a last message of the assistant's is gone on with.
    pub prefill_assistant: bool,
}

impl Options {
    /// Whether only this machine reaches the server.
    pub fn is_local(&self) -> bool {
        let is_loopback = |host: &String| {
            host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        };
        self.hosts.iter().all(is_loopback)
    }
}

/// Where to find what TLS needs.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The chain of certificates.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}
