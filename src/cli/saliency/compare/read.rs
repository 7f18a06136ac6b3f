//! Runs of `saliency`, read back from the folders they left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stepflow::saliency::{Metric, StepMap};
use stepflow::stepflow::LayerSelection;
use stepflow::trace::Segment;

/// What a run found.
pub struct Run {
    /// Its folder.
    pub path: PathBuf,
    pub about: About,
    /// The segments of its steps.
    pub segments: Vec<Segment>,
    /// The metric of its maps.
    pub metric: String,
    /// For every layer, how each query step shares itself among the steps it sees; NaN where that is not known.
    pub shares: BTreeMap<usize, StepMap>,
    /// What `layers.csv` says: by metric and layer.
    pub layers: BTreeMap<(String, usize), f64>,
}

/// What `run.json` says of it.
#[derive(Deserialize)]
pub struct About {
    pub run_id: String,
    pub trace_sha256: String,
    pub method: String,
    layers: BTreeSet<usize>,
    loss: Option<Loss>,
    probe: Option<serde_json::Value>,
}

/// What it says of the loss.
#[derive(Deserialize)]
struct Loss {
    of: String,
}

impl Run {
    /// What its numbers hang on besides model and trace, in words.
    pub fn how(&self) -> String {
        let loss = self.about.loss.as_ref().map_or(String::new(), |loss| format!(", loss of {}", loss.of));
        let probe = self.about.probe.as_ref().map_or(String::new(), |probe| format!(", {probe}"));
        let layers: LayerSelection = self.about.layers.iter().copied().collect();
        format!("{} by {}, layers {layers}{loss}{probe}", self.metric, self.about.method)
    }

    /// Its layers.
    pub fn layers(&self) -> &BTreeSet<usize> {
        &self.about.layers
    }
}

/// A row of `cells.csv`.
#[derive(Deserialize)]
struct Cell {
    layer: usize,
    query_step: usize,
    key_step: usize,
    metric: String,
    value: Option<f64>,
}

/// A row of `layers.csv`.
#[derive(Deserialize)]
struct Layer {
    layer: usize,
    metric: String,
    value: Option<f64>,
}

/// A row of `steps.csv`.
#[derive(Deserialize)]
struct Step {
    segment: Segment,
}

/// The run in a folder, or those in the folders in it.
pub fn runs(folder: &Path) -> anyhow::Result<Vec<Run>> {
    let expected = || format!("{}: expected the folder of a run of `stepflow saliency`", folder.display());
    let entries = std::fs::read_dir(folder).with_context(expected)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.join("run.json").is_file());
    paths.sort();
    if folder.join("run.json").is_file() {
        if let Some(other) = paths.first() {
            bail!(
                "{}: expected one run or a folder of runs, found both: {} is another",
                folder.display(),
                other.display()
            );
        }
        return Ok(vec![run(folder.to_owned())?]);
    }
    if paths.is_empty() {
        bail!(
            "{}: expected what `stepflow saliency -o` leaves, found no run.json in it or a folder in it",
            folder.display()
        );
    }
    paths.into_iter().map(run).collect()
}

fn run(path: PathBuf) -> anyhow::Result<Run> {
    let json = path.join("run.json");
    let text = std::fs::read(&json).with_context(|| json.display().to_string())?;
    let about: About = serde_json::from_slice(&text).with_context(|| json.display().to_string())?;
    let segments: Vec<Segment> = rows(&path.join("steps.csv"), |step: Step| step.segment)?;
    let layers = rows(&path.join("layers.csv"), |row: Layer| {
        Some(((row.metric, row.layer), row.value.filter(|value| value.is_finite())?))
    })?;
    let (metric, maps) = maps(&path.join("cells.csv"), segments.len())?;
    if !maps.keys().eq(&about.layers) {
        bail!("{}: cells.csv has other layers than run.json: it is cut short", path.display());
    }
    let shares = maps.into_iter().map(|(layer, map)| (layer, shares(&map))).collect();
    Ok(Run { path, about, segments, metric, shares, layers: layers.into_iter().flatten().collect() })
}

/// What `read` makes of every row of a table.
fn rows<R: DeserializeOwned, T>(path: &Path, mut read: impl FnMut(R) -> T) -> anyhow::Result<Vec<T>> {
    let mut csv = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    csv.deserialize().map(|row| Ok(read(row?))).collect::<csv::Result<_>>().with_context(|| path.display().to_string())
}

/// The most telling metric in a table of cells, and the magnitudes of its map of every layer.
fn maps(path: &Path, n_steps: usize) -> anyhow::Result<(String, BTreeMap<usize, StepMap>)> {
    let (mut best, mut cells) = (Metric::ALL.len(), Vec::new());
    rows(path, |cell: Cell| {
        let rank = Metric::ALL.into_iter().position(|metric| metric.name() == cell.metric).unwrap_or(Metric::ALL.len());
        if rank < best {
            best = rank;
            cells.clear();
        }
        if rank == best {
            cells.push((cell.layer, cell.query_step, cell.key_step, cell.value));
        }
    })?;
    let Some(metric) = Metric::ALL.get(best) else {
        let names = Metric::ALL.map(Metric::name).join(", ");
        bail!("{}: expected cells of {names}, found none", path.display());
    };
    let (n_layers, expected) =
        (cells.iter().map(|cell| cell.0).collect::<BTreeSet<_>>().len(), n_steps * (n_steps + 1) / 2);
    if cells.len() != n_layers * expected {
        let n = cells.len();
        bail!("{}: expected {expected} cells in each of {n_layers} layers, found {n}: it is cut short", path.display());
    }
    let mut maps = BTreeMap::new();
    for (layer, query, key, value) in cells {
        if key > query || query >= n_steps {
            bail!("{}: steps {query} and {key} are not two of {n_steps}, in order", path.display());
        }
        let map = maps.entry(layer).or_insert_with(|| StepMap::<f64>::new(n_steps).map(|_| f64::NAN));
        map.set(query, key, value.map_or(f64::NAN, f64::abs));
    }
    Ok((metric.name().to_owned(), maps))
}

/// The map with every row divided by its sum.
fn shares(map: &StepMap) -> StepMap {
    let mut shares = StepMap::new(map.n_steps());
    for query in 0..map.n_steps() {
        let total: f64 = map.row(query).iter().sum();
        for (key, value) in map.row(query).iter().enumerate() {
            shares.set(query, key, if total > 0.0 { value / total } else { f64::NAN });
        }
    }
    shares
}
