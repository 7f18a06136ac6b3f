//! Numbers and masks that a seed gives again.

use half::f16;
use stepflow::kernels::{SF_F16, SF_F32};

/// Numbers that a seed gives again: shapes are drawn by proptest, contents by this.
pub struct Draw(pub u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// In -1..1.
    pub fn real(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// A mask, `[n_rows][n_kv]`, of F32 or F16 and with rows a little apart.
pub struct Mask {
    pub hidden: Vec<bool>,
    pub bytes: Vec<u8>,
    pub stride: usize,
    pub kind: u32,
}

impl Mask {
    pub fn draw(draw: &mut Draw, n_rows: usize, n_kv: usize, half: bool) -> Self {
        let (kind, width) = if half { (SF_F16, 2) } else { (SF_F32, 4) };
        let stride = n_kv * width + 64;
        let (mut hidden, mut bytes) = (vec![false; n_rows * n_kv], vec![0; stride * n_rows]);
        for row in 0..n_rows {
            // The end is not computed yet, as in a causal mask; of the rest a run and single cells are hidden.
            let (end, from, n) = (1 + draw.below(n_kv), draw.below(n_kv), draw.below(n_kv / 2 + 1));
            let every = 2 + draw.below(40);
            for cell in 0..n_kv {
                let hide = cell >= end || (from..from + n).contains(&cell) || cell % every == 1;
                hidden[row * n_kv + cell] = hide;
                let value = if hide { f32::NEG_INFINITY } else { 0.0 };
                let at = row * stride + cell * width;
                match half {
                    true => bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
                    false => bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes()),
                }
            }
        }
        Self { hidden, bytes, stride, kind }
    }
}
