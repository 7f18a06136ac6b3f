//! StepFlow as a graph hook: joins the arithmetic of [`crate::stepflow`] to the attention that llama.cpp computes.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::kernels::host::{RowKeys, bridge_row, inject_row};
use crate::llama::{Attention, HeadOutput, Hook, HookError, Point, Row};
use crate::stepflow::oeb::Group;
use crate::stepflow::{ConfigError, LayerStats, Side, Stats, StepFlowConfig, Window};
use crate::trace::Segment;

/// Below this many probabilities a layer is bridged on the calling thread: starting threads would cost more.
const PARALLEL_FROM: usize = 1 << 19;

/// The repairs of one context: a [`Hook`].
pub struct Repair {
    oeb_layers: BTreeSet<usize>,
    tau_max: f32,
    smi_layers: BTreeSet<usize>,
    alpha: f32,
    window: Window,
    n_threads: usize,
    control: Control,
    /// Rows of this micro-batch that OEB looks at.
    bridged: Vec<usize>,
    /// Rows of this micro-batch that SMI injects into.
    starts: Vec<usize>,
    /// Visible keys of every row in `bridged`, per mask of this micro-batch.
    keys: HashMap<usize, Arc<Vec<RowKeys>>>,
}

/// A handle on a running [`Repair`]: its switch and its statistics.
#[derive(Debug, Clone)]
pub struct Control {
    on: Arc<AtomicBool>,
    stats: Arc<Mutex<Stats>>,
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

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        self.lock().clone()
    }

    /// Counts from zero again.
    pub fn reset_stats(&self) {
        *self.lock() = Stats::default();
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Repair {
    /// The repairs that `config` asks for, in a model of `n_layer` layers. Large batches use `n_threads`.
    ///
    /// # Errors
    /// When a setting is out of range or a layer is outside the model.
    pub fn new(config: &StepFlowConfig, n_layer: usize, n_threads: usize) -> Result<Self, ConfigError> {
        config.validate()?;
        let oeb = config.oeb.clone();
        let smi = config.smi.clone();
        let layers = |selection: Option<&crate::stepflow::LayerSelection>, side| {
            selection.map_or(Ok(BTreeSet::new()), |selection| selection.resolve(n_layer, side))
        };
        Ok(Self {
            oeb_layers: layers(oeb.as_ref().map(|oeb| &oeb.layers), Side::Shallow)?,
            tau_max: oeb.map_or(0.0, |oeb| oeb.tau_max),
            smi_layers: layers(smi.as_ref().map(|smi| &smi.layers), Side::Deep)?,
            alpha: smi.as_ref().map_or(0.0, |smi| smi.alpha),
            window: smi.map_or(Window::Step, |smi| smi.window),
            n_threads: n_threads.max(1),
            control: Control { on: Arc::new(AtomicBool::new(true)), stats: Arc::default() },
            bridged: Vec::new(),
            starts: Vec::new(),
            keys: HashMap::new(),
        })
    }

    /// A handle to switch it and to read its statistics.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The layers that OEB works in.
    pub fn oeb_layers(&self) -> &BTreeSet<usize> {
        &self.oeb_layers
    }

    /// The layers that SMI works in.
    pub fn smi_layers(&self) -> &BTreeSet<usize> {
        &self.smi_layers
    }

    /// Visible keys of every bridged row under this layer's mask; layers that share a mask share the work.
    fn keys(&mut self, attention: &Attention<'_>) -> Arc<Vec<RowKeys>> {
        let rows = &self.bridged;
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

    /// The cells that SMI averages for a step start: the last ones of the step before that are still to be seen.
    fn window_cells(&self, output: &HeadOutput<'_>, row: usize) -> Vec<usize> {
        let Row { sequence, previous_step: Some(step), .. } = &output.rows[row] else { return Vec::new() };
        let first = match self.window {
            Window::Last(cells) => step.start.max(step.end.saturating_sub(cells)),
            Window::Step => step.start,
        };
        let cells = (first..step.end).filter_map(|position| output.cells.find(*sequence, position));
        cells.filter(|&cell| output.visible(row, cell)).collect()
    }
}

/// How a row of segment `own` sees a key of segment `key`.
fn group(own: Segment, key: Option<Segment>) -> Group {
    let bridged = match own {
        Segment::Question => None,
        Segment::Thinking => Some(Segment::Question),
        Segment::Summary => Some(Segment::Thinking),
    };
    match key {
        Some(key) if key == own => Group::Same,
        Some(key) if Some(key) == bridged => Group::Bridge,
        _ => Group::Other,
    }
}

impl Hook for Repair {
    fn begin(&mut self, rows: &[Row]) {
        self.keys.clear();
        self.bridged.clear();
        self.starts.clear();
        if !self.control.is_on() {
            return;
        }
        for (i, row) in rows.iter().enumerate() {
            if row.segment != Segment::Question {
                self.bridged.push(i);
            }
            // Adding nothing would still turn -0 into +0, and off must be bit-identical.
            if row.previous_step.is_some() && self.alpha != 0.0 {
                self.starts.push(i);
            }
        }
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        match point {
            Point::Attention => !self.bridged.is_empty() && self.oeb_layers.contains(&layer),
            Point::HeadOutput => !self.starts.is_empty() && self.smi_layers.contains(&layer),
        }
    }

    fn attention(&mut self, attention: Attention<'_>) -> Result<(), HookError> {
        let keys = self.keys(&attention);
        let (n_kv, tau_max, sinks) = (attention.n_kv, self.tau_max, attention.sinks);
        let bridged = &self.bridged;
        let bridge_head = |head: &mut [f32]| {
            let mut stats = LayerStats::default();
            for (&row, keys) in bridged.iter().zip(keys.iter()) {
                let done = bridge_row(&mut head[row * n_kv..(row + 1) * n_kv], keys, tau_max, sinks);
                stats.add_row(done.before, done.after, done.changed);
            }
            stats
        };
        let n_rows = attention.rows.len();
        let heads = attention.probs.chunks_mut(n_rows * n_kv).collect();
        let parallel = bridged.len() * n_kv * attention.n_head >= PARALLEL_FROM;
        let counted = for_each_head(heads, if parallel { self.n_threads } else { 1 }, bridge_head);
        self.control.lock().layer(attention.layer).merge(&counted);
        Ok(())
    }

    fn head_output(&mut self, mut output: HeadOutput<'_>) -> Result<(), HookError> {
        let n_head_kv = output.values.n_head_kv();
        let group_size = (output.n_head / n_head_kv.max(1)).max(1);
        let mut sum = vec![0f32; output.head_dim];
        for &row in &self.starts {
            let cells = self.window_cells(&output, row);
            if cells.is_empty() {
                continue;
            }
            let (mut added, mut total) = (0.0, 0.0);
            for head in 0..output.n_head {
                if head % group_size == 0 {
                    sum.fill(0.0);
                    cells.iter().for_each(|&cell| output.values.add_to(cell, head / group_size, &mut sum));
                }
                let (a, t) = inject_row(output.row_mut(head, row), &sum, cells.len(), self.alpha);
                (added, total) = (added + a, total + t);
            }
            let relative = if total > 0.0 { (added / total).sqrt() } else { 0.0 };
            self.control.lock().layer(output.layer).add_injection(relative);
        }
        Ok(())
    }
}

/// Runs `work` on every head, over `n_threads` threads, and adds up what it counted.
fn for_each_head(
    mut heads: Vec<&mut [f32]>,
    n_threads: usize,
    work: impl Fn(&mut [f32]) -> LayerStats + Sync,
) -> LayerStats {
    let run = |heads: &mut [&mut [f32]]| {
        let mut counted = LayerStats::default();
        heads.iter_mut().for_each(|head| counted.merge(&work(head)));
        counted
    };
    if n_threads == 1 {
        return run(&mut heads);
    }
    let share = heads.len().div_ceil(n_threads).max(1);
    let mut counted = LayerStats::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = heads.chunks_mut(share).map(|heads| scope.spawn(|| run(heads))).collect();
        for thread in threads {
            match thread.join() {
                Ok(stats) => counted.merge(&stats),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    counted
}
