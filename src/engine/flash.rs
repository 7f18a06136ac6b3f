//! Whether flash attention is on where StepFlow works: decided here alone, from where the model's layers run.
//!
//! In host memory our own kernel works inside flash attention, whatever the caches hold. Without flash attention the repairs
//! are made on the softmax: in host memory, by the kernels of a device, or read back from one. No device has a kernel for
//! flash attention yet.

use crate::llama::{ContextParams, FlashAttention, Model};

use super::EngineError;

/// Flash attention for a context of `model` with StepFlow inside, as near to what was asked as can be.
///
/// # Errors
/// When what was asked leaves StepFlow no place.
pub fn flash_attention(model: &Model, context: &ContextParams) -> Result<FlashAttention, EngineError> {
    let quantized = !context.type_v.is_float();
    let reason = match (context.flash_attention, model.is_offloaded()) {
        (FlashAttention::Off, _) if quantized => "a quantized V cache needs flash attention; leave -fa off out",
        (FlashAttention::Off, _) => return Ok(FlashAttention::Off),
        (asked, false) => return Ok(asked),
        (FlashAttention::Auto, true) if !quantized => return Ok(FlashAttention::Off),
        (FlashAttention::Auto, true) => {
            "a quantized V cache needs flash attention, in which StepFlow has no kernel for a GPU; use -ctv f16, or -ngl 0"
        }
        (FlashAttention::On, true) => {
            "StepFlow has no kernel for a GPU inside flash attention; use -fa auto, or -ngl 0"
        }
    };
    Err(EngineError::NotHookable(reason.to_owned()))
}

/// Whether StepFlow leaves a context of `model` its flash attention: then it costs nobody anything who does not use it.
pub fn keeps_flash_attention(model: &Model, context: &ContextParams) -> bool {
    flash_attention(model, context).is_ok_and(|with_stepflow| with_stepflow == context.flash_attention)
}
