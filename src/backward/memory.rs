//! What a pass takes, before it begins.

use super::attention::{KEYS, ROWS, SHARES};
use super::pass::rows_of_chunk;
use crate::llama::Model;

/// Bytes that a pass takes beside the model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// What the layers' inputs take, in memory or in a temporary file.
    pub inputs: u64,
    /// All else.
    pub work: u64,
}

impl Needed {
    /// By a pass over `n_tokens`, with or without repairs.
    pub fn new(model: &Model, n_tokens: usize, n_threads: i32, repaired: bool) -> Self {
        let gguf = model.metadata();
        let size = |name: &str| gguf.arch_u64(name).unwrap_or(0);
        let rows = rows_of_chunk(n_tokens.max(1));
        let (n, rows, width) = (n_tokens.next_multiple_of(rows) as u64, rows as u64, size("embedding_length"));
        let heads = (0..model.n_layer()).map(|layer| model.n_head(layer) as u64).max().unwrap_or(1);
        let heads_kv = size("attention.head_count_kv").max(1);
        let key = gguf.arch_u64("attention.key_length").unwrap_or(width / heads.max(1));
        let value = gguf.arch_u64("attention.value_length").unwrap_or(key);
        // Queries, keys, values and outputs with their gradients, and what is in several hands for a moment.
        let attention = 3 * heads * key + 3 * heads_kv * (key + value) + 4 * heads * value;
        let groups = if repaired { 6 * heads * value } else { 0 };
        let shares = SHARES as u64 * (key + value);
        let per_token = 4 * width + attention + groups + shares;
        let experts = size("expert_used_count");
        let hidden = size("feed_forward_length").max(experts * size("expert_feed_forward_length"));
        let slots = experts.max(1);
        let layer = rows * (8 * width + 2 * slots * width + 4 * hidden + 4 * heads * key);
        let head = rows * (2 * model.n_vocab() as u64 + 3 * width);
        // Values, and gradients of about as many.
        let part = 2 * layer.max(head);
        let tiles = n_threads.max(1) as u64 * (5 * ROWS * KEYS) as u64;
        Self { inputs: 4 * (model.n_layer() as u64 + 1) * n * width, work: 4 * (n * per_token + part + tiles) }
    }
}
