//! Q8_0: blocks of 32 values, each a scale in half precision and 32 whole numbers of 8 bits.

use half::f16;

/// Values of a block.
pub const BLOCK: usize = 32;

/// Largest magnitude of a stored number; -128 is left out, so that the range is symmetric.
const MOST: f32 = 127.0;

/// Quantizes rows whose length is a multiple of [`BLOCK`].
pub fn quantize(values: &[f32]) -> Vec<u8> {
    values.chunks(BLOCK).flat_map(block).collect()
}

fn block(values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / MOST);
    // Counted in steps of the scale as it is stored, not as it was before it was rounded.
    let steps = |value: &f32| match scale.to_f32() {
        0.0 => 0.0,
        step => (value / step).round().clamp(-MOST, MOST),
    };
    scale.to_le_bytes().into_iter().chain(values.iter().map(|value| steps(value) as i8 as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dequantize(bytes: &[u8]) -> Vec<(f32, f32)> {
        let block = |bytes: &[u8]| {
            let step = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            bytes[2..].iter().map(move |&number| (f32::from(number as i8) * step, step)).collect::<Vec<_>>()
        };
        bytes.chunks(2 + BLOCK).flat_map(block).collect()
    }

    proptest! {
        #[test]
        fn every_value_is_within_half_a_step(values in prop::collection::vec(-4_f32..4.0, 3 * BLOCK)) {
            let stored = dequantize(&quantize(&values));
            prop_assert_eq!(stored.len(), values.len());
            for (value, (back, step)) in values.iter().zip(stored) {
                // Single precision rounds the quotient, by some 1e-5 of a step.
                prop_assert!((value - back).abs() <= 0.5001 * step, "{} came back as {}", value, back);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        assert_eq!(quantize(&[0.0; BLOCK]), [0; 2 + BLOCK]);
    }
}
