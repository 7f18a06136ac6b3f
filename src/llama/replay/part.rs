//! A part of a recorded graph, rebuilt so that it runs again, on other rows.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::node::{Layout, Node, Operation};
use super::operation::operation;
use super::weight::Weight;

/// Nodes that a part has room for.
const MAX_NODES: usize = 512;

/// A part of a graph: from what it is given to its targets, for a fixed number of rows.
pub struct Part {
    nodes: Vec<Node>,
    tensors: Vec<*mut sys::ggml_tensor>,
    /// Where the memory of each owner begins in the workspace, in floats.
    places: Vec<Option<usize>>,
    /// Floats that it takes there.
    size: usize,
    given: Vec<usize>,
    targets: Vec<usize>,
    /// Computes the targets.
    forward: *mut sys::ggml_cgraph,
    /// Computes what was asked to be kept.
    kept: *mut sys::ggml_cgraph,
    _context: GgmlContext,
}

// SAFETY: what it points to is its own context's, which goes with it from thread to thread, or the model's, which is only read.
unsafe impl Send for Part {}
// SAFETY: it is run with the one workspace alone, which is borrowed for it; else it is only read.
unsafe impl Sync for Part {}

/// Tensors and graphs without their data.
struct GgmlContext(NonNull<sys::ggml_context>);

impl GgmlContext {
    fn new() -> Result<Self, String> {
        // SAFETY: without memory of the caller's, ggml makes its own.
        let context = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: 2 * MAX_NODES * sys::ggml_tensor_overhead()
                    + 2 * sys::ggml_graph_overhead_custom(MAX_NODES, false),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        NonNull::new(context).map(Self).ok_or_else(|| "no memory for a graph".to_owned())
    }

    fn graph(&self) -> *mut sys::ggml_cgraph {
        // SAFETY: the context has room for two of these.
        unsafe { sys::ggml_new_graph_custom(self.0.as_ptr(), MAX_NODES, false) }
    }
}

impl Drop for GgmlContext {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and what is in it goes with it.
        unsafe { sys::ggml_free(self.0.as_ptr()) };
    }
}

/// Inputs that hold the same number for every row, and which.
pub(super) type Constants = HashMap<*mut sys::ggml_tensor, f32>;

/// What [`Part::run`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The targets; what is on the way may be gone afterwards.
    Targets,
    /// What [`Part::keep`] was told.
    Kept,
}

impl Part {
    /// What lies between `cuts` and `targets` of a recorded graph.
    ///
    /// # Errors
    /// When something of it is not known; the message names it.
    ///
    /// # Safety
    /// All are live tensors of a graph, whose weights stay where they are while the part lives.
    pub(super) unsafe fn new(
        cuts: &[*mut sys::ggml_tensor],
        targets: &[*mut sys::ggml_tensor],
        constants: &Constants,
    ) -> Result<Self, String> {
        let mut builder = Builder {
            constants,
            context: GgmlContext::new()?,
            nodes: Vec::new(),
            tensors: Vec::new(),
            known: HashMap::new(),
            tables: Vec::new(),
        };
        // SAFETY: by this function's contract.
        let (given, targets) = unsafe {
            let given = cuts.iter().map(|cut| builder.cut(*cut)).collect::<Result<Vec<_>, _>>()?;
            let targets = targets.iter().map(|target| builder.node(*target)).collect::<Result<Vec<_>, _>>()?;
            (given, targets)
        };
        let Builder { context, nodes, tensors, .. } = builder;
        let (forward, kept) = (context.graph(), context.graph());
        let (mut places, mut size) = (Vec::new(), 0);
        for (i, node) in nodes.iter().enumerate() {
            let owns = node.layout.owner == i && !matches!(node.operation, Operation::Weight(_));
            places.push(owns.then_some(size));
            if owns {
                size += node.layout.len().next_multiple_of(ALIGNMENT / 4);
            }
        }
        for target in &targets {
            // SAFETY: tensors of the graph's own context.
            unsafe { expand(forward, tensors[*target]) };
        }
        Ok(Self { nodes, tensors, places, size, given, targets, forward, kept, _context: context })
    }

    /// Its nodes; those that one is computed from come before it.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes that it is given, in the order that it was cut in.
    pub fn given(&self) -> &[usize] {
        &self.given
    }

    /// The nodes that it is for.
    pub fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// Has [`Which::Kept`] compute these nodes, and keep what they hold.
    pub fn keep(&mut self, nodes: impl IntoIterator<Item = usize>) {
        for node in nodes {
            let owner = self.nodes[node].layout.owner;
            for tensor in [self.tensors[owner], self.tensors[node]] {
                // SAFETY: tensors of the graph's own context; leaves are passed over.
                unsafe { expand(self.kept, tensor) };
            }
        }
    }

    /// Runs it. `given` are as many floats as the nodes given have, `first` is the position of the first row.
    ///
    /// # Errors
    /// When ggml fails.
    pub fn run(&self, workspace: &mut Workspace, which: Which, given: &[&[f32]], first: usize) -> Result<(), String> {
        assert_eq!(given.len(), self.given.len(), "all that the part is cut from");
        workspace.reserve(self.size);
        self.place(workspace);
        for (node, data) in self.given.iter().zip(given) {
            workspace.floats_mut(self.place_of(*node), data.len()).copy_from_slice(data);
        }
        for (node, place) in self.nodes.iter().zip(&self.places) {
            let Some(place) = *place else { continue };
            let n = node.layout.len();
            match node.operation {
                Operation::Positions => {
                    let numbers = workspace.integers_mut(place, n);
                    numbers.iter_mut().enumerate().for_each(|(i, number)| *number = (first + i) as i32);
                }
                Operation::RowNumbers => {
                    let numbers = workspace.integers_mut(place, n);
                    numbers.iter_mut().enumerate().for_each(|(i, number)| *number = i as i32);
                }
                Operation::Constant(value) => workspace.floats_mut(place, n).fill(value),
                _ => {}
            }
        }
        self.fill_tables(workspace);
        let graph = if which == Which::Targets { self.forward } else { self.kept };
        // SAFETY: all tensors of the graph have data now: in the workspace, or of the model.
        let status = unsafe { sys::ggml_backend_graph_compute(workspace.backend.as_ptr(), graph) };
        if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { Err("ggml failed to run a part of a layer".to_owned()) }
    }

    /// What a node's owner holds, in one piece; the model's weights are not among it.
    pub fn values<'w>(&self, workspace: &'w Workspace, node: usize) -> &'w [f32] {
        let owner = self.nodes[node].layout.owner;
        workspace.floats(self.place_of(owner), self.nodes[owner].layout.len())
    }

    /// What a node holds, row after row.
    pub fn rows(&self, workspace: &Workspace, node: usize) -> Vec<f32> {
        let (layout, values) = (self.nodes[node].layout, self.values(workspace, node));
        if layout.is_contiguous() {
            return values[layout.offset..][..layout.len()].to_vec();
        }
        layout.rows().flat_map(|row| &values[row..][..layout.shape[0]]).copied().collect()
    }

    /// The same of whole numbers.
    pub fn integers<'w>(&self, workspace: &'w Workspace, node: usize) -> &'w [i32] {
        let owner = self.nodes[node].layout.owner;
        workspace.integers(self.place_of(owner), self.nodes[owner].layout.len())
    }

    fn place_of(&self, owner: usize) -> usize {
        self.places[owner].expect("a node that has memory of its own")
    }

    /// Tells ggml where in the workspace everything lies.
    fn place(&self, workspace: &Workspace) {
        for (i, node) in self.nodes.iter().enumerate() {
            let owner = node.layout.owner;
            let Some(place) = self.places[owner] else { continue };
            // SAFETY: tensors of a live context that nothing else uses; the workspace reaches to the part's size.
            unsafe {
                let tensor = self.tensors[i];
                (*tensor).data = workspace.base().add(place).cast::<u8>().add((*tensor).view_offs).cast_mut().cast();
            }
        }
    }

    /// Pairs of one and zero, which rotations make cosines and sines of.
    fn fill_tables(&self, workspace: &mut Workspace) {
        for node in &self.nodes {
            let Operation::Rope { table, n_dims, halves } = node.operation else { continue };
            let pairs = self.nodes[table].sources[0];
            let n = self.nodes[pairs].layout.shape[0];
            for row in workspace.floats_mut(self.place_of(pairs), self.nodes[pairs].layout.len()).chunks_exact_mut(n) {
                let is_first = |i: usize| if halves { i < n_dims / 2 } else { i.is_multiple_of(2) };
                row.iter_mut().enumerate().for_each(|(i, x)| *x = f32::from(u8::from(is_first(i))));
            }
        }
    }
}

/// # Safety
/// Both are of one live context.
unsafe fn expand(graph: *mut sys::ggml_cgraph, tensor: *mut sys::ggml_tensor) {
    // SAFETY: by this function's contract. ggml does not fuse away what is an output.
    unsafe {
        (*tensor).flags |= sys::GGML_TENSOR_FLAG_OUTPUT as i32;
        if (*tensor).op != sys::GGML_OP_NONE {
            sys::ggml_build_forward_expand(graph, tensor);
        }
    }
}

/// What tells rotations apart: parameters, frequencies, elements of a row.
type Rotation = ([i32; 16], usize, usize);

/// Rebuilds tensors of another graph.
struct Builder<'a> {
    constants: &'a Constants,
    context: GgmlContext,
    nodes: Vec<Node>,
    tensors: Vec<*mut sys::ggml_tensor>,
    known: HashMap<*mut sys::ggml_tensor, usize>,
    /// Rotations and where their tables are.
    tables: Vec<(Rotation, usize)>,
}

impl Builder<'_> {
    /// What the part is given in place of `tensor`.
    ///
    /// # Safety
    /// As [`Part::new`].
    unsafe fn cut(&mut self, tensor: *mut sys::ggml_tensor) -> Result<usize, String> {
        // SAFETY: by this function's contract; the copy is of a live context.
        unsafe {
            if !sys::ggml_is_contiguous(tensor) || (*tensor).type_ != sys::GGML_TYPE_F32 {
                return Err(format!("expected {} as float32 in one piece", name_of(tensor)));
            }
            let copy = sys::ggml_new_tensor(self.context.0.as_ptr(), sys::GGML_TYPE_F32, 4, (*tensor).ne.as_ptr());
            (*copy).flags |= sys::GGML_TENSOR_FLAG_INPUT as i32;
            self.push(tensor, copy, Operation::Given, Vec::new(), None)
        }
    }

    /// The node of a tensor, with all that it is computed from.
    ///
    /// # Safety
    /// As [`Part::new`].
    unsafe fn node(&mut self, tensor: *mut sys::ggml_tensor) -> Result<usize, String> {
        if let Some(node) = self.known.get(&tensor) {
            return Ok(*node);
        }
        // SAFETY: by this function's contract all that hangs on the tensor is live.
        unsafe {
            let original = &*tensor;
            if original.op == sys::GGML_OP_NONE && original.view_src.is_null() {
                return self.leaf(tensor);
            }
            let mut sources = Vec::new();
            for source in original.src.iter().take_while(|source| !source.is_null()) {
                sources.push(self.node(*source)?);
            }
            let owner = if original.view_src.is_null() { None } else { Some(self.node(original.view_src)?) };
            let operation = operation(original).map_err(|error| format!("{}: {error}", name_of(tensor)))?;
            let copy = sys::ggml_new_tensor(self.context.0.as_ptr(), original.type_, 4, original.ne.as_ptr());
            (*copy).nb = original.nb;
            (*copy).op = original.op;
            (*copy).op_params = original.op_params;
            for (place, source) in (*copy).src.iter_mut().zip(&sources) {
                *place = self.tensors[*source];
            }
            if let Some(owner) = owner {
                (*copy).view_src = self.tensors[owner];
                (*copy).view_offs = original.view_offs;
                if let Operation::Weight(_) = self.nodes[owner].operation {
                    ((*copy).data, (*copy).buffer) = (original.data, original.buffer);
                    let weight = Operation::Weight(Weight::new(tensor)?);
                    return self.push(tensor, copy, weight, sources, None);
                }
            }
            let operation = match operation {
                Operation::Rope { n_dims, halves, .. } => {
                    Operation::Rope { table: self.table(original, copy, &sources)?, n_dims, halves }
                }
                other => other,
            };
            self.push(tensor, copy, operation, sources, owner)
        }
    }

    /// The model's weights, and what llama.cpp is told of each row.
    ///
    /// # Safety
    /// As [`Part::new`].
    unsafe fn leaf(&mut self, tensor: *mut sys::ggml_tensor) -> Result<usize, String> {
        // SAFETY: by this function's contract.
        unsafe {
            let original = &*tensor;
            let copy = sys::ggml_new_tensor(self.context.0.as_ptr(), original.type_, 4, original.ne.as_ptr());
            let is_weight = !original.buffer.is_null()
                && sys::ggml_backend_buffer_get_usage(original.buffer) == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
            let operation = if is_weight {
                (*copy).nb = original.nb;
                ((*copy).data, (*copy).buffer) = (original.data, original.buffer);
                Operation::Weight(Weight::new(tensor)?)
            } else {
                match name_of(tensor).as_str() {
                    "inp_pos" => Operation::Positions,
                    "out_ids" => Operation::RowNumbers,
                    _ if self.constants.contains_key(&tensor) => Operation::Constant(self.constants[&tensor]),
                    name => return Err(format!("expected weights and positions, found the input {name}")),
                }
            };
            self.push(tensor, copy, operation, Vec::new(), None)
        }
    }

    /// The table of a rotation: those with the same parameters share one.
    ///
    /// # Safety
    /// As [`Part::new`]; `copy` is the rebuilt rotation.
    unsafe fn table(
        &mut self,
        original: &sys::ggml_tensor,
        copy: *mut sys::ggml_tensor,
        sources: &[usize],
    ) -> Result<usize, String> {
        // SAFETY: by this function's contract; new tensors are of the live context.
        unsafe {
            let (n, n_rows) = (original.ne[0], original.ne[2]);
            let key = (original.op_params, original.src[2] as usize, n as usize);
            if let Some((_, table)) = self.tables.iter().find(|(other, _)| *other == key) {
                return Ok(*table);
            }
            let shape = [n, 1, n_rows, 1];
            let new = || sys::ggml_new_tensor(self.context.0.as_ptr(), sys::GGML_TYPE_F32, 4, shape.as_ptr());
            let (pairs, table) = (new(), new());
            let pairs_node = self.push(pairs, pairs, Operation::Pairs, Vec::new(), None)?;
            ((*table).op, (*table).op_params, (*table).src) = ((*copy).op, (*copy).op_params, (*copy).src);
            (*table).src[0] = pairs;
            let mut table_sources = sources.to_vec();
            table_sources[0] = pairs_node;
            let node = self.push(table, table, Operation::RopeTable, table_sources, None)?;
            self.tables.push((key, node));
            Ok(node)
        }
    }

    /// # Safety
    /// As [`Part::new`]; `copy` is the rebuilt tensor.
    unsafe fn push(
        &mut self,
        original: *mut sys::ggml_tensor,
        copy: *mut sys::ggml_tensor,
        operation: Operation,
        sources: Vec<usize>,
        owner: Option<usize>,
    ) -> Result<usize, String> {
        if self.nodes.len() == MAX_NODES {
            return Err(format!("expected at most {MAX_NODES} operations in a part of a layer"));
        }
        let number = self.nodes.len();
        // SAFETY: by this function's contract.
        let (name, layout) = unsafe {
            let tensor = &*copy;
            let is_weight = matches!(operation, Operation::Weight(_));
            // Elements are counted in fours of bytes: floats and whole numbers.
            if !is_weight && tensor.type_ != sys::GGML_TYPE_F32 && tensor.type_ != sys::GGML_TYPE_I32 {
                return Err(format!("expected {} as float32 or int32", name_of(original)));
            }
            let layout = Layout {
                owner: owner.map_or(number, |owner| self.nodes[owner].layout.owner),
                offset: tensor.view_offs / 4,
                shape: tensor.ne.map(|n| n as usize),
                strides: tensor.nb.map(|n| n / 4),
            };
            (name_of(original), layout)
        };
        self.nodes.push(Node { name, operation, layout, sources });
        self.tensors.push(copy);
        self.known.insert(original, number);
        Ok(number)
    }
}

/// A tensor's name.
///
/// # Safety
/// It is a live tensor.
pub(super) unsafe fn name_of(tensor: *const sys::ggml_tensor) -> String {
    // SAFETY: by this function's contract; ggml keeps names NUL-terminated.
    unsafe { CStr::from_ptr((*tensor).name.as_ptr()) }.to_string_lossy().into_owned()
}

/// What ggml likes data to begin at a multiple of, in bytes.
const ALIGNMENT: usize = 64;

/// Memory and threads that parts run with, one at a time.
pub struct Workspace {
    backend: NonNull<sys::ggml_backend>,
    memory: Vec<f32>,
}

// SAFETY: the backend is used by one thread at a time, whichever has it.
unsafe impl Send for Workspace {}
// SAFETY: a shared workspace is only read.
unsafe impl Sync for Workspace {}

impl Workspace {
    /// # Errors
    /// When there is no CPU backend.
    pub fn new(n_threads: i32) -> Result<Self, String> {
        let backend = crate::llama::devices::cpu_backend(n_threads);
        let backend = NonNull::new(backend).ok_or("no memory for another ggml backend")?;
        Ok(Self { backend, memory: Vec::new() })
    }

    fn reserve(&mut self, n: usize) {
        let needed = n + ALIGNMENT / 4;
        if self.memory.len() < needed {
            self.memory = vec![0.0; needed];
        }
    }

    /// Floats before the first that is aligned.
    fn skipped(&self) -> usize {
        self.memory.as_ptr().align_offset(ALIGNMENT)
    }

    fn base(&self) -> *const f32 {
        self.memory[self.skipped()..].as_ptr()
    }

    fn floats(&self, at: usize, n: usize) -> &[f32] {
        &self.memory[self.skipped() + at..][..n]
    }

    fn floats_mut(&mut self, at: usize, n: usize) -> &mut [f32] {
        let skipped = self.skipped();
        &mut self.memory[skipped + at..][..n]
    }

    fn integers(&self, at: usize, n: usize) -> &[i32] {
        let floats = self.floats(at, n);
        // SAFETY: both have four bytes, and any bits are a number of either.
        unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), n) }
    }

    fn integers_mut(&mut self, at: usize, n: usize) -> &mut [i32] {
        let floats = self.floats_mut(at, n);
        // SAFETY: both have four bytes, and any bits are a number of either.
        unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), n) }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and nothing uses it any more.
        unsafe { sys::ggml_backend_free(self.backend.as_ptr()) };
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Builds graphs of single operations.
    pub(crate) struct Bench {
        context: GgmlContext,
        constants: Constants,
        /// What weights hold.
        data: Vec<Box<[f32]>>,
        given: Vec<*mut sys::ggml_tensor>,
    }

    impl Bench {
        pub(crate) fn new() -> Self {
            let context = GgmlContext::new().unwrap();
            Self { context, constants: Constants::new(), data: Vec::new(), given: Vec::new() }
        }

        pub(crate) fn context(&self) -> *mut sys::ggml_context {
            self.context.0.as_ptr()
        }

        fn tensor(&self, kind: sys::ggml_type, shape: [i64; 4]) -> *mut sys::ggml_tensor {
            // SAFETY: the context lives.
            unsafe { sys::ggml_new_tensor(self.context(), kind, 4, shape.as_ptr()) }
        }

        /// What the part is given.
        pub(crate) fn given(&mut self, shape: [i64; 4]) -> *mut sys::ggml_tensor {
            let tensor = self.tensor(sys::GGML_TYPE_F32, shape);
            self.given.push(tensor);
            tensor
        }

        /// Weights in float32.
        pub(crate) fn weight(&mut self, shape: [i64; 4], mut value: impl FnMut() -> f32) -> *mut sys::ggml_tensor {
            let tensor = self.tensor(sys::GGML_TYPE_F32, shape);
            let n = shape.iter().product::<i64>() as usize;
            // ggml takes memory for a buffer where it is aligned.
            let mut data = vec![0.0; n + ALIGNMENT / 4].into_boxed_slice();
            let skipped = data.as_ptr().align_offset(ALIGNMENT);
            let aligned = &mut data[skipped..][..n];
            aligned.iter_mut().for_each(|x| *x = value());
            // SAFETY: the tensor is the context's, and its data live as long as the bench, in a buffer of ggml's for them.
            unsafe {
                let buffer = sys::ggml_backend_cpu_buffer_from_ptr(aligned.as_mut_ptr().cast(), size_of_val(aligned));
                sys::ggml_backend_buffer_set_usage(buffer, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
                ((*tensor).data, (*tensor).buffer) = (aligned.as_mut_ptr().cast(), buffer);
            }
            self.data.push(data);
            tensor
        }

        /// The positions of rows.
        pub(crate) fn positions(&self, n: i64) -> *mut sys::ggml_tensor {
            let tensor = self.tensor(sys::GGML_TYPE_I32, [n, 1, 1, 1]);
            // SAFETY: the name is NUL-terminated and shorter than ggml's room for it.
            unsafe { sys::ggml_set_name(tensor, c"inp_pos".as_ptr()) }
        }

        /// The part from what is given to `target`.
        pub(crate) fn part(&self, target: *mut sys::ggml_tensor) -> Result<Part, String> {
            // SAFETY: all are tensors of the bench, which outlives the part in its tests.
            unsafe { Part::new(&self.given, &[target], &self.constants) }
        }
    }
}
