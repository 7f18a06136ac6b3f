//! What the environment asks for: `STEPFLOW_*`, as `stepflow plug` sets it from its flags.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

use stepflow_core::stepflow::StepFlowConfig;
use stepflow_core::trace::Family;

/// What the plug-in was told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The repairs.
    pub stepflow: StepFlowConfig,
    /// How the model marks its thinking.
    pub family: Option<Family>,
    /// Text that opens thinking.
    pub think_start: Option<String>,
    /// Text that closes thinking.
    pub think_end: Option<String>,
    /// The model file, where it is not mapped.
    pub model: Option<PathBuf>,
    /// The folder for traces of what was said, at the end.
    pub traces: Option<PathBuf>,
    /// Where statistics go at the end.
    pub stats: Option<PathBuf>,
    /// Whether to say nothing but errors.
    pub quiet: bool,
    /// Whether to look and change nothing.
    pub check: bool,
    /// Whether treated rows go through our attention in all layers.
    pub all_layers: bool,
}

/// The settings of this process, or the line that says what is wrong with them.
pub static SETTINGS: LazyLock<Result<Settings, String>> =
    LazyLock::new(|| Settings::read(|name| std::env::var(name).ok()));

/// The variables there are; `STEPFLOW_PLUGGED` is the number of the process that `stepflow plug` became.
const NAMES: [&str; 17] = [
    "STEPFLOW_OEB",
    "STEPFLOW_SMI",
    "STEPFLOW_OEB_LAYERS",
    "STEPFLOW_SMI_LAYERS",
    "STEPFLOW_TAU_MAX",
    "STEPFLOW_ALPHA",
    "STEPFLOW_SMI_WINDOW",
    "STEPFLOW_ALL_LAYERS",
    "STEPFLOW_FAMILY",
    "STEPFLOW_THINK_START",
    "STEPFLOW_THINK_END",
    "STEPFLOW_MODEL",
    "STEPFLOW_SAVE_TRACE",
    "STEPFLOW_STATS",
    "STEPFLOW_QUIET",
    "STEPFLOW_CHECK",
    "STEPFLOW_PLUGGED",
];

/// Variables of the environment that look like ours and are not.
pub fn strangers() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.starts_with("STEPFLOW_") && !NAMES.contains(&name.as_str())).collect()
}

impl Settings {
    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text = |name: &str| get(name).filter(|text| !text.is_empty());
        let is_on = |name: &str, or: bool| match text(name).as_deref() {
            None => Ok(or),
            Some("1" | "on" | "true") => Ok(true),
            Some("0" | "off" | "false") => Ok(false),
            Some(other) => Err(format!("{name}: expected on or off, found `{other}`")),
        };
        let paper = StepFlowConfig::paper();
        let (mut oeb, mut smi) = (paper.oeb.unwrap_or_default(), paper.smi.unwrap_or_default());
        oeb.layers = parsed("STEPFLOW_OEB_LAYERS", &text)?.unwrap_or(oeb.layers);
        oeb.tau_max = parsed("STEPFLOW_TAU_MAX", &text)?.unwrap_or(oeb.tau_max);
        smi.layers = parsed("STEPFLOW_SMI_LAYERS", &text)?.unwrap_or(smi.layers);
        smi.alpha = parsed("STEPFLOW_ALPHA", &text)?.unwrap_or(smi.alpha);
        smi.window = parsed("STEPFLOW_SMI_WINDOW", &text)?.unwrap_or(smi.window);
        let stepflow = StepFlowConfig {
            oeb: is_on("STEPFLOW_OEB", true)?.then_some(oeb),
            smi: is_on("STEPFLOW_SMI", true)?.then_some(smi),
        };
        stepflow.validate().map_err(|error| error.to_string())?;
        Ok(Self {
            stepflow,
            family: parsed("STEPFLOW_FAMILY", &text)?,
            think_start: text("STEPFLOW_THINK_START"),
            think_end: text("STEPFLOW_THINK_END"),
            model: text("STEPFLOW_MODEL").map(PathBuf::from),
            traces: text("STEPFLOW_SAVE_TRACE").map(PathBuf::from),
            stats: text("STEPFLOW_STATS").map(PathBuf::from),
            quiet: is_on("STEPFLOW_QUIET", false)?,
            check: is_on("STEPFLOW_CHECK", false)?,
            all_layers: is_on("STEPFLOW_ALL_LAYERS", true)?,
        })
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: &impl Fn(&str) -> Option<String>,
) -> Result<Option<T>, String> {
    text(name).map(|text| text.trim().parse().map_err(|error| format!("{name}: {error}"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn the_papers_where_nothing_is_said() {
        assert_eq!(read(&[]).unwrap().stepflow, StepFlowConfig::paper());
    }

    #[test]
    fn what_is_said_counts_and_nonsense_is_told() {
        let settings =
            read(&[("STEPFLOW_SMI", "off"), ("STEPFLOW_TAU_MAX", "0.3"), ("STEPFLOW_OEB_LAYERS", "0-2")]).unwrap();
        assert!(settings.stepflow.smi.is_none());
        assert_eq!(settings.stepflow.oeb.unwrap().tau_max, 0.3);
        for (name, text) in [
            ("STEPFLOW_TAU_MAX", "x"),
            ("STEPFLOW_TAU_MAX", "2"),
            ("STEPFLOW_OEB", "maybe"),
            ("STEPFLOW_FAMILY", "none"),
        ] {
            assert!(read(&[(name, text)]).is_err(), "{name}={text}");
        }
    }
}
