//! Sums over the rows of two matrices, which is most of what a backward pass computes.
//!
//! ggml's own `GGML_OP_OUT_PROD` goes through the rows of the result one by one and dequantizes all weights for each of
//! them. Here the weights are dequantized once, and both matrices transposed, so that ggml's matrix product can do the rest:
//! it took two thirds of the time of a backward pass over 862 tokens of SmolLM2-135M, and takes little.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::devices::cpu_backend;
use super::{HookError, LlamaError};
use crate::graph::Tensor;

/// The most float32 numbers of weights to have at a time.
const CHUNK: usize = 2 << 20;
/// Rows to sum over come in multiples of this, which ggml's fast products ask for.
const ROWS: usize = 32;
/// Tensors of a graph, at most.
const MAX_TENSORS: usize = 16;

/// Computes products, with memory and threads of its own.
pub(super) struct OutProducts {
    backend: NonNull<sys::ggml_backend>,
    memory: NonNull<sys::ggml_gallocr>,
}

impl OutProducts {
    pub fn new(n_threads: i32) -> Result<Self, LlamaError> {
        let failed = || LlamaError::Decode { reason: "no memory for another ggml backend".to_owned() };
        // SAFETY: a CPU backend needs nothing; its buffer type lives as long as the program.
        unsafe {
            let backend = NonNull::new(cpu_backend(n_threads)).ok_or_else(failed)?;
            let memory = sys::ggml_gallocr_new(sys::ggml_backend_get_default_buffer_type(backend.as_ptr()));
            Ok(Self { backend, memory: NonNull::new(memory).ok_or_else(failed)? })
        }
    }

    /// Fills a node with the product of its two sources `a: [n, m, ..]`, of any type, and `b: [p, m, ..]`, float32:
    /// `node[j][i] = sum over m of a[m][i] * b[m][j]`, for each of the outer two dimensions of `b`, of which `a` may have
    /// fewer, each for as many neighbours.
    ///
    /// # Errors
    /// When one is not in host memory, `b` or the node is not float32, the node is not contiguous, or memory runs out.
    pub fn compute(&mut self, node: Tensor<'_>) -> Result<(), HookError> {
        let (Some(a), Some(b)) = (node.source(0), node.source(1)) else { return Err("a product of nothing".into()) };
        b.check_f32()?;
        node.check_contiguous_f32()?;
        let [n, m, outer, most] = a.shape();
        let rows = (CHUNK / (n * outer * most)).max(1).next_multiple_of(ROWS);
        for start in (0..m).step_by(rows) {
            self.add(node, a, b, start..m.min(start + rows))?;
        }
        Ok(())
    }

    /// What some of the rows to sum over bring; the first of them begin the sum.
    fn add(
        &mut self,
        node: Tensor<'_>,
        a: Tensor<'_>,
        b: Tensor<'_>,
        rows: std::ops::Range<usize>,
    ) -> Result<(), HookError> {
        let graph = Graph::new()?;
        let (a, b, node) = (graph.rows(a, rows.clone())?, graph.rows(b, rows.clone())?, graph.all(node)?);
        // SAFETY: tensors of one live context, each with shapes that its operation takes (ggml checks, and aborts); data
        // of `a`, `b` and `node` belong to the graph that is stopped, which reads and writes them no more than this does.
        let status = unsafe {
            let floats = match (*a).type_ {
                sys::GGML_TYPE_F32 => a,
                _ => sys::ggml_cast(graph.context(), a, sys::GGML_TYPE_F32),
            };
            let across = |tensor| sys::ggml_cont(graph.context(), sys::ggml_transpose(graph.context(), tensor));
            let mut result = sys::ggml_mul_mat(graph.context(), across(floats), across(b));
            if rows.start == 0 {
                (*result).data = (*node).data;
            } else {
                result = sys::ggml_add_inplace(graph.context(), node, result);
            }
            let nodes = sys::ggml_new_graph_custom(graph.context(), MAX_TENSORS, false);
            sys::ggml_build_forward_expand(nodes, result);
            if !sys::ggml_gallocr_alloc_graph(self.memory.as_ptr(), nodes) {
                return Err("no memory for a product of the backward pass".into());
            }
            sys::ggml_backend_graph_compute(self.backend.as_ptr(), nodes)
        };
        if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { Err("a product of the backward pass failed".into()) }
    }
}

impl Drop for OutProducts {
    fn drop(&mut self) {
        // SAFETY: both were made by `new`, and nothing uses them any more.
        unsafe {
            sys::ggml_gallocr_free(self.memory.as_ptr());
            sys::ggml_backend_free(self.backend.as_ptr());
        }
    }
}

/// A few tensors and what is done to them, without their data.
struct Graph(NonNull<sys::ggml_context>);

impl Graph {
    fn new() -> Result<Self, HookError> {
        // SAFETY: without memory of the caller's, ggml makes its own.
        let context = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: MAX_TENSORS * sys::ggml_tensor_overhead()
                    + sys::ggml_graph_overhead_custom(MAX_TENSORS, false),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        NonNull::new(context).map(Self).ok_or_else(|| "no memory for a graph".into())
    }

    fn context(&self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }

    /// A tensor of another graph, without what made it.
    fn all(&self, tensor: Tensor<'_>) -> Result<*mut sys::ggml_tensor, HookError> {
        self.rows(tensor, 0..tensor.shape()[1])
    }

    /// Some rows of it.
    fn rows(&self, tensor: Tensor<'_>, rows: std::ops::Range<usize>) -> Result<*mut sys::ggml_tensor, HookError> {
        if !tensor.is_host() {
            return Err("a backward pass outside of host memory".into());
        }
        // SAFETY: a live tensor's header is read, and a new one of a live context is written; its data are part of the
        // other's, as `rows` are of its.
        unsafe {
            let other = &*tensor.raw().as_ptr().cast::<sys::ggml_tensor>();
            let mut shape = other.ne;
            shape[1] = rows.len() as i64;
            let copy = sys::ggml_new_tensor(self.context(), other.type_, 4, shape.as_ptr());
            (*copy).nb = other.nb;
            (*copy).data = other.data.cast::<u8>().add(rows.start * other.nb[1]).cast();
            Ok(copy)
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and its tensors are not used any more.
        unsafe { sys::ggml_free(self.context()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// A tensor of random numbers in memory of its own.
    struct Operand {
        context: *mut sys::ggml_context,
        buffer: *mut sys::ggml_backend_buffer,
        tensor: *mut sys::ggml_tensor,
        values: Vec<f32>,
        /// Whether rows and columns are swapped in memory, as in a gradient that is transposed.
        transposed: bool,
    }

    impl Operand {
        fn new(kind: sys::ggml_type, shape: [usize; 4], random: &mut SplitMix64) -> Self {
            let mut values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
                .collect();
            // SAFETY: a context of one tensor, whose data are as long as ggml says; rows are whole blocks.
            unsafe {
                let mem_size = 2 * sys::ggml_tensor_overhead();
                let params = sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
                let context = sys::ggml_init(params);
                let tensor = sys::ggml_new_tensor(context, kind, 4, shape.map(|n| n as i64).as_ptr());
                let buffer =
                    sys::ggml_backend_alloc_ctx_tensors_from_buft(context, sys::ggml_backend_cpu_buffer_type());
                let (data, n_row) = ((*tensor).data, shape[0] as i64);
                let rows = values.len() as i64 / n_row;
                sys::ggml_quantize_chunk(kind, values.as_ptr(), data, 0, rows, n_row, std::ptr::null());
                if kind != sys::GGML_TYPE_F32 {
                    let to_float = (*sys::ggml_get_type_traits(kind)).to_float.expect("a type of weights");
                    to_float(data, values.as_mut_ptr(), values.len() as i64);
                }
                Self { context, buffer, tensor, values, transposed: false }
            }
        }

        fn at(&self, [i, row, head, sequence]: [usize; 4]) -> f64 {
            // SAFETY: a live tensor's header is read.
            let [n, rows, heads, _] = unsafe { (*self.tensor).ne }.map(|n| n as usize);
            let place = if self.transposed { i * rows + row } else { row * n + i };
            f64::from(self.values[(sequence * heads + head) * rows * n + place])
        }

        /// A view of it with rows for columns.
        fn transposed(mut self) -> Self {
            // SAFETY: a live tensor's header is changed; it stands for the same numbers.
            unsafe {
                (*self.tensor).ne.swap(0, 1);
                (*self.tensor).nb.swap(0, 1);
            }
            self.transposed = true;
            self
        }
    }

    impl Drop for Operand {
        fn drop(&mut self) {
            // SAFETY: both were made by `new`.
            unsafe {
                sys::ggml_backend_buffer_free(self.buffer);
                sys::ggml_free(self.context);
            }
        }
    }

    /// The largest error of a product, as a share of the sum of its summands' magnitudes.
    fn worst_error(a: &Operand, b: &Operand, [n, m, a_heads, p, heads]: [usize; 5]) -> f64 {
        let mut result = Operand::new(sys::GGML_TYPE_F32, [n, p, heads, 1], &mut SplitMix64::new(9));
        // SAFETY: its sources live as long as it is used.
        let node = unsafe {
            ((*result.tensor).src[0], (*result.tensor).src[1]) = (a.tensor, b.tensor);
            crate::llama::ggml::tensor(result.tensor).expect("not null")
        };
        OutProducts::new(2).unwrap().compute(node).unwrap();
        node.with_f32(|data| result.values.copy_from_slice(data)).unwrap();
        let mut worst = 0.0;
        for head in 0..heads {
            for (i, j) in (0..n).flat_map(|i| (0..p).map(move |j| (i, j))) {
                let summands = (0..m).map(|k| a.at([i, k, head * a_heads / heads, 0]) * b.at([j, k, head, 0]));
                let (sum, magnitude) = summands.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + f64::abs(x)));
                let error = (result.at([i, j, head, 0]) - sum).abs() / magnitude;
                // `max` would pass over NaN.
                worst = if error <= worst || worst.is_nan() { worst } else { error };
            }
        }
        worst
    }

    #[test]
    fn products_are_sums_over_rows() {
        let mut random = SplitMix64::new(3);
        let weights = [
            (sys::GGML_TYPE_F32, [96, 70]),
            (sys::GGML_TYPE_F16, [64, 256]),
            (sys::GGML_TYPE_BF16, [64, 33]),
            (sys::GGML_TYPE_Q8_0, [96, 64]),
            (sys::GGML_TYPE_Q4_1, [32, 96]),
            (sys::GGML_TYPE_Q4_K, [256, 40]),
            (sys::GGML_TYPE_Q6_K, [256, 128]),
        ];
        for (kind, [n, m]) in weights {
            for p in [1, 17, 64] {
                let (a, b) = (
                    Operand::new(kind, [n, m, 1, 1], &mut random),
                    Operand::new(sys::GGML_TYPE_F32, [p, m, 1, 1], &mut random),
                );
                let error = worst_error(&a, &b, [n, m, 1, p, 1]);
                // Sums in float32, in any order: some thousands of summands in the longest.
                assert!(error <= 1e-5, "type {kind}, {n} x {m} and {p}: {error}");
            }
        }
    }

    #[test]
    fn heads_share_what_they_are_multiplied_with() {
        let mut random = SplitMix64::new(4);
        for (a_heads, heads) in [(1, 3), (3, 9), (4, 4)] {
            let a = Operand::new(sys::GGML_TYPE_F32, [64, 48, a_heads, 1], &mut random);
            let b = Operand::new(sys::GGML_TYPE_F32, [20, 48, heads, 1], &mut random);
            let turned = Operand::new(sys::GGML_TYPE_F32, [48, 20, heads, 1], &mut random).transposed();
            for b in [b, turned] {
                let error = worst_error(&a, &b, [64, 48, a_heads, 20, heads]);
                assert!(error <= 1e-5, "{heads} heads on {a_heads}: {error}");
            }
        }
    }

    #[test]
    fn large_weights_go_in_parts() {
        let (n, m, p) = (4096, 2 * CHUNK / 4096 + 40, 3);
        let mut random = SplitMix64::new(5);
        let (a, b) = (
            Operand::new(sys::GGML_TYPE_Q8_0, [n, m, 1, 1], &mut random),
            Operand::new(sys::GGML_TYPE_F32, [p, m, 1, 1], &mut random),
        );
        let error = worst_error(&a, &b, [n, m, 1, p, 1]);
        assert!(error <= 1e-5, "{error}");
    }
}
