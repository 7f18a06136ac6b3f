//! Flash attention whose rows our own kernel computes or changes. In host memory, inside the graph that runs: a node is given
//! our function for an operation, and ggml's own threads run it. On a device, and where the mask is computed by the graph,
//! the graph stands still behind it.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys::{Custom, Ggml};

use crate::kernels::Place;
use crate::kernels::attend::{Attend, OnDevice, Outcome, Processor, RowWork, Scratch};

use super::HookError;
use super::flash::Flash;
use super::tensor::{Parameters, Tensor};

/// So many tasks as there are threads: `GGML_N_TASKS_MAX`.
const ALL_THREADS: c_int = -1;

/// What was put into the graph that runs, or taken out of it.
#[derive(Default)]
pub(super) struct Fused {
    swaps: Vec<Swap>,
    /// Nodes that were given no operation, and what it was.
    skipped: Vec<(NonNull<ggml_sys::Tensor>, u32)>,
    scratch: Arc<Scratch>,
    on_device: OnDevice,
}

/// A node that was given another operation, and what it was.
struct Swap {
    node: NonNull<ggml_sys::Tensor>,
    operation: u32,
    parameters: Parameters,
    ours: Parameters,
    layer: usize,
    n_rows: usize,
    work: Box<Attend>,
}

/// What was done to rows of a layer.
pub(super) struct Done {
    pub layer: usize,
    /// The device that did it; none is the host.
    pub place: Option<Place>,
    /// Rows of a stream.
    pub n_rows: usize,
    pub rows: Vec<RowWork>,
    /// `[rows][heads]`
    pub outcomes: Vec<Outcome>,
}

// SAFETY: the nodes are reached by `Context::decode` alone, on the thread that runs it.
unsafe impl Send for Fused {}

impl Fused {
    /// Has `rows` of a flash attention computed by our kernel. `view` is the node that its output is read through; neither
    /// has run yet.
    ///
    /// # Errors
    /// When something of it is not in host memory, or not of the form that the kernel knows.
    pub fn put(
        &mut self,
        attention: Tensor<'_>,
        view: Tensor<'_>,
        layer: usize,
        rows: Vec<RowWork>,
    ) -> Result<(), HookError> {
        let [_, _, n_rows, n_streams] = attention.shape();
        let layer_data = Flash::new(attention)?.layer()?;
        check(attention, &rows)?;
        // Where all rows are ours, ggml need not compute any.
        let all = rows.len() == n_rows * n_streams && rows.iter().all(|row| row.plan.is_some());
        let node = if all { attention } else { view };
        // SAFETY: the graph's memory outlives its run, at whose end `take` is called; our nodes run one after the other, and
        // ggml orders them among those that write what they read. Rows and cells are those that it has.
        let work = unsafe { Attend::new(layer_data, rows, Processor::here(), self.scratch.clone()) };
        let work = Box::new(work);
        let user = (&raw const *work).cast_mut().cast();
        let custom = Custom { run, n_tasks: ALL_THREADS, padding: 0, user };
        let mut ours: Parameters = [0; 16];
        const { assert!(size_of::<Custom>() <= size_of::<Parameters>()) };
        // SAFETY: there is room for it, and the place need not be aligned.
        unsafe { ours.as_mut_ptr().cast::<Custom>().write_unaligned(custom) };
        let (raw, operation, parameters) = (node.raw(), node.operation(), node.parameters());
        // SAFETY: a node of the graph that this thread is about to run; nothing else looks at it now.
        unsafe {
            node.set_operation(node.operations().custom);
            node.set_parameters(ours);
        }
        self.swaps.push(Swap { node: raw, operation, parameters, ours, layer, n_rows, work });
        Ok(())
    }

    /// Has llama.cpp not compute a flash attention that has not run yet.
    pub fn skip(&mut self, attention: Tensor<'_>) {
        self.skipped.push((attention.raw(), attention.operation()));
        // SAFETY: as in `put`.
        unsafe { attention.set_operation(attention.operations().none) };
    }

    /// Whether there is a kernel for where a flash attention lies.
    ///
    /// # Errors
    /// When there is none.
    pub fn check_reach(&mut self, attention: Tensor<'_>) -> Result<(), HookError> {
        let flash = Flash::new(attention)?;
        if flash.is_host() { Ok(()) } else { self.reached(&flash).map(|_| ()) }
    }

    /// The device that has all of it, and for which there is a kernel.
    fn reached(&mut self, flash: &Flash<'_>) -> Result<Place, HookError> {
        let place =
            flash.place().ok_or("StepFlow needs a layer's attention and its cache on one device; use -fa off")?;
        if !self.on_device.reaches(place) {
            let backend = place.backend;
            return Err(format!("StepFlow has no kernel for flash attention on {backend}; use -fa off").into());
        }
        Ok(place)
    }

    /// Has `rows` of a flash attention computed by our kernel now: the graph stands still behind it.
    ///
    /// # Errors
    /// When there is no kernel for where it lies, or it fails.
    pub fn run(&mut self, attention: Tensor<'_>, layer: usize, rows: Vec<RowWork>) -> Result<Done, HookError> {
        let [_, _, n_rows, n_streams] = attention.shape();
        let flash = Flash::new(attention)?;
        check(attention, &rows)?;
        let all = rows.len() == n_rows * n_streams && rows.iter().all(|row| row.plan.is_some());
        if !all && self.skipped.last().is_some_and(|(node, _)| *node == attention.raw()) {
            return Err("a hook left out rows of an attention that was its own".into());
        }
        if flash.is_host() {
            // SAFETY: the graph stands still, and rows and cells are those that it has.
            let work = unsafe { Attend::new(flash.layer()?, rows, Processor::here(), self.scratch.clone()) };
            work.work();
            let (rows, outcomes) = work.finish()?;
            return Ok(Done { layer, place: None, n_rows, rows, outcomes });
        }
        let place = self.reached(&flash)?;
        let (slopes, mut outcomes) = (flash.slopes(), Vec::new());
        for stream in 0..n_streams {
            let data = flash.on_device(stream).ok_or_else(|| {
                format!("StepFlow's kernel for {} cannot read this cache; use -fa off", place.backend)
            })?;
            let own = rows.partition_point(|row| row.stream < stream)..rows.partition_point(|row| row.stream <= stream);
            outcomes.extend(self.on_device.attend(place, &data, &slopes, &rows[own])?);
        }
        Ok(Done { layer, place: Some(place), n_rows, rows, outcomes })
    }

    /// Gives all nodes their operations back, for graphs are used again, and returns what was done.
    ///
    /// # Errors
    /// When a kernel panicked, or one was not run to its end.
    pub fn take(&mut self, ggml: &'static Ggml) -> Result<Vec<Done>, String> {
        let mut done = Vec::new();
        let mut failure = None;
        for (node, operation) in self.skipped.drain(..) {
            // SAFETY: as below.
            unsafe {
                let node = Tensor::new(ggml, node.as_ptr()).expect("not null");
                if node.operation() == ggml.operations.none {
                    node.set_operation(operation);
                }
            }
        }
        for Swap { node, operation, parameters, ours, layer, n_rows, work } in self.swaps.drain(..) {
            // SAFETY: the graph's memory is there until the context builds another; in a node that is another by now,
            // nothing is changed.
            unsafe {
                let node = Tensor::new(ggml, node.as_ptr()).expect("not null");
                if node.operation() == ggml.operations.custom && node.parameters() == ours {
                    node.set_operation(operation);
                    node.set_parameters(parameters);
                }
            }
            match work.finish() {
                Ok((rows, outcomes)) => done.push(Done { layer, place: None, n_rows, rows, outcomes }),
                Err(message) => failure = Some(message),
            }
        }
        failure.map_or(Ok(done), Err)
    }
}

/// Whether all rows are those of the attention, and all cells that are read for them.
fn check(attention: Tensor<'_>, rows: &[RowWork]) -> Result<(), HookError> {
    let [_, _, n_rows, n_streams] = attention.shape();
    let n_kv = attention.source(1).map_or(0, |keys| keys.shape()[1]);
    let window = |work: &RowWork| {
        let mut cells = work.momentum.iter().flat_map(|momentum| &momentum.cells);
        cells.all(|cell| (*cell as usize) < n_kv)
    };
    let plan = |work: &RowWork| work.plan.as_ref().is_none_or(|plan| plan.fits(n_kv));
    let fits = |work: &RowWork| work.row < n_rows && work.stream < n_streams && plan(work) && window(work);
    if rows.iter().all(fits) {
        Ok(())
    } else {
        Err("a hook asked for rows or cells that attention does not have".into())
    }
}

/// `ggml_custom_op_t`: one thread's share of the work.
///
/// # Safety
/// `work` is the [`Attend`] that [`Fused::put`] wrote beside it.
unsafe extern "C" fn run(_: *mut ggml_sys::Tensor, _: c_int, _: c_int, work: *mut c_void) {
    // SAFETY: by this function's contract it is alive; several threads may share it.
    unsafe { &*work.cast::<Attend>() }.work();
}
