//! Whether flash attention is on where StepFlow works: decided here alone, from where the model's layers run.
//!
//! Our own kernel works inside flash attention, whatever the caches hold: in host memory, and in that of a device whose
//! library has it. On another device flash attention is off, and the repairs are made on the softmax, which is read back.

use crate::kernels::has_kernels;
use crate::llama::{Context, ContextParams, DeviceInfo, FlashAttention, Model, devices};

use super::EngineError;

/// Flash attention for a context of `model` with StepFlow inside, as near to what was asked as can be.
///
/// # Errors
/// When what was asked leaves StepFlow no place.
pub fn flash_attention(model: &Model, context: &ContextParams) -> Result<FlashAttention, EngineError> {
    let quantized = !context.type_v.is_float();
    if quantized && context.flash_attention == FlashAttention::Off {
        let reason = "a quantized V cache needs flash attention; leave -fa off out";
        return Err(EngineError::NotHookable(reason.to_owned()));
    }
    let Some(device) = devices().into_iter().find(|device| model.is_offloaded() && is_without_kernels(device)) else {
        return Ok(context.flash_attention);
    };
    let backend = device.place.backend;
    let why = format!("StepFlow has no kernels for {backend}, and works on the softmax there");
    match context.flash_attention {
        FlashAttention::On => Err(EngineError::NotHookable(format!("{why}; leave -fa on out, or use -ngl 0"))),
        FlashAttention::Auto if quantized => {
            Err(EngineError::NotHookable(format!("{why}, without a quantized V cache; use -ctv f16, or -ngl 0")))
        }
        FlashAttention::Auto | FlashAttention::Off => Ok(FlashAttention::Off),
    }
}

/// Whether StepFlow would have to read back what lies on this device.
fn is_without_kernels(device: &DeviceInfo) -> bool {
    device.is_gpu && !has_kernels(device.place)
}

/// Whether StepFlow leaves a context of `model` its flash attention: then it costs nobody anything who does not use it.
pub fn keeps_flash_attention(model: &Model, context: &ContextParams) -> bool {
    flash_attention(model, context).is_ok_and(|with_stepflow| with_stepflow == context.flash_attention)
}

/// Where StepFlow works in `context`, in which a token was decoded, and why there.
pub fn works_in(context: &Context) -> String {
    let model = context.model();
    if context.is_fused() {
        return "inside flash attention".to_owned();
    }
    let without = devices().into_iter().find(|device| model.is_offloaded() && is_without_kernels(device));
    let why = match (without, context.flash_attention()) {
        (Some(device), _) => format!("it has no kernels for {}", device.place.backend),
        (None, FlashAttention::Off) => "flash attention is off".to_owned(),
        (None, _) => "llama.cpp has no flash attention for this model here".to_owned(),
    };
    format!("on the softmax, as {why}")
}
