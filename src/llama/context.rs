//! A context: the KV cache of a model, and decoding into it.

use std::ffi::c_void;
use std::num::NonZeroU32;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use crate::trace::Segment;

use super::backend::{backend, take_complaint};
use super::ggml::{ggml, on_node};
use super::{Adapter, Batch, Hook, LlamaError, Model, Row, Token};
use crate::graph::State;

/// When attention runs fused, without a softmax that a hook could see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashAttention {
    /// Wherever the backend can.
    Auto,
    /// Always.
    On,
    /// Never; hooks need this.
    Off,
}

/// Most threads that ggml has room for.
pub const MAX_THREADS: i32 = 512;

/// Most tokens of a context. llama.cpp fills a table of all cells before it asks for the cache's memory, so a size that
/// no machine can hold would take minutes to fail.
pub const MAX_CONTEXT: u32 = 1 << 24;

/// Element type of the K or V cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheType(KvCacheType);

impl CacheType {
    /// 16-bit floats, the default.
    pub const F16: Self = Self(KvCacheType::F16);
    /// 32-bit floats.
    pub const F32: Self = Self(KvCacheType::F32);

    const NAMES: [(&str, KvCacheType); 9] = [
        ("f32", KvCacheType::F32),
        ("f16", KvCacheType::F16),
        ("bf16", KvCacheType::BF16),
        ("q8_0", KvCacheType::Q8_0),
        ("q4_0", KvCacheType::Q4_0),
        ("q4_1", KvCacheType::Q4_1),
        ("iq4_nl", KvCacheType::IQ4_NL),
        ("q5_0", KvCacheType::Q5_0),
        ("q5_1", KvCacheType::Q5_1),
    ];

    /// Whether it holds plain floats, which is what StepFlow reads from a V cache.
    pub fn is_float(self) -> bool {
        matches!(self.0, KvCacheType::F32 | KvCacheType::F16 | KvCacheType::BF16)
    }

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self.0).map_or("?", |(name, _)| name)
    }
}

impl FromStr for CacheType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::NAMES.map(|(name, _)| name).join(", ");
        let found = Self::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, kind)| Self(*kind)).ok_or(format!("expected one of {names}, found `{text}`"))
    }
}

/// How to create a context.
#[derive(Debug, Clone)]
pub struct ContextParams {
    /// Tokens it holds; 0 takes what the model was trained with.
    pub n_ctx: u32,
    /// Tokens submitted at once.
    pub n_batch: u32,
    /// Tokens computed at once: a micro-batch.
    pub n_ubatch: u32,
    /// Sequences it can hold side by side, sharing the context.
    pub n_sequences: u32,
    /// Whether each sequence has a stream of its own: a share of the cells that it alone attends over, which is much
    /// faster for many sequences. Batches must then be made as [`Context::decode`] says.
    pub streams: bool,
    /// Threads for generation, [`MAX_THREADS`] at most.
    pub n_threads: i32,
    /// Threads for batches, [`MAX_THREADS`] at most.
    pub n_threads_batch: i32,
    /// Flash attention.
    pub flash_attention: FlashAttention,
    /// Element type of the K cache.
    pub type_k: CacheType,
    /// Element type of the V cache.
    pub type_v: CacheType,
    /// Whether rows that a hook has to do with may go through our own attention in layers where it changes nothing, which is
    /// faster where attention runs fused in host memory.
    pub all_layers: bool,
    /// Set from anywhere, it interrupts a running decode.
    pub interrupt: Option<Arc<AtomicBool>>,
}

impl Default for ContextParams {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(4, |n| n.get() as i32);
        Self {
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_sequences: 1,
            streams: false,
            n_threads: threads,
            n_threads_batch: threads,
            flash_attention: FlashAttention::Auto,
            type_k: CacheType::F16,
            type_v: CacheType::F16,
            all_layers: true,
            interrupt: None,
        }
    }
}

/// The callback's state, owned by address because llama.cpp holds that address too.
struct StatePtr(NonNull<State>);

impl StatePtr {
    fn new(state: State) -> Self {
        Self(NonNull::from(Box::leak(Box::new(state))))
    }
}

impl Deref for StatePtr {
    type Target = State;

    fn deref(&self) -> &State {
        // SAFETY: it comes from a box that only `drop` takes back, and llama.cpp uses it only inside decode, which
        // borrows the context mutably.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for StatePtr {
    fn deref_mut(&mut self) -> &mut State {
        // SAFETY: as in `deref`.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for StatePtr {
    fn drop(&mut self) {
        // SAFETY: it comes from a box, and nothing uses it after this.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A KV cache and the state to decode into it.
pub struct Context {
    // Dropped first: it refers to everything below by address.
    inner: LlamaContext<'static>,
    state: Option<StatePtr>,
    interrupt: Arc<AtomicBool>,
    batch: LlamaBatch<'static>,
    n_ubatch: usize,
    streams: bool,
    flash_attention: FlashAttention,
    model: Arc<Model>,
}

// SAFETY: llama.cpp's context may be used from any one thread at a time, and `&mut self` sees to that; the state behind
// its callback is only reached from inside decode, and hooks are `Send`.
unsafe impl Send for Context {}

impl Context {
    /// Creates a context of `model`. With flash attention, a hook sees no softmax, but can have rows computed by the
    /// kernel of `kernels::attend`.
    ///
    /// # Errors
    /// When it is larger than any model needs, or llama.cpp cannot, mostly for want of memory.
    pub fn new(model: Arc<Model>, params: &ContextParams, hook: Option<Box<dyn Hook>>) -> Result<Self, LlamaError> {
        let n_ctx = if params.n_ctx == 0 { model.n_ctx_train() } else { params.n_ctx };
        let mut raw = raw_params(params, n_ctx)?;
        let interrupt = params.interrupt.clone().unwrap_or_default();
        let state = hook.map(|hook| StatePtr::new(State::new(ggml(), hook, params.all_layers)));
        let fields = fields(&mut raw);
        fields.abort_callback = Some(is_interrupted);
        fields.abort_callback_data = Arc::as_ptr(&interrupt).cast_mut().cast();
        if let Some(state) = &state {
            fields.cb_eval = Some(on_node);
            fields.cb_eval_user_data = state.0.as_ptr().cast();
        }
        let inner = Self::create(&model, raw, n_ctx)?;
        let batch = LlamaBatch::new(inner.n_batch() as usize, 1);
        let n_ubatch = inner.n_ubatch() as usize;
        let (streams, flash_attention) = (params.streams, params.flash_attention);
        Ok(Self { inner, state, interrupt, batch, n_ubatch, streams, flash_attention, model })
    }

    fn create(model: &Model, raw: LlamaContextParams, n_ctx: u32) -> Result<LlamaContext<'static>, LlamaError> {
        let _one_at_a_time = model.creating.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        take_complaint();
        let n_ctx = if n_ctx == 0 { model.n_ctx_train() } else { n_ctx };
        let inner = model.inner.new_context(backend(), raw).map_err(|error| LlamaError::Context {
            n_ctx,
            reason: take_complaint().unwrap_or_else(|| error.to_string()),
        })?;
        // SAFETY: only the lifetime changes. `Context` owns an `Arc` of the model and drops the context first.
        Ok(unsafe { std::mem::transmute::<LlamaContext<'_>, LlamaContext<'static>>(inner) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Flash attention, as it was asked for.
    pub fn flash_attention(&self) -> FlashAttention {
        self.flash_attention
    }

    /// Tokens that fit.
    pub fn n_ctx(&self) -> usize {
        self.inner.n_ctx() as usize
    }

    /// Tokens that one [`Context::decode`] takes at most. With a hook it is a micro-batch, so that what the hook is
    /// told of a decode is what one graph runs.
    pub fn max_batch(&self) -> usize {
        match self.state {
            Some(_) => self.n_ubatch,
            None => self.inner.n_batch() as usize,
        }
    }

    /// Applies LoRA adapters from here on.
    ///
    /// # Errors
    /// When llama.cpp refuses the adapter.
    pub fn set_adapter(&mut self, adapter: &mut Adapter) -> Result<(), LlamaError> {
        self.inner
            .lora_adapter_set(&mut adapter.0, 1.0)
            .map_err(|error| LlamaError::Adapter { path: self.model.path().to_owned(), reason: error.to_string() })
    }

    /// Decodes a batch of at most [`Context::max_batch`] tokens. With streams, it holds consecutive sequences in
    /// ascending order, each with equally many tokens: llama.cpp would split any other.
    ///
    /// # Errors
    /// When the context is full, the interrupt flag was set, a hook failed, or llama.cpp did. Nothing of the batch is
    /// kept then.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), LlamaError> {
        assert!(batch.rows.len() <= self.max_batch(), "a batch is at most `max_batch` tokens");
        assert!(!self.streams || batch.is_even(), "a batch for streams has equally many tokens of each sequence");
        if batch.rows.is_empty() {
            return Ok(());
        }
        self.fill(&batch.rows);
        if let Some(state) = &mut self.state {
            state.begin(&batch.rows);
        }
        take_complaint();
        let outcome = self.inner.decode(&mut self.batch);
        if let Some(state) = &mut self.state {
            state.end(outcome.is_ok());
        }
        let failure = match (self.state.as_mut().and_then(|state| state.error.take()), outcome) {
            (Some(message), _) => LlamaError::Hook(message),
            (None, Ok(())) => return Ok(()),
            (None, Err(DecodeError::NoKvCacheSlot)) => LlamaError::ContextFull { n_tokens: batch.rows.len() },
            (None, Err(DecodeError::Unknown(2))) => LlamaError::Interrupted,
            (None, Err(error)) => LlamaError::Decode { reason: take_complaint().unwrap_or_else(|| error.to_string()) },
        };
        for row in &batch.rows {
            self.truncate(row.sequence, row.position);
        }
        Err(failure)
    }

    fn fill(&mut self, rows: &[Row]) {
        self.batch.clear();
        for row in rows {
            self.batch
                .add(LlamaToken(row.token.0), row.position as i32, &[row.sequence as i32], row.logits)
                .expect("the batch holds n_batch tokens");
        }
    }

    /// Logits of the batch's `row`, which asked for them: `[n_vocab]`.
    pub fn logits(&self, row: usize) -> &[f32] {
        self.inner.get_logits_ith(row as i32)
    }

    /// How surprising `token` is after the batch's `row`, which asked for logits: its negative log-likelihood in nats.
    pub fn surprise(&self, row: usize, token: Token) -> f64 {
        surprise(self.logits(row), token.0 as usize)
    }

    /// Lets sequence `to` begin with the first `n` tokens of `from`, which both then share. Not with streams.
    pub fn share(&mut self, from: u32, to: u32, n: usize) {
        assert!(!self.streams, "sequences in streams of their own share nothing");
        let copied = self.inner.copy_kv_cache_seq(from as i32, to as i32, None, Some(n as u32));
        copied.expect("positions are below 2^31");
    }

    /// Forgets `sequence` from `position` on. Returns whether the cache could (a recurrent state cannot).
    pub fn truncate(&mut self, sequence: u32, position: usize) -> bool {
        self.inner.clear_kv_cache_seq(Some(sequence), Some(position as u32), None).unwrap_or(false)
    }

    /// Labels everything in the cache of `sequence` anew, as when a new user turn starts.
    pub fn relabel(&mut self, sequence: u32, segment: Segment) {
        if let Some(state) = &mut self.state {
            state.relabel(sequence, segment);
        }
    }

    /// The flag that interrupts a running decode.
    pub fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.interrupt
    }

    /// Whether a decode so far had attention that the hook could see; without a hook, `false`.
    pub fn offers_attention(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.offers_attention)
    }

    /// Whether attention so far was flash attention; without a hook, `false`.
    pub fn is_fused(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_fused)
    }

    pub(crate) fn inner(&self) -> &LlamaContext<'static> {
        &self.inner
    }
}

/// What llama.cpp is asked for, without callbacks.
///
/// # Errors
/// When it is larger than any model needs.
pub(super) fn raw_params(params: &ContextParams, n_ctx: u32) -> Result<LlamaContextParams, LlamaError> {
    if n_ctx > MAX_CONTEXT {
        return Err(LlamaError::Context { n_ctx, reason: format!("expected at most {MAX_CONTEXT}") });
    }
    let raw = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(n_ctx))
        .with_n_batch(params.n_batch)
        .with_n_ubatch(params.n_ubatch.min(params.n_batch))
        .with_n_seq_max(params.n_sequences)
        .with_n_threads(params.n_threads.min(MAX_THREADS))
        .with_n_threads_batch(params.n_threads_batch.min(MAX_THREADS))
        .with_flash_attention_policy(match params.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        })
        .with_type_k(params.type_k.0)
        .with_type_v(params.type_v.0)
        // One stream for all sequences keeps any micro-batch in the order it was submitted.
        .with_kv_unified(!params.streams);
    Ok(raw)
}

/// llama-cpp-2 has no setter for the callbacks, and its parameters are a struct of one field: llama.cpp's own.
pub(super) fn fields(params: &mut LlamaContextParams) -> &mut sys::llama_context_params {
    const {
        assert!(size_of::<LlamaContextParams>() == size_of::<sys::llama_context_params>());
        assert!(align_of::<LlamaContextParams>() == align_of::<sys::llama_context_params>());
    };
    // SAFETY: a struct that has a field of its own size has it at offset 0 and nothing beside it.
    unsafe { &mut *std::ptr::from_mut(params).cast() }
}

/// `ggml_abort_callback`.
///
/// # Safety
/// `flag` points to an `AtomicBool` that outlives the context.
pub(super) unsafe extern "C" fn is_interrupted(flag: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// `-ln softmax(logits)[target]`, in nats.
fn surprise(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max - logits[target]) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certain_token_is_no_surprise() {
        assert!(surprise(&[0.0, 100.0], 1) < 1e-12);
        // ln 2: two equal tokens.
        assert!((surprise(&[3.0, 3.0], 0) - std::f64::consts::LN_2).abs() < 1e-12);
    }
}
