//! StepFlow as a graph hook: joins the arithmetic of [`crate::stepflow`] to the attention that llama.cpp computes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::graph::{
    Attention, Cells, DeviceAttention, DeviceHeadOutput, FusedAttention, HeadOutput, Hook, HookError, Point, Row,
};
use crate::kernels::attend::{Momentum, Outcome, Plan, RowWork};
use crate::kernels::host::{Bridged, RowKeys, bridge_row, inject_row};
use crate::kernels::{Place, SfOebOutcome, SfSmiOutcome};
use crate::stepflow::oeb::Group;
use crate::stepflow::{ConfigError, Kernels, LayerStats, StepFlowConfig, Window};
use crate::trace::Segment;

use super::Control;
use super::on_device::OnDevice;
use super::settings::{Injection, Selected, Settings};

/// Below this many probabilities a layer is bridged on the calling thread: starting threads would cost more.
const PARALLEL_FROM: usize = 1 << 19;

/// Up to so many rows, those that are treated at all go through our kernel in every layer: it goes through the cache faster
/// than llama.cpp does for single rows. Larger batches are prompts, of which llama.cpp reads the cache once for many rows.
const MAX_ROWS_IN_ALL_LAYERS: usize = 16;

/// The repairs of one context: a [`Hook`]. Every sequence is treated by its own settings, see [`Control`].
pub struct Repair {
    n_threads: usize,
    control: Control,
    /// Rows of this micro-batch that OEB looks at.
    bridged: Selected,
    /// Rows of this micro-batch that SMI injects into.
    starts: Selected,
    /// Visible keys of rows in `bridged`, per mask of this micro-batch: layers that share a mask share the work.
    keys: HashMap<(usize, usize), HashMap<usize, RowKeys>>,
    /// The same for fused attention, of all rows that are treated in any layer.
    plans: HashMap<(usize, usize), HashMap<usize, Arc<Plan>>>,
    /// Whether any row of this micro-batch is treated where attention runs fused.
    wants_fused: bool,
    /// Rows of this micro-batch.
    n_rows: usize,
    /// Whether treated rows go through our kernel in all layers of this micro-batch.
    in_all_layers: bool,
    on_device: OnDevice,
}

impl Repair {
    /// The repairs that `config` asks for, in a model of `n_layer` layers. Large batches use `n_threads`.
    ///
    /// # Errors
    /// When a setting is out of range or a layer is outside the model.
    pub fn new(config: &StepFlowConfig, n_layer: usize, n_threads: usize) -> Result<Self, ConfigError> {
        Ok(Self {
            n_threads: n_threads.max(1),
            control: Control::new(config, n_layer)?,
            bridged: Selected::new(Point::Attention),
            starts: Selected::new(Point::HeadOutput),
            keys: HashMap::new(),
            plans: HashMap::new(),
            wants_fused: false,
            n_rows: 0,
            in_all_layers: false,
            on_device: OnDevice::default(),
        })
    }

    /// A handle to switch it, to configure it and to read its statistics.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The layers that OEB works in, for sequences without settings of their own.
    pub fn oeb_layers(&self) -> BTreeSet<usize> {
        self.control.lock().settings.oeb_layers.clone()
    }

    /// The layers that SMI works in, for sequences without settings of their own.
    pub fn smi_layers(&self) -> BTreeSet<usize> {
        self.control.lock().settings.smi_layers.clone()
    }

    /// What SMI does to the `rows` of the micro-batch from `first` on.
    fn injections(
        &self,
        layer: usize,
        first: usize,
        rows: &[Row],
        cells: &Cells,
        visible: impl Fn(usize, usize) -> bool,
    ) -> Vec<Injection> {
        let of_row = |(row, settings): (usize, &Settings)| {
            let mut cells = window_cells(&rows[row], settings.window, cells);
            cells.retain(|&cell| visible(row, cell));
            (!cells.is_empty()).then_some(Injection { row, cells, alpha: settings.alpha })
        };
        self.starts.of_layer(layer, first, rows.len()).filter_map(of_row).collect()
    }
}

/// The cells that SMI averages for a step start: the last ones of the step before that the cache still has.
fn window_cells(row: &Row, window: Window, cells: &Cells) -> Vec<usize> {
    let Row { sequence, previous_step: Some(step), .. } = row else { return Vec::new() };
    let first = match window {
        Window::Last(cells) => step.start.max(step.end.saturating_sub(cells)),
        Window::Step => step.start,
    };
    (first..step.end).filter_map(|position| cells.find(*sequence, position)).collect()
}

/// The visible keys of `row`, as OEB sees them.
fn row_keys(attention: &Attention<'_>, row: usize) -> RowKeys {
    let own = attention.rows[row].segment;
    RowKeys::collect((0..attention.n_kv).map(|cell| {
        let seen = attention.visible(row, cell);
        seen.then(|| group(own, attention.cells.get(cell).map(|cell| cell.segment)))
    }))
}

/// The visible cells of `row`, as our kernel goes through them.
fn plan(attention: &FusedAttention<'_>, row: usize) -> Arc<Plan> {
    let own = attention.rows[row].segment;
    Arc::new(Plan::new(attention.mask_row(row).enumerate().map(|(cell, bias)| {
        let seen = bias > f32::NEG_INFINITY;
        seen.then(|| (group(own, attention.cells.get(cell).map(|cell| cell.segment)), bias))
    })))
}

/// Whether OEB can change a row: one that it cannot is llama.cpp's to compute, bit for bit.
fn is_bridging((_, settings): &(usize, &Settings)) -> bool {
    settings.tau_max > 0.0
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
        self.plans.clear();
        self.n_rows = rows.len();
        self.in_all_layers = rows.len() <= MAX_ROWS_IN_ALL_LAYERS;
        self.on_device.begin();
        self.wants_fused = false;
        self.bridged.clear();
        self.starts.clear();
        if !self.control.is_on() {
            return;
        }
        let shared = self.control.lock();
        for (i, row) in rows.iter().enumerate() {
            let settings = shared.settings_of(row.sequence);
            if row.segment != Segment::Question {
                self.bridged.push(i, settings);
            }
            // Adding nothing would still turn -0 into +0, and off must be bit-identical.
            if row.previous_step.is_some() && settings.alpha != 0.0 {
                self.starts.push(i, settings);
            }
        }
        let bridged = self.bridged.of_any_layer(0, rows.len()).filter(is_bridging);
        self.wants_fused = bridged.chain(self.starts.of_any_layer(0, rows.len())).next().is_some();
    }

    fn wants(&self, point: Point, layer: usize) -> bool {
        match point {
            Point::Attention => self.bridged.wants(layer),
            Point::HeadOutput => self.starts.wants(layer),
        }
    }

    fn wants_fused(&self) -> bool {
        self.wants_fused
    }

    fn takes_all(&self, layer: usize) -> bool {
        self.bridged.of_layer(layer, 0, self.n_rows).filter(is_bridging).count() == self.n_rows
    }

    fn fused(&mut self, attention: &FusedAttention<'_>) -> Result<Vec<RowWork>, HookError> {
        let FusedAttention { layer, first_row, rows, cells, all_layers, .. } = *attention;
        let in_all_layers = self.in_all_layers && all_layers;
        let mut work: BTreeMap<usize, RowWork> = BTreeMap::new();
        let none = |row| RowWork { stream: 0, row, plan: None, tau_max: None, momentum: None };
        for (row, settings) in self.bridged.of_layer(layer, first_row, rows.len()).filter(is_bridging) {
            work.insert(row, RowWork { tau_max: Some(settings.tau_max), ..none(row) });
        }
        let visible = |row, cell| attention.visible(row, cell);
        for Injection { row, cells, alpha } in self.injections(layer, first_row, rows, cells, visible) {
            let cells = cells.into_iter().map(|cell| cell as u32).collect();
            work.entry(row).or_insert_with(|| none(row)).momentum = Some(Momentum { cells, alpha });
        }
        if in_all_layers {
            let bridged = self.bridged.of_any_layer(first_row, rows.len()).filter(is_bridging);
            let treated = bridged.chain(self.starts.of_any_layer(first_row, rows.len()));
            treated.for_each(|(row, _)| _ = work.entry(row).or_insert_with(|| none(row)));
        }
        let plans = self.plans.entry(attention.mask_key()).or_default();
        for (row, work) in &mut work {
            if in_all_layers || work.tau_max.is_some() {
                work.plan = Some(plans.entry(*row).or_insert_with(|| plan(attention, *row)).clone());
            }
        }
        Ok(work.into_values().collect())
    }

    fn fused_done(&mut self, layer: usize, row: &Row, place: Option<Place>, outcomes: &[Outcome]) {
        let mut counted = LayerStats::default();
        for Bridged { before, after, changed } in outcomes.iter().filter_map(|outcome| outcome.bridged) {
            counted.add_row(before, after, changed);
        }
        let (added, total) =
            outcomes.iter().fold((0.0, 0.0), |(added, total), Outcome { injected: (a, t), .. }| (added + a, total + t));
        let mut shared = self.control.lock();
        if added > 0.0 || total > 0.0 {
            counted.merge(&injection(added, total));
        }
        if counted != LayerStats::default() {
            let kernels = place.map_or(Kernels::Fused, |place| Kernels::of(place.backend));
            shared.count(row, layer, kernels, &counted);
        }
    }

    fn attention(&mut self, attention: Attention<'_>) -> Result<(), HookError> {
        let (n_kv, n_rows, sinks) = (attention.n_kv, attention.rows.len(), attention.sinks);
        let keys = self.keys.entry(attention.mask_key()).or_default();
        let selected = || self.bridged.of_layer(attention.layer, attention.first_row, n_rows);
        selected().for_each(|(row, _)| _ = keys.entry(row).or_insert_with(|| row_keys(&attention, row)));
        let rows: Vec<_> = selected().map(|(row, settings)| (row, settings.tau_max, &keys[&row])).collect();
        let bridge_head = |head: &mut [f32], stats: &mut [LayerStats]| {
            for (&(row, tau_max, keys), stats) in rows.iter().zip(stats) {
                let done = bridge_row(&mut head[row * n_kv..(row + 1) * n_kv], keys, tau_max, sinks);
                stats.add_row(done.before, done.after, done.changed);
            }
        };
        let heads = attention.probs.chunks_mut(n_rows * n_kv).collect();
        let parallel = rows.len() * n_kv * attention.n_head >= PARALLEL_FROM;
        let counted = for_each_head(heads, if parallel { self.n_threads } else { 1 }, rows.len(), bridge_head);
        let kernels = if attention.read_back { Kernels::ReadBack } else { Kernels::Host };
        let mut shared = self.control.lock();
        for (&(row, ..), counted) in rows.iter().zip(counted) {
            shared.count(&attention.rows[row], attention.layer, kernels, &counted);
        }
        Ok(())
    }

    fn attention_on_device(&mut self, attention: &DeviceAttention<'_>) -> Result<bool, HookError> {
        if !self.on_device.reaches(attention.place) {
            return Ok(false);
        }
        let selected = self.bridged.of_layer(attention.layer, attention.first_row, attention.rows.len());
        let rows: Vec<_> = selected.map(|(row, settings)| (row, settings.tau_max)).collect();
        let found = self.on_device.bridge(attention, &rows)?;
        let kernels = Kernels::of(attention.place.backend);
        let mut shared = self.control.lock();
        for (&(row, _), heads) in rows.iter().zip(found.chunks(attention.n_head)) {
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
        let visible = |row, cell| output.visible(row, cell);
        let injections = self.injections(output.layer, output.first_row, output.rows, output.cells, visible);
        for Injection { row, cells, alpha } in injections {
            let (mut added, mut total) = (0.0, 0.0);
            for head in 0..output.n_head {
                if head % group_size == 0 {
                    sum.fill(0.0);
                    cells.iter().for_each(|&cell| output.values.add_to(cell, head / group_size, &mut sum));
                }
                let (a, t) = inject_row(output.row_mut(head, row), &sum, cells.len(), alpha);
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
        let visible = |row, cell| output.visible(row, cell);
        let injections = self.injections(output.layer, output.first_row, output.rows, output.cells, visible);
        let found = self.on_device.inject(output, &injections)?;
        let kernels = Kernels::of(output.place.backend);
        let mut shared = self.control.lock();
        for (Injection { row, .. }, heads) in injections.iter().zip(found.chunks(output.n_head)) {
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
