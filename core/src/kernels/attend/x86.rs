//! Sixteen floats at a time on x86: one register of AVX-512, or two of AVX2.

use std::arch::x86_64::*;

use super::lanes::Lanes;

pub(super) struct Avx512;

pub(super) struct Avx2;

// SAFETY of every block below: the trait's contract says that the processor has the instructions and how far pointers reach.
impl Lanes for Avx512 {
    const BLOCKS: usize = 4;
    const CELLS: usize = 4;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn power_of_two(a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }

    #[inline(always)]
    unsafe fn where_at_least(a: __m512, least: f32, value: __m512) -> __m512 {
        // SAFETY: see above. What is no number stays none.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, _mm512_set1_ps(least)), value) }
    }

    #[inline(always)]
    unsafe fn sums(values: &[__m512; 16]) -> __m512 {
        // SAFETY: see above. Each step adds pairs and packs them, until a lane is the sum of one of the sixteen.
        unsafe {
            let (low, high) = (eight_sums(values, 0), eight_sums(values, 8));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(low, high), _mm512_shuffle_f32x4::<0xdd>(low, high))
        }
    }

    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_castsi128_si256(_mm_cvtsi32_si128(i32::from(bits))))) }
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> __m512 {
        // SAFETY: see above. A bfloat16 is the upper half of a float.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn from_i8(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn from_nibbles(from: *const u8, upper: bool) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(nibbles(from, upper))) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

/// Sums of pairs of lanes of two, side by side.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn pair_sums(a: __m512, b: __m512) -> __m512d {
    // SAFETY: by this function's contract.
    unsafe { _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))) }
}

/// Sums of four lanes each of four.
///
/// # Safety
/// As [`pair_sums`].
#[inline(always)]
unsafe fn four_sums(values: &[__m512; 16], at: usize) -> __m512 {
    // SAFETY: by this function's contract.
    unsafe {
        let (a, b) = (pair_sums(values[at], values[at + 1]), pair_sums(values[at + 2], values[at + 3]));
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

/// Sums of eight lanes each of eight.
///
/// # Safety
/// As [`pair_sums`].
#[inline(always)]
unsafe fn eight_sums(values: &[__m512; 16], at: usize) -> __m512 {
    // SAFETY: by this function's contract.
    unsafe {
        let (a, b) = (four_sums(values, at), four_sums(values, at + 4));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    }
}

/// Sums of eight of AVX2.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn eight_of_avx2(values: &[[__m256; 2]; 16], at: usize) -> __m256 {
    // SAFETY: by this function's contract.
    unsafe {
        let (a, b) = (four_of_avx2(values, at), four_of_avx2(values, at + 4));
        _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
    }
}

/// Sums of the halves of four of AVX2.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn four_of_avx2(values: &[[__m256; 2]; 16], at: usize) -> __m256 {
    // SAFETY: by this function's contract.
    unsafe {
        let a = _mm256_add_ps(values[at][0], values[at][1]);
        let b = _mm256_add_ps(values[at + 1][0], values[at + 1][1]);
        let c = _mm256_add_ps(values[at + 2][0], values[at + 2][1]);
        let d = _mm256_add_ps(values[at + 3][0], values[at + 3][1]);
        _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d))
    }
}

/// The lower or the upper halves of 16 bytes, each less 8.
///
/// # Safety
/// 16 bytes are readable.
#[inline(always)]
unsafe fn nibbles(from: *const u8, upper: bool) -> __m128i {
    // SAFETY: SSE2 is part of every x86-64; the bytes by this function's contract.
    unsafe {
        let bytes = _mm_loadu_si128(from.cast());
        let bytes = if upper { _mm_srli_epi16::<4>(bytes) } else { bytes };
        _mm_sub_epi8(_mm_and_si128(bytes, _mm_set1_epi8(15)), _mm_set1_epi8(8))
    }
}

// SAFETY of every block below: as above.
impl Lanes for Avx2 {
    const BLOCKS: usize = 1;
    const CELLS: usize = 1;
    type Floats = [__m256; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: [__m256; 2]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, values[0]);
            _mm256_storeu_ps(to.add(8), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn round(a: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])]
        }
    }

    #[inline(always)]
    unsafe fn power_of_two(a: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above. The exponent of a float is 127 more than its power.
        unsafe {
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(a[0]), _mm256_set1_epi32(127));
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(a[1]), _mm256_set1_epi32(127));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high))]
        }
    }

    #[inline(always)]
    unsafe fn where_at_least(a: [__m256; 2], least: f32, value: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above. What is no number stays none.
        unsafe {
            let least = _mm256_set1_ps(least);
            let low = _mm256_cmp_ps::<_CMP_NLT_UQ>(a[0], least);
            let high = _mm256_cmp_ps::<_CMP_NLT_UQ>(a[1], least);
            [_mm256_and_ps(low, value[0]), _mm256_and_ps(high, value[1])]
        }
    }

    #[inline(always)]
    unsafe fn sums(values: &[[__m256; 2]; 16]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [eight_of_avx2(values, 0), eight_of_avx2(values, 8)] }
    }

    #[inline(always)]
    unsafe fn sum(a: [__m256; 2]) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn largest(a: [__m256; 2]) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        // SAFETY: see above.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> [__m256; 2] {
        // SAFETY: see above. A bfloat16 is the upper half of a float.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }

    #[inline(always)]
    unsafe fn from_i8(from: *const u8) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { floats(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn from_nibbles(from: *const u8, upper: bool) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { floats(nibbles(from, upper)) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

/// 16 signed bytes as floats.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn floats(bytes: __m128i) -> [__m256; 2] {
    // SAFETY: by this function's contract.
    unsafe {
        let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
        [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
    }
}
