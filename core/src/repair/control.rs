//! The handle on running repairs: their switch, the settings of every sequence, and the statistics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::graph::Row;
use crate::stepflow::{ConfigError, Kernels, LayerStats, Stats, StepFlowConfig};

use super::settings::Settings;

/// A handle on a running [`Repair`](super::Repair): its switch, its settings and its statistics.
#[derive(Debug, Clone)]
pub struct Control {
    on: Arc<AtomicBool>,
    n_layer: usize,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Of sequences without their own.
    pub settings: Arc<Settings>,
    own: BTreeMap<u32, Arc<Settings>>,
    /// By sequence.
    stats: BTreeMap<u32, Stats>,
}

impl Shared {
    pub fn settings_of(&self, sequence: u32) -> &Arc<Settings> {
        self.own.get(&sequence).unwrap_or(&self.settings)
    }

    /// Counts what `kernels` did to a row in `layer`.
    pub fn count(&mut self, row: &Row, layer: usize, kernels: Kernels, counted: &LayerStats) {
        let stats = self.stats.entry(row.sequence).or_default().layer(layer);
        stats.merge(counted);
        stats.kernels = Some(kernels);
    }
}

impl Control {
    pub(super) fn new(config: &StepFlowConfig, n_layer: usize) -> Result<Self, ConfigError> {
        let settings = Arc::new(Settings::new(config, n_layer)?);
        let shared = Shared { settings, own: BTreeMap::new(), stats: BTreeMap::new() };
        Ok(Self { on: Arc::new(AtomicBool::new(true)), n_layer, shared: Arc::new(Mutex::new(shared)) })
    }

    /// Switches the repairs of all sequences on or off, from the next decode on.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Whether the repairs are on.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Whether the settings of sequences without their own can change anything: a repair has a layer and a strength.
    pub fn has_effect(&self) -> bool {
        self.lock().settings.has_effect()
    }

    /// Other settings, from the next decode on, for the sequences that [`Control::configure_sequence`] gave none.
    ///
    /// # Errors
    /// As [`Repair::new`](super::Repair::new); the old settings stay then.
    pub fn configure(&self, config: &StepFlowConfig) -> Result<(), ConfigError> {
        self.lock().settings = Arc::new(Settings::new(config, self.n_layer)?);
        Ok(())
    }

    /// Settings of one sequence alone, from the next decode on; they stay until it is given others. With neither repair
    /// its rows are left as llama.cpp computed them.
    ///
    /// # Errors
    /// As [`Repair::new`](super::Repair::new); the old settings stay then.
    pub fn configure_sequence(&self, sequence: u32, config: &StepFlowConfig) -> Result<(), ConfigError> {
        let settings = Arc::new(Settings::new(config, self.n_layer)?);
        self.lock().own.insert(sequence, settings);
        Ok(())
    }

    /// The statistics so far, of all sequences.
    pub fn stats(&self) -> Stats {
        let mut all = Stats::default();
        self.lock().stats.values().for_each(|stats| all.merge(stats));
        all
    }

    /// The statistics of one sequence, which counts from zero again.
    pub fn take_stats(&self, sequence: u32) -> Stats {
        self.lock().stats.remove(&sequence).unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset_stats(&self) {
        self.lock().stats.clear();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
