//! What a graph tells before it runs: its tokens and positions, the cells that they are written to, and what they see.

use std::collections::BTreeMap;

use ggml_sys::{Ggml, types};
use stepflow_core::graph::{Mask, Tensor, cache_of, layer_of};

use super::chains::Place;
use super::runtime::{Graph, SchedFunctions};

/// What a graph is to a cache.
pub enum Read<'g> {
    /// It decodes tokens into it.
    Tokens(Reading<'g>),
    /// It moves the positions of its cells.
    Shift {
        /// The address of the cache's first tensor.
        cache: usize,
        /// By how much, cell by cell.
        by: Vec<i32>,
    },
}

/// A graph that cannot be read: what it does to a cache is unknown.
pub struct Unread {
    /// The address of the cache's first tensor.
    pub cache: usize,
    /// Why.
    pub why: String,
}

/// A graph that decodes tokens into a cache.
pub struct Reading<'g> {
    /// Its tokens, in order.
    pub places: Vec<Place>,
    /// A weight of the model.
    pub weight: *const u8,
    /// The address of the cache's first tensor.
    pub cache: usize,
    mask: Mask<'g>,
    /// Rows of a stream.
    n_rows: usize,
    /// Cells of a stream that the mask covers.
    n_kv: usize,
}

impl<'g> Reading<'g> {
    /// What `graph` tells; `None` where it has nothing to do with a cache. A graph that writes to a cache and cannot be
    /// read is an error: what it wrote is unknown.
    ///
    /// # Errors
    /// Why it cannot be read.
    ///
    /// # Safety
    /// It is a graph of `ggml` that is about to run on this thread, and outlives `'g`.
    pub unsafe fn read(
        ggml: &'static Ggml,
        functions: &SchedFunctions,
        graph: Graph,
    ) -> Result<Option<Read<'g>>, Unread> {
        // SAFETY: by this function's contract.
        let n_nodes = unsafe { (functions.n_nodes)(graph) };
        // SAFETY: as above; there is such a node.
        let node = |i| unsafe { Tensor::new(ggml, (functions.node)(graph, i)) };
        let nodes: Vec<Tensor<'g>> = (0..n_nodes).filter_map(node).collect();
        let known = &ggml.operations;
        let of = |operation: u32| nodes.iter().filter(move |node| node.operation() == operation);
        let keys = |node: &&Tensor<'g>| layer_of(node.owner().name(), b"cache_k_l");
        // Of several caches, as with sliding windows, the first tells which text is which.
        let writes: BTreeMap<usize, Tensor<'g>> =
            of(known.set_rows).filter_map(|node| Some((keys(&node)?, *node))).collect();
        // SAFETY: by this function's contract.
        let input = |node: &Tensor<'g>, index: usize| unsafe { input_of(ggml, functions, graph, node.source(index)?) };
        let Some((&layer, write)) = writes.iter().next() else {
            let moved = |node: &&Tensor<'g>| node.source(0).and_then(cache_number);
            let Some(rope) = of(known.rope).filter(|node| moved(node).is_some()).min_by_key(moved) else {
                return Ok(None);
            };
            let cache = rope.source(0).map_or(0, |keys| keys.owner().address());
            let by = input(rope, 1).ok_or_else(|| "its shifts are not told".to_owned()).and_then(integers);
            return by.map(|by| Some(Read::Shift { cache, by })).map_err(|why| Unread { cache, why });
        };
        // SAFETY: by this function's contract.
        let reading = unsafe { Self::of_tokens(ggml, functions, graph, &nodes, layer, *write) };
        reading.map(|reading| Some(Read::Tokens(reading))).map_err(|why| Unread { cache: write.owner().address(), why })
    }

    /// A graph that writes to the cache of `layer` with `write`.
    ///
    /// # Safety
    /// As [`Reading::read`].
    unsafe fn of_tokens(
        ggml: &'static Ggml,
        functions: &SchedFunctions,
        graph: Graph,
        nodes: &[Tensor<'g>],
        layer: usize,
        write: Tensor<'g>,
    ) -> Result<Self, String> {
        let known = &ggml.operations;
        let of = |operation: u32| nodes.iter().filter(move |node| node.operation() == operation);
        // SAFETY: by this function's contract.
        let input = |node: &Tensor<'g>, index: usize| unsafe { input_of(ggml, functions, graph, node.source(index)?) };
        let cells = input(&write, 1).ok_or("its cells are not told")?.i64s().map_err(|error| error.to_string())?;
        let [_, size, ..] = write.owner().shape();
        let rope = of(known.rope).next().ok_or("its positions are not told")?;
        let positions = integers(input(rope, 1).ok_or("its positions are not told")?)?;
        if positions.len() < cells.len() {
            return Err("its positions are not one for each token".to_owned());
        }
        let own = |source: Tensor<'g>| cache_number(source) == Some(layer);
        let flash = of(known.flash_attn_ext).find(|node| node.source(1).is_some_and(own));
        let softmax = || {
            let scores = of(known.mul_mat).find(|node| node.source(0).is_some_and(own))?;
            let layer = layer_of(scores.name(), b"kq-")?;
            of(known.soft_max).find(|node| layer_of(node.name(), b"kq_soft_max-") == Some(layer))
        };
        let mask = match flash {
            Some(flash) => input(flash, 3),
            None => input(softmax().ok_or("its attention is not one that StepFlow knows")?, 1),
        };
        let mask = mask.ok_or("its attention has no mask")?;
        if !mask.is_host() || mask.operation() != known.none {
            return Err("its mask is not in host memory".to_owned());
        }
        let [n_kv, n_rows, _, n_streams] = mask.shape();
        // Masks were padded to whole tiles of rows once.
        let n_rows = if n_streams == 1 { cells.len() } else { n_rows.min(cells.len() / n_streams) };
        let (tokens, weight) = tokens_of(functions, graph, ggml, nodes)?;
        let place = |(i, cell): (usize, i64)| {
            let cell = usize::try_from(cell).map_err(|_| "a cell below 0".to_owned())?;
            let position = usize::try_from(positions[i]).map_err(|_| "a position below 0".to_owned())?;
            let first_cell = cell / size.max(1) * size;
            Ok(Place { token: tokens.as_ref().and_then(|tokens| tokens.get(i).copied()), position, cell, first_cell })
        };
        let places = cells.into_iter().enumerate().map(place).collect::<Result<_, String>>()?;
        let mask = Mask::of_host(mask).map_err(|error| error.to_string())?;
        Ok(Self { places, weight, cache: write.owner().address(), mask, n_rows, n_kv })
    }

    /// Whether a row sees a cell, which is counted over all streams.
    pub fn sees(&self, row: usize, cell: usize) -> bool {
        let place = &self.places[row];
        let Some(cell) = cell.checked_sub(place.first_cell).filter(|cell| *cell < self.n_kv) else { return false };
        self.mask.of_stream(row / self.n_rows.max(1)).visible(row % self.n_rows.max(1), cell)
    }
}

/// An input of the graph as the program filled it in, where a node has a copy on a device, which holds nothing yet:
/// `device#name#number`.
///
/// # Safety
/// The tensor is one of `graph`, which is about to run.
unsafe fn input_of<'g>(
    ggml: &'static Ggml,
    functions: &SchedFunctions,
    graph: Graph,
    tensor: Tensor<'g>,
) -> Option<Tensor<'g>> {
    let mut parts = tensor.name().splitn(3, |byte| *byte == b'#');
    let (Some(_), Some(name), Some(_)) = (parts.next(), parts.next(), parts.next()) else { return Some(tensor) };
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: by this function's contract; the name ends in NUL.
    unsafe { Tensor::new(ggml, (functions.tensor)(graph, name.as_ptr())) }
}

/// The number of the K cache that keys are a view of.
fn cache_number(keys: Tensor<'_>) -> Option<usize> {
    cache_of(keys.before_cast())
}

/// Its tokens, if it is given any, and a weight of the model.
#[allow(clippy::type_complexity, reason = "two things that are found together")]
fn tokens_of(
    functions: &SchedFunctions,
    graph: Graph,
    ggml: &'static Ggml,
    nodes: &[Tensor<'_>],
) -> Result<(Option<Vec<i32>>, *const u8), String> {
    // SAFETY: a graph that is about to run, and a name that ends in NUL.
    let named = |name: &std::ffi::CStr| unsafe { Tensor::new(ggml, (functions.tensor)(graph, name.as_ptr())) };
    let weight = |node: &Tensor<'_>| {
        let source = node.source(0)?;
        (source.name() == b"token_embd.weight").then(|| source.data().cast_const())
    };
    let weight = nodes.iter().find_map(weight).or_else(|| Some(named(c"token_embd.weight")?.data().cast_const()));
    let tokens = named(c"inp_tokens").map(integers).transpose()?;
    Ok((tokens, weight.unwrap_or(std::ptr::null())))
}

/// The elements of a tensor of 32-bit integers.
fn integers(tensor: Tensor<'_>) -> Result<Vec<i32>, String> {
    if tensor.kind() != types::I32 {
        return Err(format!("expected 32-bit integers, found {}", tensor.type_name()));
    }
    let bytes = tensor.bytes();
    Ok(bytes.chunks_exact(4).map(|b| i32::from_ne_bytes(b.try_into().expect("chunks of 4"))).collect())
}
