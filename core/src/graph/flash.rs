//! Flash attention in a graph: what our kernels need to know of it.

use crate::kernels::attend::{Floats, Layer};
use crate::kernels::{FlashData, Place, SfCache, SfFlash, SfFlashData};

use super::HookError;
use super::tensor::Tensor;

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
        f32::from_bits(self.node.parameters()[index].cast_unsigned())
    }

    /// What heads multiply the mask's bias by; none where it only hides.
    pub fn slopes(&self) -> Vec<f32> {
        slopes(self.n_head, self.parameter(1))
    }

    /// What our kernel needs to know of it in host memory.
    pub fn layer(&self) -> Result<Layer, HookError> {
        let (q, n) = (self.queries.strides(), self.node.strides());
        let floats = |bytes: usize| bytes / size_of::<f32>();
        Ok(Layer {
            queries: Floats {
                data: self.queries.data().cast_const().cast(),
                row: floats(q[1]),
                head: floats(q[2]),
                stream: floats(q[3]),
            },
            keys: self.keys.cache(self.keys.shape()[0])?,
            values: self.values.cache(self.values.shape()[0])?,
            output: Floats {
                data: self.node.data().cast(),
                row: floats(n[2]),
                head: floats(n[1]),
                stream: floats(n[3]),
            },
            sinks: self.sinks.map_or(std::ptr::null(), |sinks| sinks.data().cast_const().cast()),
            n_head: self.n_head,
            n_head_kv: self.n_head_kv,
            scale: self.parameter(0),
            softcap: self.parameter(2),
            slopes: self.slopes(),
        })
    }

    /// What the kernels of its [`Flash::place`] need to know of one stream; `None` where they have no room for it.
    pub fn on_device(&self, stream: usize) -> Option<FlashData<'g>> {
        let (q, n) = (self.queries.strides(), self.node.strides());
        let floats = |bytes: usize| (bytes / size_of::<f32>()) as u64;
        let cache = |tensor: Tensor<'_>| SfCache {
            cell_stride: tensor.strides()[1] as u64,
            head_stride: tensor.strides()[2] as u64,
            type_: tensor.kind(),
            dim: tensor.shape()[0] as u32,
        };
        let args = SfFlash {
            query_row: floats(q[1]),
            query_head: floats(q[2]),
            output_row: floats(n[2]),
            output_head: floats(n[1]),
            keys: cache(self.keys),
            values: cache(self.values),
            n_kv: self.keys.shape()[1] as u32,
            n_rows: self.queries.shape()[1] as u32,
            n_head: self.n_head as u32,
            n_head_kv: self.n_head_kv as u32,
            scale: self.parameter(0),
            softcap: self.parameter(2),
        };
        let at = |tensor: Tensor<'_>| tensor.data().wrapping_add(stream * tensor.strides()[3]);
        let data = SfFlashData {
            queries: at(self.queries).cast_const().cast(),
            keys: at(self.keys).cast_const(),
            values: at(self.values).cast_const(),
            sinks: self.sinks.map_or(std::ptr::null(), |sinks| sinks.data().cast_const().cast()),
            slopes: std::ptr::null(),
            output: at(self.node).cast(),
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
