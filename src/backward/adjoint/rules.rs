//! The arithmetic of rules: gradients by what an operation is of, from those by what it gives. Rows are dense.

use rayon::prelude::*;

use crate::backward::functions::glu;
use crate::llama::replay::{Glu, Layout};

/// `f` of each element and of that of `other` that stands for it, where `other` is repeated along dimensions.
pub(super) fn with_repeated(
    dy: &[f32],
    layout: &Layout,
    other: &[f32],
    repeated: &Layout,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Vec<f32> {
    let (n, m) = (layout.shape[0], repeated.shape[0]);
    let dense = dense_layout(repeated);
    let mut result = vec![0.0; dy.len()];
    result.par_chunks_mut(n).zip(dy.par_chunks(n)).enumerate().for_each(|(row, (to, dy))| {
        let other = &other[dense.row(layout.place(row))..][..m];
        if m == n {
            to.iter_mut().zip(dy.iter().zip(other)).for_each(|(to, (dy, other))| *to = f(*dy, *other));
        } else {
            to.iter_mut().zip(dy).enumerate().for_each(|(i, (to, dy))| *to = f(*dy, other[i % m]));
        }
    });
    result
}

/// The gradient by what was repeated to a shape.
pub(super) fn sum_repeated(dy: &[f32], layout: &Layout, repeated: &Layout) -> Vec<f32> {
    if layout.shape == repeated.shape {
        return dy.to_vec();
    }
    let (n, m) = (layout.shape[0], repeated.shape[0]);
    let dense = dense_layout(repeated);
    let mut sums = vec![0.0; repeated.len()];
    for (row, dy) in dy.chunks_exact(n).enumerate() {
        let to = &mut sums[dense.row(layout.place(row))..][..m];
        for dy in dy.chunks_exact(m) {
            to.iter_mut().zip(dy).for_each(|(to, dy)| *to += dy);
        }
    }
    sums
}

pub(super) fn sum_repeated_of(dy: Vec<f32>, layout: &Layout, repeated: &Layout) -> Vec<f32> {
    if layout.shape == repeated.shape { dy } else { sum_repeated(&dy, layout, repeated) }
}

/// The same shape in one piece.
fn dense_layout(layout: &Layout) -> Layout {
    let [n, n1, n2, _] = layout.shape;
    Layout { offset: 0, strides: [1, n, n * n1, n * n1 * n2], ..*layout }
}

/// Through a norm of rows, by their root mean square, or by mean and variance.
pub(super) fn norm(dy: &[f32], x: &[f32], n: usize, epsilon: f32, centred: bool) -> Vec<f32> {
    let mut dx = vec![0.0; dy.len()];
    dx.par_chunks_mut(n).zip(dy.par_chunks(n).zip(x.par_chunks(n))).for_each(|(dx, (dy, x))| {
        let mean_of = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        let (x, dy) = (|i: usize| f64::from(x[i]), |i: usize| f64::from(dy[i]));
        let mean = if centred { mean_of(&x) } else { 0.0 };
        let scale = 1.0 / (mean_of(&|i| (x(i) - mean).powi(2)) + f64::from(epsilon)).sqrt();
        let along = mean_of(&|i| (x(i) - mean) * dy(i)) * scale * scale;
        let common = if centred { mean_of(&dy) } else { 0.0 };
        dx.iter_mut().enumerate().for_each(|(i, dx)| *dx = (scale * (dy(i) - common - (x(i) - mean) * along)) as f32);
    });
    dx
}

/// Through a rotation of pairs: the other way round.
pub(super) fn rotated_back(dy: &[f32], layout: &Layout, table: &[f32], n_dims: usize, halves: bool) -> Vec<f32> {
    let [n, n_head, ..] = layout.shape;
    let mut dx = dy.to_vec();
    dx.par_chunks_mut(n * n_head).zip(table.par_chunks(n)).for_each(|(heads, table)| {
        for head in heads.chunks_exact_mut(n) {
            for pair in 0..n_dims / 2 {
                let (a, b) = if halves { (pair, pair + n_dims / 2) } else { (2 * pair, 2 * pair + 1) };
                let (cos, sin) = (table[a], table[b]);
                (head[a], head[b]) = (cos * head[a] + sin * head[b], cos * head[b] - sin * head[a]);
            }
        }
    });
    dx
}

/// Through a choice of rows, of each token: what was not chosen has no gradient.
pub(super) fn scattered(dy: &[f32], layout: &Layout, ids: &[usize], source: &Layout) -> Vec<f32> {
    let [n, chosen, ..] = layout.shape;
    let [_, among, ..] = source.shape;
    let mut dx = vec![0.0; source.len()];
    for (i, (dy, id)) in dy.chunks_exact(n).zip(ids).enumerate() {
        let to = &mut dx[(i / chosen * among + id) * n..][..n];
        to.iter_mut().zip(dy).for_each(|(to, dy)| *to += dy);
    }
    dx
}

/// Through a softmax of rows, from what it gave.
pub(super) fn softmax(mut dy: Vec<f32>, y: &[f32], n: usize, scale: f32) -> Vec<f32> {
    for (dy, y) in dy.chunks_exact_mut(n).zip(y.chunks_exact(n)) {
        let mean: f32 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
        dy.iter_mut().zip(y).for_each(|(dy, y)| *dy = scale * y * (*dy - mean));
    }
    dy
}

/// Through a function of gates and of others.
pub(super) fn gated(kind: Glu, dy: Vec<f32>, gate: &[f32], other: &[f32], n: usize) -> [Vec<f32>; 2] {
    let (mut by_gate, mut by_other) = (dy.clone(), dy);
    let rows = by_gate.par_chunks_mut(n).zip(by_other.par_chunks_mut(n));
    rows.zip(gate.par_chunks(n).zip(other.par_chunks(n))).for_each(|((by_gate, by_other), (gate, other))| {
        for ((a, b), (gate, other)) in by_gate.iter_mut().zip(by_other).zip(gate.iter().zip(other)) {
            let slopes = glu(kind, *gate, *other);
            (*a, *b) = (*a * slopes.0, *b * slopes.1);
        }
    });
    [by_gate, by_other]
}

/// The same where each row is gates, then others; `swapped` the other way round.
pub(super) fn gated_halves(kind: Glu, dy: &[f32], both: &[f32], n: usize, swapped: bool) -> Vec<f32> {
    let (gate, other) = if swapped { (n, 0) } else { (0, n) };
    let mut by_both = vec![0.0; both.len()];
    by_both.par_chunks_mut(2 * n).zip(both.par_chunks(2 * n).zip(dy.par_chunks(n))).for_each(|(by, (both, dy))| {
        for j in 0..n {
            let slopes = glu(kind, both[gate + j], both[other + j]);
            (by[gate + j], by[other + j]) = (dy[j] * slopes.0, dy[j] * slopes.1);
        }
    });
    by_both
}
