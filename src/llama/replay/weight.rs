//! A tensor of the model's, where it is mapped.

use llama_cpp_sys_2 as sys;

/// Weights in any of ggml's types: rows of blocks.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    data: *const u8,
    shape: [usize; 4],
    /// Bytes from one element of each dimension to the next.
    strides: [usize; 4],
    kind: sys::ggml_type,
    /// Elements of a block, and its bytes.
    block: usize,
    block_bytes: usize,
}

// SAFETY: weights are only read, and whoever has one holds the model that they are of.
unsafe impl Send for Weight {}
// SAFETY: as above.
unsafe impl Sync for Weight {}

impl Weight {
    /// # Safety
    /// `tensor` has data in host memory, which stay as they are while the weight lives.
    pub(super) unsafe fn new(tensor: *const sys::ggml_tensor) -> Result<Self, String> {
        // SAFETY: by this function's contract; ggml has traits of every type of a valid tensor.
        let (tensor, traits) = unsafe { (&*tensor, &*sys::ggml_get_type_traits((*tensor).type_)) };
        if tensor.type_ != sys::GGML_TYPE_F32 && traits.to_float.is_none() {
            return Err("weights of a type that cannot be read".to_owned());
        }
        Ok(Self {
            data: tensor.data.cast(),
            shape: tensor.ne.map(|n| n as usize),
            strides: tensor.nb,
            kind: tensor.type_,
            block: traits.blck_size as usize,
            block_bytes: traits.type_size,
        })
    }

    /// Elements of each dimension, the fastest first.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Elements that can only be read together: columns are read from a multiple of it on.
    pub fn block(&self) -> usize {
        self.block
    }

    /// As they are, where they are float32 that lie side by side.
    pub fn floats(&self) -> Option<&[f32]> {
        let [n, rows, matrices, others] = self.shape;
        let dense = self.strides[0] == 4
            && self.strides[1] == 4 * n
            && (matrices == 1 || self.strides[2] == 4 * n * rows)
            && (others == 1 || self.strides[3] == 4 * n * rows * matrices);
        let is_dense = self.kind == sys::GGML_TYPE_F32 && dense;
        // SAFETY: so many floats lie there, and nothing writes them.
        is_dense.then(|| unsafe { std::slice::from_raw_parts(self.data.cast(), n * rows * matrices * others) })
    }

    /// Columns of one row of one matrix as float32, from a multiple of [`Weight::block`] on, a multiple of it, or to the end.
    pub fn read(&self, matrix: usize, row: usize, column: usize, to: &mut [f32]) {
        let [n, rows, matrices, _] = self.shape;
        assert!(row < rows && matrix < matrices && column + to.len() <= n, "weights outside of their matrix");
        assert!(column.is_multiple_of(self.block) && to.len().is_multiple_of(self.block), "weights inside of a block");
        let at = matrix * self.strides[2] + row * self.strides[1] + column / self.block * self.block_bytes;
        // SAFETY: the row lies inside the tensor, and blocks are whole.
        unsafe {
            let from = self.data.add(at);
            if self.kind == sys::GGML_TYPE_F32 {
                std::ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), to.len());
            } else {
                let to_float = (*sys::ggml_get_type_traits(self.kind)).to_float.expect("checked when it was made");
                to_float(from.cast(), to.as_mut_ptr(), to.len() as i64);
            }
        }
    }

    /// All of it as float32, in its order.
    pub fn to_vec(&self) -> Vec<f32> {
        let [n, rows, matrices, _] = self.shape;
        let mut all = vec![0.0; n * rows * matrices];
        for (i, to) in all.chunks_exact_mut(n).enumerate() {
            self.read(i / rows, i % rows, 0, to);
        }
        all
    }
}
