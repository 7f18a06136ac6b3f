//! Requests to the Hub.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use hf_hub::{HFClient, HFError, split_id};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::Hub;
use super::retry::{Failure, root_cause};

/// A connection silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest chain of renamed repositories followed.
const REDIRECTS: usize = 5;

/// Content of a file as the Hub describes it.
pub struct Blob {
    /// Name of the content in the cache.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// A client of one Hub.
pub struct Client {
    endpoint: Url,
    token: Option<HeaderValue>,
    hub: HFClient,
    follow: reqwest::Client,
    /// For the headers of a redirect itself: they describe the file, those of the CDN behind it do not.
    stay: reqwest::Client,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(hub: &Hub) -> Result<Self> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("stepflow/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(SILENCE)
                .read_timeout(SILENCE)
        };
        let follow = builder().build()?;
        let mut hf = HFClient::builder().endpoint(&hub.endpoint).client(follow.clone()).retry_max_attempts(3);
        let mut token = None;
        if let Some(secret) = &hub.token {
            let bearer = HeaderValue::from_str(&format!("Bearer {secret}"));
            token = Some(bearer.context("HF_TOKEN contains characters that cannot be sent; paste it again")?);
            hf = hf.token(secret);
        }
        let endpoint = Url::parse(hub.endpoint.trim_end_matches('/')).ok().filter(Url::has_host);
        let endpoint = endpoint.with_context(|| format!("HF_ENDPOINT: expected a URL, found {:?}", hub.endpoint))?;
        Ok(Self { endpoint, token, hub: hf.build()?, follow, stay: builder().redirect(Policy::none()).build()? })
    }

    /// The commit that is `main` now and the paths of its files.
    pub async fn listing(&self, repo: &str) -> Result<(String, Vec<String>)> {
        let (org, name) = split_id(repo);
        let info = self.hub.model(org, name).info().send().await.map_err(|error| self.explain(error, repo))?;
        let commit = info.sha.filter(|sha| is_hexadecimal(sha, 40));
        let commit = commit.with_context(|| format!("{} names no commit of {repo}", self.endpoint))?;
        let files = info.siblings.unwrap_or_default();
        Ok((commit, files.into_iter().map(|file| file.rfilename).collect()))
    }

    /// Where a file is transferred from.
    pub fn file_url(&self, repo: &str, commit: &str, path: &str) -> Result<Url> {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow!("HF_ENDPOINT {url} cannot have paths", url = self.endpoint))?
            .pop_if_empty()
            .extend(repo.split('/').chain(["resolve", commit]).chain(path.split('/')));
        Ok(url)
    }

    /// ETag and size of a file.
    pub async fn describe(&self, url: &Url) -> Result<Blob, Failure> {
        let mut url = url.clone();
        for _ in 0..REDIRECTS {
            let response = self.authorized(&self.stay, Method::HEAD, &url).send().await?;
            if let Some(etag) = text(response.headers(), "x-linked-etag") {
                return blob(response.headers(), etag, "x-linked-size").map_err(Failure::Refused);
            }
            if !response.status().is_redirection() {
                let response = self.accept(response, &url)?;
                let etag = text(response.headers(), "etag").unwrap_or_default();
                return blob(response.headers(), etag, "content-length").map_err(Failure::Refused);
            }
            let location = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
            url = url
                .join(location)
                .ok()
                .filter(|next| next.origin() == self.endpoint.origin())
                .ok_or_else(|| Failure::Refused(anyhow!("{url} redirects to {location:?} without an ETag")))?;
        }
        Err(Failure::Refused(anyhow!("{url}: more than {REDIRECTS} redirects")))
    }

    /// The content of a file from byte `start` on, or from its beginning where the server knows no ranges.
    pub async fn content(&self, url: &Url, start: u64) -> Result<Response, Failure> {
        let mut request = self.authorized(&self.follow, Method::GET, url);
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        self.accept(request.send().await?, url)
    }

    /// The token is the endpoint's alone; reqwest drops it where a redirect leaves for another origin.
    fn authorized(&self, client: &reqwest::Client, method: Method, url: &Url) -> RequestBuilder {
        let request = client.request(method, url.clone());
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token),
            None => request,
        }
    }

    fn accept(&self, response: Response, url: &Url) -> Result<Response, Failure> {
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Refused(self.no_access(url.path()))),
            StatusCode::NOT_FOUND => Err(Failure::Refused(anyhow!("{url} does not exist"))),
            status if is_passing(status) => Err(Failure::Lost(anyhow!("the server answered {status}"))),
            status => Err(Failure::Refused(anyhow!("{url}: the server answered {status}"))),
        }
    }

    fn explain(&self, error: HFError, repo: &str) -> Error {
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => self.no_access(repo),
            HFError::RepoNotFound { .. } => anyhow!("{repo} does not exist on {}; check its spelling", self.endpoint),
            error => {
                anyhow!(
                    "cannot list {repo} on {}: {}; a cached model runs with --offline",
                    self.endpoint,
                    root_cause(error)
                )
            }
        }
    }

    /// `what` is the repository or the path of a file in it.
    fn no_access(&self, what: &str) -> Error {
        let repo = what.split("/resolve/").next().unwrap_or(what).trim_start_matches('/');
        let page = format!("{}/{repo}", self.endpoint.as_str().trim_end_matches('/'));
        anyhow!("{repo} is gated or private (or misspelt): accept its terms at {page}, then set HF_TOKEN")
    }
}

/// A status that may be another one soon.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

fn blob(headers: &HeaderMap, etag: &str, size: &str) -> Result<Blob> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    // It becomes the name of a file.
    ensure!(
        !etag.is_empty() && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "the server sent the ETag {etag:?}, expected letters and digits"
    );
    let size = text(headers, size).and_then(|size| size.parse().ok());
    Ok(Blob { etag: etag.to_owned(), size: size.context("the server sent no file size")? })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether `text` is `digits` hexadecimal digits.
pub fn is_hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}
