//! Scales blocks of attention while the graph runs: what a probe changes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kernels::{Device, DeviceError, Devices, Place, SF_NO_CELL, SfProbeKey, SfProbeRow, Table};
use crate::llama::{Attention, DeviceAttention, Hook, HookError, Point, Row};
use crate::random::SplitMix64;

/// The attention of one layer from a range of query tokens to a range of key tokens, times `1 + eps` in every head; with
/// a seed, times `1 + eps` or `1 - eps` at random for every head and query token.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    pub layer: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    pub eps: f64,
    pub seed: Option<u64>,
}

impl Scale {
    fn factor(&self, head: usize, query: usize) -> f32 {
        let minus = self.seed.is_some_and(|seed| {
            let place = (head as u64) << 32 | query as u64;
            SplitMix64::new(seed ^ SplitMix64::new(place).next()).next() & 1 == 1
        });
        (1.0 + if minus { -self.eps } else { self.eps }) as f32
    }
}

/// What to scale in each sequence: none in sequence 0, which the others begin with, the first scale in sequence 1, and
/// so on.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan(Arc<Mutex<Vec<Scale>>>);

impl Plan {
    pub fn set(&self, scales: &[Scale]) {
        scales.clone_into(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Scale>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what its plan says.
#[derive(Default)]
pub(super) struct Scaler {
    plan: Plan,
    devices: Devices,
    tables: HashMap<Place, Tables>,
}

/// What the kernels are told, in the memory of a device.
#[derive(Default)]
struct Tables {
    keys: Table<SfProbeKey>,
    rows: Table<SfProbeRow>,
    factors: Table<f32>,
}

impl Scaler {
    pub fn new(plan: Plan) -> Self {
        Self { plan, ..Self::default() }
    }
}

/// What is scaled in `rows` of `layer`: the row, its scale, and the keys.
fn scaled<'p>(
    plan: &'p [Scale],
    layer: usize,
    rows: &'p [Row],
) -> impl Iterator<Item = (usize, &'p Scale, Range<usize>)> {
    rows.iter().enumerate().filter_map(move |(index, &Row { sequence, position, .. })| {
        let scale = (sequence as usize).checked_sub(1).and_then(|of| plan.get(of))?;
        let keys = scale.keys.start..scale.keys.end.min(position + 1);
        (scale.layer == layer && scale.queries.contains(&position)).then_some((index, scale, keys))
    })
}

impl Hook for Scaler {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, layer: usize) -> bool {
        point == Point::Attention && self.plan.lock().iter().any(|scale| scale.layer == layer)
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        let plan = self.plan.lock();
        for (row, scale, keys) in scaled(&plan, attention.layer, attention.rows) {
            let Row { sequence, position, .. } = attention.rows[row];
            // What a sequence does not have of its own it shares with sequence 0; both may know cells they lost.
            let cell = |key| {
                let known = [sequence, 0].into_iter().filter_map(|sequence| attention.cells.find(sequence, key));
                known.into_iter().find(|&cell| attention.visible(row, cell))
            };
            let cells: Vec<usize> = keys.filter_map(cell).collect();
            for head in 0..attention.n_head {
                let factor = scale.factor(head, position);
                let probs = attention.row_mut(head, row);
                cells.iter().for_each(|&cell| probs[cell] *= factor);
            }
        }
        Ok(())
    }

    fn attention_on_device(&mut self, attention: &DeviceAttention<'_>) -> Result<bool, HookError> {
        let Some(device) = self.devices.at(attention.place) else { return Ok(false) };
        let plan = self.plan.lock();
        let tables = self.tables.entry(attention.place).or_default();
        tables.send(device, &plan, attention)?;
        device.probe(&attention.data, &tables.keys, &tables.rows, &tables.factors)?;
        Ok(true)
    }
}

impl Tables {
    fn send(&mut self, device: &Device, plan: &[Scale], attention: &DeviceAttention<'_>) -> Result<(), DeviceError> {
        let (mut all_keys, mut rows, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        for (row, scale, keys) in scaled(plan, attention.layer, attention.rows) {
            let Row { sequence, position, .. } = attention.rows[row];
            let cell = |sequence, key| attention.cells.find(sequence, key).map_or(SF_NO_CELL, |cell| cell as u32);
            rows.push(SfProbeRow { row: row as u32, first: all_keys.len() as u32, n_keys: keys.len() as u32 });
            all_keys.extend(keys.map(|key| SfProbeKey { own: cell(sequence, key), shared: cell(0, key) }));
            factors.extend((0..attention.n_head).map(|head| scale.factor(head, position)));
        }
        self.keys.upload(device, all_keys)?;
        self.rows.upload(device, rows)?;
        self.factors.upload(device, factors)
    }
}
