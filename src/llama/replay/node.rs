//! What a recorded graph computes, in terms that rules of differentiation can be written in.

use super::weight::Weight;

/// A tensor of a [`super::Part`].
#[derive(Debug)]
pub struct Node {
    /// llama.cpp's name for it.
    pub name: String,
    /// What computes it.
    pub operation: Operation,
    /// Where its elements are.
    pub layout: Layout,
    /// The nodes that it is computed from.
    pub sources: Vec<usize>,
}

/// Where the elements of a tensor lie in what its owner holds, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The node whose memory it is; itself where it is no view.
    pub owner: usize,
    /// Its first element.
    pub offset: usize,
    /// Elements of each dimension, the fastest first.
    pub shape: [usize; 4],
    /// From one element of each dimension to the next.
    pub strides: [usize; 4],
}

impl Layout {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether elements lie side by side, all of them.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).all(|(n, stride)| {
            let fits = *n == 1 || *stride == expected;
            expected *= n;
            fits
        })
    }

    /// Rows along the first dimension.
    pub fn n_rows(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Where a row begins, by its place in each of the other dimensions; dimensions of one element stand for any number.
    pub fn row(&self, [i1, i2, i3]: [usize; 3]) -> usize {
        let at = |i: usize, dim: usize| (i % self.shape[dim]) * self.strides[dim];
        self.offset + at(i1, 1) + at(i2, 2) + at(i3, 3)
    }

    /// The place of the row of this number.
    pub fn place(&self, row: usize) -> [usize; 3] {
        let [_, n1, n2, _] = self.shape;
        [row % n1, row / n1 % n2, row / n1 / n2]
    }

    /// Where its rows begin, in their order.
    pub fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_rows()).map(|row| self.row(self.place(row)))
    }
}

/// An operation of ggml's, with its parameters.
#[derive(Debug)]
pub enum Operation {
    /// Given from outside, and differentiated by.
    Given,
    /// The position of each row.
    Positions,
    /// The number of each row: what a graph selects the rows with whose output is wanted.
    RowNumbers,
    /// The same number for every row.
    Constant(f32),
    /// Of the model.
    Weight(Weight),
    /// Pairs of one and zero.
    Pairs,
    /// What a rotation makes of them: pairs of cosine and sine.
    RopeTable,
    /// The same elements in another form.
    View,
    /// A copy in one piece.
    Copy,
    /// `a + b`, `b` repeated.
    Add,
    /// `a - b`, `b` repeated.
    Sub,
    /// `a * b`, `b` repeated.
    Mul,
    /// `a / b`, `b` repeated.
    Div,
    /// `a` and the row of `b` that each id names.
    AddId,
    /// `scale * a + bias`.
    Scale(f32),
    /// `a` between two bounds.
    Clamp(f32, f32),
    /// Repeated along dimensions.
    Repeat,
    /// The sum of each row.
    SumRows,
    /// Root mean square norm of rows, with its epsilon.
    RmsNorm(f32),
    /// Mean and variance norm of rows, with its epsilon.
    Norm(f32),
    /// Rows of `b` times the matrix `a`.
    MulMat,
    /// The same with the matrix that each id names.
    MulMatId,
    /// Rotation of pairs.
    Rope {
        /// The node that has cosine and sine.
        table: usize,
        /// Elements of a row that are rotated.
        n_dims: usize,
        /// Whether pairs are half of those apart, or neighbours.
        halves: bool,
    },
    /// A function of each element.
    Unary(Unary),
    /// A function of two halves, or of two sources.
    Glu {
        /// Which.
        kind: Glu,
        /// Whether the second half of one source is the gate.
        swapped: bool,
    },
    /// Softmax of rows, times a factor.
    SoftMax(f32),
    /// Rows of `a` that ids name, of each token.
    GetRows,
    /// Whole numbers that tell which rows were chosen; they have no gradient.
    Choice,
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "ggml's names")]
pub enum Unary {
    Neg,
    Tanh,
    Relu,
    Sigmoid,
    Gelu,
    GeluErf,
    GeluQuick,
    Silu,
    Exp,
    Softplus,
    Sqr,
    Sqrt,
}

/// A function of a gate and another number.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "ggml's names")]
pub enum Glu {
    Reglu,
    Geglu,
    GegluErf,
    GegluQuick,
    Swiglu,
    /// With its slope and its limit.
    SwigluOai {
        alpha: f32,
        limit: f32,
    },
}
