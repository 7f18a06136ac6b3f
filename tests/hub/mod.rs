//! A small Hub on 127.0.0.1: one repository, a CDN on another port behind redirects, and faults on demand.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The repository served; `/old/name` redirects to it.
pub const REPO: &str = "org/repo";

/// The commit of `main`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// ETag of files served without Git LFS.
pub const GIT_ETAG: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// What befalls one transfer of content.
pub enum Fault {
    /// The connection closes after so many bytes.
    Cut(usize),
    /// An answer with this status instead of content.
    Status(u16),
}

/// How the server misbehaves.
#[derive(Default)]
pub struct Faults {
    /// One for each transfer to come, in order.
    pub content: VecDeque<Fault>,
    /// Status of the listing.
    pub listing: Option<u16>,
    /// Status of what should redirect to the CDN.
    pub resolve: Option<u16>,
    pub ignores_ranges: bool,
    pub wrong_checksum: bool,
    /// Serve content from the Hub itself, without the headers of Git LFS.
    pub without_lfs: bool,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub at_cdn: bool,
}

struct State {
    files: Vec<(String, Vec<u8>)>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Request>>,
    hub: SocketAddr,
    cdn: SocketAddr,
    stopped: AtomicBool,
}

/// The running server; it stops when dropped.
pub struct Server {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves files, each of a path and its content.
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [hub, cdn] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let state = Arc::new(State {
            files: files.iter().map(|(path, content)| (path.to_string(), content.to_vec())).collect(),
            faults: Mutex::default(),
            log: Mutex::default(),
            hub,
            cdn,
            stopped: AtomicBool::new(false),
        });
        let threads = listeners.into_iter().map(|listener| {
            let state = Arc::clone(&state);
            std::thread::spawn(move || state.serve(&listener))
        });
        Self { threads: threads.collect(), state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.state.hub)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.state.faults.lock().unwrap()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// The ranges asked for by the transfers of content so far.
    pub fn transfers(&self) -> Vec<Option<String>> {
        self.requests().into_iter().filter(|request| request.at_cdn).map(|request| request.range).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // A connection wakes each listener.
        for address in [self.state.hub, self.state.cdn] {
            drop(TcpStream::connect(address));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl State {
    fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            // A client that hangs up early is none of the server's business.
            let _ = stream.and_then(|stream| self.answer(stream));
        }
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let at_cdn = stream.local_addr()? == self.cdn;
        let request = read_request(&stream, at_cdn)?;
        self.log.lock().unwrap().push(request.clone());
        let mut faults = self.faults.lock().unwrap();
        if request.at_cdn {
            return self.content(&mut stream, &request, &mut faults);
        }
        let moved = ["/old/name", "/api/models/old/name"].iter().any(|old| request.path.starts_with(old));
        if moved {
            let location = request.path.replace("old/name", REPO);
            return head(&mut stream, 307, &[("Location", location)]);
        }
        let listing = format!("/api/models/{REPO}");
        let resolve = format!("/{REPO}/resolve/{COMMIT}/");
        if request.path == listing {
            self.listing(&mut stream, &faults)
        } else if request.path.starts_with(&resolve) {
            self.resolve(&mut stream, &request, &mut faults)
        } else {
            head(&mut stream, 404, &[])
        }
    }

    fn listing(&self, stream: &mut TcpStream, faults: &Faults) -> std::io::Result<()> {
        if let Some(status) = faults.listing {
            return head(stream, status, &[]);
        }
        let siblings: Vec<_> = self.files.iter().map(|(path, _)| serde_json::json!({ "rfilename": path })).collect();
        let body = serde_json::json!({ "_id": "1", "id": REPO, "sha": COMMIT, "siblings": siblings }).to_string();
        let headers = [("Content-Type", "application/json".into()), ("Content-Length", body.len().to_string())];
        head(stream, 200, &headers)?;
        stream.write_all(body.as_bytes())
    }

    fn resolve(&self, stream: &mut TcpStream, request: &Request, faults: &mut Faults) -> std::io::Result<()> {
        let Some(content) = self.file(&request.path).filter(|_| faults.resolve.is_none()) else {
            return head(stream, faults.resolve.unwrap_or(404), &[]);
        };
        if !faults.without_lfs {
            let hashed = if faults.wrong_checksum { b"something else" } else { content };
            return head(
                stream,
                302,
                &[
                    ("Location", format!("http://{}{}", self.cdn, request.path)),
                    ("ETag", "\"of the redirect\"".into()),
                    ("X-Linked-ETag", format!("\"{}\"", sha256(hashed))),
                    ("X-Linked-Size", content.len().to_string()),
                ],
            );
        }
        if request.method == "HEAD" {
            let headers = [("ETag", format!("W/\"{GIT_ETAG}\"")), ("Content-Length", content.len().to_string())];
            return head(stream, 200, &headers);
        }
        self.content(stream, request, faults)
    }

    fn content(&self, stream: &mut TcpStream, request: &Request, faults: &mut Faults) -> std::io::Result<()> {
        let Some(content) = self.file(&request.path) else { return head(stream, 404, &[]) };
        let start = request.range.as_deref().filter(|_| !faults.ignores_ranges).map(|range| {
            let digits = range.trim_start_matches("bytes=").trim_end_matches('-');
            digits.parse::<usize>().expect("an open range of bytes")
        });
        let rest = &content[start.unwrap_or(0)..];
        let sent = match faults.content.pop_front() {
            Some(Fault::Status(status)) => return head(stream, status, &[]),
            Some(Fault::Cut(length)) => &rest[..length],
            None => rest,
        };
        let mut headers = vec![("Content-Length", rest.len().to_string())];
        if let Some(start) = start {
            headers.push(("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len())));
        }
        head(stream, if start.is_some() { 206 } else { 200 }, &headers)?;
        stream.write_all(sent)
    }

    fn file(&self, url_path: &str) -> Option<&[u8]> {
        let path = url_path.split_once(COMMIT)?.1.trim_start_matches('/');
        self.files.iter().find(|(name, _)| name == path).map(|(_, content)| content.as_slice())
    }
}

/// SHA-256 as Git LFS writes it.
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_request(stream: &TcpStream, at_cdn: bool) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, range: None, authorization: None, at_cdn };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => request.range = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(request)
}

fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        text += "Content-Length: 0\r\n";
    }
    stream.write_all((text + "\r\n").as_bytes())
}
