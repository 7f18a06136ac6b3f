//! Attention to try kernels on.

use proptest::prelude::*;
use stepflow::kernels::{AttentionData, Device, SfAttention, Table};

use crate::draw::{Draw, Mask};
use crate::table;

/// Softmax rows, `[n_head][n_rows][n_kv]`. Hidden cells hold what no kernel may read or write.
pub fn probabilities(draw: &mut Draw, mask: &Mask, n_head: usize, n_kv: usize, sinks: bool) -> Vec<f32> {
    let mut all = Vec::new();
    for _ in 0..n_head {
        for hidden in mask.hidden.chunks(n_kv) {
            let spread = 8.0 * f64::from(draw.real()).abs();
            let weights: Vec<f64> =
                hidden.iter().map(|h| if *h { 0.0 } else { (spread * f64::from(draw.real())).exp() }).collect();
            let sink = if sinks { (4.0 * f64::from(draw.real())).exp() * weights.len() as f64 * 0.2 } else { 0.0 };
            let total = weights.iter().sum::<f64>() + sink;
            all.extend(weights.iter().zip(hidden).map(|(weight, hidden)| match hidden {
                true => [0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30][draw.below(5)],
                false => (weight / total) as f32,
            }));
        }
    }
    all
}

/// Attention in the memory of a device.
pub struct Attention {
    pub probs: Table<f32>,
    mask: Table<u8>,
    args: SfAttention,
    sinks: bool,
}

impl Attention {
    pub fn new(device: &Device, probs: Vec<f32>, mask: &Mask, n_head: usize, n_kv: usize, sinks: bool) -> Self {
        let n_rows = (probs.len() / n_head / n_kv) as u32;
        let (n_kv, n_head) = (n_kv as u32, n_head as u32);
        let args = SfAttention { mask_stride: mask.stride as u64, mask_type: mask.kind, n_kv, n_rows, n_head };
        Self { probs: table(device, probs), mask: table(device, mask.bytes.clone()), args, sinks }
    }

    pub fn data(&mut self) -> AttentionData<'_> {
        let probs = self.probs.as_ptr().cast_mut();
        // SAFETY: both are tables of the device, as large as the shapes say, and borrowed until the data is gone.
        unsafe { AttentionData::new(self.args, self.sinks, probs, self.mask.as_ptr()) }
    }
}

/// Shapes of attention: keys, rows, heads. Small enough together for kernels on the CPU.
pub fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let n_kv = prop_oneof![1..=64usize, 65..=2048usize, 2049..=32768usize, Just(32768), Just(2048), Just(1)];
    (n_kv, 1..=512usize, 1..=8usize).prop_map(|(n_kv, n_rows, n_head)| {
        let n_head = if n_rows > 64 { 1 } else { n_head };
        (n_kv, n_rows.min((200_000 / n_kv / n_head).max(1)), n_head)
    })
}
