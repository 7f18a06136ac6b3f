//! Views of ggml tensors while a graph is stopped at them.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;

use ggml_sys::{Ggml, Operations, types};
use half::{bf16, f16};

use crate::kernels::Place;
use crate::kernels::attend::{Cache, Kind};

use super::HookError;

/// Sources that a tensor has room for.
const SOURCES: usize = 10;

/// Parameters of an operation.
pub type Parameters = [i32; 16];

/// A tensor of the graph that is stopped right now.
#[derive(Clone, Copy)]
pub struct Tensor<'g> {
    ggml: &'static Ggml,
    raw: NonNull<ggml_sys::Tensor>,
    graph: PhantomData<&'g ggml_sys::Tensor>,
}

impl<'g> Tensor<'g> {
    /// # Safety
    /// `raw` is null or points to a tensor of `ggml` that outlives `'g`, whose shape and links nothing changes meanwhile.
    pub unsafe fn new(ggml: &'static Ggml, raw: *mut ggml_sys::Tensor) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { ggml, raw, graph: PhantomData })
    }

    /// A field, by where the layout has it.
    fn field<T: Copy>(&self, at: usize) -> T {
        // SAFETY: by the contract of `new` the tensor lives for 'g and its header is not written, but for its operation,
        // by the thread that the graph stopped in; there is such a field.
        unsafe { self.raw.as_ptr().cast::<u8>().add(at).cast::<T>().read_unaligned() }
    }

    /// Writes a field.
    ///
    /// # Safety
    /// It is a node of a graph that this thread is about to run, or has run; nothing else looks at it now.
    unsafe fn set_field<T>(&self, at: usize, value: T) {
        // SAFETY: by this function's contract.
        unsafe { self.raw.as_ptr().cast::<u8>().add(at).cast::<T>().write_unaligned(value) };
    }

    /// As ggml has it.
    pub fn raw(&self) -> NonNull<ggml_sys::Tensor> {
        self.raw
    }

    /// The numbers of operations where it is from.
    pub fn operations(&self) -> &'static Operations {
        &self.ggml.operations
    }

    /// What tells it from other tensors of the graph.
    pub fn address(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    /// The type of its elements.
    pub fn kind(&self) -> u32 {
        self.field(self.ggml.layout.type_)
    }

    /// Bytes from one element of each dimension to the next.
    pub fn strides(&self) -> [usize; 4] {
        self.field(self.ggml.layout.nb)
    }

    /// Where its first element is.
    pub fn data(&self) -> *mut u8 {
        self.field(self.ggml.layout.data)
    }

    fn buffer(&self) -> *mut c_void {
        self.field(self.ggml.layout.buffer)
    }

    /// Parameters of its operation.
    pub fn parameters(&self) -> Parameters {
        self.field(self.ggml.layout.op_params)
    }

    /// # Safety
    /// As [`Tensor::set_operation`].
    pub unsafe fn set_parameters(&self, parameters: Parameters) {
        // SAFETY: by this function's contract.
        unsafe { self.set_field(self.ggml.layout.op_params, parameters) };
    }

    /// # Safety
    /// It is a node of a graph that this thread is about to run, or has run; nothing else looks at it now.
    pub unsafe fn set_operation(&self, operation: u32) {
        // SAFETY: by this function's contract.
        unsafe { self.set_field(self.ggml.layout.op, operation) };
    }

    /// Its name.
    pub fn name(&self) -> &'g [u8] {
        // SAFETY: ggml keeps names NUL-terminated inside their 64 bytes.
        unsafe { CStr::from_ptr(self.raw.as_ptr().cast::<c_char>().add(self.ggml.layout.name)) }.to_bytes()
    }

    /// The operation that computes it, as [`Tensor::operations`] number them.
    pub fn operation(&self) -> u32 {
        self.field(self.ggml.layout.op)
    }

    /// Elements per dimension, the fastest first.
    pub fn shape(&self) -> [usize; 4] {
        self.field::<[i64; 4]>(self.ggml.layout.ne).map(|n| n as usize)
    }

    /// What it is computed from.
    pub fn source(&self, index: usize) -> Option<Tensor<'g>> {
        // SAFETY: sources of a node in a running graph live as long as the graph.
        unsafe { Tensor::new(self.ggml, self.field::<[*mut ggml_sys::Tensor; SOURCES]>(self.ggml.layout.src)[index]) }
    }

    /// The tensor that owns the memory.
    pub fn owner(&self) -> Tensor<'g> {
        // SAFETY: a view's owner outlives the view.
        unsafe { Tensor::new(self.ggml, self.field(self.ggml.layout.view_src)) }.unwrap_or(*self)
    }

    /// What a cast makes 16-bit floats of, where it is one: a cache of 32-bit floats.
    pub fn before_cast(self) -> Self {
        self.source(0).filter(|_| self.operation() == self.operations().cpy).unwrap_or(self)
    }

    /// It as K or V of `dim` elements a cell and head: `[dim, n_kv, n_head_kv, n_streams]`.
    pub(super) fn cache(&self, dim: usize) -> Result<Cache, HookError> {
        let kind = match self.kind() {
            types::F32 => Kind::F32,
            types::F16 => Kind::F16,
            types::BF16 => Kind::Bf16,
            types::Q8_0 => Kind::Q8_0,
            types::Q4_0 => Kind::Q4_0,
            other => {
                // SAFETY: ggml has traits of every type of a valid tensor, for as long as the program runs.
                let to_float = unsafe { (*(self.ggml.functions.ggml_get_type_traits)(other as c_int)).to_float };
                Kind::Other(to_float.ok_or_else(|| format!("no way to read a cache of {}", self.type_name()))?)
            }
        };
        let [_, cell, head, stream] = self.strides();
        Ok(Cache { data: self.data().cast_const(), kind, dim, cell, head, stream })
    }

    /// The type of its elements, by ggml's name.
    pub fn type_name(&self) -> String {
        // SAFETY: ggml returns a static NUL-terminated string for every type of a valid tensor.
        unsafe { CStr::from_ptr((self.ggml.functions.ggml_type_name)(self.kind() as c_int)) }
            .to_string_lossy()
            .into_owned()
    }

    /// Whether its data is in host memory.
    pub fn is_host(&self) -> bool {
        let buffer = self.owner().buffer();
        // SAFETY: a non-null buffer of an allocated tensor is valid.
        !buffer.is_null() && unsafe { (self.ggml.functions.ggml_backend_buffer_is_host)(buffer) }
    }

    /// The device whose memory holds it at the address in its header; `None` in host memory, and where a backend's
    /// addresses are not the device's own.
    pub fn place(&self) -> Option<Place> {
        let (buffer, f) = (self.owner().buffer(), &self.ggml.functions);
        if buffer.is_null() || self.is_host() {
            return None;
        }
        // SAFETY: a non-null buffer of an allocated tensor is valid, and so is all that hangs on it. Backends are never
        // unloaded, so their names stay.
        unsafe {
            let kind = (f.ggml_backend_buffer_get_type)(buffer);
            // Metal counts private memory from an address of its own.
            if CStr::from_ptr((f.ggml_backend_buft_name)(kind)).to_bytes().ends_with(b"_Private") {
                return None;
            }
            let device = NonNull::new((f.ggml_backend_buft_get_device)(kind))?.as_ptr();
            let backend = NonNull::new((f.ggml_backend_dev_backend_reg)(device))?.as_ptr();
            let n_devices = (f.ggml_backend_reg_dev_count)(backend);
            let ordinal = (0..n_devices).position(|i| (f.ggml_backend_reg_dev_get)(backend, i) == device)?;
            let backend = CStr::from_ptr((f.ggml_backend_reg_name)(backend)).to_str().ok()?;
            Some(Place { backend, ordinal: ordinal as u32 })
        }
    }

    fn n_bytes(&self) -> usize {
        // SAFETY: reads the header of a valid tensor.
        unsafe { (self.ggml.functions.ggml_nbytes)(self.raw.as_ptr()) }
    }

    /// The bytes from the first element to the last, where they are in host memory.
    pub(super) fn host_bytes(&self) -> Option<&'g [u8]> {
        // SAFETY: the data of an allocated host tensor is `ggml_nbytes` long, and the graph is stopped.
        let bytes = || unsafe { std::slice::from_raw_parts(self.data(), self.n_bytes()) };
        self.is_host().then(bytes)
    }

    /// The same from anywhere.
    pub fn bytes(&self) -> Cow<'g, [u8]> {
        if let Some(bytes) = self.host_bytes() {
            return Cow::Borrowed(bytes);
        }
        let mut bytes = vec![0u8; self.n_bytes()];
        self.read_at(0, &mut bytes);
        Cow::Owned(bytes)
    }

    /// Reads bytes from one on.
    pub(super) fn read_at(&self, start: usize, to: &mut [u8]) {
        assert!(start + to.len() <= self.n_bytes(), "bytes beyond a tensor's end");
        // SAFETY: so many bytes of the tensor, and room for them.
        unsafe {
            (self.ggml.functions.ggml_backend_tensor_get)(self.raw.as_ptr(), to.as_mut_ptr().cast(), start, to.len());
        }
    }

    /// Reads `pieces` of so many bytes, `stride` bytes apart, from one byte on, into one piece.
    pub(super) fn read_pieces(&self, start: usize, stride: usize, piece: usize, to: &mut [u8]) {
        match self.ggml.functions.ggml_backend_tensor_get_2d {
            Some(get) => {
                let n = to.len() / piece;
                assert!(start + (n - 1) * stride + piece <= self.n_bytes(), "bytes beyond a tensor's end");
                // SAFETY: these pieces lie inside the tensor, and there is room for them.
                unsafe { get(self.raw.as_ptr(), to.as_mut_ptr().cast(), start, piece, n, stride, piece) };
            }
            None => {
                let pieces = to.chunks_exact_mut(piece).enumerate();
                pieces.for_each(|(i, to)| self.read_at(start + i * stride, to));
            }
        }
    }

    /// The elements of a one-dimensional tensor of 64-bit integers.
    pub fn i64s(&self) -> Result<Vec<i64>, HookError> {
        if self.kind() != types::I64 {
            return Err(format!("expected 64-bit cell indices, found {}", self.type_name()).into());
        }
        let bytes = self.bytes();
        Ok(bytes.chunks_exact(8).map(|b| i64::from_ne_bytes(b.try_into().expect("chunks of 8"))).collect())
    }

    /// Whether its elements are F32.
    pub fn check_f32(&self) -> Result<(), HookError> {
        let name = || String::from_utf8_lossy(self.name()).into_owned();
        match self.kind() {
            types::F32 => Ok(()),
            _ => Err(format!("expected {} as f32, found {}", name(), self.type_name()).into()),
        }
    }

    /// Whether its elements are F32 and lie side by side.
    pub fn check_contiguous_f32(&self) -> Result<(), HookError> {
        self.check_f32()?;
        // SAFETY: reads the header of a valid tensor.
        match unsafe { (self.ggml.functions.ggml_is_contiguous)(self.raw.as_ptr()) } {
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
            return Ok(change(unsafe { std::slice::from_raw_parts_mut(self.data().cast::<f32>(), len) }));
        }
        let mut data = vec![0f32; len];
        let (raw, bytes) = (self.raw.as_ptr(), self.n_bytes());
        // SAFETY: `data` is as long as the tensor.
        unsafe { (self.ggml.functions.ggml_backend_tensor_get)(raw, data.as_mut_ptr().cast(), 0, bytes) };
        let result = change(&mut data);
        // SAFETY: as above.
        unsafe { (self.ggml.functions.ggml_backend_tensor_set)(raw, data.as_ptr().cast(), 0, bytes) };
        Ok(result)
    }
}

/// Decodes one element.
pub(super) fn element(kind: u32, bytes: &[u8]) -> f32 {
    match kind {
        types::F32 => f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        types::F16 => f16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => bf16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Bytes of an element that is a float.
pub(super) fn width(kind: u32) -> usize {
    if kind == types::F32 { 4 } else { 2 }
}

pub(super) fn is_float(kind: u32) -> bool {
    matches!(kind, types::F32 | types::F16 | types::BF16)
}
