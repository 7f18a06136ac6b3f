//! StepFlow's settings as a file: what `tune` writes and `--config` reads.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use stepflow::engine::EngineError;
use stepflow::stepflow::{OebConfig, SmiConfig, StepFlowConfig};

use super::input;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    oeb: Option<Oeb>,
    smi: Option<Smi>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Oeb {
    tau_max: Option<f64>,
    layers: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Smi {
    alpha: Option<f64>,
    layers: Option<String>,
    window: Option<Window>,
}

/// A number of cells, or `"step"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Window {
    Cells(u32),
    Text(String),
}

/// Reads a file: a table `[oeb]` or `[smi]` turns that repair on, with the paper's value for what it does not set.
///
/// # Errors
/// When it cannot be read, is no TOML, sets something unknown, or a value cannot be meant.
pub fn read(path: &Path) -> anyhow::Result<StepFlowConfig> {
    let text = input::read_text(path)?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<StepFlowConfig> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        anyhow::anyhow!(
            "line {line}: {}; expected tables such as `[oeb]` with `tau_max = 0.15` and `[smi]` with `alpha = 0.06`",
            error.message()
        )
    })?;
    let mut config = StepFlowConfig::default();
    if let Some(given) = file.oeb {
        let oeb = config.oeb.insert(OebConfig::default());
        oeb.tau_max = given.tau_max.map_or(oeb.tau_max, |value| value as f32);
        if let Some(layers) = given.layers {
            oeb.layers = layers.parse().map_err(EngineError::from)?;
        }
    }
    if let Some(given) = file.smi {
        let smi = config.smi.insert(SmiConfig::default());
        smi.alpha = given.alpha.map_or(smi.alpha, |value| value as f32);
        if let Some(layers) = given.layers {
            smi.layers = layers.parse().map_err(EngineError::from)?;
        }
        match given.window {
            Some(Window::Cells(cells)) => smi.window = cells.to_string().parse().map_err(EngineError::from)?,
            Some(Window::Text(text)) => smi.window = text.parse().map_err(EngineError::from)?,
            None => {}
        }
    }
    config.validate().map_err(EngineError::from)?;
    Ok(config)
}

/// Settings as such a file, without comments.
pub fn write(config: &StepFlowConfig) -> anyhow::Result<String> {
    // By way of text, so that 0.3 is not written as 0.30000001192.
    let number = |value: f32| value.to_string().parse::<f64>().ok();
    let oeb = |oeb: &OebConfig| Oeb { tau_max: number(oeb.tau_max), layers: Some(oeb.layers.to_string()) };
    let smi = |smi: &SmiConfig| Smi {
        alpha: number(smi.alpha),
        layers: Some(smi.layers.to_string()),
        window: Some(match smi.window.to_string() {
            text if text == "step" => Window::Text(text),
            cells => Window::Cells(cells.parse().unwrap_or(u32::MAX)),
        }),
    };
    Ok(toml::to_string(&File { oeb: config.oeb.as_ref().map(oeb), smi: config.smi.as_ref().map(smi) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text =
            "[oeb]\ntau_max = 0.3\nlayers = \"0-2,5\"\n\n[smi]\nalpha = -0.1\nlayers = \"50%\"\nwindow = \"step\"\n";
        let config = parse(text).unwrap();
        assert_eq!(write(&config).unwrap(), text);
        assert_eq!(parse("[smi]").unwrap(), StepFlowConfig { oeb: None, ..StepFlowConfig::paper() });
        assert_eq!(parse("").unwrap(), StepFlowConfig::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_one_line() {
        for (text, says) in [
            ("[oeb]\ntau = 1", "line 2"),
            ("[oeb", "line 1"),
            ("[oeb]\ntau_max = 2.0", "0..1"),
            ("[smi]\nlayers = \"x\"", "0-6,9"),
            ("[smi]\nwindow = 0", "smi-window"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
