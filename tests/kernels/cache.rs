//! V caches of every type and layout.

use half::{bf16, f16};
use llama_cpp_sys_2 as sys;
use stepflow::kernels::{SF_BF16, SF_F16, SF_F32};

/// A V cache: bytes, strides of cell, dimension (or block) and head, and what they decode to, `[cell][head][dim]`.
pub struct Cache {
    pub bytes: Vec<u8>,
    pub strides: [usize; 3],
    pub decoded: Vec<f32>,
}

/// Values in a cache of `kind`; transposed where cells lie side by side, which only floats can.
pub fn cache(values: &[f32], kind: u32, n_kv: usize, n_head_kv: usize, dim: usize, transposed: bool) -> Cache {
    let float = |value: f32| match kind {
        SF_F32 => (value.to_ne_bytes().to_vec(), value),
        SF_F16 => (f16::from_f32(value).to_ne_bytes().to_vec(), f16::from_f32(value).to_f32()),
        _ => (bf16::from_f32(value).to_ne_bytes().to_vec(), bf16::from_f32(value).to_f32()),
    };
    if !matches!(kind, SF_F32 | SF_F16 | SF_BF16) {
        return quantized(values, kind, n_head_kv, dim);
    }
    let width = float(0.0).0.len();
    let strides = match transposed {
        true => [width, n_kv * width, dim * n_kv * width],
        false => [n_head_kv * dim * width, width, dim * width],
    };
    let (mut bytes, mut decoded) = (vec![0; values.len() * width], Vec::new());
    for (i, value) in values.iter().enumerate() {
        let (cell, head, d) = (i / dim / n_head_kv, i / dim % n_head_kv, i % dim);
        let at = cell * strides[0] + d * strides[1] + head * strides[2];
        let (encoded, value) = float(*value);
        bytes[at..at + width].copy_from_slice(&encoded);
        decoded.push(value);
    }
    Cache { bytes, strides, decoded }
}

/// By ggml's own quantizer and back by its own decoder.
fn quantized(values: &[f32], kind: u32, n_head_kv: usize, dim: usize) -> Cache {
    let (rows, mut decoded) = (values.len() / dim, vec![0f32; values.len()]);
    // SAFETY: the type is one of ggml's; buffers are as long as the calls say.
    let (block, bytes) = unsafe {
        let block = sys::ggml_type_size(kind);
        let mut bytes = vec![0u8; values.len() / 32 * block];
        let (rows, dim) = (rows as i64, dim as i64);
        sys::ggml_quantize_chunk(kind, values.as_ptr(), bytes.as_mut_ptr().cast(), 0, rows, dim, std::ptr::null());
        let decode = (*sys::ggml_get_type_traits(kind)).to_float.unwrap();
        decode(bytes.as_ptr().cast(), decoded.as_mut_ptr(), values.len() as i64);
        (block, bytes)
    };
    let of_head = dim / 32 * block;
    Cache { bytes, strides: [n_head_kv * of_head, block, of_head], decoded }
}
