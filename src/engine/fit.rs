//! Whether a model and a context fit into memory, before anything is loaded.

use std::path::Path;

use crate::llama::{ContextParams, Layout, LlamaError, MemoryUse, ModelParams, memory_free};

/// Contexts come in steps of so many tokens, as llama.cpp rounds them.
const STEP: u32 = 256;

/// Bytes that the largest context leaves free on each device, as llama.cpp's own tools do.
const MARGIN: u64 = 1 << 30;

/// A model, and contexts of it, that are laid out and hold nothing.
pub struct Fit {
    layout: Layout,
    context: ContextParams,
    /// Whether weights in host memory are pages of the file, which need not all be there at once.
    mapped: bool,
}

/// What one device, or the host, is asked for, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What is used.
    pub used: MemoryUse,
    /// Bytes of it that must be there at once: weights that are pages of a file in host memory need not.
    pub needed: u64,
    /// Bytes that are free; `None` where nobody tells.
    pub free: Option<u64>,
    /// Whether that is enough. Where nobody tells, it is.
    pub fits: bool,
}

impl Fit {
    /// Of the model in `path`, loaded as `params` say, and of contexts like `context`.
    ///
    /// # Errors
    /// When the file is not a model.
    pub fn new(path: &Path, params: &ModelParams, context: &ContextParams) -> Result<Self, LlamaError> {
        Ok(Self { layout: Layout::new(path, params)?, context: context.clone(), mapped: params.mmap && !params.mlock })
    }

    /// Tokens of a context that asks for none in particular.
    pub fn n_ctx_train(&self) -> u32 {
        self.layout.n_ctx_train()
    }

    /// What a context of `n_ctx` tokens needs of each device; 0 takes what the model was trained with.
    ///
    /// # Errors
    /// When llama.cpp cannot make such a context at all.
    pub fn needs(&self, n_ctx: u32) -> Result<Vec<Need>, LlamaError> {
        let need = |used: MemoryUse| {
            let free = memory_free(used.device.as_deref());
            let needed = if used.device.is_none() && self.mapped { used.cache + used.compute } else { used.total() };
            Need { free, needed, fits: free.is_none_or(|free| needed <= free), used }
        };
        Ok(self.layout.memory(&ContextParams { n_ctx, ..self.context.clone() })?.into_iter().map(need).collect())
    }

    /// The largest context below `n_ctx` that fits and leaves a margin; `None` if not even a small one does.
    ///
    /// # Errors
    /// As [`Fit::needs`].
    pub fn largest(&self, n_ctx: u32) -> Result<Option<u32>, LlamaError> {
        // In steps: what is below fits, if it is not nothing, and what is above does not.
        let (mut below, mut above) = (0, n_ctx.div_ceil(STEP).max(1));
        while below + 1 < above {
            let middle = below + (above - below) / 2;
            // A model whose pages are not all there runs, and slowly.
            let leaves_margin = |need: &Need| need.free.is_none_or(|free| need.used.total() + MARGIN <= free);
            match self.needs(middle * STEP)?.iter().all(leaves_margin) {
                true => below = middle,
                false => above = middle,
            }
        }
        Ok((below > 0).then_some(below * STEP))
    }
}
