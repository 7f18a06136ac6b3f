//! StepFlow as a graph hook: joins the arithmetic of [`crate::stepflow`] to the attention that llama.cpp computes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::kernels::host::{RowKeys, bridge_row, inject_row};
use crate::kernels::{SfOebOutcome, SfSmiOutcome};
use crate::llama::{Attention, Cells, DeviceAttention, DeviceHeadOutput, HeadOutput, Hook, HookError, Point, Row};
use crate::stepflow::oeb::Group;
use crate::stepflow::{ConfigError, Kernels, LayerSelection, LayerStats, Side, Stats, StepFlowConfig, Window};
use crate::trace::Segment;

use super::on_device::OnDevice;

/// Below this many probabilities a layer is bridged on the calling thread: starting threads would cost more.
const PARALLEL_FROM: usize = 1 << 19;

/// The repairs of one context: a [`Hook`].
pub struct Repair {
    settings: Settings,
    n_threads: usize,
    control: Control,
    /// Rows of this micro-batch that OEB looks at.
    bridged: Vec<usize>,
    /// Rows of this micro-batch that SMI injects into.
    starts: Vec<usize>,
    /// Visible keys of every row in `bridged`, per mask of this micro-batch.
    keys: HashMap<(usize, usize), Arc<Vec<RowKeys>>>,
    on_device: OnDevice,
}

/// A configuration, resolved for a model.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    oeb_layers: BTreeSet<usize>,
    tau_max: f32,
    smi_layers: BTreeSet<usize>,
    alpha: f32,
    window: Window,
}

impl Settings {
    fn new(config: &StepFlowConfig, n_layer: usize) -> Result<Self, ConfigError> {
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
}

/// A handle on a running [`Repair`]: its switch, its settings and its statistics.
#[derive(Debug, Clone)]
pub struct Control {
    on: Arc<AtomicBool>,
    n_layer: usize,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// By sequence.
    stats: BTreeMap<u32, Stats>,
}

impl Shared {
    /// Counts what `kernels` did to a row in `layer`.
    fn count(&mut self, row: &Row, layer: usize, kernels: Kernels, counted: &LayerStats) {
        let stats = self.stats.entry(row.sequence).or_default().layer(layer);
        stats.merge(counted);
        stats.kernels = Some(kernels);
    }
}

impl Control {
    /// Switches the repairs on or off, from the next decode on.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Whether the repairs are on.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Other settings, from the next decode on.
    ///
    /// # Errors
    /// As [`Repair::new`]; the old settings stay then.
    pub fn configure(&self, config: &StepFlowConfig) -> Result<(), ConfigError> {
        self.lock().settings = Settings::new(config, self.n_layer)?;
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

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Repair {
    /// The repairs that `config` asks for, in a model of `n_layer` layers. Large batches use `n_threads`.
    ///
    /// # Errors
    /// When a setting is out of range or a layer is outside the model.
    pub fn new(config: &StepFlowConfig, n_layer: usize, n_threads: usize) -> Result<Self, ConfigError> {
        let settings = Settings::new(config, n_layer)?;
        let shared = Shared { settings: settings.clone(), stats: BTreeMap::new() };
        Ok(Self {
            settings,
            n_threads: n_threads.max(1),
            control: Control { on: Arc::new(AtomicBool::new(true)), n_layer, shared: Arc::new(Mutex::new(shared)) },
            bridged: Vec::new(),
            starts: Vec::new(),
            keys: HashMap::new(),
            on_device: OnDevice::default(),
        })
    }

    /// A handle to switch it and to read its statistics.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The layers that OEB works in.
    pub fn oeb_layers(&self) -> &BTreeSet<usize> {
        &self.settings.oeb_layers
    }

    /// The layers that SMI works in.
    pub fn smi_layers(&self) -> &BTreeSet<usize> {
        &self.settings.smi_layers
    }

    /// Visible keys of the bridged `rows` under this layer's mask; layers that share a mask share the work.
    fn keys(&mut self, attention: &Attention<'_>, rows: &[usize]) -> Arc<Vec<RowKeys>> {
        let collect = || {
            let keys_of = |&row: &usize| {
                let own = attention.rows[row].segment;
                RowKeys::collect((0..attention.n_kv).map(|cell| {
                    let seen = attention.visible(row, cell);
                    seen.then(|| group(own, attention.cells.get(cell).map(|cell| cell.segment)))
                }))
            };
            Arc::new(rows.iter().map(keys_of).collect::<Vec<_>>())
        };
        self.keys.entry(attention.mask_key()).or_insert_with(collect).clone()
    }

    /// The cells that SMI averages for a step start: the last ones of the step before that the cache still has.
    fn window_cells(&self, row: &Row, cells: &Cells) -> Vec<usize> {
        let Row { sequence, previous_step: Some(step), .. } = row else { return Vec::new() };
        let first = match self.settings.window {
            Window::Last(cells) => step.start.max(step.end.saturating_sub(cells)),
            Window::Step => step.start,
        };
        (first..step.end).filter_map(|position| cells.find(*sequence, position)).collect()
    }
}

/// How a row of segment `own` sees a key of segment `key`.
fn group(own: Segment, key: Option<Segment>) -> Group {
    match key {
        Some(key) if key == own => Group::Same,
        Some(key) if Some(key) == own.bridged() => Group::Bridge,
        _ => Group::Other,
    }
}

impl Hook for Repair {
    fn begin(&mut self, rows: &[Row]) {
        self.keys.clear();
        self.on_device.begin();
        self.bridged.clear();
        self.starts.clear();
        if !self.control.is_on() {
            return;
        }
        self.settings.clone_from(&self.control.lock().settings);
        for (i, row) in rows.iter().enumerate() {
            if row.segment != Segment::Question {
                self.bridged.push(i);
            }
            // Adding nothing would still turn -0 into +0, and off must be bit-identical.
            if row.previous_step.is_some() && self.settings.alpha != 0.0 {
                self.starts.push(i);
            }
        }
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        match point {
            Point::Attention => !self.bridged.is_empty() && self.settings.oeb_layers.contains(&layer),
            Point::HeadOutput => !self.starts.is_empty() && self.settings.smi_layers.contains(&layer),
        }
    }

    fn attention(&mut self, attention: Attention<'_>) -> Result<(), HookError> {
        let rows = within(&self.bridged, attention.first_row, attention.rows.len());
        let keys = self.keys(&attention, &rows);
        let (n_kv, tau_max, sinks) = (attention.n_kv, self.settings.tau_max, attention.sinks);
        let bridge_head = |head: &mut [f32], stats: &mut [LayerStats]| {
            for ((&row, keys), stats) in rows.iter().zip(keys.iter()).zip(stats) {
                let done = bridge_row(&mut head[row * n_kv..(row + 1) * n_kv], keys, tau_max, sinks);
                stats.add_row(done.before, done.after, done.changed);
            }
        };
        let n_rows = attention.rows.len();
        let heads = attention.probs.chunks_mut(n_rows * n_kv).collect();
        let parallel = rows.len() * n_kv * attention.n_head >= PARALLEL_FROM;
        let counted = for_each_head(heads, if parallel { self.n_threads } else { 1 }, rows.len(), bridge_head);
        let kernels = if attention.read_back { Kernels::ReadBack } else { Kernels::Host };
        let mut shared = self.control.lock();
        for (&row, counted) in rows.iter().zip(counted) {
            shared.count(&attention.rows[row], attention.layer, kernels, &counted);
        }
        Ok(())
    }

    fn attention_on_device(&mut self, attention: &DeviceAttention<'_>) -> Result<bool, HookError> {
        if !self.on_device.reaches(attention.place) {
            return Ok(false);
        }
        let rows = within(&self.bridged, attention.first_row, attention.rows.len());
        let found = self.on_device.bridge(attention, &rows, self.settings.tau_max)?;
        let kernels = Kernels::of(attention.place.backend);
        let mut shared = self.control.lock();
        for (&row, heads) in rows.iter().zip(found.chunks(attention.n_head)) {
            let mut counted = LayerStats::default();
            for SfOebOutcome { before, after, changed } in heads {
                counted.add_row(f64::from(*before), f64::from(*after), *changed != 0);
            }
            shared.count(&attention.rows[row], attention.layer, kernels, &counted);
        }
        Ok(true)
    }

    fn head_output(&mut self, mut output: HeadOutput<'_>) -> Result<(), HookError> {
        let n_head_kv = output.values.n_head_kv();
        let group_size = (output.n_head / n_head_kv.max(1)).max(1);
        let mut sum = vec![0f32; output.head_dim];
        for row in within(&self.starts, output.first_row, output.rows.len()) {
            let mut cells = self.window_cells(&output.rows[row], output.cells);
            cells.retain(|&cell| output.visible(row, cell));
            if cells.is_empty() {
                continue;
            }
            let (mut added, mut total) = (0.0, 0.0);
            for head in 0..output.n_head {
                if head % group_size == 0 {
                    sum.fill(0.0);
                    cells.iter().for_each(|&cell| output.values.add_to(cell, head / group_size, &mut sum));
                }
                let (a, t) = inject_row(output.row_mut(head, row), &sum, cells.len(), self.settings.alpha);
                (added, total) = (added + a, total + t);
            }
            let kernels = if output.read_back { Kernels::ReadBack } else { Kernels::Host };
            self.control.lock().count(&output.rows[row], output.layer, kernels, &injection(added, total));
        }
        Ok(())
    }

    fn head_output_on_device(&mut self, output: &DeviceHeadOutput<'_>) -> Result<bool, HookError> {
        if !self.on_device.reaches(output.place) {
            return Ok(false);
        }
        let mut windows = Vec::new();
        for row in within(&self.starts, output.first_row, output.rows.len()) {
            let mut cells = self.window_cells(&output.rows[row], output.cells);
            cells.retain(|&cell| output.visible(row, cell));
            if !cells.is_empty() {
                windows.push((row, cells));
            }
        }
        let found = self.on_device.inject(output, &windows, self.settings.alpha)?;
        let kernels = Kernels::of(output.place.backend);
        let mut shared = self.control.lock();
        for ((row, _), heads) in windows.iter().zip(found.chunks(output.n_head)) {
            let sum = |of: fn(&SfSmiOutcome) -> f32| heads.iter().map(|head| f64::from(of(head))).sum::<f64>();
            let counted = injection(sum(|head| head.added), sum(|head| head.total));
            shared.count(&output.rows[*row], output.layer, kernels, &counted);
        }
        Ok(true)
    }
}

/// One injection, of squared norms over all heads of its token.
fn injection(added: f64, total: f64) -> LayerStats {
    let mut counted = LayerStats::default();
    counted.add_injection(if total > 0.0 { (added / total).sqrt() } else { 0.0 });
    counted
}

/// Those of the ascending `rows` that lie in the `n` rows from `first` on, counted from there.
fn within(rows: &[usize], first: usize, n: usize) -> Vec<usize> {
    let inside = rows.partition_point(|&row| row < first)..rows.partition_point(|&row| row < first + n);
    rows[inside].iter().map(|row| row - first).collect()
}

/// Runs `work` on every head, over `n_threads` threads, and adds up what it counted for each of `n_rows` rows.
fn for_each_head(
    mut heads: Vec<&mut [f32]>,
    n_threads: usize,
    n_rows: usize,
    work: impl Fn(&mut [f32], &mut [LayerStats]) + Sync,
) -> Vec<LayerStats> {
    let run = |heads: &mut [&mut [f32]]| {
        let mut counted = vec![LayerStats::default(); n_rows];
        heads.iter_mut().for_each(|head| work(head, &mut counted));
        counted
    };
    if n_threads == 1 {
        return run(&mut heads);
    }
    let share = heads.len().div_ceil(n_threads).max(1);
    let mut counted = vec![LayerStats::default(); n_rows];
    std::thread::scope(|scope| {
        let threads: Vec<_> = heads.chunks_mut(share).map(|heads| scope.spawn(|| run(heads))).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => counted.iter_mut().zip(&part).for_each(|(all, part)| all.merge(part)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    counted
}
