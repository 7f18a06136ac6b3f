//! Attention with OEB and SMI inside, on host memory, or on that of a device by its kernels (`on_device.rs`): what flash attention computes, in three groups of keys.
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
mod layer;
#[cfg(target_arch = "aarch64")]
mod neon;
mod on_device;
mod plan;
mod processor;
#[cfg(test)]
mod tests;
mod tile;
mod worker;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::host::Bridged;
pub use elements::Kind;
pub use layer::{Cache, Floats, Layer, Momentum, RowWork};
pub use on_device::OnDevice;
pub use plan::{CHUNK, Plan};
use processor::Functions;
pub use processor::Processor;
use worker::Worker;

/// From so many rows on, one is the work of one thread.
const WHOLE_FROM: usize = 32;

/// A layer is cut into so many pieces of work or more, where it can be, so that threads end at about the same time.
const MIN_PIECES: usize = 6;

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
pub struct Scratch(Mutex<Vec<f32>>);

impl Scratch {
    /// The first of at least `n` floats. Room for more is made elsewhere, so it holds until somebody asks for more.
    fn floats(&self, n: usize) -> *mut f32 {
        let mut floats = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if floats.len() < n {
            floats.resize(n, 0.0);
        }
        floats.as_mut_ptr()
    }
}

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
    outcomes: Vec<UnsafeCell<Outcome>>,
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
        let outcomes = (0..rows.len() * layer.n_head).map(|_| UnsafeCell::new(none)).collect();
        scratch.floats(place);
        Self {
            functions: Functions::new(processor, keys, values),
            layer,
            rows,
            scratch,
            pieces,
            places,
            left,
            next: AtomicUsize::new(0),
            outcomes,
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
        Ok((self.rows, self.outcomes.into_iter().map(UnsafeCell::into_inner).collect()))
    }

    /// Notes what was done in one head of a row, which one thread alone does.
    fn note(&self, row: usize, head: usize, note: impl FnOnce(&mut Outcome)) {
        // SAFETY: no other thread has this one, and nobody looks at them before `finish`.
        note(unsafe { &mut *self.outcomes[row * self.layer.n_head + head].get() });
    }

    fn take_pieces(&self) {
        let mut worker = Worker::new(self);
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            worker.do_piece(*piece);
        }
    }
}
