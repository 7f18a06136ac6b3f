//! Finds out where a tensor has its fields and which numbers operations have, from tensors of which both are known.

use std::ffi::{c_int, c_void};

use super::{Custom, Functions, Ggml, InitParams, Layout, Operations, Tensor, types};

/// A shape that nothing else has.
const SHAPE: [i64; 4] = [7, 3, 5, 2];
const STRIDES: [usize; 4] = [4, 28, 84, 420];

/// Parameters of a softmax: scale and largest bias.
const PARAMETERS: [f32; 2] = [1.25, 0.5];

/// A tensor's bytes.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// # Safety
    /// It is a tensor in a context, and `overhead` what one takes there: a header and the tensor, in front of other things.
    unsafe fn of<'a>(tensor: *const Tensor, overhead: usize) -> Bytes<'a> {
        // SAFETY: by this function's contract.
        Bytes(unsafe { std::slice::from_raw_parts(tensor.cast(), overhead) })
    }

    fn word(self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    /// Every place of `value`, in steps of its alignment.
    fn places<T: Copy>(self, value: &[T]) -> Vec<usize> {
        // SAFETY: plain numbers and pointers, without padding.
        let needle = unsafe { std::slice::from_raw_parts(value.as_ptr().cast::<u8>(), size_of_val(value)) };
        let places = (0..self.0.len() - needle.len()).step_by(align_of::<T>());
        places.filter(|at| &self.0[*at..at + needle.len()] == needle).collect()
    }
}

/// The one place that there must be.
fn only(what: &'static str, places: &[usize]) -> Result<usize, String> {
    match places {
        [place] => Ok(*place),
        found => Err(format!("expected one place of a tensor's {what}, found {}", found.len())),
    }
}

unsafe extern "C" fn nothing(_: *mut Tensor, _: c_int, _: c_int, _: *mut c_void) {}

impl Ggml {
    /// Looks at the ggml that these functions are of.
    ///
    /// # Errors
    /// What is not where it can be told; then nothing is known of its tensors.
    ///
    /// # Safety
    /// They are the functions of one ggml.
    pub unsafe fn new(functions: Functions) -> Result<Self, String> {
        let f = &functions;
        // SAFETY: by this function's contract; arguments are what ggml documents for them.
        unsafe {
            let mut memory = memory();
            let context = (f.ggml_init)(params(&mut memory, false));
            if context.is_null() {
                return Err("ggml makes no context".to_owned());
            }
            let tensor = |kind: u32, [a, b, c, d]: [i64; 4]| (f.ggml_new_tensor_4d)(context, kind as c_int, a, b, c, d);
            let a = tensor(types::F32, SHAPE);
            let mask = tensor(types::F16, [7, 3, 1, 1]);
            let integers = tensor(types::I32, SHAPE);
            let soft_max = (f.ggml_soft_max_ext)(context, a, mask, PARAMETERS[0], PARAMETERS[1]);
            let view = (f.ggml_view_tensor)(context, a);
            let mul_mat = (f.ggml_mul_mat)(context, a, tensor(types::F32, [7, 4, 5, 2]));
            let set_rows = (f.ggml_set_rows)(
                context,
                tensor(types::F32, [7, 8, 1, 1]),
                tensor(types::F32, [7, 3, 1, 1]),
                tensor(types::I64, [3, 1, 1, 1]),
            );
            let (queries, keys) = (tensor(types::F32, [64, 2, 1, 1]), tensor(types::F16, [64, 4, 1, 1]));
            let values = tensor(types::F16, [64, 4, 1, 1]);
            let none = std::ptr::null_mut();
            let flash = (f.ggml_flash_attn_ext)(context, queries, keys, values, none, 1.0, 0.0, 0.0);
            let cpy = (f.ggml_cpy)(context, a, tensor(types::F32, SHAPE));
            let rope =
                (f.ggml_rope)(context, tensor(types::F32, [64, 3, 5, 1]), tensor(types::I32, [5, 1, 1, 1]), 64, 0);
            let user: *mut c_void = a.cast();
            let mut sources = [a];
            let custom = (f.ggml_custom_4d)(context, 0, 7, 3, 5, 2, sources.as_mut_ptr(), 1, nothing, -1, user);
            // Behind the last tensor there is memory of the context too.
            let last = tensor(types::F32, [1024, 1, 1, 1]);

            let all = [a, mask, integers, soft_max, view, mul_mat, set_rows, flash, cpy, rope, custom, last];
            if all.iter().any(|tensor| tensor.is_null()) {
                (f.ggml_free)(context);
                return Err("ggml makes no tensors".to_owned());
            }
            let overhead = (f.ggml_tensor_overhead)();
            let found = Found {
                a: Bytes::of(a, overhead),
                view: Bytes::of(view, overhead),
                soft_max: Bytes::of(soft_max, overhead),
                types: [a, mask, integers].map(|tensor| Bytes::of(tensor, overhead)),
                operations: [a, soft_max, mul_mat, set_rows, flash, cpy, rope, custom]
                    .map(|tensor| Bytes::of(tensor, overhead)),
                sources: [a, mask],
                data: (f.ggml_get_data)(a),
                name: (f.ggml_get_name)(a) as usize - a as usize,
            };
            let buffer = buffer_of(f);
            let made = found.layout(buffer).map(|(layout, operations)| {
                let at = |tensor: *mut Tensor| tensor.cast::<u8>().add(layout.op_params).cast::<Custom>();
                let Custom { run, n_tasks, user: given, .. } = std::ptr::read_unaligned(at(custom));
                let runs_custom = run as usize == nothing as *const () as usize && n_tasks == -1 && given == user;
                (layout, operations, runs_custom)
            });
            (f.ggml_free)(context);
            let (layout, operations, runs_custom) = made?;
            Ok(Self { functions, layout, operations, runs_custom })
        }
    }
}

/// Memory for a context, cleared: what something else left in it could look like a field. ggml asks for multiples of 16 bytes.
fn memory() -> Vec<u128> {
    vec![0; 1 << 16]
}

fn params(memory: &mut [u128], no_alloc: bool) -> InitParams {
    InitParams { mem_size: size_of_val(memory), mem_buffer: memory.as_mut_ptr().cast(), no_alloc }
}

/// Where a tensor names the buffer of its data, if that shows.
///
/// # Safety
/// As [`Ggml::new`].
unsafe fn buffer_of(f: &Functions) -> Result<usize, String> {
    // SAFETY: by this function's contract.
    unsafe {
        let mut memory = memory();
        let context = (f.ggml_init)(params(&mut memory, true));
        let tensor = (f.ggml_new_tensor_4d)(context, 0, 7, 3, 5, 2);
        // Memory to look at behind it.
        (f.ggml_new_tensor_4d)(context, 0, 7, 3, 5, 2);
        let buffer = (f.ggml_backend_alloc_ctx_tensors_from_buft)(context, (f.ggml_backend_cpu_buffer_type)());
        let place = only("buffer", &Bytes::of(tensor, (f.ggml_tensor_overhead)()).places(&[buffer]));
        (f.ggml_backend_buffer_free)(buffer);
        (f.ggml_free)(context);
        place
    }
}

/// Tensors of which everything is known.
struct Found<'a> {
    a: Bytes<'a>,
    view: Bytes<'a>,
    soft_max: Bytes<'a>,
    /// Of F32, F16 and I32.
    types: [Bytes<'a>; 3],
    /// One of each operation, none first, in the order of [`Operations`].
    operations: [Bytes<'a>; 8],
    /// Of the softmax.
    sources: [*mut Tensor; 2],
    data: *mut c_void,
    name: usize,
}

impl Found<'_> {
    fn layout(&self, buffer: Result<usize, String>) -> Result<(Layout, Operations), String> {
        let words = || (0..self.a.0.len() - 4).step_by(4);
        let expected = [types::F32, types::F16, types::I32];
        let types: Vec<usize> = words().filter(|at| self.types.map(|tensor| tensor.word(*at)) == expected).collect();
        let src = only("sources", &self.soft_max.places(&self.sources))?;
        // A view may have what it looks at for a source too.
        let views: Vec<usize> = self.view.places(&self.sources[..1]).into_iter().filter(|at| *at != src).collect();
        let numbers = |at: usize| self.operations.map(|tensor| tensor.word(at));
        let differ = |numbers: [u32; 8]| {
            let distinct = |i: usize| numbers[..i].iter().all(|number| *number != numbers[i]);
            numbers[0] == 0 && numbers.iter().all(|number| *number < 1024) && (1..8).all(distinct)
        };
        let operations: Vec<usize> = words().filter(|at| differ(numbers(*at))).collect();
        let op = only("operation", &operations)?;
        let [none, soft_max, mul_mat, set_rows, flash_attn_ext, cpy, rope, custom] = numbers(op);
        let layout = Layout {
            type_: only("type", &types)?,
            buffer: buffer?,
            ne: only("shape", &self.a.places(&SHAPE))?,
            nb: only("strides", &self.a.places(&STRIDES))?,
            op,
            op_params: only("parameters", &self.soft_max.places(&PARAMETERS))?,
            src,
            view_src: only("owner", &views)?,
            data: only("data", &self.a.places(&[self.data]))?,
            name: self.name,
        };
        Ok((layout, Operations { none, soft_max, mul_mat, set_rows, flash_attn_ext, cpy, rope, custom }))
    }
}
