//! The function that llama.cpp's scheduler calls for every node of a graph, and what it keeps between calls.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use ggml_sys::Ggml;

use super::cells::{Caches, Cells, Streams};
use super::flash::Flash;
use super::fused::{Done, Fused};
use super::hook::{Attention, DeviceAttention, DeviceHeadOutput, FusedAttention, HeadOutput, Hook, Point};
use super::mask::{Mask, ReadMasks};
use super::softmax::{attention_on_device, head_output_on_device};
use super::tensor::Tensor;
use super::values::Values;
use super::{HookError, Row};
use crate::kernels::attend::RowWork;
use crate::trace::Segment;

/// What is known of a context's graphs and caches. It lives in a box: the callback holds its address.
pub struct State {
    ggml: &'static Ggml,
    hook: Box<dyn Hook>,
    /// See [`super::ContextParams`].
    all_layers: bool,
    caches: Caches,
    rows: Vec<Row>,
    read_masks: ReadMasks,
    /// Of the running graph: the cache whose keys a layer attends over, by a layer that writes it.
    keys: HashMap<usize, usize>,
    /// Of the running graph: the softmax of each layer. What follows it may be given a copy that knows no mask.
    softmaxes: HashMap<usize, NonNull<ggml_sys::Tensor>>,
    /// Of the running graph: flash attention whose output is not read yet.
    flash: Option<NonNull<ggml_sys::Tensor>>,
    /// Of the running graph: flash attention behind which it stands still, and its layer.
    stands_at: Option<(NonNull<ggml_sys::Tensor>, usize)>,
    fused: Fused,
    /// Whether a graph so far had attention over cached keys that a hook could see.
    pub offers_attention: bool,
    /// Whether that was flash attention.
    pub is_fused: bool,
    /// Why the decode has to fail.
    pub error: Option<String>,
}

impl State {
    /// `hook` on graphs of `ggml`. `all_layers` is whether rows that it treats anywhere may be our kernel's in all layers.
    pub fn new(ggml: &'static Ggml, hook: Box<dyn Hook>, all_layers: bool) -> Self {
        Self {
            ggml,
            hook,
            all_layers,
            caches: Caches::default(),
            rows: Vec::new(),
            read_masks: ReadMasks::default(),
            keys: HashMap::new(),
            softmaxes: HashMap::new(),
            flash: None,
            stands_at: None,
            fused: Fused::default(),
            offers_attention: false,
            is_fused: false,
            error: None,
        }
    }

    /// Says that what the cells hold of `sequence` is of one segment.
    pub fn relabel(&mut self, sequence: u32, segment: Segment) {
        self.caches.relabel(sequence, segment);
    }

    /// Sequence `to` begins with the first `n` tokens of `from`, in the same cells.
    pub fn fork(&mut self, from: u32, to: u32, n: usize) {
        self.caches.fork(from, to, n);
    }

    /// Those of a sequence's tokens at these positions are gone; those behind them have moved up.
    pub fn remove(&mut self, sequence: u32, removed: &Range<usize>) {
        self.caches.remove(sequence, removed);
    }

    /// A sequence is over.
    pub fn forget(&mut self, sequence: u32) {
        self.caches.forget(sequence);
    }

    /// The next decode runs `rows`.
    pub fn begin(&mut self, rows: &[Row]) {
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        self.caches.begin();
        self.read_masks.clear();
        self.keys.clear();
        self.softmaxes.clear();
        self.flash = None;
        self.stands_at = None;
        self.error = None;
        self.hook.begin(&self.rows);
    }

    /// The decode is over: the graph is made as llama.cpp built it again. `ran` says whether it ran to its end.
    pub fn end(&mut self, ran: bool) {
        let done = self.fused.take(self.ggml);
        if self.error.is_some() || !ran {
            return;
        }
        match done {
            Ok(layers) => layers.into_iter().for_each(|done| self.report(&done)),
            Err(message) => self.error = Some(message),
        }
    }

    fn report(&mut self, done: &Done) {
        let n_head = done.outcomes.len() / done.rows.len().max(1);
        for (work, outcomes) in done.rows.iter().zip(done.outcomes.chunks(n_head.max(1))) {
            let row = &self.rows[work.stream * done.n_rows + work.row];
            self.hook.fused_done(done.layer, row, done.place, outcomes);
        }
    }

    /// Asked before the node runs: whether to stop after it.
    fn ask(&mut self, node: Tensor<'_>) -> Result<bool, HookError> {
        if let Some(flash) = self.flash.filter(|flash| node.source(0).is_some_and(|source| source.raw() == *flash)) {
            self.flash = None;
            // SAFETY: a node of the graph that runs now: it is forgotten when the next one begins.
            return unsafe { Tensor::new(self.ggml, flash.as_ptr()) }
                .map_or(Ok(false), |flash| self.enter(flash, node));
        }
        let (operation, known) = (node.operation(), node.operations());
        if operation == known.flash_attn_ext {
            (self.offers_attention, self.is_fused) = (true, true);
            self.flash = self.hook.wants_fused().then_some(node.raw());
        } else if operation == known.set_rows {
            self.follow_write(node)?;
        } else if operation == known.soft_max {
            let Some(layer) = layer_of(node.name(), b"kq_soft_max-") else { return Ok(false) };
            self.softmaxes.insert(layer, node.raw());
            self.offers_attention = true;
            return Ok(self.hook.wants(Point::Attention, layer) || self.wants_mask(node, layer));
        } else if operation == known.mul_mat {
            if let Some(layer) = layer_of(node.name(), b"kq-") {
                self.keys.extend(node.source(0).and_then(|keys| cache_of(keys)).map(|cache| (layer, cache)));
            }
            let layer = layer_of(node.name(), b"kqv-");
            return Ok(layer.is_some_and(|layer| self.hook.wants(Point::HeadOutput, layer)));
        }
        Ok(false)
    }

    /// Has our kernel work on a flash attention where the hook wants it; `view` is what its output is read through. Returns
    /// whether the graph has to stand still behind it.
    fn enter(&mut self, flash: Tensor<'_>, view: Tensor<'_>) -> Result<bool, HookError> {
        // With latent attention the output is read through something that has no name yet.
        let named = || number_in(view.name()).or_else(|| number_in(flash.source(0)?.name()));
        let layer = named().ok_or("flash attention of no known layer")?;
        let [_, _, n_rows, n_streams] = flash.shape();
        self.check_rows(n_rows * n_streams)?;
        let keys = flash.source(1).ok_or("flash attention without keys")?;
        let cache = cache_of(keys.before_cast()).ok_or("attention over keys that are in no cache")?;
        self.keys.insert(layer, cache);
        let mask = flash.source(3).ok_or("attention without a mask")?;
        let in_graph = self.ggml.runs_custom && mask.operation() == mask.operations().none && mask.is_host();
        if in_graph && Flash::new(flash)?.is_host() {
            let rows = self.work_on(flash, layer, false)?;
            return if rows.is_empty() { Ok(false) } else { self.fused.put(flash, view, layer, rows).map(|()| false) };
        }
        if ![Point::Attention, Point::HeadOutput].iter().any(|point| self.hook.wants(*point, layer)) {
            return Ok(false);
        }
        self.fused.check_reach(flash)?;
        if self.hook.takes_all(layer) {
            self.fused.skip(flash);
        }
        self.stands_at = Some((flash.raw(), layer));
        Ok(true)
    }

    /// What the hook wants done to rows of a flash attention.
    fn work_on(&mut self, flash: Tensor<'_>, layer: usize, stands: bool) -> Result<Vec<RowWork>, HookError> {
        let ([_, _, n_rows, _], n_kv) = (flash.shape(), flash.source(1).map_or(0, |keys| keys.shape()[1]));
        let Self { hook, caches, rows, read_masks, keys, all_layers, .. } = self;
        // Where the graph has to stand still for our kernel, llama.cpp's is faster.
        let all_layers = *all_layers && !stands;
        let streams = streams_of(caches, keys, layer)?;
        let mask = Mask::new(flash.source(3).ok_or("attention without a mask")?, read_masks)?;
        let mut all = Vec::new();
        for (stream, rows) in rows.chunks(n_rows).enumerate() {
            let (mask, cells, first_row) = (mask.of_stream(stream), cells_of(streams, rows)?, stream * n_rows);
            let attention = FusedAttention { layer, n_kv, first_row, rows, cells, all_layers, mask };
            all.extend(hook.fused(&attention)?.into_iter().map(|work| RowWork { stream, ..work }));
        }
        Ok(all)
    }

    /// The graph stands still behind a flash attention.
    fn visit_flash(&mut self, flash: Tensor<'_>, layer: usize) -> Result<(), HookError> {
        let rows = self.work_on(flash, layer, true)?;
        if !rows.is_empty() {
            let done = self.fused.run(flash, layer, rows)?;
            self.report(&done);
        }
        Ok(())
    }

    /// Whether the mask has to be kept for the head output that follows: later its memory may hold something else.
    fn wants_mask(&self, softmax: Tensor<'_>, layer: usize) -> bool {
        let unknown = |mask: Tensor<'_>| !self.read_masks.contains_key(&mask.address());
        self.hook.wants(Point::HeadOutput, layer) && softmax.source(1).is_some_and(unknown)
    }

    /// Follows the write of a K cache: its second source holds the cell of every token.
    fn follow_write(&mut self, node: Tensor<'_>) -> Result<(), HookError> {
        let Some(layer) = layer_of(node.owner().name(), b"cache_k_l") else { return Ok(()) };
        let Some(indices) = node.source(1) else { return Ok(()) };
        let (cache, unseen) = self.caches.of_write(layer, indices.address());
        if !unseen {
            return Ok(());
        }
        let indices = indices.i64s()?;
        if indices.len() != self.rows.len() {
            return Err(format!(
                "llama.cpp split a batch of {} tokens and ran {} of them; use a larger -c",
                self.rows.len(),
                indices.len()
            )
            .into());
        }
        let [_, size, n_streams, _] = node.owner().shape();
        let streams = self.caches.streams_mut(cache);
        for (index, row) in indices.iter().zip(&self.rows) {
            streams.write(usize::try_from(*index)?, size, n_streams, row);
        }
        Ok(())
    }

    /// Called with the node's data ready.
    fn visit(&mut self, node: Tensor<'_>) -> Result<(), HookError> {
        if let Some((flash, layer)) = self.stands_at.take() {
            // SAFETY: as in `ask`.
            return unsafe { Tensor::new(self.ggml, flash.as_ptr()) }
                .map_or(Ok(()), |flash| self.visit_flash(flash, layer));
        }
        if let Some(layer) = layer_of(node.name(), b"kq_soft_max-") {
            if let Some(mask) = node.source(1).filter(|_| self.wants_mask(node, layer)) {
                Mask::keep(mask, &mut self.read_masks);
            }
            match self.hook.wants(Point::Attention, layer) {
                true => self.visit_attention(node, layer),
                false => Ok(()),
            }
        } else if let Some(layer) = layer_of(node.name(), b"kqv-") {
            self.visit_head_output(node, layer)
        } else {
            Ok(())
        }
    }

    fn visit_attention(&mut self, node: Tensor<'_>, layer: usize) -> Result<(), HookError> {
        let [n_kv, n_rows, n_head, n_streams] = node.shape();
        self.check_rows(n_rows * n_streams)?;
        if self.attention_on_device(node, layer)? {
            return Ok(());
        }
        let Self { hook, caches, rows, read_masks, keys, .. } = self;
        let streams = streams_of(caches, keys, layer)?;
        let mask = Mask::new(node.source(1).ok_or("attention without a mask")?, read_masks)?;
        let (sinks, read_back) = (node.source(2).is_some(), !node.is_host());
        node.with_f32(|probs| {
            for (stream, (probs, rows)) in probs.chunks_mut(n_kv * n_rows * n_head).zip(rows.chunks(n_rows)).enumerate()
            {
                let (mask, cells) = (mask.of_stream(stream), cells_of(streams, rows)?);
                let first_row = stream * n_rows;
                hook.attention(Attention {
                    layer,
                    n_kv,
                    n_head,
                    probs,
                    sinks,
                    read_back,
                    first_row,
                    rows,
                    cells,
                    mask,
                })?;
            }
            Ok(())
        })?
    }

    /// Offers the hook the data where it is. Returns whether it took it.
    fn attention_on_device(&mut self, node: Tensor<'_>, layer: usize) -> Result<bool, HookError> {
        let [n_kv, n_rows, n_head, _] = node.shape();
        let mask = node.source(1).ok_or("attention without a mask")?.address();
        let streams = streams_of(&self.caches, &self.keys, layer)?;
        for (stream, rows) in self.rows.chunks(n_rows).enumerate() {
            let Some((place, data)) = attention_on_device(node, stream)? else { return Ok(false) };
            let (first_row, cells, mask_key) = (stream * n_rows, cells_of(streams, rows)?, (mask, stream));
            let attention = DeviceAttention { layer, n_kv, n_head, place, mask_key, data, first_row, rows, cells };
            if !self.hook.attention_on_device(&attention)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn visit_head_output(&mut self, node: Tensor<'_>, layer: usize) -> Result<(), HookError> {
        let [head_dim, n_rows, n_head, n_streams] = node.shape();
        self.check_rows(n_rows * n_streams)?;
        let softmax = *self.softmaxes.get(&layer).ok_or("head output without attention")?;
        // SAFETY: a node of the graph that runs now: they are forgotten when the next one begins.
        let softmax = unsafe { Tensor::new(self.ggml, softmax.as_ptr()) }.ok_or("head output without attention")?;
        let mask = Mask::kept(softmax.source(1).ok_or("attention without a mask")?, &self.read_masks)?;
        let n_kv = softmax.shape()[0];
        if self.head_output_on_device(node, n_kv, &mask, layer)? {
            return Ok(());
        }
        let Self { hook, caches, rows, keys, .. } = self;
        let streams = streams_of(caches, keys, layer)?;
        let values = Values::new(node.source(0).ok_or("head output without values")?)?;
        let read_back = !node.is_host();
        node.with_f32(|output| {
            let outputs = output.chunks_mut(head_dim * n_rows * n_head);
            for (stream, (output, rows)) in outputs.zip(rows.chunks(n_rows)).enumerate() {
                let (mask, cells) = (mask.of_stream(stream), cells_of(streams, rows)?);
                let (values, first_row) = (values.of_stream(stream), stream * n_rows);
                hook.head_output(HeadOutput {
                    layer,
                    n_kv,
                    head_dim,
                    n_head,
                    output,
                    read_back,
                    values,
                    first_row,
                    rows,
                    cells,
                    mask,
                })?;
            }
            Ok(())
        })?
    }

    /// As `attention_on_device`.
    fn head_output_on_device(
        &mut self,
        node: Tensor<'_>,
        n_kv: usize,
        mask: &Mask<'_>,
        layer: usize,
    ) -> Result<bool, HookError> {
        let [_, n_rows, n_head, _] = node.shape();
        let streams = streams_of(&self.caches, &self.keys, layer)?;
        for (stream, rows) in self.rows.chunks(n_rows).enumerate() {
            let Some((place, data)) = head_output_on_device(node, stream)? else { return Ok(false) };
            let (first_row, cells, mask) = (stream * n_rows, cells_of(streams, rows)?, mask.of_stream(stream));
            let output = DeviceHeadOutput { layer, n_kv, n_head, place, data, first_row, rows, cells, mask };
            if !self.hook.head_output_on_device(&output)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_rows(&self, found: usize) -> Result<(), HookError> {
        match found == self.rows.len() {
            true => Ok(()),
            false => Err(format!("expected attention of {} tokens, found {found}", self.rows.len()).into()),
        }
    }
}

/// The stream that rows of one stream attend over.
fn cells_of<'c>(streams: &'c Streams, rows: &[Row]) -> Result<&'c Cells, HookError> {
    let cells = rows.first().and_then(|row| streams.of_sequence(row.sequence));
    cells.ok_or_else(|| "attention of a sequence that has no cells".into())
}

/// The cache that `layer` attends over, which need not be the one it writes.
fn streams_of<'c>(caches: &'c Caches, keys: &HashMap<usize, usize>, layer: usize) -> Result<&'c Streams, HookError> {
    let cache = keys.get(&layer).ok_or("attention over keys that are in no cache")?;
    caches.of_layer(*cache).ok_or_else(|| "attention over a cache that was never written".into())
}

/// The number of the K cache that `keys` are a view of, or a copy of such a view: where a graph goes from one device to
/// the next, llama.cpp's scheduler copies, and names the copy `device#name#number`.
pub fn cache_of(keys: Tensor<'_>) -> Option<usize> {
    let name = std::str::from_utf8(keys.owner().name()).ok()?;
    let (_, number) = name.split_once("cache_k_l")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The number in a name such as `kqv_out-12` or `Qcur-12 (view)`.
fn number_in(name: &[u8]) -> Option<usize> {
    let (_, number) = std::str::from_utf8(name).ok()?.split_once('-')?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The layer in a name such as `kqv-12`, if the name is `prefix` and a number.
pub fn layer_of(name: &[u8], prefix: &[u8]) -> Option<usize> {
    std::str::from_utf8(name.strip_prefix(prefix)?).ok()?.parse().ok()
}

/// `ggml_backend_sched_eval_callback`: with `ask` it is told of a node before it runs, without of its result.
///
/// # Safety
/// `user` is the [`State`] of the context that runs the graph, and nothing else uses it during the decode.
pub unsafe extern "C" fn on_node(node: *mut ggml_sys::Tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let state = unsafe { &mut *user.cast::<State>() };
    if state.error.is_some() {
        // Every further node stops at once, so that the rest of the graph is over soon.
        return ask;
    }
    // SAFETY: the scheduler passes a node of the running graph.
    let Some(tensor) = (unsafe { Tensor::new(state.ggml, node) }) else { return !ask };
    let outcome = catch_unwind(AssertUnwindSafe(|| match ask {
        true => state.ask(tensor),
        false => state.visit(tensor).map(|()| true),
    }));
    match outcome {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            state.error = Some(error.to_string());
            ask
        }
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
            state.error = Some(format!("panic: {}", message.unwrap_or_default()));
            ask
        }
    }
}
