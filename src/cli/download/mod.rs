//! `-hf org/repo[:quant]`: brings a model from the Hugging Face Hub into the cache that Hugging Face's own tools share.
//!
//! hf-hub lists repositories and knows where the cache is; its transfers neither resume nor verify, so [`transfer`] does.

mod cache;
mod choice;
mod client;
mod partial;
mod progress;
mod reference;
mod retry;
mod transfer;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub use reference::Reference;

use cache::Cache;
use client::Client;

/// Where models come from and where they are kept.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Base URL of the Hub or of a mirror.
    pub endpoint: String,
    /// Access token for gated and private repositories.
    pub token: Option<String>,
    /// Directory with one folder per repository.
    pub cache: PathBuf,
    /// Use the cache alone.
    pub offline: bool,
}

/// Path in the cache of the model `reference` names, transferred first where it is missing.
///
/// `file` names one file of the repository instead of a quant (`-hff`). Of a split model all parts are fetched, and the
/// path is that of the first. The environment configures the Hub, see [`Hub::from_env`].
pub fn fetch(reference: &Reference, file: Option<&str>, offline: bool) -> Result<PathBuf> {
    Hub::from_env(offline).fetch(reference, file)
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN` (else the token stored by `hf auth login`), `HF_HUB_CACHE`, `HF_HOME` and
    /// `HF_HUB_OFFLINE`.
    pub fn from_env(offline: bool) -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let stored = || {
            let path = set("HF_TOKEN_PATH").map_or_else(|| hf_hub::hf_home().join("token"), PathBuf::from);
            std::fs::read_to_string(path).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
        };
        let truth = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: set("HF_TOKEN").or_else(stored),
            cache: hf_hub::resolve_cache_dir(),
            offline: offline || set("HF_HUB_OFFLINE").is_some_and(truth),
        }
    }

    /// See [`fetch`].
    pub fn fetch(&self, reference: &Reference, file: Option<&str>) -> Result<PathBuf> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if self.offline { self.cached(reference, file).await } else { self.download(reference, file).await }
        })
    }

    async fn download(&self, reference: &Reference, file: Option<&str>) -> Result<PathBuf> {
        let client = Client::new(self)?;
        let cache = Cache::new(self, &reference.repo);
        let (commit, files) = client.listing(&reference.repo).await?;
        let parts = choice::choose(&files, reference, file).with_context(|| reference.repo.clone())?;
        for part in &parts {
            if !cache.snapshot(&commit, part).exists() {
                let url = client.file_url(&reference.repo, &commit, part)?;
                let etag = transfer::transfer(&client, &url, part, &cache).await?;
                cache.link(&commit, part, &etag)?;
            }
        }
        cache.write_main(&commit)?;
        Ok(cache.snapshot(&commit, &parts[0]))
    }

    async fn cached(&self, reference: &Reference, file: Option<&str>) -> Result<PathBuf> {
        let cache = Cache::new(self, &reference.repo);
        let Some((commit, files)) = cache.main().await? else {
            let cache = self.cache.display();
            bail!("{} is not in the cache {cache}; run once without --offline and HF_HUB_OFFLINE", reference.repo);
        };
        let parts = choice::choose(&files, reference, file)
            .with_context(|| format!("{} in the cache {} (offline)", reference.repo, self.cache.display()))?;
        Ok(cache.snapshot(&commit, &parts[0]))
    }
}
