//! Attention and its derivatives, in tiles of some queries by some keys: never all of them at once.

use std::ops::Range;

use rayon::prelude::*;

use super::bridge::{Bridge, Groups};
use super::lanes::{RowConstants, attention_back, exponentials, largest};
use super::product::{Matrix, multiply};
use crate::llama::replay::Attention;

/// Queries of a block, times the heads that share keys, are about so many rows.
pub(super) const ROWS: usize = 128;
/// Keys of a tile.
pub(super) const KEYS: usize = 256;
/// Blocks of queries are dealt out to so many shares, whose sums over queries are added in their order: the same bits with any
/// number of threads.
pub(super) const SHARES: usize = 8;

/// Attention of a sequence in one layer. Rows are tokens: `[n_tokens][heads][elements]`.
pub(super) struct Layer<'a> {
    pub attention: &'a Attention,
    pub queries: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    /// How attention is repaired, if it is.
    pub bridge: Option<&'a Bridge<'a>>,
}

/// What a layer's attention gives.
pub(super) struct Forward {
    /// Outputs of all heads, `[n_tokens][n_head][value_dim]`.
    pub outputs: Vec<f32>,
    /// Logarithms of the sums of exponentials, `[n_tokens][n_head]`.
    pub log_sums: Vec<f32>,
    /// What the repair made of it, where there is one.
    pub groups: Option<Groups>,
}

/// The loss's derivatives by queries, keys and values.
pub(super) struct Backward {
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

/// Attention of one head over neighbouring keys, times the loss's derivative by it: what maps are pooled of.
pub struct Products<'t> {
    /// The head.
    pub head: usize,
    /// The token that looks.
    pub query: usize,
    /// The tokens that are looked at.
    pub keys: Range<usize>,
    /// A product for each.
    pub products: &'t [f32],
}

/// Is shown all products of some rows, by one thread.
pub trait Watch: Send {
    /// Sees some of a row's.
    fn see(&mut self, products: &Products<'_>);

    /// Takes over what another saw of other rows.
    fn merge(&mut self, other: Self);
}

/// Looks at nothing.
pub struct Unwatched;

impl Watch for Unwatched {
    fn see(&mut self, _: &Products<'_>) {}

    fn merge(&mut self, _: Self) {}
}

impl Layer<'_> {
    fn n_tokens(&self) -> usize {
        self.queries.len() / (self.attention.n_head * self.attention.key_dim)
    }

    /// Heads that share keys and values.
    fn group_size(&self) -> usize {
        self.attention.n_head / self.attention.n_head_kv
    }

    /// What queries are multiplied with beforehand.
    fn inner_scale(&self) -> f32 {
        self.attention.softcap.map_or(self.attention.scale, |cap| cap.inner)
    }

    /// Queries of a block see the same groups of keys.
    fn blocks(&self) -> Vec<Range<usize>> {
        let size = ROWS.div_ceil(self.group_size()).next_multiple_of(8);
        self.cut(0..self.n_tokens(), size)
    }

    /// Tiles of the keys that some query of a block sees; all of one group.
    fn tiles(&self, block: &Range<usize>) -> Vec<Range<usize>> {
        let first = self.attention.window.map_or(0, |window| (block.start + 1).saturating_sub(window));
        let tiles = self.cut(0..block.end, KEYS);
        tiles.into_iter().filter(|tile| tile.end > first).collect()
    }

    /// Pieces of at most `size` tokens, none of which reaches beyond its segment where segments count.
    fn cut(&self, tokens: Range<usize>, size: usize) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        let mut start = tokens.start;
        while start < tokens.end {
            let limit = self.bridge.map_or(tokens.end, |bridge| bridge.segment_end(start));
            let end = (start + size).min(limit).min(tokens.end);
            pieces.push(start..end);
            start = end;
        }
        pieces
    }

    /// The keys of a tile that a query sees, counted from the tile's first.
    fn visible(&self, query: usize, tile: &Range<usize>) -> Range<usize> {
        let first = self.attention.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let end = tile.end.min(query + 1).max(tile.start) - tile.start;
        (first.max(tile.start) - tile.start).min(end)..end
    }

    /// Rows of some heads of a block, token after token, each times a factor.
    fn gather(
        rows: &[f32],
        block: &Range<usize>,
        n_head: usize,
        heads: Range<usize>,
        dim: usize,
        factor: f32,
    ) -> Vec<f32> {
        let of_token = |token: usize| &rows[(token * n_head + heads.start) * dim..(token * n_head + heads.end) * dim];
        block.clone().flat_map(of_token).map(|x| factor * x).collect()
    }

    /// Keys or values of a tile and head.
    fn shared<'r>(&self, rows: &'r [f32], tile: &Range<usize>, head: usize, dim: usize) -> Matrix<'r> {
        let stride = self.attention.n_head_kv * dim;
        Matrix::rows(&rows[tile.start * stride + head * dim..], tile.len(), dim, stride)
    }

    /// Bounds scores, and leaves how fast each grows.
    fn cap(&self, scores: &mut [f32], slopes: &mut [f32]) {
        let Some(cap) = self.attention.softcap else { return };
        let outer = cap.outer * self.attention.scale;
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let t = score.tanh();
            (*score, *slope) = (outer * t, outer * (1.0 - t * t));
        }
    }

    /// Computes it.
    pub fn forward(&self) -> Forward {
        let Attention { n_head, value_dim, .. } = *self.attention;
        let blocks = self.blocks();
        let done: Vec<Vec<Block>> = blocks
            .par_iter()
            .map(|block| (0..self.attention.n_head_kv).map(|head| self.forward_block(block, head)).collect())
            .collect();
        let n_tokens = self.n_tokens();
        let mut forward = Forward {
            outputs: vec![0.0; n_tokens * n_head * value_dim],
            log_sums: vec![0.0; n_tokens * n_head],
            groups: self.bridge.map(|_| Groups::new(n_tokens, n_head, value_dim)),
        };
        let group_size = self.group_size();
        for (block, heads) in blocks.iter().zip(&done) {
            for (shared, part) in heads.iter().enumerate() {
                for (i, query) in block.clone().enumerate() {
                    let place = query * n_head + shared * group_size;
                    let rows = i * group_size..(i + 1) * group_size;
                    let outputs = &part.outputs[rows.start * value_dim..rows.end * value_dim];
                    forward.outputs[place * value_dim..][..outputs.len()].copy_from_slice(outputs);
                    forward.log_sums[place..place + group_size].copy_from_slice(&part.log_sums[rows.clone()]);
                    if let (Some(groups), Some(of_block)) = (&mut forward.groups, &part.groups) {
                        groups.copy(place, of_block, rows);
                    }
                }
            }
        }
        forward
    }

    fn forward_block(&self, block: &Range<usize>, shared: usize) -> Block {
        let Attention { n_head, key_dim, value_dim, ref sinks, .. } = *self.attention;
        let group_size = self.group_size();
        let heads = shared * group_size..(shared + 1) * group_size;
        let n_rows = block.len() * group_size;
        let queries = Self::gather(self.queries, block, n_head, heads.clone(), key_dim, self.inner_scale());
        let sink = |row: usize| sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[heads.start + row % group_size]);
        let mut most: Vec<f32> = (0..n_rows).map(sink).collect();
        let mut groups = Groups::new(block.len(), group_size, value_dim);
        let mut scores = vec![0.0; n_rows * KEYS];
        let mut slopes = vec![0.0; if self.attention.softcap.is_some() { n_rows * KEYS } else { 0 }];
        for tile in self.tiles(block) {
            let group = self.bridge.map_or(0, |bridge| bridge.group(block.start, tile.start));
            let n = tile.len();
            let scores = &mut scores[..n_rows * n];
            let keys = self.shared(self.keys, &tile, shared, key_dim).transposed();
            multiply(Matrix::rows(&queries, n_rows, key_dim, key_dim), keys, 0.0, scores, n);
            self.cap(scores, &mut slopes);
            for (row, scores) in scores.chunks_exact_mut(n).enumerate() {
                let visible = self.visible(block.start + row / group_size, &tile);
                scores[..visible.start].fill(0.0);
                scores[visible.end..].fill(0.0);
                let scores = &mut scores[visible];
                let new = largest(scores).max(most[row]);
                if scores.is_empty() {
                    continue;
                }
                if new > most[row] {
                    groups.scale(row, (most[row] - new).exp());
                    most[row] = new;
                }
                groups.masses[group][row] += f64::from(exponentials(scores, new));
            }
            let values = self.shared(self.values, &tile, shared, value_dim);
            multiply(Matrix::rows(scores, n_rows, n, n), values, 1.0, &mut groups.outputs[group], value_dim);
        }
        self.close_block(block, &most, sink, groups)
    }

    /// Turns sums of exponentials into shares, and repairs them.
    fn close_block(
        &self,
        block: &Range<usize>,
        most: &[f32],
        sink: impl Fn(usize) -> f32,
        mut groups: Groups,
    ) -> Block {
        let group_size = self.group_size();
        let mut log_sums = Vec::with_capacity(most.len());
        for (row, most) in most.iter().enumerate() {
            let sum: f64 =
                groups.masses.iter().map(|masses| masses[row]).sum::<f64>() + f64::from(sink(row) - most).exp();
            groups.divide(row, sum);
            log_sums.push((f64::from(*most) + sum.ln()) as f32);
            if let Some(bridge) = self.bridge {
                let first = self
                    .attention
                    .window
                    .map_or(0, |window| (block.start + row / group_size + 1).saturating_sub(window));
                bridge.repair(&mut groups, row, block.start + row / group_size, first, self.attention.sinks.is_some());
            }
        }
        let outputs = groups.total();
        Block { outputs, log_sums, groups: self.bridge.map(|_| groups) }
    }

    /// From the loss's derivatives by the outputs of all heads to those by queries, keys and values. `watch` makes a watcher for
    /// each share of the rows; they are merged in an order that does not depend on threads.
    pub fn backward<W: Watch>(
        &self,
        forward: &Forward,
        by_outputs: &[f32],
        watch: impl Fn() -> W + Sync,
    ) -> (Backward, W) {
        let Attention { n_head_kv, key_dim, value_dim, .. } = *self.attention;
        let mut all = Backward {
            queries: vec![0.0; self.queries.len()],
            keys: vec![0.0; self.keys.len()],
            values: vec![0.0; self.values.len()],
        };
        let blocks = self.blocks();
        let mut watcher = watch();
        for shared in 0..n_head_kv {
            let shares: Vec<Share<W>> = (0..SHARES)
                .into_par_iter()
                .map(|share| self.backward_share(forward, by_outputs, &blocks, share, shared, watch()))
                .collect();
            for share in shares {
                add_head(&mut all.keys, &share.keys, n_head_kv, shared, key_dim);
                add_head(&mut all.values, &share.values, n_head_kv, shared, value_dim);
                for (block, queries) in share.queries {
                    self.put_queries(&mut all.queries, &block, &queries, shared);
                }
                watcher.merge(share.watch);
            }
        }
        (all, watcher)
    }

    /// Every [`SHARES`]th block of queries, of the heads that share keys.
    fn backward_share<W: Watch>(
        &self,
        forward: &Forward,
        by_outputs: &[f32],
        blocks: &[Range<usize>],
        share: usize,
        shared: usize,
        watch: W,
    ) -> Share<W> {
        let Attention { key_dim, value_dim, .. } = *self.attention;
        let end = blocks.iter().skip(share).step_by(SHARES).map(|block| block.end).max().unwrap_or(0);
        let mut done =
            Share { keys: vec![0.0; end * key_dim], values: vec![0.0; end * value_dim], queries: Vec::new(), watch };
        for block in blocks.iter().skip(share).step_by(SHARES) {
            let queries = self.backward_block(forward, by_outputs, block, shared, &mut done);
            done.queries.push((block.clone(), queries));
        }
        done
    }

    fn backward_block<W: Watch>(
        &self,
        forward: &Forward,
        by_outputs: &[f32],
        block: &Range<usize>,
        shared: usize,
        done: &mut Share<W>,
    ) -> Vec<f32> {
        let Attention { n_head, key_dim, value_dim, .. } = *self.attention;
        let group_size = self.group_size();
        let heads = shared * group_size..(shared + 1) * group_size;
        let n_rows = block.len() * group_size;
        let inner = self.inner_scale();
        let queries = Self::gather(self.queries, block, n_head, heads.clone(), key_dim, inner);
        let by_outputs = Self::gather(by_outputs, block, n_head, heads.clone(), value_dim, 1.0);
        let constants = self.row_constants(forward, &by_outputs, block, &heads);
        let mut by_queries = vec![0.0; n_rows * key_dim];
        let mut memory = vec![0.0; 4 * n_rows * KEYS];
        for tile in self.tiles(block) {
            let n = tile.len();
            let (scores, rest) = memory.split_at_mut(n_rows * KEYS);
            let (gradients, rest) = rest.split_at_mut(n_rows * KEYS);
            let (products, slopes) = rest.split_at_mut(n_rows * KEYS);
            let (scores, gradients) = (&mut scores[..n_rows * n], &mut gradients[..n_rows * n]);
            let (keys, values) =
                (self.shared(self.keys, &tile, shared, key_dim), self.shared(self.values, &tile, shared, value_dim));
            let query_rows = Matrix::rows(&queries, n_rows, key_dim, key_dim);
            let by_output_rows = Matrix::rows(&by_outputs, n_rows, value_dim, value_dim);
            multiply(query_rows, keys.transposed(), 0.0, scores, n);
            multiply(by_output_rows, values.transposed(), 0.0, gradients, n);
            self.cap(scores, slopes);
            let group = self.bridge.map_or(0, |bridge| bridge.group(block.start, tile.start));
            for row in 0..n_rows {
                let query = block.start + row / group_size;
                let visible = self.visible(query, &tile);
                let of_row = row * n..(row + 1) * n;
                let (scores, gradients) = (&mut scores[of_row.clone()], &mut gradients[of_row]);
                for numbers in [&mut *scores, &mut *gradients] {
                    numbers[..visible.start].fill(0.0);
                    numbers[visible.end..].fill(0.0);
                }
                let products = &mut products[..visible.len()];
                attention_back(
                    &mut scores[visible.clone()],
                    &mut gradients[visible.clone()],
                    products,
                    constants[group][row],
                );
                let keys = tile.start + visible.start..tile.start + visible.end;
                done.watch.see(&Products { head: heads.start + row % group_size, query, keys, products });
                if self.attention.softcap.is_some() {
                    let slopes = &slopes[row * n..(row + 1) * n];
                    gradients.iter_mut().zip(slopes).for_each(|(gradient, slope)| *gradient *= slope);
                }
            }
            let (scores, gradients) = (Matrix::rows(scores, n_rows, n, n), Matrix::rows(gradients, n_rows, n, n));
            multiply(gradients, keys, 1.0, &mut by_queries, key_dim);
            multiply(gradients.transposed(), query_rows, 1.0, &mut done.keys[tile.start * key_dim..], key_dim);
            multiply(scores.transposed(), by_output_rows, 1.0, &mut done.values[tile.start * value_dim..], value_dim);
        }
        by_queries.iter_mut().for_each(|x| *x *= inner);
        by_queries
    }

    /// What of each row of a block is the same for all keys of a group.
    fn row_constants(
        &self,
        forward: &Forward,
        by_outputs: &[f32],
        block: &Range<usize>,
        heads: &Range<usize>,
    ) -> [Vec<RowConstants>; 3] {
        let Attention { n_head, value_dim, .. } = *self.attention;
        let rows = by_outputs.chunks_exact(value_dim).enumerate().map(|(row, by_output)| {
            let place = (block.start + row / heads.len()) * n_head + heads.start + row % heads.len();
            let log_sum = forward.log_sums[place];
            match &forward.groups {
                Some(groups) => groups.constants(place, by_output, log_sum),
                None => {
                    let output = &forward.outputs[place * value_dim..(place + 1) * value_dim];
                    let mean: f32 = output.iter().zip(by_output).map(|(a, b)| a * b).sum();
                    [RowConstants { log_sum, factor: 1.0, added: -mean }; 3]
                }
            }
        });
        let mut constants = [Vec::new(), Vec::new(), Vec::new()];
        for of_row in rows {
            constants.iter_mut().zip(of_row).for_each(|(all, one)| all.push(one));
        }
        constants
    }

    fn put_queries(&self, all: &mut [f32], block: &Range<usize>, queries: &[f32], shared: usize) {
        let Attention { n_head, key_dim, .. } = *self.attention;
        let width = self.group_size() * key_dim;
        for (query, from) in block.clone().zip(queries.chunks_exact(width)) {
            all[query * n_head * key_dim + shared * width..][..width].copy_from_slice(from);
        }
    }
}

/// A block of queries, of the heads that share keys: rows are tokens, then heads.
struct Block {
    outputs: Vec<f32>,
    log_sums: Vec<f32>,
    groups: Option<Groups>,
}

/// What a share of the queries brings for one head of keys and values.
struct Share<W> {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<(Range<usize>, Vec<f32>)>,
    watch: W,
}

/// Adds rows of one head to all of them.
fn add_head(all: &mut [f32], rows: &[f32], n_head: usize, head: usize, dim: usize) {
    for (to, from) in all.chunks_exact_mut(n_head * dim).zip(rows.chunks_exact(dim)) {
        to[head * dim..(head + 1) * dim].iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

#[cfg(test)]
mod tests;
