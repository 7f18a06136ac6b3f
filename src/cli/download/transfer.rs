//! One file from the Hub to the cache: resumed where it stopped, verified before it counts.

use anyhow::{Context, Result, anyhow};
use reqwest::{StatusCode, Url};

use super::cache::Cache;
use super::client::{Blob, Client, is_hexadecimal};
use super::partial::Partial;
use super::progress::Progress;
use super::retry::{Failure, Retry};

/// Brings the file `name` at `url` into the cache, if its content is not there yet, and returns its ETag.
pub async fn transfer(client: &Client, url: &Url, name: &str, cache: &Cache) -> Result<String> {
    let blob = describe(client, url).await.with_context(|| format!("cannot fetch {name}"))?;
    let path = cache.blob(&blob.etag);
    if !path.exists() {
        let mut partial = Partial::open(&path)?;
        fill(client, url, name, &blob, &mut partial).await.with_context(|| format!("cannot fetch {name}"))?;
        // Large files carry the ETag of Git LFS, their SHA-256.
        let sha256 = Some(blob.etag.as_str()).filter(|etag| is_hexadecimal(etag, 64));
        partial.publish(&path, sha256).with_context(|| name.to_owned())?;
    }
    Ok(blob.etag)
}

async fn describe(client: &Client, url: &Url) -> Result<Blob> {
    let mut retry = Retry::default();
    loop {
        match client.describe(url).await {
            Ok(blob) => return Ok(blob),
            Err(failure) => retry.after(failure, false).await?,
        }
    }
}

async fn fill(client: &Client, url: &Url, name: &str, blob: &Blob, partial: &mut Partial) -> Result<()> {
    if partial.length() > blob.size {
        partial.restart()?;
    }
    let mut progress = Progress::new(name, blob.size, partial.length());
    let mut retry = Retry::default();
    let mut farthest = partial.length();
    while partial.length() < blob.size {
        if let Err(failure) = attempt(client, url, blob.size, partial, &mut progress).await {
            retry.after(failure, partial.length() > farthest).await.with_context(|| {
                format!("stopped at {} of {} bytes; run again to resume", partial.length(), blob.size)
            })?;
            farthest = farthest.max(partial.length());
        }
    }
    progress.finish();
    Ok(())
}

/// One request; returns once the file is complete.
async fn attempt(
    client: &Client,
    url: &Url,
    size: u64,
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut response = client.content(url, partial.length()).await?;
    if response.status() != StatusCode::PARTIAL_CONTENT {
        partial.restart().map_err(Failure::Refused)?;
    }
    while let Some(bytes) = response.chunk().await? {
        if partial.length() + bytes.len() as u64 > size {
            return Err(Failure::Refused(anyhow!("the server sent more than the {size} bytes it announced")));
        }
        partial.append(&bytes).map_err(Failure::Refused)?;
        progress.set(partial.length());
    }
    if partial.length() < size { Err(Failure::Lost(anyhow!("the connection ended early"))) } else { Ok(()) }
}
