//! What the user names.

use std::str::FromStr;

use anyhow::{Error, ensure};

/// A model on the Hub, `org/repo[:quant]` as in llama.cpp's `-hf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `org/repo`.
    pub repo: String,
    /// Quantization in upper case, such as `Q8_0`.
    pub quant: Option<String>,
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (repo, quant) = match text.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant)),
            None => (text, None),
        };
        let names: Vec<&str> = repo.split('/').chain(quant).collect();
        ensure!(
            repo.split('/').count() == 2 && names.into_iter().all(is_name),
            "expected org/repo or org/repo:quant, such as ggml-org/Qwen3-0.6B-GGUF:Q8_0, found {text:?}"
        );
        Ok(Self { repo: repo.to_owned(), quant: quant.map(str::to_uppercase) })
    }
}

/// The Hub's alphabet; a name of dots alone would leave the cache.
fn is_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.chars().all(|c| c == '.')
}
