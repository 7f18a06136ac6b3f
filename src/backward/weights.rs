//! Gradients through products with the model's weights, which are dequantized a panel at a time.

use std::borrow::Cow;

use rayon::prelude::*;

use super::product::{Matrix, multiply};
use crate::llama::replay::Weight;

/// Rows of a panel: what a product sums over before the next panel.
const PANEL: usize = 256;
/// The most columns of a panel, so that it stays in a core's cache.
const COLUMNS: usize = 1024;

/// Rows times a matrix of weights: `dy` are rows of as many numbers as the matrix has rows. Gives rows of as many as it has
/// columns.
pub(super) fn by_matrix(weight: &Weight, dy: &[f32]) -> Vec<f32> {
    let [width, n, ..] = weight.shape();
    let rows = dy.len() / n;
    let share = width.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(weight.block());
    let columns = share.min(COLUMNS.next_multiple_of(weight.block()));
    let parts: Vec<(usize, Vec<f32>)> = (0..width)
        .step_by(columns)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|start| (start, columns_by_matrix(weight, 0, dy, rows, start..width.min(start + columns))))
        .collect();
    let mut all = vec![0.0; rows * width];
    all.par_chunks_mut(width).enumerate().for_each(|(row, to)| {
        for (start, part) in &parts {
            let n = part.len() / rows;
            to[*start..start + n].copy_from_slice(&part[row * n..(row + 1) * n]);
        }
    });
    all
}

/// Some columns of it, `rows` times.
fn columns_by_matrix(
    weight: &Weight,
    matrix: usize,
    dy: &[f32],
    rows: usize,
    columns: std::ops::Range<usize>,
) -> Vec<f32> {
    let [_, n, ..] = weight.shape();
    let width = columns.len();
    let mut result = vec![0.0; rows * width];
    let mut panel = vec![0.0; PANEL.min(n) * width];
    for start in (0..n).step_by(PANEL) {
        let height = PANEL.min(n - start);
        let panel = &mut panel[..height * width];
        for (i, to) in panel.chunks_exact_mut(width).enumerate() {
            weight.read(matrix, start + i, columns.start, to);
        }
        let rows_of_dy = Matrix::rows(&dy[start..], rows, height, n);
        multiply(rows_of_dy, Matrix::rows(panel, height, width, width), 1.0, &mut result, width);
    }
    result
}

/// The same with the matrix that each of `slots` ids of a token names; with `inputs` of 1 all slots of a token have the same
/// input, whose gradients add up.
pub(super) fn by_matrices(weight: &Weight, dy: &[f32], ids: &[usize], slots: usize, inputs: usize) -> Vec<f32> {
    let [width, n, n_matrices, _] = weight.shape();
    let places: Vec<Vec<usize>> = (0..n_matrices)
        .map(|matrix| ids.iter().enumerate().filter(|(_, id)| **id == matrix).map(|(place, _)| place).collect())
        .collect();
    let parts: Vec<Vec<f32>> = places
        .par_iter()
        .enumerate()
        .map(|(matrix, places)| {
            let chosen: Cow<'_, [f32]> =
                places.iter().flat_map(|place| &dy[place * n..(place + 1) * n]).copied().collect();
            if places.is_empty() {
                Vec::new()
            } else {
                columns_by_matrix(weight, matrix, &chosen, places.len(), 0..width)
            }
        })
        .collect();
    let mut all = vec![0.0; ids.len() / slots * inputs * width];
    // In the order of the matrices, so that sums do not depend on who was ready first.
    for (places, part) in places.iter().zip(&parts) {
        for (place, from) in places.iter().zip(part.chunks_exact(width)) {
            let input = if inputs == 1 { place / slots } else { *place };
            all[input * width..(input + 1) * width].iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
    all
}
