//! A softmax and the head outputs that follow it, where they lie in the memory of a device: what its kernels need to know.

use ggml_sys::types;

use crate::kernels::{AttentionData, HeadOutputData, Place, SfAttention, SfHeadOutput};

use super::HookError;
use super::tensor::{Tensor, is_float};

/// The probabilities of one stream that `softmax` holds, in the memory of a device that has the mask too; `None` where no
/// kernel could work on them.
pub(super) fn attention_on_device<'g>(
    softmax: Tensor<'g>,
    stream: usize,
) -> Result<Option<(Place, AttentionData<'g>)>, HookError> {
    softmax.check_contiguous_f32()?;
    let mask = softmax.source(1).ok_or("attention without a mask")?;
    let known = matches!(mask.kind(), types::F32 | types::F16);
    let Some(place) = softmax.place().filter(|place| known && mask.place() == Some(*place)) else { return Ok(None) };
    let [n_kv, n_rows, n_head, _] = softmax.shape();
    let sinks = softmax.source(2).is_some();
    let strides = mask.strides();
    let args = SfAttention {
        mask_stride: strides[1] as u64,
        mask_type: mask.kind(),
        n_kv: n_kv as u32,
        n_rows: n_rows as u32,
        n_head: n_head as u32,
    };
    let probs = softmax.data().cast::<f32>().wrapping_add(stream * n_kv * n_rows * n_head);
    let mask = mask.data().cast_const().wrapping_add(stream * strides[3]);
    // SAFETY: both tensors are in the memory of `place`, with these shapes, and the graph stands still.
    Ok(Some((place, unsafe { AttentionData::new(args, sinks, probs, mask) })))
}

/// The head outputs that `node` holds and the V cache behind them, in the memory of one device; `None` when they lie apart
/// or elsewhere.
pub(super) fn head_output_on_device<'g>(
    node: Tensor<'g>,
    stream: usize,
) -> Result<Option<(Place, HeadOutputData<'g>)>, HookError> {
    node.check_contiguous_f32()?;
    let values = node.source(0).ok_or("head output without values")?;
    let strides = values.strides();
    // Another type is refused where the values are read back.
    let known = is_float(values.kind());
    let Some(place) = node.place().filter(|place| known && values.place() == Some(*place)) else { return Ok(None) };
    let [head_dim, n_rows, n_head, _] = node.shape();
    let [n_kv, _, n_head_kv, _] = values.shape();
    let args = SfHeadOutput {
        output_row: head_dim as u64,
        output_head: (head_dim * n_rows) as u64,
        cell_stride: strides[0] as u64,
        dim_stride: strides[1] as u64,
        head_stride: strides[2] as u64,
        value_type: values.kind(),
        head_dim: head_dim as u32,
        n_kv: n_kv as u32,
        n_rows: n_rows as u32,
        n_head: n_head as u32,
        n_head_kv: n_head_kv as u32,
    };
    let output = node.data().cast::<f32>().wrapping_add(stream * head_dim * n_rows * n_head);
    let values = values.data().cast_const().wrapping_add(stream * strides[3]);
    // SAFETY: both tensors are in the memory of `place`, with these shapes, and the graph stands still.
    Ok(Some((place, unsafe { HeadOutputData::new(args, output, values) })))
}
