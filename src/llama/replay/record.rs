//! The decode that is recorded.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::part::{Constants, Part, Which, Workspace, name_of};
use super::weight::Weight;
use crate::graph::layer_of;
use crate::llama::backend::{backend, take_complaint};
use crate::llama::{LlamaError, MAX_THREADS, Token};

/// A model whose layers can be run for each row alone.
pub struct Replay {
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// Makes logits of the last layer's output.
    pub head: Part,
    /// Rows that parts run with: with other numbers of rows, ggml adds up in other orders.
    pub n_rows: usize,
    /// The embedding of each token, by row.
    pub embedding: Weight,
    /// Memory and threads for the parts.
    pub workspace: Workspace,
    /// Its weights are read by all of them.
    _model: RecordedModel,
}

/// A layer, cut at its attention.
pub struct Layer {
    /// Makes queries, keys and values of the layer's input.
    pub pre: Part,
    /// Makes the layer's output of its input and the outputs of all heads.
    pub post: Part,
    /// What is between them.
    pub attention: Attention,
}

/// The attention of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Heads.
    pub n_head: usize,
    /// Heads of keys and values, each for equally many neighbouring heads.
    pub n_head_kv: usize,
    /// Elements of a query and of a key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// What products of queries and keys are multiplied with.
    pub scale: f32,
    /// What they are bounded by first: `outer * tanh(inner * x)`.
    pub softcap: Option<Softcap>,
    /// How many tokens a row sees, itself among them; all before it where there is none.
    pub window: Option<usize>,
    /// The logit of each head's sink.
    pub sinks: Option<Vec<f32>>,
}

/// Bounds of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softcap {
    /// What a product is multiplied with before the tangent.
    pub inner: f32,
    /// What the tangent is multiplied with.
    pub outer: f32,
}

/// What llama.cpp computed in a layer of the rows that were recorded, each row after row.
pub struct Recorded<'a> {
    /// The layer's number.
    pub number: usize,
    /// How it attends.
    pub attention: &'a Attention,
    /// Queries, `[n_rows][n_head][key_dim]`.
    pub queries: &'a [f32],
    /// Keys, `[n_rows][n_head_kv][key_dim]`.
    pub keys: &'a [f32],
    /// Values, `[n_rows][n_head_kv][value_dim]`.
    pub values: &'a [f32],
    /// Outputs of all heads, `[n_rows][n_head][value_dim]`.
    pub outputs: &'a [f32],
}

impl Replay {
    /// Loads a model and decodes the first `n_rows` tokens, by which its layers are found out and held to give the same bits.
    /// Its parts will run with as many rows. `check` is shown every layer.
    ///
    /// # Errors
    /// When llama.cpp cannot load or run the model, when something in its graph is not known or gives other bits, when
    /// `interrupt` is set, and when `check` fails.
    pub fn record(
        path: &Path,
        tokens: &[Token],
        n_rows: usize,
        n_threads: i32,
        interrupt: &Arc<AtomicBool>,
        check: &mut dyn FnMut(&Recorded<'_>) -> Result<(), String>,
    ) -> Result<Self, LlamaError> {
        let failed = |reason| LlamaError::Replay { reason };
        let model = RecordedModel::load(path)?;
        let n_threads = n_threads.min(MAX_THREADS);
        let workspace = Workspace::new(n_threads).map_err(failed)?;
        let n_swa = model.window();
        let has_window = n_swa > 0 && tokens.len().max(n_rows) > n_swa;
        // So that the caches of layers with a window are the smaller ones.
        let n_ctx = if has_window {
            (n_swa + n_rows).next_multiple_of(CONTEXT_STEP) + CONTEXT_STEP
        } else {
            n_rows.next_multiple_of(CONTEXT_STEP)
        };
        let mut state = Box::new(State {
            n_rows,
            n_ctx,
            window: has_window.then_some(n_swa),
            constants: Constants::new(),
            input: None,
            written: HashMap::new(),
            scores: HashMap::new(),
            layers: Vec::new(),
            embedding: None,
            head: None,
            workspace,
            check,
            error: None,
        });
        let status = model.decode(tokens, n_rows, n_ctx, n_threads, interrupt, &mut state);
        let State { layers, embedding, head, workspace, error, .. } = *state;
        if let Some(reason) = error {
            return Err(failed(reason));
        }
        if interrupt.load(Ordering::Relaxed) {
            return Err(LlamaError::Interrupted);
        }
        status?;
        let layers = in_order(layers).map_err(failed)?;
        if has_window && layers.iter().all(|layer| layer.attention.window.is_none()) {
            return Err(failed(format!("which of its layers see {n_swa} tokens alone is not known")));
        }
        let missing = |what: &str| failed(format!("found no {what} in the model's graph"));
        let embedding = embedding.ok_or_else(|| missing("embedding of tokens"))?;
        let head = head.ok_or_else(|| missing("logits"))?;
        Ok(Self { layers, head, n_rows, embedding, workspace, _model: model })
    }

    /// The embedding of a token.
    pub fn embed(&self, token: Token, to: &mut [f32]) {
        self.embedding.read(0, token.0 as usize, 0, to);
    }

    /// Elements of a layer's input.
    pub fn width(&self) -> usize {
        self.embedding.shape()[0]
    }
}

/// The layers by their numbers, none of which may be missing.
fn in_order(mut layers: Vec<(usize, Layer)>) -> Result<Vec<Layer>, String> {
    layers.sort_by_key(|(number, _)| *number);
    match layers.iter().enumerate().find(|(i, (number, _))| i != number) {
        Some((i, _)) => Err(format!("layer {i} has no attention of its own")),
        None if layers.is_empty() => Err("its layers have no attention that is known".to_owned()),
        None => Ok(layers.into_iter().map(|(_, layer)| layer).collect()),
    }
}

/// Scores of a layer on their way to the softmax.
struct Scores {
    queries: *mut sys::ggml_tensor,
    query_data: Vec<f32>,
    attention: Attention,
}

/// What the callback keeps.
struct State<'a> {
    n_rows: usize,
    /// Cells of a cache without a window.
    n_ctx: usize,
    /// What a row sees in layers whose caches are smaller.
    window: Option<usize>,
    constants: Constants,
    /// The present layer's input.
    input: Option<(*mut sys::ggml_tensor, Vec<f32>)>,
    /// What was written to the caches, by the name of the cache.
    written: HashMap<String, (*mut sys::ggml_tensor, Vec<f32>)>,
    scores: HashMap<usize, Scores>,
    /// Each with its number.
    layers: Vec<(usize, Layer)>,
    embedding: Option<Weight>,
    head: Option<Part>,
    workspace: Workspace,
    check: &'a mut dyn FnMut(&Recorded<'_>) -> Result<(), String>,
    error: Option<String>,
}

impl State<'_> {
    /// Whether to stop after a node.
    ///
    /// # Safety
    /// It is a node of the running graph.
    unsafe fn ask(&mut self, node: *mut sys::ggml_tensor) -> Result<bool, String> {
        // SAFETY: by this function's contract; so are its sources.
        unsafe {
            let name = name_of(node);
            for source in (*node).src.into_iter().take_while(|source| !source.is_null()) {
                // Later its memory may hold something else.
                if name_of(source) == CONSTANT && !self.constants.contains_key(&source) {
                    self.constants.insert(source, floats(source)?[0]);
                }
            }
            match (*node).op {
                sys::GGML_OP_GET_ROWS => return Ok(name_of((*node).src[1]) == "inp_tokens"),
                sys::GGML_OP_SET_ROWS => return Ok(name_of(owner(node)).starts_with("cache_")),
                sys::GGML_OP_SOFT_MAX => {
                    if let Some(layer) = layer_of(name.as_bytes(), b"kq_soft_max-") {
                        let attention = self.attention(node, layer)?;
                        self.scores.get_mut(&layer).ok_or("a softmax of no scores")?.attention = attention;
                    }
                    return Ok(false);
                }
                _ => {}
            }
            let stops = ["kq-", "kqv_out-", "l_out-"]
                .iter()
                .any(|prefix| layer_of(name.as_bytes(), prefix.as_bytes()).is_some());
            Ok(stops || name == "result_output")
        }
    }

    /// # Safety
    /// As [`State::ask`]; the graph stands still behind the node.
    unsafe fn visit(&mut self, node: *mut sys::ggml_tensor) -> Result<(), String> {
        // SAFETY: by this function's contract; so are its sources.
        unsafe {
            let name = name_of(node);
            let layer = |prefix: &str| layer_of(name.as_bytes(), prefix.as_bytes());
            if (*node).op == sys::GGML_OP_GET_ROWS {
                self.embedding = Some(Weight::new((*node).src[0])?);
                self.input = Some((node, floats(node)?));
            } else if (*node).op == sys::GGML_OP_SET_ROWS {
                let source = whole((*node).src[0]);
                self.written.insert(name_of(owner(node)), (source, floats(source)?));
            } else if let Some(layer) = layer("kq-") {
                let queries = whole((*node).src[1]);
                let keys = (*node).src[0];
                let cache = owner(keys);
                if name_of(cache) != format!("cache_k_l{layer}") {
                    return Err(format!("layer {layer} attends over keys that are not its own"));
                }
                let attention = Attention {
                    n_head: (*node).ne[2] as usize,
                    n_head_kv: (*keys).ne[2] as usize,
                    key_dim: (*keys).ne[0] as usize,
                    value_dim: 0,
                    scale: 1.0,
                    softcap: None,
                    window: self.window.filter(|_| ((*cache).ne[1] as usize) < self.n_ctx),
                    sinks: None,
                };
                let scores = Scores { queries, query_data: floats(queries)?, attention };
                self.scores.insert(layer, scores);
            } else if layer("kqv_out-").is_some() {
                self.written.insert("outputs".to_owned(), (node, floats(node)?));
            } else if let Some(number) = layer("l_out-") {
                self.layer(node, number)?;
            } else if name == "result_output" {
                let (input, data) = self.input.take().ok_or("logits of no layer")?;
                let head = Part::new(&[input], &[node], &self.constants)?;
                self.hold_to(&head, &[&data], &[(node, &floats(node)?)])?;
                self.head = Some(head);
            }
            Ok(())
        }
    }

    /// What a softmax says of a layer's attention.
    ///
    /// # Safety
    /// As [`State::ask`].
    unsafe fn attention(&self, softmax: *mut sys::ggml_tensor, layer: usize) -> Result<Attention, String> {
        // SAFETY: by this function's contract; so are its sources, and sinks are weights in host memory.
        unsafe {
            let float =
                |tensor: *mut sys::ggml_tensor, i: usize| f32::from_bits((*tensor).op_params[i].cast_unsigned());
            let mut attention = self.scores.get(&layer).ok_or("a softmax of no scores")?.attention.clone();
            attention.scale = float(softmax, 0);
            if float(softmax, 1) != 0.0 {
                return Err(format!("no rule for attention with ALiBi, as in layer {layer}"));
            }
            if !(*softmax).src[2].is_null() {
                attention.sinks = Some(Weight::new((*softmax).src[2])?.to_vec());
            }
            let scores = (*softmax).src[0];
            if name_of(scores) != format!("kq-{layer}") {
                let tanh = (*scores).src[0];
                let inner = (*tanh).src[0];
                let is_capped = (*scores).op == sys::GGML_OP_SCALE
                    && (*tanh).op == sys::GGML_OP_UNARY
                    && sys::ggml_get_unary_op(tanh) == sys::GGML_UNARY_OP_TANH
                    && (*inner).op == sys::GGML_OP_SCALE
                    && name_of((*inner).src[0]) == format!("kq-{layer}");
                if !is_capped {
                    return Err(format!("no rule for what layer {layer} does to its scores"));
                }
                attention.softcap = Some(Softcap { inner: float(inner, 0), outer: float(scores, 0) });
            }
            Ok(attention)
        }
    }

    /// A layer's last node: all of it has run.
    ///
    /// # Safety
    /// As [`State::visit`].
    unsafe fn layer(&mut self, node: *mut sys::ggml_tensor, number: usize) -> Result<(), String> {
        let missing = |what: &str| format!("layer {number} has no {what} of its own");
        let (input, input_data) = self.input.take().ok_or_else(|| missing("input"))?;
        let scores = self.scores.remove(&number).ok_or_else(|| missing("attention"))?;
        let (keys, key_data) = self.written.remove(&format!("cache_k_l{number}")).ok_or_else(|| missing("keys"))?;
        let (values, value_data) =
            self.written.remove(&format!("cache_v_l{number}")).ok_or_else(|| missing("values"))?;
        let (outputs, output_data) = self.written.remove("outputs").ok_or_else(|| missing("attention"))?;
        let Scores { queries, query_data, mut attention } = scores;
        attention.value_dim = value_data.len() / self.n_rows / attention.n_head_kv;
        // SAFETY: by this function's contract all are of the running graph, and weights of the model.
        unsafe {
            let data = floats(node)?;
            let pre = Part::new(&[input], &[queries, keys, values], &self.constants)?;
            let expected = [(queries, query_data.as_slice()), (keys, &key_data), (values, &value_data)];
            self.hold_to(&pre, &[&input_data], &expected)?;
            let post = Part::new(&[input, outputs], &[node], &self.constants)?;
            self.hold_to(&post, &[&input_data, &output_data], &[(node, &data)])?;
            let (queries, keys, values, outputs) = (&*query_data, &*key_data, &*value_data, &*output_data);
            (self.check)(&Recorded { number, attention: &attention, queries, keys, values, outputs })?;
            self.layers.push((number, Layer { pre, post, attention }));
            self.input = Some((node, data));
        }
        Ok(())
    }

    /// Whether a part gives the bits that llama.cpp computed.
    fn hold_to(
        &mut self,
        part: &Part,
        given: &[&[f32]],
        expected: &[(*mut sys::ggml_tensor, &[f32])],
    ) -> Result<(), String> {
        part.run(&mut self.workspace, Which::Targets, given, 0)?;
        for (target, (tensor, expected)) in part.targets().iter().zip(expected) {
            let found = part.rows(&self.workspace, *target);
            let same =
                found.len() == expected.len() && found.iter().zip(*expected).all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                // SAFETY: a tensor of the running graph.
                let name = unsafe { name_of(*tensor) };
                return Err(format!("run again, {name} has other bits than llama.cpp's"));
            }
        }
        Ok(())
    }
}

/// The tensor that owns a tensor's memory.
///
/// # Safety
/// It is a live tensor of a graph.
unsafe fn owner(tensor: *mut sys::ggml_tensor) -> *mut sys::ggml_tensor {
    // SAFETY: by this function's contract.
    let owner = unsafe { (*tensor).view_src };
    if owner.is_null() { tensor } else { owner }
}

/// A tensor before it was given other forms that show all of it.
///
/// # Safety
/// It is a live tensor of a graph.
unsafe fn whole(mut tensor: *mut sys::ggml_tensor) -> *mut sys::ggml_tensor {
    // SAFETY: by this function's contract; so are its sources.
    unsafe {
        loop {
            let is_view = matches!(
                (*tensor).op,
                sys::GGML_OP_VIEW | sys::GGML_OP_RESHAPE | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE
            );
            let source = (*tensor).src[0];
            if !is_view || source.is_null() || sys::ggml_nelements(source) != sys::ggml_nelements(tensor) {
                return tensor;
            }
            tensor = source;
        }
    }
}

/// The elements of a float32 tensor in host memory, row after row.
///
/// # Safety
/// It is a live tensor with data, and the graph stands still.
unsafe fn floats(tensor: *mut sys::ggml_tensor) -> Result<Vec<f32>, String> {
    // SAFETY: by this function's contract.
    unsafe {
        let header = &*tensor;
        let buffer = (*owner(tensor)).buffer;
        let is_host = !buffer.is_null() && sys::ggml_backend_buffer_is_host(buffer);
        if header.type_ != sys::GGML_TYPE_F32 || !is_host || header.nb[0] != 4 {
            return Err(format!("expected {} as rows of float32 in host memory", name_of(tensor)));
        }
        let [n, n1, n2, n3] = header.ne.map(|n| n as usize);
        let mut all = Vec::with_capacity(n * n1 * n2 * n3);
        for (i3, i2, i1) in (0..n3).flat_map(|i3| (0..n2).flat_map(move |i2| (0..n1).map(move |i1| (i3, i2, i1)))) {
            let at = i1 * header.nb[1] + i2 * header.nb[2] + i3 * header.nb[3];
            all.extend_from_slice(std::slice::from_raw_parts(header.data.cast::<u8>().add(at).cast::<f32>(), n));
        }
        Ok(all)
    }
}

/// `ggml_backend_sched_eval_callback`.
///
/// # Safety
/// `user` is the [`State`] of the context that runs the graph, and nothing else uses it meanwhile.
unsafe extern "C" fn on_node(node: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let state = unsafe { &mut *user.cast::<State<'_>>() };
    if state.error.is_some() {
        return ask;
    }
    // SAFETY: the scheduler passes a node of the running graph.
    let work = || unsafe { if ask { state.ask(node) } else { state.visit(node).map(|()| true) } };
    let outcome = catch_unwind(AssertUnwindSafe(work));
    outcome.unwrap_or_else(|_| Err("panic".to_owned())).unwrap_or_else(|error| {
        state.error = Some(error);
        ask
    })
}

/// What llama.cpp multiplies the embedding of every token with, in some models.
const CONSTANT: &str = "inp_scale_rows";

/// llama.cpp makes contexts of a multiple of this many tokens.
const CONTEXT_STEP: usize = 256;

/// A model whose weights are mapped, in the form that they have in the file.
struct RecordedModel(NonNull<sys::llama_model>);

// SAFETY: llama.cpp's models may be used from any thread; nothing is done to it but to free it.
unsafe impl Send for RecordedModel {}
// SAFETY: as above.
unsafe impl Sync for RecordedModel {}

impl RecordedModel {
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
            params.use_extra_bufts = false;
            sys::llama_model_load_from_file(text.as_ptr(), params)
        };
        NonNull::new(raw).map(Self).ok_or_else(|| failed(take_complaint().unwrap_or_else(|| "no reason given".into())))
    }

    /// How many tokens a row sees in layers with a window; 0 where there are none.
    fn window(&self) -> usize {
        // SAFETY: the model lives.
        usize::try_from(unsafe { sys::llama_model_n_swa(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// Decodes the first tokens, all of whose logits are wanted, while `state` looks on.
    fn decode(
        &self,
        tokens: &[Token],
        n_rows: usize,
        n_ctx: usize,
        n_threads: i32,
        interrupt: &Arc<AtomicBool>,
        state: &mut State<'_>,
    ) -> Result<(), LlamaError> {
        let any = tokens.first().map_or(0, |token| token.0);
        let mut tokens: Vec<i32> = tokens.iter().take(n_rows).map(|token| token.0).collect();
        tokens.resize(n_rows, any);
        let reason = || take_complaint().unwrap_or_else(|| "no reason given".to_owned());
        // SAFETY: the model lives; the callbacks' data outlive the context, which is freed here; the other parameters are
        // llama.cpp's defaults with scalars changed. The batch lives for its decode and is freed once.
        unsafe {
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_batch, params.n_ubatch) = (n_ctx as u32, n_rows as u32, n_rows as u32);
            (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.n_threads = n_threads;
            params.n_threads_batch = n_threads;
            params.op_offload = false;
            params.swa_full = false;
            params.cb_eval = Some(on_node);
            params.cb_eval_user_data = std::ptr::from_mut(state).cast();
            params.abort_callback = Some(crate::llama::context::is_interrupted);
            params.abort_callback_data = Arc::as_ptr(interrupt).cast_mut().cast();
            let context = NonNull::new(sys::llama_init_from_model(self.0.as_ptr(), params))
                .ok_or_else(|| LlamaError::Context { n_ctx: n_ctx as u32, reason: reason() })?;
            let mut batch = sys::llama_batch_init(n_rows as i32, 0, 1);
            batch.n_tokens = n_rows as i32;
            for (i, token) in tokens.iter().enumerate() {
                *batch.token.add(i) = *token;
                *batch.pos.add(i) = i as i32;
                *batch.n_seq_id.add(i) = 1;
                **batch.seq_id.add(i) = 0;
                *batch.logits.add(i) = 1;
            }
            let status = sys::llama_decode(context.as_ptr(), batch);
            sys::llama_batch_free(batch);
            sys::llama_free(context.as_ptr());
            if status == 0 { Ok(()) } else { Err(LlamaError::Decode { reason: reason() }) }
        }
    }
}

impl Drop for RecordedModel {
    fn drop(&mut self) {
        // SAFETY: it was loaded by `load`, and nothing uses it any more: parts go before it.
        unsafe { sys::llama_model_free(self.0.as_ptr()) };
    }
}
