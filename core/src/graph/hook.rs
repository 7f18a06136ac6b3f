//! Hooks: code that is shown the attention of a layer while the graph runs, and may change it in place.

use crate::kernels::attend::{Outcome, RowWork};
use crate::kernels::{AttentionData, HeadOutputData, Place};

use super::HookError;
use super::Row;
use super::cells::Cells;
use super::mask::Mask;
use super::values::Values;

/// Where in a layer a hook can stop the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// After the softmax of the attention.
    Attention,
    /// After attention times V, before the output projection.
    HeadOutput,
}

/// Watches or changes the attention of a context. Every point that a hook wants costs one graph launch and one
/// synchronisation, so want as few as possible. A panic in a hook is caught and ends the decode with an error.
pub trait Hook: Send {
    /// A micro-batch is about to run. `rows` are its tokens, in order.
    fn begin(&mut self, rows: &[Row]);

    /// Whether to stop at `point` of `layer` in this micro-batch.
    fn wants(&self, point: Point, layer: usize) -> bool;

    /// The attention of a layer, after the softmax.
    ///
    /// # Errors
    /// Anything; it ends the decode.
    fn attention(&mut self, attention: Attention<'_>) -> Result<(), HookError> {
        let _ = attention;
        Ok(())
    }

    /// The same where the data is in the memory of a device. Returns whether that was all; if not, the data is read back
    /// for [`Hook::attention`] and written again after it. The answer may depend on the place alone.
    ///
    /// # Errors
    /// Anything; it ends the decode.
    fn attention_on_device(&mut self, attention: &DeviceAttention<'_>) -> Result<bool, HookError> {
        let _ = attention;
        Ok(false)
    }

    /// As [`Hook::attention_on_device`], for [`Hook::head_output`].
    ///
    /// # Errors
    /// Anything; it ends the decode.
    fn head_output_on_device(&mut self, output: &DeviceHeadOutput<'_>) -> Result<bool, HookError> {
        let _ = output;
        Ok(false)
    }

    /// Whether rows of this micro-batch are to be computed or changed where attention runs fused.
    fn wants_fused(&self) -> bool {
        false
    }

    /// Whether the attention of all rows in `layer` is ours, where attention runs fused: then llama.cpp's need not run.
    fn takes_all(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }

    /// Fused attention of a layer: what our own kernel is to do, and to which rows. Rows that are left out are llama.cpp's.
    /// `stream` of the work is set by the caller.
    ///
    /// # Errors
    /// Anything; it ends the decode.
    fn fused(&mut self, attention: &FusedAttention<'_>) -> Result<Vec<RowWork>, HookError> {
        let _ = attention;
        Ok(Vec::new())
    }

    /// What came of it: `outcomes` of `row`, one a head. `place` is the device that did it; none is the host.
    fn fused_done(&mut self, layer: usize, row: &Row, place: Option<Place>, outcomes: &[Outcome]) {
        let _ = (layer, row, place, outcomes);
    }

    /// The head outputs of a layer.
    ///
    /// # Errors
    /// Anything; it ends the decode.
    fn head_output(&mut self, output: HeadOutput<'_>) -> Result<(), HookError> {
        let _ = output;
        Ok(())
    }
}

/// Attention of one layer after its softmax.
pub struct Attention<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Cells of the cache that the graph looks at; at least every visible one.
    pub n_kv: usize,
    /// Heads.
    pub n_head: usize,
    /// Probabilities, `[n_head][rows][n_kv]`, 0 where masked. With sinks a row adds up to less than 1.
    pub probs: &'a mut [f32],
    /// Whether the softmax kept a share for an attention sink.
    pub sinks: bool,
    /// Whether `probs` was read from another memory, to be written back.
    pub read_back: bool,
    /// Where `rows` begin in the micro-batch. A context with streams shows one sequence at a time.
    pub first_row: usize,
    /// The tokens whose attention this is.
    pub rows: &'a [Row],
    /// What the cells hold.
    pub cells: &'a Cells,
    pub(super) mask: Mask<'a>,
}

impl Attention<'_> {
    /// The same, borrowed for a shorter time: what a hook passes on to another hook.
    pub fn reborrow(&mut self) -> Attention<'_> {
        Attention { probs: &mut *self.probs, mask: self.mask.clone(), ..*self }
    }

    /// Whether `row` may see the key in `cell`.
    pub fn visible(&self, row: usize, cell: usize) -> bool {
        cell < self.n_kv && self.mask.visible(row, cell)
    }

    /// Identifies the mask within one micro-batch: where keys are equal, visible cells are.
    pub fn mask_key(&self) -> (usize, usize) {
        self.mask.key()
    }

    /// The probabilities of one head and row, `[n_kv]`.
    pub fn row_mut(&mut self, head: usize, row: usize) -> &mut [f32] {
        let start = (head * self.rows.len() + row) * self.n_kv;
        &mut self.probs[start..start + self.n_kv]
    }
}

/// Attention of one layer that runs fused: it never forms a softmax.
pub struct FusedAttention<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Cells of the cache that the graph looks at; at least every visible one.
    pub n_kv: usize,
    /// Where `rows` begin in the micro-batch. A context with streams shows one sequence at a time.
    pub first_row: usize,
    /// The tokens whose attention this is.
    pub rows: &'a [Row],
    /// What the cells hold.
    pub cells: &'a Cells,
    /// Whether our kernel may compute rows in which nothing is changed here, but in other layers.
    pub all_layers: bool,
    pub(super) mask: Mask<'a>,
}

impl FusedAttention<'_> {
    /// What the mask adds to the scores of a row, cell by cell; minus infinity where it hides.
    pub fn mask_row(&self, row: usize) -> impl Iterator<Item = f32> {
        self.mask.row(row, self.n_kv)
    }

    /// As [`Attention::visible`].
    pub fn visible(&self, row: usize, cell: usize) -> bool {
        cell < self.n_kv && self.mask.visible(row, cell)
    }

    /// As [`Attention::mask_key`].
    pub fn mask_key(&self) -> (usize, usize) {
        self.mask.key()
    }
}

/// Head outputs of one layer, before the output projection.
pub struct HeadOutput<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Cells of the cache that the graph looks at.
    pub n_kv: usize,
    /// Width of one head's output.
    pub head_dim: usize,
    /// Heads.
    pub n_head: usize,
    /// Outputs, `[n_head][rows][head_dim]`.
    pub output: &'a mut [f32],
    /// Whether `output` was read from another memory, to be written back.
    pub read_back: bool,
    /// The V cache that they were made from.
    pub values: Values<'a>,
    /// Where `rows` begin in the micro-batch. A context with streams shows one sequence at a time.
    pub first_row: usize,
    /// The tokens whose outputs these are.
    pub rows: &'a [Row],
    /// What the cells hold.
    pub cells: &'a Cells,
    pub(super) mask: Mask<'a>,
}

impl HeadOutput<'_> {
    /// The same, borrowed for a shorter time: what a hook passes on to another hook.
    pub fn reborrow(&mut self) -> HeadOutput<'_> {
        HeadOutput { output: &mut *self.output, values: self.values.clone(), mask: self.mask.clone(), ..*self }
    }

    /// Whether `row` may see the value in `cell`.
    pub fn visible(&self, row: usize, cell: usize) -> bool {
        cell < self.n_kv && self.mask.visible(row, cell)
    }

    /// The output of one head and row, `[head_dim]`.
    pub fn row_mut(&mut self, head: usize, row: usize) -> &mut [f32] {
        let start = (head * self.rows.len() + row) * self.head_dim;
        &mut self.output[start..start + self.head_dim]
    }
}

/// Attention of one layer after its softmax, in the memory of a device.
pub struct DeviceAttention<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Cells of the cache that the graph looks at; at least every visible one.
    pub n_kv: usize,
    /// Heads.
    pub n_head: usize,
    /// The device.
    pub place: Place,
    /// Identifies the mask within one micro-batch, as [`Attention::mask_key`].
    pub mask_key: (usize, usize),
    /// What its kernels work on.
    pub data: AttentionData<'a>,
    /// As in [`Attention`].
    pub first_row: usize,
    /// The tokens whose attention this is.
    pub rows: &'a [Row],
    /// What the cells hold.
    pub cells: &'a Cells,
}

/// Head outputs of one layer, in the memory of a device.
pub struct DeviceHeadOutput<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Cells of the cache that the graph looks at.
    pub n_kv: usize,
    /// Heads.
    pub n_head: usize,
    /// The device.
    pub place: Place,
    /// What its kernels work on.
    pub data: HeadOutputData<'a>,
    /// As in [`HeadOutput`].
    pub first_row: usize,
    /// The tokens whose outputs these are.
    pub rows: &'a [Row],
    /// What the cells hold.
    pub cells: &'a Cells,
    pub(super) mask: Mask<'a>,
}

impl DeviceHeadOutput<'_> {
    /// Whether `row` may see the value in `cell`.
    pub fn visible(&self, row: usize, cell: usize) -> bool {
        cell < self.n_kv && self.mask.visible(row, cell)
    }
}
