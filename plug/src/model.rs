//! The model that a runtime has loaded, by the file that it has mapped.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use stepflow_core::gguf::Gguf;
use stepflow_core::trace::{Family, Markers};

use super::settings::Settings;
use super::vocabulary::Vocabulary;

/// What StepFlow needs to know of a model.
pub struct Model {
    /// Its name, or its file's.
    pub name: String,
    /// How it marks its thinking.
    pub family: Family,
    /// Whether that was given or found in the model.
    pub family_found: bool,
    /// The markers in use.
    pub markers: Markers,
    /// Its layers.
    pub n_layer: usize,
    /// What a trace says of it.
    pub about: Map<String, Value>,
    vocabulary: Vocabulary,
}

impl Model {
    /// The file that has a weight at this address; where none is mapped there, the one that is named.
    pub fn file_of(weight: *const u8, settings: &Settings) -> Option<PathBuf> {
        mapped_at(weight as usize).or_else(|| settings.model.clone())
    }

    /// The model in a file.
    ///
    /// # Errors
    /// When it is not what StepFlow can read, or no file is known.
    pub fn open(path: Option<&Path>, settings: &Settings) -> Result<Self, String> {
        let path =
            path.ok_or("its model file is not mapped; name it: STEPFLOW_MODEL=FILE (--model of stepflow plug)")?;
        let gguf = Gguf::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let vocabulary = Vocabulary::new(&gguf).ok_or("its model has no vocabulary")?;
        let n_layer = gguf.arch_u64("block_count").ok_or("its model names no layers")? as usize;
        let detected = || Family::detect(|text| vocabulary.has(text), gguf.chat_template());
        let given = settings.think_start.is_some() || settings.think_end.is_some();
        let family = settings.family.or_else(|| if given { Some(Family::Custom) } else { detected() });
        let (family, family_found) = (family.unwrap_or(Family::Implicit), family.is_some());
        let markers = family.markers().with(settings.think_start.as_deref(), settings.think_end.as_deref());
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = |text: Option<&str>| Value::from(text.unwrap_or_default());
        let about = [
            ("name", text(gguf.str("general.name"))),
            ("file", file.clone().into()),
            ("architecture", text(gguf.architecture())),
            ("description", text(None)),
        ];
        let about = about.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let name = gguf.str("general.name").map_or(file, str::to_owned);
        Ok(Self { about, name, family, family_found, markers, n_layer, vocabulary })
    }

    /// What a token says.
    pub fn piece(&self, token: i32) -> Vec<u8> {
        self.vocabulary.piece(token)
    }
}

/// The GGUF that is mapped at an address.
#[cfg(target_os = "linux")]
fn mapped_at(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let holds = |line: &&str| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        range.and_then(|(from, to)| Some((number(from)?..number(to)?).contains(&address))).unwrap_or(false)
    };
    // The path is what follows five fields, and may have spaces.
    let path = maps.lines().find(holds)?.splitn(6, ' ').nth(5)?.trim_start();
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut std::fs::File::open(path).ok()?, &mut magic).ok()?;
    (&magic == b"GGUF").then(|| PathBuf::from(path))
}

#[cfg(not(target_os = "linux"))]
fn mapped_at(_: usize) -> Option<PathBuf> {
    None
}
