//! Which token each cell of a KV cache holds, followed from the writes to the K cache.

use std::collections::HashMap;

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
    /// Cell of every position, per sequence. An entry may be stale: [`Cells::find`] checks it against the cell.
    by_position: HashMap<u32, Vec<usize>>,
}

impl Cells {
    /// What cell `index` holds; `None` if nothing was written to it yet. A freed cell keeps its last token, and the
    /// attention mask hides it.
    pub fn get(&self, index: usize) -> Option<&Cell> {
        self.cells.get(index)?.as_ref()
    }

    /// The cell that holds `position` of `sequence`, if the cache still has it.
    pub fn find(&self, sequence: u32, position: usize) -> Option<usize> {
        let index = *self.by_position.get(&sequence)?.get(position)?;
        let cell = self.get(index)?;
        (cell.sequence == sequence && cell.position == position).then_some(index)
    }

    pub(super) fn write(&mut self, index: usize, row: &Row) {
        if index >= self.cells.len() {
            self.cells.resize(index + 1, None);
        }
        self.cells[index] = Some(Cell { sequence: row.sequence, position: row.position, segment: row.segment });
        let positions = self.by_position.entry(row.sequence).or_default();
        if row.position >= positions.len() {
            positions.resize(row.position + 1, usize::MAX);
        }
        positions[row.position] = index;
    }

    pub(super) fn relabel(&mut self, sequence: u32, segment: Segment) {
        self.cells
            .iter_mut()
            .flatten()
            .filter(|cell| cell.sequence == sequence)
            .for_each(|cell| cell.segment = segment);
    }
}

/// The streams of one KV cache: one for all sequences, or one for each.
#[derive(Debug, Default)]
pub(super) struct Streams(Vec<Cells>);

impl Streams {
    /// Notes that `row` was written to `index`, counted over all of `n_streams` streams of `size` cells.
    pub fn write(&mut self, index: usize, size: usize, n_streams: usize, row: &Row) {
        if self.0.len() < n_streams {
            self.0.resize(n_streams, Cells::default());
        }
        if let Some(cells) = self.0.get_mut(index / size.max(1)) {
            cells.write(index % size.max(1), row);
        }
    }

    /// The stream that holds `sequence`.
    pub fn of_sequence(&self, sequence: u32) -> Option<&Cells> {
        match &self.0[..] {
            [all] => Some(all),
            streams => streams.get(sequence as usize),
        }
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
        self.caches.iter_mut().flat_map(|streams| &mut streams.0).for_each(|cells| cells.relabel(sequence, segment));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence: u32, position: usize) -> Row {
        Row { token: Token(0), position, sequence, segment: Segment::Thinking, previous_step: None, logits: false }
    }
    use crate::llama::Token;

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
