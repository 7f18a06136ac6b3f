//! Arms: the settings of StepFlow that are compared.

use std::str::FromStr;

use crate::stepflow::{OebConfig, SmiConfig, StepFlowConfig};

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Its name in the results.
    pub name: String,
    /// Its repairs.
    pub stepflow: StepFlowConfig,
}

impl Arm {
    /// The arm that every other is compared with.
    pub const BASELINE: &str = "baseline";

    /// No repairs.
    pub fn baseline() -> Self {
        Self { name: Self::BASELINE.to_owned(), stepflow: StepFlowConfig::default() }
    }

    /// Its settings, as [`FromStr`] reads them.
    pub fn settings(&self) -> String {
        let mut parts = Vec::new();
        match &self.stepflow.oeb {
            Some(oeb) => parts.push(format!("tau_max={},oeb_layers={}", oeb.tau_max, oeb.layers)),
            None => parts.push("oeb=off".to_owned()),
        }
        match &self.stepflow.smi {
            Some(smi) => {
                parts.push(format!("alpha={},smi_layers={},smi_window={}", smi.alpha, smi.layers, smi.window));
            }
            None => parts.push("smi=off".to_owned()),
        }
        parts.join(",")
    }
}

/// An arm that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("arm `{text}`: {reason}")]
pub struct ArmError {
    text: String,
    reason: String,
}

impl FromStr for Arm {
    type Err = ArmError;

    /// `baseline`, `oeb`, `smi` or `stepflow` at the paper's settings, or `name:key=value,...`, both repairs on, with
    /// the paper's value for every key that is not named. A list of layers may hold commas.
    fn from_str(text: &str) -> Result<Self, ArmError> {
        let error = |reason: String| ArmError { text: text.to_owned(), reason };
        let paper = StepFlowConfig::paper();
        let (name, settings) = match text.split_once(':') {
            Some((name, settings)) => (name, Some(settings)),
            None => (text, None),
        };
        let stepflow = match (settings, name) {
            (None, Self::BASELINE) => StepFlowConfig::default(),
            (None, "oeb") => StepFlowConfig { smi: None, ..paper },
            (None, "smi") => StepFlowConfig { oeb: None, ..paper },
            (None, "stepflow") => paper,
            (None, _) => {
                return Err(error("expected baseline, oeb, smi, stepflow, or name:tau_max=0.3,alpha=0.1".to_owned()));
            }
            (Some(_), Self::BASELINE | "") => return Err(error("settings need a name of their own".to_owned())),
            (Some(settings), _) => settings_of(settings).map_err(error)?,
        };
        if name.chars().any(|c| c.is_control() || "|,\"".contains(c)) {
            return Err(error("expected a name without `|`, `,` and quotes".to_owned()));
        }
        stepflow.validate().map_err(|reason| error(reason.to_string()))?;
        Ok(Self { name: name.to_owned(), stepflow })
    }
}

fn settings_of(text: &str) -> Result<StepFlowConfig, String> {
    // A comma inside a list of layers begins no new setting.
    let mut settings: Vec<(&str, String)> = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        match (part.split_once('='), settings.last_mut()) {
            (Some((key, value)), _) => settings.push((key.trim(), value.trim().to_owned())),
            (None, Some((_, value))) => *value += &format!(",{part}"),
            (None, None) => return Err(format!("expected key=value, found `{part}`")),
        }
    }
    let (mut oeb, mut smi) = (OebConfig::default(), SmiConfig::default());
    let (mut oeb_on, mut smi_on) = (true, true);
    for (key, value) in &settings {
        let number = || value.parse().map_err(|_| format!("expected a number for {key}, found `{value}`"));
        let switch = || match value.as_str() {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("expected on or off for {key}, found `{value}`")),
        };
        match *key {
            "oeb" => oeb_on = switch()?,
            "smi" => smi_on = switch()?,
            "tau_max" => oeb.tau_max = number()?,
            "alpha" => smi.alpha = number()?,
            "oeb_layers" => oeb.layers = value.parse().map_err(|e| format!("{e}"))?,
            "smi_layers" => smi.layers = value.parse().map_err(|e| format!("{e}"))?,
            "smi_window" => smi.window = value.parse().map_err(|e| format!("{e}"))?,
            _ => {
                let keys = "oeb, smi, tau_max, alpha, oeb_layers, smi_layers, smi_window";
                return Err(format!("unknown setting `{key}`; expected some of {keys}"));
            }
        }
    }
    Ok(StepFlowConfig { oeb: oeb_on.then_some(oeb), smi: smi_on.then_some(smi) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_by_name_and_by_settings() {
        assert_eq!("baseline".parse::<Arm>().unwrap(), Arm::baseline());
        assert_eq!("stepflow".parse::<Arm>().unwrap().stepflow, StepFlowConfig::paper());
        assert!("oeb".parse::<Arm>().unwrap().stepflow.smi.is_none());
        let arm: Arm = "strong:tau_max=0.3,oeb_layers=0-2,5,alpha=0.1,smi_window=step".parse().unwrap();
        assert_eq!(arm.name, "strong");
        assert_eq!(arm.settings(), "tau_max=0.3,oeb_layers=0-2,5,alpha=0.1,smi_layers=25%,smi_window=step");
        let again: Arm = format!("again:{}", arm.settings()).parse().unwrap();
        assert_eq!(again.stepflow, arm.stepflow);
        let off: Arm = "only:smi=off,tau_max=1".parse().unwrap();
        assert!(off.stepflow.smi.is_none() && off.stepflow.oeb.is_some());
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (text, says) in [
            ("strong", "expected baseline"),
            ("a:tau=1", "unknown setting `tau`"),
            ("a:tau_max=x", "expected a number for tau_max"),
            ("a:tau_max=2", "0..1"),
            ("a:0-6", "expected key=value"),
            ("a:oeb=maybe", "on or off"),
            ("baseline:alpha=1", "name of their own"),
            ("x|y:alpha=1", "without"),
        ] {
            let error = text.parse::<Arm>().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
