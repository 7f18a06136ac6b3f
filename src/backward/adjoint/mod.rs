//! What a part of a layer makes of gradients: from those by its targets to those by what it is given.

mod rules;

use std::borrow::Cow;

use rayon::prelude::*;

use super::functions::unary;
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
struct Pass<'p> {
    part: &'p Part,
    workspace: &'p Workspace,
    /// By what each owner of memory holds, in one piece.
    gradients: Vec<Option<Vec<f32>>>,
}

impl<'p> Pass<'p> {
    /// Takes the gradient by a node through the operation that computed it.
    fn through(&mut self, i: usize, node: &Node, depends: &[bool]) {
        let layout = &node.layout;
        let Some(dy) = self.gradients[i].take() else { return };
        let n = layout.shape[0];
        let [first, second] = [0, 1].map(|source| node.sources.get(source).copied());
        let first = first.expect("an operation on something");
        let by_first = match node.operation {
            Operation::Add | Operation::Sub => return self.through_sum(node, dy, depends),
            Operation::Mul => return self.through_product(node, &dy, depends),
            Operation::Div => return self.through_quotient(i, node, &dy, depends),
            Operation::MulMat | Operation::MulMatId => return self.through_weights(node, &dy),
            Operation::Glu { kind, .. } if second.is_some() => {
                let second = second.expect("just seen");
                let [by_gate, by_other] = rules::gated(kind, dy, &self.dense(first), &self.dense(second), n);
                self.add(first, by_gate.into());
                return self.add(second, by_other.into());
            }
            Operation::Glu { kind, swapped } => rules::gated_halves(kind, &dy, &self.dense(first), n, swapped),
            Operation::AddId | Operation::Copy => dy,
            Operation::Scale(factor) => dy.iter().map(|x| x * factor).collect(),
            Operation::Clamp(min, max) => {
                let inside = |x: f32| if x > min && x < max { 1.0 } else { 0.0 };
                dy.iter().zip(self.dense(first).iter()).map(|(dy, x)| dy * inside(*x)).collect()
            }
            Operation::Repeat => rules::sum_repeated(&dy, layout, self.layout(first)),
            Operation::SumRows => {
                let width = self.layout(first).shape[0];
                dy.iter().flat_map(|x| std::iter::repeat_n(*x, width)).collect()
            }
            Operation::RmsNorm(epsilon) => rules::norm(&dy, &self.dense(first), n, epsilon, false),
            Operation::Norm(epsilon) => rules::norm(&dy, &self.dense(first), n, epsilon, true),
            Operation::Rope { table, n_dims, halves } => {
                rules::rotated_back(&dy, layout, &self.dense(table), n_dims, halves)
            }
            Operation::Unary(function) => {
                let x = self.dense(first);
                dy.par_iter().zip(x.par_iter()).map(|(dy, x)| dy * unary(function, *x).1).collect()
            }
            Operation::SoftMax(scale) => rules::softmax(dy, &self.dense(i), n, scale),
            // Every row, in its place.
            Operation::GetRows if self.is_row_numbers(node.sources[1]) => dy,
            Operation::GetRows => rules::scattered(&dy, layout, &self.ids(node.sources[1]), self.layout(first)),
            Operation::Given
            | Operation::View
            | Operation::Weight(_)
            | Operation::Positions
            | Operation::RowNumbers
            | Operation::Constant(_)
            | Operation::Pairs
            | Operation::RopeTable
            | Operation::Choice => unreachable!("{} has no gradient of its own", node.name),
        };
        self.add(first, by_first.into());
    }

    fn through_sum(&mut self, node: &Node, dy: Vec<f32>, depends: &[bool]) {
        let (first, second) = (node.sources[0], node.sources[1]);
        if depends[second] {
            let mut by_second = rules::sum_repeated(&dy, &node.layout, self.layout(second));
            if matches!(node.operation, Operation::Sub) {
                by_second.iter_mut().for_each(|x| *x = -*x);
            }
            self.add(second, by_second.into());
        }
        if depends[first] {
            self.add(first, dy.into());
        }
    }

    fn through_product(&mut self, node: &Node, dy: &[f32], depends: &[bool]) {
        let (first, second) = (node.sources[0], node.sources[1]);
        for (one, other) in [(first, second), (second, first)].into_iter().filter(|(one, _)| depends[*one]) {
            let by = rules::with_repeated(dy, &node.layout, &self.dense(other), self.layout(other), |dy, x| dy * x);
            let by = rules::sum_repeated_of(by, &node.layout, self.layout(one));
            self.add(one, by.into());
        }
    }

    fn through_quotient(&mut self, i: usize, node: &Node, dy: &[f32], depends: &[bool]) {
        let (first, second) = (node.sources[0], node.sources[1]);
        let divisor = self.dense(second);
        let by_first = rules::with_repeated(dy, &node.layout, &divisor, self.layout(second), |dy, x| dy / x);
        if depends[second] {
            let by_second = by_first.iter().zip(self.dense(i).iter()).map(|(by, quotient)| -by * quotient).collect();
            let by_second = rules::sum_repeated_of(by_second, &node.layout, self.layout(second));
            self.add(second, by_second.into());
        }
        self.add(first, by_first.into());
    }

    fn through_weights(&mut self, node: &Node, dy: &[f32]) {
        let (weight, rows) = (self.weight(node.sources[0]), node.sources[1]);
        let by_rows = match node.operation {
            Operation::MulMat => by_matrix(weight, dy),
            _ => {
                let (slots, inputs) = (node.layout.shape[1], self.layout(rows).shape[1]);
                by_matrices(weight, dy, &self.ids(node.sources[2]), slots, inputs)
            }
        };
        self.add(rows, by_rows.into());
    }

    fn layout(&self, node: usize) -> &'p Layout {
        &self.part.nodes()[node].layout
    }

    fn is_row_numbers(&self, node: usize) -> bool {
        matches!(self.part.nodes()[node].operation, Operation::RowNumbers)
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
    fn dense(&self, node: usize) -> Cow<'p, [f32]> {
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

    fn weight(&self, node: usize) -> &'p Weight {
        match &self.part.nodes()[node].operation {
            Operation::Weight(weight) => weight,
            _ => unreachable!("a product whose matrix is no weight was refused"),
        }
    }
}

#[cfg(test)]
mod tests;
