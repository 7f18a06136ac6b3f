//! Random weights: a pool of blocks for each type, of which each tensor borrows a stretch, for drawing all of a file
//! would take longer than writing it and more memory than there may be.

use std::borrow::Cow;
use std::collections::HashMap;

use half::f16;
use stepflow::gguf::GgmlType;

use super::random::SplitMix64;
use super::tensors::{Content, Tensor};

/// Standard deviation of the weights, about that of trained ones. A product with a matrix of some thousand columns is
/// then a few times as large as its input, and what the layers add up stays in the range of half precision.
pub const DEVIATION: f32 = 0.02;

/// Types that weights can have, in the order in which their pools are drawn.
const TYPES: [GgmlType; 4] = [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::MXFP4];

/// By how many bytes a pool is longer than its largest tensor, so that even tensors of that size differ.
const SPARE: u64 = 1 << 24;

/// The pools of a model.
pub struct Weights {
    pools: HashMap<GgmlType, Vec<u8>>,
}

impl Weights {
    /// Pools that are large enough for these tensors.
    pub fn new(tensors: &[Tensor], random: &mut SplitMix64) -> Self {
        let mut pools = HashMap::new();
        for ty in TYPES {
            if let Some(largest) = tensors.iter().filter(|tensor| tensor.ty() == ty).map(Tensor::bytes).max() {
                pools.insert(ty, pool(ty, (largest + SPARE) / ty.block_bytes(), random));
            }
        }
        Self { pools }
    }

    /// The data of a tensor, from another place in the pool at each call.
    pub fn of(&self, tensor: &Tensor, random: &mut SplitMix64) -> Cow<'_, [u8]> {
        let ty = match tensor.content {
            Content::Blocks(ty) => ty,
            Content::Floats(mean, deviation) => return floats(tensor.dims.iter().product(), mean, deviation, random),
        };
        let (pool, bytes, block) = (&self.pools[&ty], tensor.bytes() as usize, ty.block_bytes() as usize);
        let start = random.below((pool.len() - bytes) / block + 1) * block;
        Cow::Borrowed(&pool[start..start + bytes])
    }
}

fn pool(ty: GgmlType, blocks: u64, random: &mut SplitMix64) -> Vec<u8> {
    let block = ty.block_bytes() as usize;
    let mut bytes = vec![0; blocks as usize * block];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    bytes.chunks_exact_mut(block).for_each(|block| set_scale(ty, block));
    bytes
}

/// Gives a block of random bits a scale by which its weights have [`DEVIATION`] and a mean of zero.
fn set_scale(ty: GgmlType, block: &mut [u8]) {
    // Each number is the root mean square of the weights that random bits make at a scale of one.
    let half = |unit: f32| f16::from_f32(DEVIATION / unit).to_le_bytes();
    match ty {
        GgmlType::Q4_K => {
            // Weights are scale x (0 to 15) - minimum: the minimum's scale is 7.5 times as large, and the packed
            // six-bit minima are the packed scales.
            block[..2].copy_from_slice(&half(168.3));
            block[2..4].copy_from_slice(&half(168.3 / 7.5));
            block.copy_within(4..8, 8);
            block[12..16].iter_mut().for_each(|nibbles| *nibbles = (*nibbles & 15) * 17);
        }
        GgmlType::Q6_K => block[208..].copy_from_slice(&half(1365.7)),
        GgmlType::Q8_0 => block[..2].copy_from_slice(&half(73.9)),
        // A power of two alone: 2^-9 or 2^-8 times a number of mean square 34, in turns as the lowest bit has it.
        _ => block[0] = 119 + (block[0] & 1),
    }
}

/// Evenly distributed numbers.
fn floats(count: u64, mean: f32, deviation: f32, random: &mut SplitMix64) -> Cow<'static, [u8]> {
    // Between 0 and 1 the standard deviation is the root of 1/12.
    let width = deviation * 12_f32.sqrt();
    let mut next = || mean + width * ((random.next() >> 40) as f32 / (1_u32 << 24) as f32 - 0.5);
    Cow::Owned((0..count).flat_map(|_| next().to_le_bytes()).collect())
}
