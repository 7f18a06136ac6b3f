//! Views of ggml tensors while a graph is stopped at them.

use std::borrow::Cow;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;

use half::{bf16, f16};
use llama_cpp_sys_2 as sys;

use super::hook::HookError;

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

    fn type_name(&self) -> String {
        // SAFETY: ggml returns a static NUL-terminated string for every type of a valid tensor.
        unsafe { CStr::from_ptr(sys::ggml_type_name(self.get().type_)) }.to_string_lossy().into_owned()
    }

    pub fn is_host(&self) -> bool {
        let buffer = self.owner().get().buffer;
        // SAFETY: a non-null buffer of an allocated tensor is valid.
        !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
    }

    fn n_bytes(&self) -> usize {
        // SAFETY: reads the header of a valid tensor.
        unsafe { sys::ggml_nbytes(self.raw.as_ptr()) }
    }

    /// The bytes from the first element to the last; borrowed where the tensor lives in host memory.
    fn bytes(&self) -> Cow<'g, [u8]> {
        let len = self.n_bytes();
        if self.is_host() {
            // SAFETY: the data of an allocated host tensor is `ggml_nbytes` long, and the graph is stopped.
            return Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.get().data.cast::<u8>(), len) });
        }
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

fn is_float(kind: sys::ggml_type) -> bool {
    matches!(kind, sys::GGML_TYPE_F32 | sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16)
}

/// The attention mask of a micro-batch: which cells each row may see.
#[derive(Clone)]
pub struct Mask<'g> {
    bytes: Cow<'g, [u8]>,
    kind: sys::ggml_type,
    row_stride: usize,
    stream_stride: usize,
    stream: usize,
    address: usize,
}

impl<'g> Mask<'g> {
    pub(super) fn new(tensor: Tensor<'g>) -> Result<Self, HookError> {
        let raw = tensor.get();
        if !is_float(raw.type_) {
            return Err(format!("expected an attention mask of floats, found {}", tensor.type_name()).into());
        }
        let [_, row_stride, _, stream_stride] = raw.nb;
        let address = tensor.address();
        Ok(Self { bytes: tensor.bytes(), kind: raw.type_, row_stride, stream_stride, stream: 0, address })
    }

    /// The mask of one stream.
    pub(super) fn of_stream(&self, stream: usize) -> Self {
        Self { stream, ..self.clone() }
    }

    pub(super) fn visible(&self, row: usize, cell: usize) -> bool {
        let width = if self.kind == sys::GGML_TYPE_F32 { 4 } else { 2 };
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
    bytes: Cow<'g, [u8]>,
    kind: sys::ggml_type,
    /// Byte strides of cell, dimension, head and stream.
    strides: [usize; 4],
    stream: usize,
    head_dim: usize,
    n_head_kv: usize,
}

impl<'g> Values<'g> {
    /// `tensor` is `[n_kv, head_dim, n_head_kv, n_streams]`.
    pub(super) fn new(tensor: Tensor<'g>) -> Result<Self, HookError> {
        let raw = tensor.get();
        if !is_float(raw.type_) {
            return Err(format!("expected a V cache of floats, found {}; use -ctv f16", tensor.type_name()).into());
        }
        let [_, head_dim, n_head_kv, _] = tensor.shape();
        Ok(Self { bytes: tensor.bytes(), kind: raw.type_, strides: raw.nb, stream: 0, head_dim, n_head_kv })
    }

    /// The values of one stream.
    pub(super) fn of_stream(&self, stream: usize) -> Self {
        Self { stream, ..self.clone() }
    }

    /// Key-value heads.
    pub fn n_head_kv(&self) -> usize {
        self.n_head_kv
    }

    /// Adds the value of `cell` in key-value head `head` to `sum`, `[head_dim]`.
    pub fn add_to(&self, cell: usize, head: usize, sum: &mut [f32]) {
        let width = if self.kind == sys::GGML_TYPE_F32 { 4 } else { 2 };
        let [of_cell, of_dim, of_head, of_stream] = self.strides;
        let start = self.stream * of_stream + head * of_head + cell * of_cell;
        for (dim, sum) in sum.iter_mut().enumerate().take(self.head_dim) {
            let at = start + dim * of_dim;
            *sum += element(self.kind, &self.bytes[at..at + width]);
        }
    }
}
