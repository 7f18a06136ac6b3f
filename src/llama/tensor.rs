//! Views of ggml tensors while a graph is stopped at them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use half::{bf16, f16};
use llama_cpp_sys_2 as sys;

use crate::kernels::attend::{Cache, Floats, Kind, Layer};
use crate::kernels::{
    AttentionData, FlashData, HeadOutputData, Place, SfAttention, SfCache, SfFlash, SfFlashData, SfHeadOutput,
};

use super::error::HookError;

/// A tensor of the graph that is stopped right now.
#[derive(Clone, Copy)]
pub(super) struct Tensor<'g> {
    raw: NonNull<sys::ggml_tensor>,
    graph: PhantomData<&'g sys::ggml_tensor>,
}

impl<'g> Tensor<'g> {
    /// # Safety
    /// `raw` is null or points to a tensor that outlives `'g`, whose shape and links nothing changes meanwhile.
    pub unsafe fn new(raw: *mut sys::ggml_tensor) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, graph: PhantomData })
    }

    fn get(&self) -> &'g sys::ggml_tensor {
        // SAFETY: by the contract of `new` the tensor lives for 'g and its header is not written, but for its operation,
        // by the thread that the graph stopped in, which holds no reference then.
        unsafe { &*self.raw.as_ptr() }
    }

    pub fn raw(&self) -> NonNull<sys::ggml_tensor> {
        self.raw
    }

    pub fn address(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    pub fn name(&self) -> &'g [u8] {
        // SAFETY: ggml keeps names NUL-terminated inside their 64 bytes.
        unsafe { CStr::from_ptr(self.get().name.as_ptr()) }.to_bytes()
    }

    pub fn op(&self) -> sys::ggml_op {
        self.get().op
    }

    /// Elements per dimension, the fastest first.
    pub fn shape(&self) -> [usize; 4] {
        self.get().ne.map(|n| n as usize)
    }

    pub fn source(&self, index: usize) -> Option<Tensor<'g>> {
        // SAFETY: sources of a node in a running graph live as long as the graph.
        unsafe { Tensor::new(self.get().src[index]) }
    }

    /// The tensor that owns the memory.
    pub fn owner(&self) -> Tensor<'g> {
        // SAFETY: a view's owner outlives the view.
        unsafe { Tensor::new(self.get().view_src) }.unwrap_or(*self)
    }

    /// What a cast makes 16-bit floats of, where it is one: a cache of 32-bit floats.
    pub fn before_cast(self) -> Self {
        self.source(0).filter(|_| self.op() == sys::GGML_OP_CPY).unwrap_or(self)
    }

    /// It as K or V of `dim` elements a cell and head: `[dim, n_kv, n_head_kv, n_streams]`.
    fn cache(&self, dim: usize) -> Result<Cache, HookError> {
        let raw = self.get();
        let kind = match raw.type_ {
            sys::GGML_TYPE_F32 => Kind::F32,
            sys::GGML_TYPE_F16 => Kind::F16,
            sys::GGML_TYPE_BF16 => Kind::Bf16,
            sys::GGML_TYPE_Q8_0 => Kind::Q8_0,
            sys::GGML_TYPE_Q4_0 => Kind::Q4_0,
            other => {
                // SAFETY: ggml has traits of every type of a valid tensor, for as long as the program runs.
                let to_float = unsafe { (*sys::ggml_get_type_traits(other)).to_float };
                Kind::Other(to_float.ok_or_else(|| format!("no way to read a cache of {}", self.type_name()))?)
            }
        };
        let [_, cell, head, stream] = raw.nb;
        Ok(Cache { data: raw.data.cast_const().cast(), kind, dim, cell, head, stream })
    }

    fn type_name(&self) -> String {
        // SAFETY: ggml returns a static NUL-terminated string for every type of a valid tensor.
        unsafe { CStr::from_ptr(sys::ggml_type_name(self.get().type_)) }.to_string_lossy().into_owned()
    }

    pub fn is_host(&self) -> bool {
        let buffer = self.owner().get().buffer;
        // SAFETY: a non-null buffer of an allocated tensor is valid.
        !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
    }

    /// The device whose memory holds it at the address in its header; `None` in host memory, and where a backend's
    /// addresses are not the device's own.
    pub fn place(&self) -> Option<Place> {
        let buffer = self.owner().get().buffer;
        if buffer.is_null() || self.is_host() {
            return None;
        }
        // SAFETY: a non-null buffer of an allocated tensor is valid, and so is all that hangs on it. Backends are never
        // unloaded, so their names stay.
        unsafe {
            let kind = sys::ggml_backend_buffer_get_type(buffer);
            // Metal counts private memory from an address of its own.
            if CStr::from_ptr(sys::ggml_backend_buft_name(kind)).to_bytes().ends_with(b"_Private") {
                return None;
            }
            let device = NonNull::new(sys::ggml_backend_buft_get_device(kind))?.as_ptr();
            let backend = NonNull::new(sys::ggml_backend_dev_backend_reg(device))?.as_ptr();
            let n_devices = sys::ggml_backend_reg_dev_count(backend);
            let ordinal = (0..n_devices).position(|i| sys::ggml_backend_reg_dev_get(backend, i) == device)?;
            let backend = CStr::from_ptr(sys::ggml_backend_reg_name(backend)).to_str().ok()?;
            Some(Place { backend, ordinal: ordinal as u32 })
        }
    }

    fn n_bytes(&self) -> usize {
        // SAFETY: reads the header of a valid tensor.
        unsafe { sys::ggml_nbytes(self.raw.as_ptr()) }
    }

    /// The bytes from the first element to the last, where they are in host memory.
    fn host_bytes(&self) -> Option<&'g [u8]> {
        // SAFETY: the data of an allocated host tensor is `ggml_nbytes` long, and the graph is stopped.
        let bytes = || unsafe { std::slice::from_raw_parts(self.get().data.cast::<u8>(), self.n_bytes()) };
        self.is_host().then(bytes)
    }

    /// The same from anywhere.
    fn bytes(&self) -> Cow<'g, [u8]> {
        if let Some(bytes) = self.host_bytes() {
            return Cow::Borrowed(bytes);
        }
        let len = self.n_bytes();
        let mut bytes = vec![0u8; len];
        // SAFETY: `bytes` is as long as the tensor.
        unsafe { sys::ggml_backend_tensor_get(self.raw.as_ptr(), bytes.as_mut_ptr().cast(), 0, len) };
        Cow::Owned(bytes)
    }

    /// The elements of a one-dimensional tensor of 64-bit integers.
    pub fn i64s(&self) -> Result<Vec<i64>, HookError> {
        if self.get().type_ != sys::GGML_TYPE_I64 {
            return Err(format!("expected 64-bit cell indices, found {}", self.type_name()).into());
        }
        let bytes = self.bytes();
        Ok(bytes.chunks_exact(8).map(|b| i64::from_ne_bytes(b.try_into().expect("chunks of 8"))).collect())
    }

    /// Whether its elements are F32.
    pub fn check_f32(&self) -> Result<(), HookError> {
        let name = || String::from_utf8_lossy(self.name()).into_owned();
        match self.get().type_ {
            sys::GGML_TYPE_F32 => Ok(()),
            _ => Err(format!("expected {} as f32, found {}", name(), self.type_name()).into()),
        }
    }

    /// Whether its elements are F32 and lie side by side.
    pub fn check_contiguous_f32(&self) -> Result<(), HookError> {
        self.check_f32()?;
        // SAFETY: reads the header of a valid tensor.
        match unsafe { sys::ggml_is_contiguous(self.raw.as_ptr()) } {
            true => Ok(()),
            false => Err(format!("expected {} in one piece", String::from_utf8_lossy(self.name())).into()),
        }
    }

    /// Runs `change` on the elements of a contiguous F32 tensor. In host memory it works in place; elsewhere the data
    /// is read, changed and written back.
    pub fn with_f32<R>(&self, change: impl FnOnce(&mut [f32]) -> R) -> Result<R, HookError> {
        self.check_contiguous_f32()?;
        let len = self.n_bytes() / size_of::<f32>();
        if self.is_host() {
            // SAFETY: allocated, F32, contiguous, host; the graph is stopped, so nothing else reads or writes it.
            return Ok(change(unsafe { std::slice::from_raw_parts_mut(self.get().data.cast::<f32>(), len) }));
        }
        let mut data = vec![0f32; len];
        let (raw, bytes) = (self.raw.as_ptr(), self.n_bytes());
        // SAFETY: `data` is as long as the tensor.
        unsafe { sys::ggml_backend_tensor_get(raw, data.as_mut_ptr().cast(), 0, bytes) };
        let result = change(&mut data);
        // SAFETY: as above.
        unsafe { sys::ggml_backend_tensor_set(raw, data.as_ptr().cast(), 0, bytes) };
        Ok(result)
    }
}

/// Decodes one element.
fn element(kind: sys::ggml_type, bytes: &[u8]) -> f32 {
    match kind {
        sys::GGML_TYPE_F32 => f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        sys::GGML_TYPE_F16 => f16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => bf16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Bytes of an element that is a float.
fn width(kind: sys::ggml_type) -> usize {
    if kind == sys::GGML_TYPE_F32 { 4 } else { 2 }
}

fn is_float(kind: sys::ggml_type) -> bool {
    matches!(kind, sys::GGML_TYPE_F32 | sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16)
}

/// Bytes in host memory, or read from elsewhere.
#[derive(Clone)]
enum Bytes<'g> {
    Host(&'g [u8]),
    Read(Arc<[u8]>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Host(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}

/// Masks that were read for the running graph, by the address of their tensors: layers share them.
pub(super) type ReadMasks = HashMap<usize, Arc<[u8]>>;

/// The attention mask of a micro-batch: which cells each row may see.
#[derive(Clone)]
pub struct Mask<'g> {
    bytes: Bytes<'g>,
    kind: sys::ggml_type,
    row_stride: usize,
    stream_stride: usize,
    stream: usize,
    address: usize,
}

impl<'g> Mask<'g> {
    pub(super) fn new(tensor: Tensor<'g>, read: &mut ReadMasks) -> Result<Self, HookError> {
        let raw = tensor.get();
        if !is_float(raw.type_) {
            return Err(format!("expected an attention mask of floats, found {}", tensor.type_name()).into());
        }
        let [_, row_stride, _, stream_stride] = raw.nb;
        let address = tensor.address();
        let bytes = match tensor.host_bytes() {
            Some(bytes) => Bytes::Host(bytes),
            None => Bytes::Read(read.entry(address).or_insert_with(|| tensor.bytes().into()).clone()),
        };
        Ok(Self { bytes, kind: raw.type_, row_stride, stream_stride, stream: 0, address })
    }

    /// Reads a mask while its softmax still needs it: afterwards its memory may hold something else.
    pub(super) fn keep(tensor: Tensor<'g>, read: &mut ReadMasks) {
        read.entry(tensor.address()).or_insert_with(|| tensor.bytes().into());
    }

    /// A mask that was kept.
    pub(super) fn kept(tensor: Tensor<'g>, read: &ReadMasks) -> Result<Self, HookError> {
        let (raw, address) = (tensor.get(), tensor.address());
        let bytes = Bytes::Read(read.get(&address).ok_or("attention whose mask was not kept")?.clone());
        let [_, row_stride, _, stream_stride] = raw.nb;
        Ok(Self { bytes, kind: raw.type_, row_stride, stream_stride, stream: 0, address })
    }

    /// The mask of one stream.
    pub(super) fn of_stream(&self, stream: usize) -> Self {
        Self { stream, ..self.clone() }
    }

    /// What the mask adds to the scores of a row, cell by cell; minus infinity where it hides.
    pub(super) fn row(&self, row: usize, n_kv: usize) -> impl Iterator<Item = f32> {
        let (kind, width) = (self.kind, width(self.kind));
        let start = self.stream * self.stream_stride + row * self.row_stride;
        let bytes = &self.bytes[start..start + n_kv * width];
        // Most are zero, in which no byte is set.
        bytes.chunks_exact(width).map(move |b| if b.iter().all(|b| *b == 0) { 0.0 } else { element(kind, b) })
    }

    pub(super) fn visible(&self, row: usize, cell: usize) -> bool {
        let width = width(self.kind);
        let at = self.stream * self.stream_stride + row * self.row_stride + cell * width;
        element(self.kind, &self.bytes[at..at + width]) > f32::NEG_INFINITY
    }

    pub(super) fn key(&self) -> (usize, usize) {
        (self.address, self.stream)
    }
}

/// The V cache of one layer.
#[derive(Clone)]
pub struct Values<'g> {
    tensor: Tensor<'g>,
    stream: usize,
    head_dim: usize,
    n_head_kv: usize,
    /// Cells that were read from elsewhere, `[n_head_kv][head_dim]`.
    read: RefCell<HashMap<usize, Vec<f32>>>,
}

impl<'g> Values<'g> {
    /// `tensor` is `[n_kv, head_dim, n_head_kv, n_streams]`.
    pub(super) fn new(tensor: Tensor<'g>) -> Result<Self, HookError> {
        if !is_float(tensor.get().type_) {
            return Err(format!("expected a V cache of floats, found {}; use -ctv f16", tensor.type_name()).into());
        }
        let [_, head_dim, n_head_kv, _] = tensor.shape();
        Ok(Self { tensor, stream: 0, head_dim, n_head_kv, read: RefCell::default() })
    }

    /// The values of one stream.
    pub(super) fn of_stream(&self, stream: usize) -> Self {
        Self { stream, read: RefCell::default(), ..self.clone() }
    }

    /// Key-value heads.
    pub fn n_head_kv(&self) -> usize {
        self.n_head_kv
    }

    /// Adds the value of `cell` in key-value head `head` to `sum`, `[head_dim]`.
    pub fn add_to(&self, cell: usize, head: usize, sum: &mut [f32]) {
        if let Some(bytes) = self.tensor.host_bytes() {
            self.decode(&bytes[self.start(cell, head)..], self.tensor.get().nb[1]).zip(sum).for_each(|(v, s)| *s += v);
            return;
        }
        let mut read = self.read.borrow_mut();
        let value = read.entry(cell).or_insert_with(|| (0..self.n_head_kv).flat_map(|h| self.fetch(cell, h)).collect());
        value[head * self.head_dim..].iter().zip(sum).for_each(|(v, s)| *s += v);
    }

    /// The byte that a value begins at.
    fn start(&self, cell: usize, head: usize) -> usize {
        let [of_cell, _, of_head, of_stream] = self.tensor.get().nb;
        self.stream * of_stream + head * of_head + cell * of_cell
    }

    /// The dimensions of a value, `stride` bytes apart.
    fn decode<'b>(&self, bytes: &'b [u8], stride: usize) -> impl Iterator<Item = f32> + use<'b> {
        let kind = self.tensor.get().type_;
        (0..self.head_dim).map(move |dim| element(kind, &bytes[dim * stride..]))
    }

    /// Reads one value and nothing beside it: a cache may be much larger than what is asked of it.
    fn fetch(&self, cell: usize, head: usize) -> Vec<f32> {
        let raw = self.tensor.get();
        let width = width(raw.type_);
        let mut bytes = vec![0u8; self.head_dim * width];
        // SAFETY: `head_dim` pieces of `width` bytes fit `bytes`; they lie inside the tensor, whose strides these are.
        unsafe {
            let (to, start) = (bytes.as_mut_ptr().cast(), self.start(cell, head));
            sys::ggml_backend_tensor_get_2d(&raw const *raw, to, start, width, self.head_dim, raw.nb[1], width);
        }
        self.decode(&bytes, width).collect()
    }
}

/// Flash attention, and what it is computed from.
pub(super) struct Flash<'g> {
    node: Tensor<'g>,
    queries: Tensor<'g>,
    keys: Tensor<'g>,
    values: Tensor<'g>,
    sinks: Option<Tensor<'g>>,
    n_head: usize,
    n_head_kv: usize,
}

impl<'g> Flash<'g> {
    pub fn new(node: Tensor<'g>) -> Result<Self, HookError> {
        let source = |index: usize| node.source(index).ok_or("flash attention without queries, keys or values");
        let (queries, keys, values) = (source(0)?, source(1)?.before_cast(), source(2)?.before_cast());
        queries.check_f32()?;
        node.check_contiguous_f32()?;
        let ([dim, _, n_head, _], [_, _, n_head_kv, _]) = (queries.shape(), values.shape());
        if keys.shape()[0] != dim || keys.shape()[2] != n_head_kv || n_head % n_head_kv != 0 {
            return Err("flash attention whose keys and values have different heads".into());
        }
        Ok(Self { node, queries, keys, values, sinks: node.source(4), n_head, n_head_kv })
    }

    fn tensors(&self) -> impl Iterator<Item = Tensor<'g>> {
        [Some(self.node), Some(self.queries), Some(self.keys), Some(self.values), self.sinks].into_iter().flatten()
    }

    /// Whether all of it is in host memory.
    pub fn is_host(&self) -> bool {
        self.tensors().all(|tensor| tensor.is_host())
    }

    /// The device that has all of it in its memory; `None` where it lies apart or elsewhere.
    pub fn place(&self) -> Option<Place> {
        self.node.place().filter(|place| self.tensors().all(|tensor| tensor.place() == Some(*place)))
    }

    fn parameter(&self, index: usize) -> f32 {
        f32::from_bits(self.node.get().op_params[index].cast_unsigned())
    }

    /// What heads multiply the mask's bias by; none where it only hides.
    pub fn slopes(&self) -> Vec<f32> {
        slopes(self.n_head, self.parameter(1))
    }

    /// What our kernel needs to know of it in host memory.
    pub fn layer(&self) -> Result<Layer, HookError> {
        let (q, n) = (self.queries.get(), self.node.get());
        let floats = |bytes: usize| bytes / size_of::<f32>();
        Ok(Layer {
            queries: Floats {
                data: q.data.cast_const().cast(),
                row: floats(q.nb[1]),
                head: floats(q.nb[2]),
                stream: floats(q.nb[3]),
            },
            keys: self.keys.cache(self.keys.shape()[0])?,
            values: self.values.cache(self.values.shape()[0])?,
            output: Floats {
                data: n.data.cast(),
                row: floats(n.nb[2]),
                head: floats(n.nb[1]),
                stream: floats(n.nb[3]),
            },
            sinks: self.sinks.map_or(std::ptr::null(), |sinks| sinks.get().data.cast_const().cast()),
            n_head: self.n_head,
            n_head_kv: self.n_head_kv,
            scale: self.parameter(0),
            softcap: self.parameter(2),
            slopes: self.slopes(),
        })
    }

    /// What the kernels of its [`Flash::place`] need to know of one stream; `None` where they have no room for it.
    pub fn on_device(&self, stream: usize) -> Option<FlashData<'g>> {
        let (q, k, v, n) = (self.queries.get(), self.keys.get(), self.values.get(), self.node.get());
        let floats = |bytes: usize| (bytes / size_of::<f32>()) as u64;
        let cache = |tensor: &sys::ggml_tensor| SfCache {
            cell_stride: tensor.nb[1] as u64,
            head_stride: tensor.nb[2] as u64,
            type_: tensor.type_,
            dim: tensor.ne[0] as u32,
        };
        let args = SfFlash {
            query_row: floats(q.nb[1]),
            query_head: floats(q.nb[2]),
            output_row: floats(n.nb[2]),
            output_head: floats(n.nb[1]),
            keys: cache(k),
            values: cache(v),
            n_kv: k.ne[1] as u32,
            n_rows: q.ne[1] as u32,
            n_head: self.n_head as u32,
            n_head_kv: self.n_head_kv as u32,
            scale: self.parameter(0),
            softcap: self.parameter(2),
        };
        let at = |tensor: &sys::ggml_tensor| tensor.data.cast::<u8>().wrapping_add(stream * tensor.nb[3]);
        let data = SfFlashData {
            queries: at(q).cast_const().cast(),
            keys: at(k).cast_const(),
            values: at(v).cast_const(),
            sinks: self.sinks.map_or(std::ptr::null(), |sinks| sinks.get().data.cast_const().cast()),
            slopes: std::ptr::null(),
            output: at(n).cast(),
        };
        // SAFETY: all of it is in the memory of `place`, with these shapes, and the graph stands still.
        unsafe { FlashData::new(args, data) }
    }
}

/// What heads multiply the mask by (ALiBi), as ggml does it; none without a bias.
fn slopes(n_head: usize, max_bias: f32) -> Vec<f32> {
    if max_bias <= 0.0 {
        return Vec::new();
    }
    let below = 1usize << n_head.ilog2();
    let (m0, m1) = (2f32.powf(-max_bias / below as f32), 2f32.powf(-max_bias / 2.0 / below as f32));
    let slope = |head: usize| match head.checked_sub(below) {
        None => m0.powf((head + 1) as f32),
        Some(past) => m1.powf((2 * past + 1) as f32),
    };
    (0..n_head).map(slope).collect()
}

/// The probabilities of one stream that `softmax` holds, in the memory of a device that has the mask too; `None` where no
/// kernel could work on them.
pub(super) fn attention_on_device<'g>(
    softmax: Tensor<'g>,
    stream: usize,
) -> Result<Option<(Place, AttentionData<'g>)>, HookError> {
    softmax.check_contiguous_f32()?;
    let mask = softmax.source(1).ok_or("attention without a mask")?;
    let known = matches!(mask.get().type_, sys::GGML_TYPE_F32 | sys::GGML_TYPE_F16);
    let Some(place) = softmax.place().filter(|place| known && mask.place() == Some(*place)) else { return Ok(None) };
    let [n_kv, n_rows, n_head, _] = softmax.shape();
    let sinks = softmax.source(2).is_some();
    let m = mask.get();
    let args = SfAttention {
        mask_stride: m.nb[1] as u64,
        mask_type: m.type_,
        n_kv: n_kv as u32,
        n_rows: n_rows as u32,
        n_head: n_head as u32,
    };
    let probs = softmax.get().data.cast::<f32>().wrapping_add(stream * n_kv * n_rows * n_head);
    let mask = m.data.cast_const().cast::<u8>().wrapping_add(stream * m.nb[3]);
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
    let v = values.get();
    // Another type is refused where the values are read back.
    let known = is_float(v.type_);
    let Some(place) = node.place().filter(|place| known && values.place() == Some(*place)) else { return Ok(None) };
    let [head_dim, n_rows, n_head, _] = node.shape();
    let [n_kv, _, n_head_kv, _] = values.shape();
    let args = SfHeadOutput {
        output_row: head_dim as u64,
        output_head: (head_dim * n_rows) as u64,
        cell_stride: v.nb[0] as u64,
        dim_stride: v.nb[1] as u64,
        head_stride: v.nb[2] as u64,
        value_type: v.type_,
        head_dim: head_dim as u32,
        n_kv: n_kv as u32,
        n_rows: n_rows as u32,
        n_head: n_head as u32,
        n_head_kv: n_head_kv as u32,
    };
    let output = node.get().data.cast::<f32>().wrapping_add(stream * head_dim * n_rows * n_head);
    let values = v.data.cast_const().cast::<u8>().wrapping_add(stream * v.nb[3]);
    // SAFETY: both tensors are in the memory of `place`, with these shapes, and the graph stands still.
    Ok(Some((place, unsafe { HeadOutputData::new(args, output, values) })))
}
