//! What the loss makes of every attention probability: a forward and a backward pass over a whole sequence.
//!
//! llama.cpp can train, and its training graph holds dL/dA of every layer on the way. So it is asked to train one small
//! tensor of the first layer, and stopped before it would write to it. It computes a whole context at once and counts every
//! token in the loss; which tokens count here is decided by clearing rows of the labels, and of the gradient of the logits.
//! Its products over rows are slow, so they are passed over and computed here ([`OutProducts`]).

use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::backend::{backend, take_complaint};
use super::ggml::tensor;
use super::out_product::OutProducts;
use super::{HookError, LlamaError, MAX_THREADS, Token};
use crate::graph::{Tensor, layer_of};

/// llama.cpp makes contexts of a multiple of this many tokens.
pub const CONTEXT_STEP: usize = 256;

/// The sequence to differentiate over, and how.
pub struct Backward<'a> {
    /// The model file.
    pub model: &'a Path,
    /// The sequence, two tokens at least.
    pub tokens: &'a [Token],
    /// For each token, whether the loss counts how surprising it is. The first is never counted: nothing predicts it.
    pub counted: &'a [bool],
    /// Threads.
    pub n_threads: i32,
    /// Set from anywhere, it interrupts the pass.
    pub interrupt: Arc<AtomicBool>,
}

/// Attention of one layer and its gradient, each `[n_head][stride][stride]`: query, then key.
pub struct AttentionGradient<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Heads.
    pub n_head: usize,
    stride: usize,
    probs: &'a [f32],
    gradient: &'a [f32],
}

impl AttentionGradient<'_> {
    /// One head's attention of a query to all keys up to it, and the loss's derivative by each: `[query + 1]`.
    pub fn row(&self, head: usize, query: usize) -> (&[f32], &[f32]) {
        let start = (head * self.stride + query) * self.stride;
        (&self.probs[start..=start + query], &self.gradient[start..=start + query])
    }
}

impl Backward<'_> {
    /// Runs both passes. `visit` is shown every layer, the last one first. Returns the loss: the mean surprise of the
    /// counted tokens in nats.
    ///
    /// # Errors
    /// When llama.cpp cannot load the model or make a context, the pass is interrupted, or `visit` fails.
    pub fn run(
        &self,
        visit: &mut dyn FnMut(AttentionGradient<'_>) -> Result<(), HookError>,
    ) -> Result<f64, LlamaError> {
        assert!(self.tokens.len() > 1 && self.tokens.len() == self.counted.len(), "a sequence and what counts of it");
        let n_ctx = self.tokens.len().next_multiple_of(CONTEXT_STEP);
        // Row t predicts token t + 1.
        let counted: Vec<bool> = self.counted[1..].to_vec();
        let n_counted = counted.iter().filter(|counted| **counted).count();
        let (forward, products) = (Vec::new(), OutProducts::new(self.n_threads.min(MAX_THREADS))?);
        let seen_first_layer = false;
        let mut state =
            Box::new(State { running: false, counted, forward, products, visit, seen_first_layer, error: None });
        let address = (&raw mut *state).cast::<c_void>();
        let model = TrainableModel::load(self.model)?;
        let context = TrainingContext::new(&model, n_ctx, self, address)?;
        context.prepare(&model, self.tokens[0], n_ctx);
        state.running = true;
        let loss = context.run(self.tokens, n_ctx);
        if let Some(message) = state.error.take() {
            return Err(LlamaError::Hook(message));
        }
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(LlamaError::Interrupted);
        }
        if !state.seen_first_layer {
            return Err(LlamaError::Decode { reason: "its backward pass shows no attention".to_owned() });
        }
        // llama.cpp's mean is over all rows of the context.
        Ok(loss * n_ctx as f64 / n_counted.max(1) as f64)
    }
}

/// What the callback keeps.
struct State<'a> {
    /// Whether the pass runs; before, graphs are only prepared and stop at their first node.
    running: bool,
    /// For each row of the logits, whether the loss counts it; rows beyond are padding.
    counted: Vec<bool>,
    /// The softmax of every layer in the graph that runs.
    forward: Vec<(usize, NonNull<sys::ggml_tensor>)>,
    products: OutProducts,
    visit: &'a mut dyn FnMut(AttentionGradient<'_>) -> Result<(), HookError>,
    seen_first_layer: bool,
    error: Option<String>,
}

impl State<'_> {
    fn ask(&mut self, node: Tensor<'_>) -> Result<bool, HookError> {
        match node.operation() {
            sys::GGML_OP_SOFT_MAX => {
                if let Some(layer) = layer_of(node.name(), b"kq_soft_max-") {
                    self.forward.retain(|(other, _)| *other != layer);
                    self.forward.push((layer, node.raw().cast()));
                }
                Ok(false)
            }
            sys::GGML_OP_CROSS_ENTROPY_LOSS => {
                // Labels are an input: they are there before any node runs.
                let labels = node.source(1).ok_or("a loss without labels")?;
                self.clear_uncounted(labels, 1.0)?;
                Ok(false)
            }
            sys::GGML_OP_CROSS_ENTROPY_LOSS_BACK => Ok(true),
            sys::GGML_OP_OUT_PROD => {
                // The graph is to pass over it; `visit` computes it.
                // SAFETY: a node of the graph that runs, at which its thread asks; nothing else looks at it now.
                unsafe { node.set_operation(sys::GGML_OP_NONE) };
                Ok(true)
            }
            _ => Ok(layer_of(node.name(), GRADIENT).is_some()),
        }
    }

    /// Returns whether the graph is to go on.
    fn visit(&mut self, node: Tensor<'_>) -> Result<bool, HookError> {
        if node.operation() == sys::GGML_OP_CROSS_ENTROPY_LOSS_BACK {
            let n_counted = self.counted.iter().filter(|counted| **counted).count();
            let [_, n_rows, ..] = node.shape();
            self.clear_uncounted(node, n_rows as f32 / n_counted.max(1) as f32)?;
            return Ok(true);
        }
        if node.operation() == sys::GGML_OP_NONE {
            // SAFETY: as where it was passed over.
            unsafe { node.set_operation(sys::GGML_OP_OUT_PROD) };
            self.products.compute(node)?;
        }
        let Some(layer) = layer_of(node.name(), GRADIENT) else { return Ok(true) };
        let forward = self.forward.iter().find(|(other, _)| *other == layer).ok_or("a gradient of no attention")?.1;
        // SAFETY: it is a node of the graph that runs, kept alive by the softmax's backward node, which comes after.
        let softmax = unsafe { tensor(forward.as_ptr()) }.expect("not null");
        let [stride, n_rows, n_head, n_sequences] = softmax.shape();
        if node.shape() != softmax.shape() || stride != n_rows || n_sequences != 1 {
            return Err(format!("expected a gradient of shape {:?}, found {:?}", softmax.shape(), node.shape()).into());
        }
        node.with_f32(|gradient| {
            softmax.with_f32(|probs| (self.visit)(AttentionGradient { layer, n_head, stride, probs, gradient }))
        })???;
        self.seen_first_layer |= layer == 0;
        // What is left is the gradient of the tensor to train, and its training.
        Ok(layer != 0)
    }

    /// Scales the rows that count and clears the others, `[vocabulary, rows]`.
    fn clear_uncounted(&self, rows: Tensor<'_>, scale: f32) -> Result<(), HookError> {
        let [width, ..] = rows.shape();
        rows.with_f32(|data| {
            for (i, row) in data.chunks_exact_mut(width).enumerate() {
                match self.counted.get(i) {
                    Some(true) => row.iter_mut().for_each(|x| *x *= scale),
                    _ => row.fill(0.0),
                }
            }
        })
    }
}

/// How ggml names the gradient of a layer's softmax.
const GRADIENT: &[u8] = b"grad for kq_soft_max-";

/// `ggml_backend_sched_eval_callback`.
///
/// # Safety
/// `user` is the [`State`] of the context that runs the graph, and nothing else uses it meanwhile.
unsafe extern "C" fn on_node(node: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let state = unsafe { &mut *user.cast::<State<'_>>() };
    if !state.running || state.error.is_some() {
        return ask;
    }
    // SAFETY: the scheduler passes a node of the running graph.
    let Some(tensor) = (unsafe { tensor(node) }) else { return !ask };
    let outcome = catch_unwind(AssertUnwindSafe(|| if ask { state.ask(tensor) } else { state.visit(tensor) }));
    outcome.unwrap_or_else(|_| Err("panic".into())).unwrap_or_else(|error| {
        state.error = Some(error.to_string());
        ask
    })
}

/// A model whose weights are plain memory in host order: others have no backward pass.
struct TrainableModel(NonNull<sys::llama_model>);

impl TrainableModel {
    fn load(path: &Path) -> Result<Self, LlamaError> {
        let failed = |reason: String| LlamaError::Load { path: path.to_owned(), reason };
        let text = path.to_str().ok_or_else(|| failed("expected a path in UTF-8".to_owned()))?;
        let text = CString::new(text).map_err(|_| failed("expected a path without NUL".to_owned()))?;
        backend();
        take_complaint();
        let mut no_devices = [std::ptr::null_mut()];
        // SAFETY: the path and the empty, null-terminated list of devices outlive the call; the other parameters are
        // llama.cpp's defaults with scalars changed. llama.cpp turns its exceptions into null.
        let raw = unsafe {
            let mut params = sys::llama_model_default_params();
            params.devices = no_devices.as_mut_ptr();
            params.n_gpu_layers = 0;
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
            params.use_extra_bufts = false;
            sys::llama_model_load_from_file(text.as_ptr(), params)
        };
        NonNull::new(raw).map(Self).ok_or_else(|| failed(take_complaint().unwrap_or_else(|| "no reason given".into())))
    }
}

impl Drop for TrainableModel {
    fn drop(&mut self) {
        // SAFETY: it was loaded by `load`, and contexts of it are gone: they borrow it.
        unsafe { sys::llama_model_free(self.0.as_ptr()) };
    }
}

struct TrainingContext<'m> {
    raw: NonNull<sys::llama_context>,
    _model: &'m TrainableModel,
}

impl<'m> TrainingContext<'m> {
    fn new(
        model: &'m TrainableModel,
        n_ctx: usize,
        pass: &Backward<'_>,
        state: *mut c_void,
    ) -> Result<Self, LlamaError> {
        take_complaint();
        let n_ctx = u32::try_from(n_ctx).unwrap_or(u32::MAX);
        // SAFETY: the model lives; the callbacks' data outlive the context, as `Backward::run` drops it first; the
        // other parameters are llama.cpp's defaults with scalars changed.
        let raw = unsafe {
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_batch, params.n_ubatch) = (n_ctx, n_ctx, n_ctx);
            (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.n_threads = pass.n_threads.min(MAX_THREADS);
            params.n_threads_batch = params.n_threads;
            params.op_offload = false;
            params.cb_eval = Some(on_node);
            params.cb_eval_user_data = state;
            params.abort_callback = Some(super::context::is_interrupted);
            params.abort_callback_data = Arc::as_ptr(&pass.interrupt).cast_mut().cast();
            sys::llama_init_from_model(model.0.as_ptr(), params)
        };
        let reason = || take_complaint().unwrap_or_else(|| "no reason given".to_owned());
        let raw = NonNull::new(raw).ok_or_else(|| LlamaError::Context { n_ctx, reason: reason() })?;
        Ok(Self { raw, _model: model })
    }

    /// Makes it ready for an epoch.
    fn prepare(&self, model: &TrainableModel, any: Token, n_ctx: usize) {
        // While it trains, a context takes only batches that fill whole steps of its cache.
        let mut batch = [any.0; CONTEXT_STEP];
        // SAFETY: context and model live; parameters hold functions of the whole process. The batch lives as long as
        // its decode, without which the scheduler would not get the callback.
        unsafe {
            let params = sys::llama_opt_params {
                n_ctx_train: n_ctx as u32,
                param_filter: Some(is_first_norm),
                param_filter_ud: std::ptr::null_mut(),
                get_opt_pars: Some(vanishing_step),
                get_opt_pars_ud: std::ptr::null_mut(),
                optimizer_type: sys::GGML_OPT_OPTIMIZER_TYPE_SGD,
            };
            sys::llama_opt_init(self.raw.as_ptr(), model.0.as_ptr(), params);
            sys::llama_decode(self.raw.as_ptr(), sys::llama_batch_get_one(batch.as_mut_ptr(), CONTEXT_STEP as i32));
        }
    }

    /// One epoch over one sequence. Returns its loss.
    fn run(&self, tokens: &[Token], n_ctx: usize) -> f64 {
        let mut data = vec![0i32; n_ctx];
        data.iter_mut().zip(tokens).for_each(|(place, token)| *place = token.0);
        let mut labels = vec![0i32; n_ctx];
        labels.iter_mut().zip(&tokens[1..]).for_each(|(place, token)| *place = token.0);
        let n = n_ctx as i64;
        let mut loss = 0.0;
        // SAFETY: the data set has one datum of `n_ctx` tokens and as many labels, which is what is copied into it and
        // what the context takes; it and the result are freed once and not used after.
        unsafe {
            let dataset = sys::ggml_opt_dataset_init(sys::GGML_TYPE_I32, sys::GGML_TYPE_I32, n, n, 1, 1);
            for (tensor, values) in
                [(sys::ggml_opt_dataset_data(dataset), &data), (sys::ggml_opt_dataset_labels(dataset), &labels)]
            {
                sys::ggml_backend_tensor_set(tensor, values.as_ptr().cast(), 0, size_of_val(values.as_slice()));
            }
            let result = sys::ggml_opt_result_init();
            sys::llama_opt_epoch(self.raw.as_ptr(), dataset, result, std::ptr::null_mut(), 1, None, None);
            sys::ggml_opt_result_loss(result, &raw mut loss, std::ptr::null_mut());
            sys::ggml_opt_result_free(result);
            sys::ggml_opt_dataset_free(dataset);
        }
        loss
    }
}

impl Drop for TrainingContext<'_> {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nothing uses it any more.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

/// `llama_opt_param_filter`: the first tensor that attention depends on, so that gradients run through all layers.
unsafe extern "C" fn is_first_norm(weight: *const sys::ggml_tensor, _: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes a tensor of the model.
    unsafe { tensor(weight.cast_mut()) }.is_some_and(|tensor| tensor.name() == b"blk.0.attn_norm.weight")
}

/// `ggml_opt_get_optimizer_params`. The step is never taken; it must be above 0 all the same.
unsafe extern "C" fn vanishing_step(_: *mut c_void) -> sys::ggml_opt_optimizer_params {
    // SAFETY: llama.cpp's own defaults, which need no user data.
    let mut params = unsafe { sys::ggml_opt_get_default_optimizer_params(std::ptr::null_mut()) };
    (params.sgd.alpha, params.sgd.wd) = (f32::MIN_POSITIVE, 0.0);
    params
}
