//! `stepflow serve`: StepFlow behind the API of llama-server, OpenAI and Anthropic.
//!
//! Requests are read and answered by a few threads (`tokio`, `axum`); one thread alone, the engine's, has the model's
//! context. Between them are a bounded queue of jobs (`queue`) and, for every request, a channel of what its answers
//! tell. Each API is a way to write these answers down (`generation::Reply`).

mod app;
mod bodies;
mod chat;
mod completion;
mod conversation;
mod engine;
mod error;
mod fields;
mod formulas;
mod generation;
mod guard;
mod history;
mod info;
mod jobs;
mod listen;
mod markdown;
mod mathml;
mod measuring;
mod messages;
mod metrics;
mod names;
mod options;
mod page;
mod plan;
mod queue;
mod reading;
mod request;
mod responses;
mod routes;
mod saliency;
mod schema;
mod tokens;
mod tools;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::server::graceful::GracefulShutdown;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::engine::{EngineError, Slots};

pub use app::Ready;
pub use options::{Options, Tls};

use app::App;

/// Threads that read and write requests; they wait for the engine most of the time.
const THREADS: usize = 2;

/// What keeps a server from running.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another server running there? --host and --port name another place"
    )]
    Bind {
        /// Host and port.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The files that TLS needs.
    #[error("cannot use {path} for TLS: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gives no threads or sockets.
    #[error("cannot start the server: {0}")]
    Start(#[from] std::io::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A listening server; until its model is ready, it says that it is loading.
pub struct Server {
    app: Arc<App>,
    addresses: Vec<SocketAddr>,
    ending: watch::Sender<bool>,
    serving: JoinHandle<()>,
    runtime: Runtime,
}

impl Server {
    /// Listens where `options` say.
    ///
    /// # Errors
    /// When an address is taken or what TLS needs cannot be read.
    pub fn listen(options: Options) -> Result<Self, ServerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let listeners = runtime.block_on(listen::bind(&options))?;
        let addresses = listeners.iter().map(|listener| listener.local_addr()).collect::<Result<_, _>>()?;
        let tls = options.tls.as_ref().map(listen::tls).transpose()?;
        let (ending, ended) = watch::channel(false);
        let (room, read_timeout) = (Arc::new(Semaphore::new(options.max_connections)), options.read_timeout);
        let app = Arc::new(App::new(options));
        let router = routes::router(app.clone());
        let connections = listen::Connections { router, tls, read_timeout, room, graceful: GracefulShutdown::new() };
        let serving = runtime.spawn(connections.serve(listeners, ended));
        Ok(Self { app, addresses, ending, serving, runtime })
    }

    /// Where it listens, as addresses of a browser.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.app.options.tls.is_some() { "https" } else { "http" };
        self.addresses.iter().map(|address| format!("{scheme}://{address}")).collect()
    }

    /// From here on requests wait in line for [`Server::run`], and are not told any more that the model is loading.
    pub fn set_ready(&self, ready: Ready) {
        self.app.set_ready(ready);
    }

    /// Answers requests with the model of `slots`, on this thread, until `end` says so. What is running or waiting
    /// then is finished first, and nothing more is taken. Nothing is answered without [`Server::set_ready`].
    ///
    /// # Errors
    /// When decoding is interrupted.
    pub fn run(self, slots: Slots, end: impl Fn() -> bool) -> Result<(), ServerError> {
        let ran = match self.app.ready() {
            Ok(ready) => engine::run(&self.app, ready, slots, end),
            Err(_) => Ok(()),
        };
        self.app.jobs.stop();
        self.ending.send_replace(true);
        _ = self.runtime.block_on(self.serving);
        self.runtime.shutdown_background();
        Ok(ran?)
    }
}

/// What answers say of the program that made them.
fn fingerprint() -> &'static str {
    concat!("stepflow-", env!("CARGO_PKG_VERSION"))
}
