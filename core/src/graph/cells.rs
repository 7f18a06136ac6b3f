//! Which token each cell of a KV cache holds, followed from the writes to the K cache.

use std::collections::HashMap;
use std::ops::Range;

use crate::trace::Segment;

use super::Row;

/// What one cell of a KV cache holds: one key of the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The sequence of its token.
    pub sequence: u32,
    /// The position of its token in that sequence.
    pub position: usize,
    /// The segment of its token.
    pub segment: Segment,
}

/// The cells of one stream of a KV cache. A model with sliding-window layers has two caches, each with its own cells.
#[derive(Debug, Clone, Default)]
pub struct Cells {
    cells: Vec<Option<Cell>>,
    /// Which write each cell holds, counted from 1.
    writes: Vec<u64>,
    n_writes: u64,
    /// Cell of every position, per sequence, and its write. An entry is stale where the cell was written again.
    by_position: HashMap<u32, Vec<(usize, u64)>>,
}

impl Cells {
    /// What cell `index` holds; `None` if nothing was written to it yet. A freed cell keeps its last token, and the
    /// attention mask hides it.
    pub fn get(&self, index: usize) -> Option<&Cell> {
        self.cells.get(index)?.as_ref()
    }

    /// The cell that holds `position` of `sequence`, if the cache still has it.
    pub fn find(&self, sequence: u32, position: usize) -> Option<usize> {
        let (index, write) = *self.by_position.get(&sequence)?.get(position)?;
        (write > 0 && self.writes[index] == write).then_some(index)
    }

    pub(super) fn write(&mut self, index: usize, row: &Row) {
        if index >= self.cells.len() {
            self.cells.resize(index + 1, None);
            self.writes.resize(index + 1, 0);
        }
        self.n_writes += 1;
        self.writes[index] = self.n_writes;
        self.cells[index] = Some(Cell { sequence: row.sequence, position: row.position, segment: row.segment });
        let positions = self.by_position.entry(row.sequence).or_default();
        if row.position >= positions.len() {
            positions.resize(row.position + 1, (0, 0));
        }
        positions[row.position] = (index, self.n_writes);
    }

    /// Sequence `to` begins with the first `n` tokens of `from`, in the same cells.
    fn fork(&mut self, from: u32, to: u32, n: usize) {
        if let Some(positions) = self.by_position.get(&from) {
            let shared = positions[..n.min(positions.len())].to_vec();
            self.by_position.insert(to, shared);
        }
    }

    /// Those of a sequence's tokens at these positions are gone; those behind them have moved up.
    fn remove(&mut self, sequence: u32, removed: &Range<usize>) {
        let own = self.cells.iter_mut().flatten().filter(|cell| cell.sequence == sequence);
        own.filter(|cell| cell.position >= removed.end).for_each(|cell| cell.position -= removed.len());
        if let Some(positions) = self.by_position.get_mut(&sequence) {
            positions.drain(removed.start.min(positions.len())..removed.end.min(positions.len()));
        }
    }

    /// Forgets where the tokens of a sequence are.
    fn forget(&mut self, sequence: u32) {
        self.by_position.remove(&sequence);
    }

    pub(super) fn relabel(&mut self, sequence: u32, segment: Segment) {
        self.cells
            .iter_mut()
            .flatten()
            .filter(|cell| cell.sequence == sequence)
            .for_each(|cell| cell.segment = segment);
    }
}

/// The streams of one KV cache: one for all sequences, or several.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: Vec<Cells>,
    /// The stream that each sequence was written to.
    of_sequence: HashMap<u32, usize>,
}

impl Streams {
    /// Notes that `row` was written to `index`, counted over all of `n_streams` streams of `size` cells.
    pub fn write(&mut self, index: usize, size: usize, n_streams: usize, row: &Row) {
        if self.streams.len() < n_streams {
            self.streams.resize(n_streams, Cells::default());
        }
        let stream = index / size.max(1);
        if let Some(cells) = self.streams.get_mut(stream) {
            cells.write(index % size.max(1), row);
            self.of_sequence.insert(row.sequence, stream);
        }
    }

    /// The stream that holds `sequence`.
    pub fn of_sequence(&self, sequence: u32) -> Option<&Cells> {
        self.streams.get(*self.of_sequence.get(&sequence)?)
    }
}

/// Every KV cache of a context, told apart by the layers that use them.
#[derive(Debug, Default)]
pub(super) struct Caches {
    caches: Vec<Streams>,
    cache_of_layer: HashMap<usize, usize>,
    /// Caches whose writes of the running graph are already followed.
    written: Vec<bool>,
    /// Index tensors of the running graph, by address: layers of one cache share theirs.
    seen: HashMap<usize, usize>,
}

impl Caches {
    /// A new graph starts.
    pub fn begin(&mut self) {
        self.written.fill(false);
        self.seen.clear();
    }

    /// The cache that `layer` writes, and whether its writes of this graph still have to be followed. `indices` is the
    /// address of the tensor that holds the cell indices.
    pub fn of_write(&mut self, layer: usize, indices: usize) -> (usize, bool) {
        let cache = *self.cache_of_layer.entry(layer).or_insert_with(|| {
            *self.seen.entry(indices).or_insert_with(|| {
                self.caches.push(Streams::default());
                self.written.push(false);
                self.caches.len() - 1
            })
        });
        (cache, !std::mem::replace(&mut self.written[cache], true))
    }

    pub fn streams_mut(&mut self, cache: usize) -> &mut Streams {
        &mut self.caches[cache]
    }

    /// The streams that `layer` attends over.
    pub fn of_layer(&self, layer: usize) -> Option<&Streams> {
        self.cache_of_layer.get(&layer).map(|&cache| &self.caches[cache])
    }

    pub fn relabel(&mut self, sequence: u32, segment: Segment) {
        self.cells_mut().for_each(|cells| cells.relabel(sequence, segment));
    }

    /// Sequence `to` begins with the first `n` tokens of `from`, in the same cells.
    pub fn fork(&mut self, from: u32, to: u32, n: usize) {
        self.cells_mut().for_each(|cells| cells.fork(from, to, n));
    }

    /// Those of a sequence's tokens at these positions are gone; those behind them have moved up.
    pub fn remove(&mut self, sequence: u32, removed: &Range<usize>) {
        self.cells_mut().for_each(|cells| cells.remove(sequence, removed));
    }

    /// A sequence is over.
    pub fn forget(&mut self, sequence: u32) {
        self.cells_mut().for_each(|cells| cells.forget(sequence));
        self.caches.iter_mut().for_each(|streams| _ = streams.of_sequence.remove(&sequence));
    }

    fn cells_mut(&mut self) -> impl Iterator<Item = &mut Cells> {
        self.caches.iter_mut().flat_map(|streams| &mut streams.streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence: u32, position: usize) -> Row {
        Row { token: Token(0), position, sequence, segment: Segment::Thinking, previous_step: None, logits: false }
    }
    use crate::graph::Token;

    #[test]
    fn a_reused_cell_forgets_its_old_token() {
        let mut cells = Cells::default();
        cells.write(3, &row(0, 0));
        cells.write(5, &row(0, 1));
        assert_eq!(cells.find(0, 0), Some(3));
        cells.write(3, &row(1, 7));
        assert_eq!(cells.find(0, 0), None);
        assert_eq!(cells.find(1, 7), Some(3));
        assert_eq!(cells.find(0, 1), Some(5));
        assert_eq!(cells.get(4), None);
    }

    #[test]
    fn streams_count_their_cells_from_zero() {
        let mut streams = Streams::default();
        streams.write(5, 8, 3, &row(0, 0));
        streams.write(8 + 5, 8, 3, &row(1, 0));
        assert_eq!(streams.of_sequence(1).unwrap().find(1, 0), Some(5));
        assert_eq!(streams.of_sequence(1).unwrap().find(0, 0), None);
        assert!(streams.of_sequence(3).is_none());
    }

    #[test]
    fn a_fork_has_its_beginning_in_the_same_cells_until_they_are_written_again() {
        let mut caches = Caches::default();
        caches.begin();
        let (cache, _) = caches.of_write(0, 100);
        (0..3).for_each(|i| caches.streams_mut(cache).write(i, 8, 1, &row(0, i)));
        caches.fork(0, 1, 2);
        caches.streams_mut(cache).write(3, 8, 1, &row(1, 2));
        let found = |caches: &Caches, sequence| {
            let cells = caches.of_layer(0).unwrap().of_sequence(sequence).unwrap();
            [0, 1, 2].map(|position| cells.find(sequence, position))
        };
        assert_eq!((found(&caches, 0), found(&caches, 1)), ([Some(0), Some(1), Some(2)], [Some(0), Some(1), Some(3)]));
        caches.streams_mut(cache).write(1, 8, 1, &row(2, 5));
        assert_eq!((found(&caches, 0), found(&caches, 1)), ([Some(0), None, Some(2)], [Some(0), None, Some(3)]));
    }

    #[test]
    fn layers_that_share_an_index_tensor_share_a_cache() {
        let mut caches = Caches::default();
        caches.begin();
        assert_eq!(caches.of_write(0, 100), (0, true));
        assert_eq!(caches.of_write(1, 200), (1, true));
        assert_eq!(caches.of_write(2, 100), (0, false));
        caches.begin();
        assert_eq!(caches.of_write(2, 300), (0, true), "a layer keeps its cache when tensors move");
        assert_eq!(caches.of_write(0, 300), (0, false));
    }
}
