//! Tensor types and the place of a tensor in a file.

use std::ops::Range;

/// The element types of ggml, with the numbers they have in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, non_camel_case_types, reason = "the variants carry ggml's own names")]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use GgmlType::*;

impl GgmlType {
    /// All types, in the order of their numbers.
    pub const ALL: [GgmlType; 35] = [
        F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS,
        IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0,
        Q2_0,
    ];

    /// The type with this number in a file, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| *ty as u32 == id)
    }

    /// Elements of a block: the unit in which a row is stored.
    pub fn block_size(self) -> u64 {
        self.layout().0
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.layout().1
    }

    fn layout(self) -> (u64, u64) {
        match self {
            I8 => (1, 1),
            F16 | BF16 | I16 => (1, 2),
            F32 | I32 => (1, 4),
            F64 | I64 => (1, 8),
            MXFP4 => (32, 17),
            Q4_0 | IQ4_NL => (32, 18),
            Q4_1 => (32, 20),
            Q5_0 => (32, 22),
            Q5_1 => (32, 24),
            Q8_0 => (32, 34),
            Q8_1 => (32, 36),
            Q2_0 => (64, 18),
            NVFP4 => (64, 36),
            Q1_0 => (128, 18),
            IQ1_S => (256, 50),
            TQ1_0 => (256, 54),
            IQ1_M => (256, 56),
            IQ2_XXS | TQ2_0 => (256, 66),
            IQ2_XS => (256, 74),
            IQ2_S => (256, 82),
            Q2_K => (256, 84),
            IQ3_XXS => (256, 98),
            Q3_K | IQ3_S => (256, 110),
            IQ4_XS => (256, 136),
            Q4_K => (256, 144),
            Q5_K => (256, 176),
            Q6_K => (256, 210),
            Q8_K => (256, 292),
        }
    }

    /// Whether llama.cpp can multiply by a matrix of this type. The other types exist for intermediate results, and
    /// a matrix of them has no kernel.
    pub fn is_weight(self) -> bool {
        !matches!(self, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K)
    }

    /// Bytes of a tensor with these dimensions, or what is wrong with them.
    pub(super) fn bytes(self, dims: &[u64]) -> Result<u64, String> {
        if dims.is_empty() || dims.len() > 4 {
            return Err(format!("expected 1 to 4 dimensions, found {}", dims.len()));
        }
        if dims.contains(&0) {
            return Err(format!("expected dimensions above 0, found {dims:?}"));
        }
        if !dims[0].is_multiple_of(self.block_size()) {
            let block = self.block_size();
            return Err(format!("expected rows of a multiple of {block} for type {self:?}, found {}", dims[0]));
        }
        dims.iter()
            .try_fold(1_u64, |product, dim| product.checked_mul(*dim))
            .filter(|elements| *elements <= i64::MAX as u64)
            .and_then(|elements| (elements / self.block_size()).checked_mul(self.block_bytes()))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .ok_or_else(|| format!("expected a size below 2^63, found dimensions {dims:?}"))
    }
}

/// A tensor of a file: its shape, its type, and where its data lies.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, the length of a row first.
    pub dims: Vec<u64>,
    /// Type of the elements.
    pub ty: GgmlType,
    /// Where the data begins, in bytes from the beginning of the file.
    pub start: u64,
    /// Size of the data in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The bytes of the file that hold the data.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes
    }
}
