//! The work on a tile of cells: scores of some heads, their exponentials, and sums of values by them.
//!
//! Loops count heads and blocks by themselves: iterators over arrays of registers would have them copied to memory.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use super::elements::Elements;
use super::lanes::{Lanes, exp};

/// Cells of a tile, at most; a multiple of 16.
pub(super) const TILE: usize = 64;

/// Heads that are worked on at once, at most.
pub(super) const HEADS: usize = 4;

/// Rows of a cache: the one of cell `cells[i]` begins so many strides after `base`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub base: *const u8,
    pub stride: usize,
    pub cells: &'a [u32],
}

impl Rows<'_> {
    /// # Safety
    /// There are more than `at` cells.
    #[inline(always)]
    unsafe fn row(&self, at: usize) -> *const u8 {
        // SAFETY: by this function's contract.
        self.base.wrapping_add(unsafe { *self.cells.get_unchecked(at) } as usize * self.stride)
    }
}

/// Rows that are read after the present ones: they are asked for one by one while these are worked on. Heads lie between
/// those of one head, so processors see no pattern of their own.
#[derive(Clone, Copy)]
pub(super) struct Soon<'a> {
    pub rows: Rows<'a>,
    /// Bytes of a row.
    pub bytes: usize,
}

/// Bytes that come from memory at once.
const LINE: usize = 64;

impl Soon<'_> {
    /// Asks for row `at`, if there is one.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub unsafe fn prefetch<L: Lanes>(&self, at: usize) {
        if at < self.rows.cells.len() {
            // SAFETY: there is such a cell, and any address may be asked for.
            let row = unsafe { self.rows.row(at) };
            for line in (0..self.bytes).step_by(LINE) {
                // SAFETY: as above.
                unsafe { L::prefetch(row.wrapping_add(line)) };
            }
        }
    }
}

/// Products of `N` queries, `[N][16 blocks]`, with the keys of a tile: `[N][TILE]`. What is past the last key up to a
/// multiple of 16 repeats it.
///
/// # Safety
/// As [`Lanes`]; every row of `keys` holds `blocks` blocks, and `keys` has 1 to [`TILE`] cells.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, E: Elements, const N: usize>(
    queries: *const f32,
    blocks: usize,
    keys: Rows<'_>,
    soon: Soon<'_>,
    out: *mut f32,
) {
    // SAFETY: by this function's contract.
    unsafe {
        // Loops of a length that the compiler knows: heads of 64 and 128 dimensions, which most models have.
        match blocks {
            4 => scores_of::<L, E, N>(queries, 4, keys, soon, out),
            8 => scores_of::<L, E, N>(queries, 8, keys, soon, out),
            _ => scores_of::<L, E, N>(queries, blocks, keys, soon, out),
        }
    }
}

/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn scores_of<L: Lanes, E: Elements, const N: usize>(
    queries: *const f32,
    blocks: usize,
    keys: Rows<'_>,
    soon: Soon<'_>,
    out: *mut f32,
) {
    for group in 0..keys.cells.len().div_ceil(16) {
        let mut products: MaybeUninit<[[L::Floats; 16]; N]> = MaybeUninit::uninit();
        let to = products.as_mut_ptr().cast::<L::Floats>();
        // SAFETY: by this function's contract; the sixteen products of each head are written before they are read.
        unsafe {
            for lane in (0..16).step_by(L::CELLS) {
                let at = 16 * group + lane;
                match L::CELLS {
                    4 => products_of::<L, E, N, 4>(queries, blocks, keys, at, to.add(lane)),
                    _ => products_of::<L, E, N, 1>(queries, blocks, keys, at, to.add(lane)),
                }
                (at..at + L::CELLS).for_each(|at| soon.prefetch::<L>(at));
            }
            let products = products.assume_init_ref();
            for head in 0..N {
                L::store(out.add(head * TILE + 16 * group), L::sums(&products[head]));
            }
        }
    }
}

/// Products, not yet summed, of `C` cells from `first` on, which share what is loaded of the queries; those of a head follow
/// 16 after those of the one before.
///
/// # Safety
/// As [`scores`], and there is room.
#[inline(always)]
unsafe fn products_of<L: Lanes, E: Elements, const N: usize, const C: usize>(
    queries: *const f32,
    blocks: usize,
    keys: Rows<'_>,
    first: usize,
    out: *mut L::Floats,
) {
    let last = keys.cells.len() - 1;
    // SAFETY: by this function's contract.
    unsafe {
        let mut rows = [std::ptr::null(); C];
        for cell in 0..C {
            rows[cell] = keys.row((first + cell).min(last));
        }
        let mut product = [[L::splat(0.0); C]; N];
        for block in 0..blocks {
            let mut key = [L::splat(0.0); C];
            for cell in 0..C {
                key[cell] = E::block::<L>(rows[cell], block);
            }
            for head in 0..N {
                let query = L::load(queries.add(16 * (head * blocks + block)));
                for cell in 0..C {
                    product[head][cell] = L::fma(key[cell], query, product[head][cell]);
                }
            }
        }
        for head in 0..N {
            for cell in 0..C {
                out.add(16 * head + cell).write(product[head][cell]);
            }
        }
    }
}

/// Turns the first `n` scores of a head into weights relative to the largest so far, `max`, and 0 behind them. Returns
/// the new largest, what earlier sums have to be multiplied by, and the sum of the weights.
///
/// # Safety
/// As [`Lanes`]; `scores` has [`TILE`] places.
#[inline(always)]
pub(super) unsafe fn weights<L: Lanes>(scores: *mut f32, n: usize, max: f32) -> (f32, f32, f32) {
    let groups = n.div_ceil(16);
    // SAFETY: by this function's contract.
    unsafe {
        for past in n..16 * groups {
            *scores.add(past) = f32::NEG_INFINITY;
        }
        let mut largest = L::splat(max);
        for group in 0..groups {
            largest = L::max(largest, L::load(scores.add(16 * group)));
        }
        let largest = L::largest(largest);
        // Where all is minus infinity nothing has a weight.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let mut sum = L::splat(0.0);
        for group in 0..groups {
            let weight = exp::<L>(L::add(L::load(scores.add(16 * group)), L::splat(-base)));
            L::store(scores.add(16 * group), weight);
            sum = L::add(sum, weight);
        }
        (largest, (max - base).exp(), L::sum(sum))
    }
}

/// Adds the values of a tile, by the weights `[N][TILE]` of `N` heads, to their sums `[N][16 blocks]`.
///
/// # Safety
/// As [`Lanes`]; every row of `values` holds `blocks` blocks, and `values` has at most [`TILE`] cells.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes, E: Elements, const N: usize>(
    weights: *const f32,
    values: Rows<'_>,
    soon: Soon<'_>,
    blocks: usize,
    sums: *mut f32,
) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut block = 0;
        while block + L::BLOCKS <= blocks {
            match L::BLOCKS {
                4 => weigh_blocks::<L, E, N, 4>(weights, values, soon, block, blocks, sums),
                _ => weigh_blocks::<L, E, N, 1>(weights, values, soon, block, blocks, sums),
            }
            block += L::BLOCKS;
        }
        for block in block..blocks {
            weigh_blocks::<L, E, N, 1>(weights, values, soon, block, blocks, sums);
        }
    }
}

/// The same for `B` blocks from `block` on.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn weigh_blocks<L: Lanes, E: Elements, const N: usize, const B: usize>(
    weights: *const f32,
    values: Rows<'_>,
    soon: Soon<'_>,
    block: usize,
    blocks: usize,
    sums: *mut f32,
) {
    // SAFETY: by this function's contract.
    unsafe {
        let place = |head: usize, i: usize| sums.add(16 * (head * blocks + block + i));
        let mut sum = [[L::splat(0.0); B]; N];
        for head in 0..N {
            for i in 0..B {
                sum[head][i] = L::load(place(head, i));
            }
        }
        for at in 0..values.cells.len() {
            let row = values.row(at);
            if block == 0 {
                soon.prefetch::<L>(at);
            }
            let mut value = [L::splat(0.0); B];
            for i in 0..B {
                value[i] = E::block::<L>(row, block + i);
            }
            for head in 0..N {
                let weight = L::splat(*weights.add(head * TILE + at));
                for i in 0..B {
                    sum[head][i] = L::fma(weight, value[i], sum[head][i]);
                }
            }
        }
        for head in 0..N {
            for i in 0..B {
                L::store(place(head, i), sum[head][i]);
            }
        }
    }
}
