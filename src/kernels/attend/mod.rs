//! Attention with OEB and SMI inside, on host memory: what flash attention computes, in three groups of keys.
//!
//! A row's visible cells are listed group by group and cut into chunks of [`CHUNK`] cells inside one group. Each chunk has
//! a softmax of its own: its largest score, its sum and its weighted values. From the chunks' sums come the masses of the
//! groups, from these OEB's factors, and the output is the chunks' weighted values by both. Every key is in one group, so
//! this costs what plain attention does, and with factors of 1 it is plain attention.
//!
//! Chunks do not depend on how many threads there are, nor on other rows, and are put together in their order: so neither
//! do the bits of a row.

mod elements;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod processor;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::host::{Bridged, inject_row};
use crate::stepflow::oeb::{Mass, factors};
pub use elements::Kind;
pub use plan::{CHUNK, Plan};
use processor::Functions;
pub use processor::Processor;
use tile::{HEADS, Rows, Soon, TILE};

/// From so many rows on, one is the work of one thread.
const WHOLE_FROM: usize = 32;

/// A layer is cut into so many pieces of work or more, where it can be, so that threads end at about the same time.
const MIN_PIECES: usize = 6;

/// K or V of a layer in host memory; strides are in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// The first element.
    pub data: *const u8,
    /// How elements are stored.
    pub kind: Kind,
    /// Elements of a cell in one head.
    pub dim: usize,
    /// From one cell to the next.
    pub cell: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one stream to the next.
    pub stream: usize,
}

/// Queries or outputs of a layer, float32; strides are in floats.
#[derive(Debug, Clone, Copy)]
pub struct Floats<T> {
    /// The first element.
    pub data: T,
    /// From one row to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one stream to the next.
    pub stream: usize,
}

/// The attention of a layer. All of its memory outlives the work on it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Queries, `[streams][heads][rows][dim]` by their strides.
    pub queries: Floats<*const f32>,
    /// Keys.
    pub keys: Cache,
    /// Values.
    pub values: Cache,
    /// Where outputs go.
    pub output: Floats<*mut f32>,
    /// Scores of attention sinks, `[heads]`; null without.
    pub sinks: *const f32,
    /// Query heads.
    pub n_head: usize,
    /// Key-value heads; query heads are a multiple.
    pub n_head_kv: usize,
    /// What products are multiplied by.
    pub scale: f32,
    /// As in llama.cpp: scores are held within it by `tanh`; 0 for none.
    pub softcap: f32,
    /// What each head multiplies the mask by (ALiBi); empty where the mask only hides.
    pub slopes: Vec<f32>,
}

/// What SMI does to a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Momentum {
    /// The cells of the window, at least one.
    pub cells: Vec<u32>,
    /// How much of their mean is added.
    pub alpha: f32,
}

/// What is done to one row of a layer.
#[derive(Debug, Clone)]
pub struct RowWork {
    /// Its stream, and which of the stream's rows it is.
    pub stream: usize,
    /// See `stream`.
    pub row: usize,
    /// Its attention is computed over these cells; without, its output is there already.
    pub plan: Option<Arc<Plan>>,
    /// OEB's cap on its floor; `None` for plain attention.
    pub tau_max: Option<f32>,
    /// SMI.
    pub momentum: Option<Momentum>,
}

/// What was found and done in one head of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// By OEB, if the row was bridged at all.
    pub bridged: Option<Bridged>,
    /// Squared norms of what SMI added and of the output before.
    pub injected: (f64, f64),
}

/// Memory for the chunks of a layer, which layers use one after the other.
#[derive(Debug, Default)]
pub struct Scratch(UnsafeCell<Vec<f32>>);

// SAFETY: only `Attend` reaches into it: `new` while nothing runs, `work` in places that no two threads share.
unsafe impl Sync for Scratch {}

/// Work on a layer that several threads do together.
pub struct Attend {
    layer: Layer,
    rows: Vec<RowWork>,
    functions: Functions,
    scratch: Arc<Scratch>,
    /// Pieces of work: of a row and some key-value heads, one chunk or all of them.
    pieces: Vec<Piece>,
    /// Where the first chunk of each (row, key-value head) has its place in the scratch.
    places: Vec<usize>,
    /// How many pieces of each (row, key-value head) are not done.
    left: Vec<AtomicUsize>,
    next: AtomicUsize,
    outcomes: UnsafeCell<Vec<Outcome>>,
    panic: Mutex<Option<String>>,
    stopped: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    row: usize,
    /// Its first key-value head, and the one after its last.
    first: usize,
    last: usize,
    /// `None` for all.
    chunk: Option<usize>,
}

// SAFETY: threads take different pieces, which write to different places; what all read is not written meanwhile.
unsafe impl Sync for Attend {}
// SAFETY: as above; the memory that the pointers lead to outlives the work, by the contract of `new`.
unsafe impl Send for Attend {}

impl Attend {
    /// Work on `rows` of a layer; nothing is done yet.
    ///
    /// # Safety
    /// Until the last call of [`Attend::work`], the layer's memory stays, nothing else writes to it, the cells of all plans
    /// and windows are in it, and no work with the same scratch runs.
    pub unsafe fn new(layer: Layer, rows: Vec<RowWork>, processor: Processor, scratch: Arc<Scratch>) -> Self {
        let (keys, values) = (layer.keys.as_read(), layer.values.as_read());
        let whole = rows.len() >= WHOLE_FROM;
        let n_chunks = |work: &RowWork| work.plan.as_ref().map_or(0, |plan| plan.chunks.len());
        // Heads of one cell lie side by side: who works on all of them reads memory in its order.
        let all_chunks = rows.iter().map(|work| n_chunks(work).max(1)).sum::<usize>();
        let heads =
            if whole { layer.n_head_kv } else { (layer.n_head_kv * all_chunks / MIN_PIECES).clamp(1, layer.n_head_kv) };
        let (mut pieces, mut places, mut left, mut place) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (row, work) in rows.iter().enumerate() {
            let n_chunks = n_chunks(work);
            let n_pieces = if whole { 1 } else { n_chunks.max(1) };
            for first in (0..layer.n_head_kv).step_by(heads) {
                let last = layer.n_head_kv.min(first + heads);
                let chunk = |i| (!whole && n_chunks > 0).then_some(i);
                pieces.extend((0..n_pieces).map(|i| Piece { row, first, last, chunk: chunk(i) }));
            }
            for _ in 0..layer.n_head_kv {
                left.push(AtomicUsize::new(n_pieces));
                places.push(place);
                place += if whole { 0 } else { n_chunks * layer.part() };
            }
        }
        let none = Outcome { bridged: None, injected: (0.0, 0.0) };
        let outcomes = vec![none; rows.len() * layer.n_head];
        // SAFETY: by this function's contract nothing else uses it now.
        let memory = unsafe { &mut *scratch.0.get() };
        if memory.len() < place {
            memory.resize(place, 0.0);
        }
        Self {
            functions: Functions::new(processor, keys, values),
            layer,
            rows,
            scratch,
            pieces,
            places,
            left,
            next: AtomicUsize::new(0),
            outcomes: UnsafeCell::new(outcomes),
            panic: Mutex::new(None),
            stopped: AtomicBool::new(false),
        }
    }

    /// Takes pieces of work until there are none, beside other threads that do the same. A panic is kept for
    /// [`Attend::finish`].
    pub fn work(&self) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take_pieces()));
        if let Err(panic) = done {
            self.stopped.store(true, Ordering::Relaxed);
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            *self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(format!("panic: {text}"));
        }
    }

    /// What came of it, `[rows][heads]`, once all threads are done.
    ///
    /// # Errors
    /// When one panicked, or not all of the work was taken.
    pub fn finish(self) -> Result<(Vec<RowWork>, Vec<Outcome>), String> {
        if let Some(message) = self.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(message);
        }
        if self.next.into_inner() < self.pieces.len() {
            return Err("the graph ended before its attention was computed".to_owned());
        }
        Ok((self.rows, self.outcomes.into_inner()))
    }

    /// Notes what was done in one head of a row, which one thread alone does.
    fn note(&self, row: usize, head: usize, note: impl FnOnce(&mut Outcome)) {
        // SAFETY: there is an outcome for each, and no other thread has this one; nobody looks at all before `finish`.
        note(unsafe { &mut *(*self.outcomes.get()).as_mut_ptr().add(row * self.layer.n_head + head) });
    }

    fn take_pieces(&self) {
        let mut worker = Worker::new(self);
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            worker.do_piece(*piece);
        }
    }
}

impl Cache {
    /// As what its elements are read by hand: as floats that a function makes of them, if their rows are not whole blocks.
    fn as_read(&self) -> Kind {
        if self.in_blocks() { self.kind } else { Kind::F32 }
    }

    fn in_blocks(&self) -> bool {
        match self.kind {
            Kind::F32 | Kind::F16 | Kind::Bf16 => self.dim.is_multiple_of(16),
            Kind::Q8_0 | Kind::Q4_0 => self.dim.is_multiple_of(32),
            Kind::Other(_) => false,
        }
    }

    /// Blocks of sixteen that hold a cell.
    fn blocks(&self) -> usize {
        self.dim.div_ceil(16)
    }

    /// Cells that are read soon, of so many heads.
    fn soon<'a>(&self, base: *const u8, cells: &'a [u32], n_heads: usize) -> Soon<'a> {
        let bytes = n_heads.checked_sub(1).map_or(0, |others| others * self.head + self.bytes());
        Soon { rows: Rows { base, stride: self.cell, cells }, bytes }
    }

    /// Bytes of a cell in one head; about, where a function reads it.
    fn bytes(&self) -> usize {
        match self.kind {
            Kind::F32 => 4 * self.dim,
            Kind::F16 | Kind::Bf16 => 2 * self.dim,
            Kind::Q8_0 | Kind::Other(_) => self.dim * 34 / 32,
            Kind::Q4_0 => self.dim * 18 / 32,
        }
    }

    /// # Safety
    /// There are such a stream and head.
    unsafe fn base(&self, stream: usize, head: usize) -> *const u8 {
        // SAFETY: by this function's contract.
        unsafe { self.data.add(stream * self.stream + head * self.head) }
    }

    /// The elements of one cell, from where it begins.
    ///
    /// # Safety
    /// `to` has a place for each of them, and `from` is such a cell.
    unsafe fn read(&self, from: *const u8, to: &mut [f32]) {
        let halves = |of: fn(u16) -> f32, to: &mut [f32]| {
            for (i, to) in to.iter_mut().enumerate() {
                // SAFETY: by this function's contract.
                *to = of(unsafe { from.cast::<u16>().add(i).read_unaligned() });
            }
        };
        let to = &mut to[..self.dim];
        match self.kind {
            Kind::F32 => {
                // SAFETY: by this function's contract.
                unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast(), 4 * self.dim) }
            }
            Kind::F16 => halves(|bits| half::f16::from_bits(bits).to_f32(), to),
            Kind::Bf16 => halves(|bits| half::bf16::from_bits(bits).to_f32(), to),
            Kind::Q8_0 => blocks::<34>(from, to, |block, i| f32::from(block[2 + i].cast_signed())),
            Kind::Q4_0 => blocks::<18>(from, to, |block, i| {
                let byte = block[2 + i % 16];
                f32::from(if i < 16 { byte & 15 } else { byte >> 4 }) - 8.0
            }),
            // SAFETY: by this function's contract, of a function that does what its type is for.
            Kind::Other(to_float) => unsafe { to_float(from.cast::<c_void>(), to.as_mut_ptr(), self.dim as i64) },
        }
    }
}

/// Blocks of 32 elements in `N` bytes, of which the first two are a scale.
fn blocks<const N: usize>(from: *const u8, to: &mut [f32], element: impl Fn(&[u8; N], usize) -> f32) {
    for (at, to) in to.chunks_mut(32).enumerate() {
        // SAFETY: by the contract of `Cache::read`, whose last step this is.
        let block = unsafe { &*from.add(at * N).cast::<[u8; N]>() };
        let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
        to.iter_mut().enumerate().for_each(|(i, to)| *to = scale * element(block, i));
    }
}

impl Layer {
    /// Query heads of a key-value head.
    fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Floats of a [`Part`].
    fn part(&self) -> usize {
        self.group() * (2 + 16 * self.values.blocks())
    }

    /// From products to scores: what softcap and the mask's bias do, for cells from `first` of the plan on.
    fn finish_scores(&self, scores: &mut [f32], plan: &Plan, first: usize, head: usize) {
        if self.softcap != 0.0 {
            scores.iter_mut().for_each(|score| *score = self.softcap * score.tanh());
        }
        if let Some(bias) = &plan.bias {
            let slope = self.slopes.get(head).copied().unwrap_or(1.0);
            scores.iter_mut().zip(&bias[first..]).for_each(|(score, bias)| *score += slope * bias);
        }
    }

    /// One row's output of a head, `[dim]`.
    ///
    /// # Safety
    /// The layer's memory outlives it, and nothing else uses this part of it meanwhile.
    unsafe fn output_of<'a>(&self, work: &RowWork, head: usize) -> &'a mut [f32] {
        let Floats { data, row, head: stride, stream } = self.output;
        // SAFETY: such a row and head are part of the output; otherwise by this function's contract.
        unsafe {
            let at = data.add(work.stream * stream + work.row * row + head * stride);
            std::slice::from_raw_parts_mut(at, self.values.dim)
        }
    }
}

/// One thread's work, and its memory.
struct Worker<'a> {
    attend: &'a Attend,
    /// Queries of a piece's heads, scaled, `[heads][16 blocks]`.
    queries: Vec<f32>,
    scores: Vec<f32>,
    /// Keys or values of a tile as floats, where elements are not read by hand.
    tile: Vec<f32>,
    /// Outcomes of chunks that no other thread needs.
    parts: Vec<f32>,
    sum: Vec<f32>,
}

impl<'a> Worker<'a> {
    fn new(attend: &'a Attend) -> Self {
        let (keys, values) = (&attend.layer.keys, &attend.layer.values);
        Self {
            queries: vec![0.0; attend.layer.n_head * 16 * keys.blocks()],
            scores: vec![0.0; HEADS * TILE],
            tile: vec![0.0; TILE * 16 * keys.blocks().max(values.blocks())],
            parts: Vec::new(),
            sum: vec![0.0; values.dim],
            attend,
        }
    }

    fn do_piece(&mut self, Piece { row, first, last, chunk }: Piece) {
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
                let parts = unsafe { (*scratch.0.get()).as_mut_ptr().add(places[pair + first]) };
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
            // SAFETY: by the contract of `new` the cell is in the cache; a tile holds more than one.
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

/// The cells of a tile, as their elements are read: in the cache, or as floats in `tile`.
fn rows_of<'a>(cache: &Cache, base: *const u8, cells: &'a [u32], tile: &mut [f32]) -> Rows<'a> {
    /// Cells of a tile that lies there by itself.
    const IN_ORDER: [u32; TILE] = {
        let mut cells = [0; TILE];
        let mut i = 0;
        while i < TILE {
            cells[i] = i as u32;
            i += 1;
        }
        cells
    };
    if cache.in_blocks() {
        return Rows { base, stride: cache.cell, cells };
    }
    let width = 16 * cache.blocks();
    for (cell, to) in cells.iter().zip(tile.chunks_exact_mut(width)) {
        // SAFETY: by the contract of `new` the cell is in the cache.
        unsafe { cache.read(base.add(*cell as usize * cache.cell), to) };
        to[cache.dim..].fill(0.0);
    }
    Rows { base: tile.as_ptr().cast(), stride: 4 * width, cells: &IN_ORDER[..cells.len()] }
}

#[cfg(test)]
mod tests;
