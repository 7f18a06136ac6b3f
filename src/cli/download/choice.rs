//! Which files of a repository are the model.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};

use super::Reference;

/// llama.cpp's choice where the user names no quant.
const DEFAULT_QUANT: &str = "Q4_K_M";

/// The files of the model, first part first: `file`, else that of the quant asked for.
pub fn choose(files: &[String], reference: &Reference, file: Option<&str>) -> Result<Vec<String>> {
    let mut models: Vec<&str> = files.iter().map(String::as_str).filter(|path| is_model(path)).collect();
    models.sort_unstable();
    ensure!(!models.is_empty(), "no GGUF model; choose a repository with .gguf files");
    let chosen = match (file, &reference.quant) {
        (Some(file), _) => *models
            .iter()
            .find(|path| **path == file)
            .with_context(|| format!("no model file {file}; available: {}", models.join(", ")))?,
        (None, Some(quant)) => with_quant(&models, quant)?,
        (None, None) => with_quant(&models, DEFAULT_QUANT).unwrap_or(models[0]),
    };
    let parts = parts(chosen);
    match parts.iter().find(|part| !models.contains(&part.as_str())) {
        Some(missing) => bail!("part {missing} of the split model is missing"),
        None => Ok(parts),
    }
}

/// The first model of a quant. A label counts before a mere part of it: `Q4_K` is `Q4_K_M` only where that is clear.
fn with_quant<'a>(models: &[&'a str], quant: &str) -> Result<&'a str> {
    let matching: Vec<&str> = models.iter().copied().filter(|path| has_tag(path, quant)).collect();
    if let Some(path) = matching.iter().find(|path| label(path) == quant) {
        return Ok(path);
    }
    let labels: BTreeSet<String> = matching.iter().map(|path| label(path)).collect();
    ensure!(labels.len() < 2, "quant {quant} could be any of {}; name one", Vec::from_iter(labels).join(", "));
    let available = || Vec::from_iter(models.iter().map(|path| label(path)).collect::<BTreeSet<_>>()).join(", ");
    matching.first().copied().with_context(|| format!("no quant {quant}; available: {}", available()))
}

/// Whether the path contains `quant` (upper case) between delimiters.
fn has_tag(path: &str, quant: &str) -> bool {
    let path = path.to_uppercase();
    let delimits = |c: char| "-._/".contains(c);
    path.match_indices(quant).any(|(start, _)| {
        path[..start].chars().next_back().is_none_or(delimits)
            && path[start + quant.len()..].chars().next().is_none_or(delimits)
    })
}

/// The quantization in a file's name, such as `IQ4_XS` or `BF16`; the path where there is none.
fn label(path: &str) -> String {
    let upper = path.to_uppercase();
    let in_piece = |piece: &str| {
        let words: Vec<&str> = piece.split('_').collect();
        words.iter().position(|word| starts_label(word)).map(|start| words[start..].join("_"))
    };
    upper.rsplit(['-', '.', '/']).find_map(in_piece).unwrap_or_else(|| path.to_owned())
}

fn starts_label(word: &str) -> bool {
    let bits = word.trim_start_matches(['I', 'T']).strip_prefix('Q');
    let quantized = bits.is_some_and(|bits| !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()));
    quantized || ["F16", "F32", "BF16", "MXFP4"].contains(&word)
}

/// GGUF files that are no language model: projectors of images and the statistics behind a quantization.
fn is_model(path: &str) -> bool {
    let lower = path.to_lowercase();
    let name = lower.rsplit('/').next().unwrap_or_default();
    // A listing is foreign input; a path such as `../x` would leave the cache.
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    name.ends_with(".gguf") && !name.contains("mmproj") && !name.contains("imatrix") && inside
}

/// All parts of `model-0000i-of-0000N.gguf`; a model that is not split is its own only part.
fn parts(path: &str) -> Vec<String> {
    let split = || {
        let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, _) = rest.rsplit_once('-').filter(|(_, index)| is_part_number(index))?;
        let total: u32 = count.parse().ok().filter(|total| is_part_number(count) && *total > 0)?;
        Some((1..=total).map(|index| format!("{stem}-{index:05}-of-{count}.gguf")).collect())
    };
    split().unwrap_or_else(|| vec![path.to_owned()])
}

fn is_part_number(digits: &str) -> bool {
    digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())
}
