//! What attention is computed from and to: a layer's queries, caches and output, and what is done to its rows.

use std::ffi::c_void;
use std::sync::Arc;

use super::elements::Kind;
use super::plan::Plan;
use super::tile::{Rows, Soon, TILE};

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

impl Cache {
    /// As what its elements are read by hand: as floats that a function makes of them, if their rows are not whole blocks.
    pub(super) fn as_read(&self) -> Kind {
        if self.in_blocks() { self.kind } else { Kind::F32 }
    }

    pub(super) fn in_blocks(&self) -> bool {
        match self.kind {
            Kind::F32 | Kind::F16 | Kind::Bf16 => self.dim.is_multiple_of(16),
            Kind::Q8_0 | Kind::Q4_0 => self.dim.is_multiple_of(32),
            Kind::Other(_) => false,
        }
    }

    /// Blocks of sixteen that hold a cell.
    pub(super) fn blocks(&self) -> usize {
        self.dim.div_ceil(16)
    }

    /// Cells that are read soon, of so many heads.
    pub(super) fn soon<'a>(&self, base: *const u8, cells: &'a [u32], n_heads: usize) -> Soon<'a> {
        let bytes = n_heads.checked_sub(1).map_or(0, |others| others * self.head + self.bytes());
        Soon { rows: Rows { base, stride: self.cell, cells }, bytes }
    }

    /// Bytes of a cell in one head; about, where a function reads it.
    pub(super) fn bytes(&self) -> usize {
        match self.kind {
            Kind::F32 => 4 * self.dim,
            Kind::F16 | Kind::Bf16 => 2 * self.dim,
            Kind::Q8_0 | Kind::Other(_) => self.dim * 34 / 32,
            Kind::Q4_0 => self.dim * 18 / 32,
        }
    }

    /// # Safety
    /// There are such a stream and head.
    pub(super) unsafe fn base(&self, stream: usize, head: usize) -> *const u8 {
        // SAFETY: by this function's contract.
        unsafe { self.data.add(stream * self.stream + head * self.head) }
    }

    /// The elements of one cell, from where it begins.
    ///
    /// # Safety
    /// `to` has a place for each of them, and `from` is such a cell.
    pub(super) unsafe fn read(&self, from: *const u8, to: &mut [f32]) {
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
    pub(super) fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }

    /// Floats of a [`Part`].
    pub(super) fn part(&self) -> usize {
        self.group() * (2 + 16 * self.values.blocks())
    }

    /// From products to scores: what softcap and the mask's bias do, for cells from `first` of the plan on.
    pub(super) fn finish_scores(&self, scores: &mut [f32], plan: &Plan, first: usize, head: usize) {
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
    pub(super) unsafe fn output_of<'a>(&self, work: &RowWork, head: usize) -> &'a mut [f32] {
        let Floats { data, row, head: stride, stream } = self.output;
        // SAFETY: such a row and head are part of the output; otherwise by this function's contract.
        unsafe {
            let at = data.add(work.stream * stream + work.row * row + head * stride);
            std::slice::from_raw_parts_mut(at, self.values.dim)
        }
    }
}

/// The cells of a tile, as their elements are read: in the cache, or as floats in `tile`.
pub(super) fn rows_of<'a>(cache: &Cache, base: *const u8, cells: &'a [u32], tile: &mut [f32]) -> Rows<'a> {
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
