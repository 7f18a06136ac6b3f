//! The V cache of a layer without flash attention, where it lies.

use std::cell::RefCell;
use std::collections::HashMap;

use super::HookError;
use super::tensor::{Tensor, element, is_float, width};

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
        if !is_float(tensor.kind()) {
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
            self.decode(&bytes[self.start(cell, head)..], self.tensor.strides()[1]).zip(sum).for_each(|(v, s)| *s += v);
            return;
        }
        let mut read = self.read.borrow_mut();
        let value = read.entry(cell).or_insert_with(|| (0..self.n_head_kv).flat_map(|h| self.fetch(cell, h)).collect());
        value[head * self.head_dim..].iter().zip(sum).for_each(|(v, s)| *s += v);
    }

    /// The byte that a value begins at.
    fn start(&self, cell: usize, head: usize) -> usize {
        let [of_cell, _, of_head, of_stream] = self.tensor.strides();
        self.stream * of_stream + head * of_head + cell * of_cell
    }

    /// The dimensions of a value, `stride` bytes apart.
    fn decode<'b>(&self, bytes: &'b [u8], stride: usize) -> impl Iterator<Item = f32> + use<'b> {
        let kind = self.tensor.kind();
        (0..self.head_dim).map(move |dim| element(kind, &bytes[dim * stride..]))
    }

    /// Reads one value and nothing beside it: a cache may be much larger than what is asked of it.
    fn fetch(&self, cell: usize, head: usize) -> Vec<f32> {
        let width = width(self.tensor.kind());
        let mut bytes = vec![0u8; self.head_dim * width];
        self.tensor.read_pieces(self.start(cell, head), self.tensor.strides()[1], width, &mut bytes);
        self.decode(&bytes, width).collect()
    }
}
