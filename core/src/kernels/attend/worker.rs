//! One thread's work on a layer: the chunks of its pieces, and what they come to together.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::layer::{Layer, Momentum, RowWork, rows_of};
use super::plan::Plan;
use super::tile::{HEADS, TILE};
use super::{Attend, Piece};
use crate::kernels::host::{Bridged, inject_row};
use crate::stepflow::oeb::{Mass, factors};

/// One thread's work, and its memory.
pub(super) struct Worker<'a> {
    attend: &'a Attend,
    /// Queries of a piece's heads, scaled, `[heads][16 blocks]`.
    queries: Vec<f32>,
    scores: Vec<f32>,
    /// Keys or values of a tile as floats, where elements are not read by hand; else one value, for SMI.
    tile: Vec<f32>,
    /// Outcomes of chunks that no other thread needs.
    parts: Vec<f32>,
    sum: Vec<f32>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(attend: &'a Attend) -> Self {
        let (keys, values) = (&attend.layer.keys, &attend.layer.values);
        let n_cells = if keys.in_blocks() && values.in_blocks() { 1 } else { TILE };
        Self {
            queries: vec![0.0; attend.layer.n_head * 16 * keys.blocks()],
            scores: vec![0.0; HEADS * TILE],
            tile: vec![0.0; n_cells * 16 * keys.blocks().max(values.blocks())],
            parts: Vec::new(),
            sum: vec![0.0; values.dim],
            attend,
        }
    }

    pub(super) fn do_piece(&mut self, Piece { row, first, last, chunk }: Piece) {
        let Attend { layer, rows, places, left, scratch, .. } = self.attend;
        let (work, pair) = (&rows[row], row * layer.n_head_kv);
        let Some(plan) = &work.plan else {
            return (first..last).for_each(|head| self.inject(row, head));
        };
        let of_head = plan.chunks.len() * layer.part();
        self.scale_queries(work, first..last);
        match chunk {
            None => {
                let mut parts = std::mem::take(&mut self.parts);
                parts.resize((last - first) * of_head, 0.0);
                for at in 0..plan.chunks.len() {
                    // SAFETY: there is room for all chunks of these heads.
                    unsafe { self.do_chunk(work, plan, first..last, at, parts.as_mut_ptr()) };
                }
                for head in first..last {
                    self.combine(row, plan, head, &parts[(head - first) * of_head..][..of_head]);
                }
                self.parts = parts;
            }
            Some(at) => {
                // SAFETY: `new` made room for all chunks, and this thread alone has this one.
                let parts = unsafe { scratch.floats(0).add(places[pair + first]) };
                // SAFETY: as above.
                unsafe { self.do_chunk(work, plan, first..last, at, parts) };
                for head in first..last {
                    if left[pair + head].fetch_sub(1, Ordering::AcqRel) == 1 {
                        // SAFETY: the last of a head's chunks is done, so nothing writes to them any more.
                        let all = unsafe { std::slice::from_raw_parts(parts.add((head - first) * of_head), of_head) };
                        self.combine(row, plan, head, all);
                    }
                }
            }
        }
    }

    /// The queries of some key-value heads, multiplied by the scale.
    fn scale_queries(&mut self, work: &RowWork, heads: Range<usize>) {
        let Layer { queries, keys, scale, softcap, .. } = &self.attend.layer;
        let scale = if *softcap == 0.0 { *scale } else { scale / softcap };
        let group = self.attend.layer.group();
        let heads = heads.start * group..heads.end * group;
        for (head, to) in heads.zip(self.queries.chunks_exact_mut(16 * keys.blocks())) {
            let at = work.stream * queries.stream + work.row * queries.row + head * queries.head;
            // SAFETY: such a row of such a head is part of the queries.
            let from = unsafe { std::slice::from_raw_parts(queries.data.add(at), keys.dim) };
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }

    /// The softmax of one chunk for some key-value heads, into its parts: see [`Part`].
    ///
    /// # Safety
    /// `parts` has a place for every chunk of these heads, and no other thread uses that of this one.
    unsafe fn do_chunk(&mut self, work: &RowWork, plan: &Plan, heads: Range<usize>, at: usize, parts: *mut f32) {
        let (layer, chunk, size) = (&self.attend.layer, &plan.chunks[at], self.attend.layer.part());
        let end = chunk.first + chunk.len;
        for start in (chunk.first..end).step_by(TILE) {
            for head in heads.clone() {
                let place = ((head - heads.start) * plan.chunks.len() + at) * size;
                // SAFETY: by this function's contract.
                let part = Part::of(unsafe { std::slice::from_raw_parts_mut(parts.add(place), size) }, layer.group());
                let tile = Tile { start, end: end.min(start + TILE), is_first: start == chunk.first };
                // The first head has the memory of all asked for.
                let n_soon = if head == heads.start { heads.len() } else { 0 };
                let next = tile.end..end.min(tile.end + TILE);
                self.do_tile(work, plan, (head, head - heads.start), &tile, (next, n_soon), part);
            }
        }
    }

    /// One tile of a chunk, for one key-value head: which, and as which of the piece's. `next` are the cells of the tile
    /// that follows, of which so many heads are asked for.
    fn do_tile(
        &mut self,
        work: &RowWork,
        plan: &Plan,
        (head_kv, of_piece): (usize, usize),
        tile: &Tile,
        (next, n_soon): (Range<usize>, usize),
        part: Part<'_>,
    ) {
        let Attend { layer, functions, .. } = self.attend;
        // SAFETY: the row's stream and this head are part of the caches.
        let (keys, values) =
            unsafe { (layer.keys.base(work.stream, head_kv), layer.values.base(work.stream, head_kv)) };
        let (group, width, blocks) = (layer.group(), 16 * layer.values.blocks(), layer.keys.blocks());
        let cells = &plan.cells[tile.start..tile.end];
        if tile.is_first {
            part.largest.fill(f32::NEG_INFINITY);
            part.sums.fill(0.0);
            part.values.fill(0.0);
        }
        for first in (0..group).step_by(HEADS) {
            let n = HEADS.min(group - first);
            let n_soon = if first == 0 { n_soon } else { 0 };
            let rows = rows_of(&layer.keys, keys, cells, &mut self.tile);
            // SAFETY: queries of `n` heads from there on; the cells are in the cache by the contract of `new`.
            unsafe {
                let queries = self.queries.as_ptr().add((of_piece * group + first) * 16 * blocks);
                let soon = layer.values.soon(values, cells, n_soon);
                functions.scores[n - 1](queries, blocks, rows, soon, self.scores.as_mut_ptr());
            }
            for head in 0..n {
                let scores = &mut self.scores[head * TILE..][..TILE];
                layer.finish_scores(&mut scores[..cells.len()], plan, tile.start, head_kv * group + first + head);
                let (largest, sum) = (&mut part.largest[first + head], &mut part.sums[first + head]);
                // SAFETY: a tile's places.
                let (now, factor, added) = unsafe { (functions.weights)(scores.as_mut_ptr(), cells.len(), *largest) };
                if !tile.is_first && factor != 1.0 {
                    part.values[(first + head) * width..][..width].iter_mut().for_each(|value| *value *= factor);
                }
                (*largest, *sum) = (now, if tile.is_first { 0.0 } else { *sum * factor } + added);
            }
            let rows = rows_of(&layer.values, values, cells, &mut self.tile);
            let sums = part.values[first * width..(first + n) * width].as_mut_ptr();
            // SAFETY: weights and sums of `n` heads; the cells are in the cache by the contract of `new`.
            unsafe {
                let soon = layer.keys.soon(keys, &plan.cells[next.clone()], n_soon);
                functions.weigh[n - 1](self.scores.as_ptr(), rows, soon, layer.values.blocks(), sums);
            }
        }
    }

    /// Puts the chunks of a row and key-value head together: OEB, the output, and SMI.
    fn combine(&mut self, row: usize, plan: &Plan, head_kv: usize, parts: &[f32]) {
        let layer = &self.attend.layer;
        let (work, group) = (&self.attend.rows[row], layer.group());
        for head in head_kv * group..(head_kv + 1) * group {
            let chunks = || plan.chunks.iter().zip(parts.chunks_exact(layer.part()));
            let found = |part: &[f32]| (part[head % group], part[group + head % group]);
            // SAFETY: sinks have a place for every head.
            let sink = (!layer.sinks.is_null()).then(|| unsafe { *layer.sinks.add(head) });
            let largest = chunks().map(|(_, part)| found(part).0).chain(sink).fold(f32::NEG_INFINITY, f32::max);
            // Relative to the largest; a chunk that saw nothing weighs nothing.
            let weight = |part: &[f32]| match found(part) {
                (_, 0.0) => 0.0,
                (own, _) => f64::from(own - largest).exp(),
            };
            let mut mass = Mass::default();
            for (chunk, part) in chunks() {
                *mass.of_mut(chunk.group) += weight(part) * f64::from(found(part).1);
            }
            let total = mass.same + mass.bridge + mass.other + sink.map_or(0.0, |sink| f64::from(sink - largest).exp());
            let share = |mass: f64| if total == 0.0 { 0.0 } else { mass / total };
            let mass = Mass { same: share(mass.same), bridge: share(mass.bridge), other: share(mass.other) };
            let bridged = work.tau_max.map(|tau_max| {
                let factors = factors(mass, plan.n_same, plan.n_bridge, f64::from(tau_max), sink.is_some());
                (factors, Bridged::of(mass, factors))
            });
            let factors = bridged.and_then(|(factors, _)| factors);
            // SAFETY: this row and head of the output are this thread's.
            let output = unsafe { layer.output_of(work, head) };
            output.fill(0.0);
            for (chunk, part) in chunks() {
                let factor = factors.map_or(1.0, |factors| factors.of(chunk.group));
                let weight = (share(weight(part)) * factor) as f32;
                let values = &part[2 * group + head % group * 16 * layer.values.blocks()..];
                output.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
            }
            self.attend.note(row, head, |outcome| outcome.bridged = bridged.map(|(_, bridged)| bridged));
        }
        self.inject(row, head_kv);
    }

    /// SMI on a row's heads of a key-value head, whose outputs are there.
    fn inject(&mut self, row: usize, head_kv: usize) {
        let Attend { layer, rows, .. } = self.attend;
        let work = &rows[row];
        let Some(Momentum { cells, alpha }) = &work.momentum else { return };
        self.sum.fill(0.0);
        // SAFETY: the row's stream and this head are part of the cache.
        let base = unsafe { layer.values.base(work.stream, head_kv) };
        for cell in cells {
            // SAFETY: by the contract of `new` the cell is in the cache; there is room for one.
            unsafe { layer.values.read(base.add(*cell as usize * layer.values.cell), &mut self.tile) };
            self.sum.iter_mut().zip(&self.tile).for_each(|(sum, value)| *sum += value);
        }
        for head in head_kv * layer.group()..(head_kv + 1) * layer.group() {
            // SAFETY: this row and head of the output are this thread's.
            let output = unsafe { layer.output_of(work, head) };
            let injected = inject_row(output, &self.sum, cells.len(), *alpha);
            self.attend.note(row, head, |outcome| outcome.injected = injected);
        }
    }
}

/// Cells of a chunk that are worked on at once: which of the plan's.
struct Tile {
    start: usize,
    end: usize,
    is_first: bool,
}

/// What a chunk came to, for all heads of a key-value head.
struct Part<'a> {
    /// The largest score of each head.
    largest: &'a mut [f32],
    /// The sum of each head's weights, which are relative to the largest score.
    sums: &'a mut [f32],
    /// Values by these weights, `[heads][16 blocks]`.
    values: &'a mut [f32],
}

impl<'a> Part<'a> {
    fn of(floats: &'a mut [f32], heads: usize) -> Self {
        let (largest, rest) = floats.split_at_mut(heads);
        let (sums, values) = rest.split_at_mut(heads);
        Self { largest, sums, values }
    }
}
