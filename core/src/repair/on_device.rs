//! StepFlow where the attention lies in the memory of a device: the kernels' tables, and what they found.

use std::collections::HashMap;
use std::hash::Hash;

use crate::graph::{Cells, DeviceAttention, DeviceHeadOutput};
use crate::kernels::{
    Device, DeviceError, Devices, Place, Plain, SfOebOutcome, SfOebRow, SfSmiOutcome, SfSmiRow, Shared, Table,
};

use super::settings::Injection;

/// The label of a cell that nothing was written to: of no segment.
const NO_SEGMENT: u8 = 3;

/// The devices of one context and its tables in their memory.
#[derive(Default)]
pub(super) struct OnDevice {
    devices: Devices,
    bridging: HashMap<Place, Bridging>,
    injecting: HashMap<Place, Injecting>,
}

/// What OEB needs to know: the same for every head, and for layers with the same mask or the same rows.
#[derive(Default)]
struct Bridging {
    /// By mask.
    labels: Sent<(usize, usize), u8>,
    /// By where the stream begins in the micro-batch, and its rows that a layer looks at.
    rows: Sent<(usize, Vec<usize>), SfOebRow>,
    found: Shared<SfOebOutcome>,
}

#[derive(Default)]
struct Injecting {
    cells: Table<u32>,
    rows: Table<SfSmiRow>,
    found: Shared<SfSmiOutcome>,
}

/// Tables that are sent once a micro-batch, by what distinguishes them in it. Their memory is used again.
struct Sent<K, T> {
    tables: Vec<Table<T>>,
    /// Of this micro-batch.
    index: HashMap<K, usize>,
}

impl<K, T> Default for Sent<K, T> {
    fn default() -> Self {
        Self { tables: Vec::new(), index: HashMap::new() }
    }
}

impl<K: Eq + Hash, T: Plain> Sent<K, T> {
    /// The table of `key`, with `values` in it.
    fn table(&mut self, device: &Device, key: K, values: impl FnOnce() -> Vec<T>) -> Result<&Table<T>, DeviceError> {
        let used = self.index.len();
        let index = *self.index.entry(key).or_insert(used);
        if index == used {
            if self.tables.len() == used {
                self.tables.push(Table::default());
            }
            self.tables[index].upload(device, values())?;
        }
        Ok(&self.tables[index])
    }
}

impl OnDevice {
    /// A new micro-batch: its tables are to be sent.
    pub fn begin(&mut self) {
        for Bridging { labels, rows, .. } in self.bridging.values_mut() {
            labels.index.clear();
            rows.index.clear();
        }
    }

    /// Whether there are kernels for data at `place`.
    pub fn reaches(&mut self, place: Place) -> bool {
        self.devices.at(place).is_some()
    }

    /// OEB on `rows` of the attention, each with its `tau_max`, which it has in every layer of the micro-batch. Returns
    /// `[rows][n_head]`; nothing where the device has no kernels.
    pub fn bridge(
        &mut self,
        attention: &DeviceAttention<'_>,
        rows: &[(usize, f32)],
    ) -> Result<&[SfOebOutcome], DeviceError> {
        let Some(device) = self.devices.at(attention.place).filter(|_| !rows.is_empty()) else { return Ok(&[]) };
        let oeb_row = |&(row, tau_max): &(usize, f32)| {
            let own = attention.rows[row].segment;
            let bridge = own.bridged().map_or(u32::MAX, |bridged| bridged as u32);
            SfOebRow { row: row as u32, same: own as u32, bridge, tau_max }
        };
        let tables = self.bridging.entry(attention.place).or_default();
        let labels = || labels(attention.cells, attention.n_kv);
        let labels = tables.labels.table(device, attention.mask_key, labels)?;
        let key = (attention.first_row, rows.iter().map(|(row, _)| *row).collect());
        let rows = tables.rows.table(device, key, || rows.iter().map(oeb_row).collect())?;
        device.oeb(&attention.data, labels, rows, &mut tables.found)
    }

    /// SMI on rows of the head outputs. Returns `[injections][n_head]`; nothing where the device has no kernels.
    pub fn inject(
        &mut self,
        output: &DeviceHeadOutput<'_>,
        injections: &[Injection],
    ) -> Result<&[SfSmiOutcome], DeviceError> {
        let Some(device) = self.devices.at(output.place).filter(|_| !injections.is_empty()) else { return Ok(&[]) };
        let Injecting { cells, rows, found } = self.injecting.entry(output.place).or_default();
        let (mut all_cells, mut all_rows) = (Vec::new(), Vec::new());
        for Injection { row, cells: window, alpha } in injections {
            let (first, n_cells) = (all_cells.len() as u32, window.len() as u32);
            all_rows.push(SfSmiRow { row: *row as u32, first, n_cells, alpha: *alpha });
            all_cells.extend(window.iter().map(|&cell| cell as u32));
        }
        cells.upload(device, all_cells)?;
        rows.upload(device, all_rows)?;
        device.smi(&output.data, cells, rows, found)
    }
}

/// The label of every cell.
fn labels(cells: &Cells, n_kv: usize) -> Vec<u8> {
    (0..n_kv).map(|cell| cells.get(cell).map_or(NO_SEGMENT, |cell| cell.segment as u8)).collect()
}
