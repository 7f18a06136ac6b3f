//! Probes: what a row sees of its keys is scaled, and nothing else.

use proptest::prelude::*;
use stepflow::kernels::{Device, SF_NO_CELL, SfProbeKey, SfProbeRow};

use crate::attention::{Attention, probabilities, shapes};
use crate::draw::{Draw, Mask};
use crate::{On, check, devices, table};

struct Case {
    n_kv: usize,
    n_head: usize,
    mask: Mask,
    probs: Vec<f32>,
    rows: Vec<SfProbeRow>,
    keys: Vec<SfProbeKey>,
    factors: Vec<f32>,
}

impl Case {
    fn draw((n_kv, n_rows, n_head): (usize, usize, usize), seed: u64, half: bool) -> Self {
        let mut draw = Draw(seed);
        let mask = Mask::draw(&mut draw, n_rows, n_kv, half);
        let probs = probabilities(&mut draw, &mask, n_head, n_kv, false);
        let (mut keys, mut rows) = (Vec::new(), Vec::new());
        for row in (0..n_rows as u32).filter(|row| row % 3 != 1) {
            let (first, step, start) = (keys.len(), 1 + draw.below(3), draw.below(n_kv));
            // Keys lie in cells of their own; a key's other place is hidden, or unknown.
            keys.extend((start..n_kv).step_by(step).map(|cell| {
                let own = mask.hidden[row as usize * n_kv + cell] || cell % 2 == 0;
                let (here, nowhere) = (cell as u32, SF_NO_CELL);
                if own { SfProbeKey { own: here, shared: nowhere } } else { SfProbeKey { own: nowhere, shared: here } }
            }));
            rows.push(SfProbeRow { row, first: first as u32, n_keys: (keys.len() - first) as u32 });
        }
        let factors = (0..rows.len() * n_head).map(|_| 1.0 + 0.3 * draw.real()).collect();
        Self { n_kv, n_head, mask, probs, rows, keys, factors }
    }

    fn expected(&self) -> Vec<f32> {
        let (mut expected, n_rows) = (self.probs.clone(), self.probs.len() / self.n_kv / self.n_head);
        for (index, row) in self.rows.iter().enumerate() {
            let row_at = row.row as usize;
            for key in &self.keys[row.first as usize..][..row.n_keys as usize] {
                let seen = |cell: &u32| *cell != SF_NO_CELL && !self.mask.hidden[row_at * self.n_kv + *cell as usize];
                let Some(cell) = [key.own, key.shared].into_iter().find(seen) else { continue };
                for head in 0..self.n_head {
                    let at = (head * n_rows + row_at) * self.n_kv + cell as usize;
                    expected[at] *= self.factors[index * self.n_head + head];
                }
            }
        }
        expected
    }

    fn run(&self, device: &Device) -> Vec<f32> {
        let mut attention = Attention::new(device, self.probs.clone(), &self.mask, self.n_head, self.n_kv, false);
        let (keys, rows) = (table(device, self.keys.clone()), table(device, self.rows.clone()));
        device.probe(&attention.data(), &keys, &rows, &table(device, self.factors.clone())).unwrap();
        attention.probs.download(device).unwrap().to_vec()
    }
}

#[test]
fn a_probe_scales_what_a_row_sees_and_nothing_else() {
    check(40, (shapes(), any::<u64>(), any::<bool>()), |(shape, seed, half)| {
        let case = Case::draw(shape, seed, half);
        let expected = case.expected();
        for On { name, device, .. } in devices() {
            let differs = expected.iter().zip(case.run(device)).position(|(e, a)| e.to_bits() != a.to_bits());
            prop_assert!(differs.is_none(), "{name}: at {differs:?}");
        }
        Ok(())
    });
}
