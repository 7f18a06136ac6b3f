//! What the repairs of a sequence are set to, and the rows of a micro-batch that they are for.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::graph::Point;
use crate::stepflow::{ConfigError, LayerSelection, Side, StepFlowConfig, Window};

/// A configuration, resolved for a model.
#[derive(Debug)]
pub(super) struct Settings {
    pub oeb_layers: BTreeSet<usize>,
    pub tau_max: f32,
    pub smi_layers: BTreeSet<usize>,
    pub alpha: f32,
    pub window: Window,
}

/// What SMI does to one row.
pub(super) struct Injection {
    pub row: usize,
    /// Its window, at least one cell.
    pub cells: Vec<usize>,
    pub alpha: f32,
}

impl Settings {
    pub fn new(config: &StepFlowConfig, n_layer: usize) -> Result<Self, ConfigError> {
        config.validate()?;
        let (oeb, smi) = (config.oeb.as_ref(), config.smi.as_ref());
        let layers = |selection: Option<&LayerSelection>, side| {
            selection.map_or(Ok(BTreeSet::new()), |selection| selection.resolve(n_layer, side))
        };
        Ok(Self {
            oeb_layers: layers(oeb.map(|oeb| &oeb.layers), Side::Shallow)?,
            tau_max: oeb.map_or(0.0, |oeb| oeb.tau_max),
            smi_layers: layers(smi.map(|smi| &smi.layers), Side::Deep)?,
            alpha: smi.map_or(0.0, |smi| smi.alpha),
            window: smi.map_or(Window::Step, |smi| smi.window),
        })
    }

    pub fn has_effect(&self) -> bool {
        (self.tau_max > 0.0 && !self.oeb_layers.is_empty()) || (self.alpha != 0.0 && !self.smi_layers.is_empty())
    }

    /// The layers of the repair that works at `point`.
    fn layers(&self, point: Point) -> &BTreeSet<usize> {
        match point {
            Point::Attention => &self.oeb_layers,
            Point::HeadOutput => &self.smi_layers,
        }
    }
}

/// The rows of a micro-batch that the repair at one point looks at, each with the settings of its sequence.
pub(super) struct Selected {
    point: Point,
    /// Ascending, each with the index of its settings.
    rows: Vec<(usize, usize)>,
    /// Each once: a layer is asked about much more often than there are settings.
    settings: Vec<Arc<Settings>>,
}

impl Selected {
    pub fn new(point: Point) -> Self {
        Self { point, rows: Vec::new(), settings: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.rows.clear();
        self.settings.clear();
    }

    /// Adds a row behind all others, unless its settings have no layer for it.
    pub fn push(&mut self, row: usize, settings: &Arc<Settings>) {
        if settings.layers(self.point).is_empty() {
            return;
        }
        let known = self.settings.iter().position(|known| Arc::ptr_eq(known, settings));
        let index = known.unwrap_or_else(|| {
            self.settings.push(settings.clone());
            self.settings.len() - 1
        });
        self.rows.push((row, index));
    }

    /// Those of the `n` rows from `first` on that are looked at in some layer, counted from `first`.
    pub fn of_any_layer(&self, first: usize, n: usize) -> impl Iterator<Item = (usize, &Settings)> {
        let before = |end: usize| self.rows.partition_point(|(row, _)| *row < end);
        let inside = self.rows[before(first)..before(first + n)].iter();
        inside.map(move |(row, settings)| (row - first, &*self.settings[*settings]))
    }

    /// Whether any row is looked at in `layer`.
    pub fn wants(&self, layer: usize) -> bool {
        self.settings.iter().any(|settings| settings.layers(self.point).contains(&layer))
    }

    /// Those of the `n` rows from `first` on that are looked at in `layer`, counted from `first`.
    pub fn of_layer(&self, layer: usize, first: usize, n: usize) -> impl Iterator<Item = (usize, &Settings)> {
        self.of_any_layer(first, n).filter(move |(_, settings)| settings.layers(self.point).contains(&layer))
    }
}
