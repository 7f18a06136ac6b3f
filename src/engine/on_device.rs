//! StepFlow where the attention lies in the memory of a device: the kernels' tables, and what they found.

use std::collections::HashMap;

use crate::kernels::{
    Device, DeviceError, Devices, Place, SfOebOutcome, SfOebRow, SfSmiOutcome, SfSmiRow, Shared, Table,
};
use crate::llama::{Cells, DeviceAttention, DeviceHeadOutput};

/// The label of a cell that nothing was written to: of no segment.
const NO_SEGMENT: u8 = 3;

/// The devices of one context and its tables in their memory.
#[derive(Default)]
pub(super) struct OnDevice {
    devices: Devices,
    bridging: HashMap<Place, Vec<Bridging>>,
    /// Of a micro-batch: which of a device's tables belong to which mask.
    table_of_mask: HashMap<(Place, (usize, usize)), usize>,
    injecting: HashMap<Place, Injecting>,
}

/// What OEB needs to know of one mask: the same for every head and layer.
#[derive(Default)]
struct Bridging {
    labels: Table<u8>,
    rows: Table<SfOebRow>,
    found: Shared<SfOebOutcome>,
}

#[derive(Default)]
struct Injecting {
    cells: Table<u32>,
    rows: Table<SfSmiRow>,
    found: Shared<SfSmiOutcome>,
}

impl OnDevice {
    /// A new micro-batch: its tables are to be sent.
    pub fn begin(&mut self) {
        self.table_of_mask.clear();
    }

    /// Whether there are kernels for data at `place`.
    pub fn reaches(&mut self, place: Place) -> bool {
        self.devices.at(place).is_some()
    }

    /// OEB on `rows` of the attention. Returns `[rows][n_head]`; nothing where the device has no kernels.
    pub fn bridge(
        &mut self,
        attention: &DeviceAttention<'_>,
        rows: &[usize],
        tau_max: f32,
    ) -> Result<&[SfOebOutcome], DeviceError> {
        let place = attention.place;
        let Some(device) = self.devices.at(place) else { return Ok(&[]) };
        let tables = self.bridging.entry(place).or_default();
        let used = self.table_of_mask.keys().filter(|(of, _)| *of == place).count();
        let index = *self.table_of_mask.entry((place, attention.mask_key)).or_insert(used);
        if index == used {
            if tables.len() == used {
                tables.push(Bridging::default());
            }
            tables[index].send(device, attention, rows, tau_max)?;
        }
        let Bridging { labels, rows, found } = &mut tables[index];
        device.oeb(&attention.data, labels, rows, found)
    }

    /// SMI on `rows`, each with the cells of its window. Returns `[rows][n_head]`.
    pub fn inject(
        &mut self,
        output: &DeviceHeadOutput<'_>,
        windows: &[(usize, Vec<usize>)],
        alpha: f32,
    ) -> Result<&[SfSmiOutcome], DeviceError> {
        let Some(device) = self.devices.at(output.place) else { return Ok(&[]) };
        let Injecting { cells, rows, found } = self.injecting.entry(output.place).or_default();
        let (mut all_cells, mut all_rows) = (Vec::new(), Vec::new());
        for (row, window) in windows {
            let (first, n_cells) = (all_cells.len() as u32, window.len() as u32);
            all_rows.push(SfSmiRow { row: *row as u32, first, n_cells, alpha });
            all_cells.extend(window.iter().map(|&cell| cell as u32));
        }
        cells.upload(device, all_cells)?;
        rows.upload(device, all_rows)?;
        device.smi(&output.data, cells, rows, found)
    }
}

impl Bridging {
    fn send(
        &mut self,
        device: &Device,
        attention: &DeviceAttention<'_>,
        rows: &[usize],
        tau_max: f32,
    ) -> Result<(), DeviceError> {
        let oeb_row = |&row: &usize| {
            let own = attention.rows[row].segment;
            let bridge = own.bridged().map_or(u32::MAX, |bridged| bridged as u32);
            SfOebRow { row: row as u32, same: own as u32, bridge, tau_max }
        };
        self.labels.upload(device, labels(attention.cells, attention.n_kv))?;
        self.rows.upload(device, rows.iter().map(oeb_row).collect())
    }
}

/// The label of every cell.
fn labels(cells: &Cells, n_kv: usize) -> Vec<u8> {
    (0..n_kv).map(|cell| cells.get(cell).map_or(NO_SEGMENT, |cell| cell.segment as u8)).collect()
}
