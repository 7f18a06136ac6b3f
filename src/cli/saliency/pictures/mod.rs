//! Pictures of a saliency run: heatmaps and curves as SVG and PNG, and a page to explore.

mod curves;
mod heatmap;
mod page;
mod scale;
pub mod svg;

use std::path::Path;

use stepflow::saliency::{LayerMetrics, Metric, StepMap};
use stepflow::trace::{Segment, TraceFile};

use crate::cli::output;
use scale::Scale;

/// What pictures show of a run.
pub struct Pictures<'a> {
    pub trace: &'a TraceFile,
    pub segments: &'a [Segment],
    /// The metric shown.
    pub metric: Metric,
    /// Its map of every layer.
    pub maps: Vec<(usize, StepMap)>,
    /// For every layer, which cells are below noise, where values are estimates.
    pub below_noise: Vec<Option<StepMap<bool>>>,
    /// What each layer's map says.
    pub layers: &'a [(usize, LayerMetrics)],
    /// What an even map would say.
    pub even: LayerMetrics,
    /// What was run, in a line.
    pub caption: String,
}

impl Pictures<'_> {
    /// Writes `heatmap`, `curves` and `layers/NN`, each as SVG and PNG, and `index.html`.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let scale = Scale::of(self.maps.iter().map(|(_, map)| map));
        let singles = folder.join("layers");
        std::fs::create_dir_all(&singles)?;
        for (index, (layer, _)) in self.maps.iter().enumerate() {
            both(&singles.join(format!("{layer:02}")), &heatmap::single(self, index, &scale))?;
        }
        both(&folder.join("heatmap"), &heatmap::grid(self, &scale))?;
        let curves = curves::curves(self);
        both(&folder.join("curves"), &curves)?;
        let page = page::page(self, &curves);
        output::write_file(&folder.join("index.html"), |out| out.write_all(page.as_bytes()))
    }

    /// What the numbers are, in words.
    fn title(&self) -> String {
        let marks = if self.below_noise.iter().any(Option::is_some) { "; pale: below noise" } else { "" };
        match self.metric {
            Metric::Signed => format!("abs(signed){marks}"),
            metric => format!("{}{marks}", metric.name()),
        }
    }

    /// The steps at which another segment begins, and its name; the first step's too.
    fn boundaries(&self) -> Vec<(usize, Segment)> {
        let begins = |&(step, segment): &(usize, &Segment)| step == 0 || self.segments[step - 1] != *segment;
        self.segments.iter().enumerate().filter(begins).map(|(step, segment)| (step, *segment)).collect()
    }
}

/// A picture as SVG and as PNG.
pub fn both(path: &Path, picture: &str) -> anyhow::Result<()> {
    output::write_file(&path.with_extension("svg"), |out| out.write_all(picture.as_bytes()))?;
    let png = svg::png(picture)?;
    output::write_file(&path.with_extension("png"), |out| out.write_all(&png))
}
