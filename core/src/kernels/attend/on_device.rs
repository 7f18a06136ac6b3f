//! The same in the memory of a device, by its kernels: which tables they are sent, and what they found.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Momentum, Outcome, Plan, RowWork};
use crate::kernels::host::Bridged;
use crate::kernels::{
    Device, DeviceError, Devices, FlashData, FlashTables, Parts, Place, SF_PIECE, SfFlashRow, SfOebOutcome, SfPiece,
    SfSmiOutcome, SfSmiRow, Shared, Table,
};

/// The devices of one context and its tables in their memory.
#[derive(Default)]
pub struct OnDevice {
    devices: Devices,
    memory: HashMap<Place, Memory>,
}

/// What a device is sent for layers, one after the other.
#[derive(Default)]
struct Memory {
    /// Of this micro-batch: layers with the same mask mostly have the same rows.
    sent: Vec<Sent>,
    slopes: Table<f32>,
    parts: Parts,
    bridged: Shared<SfOebOutcome>,
    cells: Table<u32>,
    starts: Table<SfSmiRow>,
    injected: Shared<SfSmiOutcome>,
}

/// Rows whose attention is computed.
#[derive(Default)]
struct Sent {
    rows: Vec<Row>,
    tables: FlashTables,
}

struct Row {
    row: usize,
    plan: Arc<Plan>,
    tau_max: f32,
}

impl PartialEq for Row {
    /// Plans are made once a mask and row.
    fn eq(&self, other: &Self) -> bool {
        self.row == other.row && Arc::ptr_eq(&self.plan, &other.plan) && self.tau_max == other.tau_max
    }
}

/// Tables that are kept, at most: for the masks and settings of a micro-batch.
const KEPT: usize = 4;

impl OnDevice {
    /// Whether there are kernels for data at `place`.
    pub fn reaches(&mut self, place: Place) -> bool {
        self.devices.at(place).is_some()
    }

    /// Does `work` on rows of one stream of a layer at `place`, where there are kernels; heads multiply a mask's bias by
    /// `slopes`, where there are any. Returns `[rows][heads]`.
    ///
    /// # Errors
    /// When the device fails, or has no kernels.
    pub fn attend(
        &mut self,
        place: Place,
        flash: &FlashData<'_>,
        slopes: &[f32],
        work: &[RowWork],
    ) -> Result<Vec<Outcome>, DeviceError> {
        let device = self.devices.at(place).ok_or_else(DeviceError::none)?;
        let memory = self.memory.entry(place).or_default();
        let n_head = flash.n_head();
        let mut outcomes = vec![Outcome { bridged: None, injected: (0.0, 0.0) }; work.len() * n_head];
        let places =
            |is: fn(&RowWork) -> bool| work.iter().enumerate().filter(move |(_, work)| is(work)).map(|(i, _)| i);
        let bridged = memory.attend(device, flash, slopes, work)?;
        for (at, found) in places(|work| work.plan.is_some()).zip(bridged.chunks(n_head)) {
            for (outcome, found) in outcomes[at * n_head..].iter_mut().zip(found) {
                let SfOebOutcome { before, after, changed } = *found;
                outcome.bridged = work[at].tau_max.map(|_| Bridged {
                    before: before.into(),
                    after: after.into(),
                    changed: changed != 0,
                });
            }
        }
        let injected = memory.inject(device, flash, work)?;
        for (at, found) in places(|work| work.momentum.is_some()).zip(injected.chunks(n_head)) {
            for (outcome, found) in outcomes[at * n_head..].iter_mut().zip(found) {
                outcome.injected = (found.added.into(), found.total.into());
            }
        }
        Ok(outcomes)
    }
}

impl Memory {
    fn attend(
        &mut self,
        device: &Device,
        flash: &FlashData<'_>,
        slopes: &[f32],
        work: &[RowWork],
    ) -> Result<&[SfOebOutcome], DeviceError> {
        let row = |work: &RowWork| {
            work.plan.clone().map(|plan| Row { row: work.row, plan, tau_max: work.tau_max.unwrap_or(0.0) })
        };
        let rows: Vec<Row> = work.iter().filter_map(row).collect();
        if rows.is_empty() {
            return Ok(&[]);
        }
        self.slopes.upload(device, slopes.to_vec())?;
        let known = self.sent.iter().position(|sent| sent.rows == rows);
        let sent = match known {
            Some(known) => self.sent.remove(known),
            // The one that was not used for longest.
            None => {
                let mut sent = if self.sent.len() < KEPT { Sent::default() } else { self.sent.remove(0) };
                sent.send(device, rows)?;
                sent
            }
        };
        self.sent.push(sent);
        let tables = &self.sent[self.sent.len() - 1].tables;
        device.attend(flash, tables, &self.slopes, &mut self.parts, &mut self.bridged)
    }

    fn inject(
        &mut self,
        device: &Device,
        flash: &FlashData<'_>,
        work: &[RowWork],
    ) -> Result<&[SfSmiOutcome], DeviceError> {
        let (mut all_cells, mut all_rows) = (Vec::new(), Vec::new());
        for RowWork { row, momentum, .. } in work {
            let Some(Momentum { cells, alpha }) = momentum else { continue };
            let (first, n_cells) = (all_cells.len() as u32, cells.len() as u32);
            all_rows.push(SfSmiRow { row: *row as u32, first, n_cells, alpha: *alpha });
            all_cells.extend(cells);
        }
        if all_rows.is_empty() {
            return Ok(&[]);
        }
        self.cells.upload(device, all_cells)?;
        self.starts.upload(device, all_rows)?;
        device.smi(&flash.head_output(), &self.cells, &self.starts, &mut self.injected)
    }
}

impl Sent {
    fn send(&mut self, device: &Device, rows: Vec<Row>) -> Result<(), DeviceError> {
        // What fails on the way leaves nothing that could be taken for sent.
        self.rows.clear();
        let (mut cells, mut bias, mut pieces, mut flash_rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let has_bias = rows.iter().any(|row| row.plan.bias.is_some());
        for (index, Row { row, plan, tau_max }) in rows.iter().enumerate() {
            let (base, first) = (cells.len(), pieces.len());
            for chunk in &plan.chunks {
                let of_chunk = (0..chunk.len).step_by(SF_PIECE as usize).map(|at| SfPiece {
                    row: index as u32,
                    group: chunk.group as u32,
                    first: (base + chunk.first + at) as u32,
                    n_cells: SF_PIECE.min((chunk.len - at) as u32),
                });
                pieces.extend(of_chunk);
            }
            flash_rows.push(SfFlashRow {
                row: *row as u32,
                first: first as u32,
                n_pieces: (pieces.len() - first) as u32,
                n_same: plan.n_same as u32,
                n_bridge: plan.n_bridge as u32,
                tau_max: *tau_max,
            });
            cells.extend(&plan.cells);
            if has_bias {
                bias.extend(plan.bias.clone().unwrap_or_else(|| vec![0.0; plan.cells.len()]));
            }
        }
        self.tables.cells.upload(device, cells)?;
        self.tables.bias.upload(device, bias)?;
        self.tables.pieces.upload(device, pieces)?;
        self.tables.rows.upload(device, flash_rows)?;
        self.rows = rows;
        Ok(())
    }
}
