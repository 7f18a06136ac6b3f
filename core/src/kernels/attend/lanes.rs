//! Sixteen floats at a time: what every processor does in its own way, and how one does it that is not known.

use half::{bf16, f16};

/// Operations on sixteen floats. Pointers are read and written without alignment.
///
/// # Safety
/// All of it: the processor must have the instructions, and pointers must reach as far as is said.
pub(super) trait Lanes {
    /// How many blocks of sixteen dimensions [`super::tile::weigh`] holds in registers at once, for each head.
    const BLOCKS: usize;
    /// How many cells [`super::tile::scores`] works on at once: their products with each head stay in registers.
    const CELLS: usize;
    type Floats: Copy;

    unsafe fn splat(value: f32) -> Self::Floats;
    /// 16 floats.
    unsafe fn load(from: *const f32) -> Self::Floats;
    unsafe fn store(to: *mut f32, values: Self::Floats);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn round(a: Self::Floats) -> Self::Floats;
    /// Two to the power of whole numbers from -126 to 0.
    unsafe fn power_of_two(a: Self::Floats) -> Self::Floats;
    /// `value` where `a` is at least `least`, else 0.
    unsafe fn where_at_least(a: Self::Floats, least: f32, value: Self::Floats) -> Self::Floats;
    /// The sum of each of 16, in their order.
    unsafe fn sums(values: &[Self::Floats; 16]) -> Self::Floats;
    unsafe fn sum(a: Self::Floats) -> f32;
    unsafe fn largest(a: Self::Floats) -> f32;
    /// A half-precision float.
    unsafe fn half(bits: u16) -> f32;
    /// 16 half-precision floats.
    unsafe fn from_f16(from: *const u8) -> Self::Floats;
    /// 16 bfloat16.
    unsafe fn from_bf16(from: *const u8) -> Self::Floats;
    /// 16 signed bytes.
    unsafe fn from_i8(from: *const u8) -> Self::Floats;
    /// The lower or the upper halves of 16 bytes, each less 8.
    unsafe fn from_nibbles(from: *const u8, upper: bool) -> Self::Floats;
    /// Asks for memory that will be read soon, into the second-level cache: the first is too small for a tile of keys and one
    /// of values, and has room for fewer requests at once. On two threads of a Zen 4 it reads 15 GB/s for 10.
    unsafe fn prefetch(from: *const u8);
}

/// `exp` of numbers that are 0 or less, to 2 units in the last place; 0 below the smallest normal number.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::Floats) -> L::Floats {
    const LEAST: f32 = -87.0;
    // SAFETY: by this function's contract.
    unsafe {
        let clamped = L::max(x, L::splat(LEAST));
        let n = L::round(L::mul(clamped, L::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, of which the first has room for n.
        let r = L::fma(n, L::splat(-0.693_359_4), clamped);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = L::fma(p, r, L::splat(coefficient));
        }
        let p = L::fma(p, L::mul(r, r), L::add(r, L::splat(1.0)));
        L::where_at_least(x, LEAST, L::mul(p, L::power_of_two(n)))
    }
}

/// For processors that nothing is known of.
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], of: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| of(a[i], b[i]))
}

/// # Safety
/// `n` bytes are readable.
#[inline(always)]
unsafe fn bytes<'a>(from: *const u8, n: usize) -> &'a [u8] {
    // SAFETY: by this function's contract.
    unsafe { std::slice::from_raw_parts(from, n) }
}

// SAFETY of every block below: the trait's contract says how far pointers reach.
impl Lanes for Portable {
    const BLOCKS: usize = 1;
    const CELLS: usize = 1;
    type Floats = [f32; 16];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 16] {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 16] {
        // SAFETY: see above.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: [f32; 16]) {
        // SAFETY: see above.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(values) }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn max(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn round(a: [f32; 16]) -> [f32; 16] {
        // Adding and taking away leaves no room for a fraction: far faster than a call of `round`.
        const ROOM: f32 = 12_582_912.0;
        a.map(|a| (a + ROOM) - ROOM)
    }

    #[inline(always)]
    unsafe fn power_of_two(a: [f32; 16]) -> [f32; 16] {
        a.map(|a| f32::from_bits(((a as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    unsafe fn where_at_least(a: [f32; 16], least: f32, value: [f32; 16]) -> [f32; 16] {
        // What is no number stays none.
        zip(a, value, |a, value| if a < least { 0.0 } else { value })
    }

    #[inline(always)]
    unsafe fn sums(values: &[[f32; 16]; 16]) -> [f32; 16] {
        // SAFETY: needs nothing.
        values.map(|values| unsafe { Self::sum(values) })
    }

    #[inline(always)]
    unsafe fn sum(a: [f32; 16]) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    unsafe fn largest(a: [f32; 16]) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> [f32; 16] {
        // SAFETY: see above.
        let bytes = unsafe { bytes(from, 32) };
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> [f32; 16] {
        // SAFETY: see above.
        let bytes = unsafe { bytes(from, 32) };
        std::array::from_fn(|i| bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    unsafe fn from_i8(from: *const u8) -> [f32; 16] {
        // SAFETY: see above.
        let bytes = unsafe { bytes(from, 16) };
        std::array::from_fn(|i| f32::from(bytes[i].cast_signed()))
    }

    #[inline(always)]
    unsafe fn from_nibbles(from: *const u8, upper: bool) -> [f32; 16] {
        // SAFETY: see above.
        let bytes = unsafe { bytes(from, 16) };
        std::array::from_fn(|i| f32::from(if upper { bytes[i] >> 4 } else { bytes[i] & 15 }) - 8.0)
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
