//! How the elements of a cache are stored, and how sixteen of them are read.

use super::lanes::Lanes;

/// The element type of a cache, as ggml lays it out.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Brain floats.
    Bf16,
    /// Blocks of 32 bytes with one scale.
    Q8_0,
    /// Blocks of 32 half bytes with one scale.
    Q4_0,
    /// Any other, which its function turns into so many floats.
    Other(unsafe extern "C" fn(*const std::ffi::c_void, *mut f32, i64)),
}

/// Elements that the kernels read by themselves.
pub(super) trait Elements {
    /// Elements 16 `block` to 16 `block` + 15 of a row.
    ///
    /// # Safety
    /// As [`Lanes`]; the row has them.
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Q8_0;
pub(super) struct Q4_0;

/// The scale of a block of 32, a 16-bit float at its beginning.
///
/// # Safety
/// As [`Lanes`]; two bytes are readable.
#[inline(always)]
unsafe fn scale<L: Lanes>(block: *const u8) -> f32 {
    // SAFETY: by this function's contract.
    unsafe { L::half(block.cast::<u16>().read_unaligned()) }
}

// SAFETY of every block below: by the trait's contract.
impl Elements for F32 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats {
        // SAFETY: see above.
        unsafe { L::load(row.cast::<f32>().add(16 * block)) }
    }
}

impl Elements for F16 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats {
        // SAFETY: see above.
        unsafe { L::from_f16(row.add(32 * block)) }
    }
}

impl Elements for Bf16 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats {
        // SAFETY: see above.
        unsafe { L::from_bf16(row.add(32 * block)) }
    }
}

impl Elements for Q8_0 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats {
        // SAFETY: see above. A block of 32 takes 34 bytes.
        unsafe {
            let start = row.add(block / 2 * 34);
            L::mul(L::from_i8(start.add(2 + block % 2 * 16)), L::splat(scale::<L>(start)))
        }
    }
}

impl Elements for Q4_0 {
    #[inline(always)]
    unsafe fn block<L: Lanes>(row: *const u8, block: usize) -> L::Floats {
        // SAFETY: see above. A block of 32 takes 18 bytes: the lower halves are its first sixteen.
        unsafe {
            let start = row.add(block / 2 * 18);
            L::mul(L::from_nibbles(start.add(2), block % 2 == 1), L::splat(scale::<L>(start)))
        }
    }
}
