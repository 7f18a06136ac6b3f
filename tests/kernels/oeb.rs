//! OEB against the oracle.

use proptest::prelude::*;
use stepflow::kernels::{Device, SfOebOutcome, SfOebRow, Shared};
use stepflow::stepflow::oeb::{EPSILON, Group, Mass, bridge_row};

use crate::attention::{Attention, probabilities, shapes};
use crate::draw::{Draw, Mask};
use crate::{check, devices, table};

struct Case {
    n_kv: usize,
    n_rows: usize,
    n_head: usize,
    sinks: bool,
    tau_max: f32,
    mask: Mask,
    /// Segment of each cell; 3 for none.
    labels: Vec<u8>,
    rows: Vec<SfOebRow>,
    probs: Vec<f32>,
}

/// What the oracle makes of a row.
struct Expected {
    probs: Vec<f64>,
    changed: bool,
    before: f64,
    after: f64,
    /// Float32 may decide otherwise whether the row is below its floor.
    close: bool,
}

impl Case {
    fn draw((n_kv, n_rows, n_head): (usize, usize, usize), seed: u64, sinks: bool, half: bool, tau_max: f32) -> Self {
        let mut draw = Draw(seed);
        let mask = Mask::draw(&mut draw, n_rows, n_kv, half);
        // Three segments of any length, some none, and cells of no segment.
        let (a, b, stray) = (draw.below(n_kv + 1), draw.below(n_kv + 1), 2 + draw.below(60));
        let label = |cell| if cell % stray == 1 { 3 } else { u8::from(cell >= a) + u8::from(cell >= b) };
        let rows = (0..n_rows as u32).filter(|row| n_rows == 1 || row % 7 != 3);
        let rows = rows.map(|row| SfOebRow { row, same: 1 + row % 2, bridge: row % 2, tau_max }).collect();
        let probs = probabilities(&mut draw, &mask, n_head, n_kv, sinks);
        Self { n_kv, n_rows, n_head, sinks, tau_max, mask, labels: (0..n_kv).map(label).collect(), rows, probs }
    }

    fn run(&self, device: &Device) -> (Vec<f32>, Vec<SfOebOutcome>) {
        let mut attention = Attention::new(device, self.probs.clone(), &self.mask, self.n_head, self.n_kv, self.sinks);
        let (labels, rows) = (table(device, self.labels.clone()), table(device, self.rows.clone()));
        let mut found = Shared::default();
        let found = device.oeb(&attention.data(), &labels, &rows, &mut found).unwrap().to_vec();
        (attention.probs.download(device).unwrap().to_vec(), found)
    }

    fn hidden(&self, row: usize) -> &[bool] {
        &self.mask.hidden[row * self.n_kv..][..self.n_kv]
    }

    fn expected(&self, row: &SfOebRow, before: &[f32]) -> Expected {
        let hidden = self.hidden(row.row as usize);
        let group = |cell: usize| match u32::from(self.labels[cell]) {
            _ if hidden[cell] => None,
            label if label == row.same => Some(Group::Same),
            label if label == row.bridge => Some(Group::Bridge),
            _ => Some(Group::Other),
        };
        let groups: Vec<_> = (0..self.n_kv).map(group).collect();
        let mut probs: Vec<f64> = before.iter().map(|p| f64::from(*p)).collect();
        let (close, before) = (is_close(&probs, &groups, f64::from(self.tau_max)), mass(&probs, &groups));
        let changed = bridge_row(&mut probs, &groups, f64::from(self.tau_max), self.sinks);
        let after = mass(&probs, &groups).bridge_share();
        Expected { probs, changed, before: before.bridge_share(), after, close }
    }

    /// One row of one head, which OEB looked at.
    fn check_row(&self, expected: &Expected, before: &[f32], after: &[f32], found: SfOebOutcome, hidden: &[bool]) {
        let agreed = expected.changed == (found.changed == 1);
        assert!(agreed || expected.close, "{found:?}, expected {}", expected.changed);
        for cell in 0..self.n_kv {
            if hidden[cell] {
                assert_eq!(before[cell].to_bits(), after[cell].to_bits(), "hidden cell {cell}");
            } else if agreed {
                // The bound that the kernels are held to: F32 sums and factors on probabilities.
                let error = (f64::from(after[cell]) - expected.probs[cell]).abs();
                assert!(error <= 2e-6, "{} for {}", after[cell], expected.probs[cell]);
            }
        }
        if agreed {
            // Shares are sums of up to 32,768 F32 numbers, of which each thread adds up to 128.
            assert!((f64::from(found.before) - expected.before).abs() <= 2e-6, "{found:?}");
            assert!((f64::from(found.after) - expected.after).abs() <= 2e-6, "{found:?}, expected {}", expected.after);
        }
    }
}

fn mass(row: &[f64], groups: &[Option<Group>]) -> Mass {
    let mass = |group| row.iter().zip(groups).filter(|(_, g)| **g == Some(group)).map(|(p, _)| p).sum::<f64>();
    Mass { same: mass(Group::Same), bridge: mass(Group::Bridge), other: mass(Group::Other) }
}

/// Whether a share is as near to a threshold as rounding of 32,768 sums reaches.
fn is_close(row: &[f64], groups: &[Option<Group>], tau_max: f64) -> bool {
    let count = |group| groups.iter().filter(|g| **g == Some(group)).count() as f64;
    let mass = mass(row, groups);
    let keys = mass.same + mass.bridge + mass.other;
    let (same, bridge) = (mass.same / keys, mass.bridge / keys);
    let tau = (count(Group::Bridge) / (count(Group::Bridge) + count(Group::Same))).sqrt().min(tau_max);
    (bridge - tau).abs() < 1e-6 || (same - EPSILON).abs() < 1e-10 || (same + bridge - EPSILON).abs() < 1e-10
}

#[test]
fn oeb_is_the_oracle() {
    let inputs = (shapes(), any::<u64>(), any::<bool>(), any::<bool>(), 0.0..=1.0f32);
    check(40, inputs, |(shape, seed, sinks, half, tau_max)| {
        let case = Case::draw(shape, seed, sinks, half, tau_max);
        let ran: Vec<_> = devices().iter().map(|on| (on.name, case.run(&on.device))).collect();
        for (at, before) in case.probs.chunks(case.n_kv).enumerate() {
            let (head, row) = (at / case.n_rows, at % case.n_rows);
            let index = case.rows.iter().position(|r| r.row as usize == row);
            let expected = index.map(|index| case.expected(&case.rows[index], before));
            for (name, (probs, found)) in &ran {
                let after = &probs[at * case.n_kv..][..case.n_kv];
                match (index, &expected) {
                    (Some(index), Some(expected)) => {
                        let found = found[index * case.n_head + head];
                        case.check_row(expected, before, after, found, case.hidden(row));
                    }
                    _ => {
                        let same = before.iter().zip(after).all(|(b, a)| b.to_bits() == a.to_bits());
                        prop_assert!(same, "{name}: row {row} was not to be touched");
                    }
                }
            }
        }
        Ok(())
    });
}
