//! What a part of a layer makes of gradients: from those by its targets to those by what it is given.

use std::borrow::Cow;

use rayon::prelude::*;

use super::functions::{glu, unary};
use super::weights::{by_matrices, by_matrix};
use crate::llama::replay::{Layout, Node, Operation, Part, Weight, Workspace};

/// A part, and which of its nodes hang on what it is given.
pub struct Adjoint {
    depends: Vec<bool>,
}

impl Adjoint {
    /// Has a part keep what its rules ask for.
    ///
    /// # Errors
    /// When there is no rule for something of it; the message names it.
    pub fn new(part: &mut Part) -> Result<Self, String> {
        let mut depends: Vec<bool> = Vec::with_capacity(part.nodes().len());
        for node in part.nodes() {
            let depends_on_source = node.sources.iter().any(|source| depends[*source]);
            depends.push(match node.operation {
                Operation::Given => true,
                Operation::Choice | Operation::RopeTable => false,
                _ => depends_on_source,
            });
        }
        let mut kept = Vec::new();
        for (i, node) in part.nodes().iter().enumerate().filter(|(i, _)| depends[*i]) {
            let wanted = needed(i, node, &depends).map_err(|error| format!("{}: {error}", node.name))?;
            kept.extend(wanted.into_iter().filter(|node| !is_weight(part, *node)));
        }
        part.keep(kept);
        Ok(Self { depends })
    }

    /// The loss's derivatives by all that the part was given, from those by its targets, row after row. The part has run, and
    /// kept what it was asked to.
    pub fn run(&self, part: &Part, workspace: &Workspace, by_targets: Vec<Cow<'_, [f32]>>) -> Vec<Vec<f32>> {
        let mut pass = Pass { part, workspace, gradients: vec![None; part.nodes().len()] };
        for (target, gradient) in part.targets().iter().zip(by_targets) {
            pass.add(*target, gradient);
        }
        for (i, node) in part.nodes().iter().enumerate().rev() {
            if self.depends[i] && !matches!(node.operation, Operation::Given | Operation::View) {
                pass.through(i, node, &self.depends);
            }
        }
        let none = |given: &usize| vec![0.0; part.nodes()[*given].layout.len()];
        part.given().iter().map(|given| pass.gradients[*given].take().unwrap_or_else(|| none(given))).collect()
    }
}

fn is_weight(part: &Part, node: usize) -> bool {
    matches!(part.nodes()[node].operation, Operation::Weight(_))
}

/// The nodes whose values the rule of a node asks for.
fn needed(i: usize, node: &Node, depends: &[bool]) -> Result<Vec<usize>, String> {
    let source = |i: usize| node.sources[i];
    let hangs = |i: usize| depends[node.sources[i]];
    let only_first = |values: Vec<usize>| {
        if node.sources.iter().skip(1).any(|source| depends[*source]) {
            Err("no rule for a gradient by its second source".to_owned())
        } else {
            Ok(values)
        }
    };
    match &node.operation {
        Operation::Mul => {
            let other = |i: usize| hangs(i).then(|| source(1 - i));
            Ok([other(0), other(1)].into_iter().flatten().collect())
        }
        Operation::Div if hangs(1) => Ok(vec![source(1), i]),
        Operation::Div => Ok(vec![source(1)]),
        Operation::SoftMax(_) => Ok(vec![i]),
        Operation::Clamp(..) | Operation::RmsNorm(_) | Operation::Norm(_) | Operation::Unary(_) => Ok(vec![source(0)]),
        Operation::Glu { .. } => Ok(node.sources.clone()),
        Operation::Rope { table, .. } => only_first(vec![*table]),
        Operation::GetRows | Operation::AddId => only_first(vec![*node.sources.last().expect("ids")]),
        Operation::MulMat if hangs(0) => {
            Err("no rule for a product of what both depend on the layer's input".to_owned())
        }
        Operation::MulMatId if hangs(0) => Err("no rule for experts that depend on the layer's input".to_owned()),
        Operation::MulMatId => Ok(vec![source(2)]),
        _ => Ok(Vec::new()),
    }
}

/// Gradients on their way.
struct Pass<'a> {
    part: &'a Part,
    workspace: &'a Workspace,
    /// By what each owner of memory holds, in one piece.
    gradients: Vec<Option<Vec<f32>>>,
}

impl Pass<'_> {
    /// Takes the gradient by a node through the operation that computed it.
    fn through(&mut self, i: usize, node: &Node, depends: &[bool]) {
        let layout = &node.layout;
        let Some(dy) = self.gradients[i].take() else { return };
        let n = layout.shape[0];
        let hangs = |source: usize| depends[node.sources[source]];
        let [first, second] = [0, 1].map(|source| node.sources.get(source).copied());
        let first = first.expect("an operation on something");
        let source = |source: usize| &self.part.nodes()[source].layout;
        let mut results: Vec<(usize, Vec<f32>)> = Vec::new();
        match node.operation {
            Operation::Add | Operation::Sub => {
                if let Some(second) = second.filter(|_| hangs(1)) {
                    let mut by_second = sum_repeated(&dy, layout, source(second));
                    if matches!(node.operation, Operation::Sub) {
                        by_second.iter_mut().for_each(|x| *x = -*x);
                    }
                    results.push((second, by_second));
                }
                if hangs(0) {
                    results.push((first, dy));
                }
            }
            Operation::AddId | Operation::Copy => results.push((first, dy)),
            Operation::Mul => {
                let second = second.expect("two factors");
                if hangs(0) {
                    let factor = self.dense(second);
                    let by_first = with_repeated(&dy, layout, &factor, source(second), |dy, factor| dy * factor);
                    results.push((first, sum_repeated_of(by_first, layout, source(first))));
                }
                if hangs(1) {
                    let factor = self.dense(first);
                    let by_second = with_repeated(&dy, layout, &factor, source(first), |dy, factor| dy * factor);
                    results.push((second, sum_repeated_of(by_second, layout, source(second))));
                }
            }
            Operation::Div => {
                let second = second.expect("two numbers");
                let divisor = self.dense(second);
                let by_first = with_repeated(&dy, layout, &divisor, source(second), |dy, divisor| dy / divisor);
                if hangs(1) {
                    let quotient = self.dense(i);
                    let by_second: Vec<f32> = by_first.iter().zip(quotient.iter()).map(|(a, q)| -a * q).collect();
                    results.push((second, sum_repeated_of(by_second, layout, source(second))));
                }
                results.push((first, by_first));
            }
            Operation::Scale(factor) => {
                let mut dy = dy;
                dy.iter_mut().for_each(|x| *x *= factor);
                results.push((first, dy));
            }
            Operation::Clamp(min, max) => {
                let (mut dy, x) = (dy, self.dense(first));
                let outside = |x: f32| !(x > min && x < max);
                dy.iter_mut().zip(x.iter()).filter(|(_, x)| outside(**x)).for_each(|(dy, _)| *dy = 0.0);
                results.push((first, dy));
            }
            Operation::Repeat => results.push((first, sum_repeated(&dy, layout, source(first)))),
            Operation::SumRows => {
                let width = source(first).shape[0];
                results.push((first, dy.iter().flat_map(|x| std::iter::repeat_n(*x, width)).collect()));
            }
            Operation::RmsNorm(epsilon) => {
                results.push((first, norm(&dy, &self.dense(first), n, epsilon, false)));
            }
            Operation::Norm(epsilon) => results.push((first, norm(&dy, &self.dense(first), n, epsilon, true))),
            Operation::MulMat => {
                let second = second.expect("a matrix and rows");
                results.push((second, by_matrix(self.weight(first), &dy)));
            }
            Operation::MulMatId => {
                let second = second.expect("matrices and rows");
                let ids = self.ids(node.sources[2]);
                let [_, slots, ..] = layout.shape;
                results.push((second, by_matrices(self.weight(first), &dy, &ids, slots, source(second).shape[1])));
            }
            Operation::Rope { table, n_dims, halves } => {
                let table = self.dense(table);
                results.push((first, rotated_back(&dy, layout, &table, n_dims, halves)));
            }
            Operation::Unary(function) => {
                let mut dy = dy;
                let x = self.dense(first);
                dy.par_chunks_mut(n).zip(x.par_chunks(n)).for_each(|(dy, x)| {
                    dy.iter_mut().zip(x).for_each(|(dy, x)| *dy *= unary(function, *x).1);
                });
                results.push((first, dy));
            }
            Operation::Glu { kind, swapped } => match second {
                Some(second) => {
                    let (gate, other) = (self.dense(first), self.dense(second));
                    let (mut by_gate, mut by_other) = (dy.clone(), dy);
                    let by = by_gate.par_chunks_mut(n).zip(by_other.par_chunks_mut(n));
                    by.zip(gate.par_chunks(n).zip(other.par_chunks(n))).for_each(
                        |((by_gate, by_other), (gate, other))| {
                            for ((a, b), (gate, other)) in by_gate.iter_mut().zip(by_other).zip(gate.iter().zip(other))
                            {
                                let slopes = glu(kind, *gate, *other);
                                (*a, *b) = (*a * slopes.0, *b * slopes.1);
                            }
                        },
                    );
                    results.extend([(first, by_gate), (second, by_other)]);
                }
                None => {
                    let both = self.dense(first);
                    let mut by_both = vec![0.0; both.len()];
                    by_both.par_chunks_mut(2 * n).zip(both.par_chunks(2 * n)).zip(dy.par_chunks(n)).for_each(
                        |((by, both), dy)| {
                            let (gate, other) = if swapped { (n, 0) } else { (0, n) };
                            for j in 0..n {
                                let slopes = glu(kind, both[gate + j], both[other + j]);
                                (by[gate + j], by[other + j]) = (dy[j] * slopes.0, dy[j] * slopes.1);
                            }
                        },
                    );
                    results.push((first, by_both));
                }
            },
            Operation::SoftMax(scale) => {
                let (mut dy, y) = (dy, self.dense(i));
                for (dy, y) in dy.chunks_exact_mut(n).zip(y.chunks_exact(n)) {
                    let mean: f32 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
                    dy.iter_mut().zip(y).for_each(|(dy, y)| *dy = scale * y * (*dy - mean));
                }
                results.push((first, dy));
            }
            Operation::GetRows => {
                if matches!(self.part.nodes()[node.sources[1]].operation, Operation::RowNumbers) {
                    // Every row, in its place.
                    results.push((first, dy));
                } else {
                    let ids = self.ids(node.sources[1]);
                    results.push((first, scattered(&dy, layout, &ids, source(first))));
                }
            }
            Operation::Given
            | Operation::View
            | Operation::Weight(_)
            | Operation::Positions
            | Operation::RowNumbers
            | Operation::Constant(_)
            | Operation::Pairs
            | Operation::RopeTable
            | Operation::Choice => unreachable!("{} has no gradient of its own", node.name),
        }
        for (source, gradient) in results {
            self.add(source, Cow::Owned(gradient));
        }
    }

    /// Adds a gradient by a node, row after row, to what its owner has.
    fn add(&mut self, node: usize, gradient: Cow<'_, [f32]>) {
        let layout = self.part.nodes()[node].layout;
        assert_eq!(gradient.len(), layout.len(), "a gradient of its node's shape");
        let owner = &self.part.nodes()[layout.owner].layout;
        let all = layout.is_contiguous() && layout.len() == owner.len();
        match &mut self.gradients[layout.owner] {
            empty @ None if all => *empty = Some(gradient.into_owned()),
            place => {
                let whole = place.get_or_insert_with(|| vec![0.0; owner.len()]);
                if all {
                    whole.par_chunks_mut(4096).zip(gradient.par_chunks(4096)).for_each(|(to, from)| {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    });
                } else {
                    let [n, stride] = [layout.shape[0], layout.strides[0]];
                    for (row, from) in layout.rows().zip(gradient.chunks_exact(n)) {
                        from.iter().enumerate().for_each(|(i, x)| whole[row + i * stride] += x);
                    }
                }
            }
        }
    }

    /// What a node holds, row after row.
    fn dense(&self, node: usize) -> Cow<'_, [f32]> {
        let Node { operation, layout, .. } = &self.part.nodes()[node];
        if let Operation::Weight(weight) = operation {
            // Weights live as long as the part.
            return weight.floats().map_or_else(|| Cow::Owned(weight.to_vec()), Cow::Borrowed);
        }
        let values = self.part.values(self.workspace, node);
        if layout.is_contiguous() {
            return Cow::Borrowed(&values[layout.offset..][..layout.len()]);
        }
        let [n, stride] = [layout.shape[0], layout.strides[0]];
        Cow::Owned(layout.rows().flat_map(|row| (0..n).map(move |i| values[row + i * stride])).collect())
    }

    fn ids(&self, node: usize) -> Vec<usize> {
        let layout = &self.part.nodes()[node].layout;
        let values = self.part.integers(self.workspace, node);
        let id = |at: usize| usize::try_from(values[at]).expect("ggml chooses experts by their numbers");
        layout.rows().flat_map(|row| (0..layout.shape[0]).map(move |i| id(row + i * layout.strides[0]))).collect()
    }

    fn weight(&self, node: usize) -> &Weight {
        match &self.part.nodes()[node].operation {
            Operation::Weight(weight) => weight,
            _ => unreachable!("a product whose matrix is no weight was refused"),
        }
    }
}

/// `f` of each element and of that of `other` that stands for it, where `other` is repeated along dimensions.
fn with_repeated(
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
fn sum_repeated(dy: &[f32], layout: &Layout, repeated: &Layout) -> Vec<f32> {
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

fn sum_repeated_of(dy: Vec<f32>, layout: &Layout, repeated: &Layout) -> Vec<f32> {
    if layout.shape == repeated.shape { dy } else { sum_repeated(&dy, layout, repeated) }
}

/// The same shape in one piece.
fn dense_layout(layout: &Layout) -> Layout {
    let [n, n1, n2, _] = layout.shape;
    Layout { offset: 0, strides: [1, n, n * n1, n * n1 * n2], ..*layout }
}

/// Through a norm of rows, by their root mean square, or by mean and variance.
fn norm(dy: &[f32], x: &[f32], n: usize, epsilon: f32, centred: bool) -> Vec<f32> {
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
fn rotated_back(dy: &[f32], layout: &Layout, table: &[f32], n_dims: usize, halves: bool) -> Vec<f32> {
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
fn scattered(dy: &[f32], layout: &Layout, ids: &[usize], source: &Layout) -> Vec<f32> {
    let [n, chosen, ..] = layout.shape;
    let [_, among, ..] = source.shape;
    let mut dx = vec![0.0; source.len()];
    for (i, (dy, id)) in dy.chunks_exact(n).zip(ids).enumerate() {
        let to = &mut dx[(i / chosen * among + id) * n..][..n];
        to.iter_mut().zip(dy).for_each(|(to, dy)| *to += dy);
    }
    dx
}

#[cfg(test)]
mod tests;
