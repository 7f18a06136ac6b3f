//! What StepFlow is set to: the paper's settings by default, validated where they are made.

use std::str::FromStr;

use super::{LayerSelection, Side};

/// A setting that cannot be meant.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not a layer selection.
    #[error("expected layers as `0-6,9` or a share as `25%`, found `{found}`")]
    Layers {
        /// What was given.
        found: String,
    },
    /// A layer past the model's last.
    #[error("layer {layer} is outside the model, whose layers are 0-{}", n_layer - 1)]
    LayerOutside {
        /// The layer asked for.
        layer: usize,
        /// Layers in the model.
        n_layer: usize,
    },
    /// A number out of its range.
    #[error("expected {name} in {range}, found {found}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its valid range.
        range: &'static str,
        /// What was given.
        found: String,
    },
}

/// Odds-Equal Bridge settings.
#[derive(Debug, Clone, PartialEq)]
pub struct OebConfig {
    /// The layers it works in; the first quarter by default.
    pub layers: LayerSelection,
    /// Cap of the floor, a share of attention in 0..=1; 0.15 by default. At 0 nothing is bridged.
    pub tau_max: f32,
}

/// Step Momentum Injection settings.
#[derive(Debug, Clone, PartialEq)]
pub struct SmiConfig {
    /// The layers it works in; the last quarter by default.
    pub layers: LayerSelection,
    /// Strength of the injected mean, finite; 0.06 by default. At 0 nothing is injected.
    pub alpha: f32,
    /// Cells of the previous step that are averaged; its last 4 by default.
    pub window: Window,
}

/// How much of the previous step SMI averages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last cells of the step, at least 1 (the released code: 4).
    Last(usize),
    /// The whole step, as the paper writes it.
    Step,
}

/// Which repairs are on, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepFlowConfig {
    /// Odds-Equal Bridge, if on.
    pub oeb: Option<OebConfig>,
    /// Step Momentum Injection, if on.
    pub smi: Option<SmiConfig>,
}

impl StepFlowConfig {
    /// Both repairs at the paper's settings.
    pub fn paper() -> Self {
        Self { oeb: Some(OebConfig::default()), smi: Some(SmiConfig::default()) }
    }

    /// Whether any repair is on.
    pub fn is_on(&self) -> bool {
        self.oeb.is_some() || self.smi.is_some()
    }

    /// Checks the numbers; layers are checked once the model is known.
    ///
    /// # Errors
    /// When `tau_max` is not in 0..=1, or `alpha` is not finite or beyond 10 in size.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(oeb) = &self.oeb
            && !(0.0..=1.0).contains(&oeb.tau_max)
        {
            return Err(ConfigError::OutOfRange { name: "tau-max", range: "0..1", found: oeb.tau_max.to_string() });
        }
        if let Some(smi) = &self.smi
            && !(-10.0..=10.0).contains(&smi.alpha)
        {
            return Err(ConfigError::OutOfRange { name: "alpha", range: "-10..10", found: smi.alpha.to_string() });
        }
        Ok(())
    }

    /// Checks the same, and that a model of `n_layer` layers has those that are named.
    ///
    /// # Errors
    /// As [`StepFlowConfig::validate`], and when a layer is outside the model.
    pub fn validate_for(&self, n_layer: usize) -> Result<(), ConfigError> {
        self.validate()?;
        if let Some(oeb) = &self.oeb {
            oeb.layers.resolve(n_layer, Side::Shallow)?;
        }
        if let Some(smi) = &self.smi {
            smi.layers.resolve(n_layer, Side::Deep)?;
        }
        Ok(())
    }
}

impl Default for OebConfig {
    fn default() -> Self {
        Self { layers: LayerSelection::Percent(25.0), tau_max: 0.15 }
    }
}

impl Default for SmiConfig {
    fn default() -> Self {
        Self { layers: LayerSelection::Percent(25.0), alpha: 0.06, window: Window::Last(4) }
    }
}

impl FromStr for Window {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.parse::<usize>() {
            Ok(cells) if cells > 0 => Ok(Self::Last(cells)),
            _ if text == "step" => Ok(Self::Step),
            _ => Err(ConfigError::OutOfRange {
                name: "smi-window",
                range: "1.. (cells), or `step` for the whole step",
                found: format!("`{text}`"),
            }),
        }
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Last(cells) => write!(f, "{cells}"),
            Self::Step => write!(f, "step"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_settings_are_valid() {
        assert_eq!(StepFlowConfig::paper().validate(), Ok(()));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for tau_max in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            let oeb = Some(OebConfig { tau_max, ..OebConfig::default() });
            assert!(StepFlowConfig { oeb, smi: None }.validate().is_err(), "tau_max {tau_max}");
        }
        for alpha in [f32::NAN, f32::INFINITY, 11.0, -11.0] {
            let smi = Some(SmiConfig { alpha, ..SmiConfig::default() });
            assert!(StepFlowConfig { oeb: None, smi }.validate().is_err(), "alpha {alpha}");
        }
    }

    #[test]
    fn windows() {
        assert_eq!("4".parse(), Ok(Window::Last(4)));
        assert_eq!("step".parse(), Ok(Window::Step));
        assert!("0".parse::<Window>().is_err());
        assert!("-1".parse::<Window>().is_err());
    }
}
