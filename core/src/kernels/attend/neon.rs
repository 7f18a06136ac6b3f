//! Sixteen floats at a time on ARM: four registers.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::Lanes;

pub(super) struct Neon;

type Four = [float32x4_t; 4];

#[inline(always)]
fn both(a: Four, b: Four, of: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Four {
    [of(a[0], b[0]), of(a[1], b[1]), of(a[2], b[2]), of(a[3], b[3])]
}

// SAFETY of every block below: NEON is part of every 64-bit ARM, and the trait's contract says how far pointers reach.
impl Lanes for Neon {
    const BLOCKS: usize = 1;
    const CELLS: usize = 1;
    type Floats = Four;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Four {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Four {
        // SAFETY: see above.
        [0, 4, 8, 12].map(|at| unsafe { vld1q_f32(from.add(at)) })
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: Four) {
        for (i, four) in values.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(to.add(4 * i), four) }
        }
    }

    #[inline(always)]
    unsafe fn add(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        both(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn mul(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        both(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn max(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        both(a, b, |a, b| unsafe { vmaxq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn fma(a: Four, b: Four, c: Four) -> Four {
        // SAFETY: see above.
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    unsafe fn round(a: Four) -> Four {
        // SAFETY: see above.
        a.map(|a| unsafe { vrndnq_f32(a) })
    }

    #[inline(always)]
    unsafe fn power_of_two(a: Four) -> Four {
        // SAFETY: see above. The exponent of a float is 127 more than its power.
        a.map(|a| unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }

    #[inline(always)]
    unsafe fn where_at_least(a: Four, least: f32, value: Four) -> Four {
        // SAFETY: see above. What is no number stays none.
        both(a, value, |a, value| unsafe {
            let less = vcltq_f32(a, vdupq_n_f32(least));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), less))
        })
    }

    #[inline(always)]
    unsafe fn sums(values: &[Four; 16]) -> Four {
        // SAFETY: see above.
        unsafe {
            let one = |i: usize| {
                let [a, b, c, d] = values[i];
                vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))
            };
            [0, 4, 8, 12].map(|i| vpaddq_f32(vpaddq_f32(one(i), one(i + 1)), vpaddq_f32(one(i + 2), one(i + 3))))
        }
    }

    #[inline(always)]
    unsafe fn sum([a, b, c, d]: Four) -> f32 {
        // SAFETY: see above.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
    }

    #[inline(always)]
    unsafe fn largest([a, b, c, d]: Four) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))) }
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        // SAFETY: see above.
        unsafe { vgetq_lane_f32::<0>(four_halves(vdup_n_u16(bits))) }
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> Four {
        // SAFETY: see above.
        [0, 8, 16, 24].map(|at| unsafe { four_halves(vld1_u16(from.add(at).cast())) })
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> Four {
        // SAFETY: see above. A bfloat16 is the upper half of a float.
        [0, 8, 16, 24].map(|at| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(at).cast()))) })
    }

    #[inline(always)]
    unsafe fn from_i8(from: *const u8) -> Four {
        // SAFETY: see above.
        unsafe { floats(vld1q_s8(from.cast())) }
    }

    #[inline(always)]
    unsafe fn from_nibbles(from: *const u8, upper: bool) -> Four {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(from);
            let nibbles = if upper { vshrq_n_u8::<4>(bytes) } else { vandq_u8(bytes, vdupq_n_u8(15)) };
            floats(vsubq_s8(vreinterpretq_s8_u8(nibbles), vdupq_n_s8(8)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) from, options(nostack, readonly, preserves_flags)) }
    }
}

/// Four half-precision floats; the instruction's own function needs a newer compiler.
///
/// # Safety
/// Needs nothing.
#[inline(always)]
unsafe fn four_halves(bits: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: reads and writes registers alone.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) floats, in(vreg) bits, options(pure, nomem, nostack, preserves_flags));
    }
    floats
}

/// # Safety
/// Needs nothing.
#[inline(always)]
unsafe fn floats(bytes: int8x16_t) -> Four {
    // SAFETY: works on registers alone.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
        [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)]
            .map(|four| vcvtq_f32_s32(vmovl_s16(four)))
    }
}
