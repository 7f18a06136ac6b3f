//! The attention mask of a micro-batch.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use super::HookError;
use super::tensor::{Tensor, element, is_float, width};

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
    kind: u32,
    row_stride: usize,
    stream_stride: usize,
    stream: usize,
    address: usize,
}

impl<'g> Mask<'g> {
    pub(super) fn new(tensor: Tensor<'g>, read: &mut ReadMasks) -> Result<Self, HookError> {
        if !is_float(tensor.kind()) {
            return Err(format!("expected an attention mask of floats, found {}", tensor.type_name()).into());
        }
        let [_, row_stride, _, stream_stride] = tensor.strides();
        let address = tensor.address();
        let bytes = match tensor.host_bytes() {
            Some(bytes) => Bytes::Host(bytes),
            None => Bytes::Read(read.entry(address).or_insert_with(|| tensor.bytes().into()).clone()),
        };
        Ok(Self { bytes, kind: tensor.kind(), row_stride, stream_stride, stream: 0, address })
    }

    /// A mask in host memory.
    ///
    /// # Errors
    /// When it is not, or holds no floats.
    pub fn of_host(tensor: Tensor<'g>) -> Result<Self, HookError> {
        match tensor.is_host() {
            true => Self::new(tensor, &mut ReadMasks::new()),
            false => Err("a mask that is not in host memory".into()),
        }
    }

    /// Reads a mask while its softmax still needs it: afterwards its memory may hold something else.
    pub(super) fn keep(tensor: Tensor<'g>, read: &mut ReadMasks) {
        read.entry(tensor.address()).or_insert_with(|| tensor.bytes().into());
    }

    /// A mask that was kept.
    pub(super) fn kept(tensor: Tensor<'g>, read: &ReadMasks) -> Result<Self, HookError> {
        let address = tensor.address();
        let bytes = Bytes::Read(read.get(&address).ok_or("attention whose mask was not kept")?.clone());
        let [_, row_stride, _, stream_stride] = tensor.strides();
        Ok(Self { bytes, kind: tensor.kind(), row_stride, stream_stride, stream: 0, address })
    }

    /// The mask of one stream.
    pub fn of_stream(&self, stream: usize) -> Self {
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

    /// Whether `row` may see `cell`.
    pub fn visible(&self, row: usize, cell: usize) -> bool {
        let width = width(self.kind);
        let at = self.stream * self.stream_stride + row * self.row_stride + cell * width;
        element(self.kind, &self.bytes[at..at + width]) > f32::NEG_INFINITY
    }

    pub(super) fn key(&self) -> (usize, usize) {
        (self.address, self.stream)
    }
}
