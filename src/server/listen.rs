//! Sockets: listening, TLS, and what slow or silent clients are allowed.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::ServerError;
use super::options::{Options, Tls};

/// Time that connections have to end when the server does.
const GRACE: Duration = Duration::from_secs(5);

/// After a failure to accept, as when no file descriptor is left, how long to wait for better times.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;

/// Binds every host. With port 0 the first gets a free one and the others the same.
pub async fn bind(options: &Options) -> Result<Vec<TcpListener>, ServerError> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut port = options.port;
    for host in &options.hosts {
        let failed = |source| ServerError::Bind { address: format!("{host}:{port}"), source };
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = (name, port).to_socket_addrs().map_err(failed)?.collect();
        // The first of a name's addresses that can be had, as llama-server does.
        let listener = TcpListener::bind(addresses.as_slice()).await.map_err(failed)?;
        port = listener.local_addr().map_err(failed)?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

/// What TLS needs, read from its files.
pub fn tls(files: &Tls) -> Result<TlsAcceptor, ServerError> {
    let failed = |path: &std::path::Path, reason: String| ServerError::Tls { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(&files.certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| failed(&files.certificates, error.to_string()))?;
    if chain.is_empty() {
        return Err(failed(&files.certificates, "expected a certificate in PEM, found none".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| failed(&files.key, error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    config
        .map(|config| TlsAcceptor::from(Arc::new(config)))
        .map_err(|error| failed(&files.certificates, error.to_string()))
}

/// The connections of one server.
pub struct Connections {
    pub router: axum::Router,
    pub tls: Option<TlsAcceptor>,
    pub read_timeout: Duration,
    pub room: Arc<Semaphore>,
    pub graceful: GracefulShutdown,
}

impl Connections {
    /// Takes connections of all `listeners` until `ending`, then waits for the open ones to end.
    pub async fn serve(self, listeners: Vec<TcpListener>, ending: watch::Receiver<bool>) {
        let this = Arc::new(self);
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            accepting.spawn(this.clone().accept(listener, ending.clone()));
        }
        while accepting.join_next().await.is_some() {}
        if let Some(this) = Arc::into_inner(this) {
            _ = tokio::time::timeout(GRACE, this.graceful.shutdown()).await;
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, mut ending: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = ending.wait_for(|ending| *ending) => return,
            };
            let permit = tokio::select! {
                permit = self.room.clone().acquire_owned() => permit,
                _ = ending.wait_for(|ending| *ending) => return,
            };
            let Ok((socket, _)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // Tokens are small and each is wanted at once.
            _ = socket.set_nodelay(true);
            let (router, timeout, watcher) = (self.router.clone(), self.read_timeout, self.graceful.watcher());
            let tls = self.tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => talk(socket, router, timeout, watcher).await,
                    Some(tls) => {
                        if let Ok(Ok(socket)) = tokio::time::timeout(timeout, tls.accept(socket)).await {
                            talk(socket, router, timeout, watcher).await;
                        }
                    }
                }
                drop(permit);
            });
        }
    }
}

/// Serves one connection. What goes wrong with it is its client's concern alone.
async fn talk<S>(socket: S, router: axum::Router, read_timeout: Duration, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service =
        TowerToHyperService::new(tower::ServiceExt::map_request(router, |request: hyper::Request<Incoming>| {
            request.map(axum::body::Body::new)
        }));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .max_buf_size(MAX_HEAD)
        // As llama-server writes them: some clients look for names letter by letter.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(socket), service);
    _ = watcher.watch(connection).await;
}
