//! What a row attends over, in the order in which the kernel goes through it.

use crate::stepflow::oeb::Group;

/// Cells of a chunk, at most.
pub const CHUNK: usize = 512;

/// Cells of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub group: Group,
    /// Which of the plan's cells is the first.
    pub first: usize,
    pub len: usize,
}

/// The visible cells of a row; the same for all heads, and for all layers of a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Cells, group by group.
    pub(super) cells: Vec<u32>,
    /// What the mask adds to each cell's score before a head's slope; `None` where it adds nothing.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) chunks: Vec<Chunk>,
    /// Visible cells of the row's own segment.
    pub(super) n_same: usize,
    /// Visible cells of the bridged segment.
    pub(super) n_bridge: usize,
    /// Cells of the cache that it was made for; it lists none beyond.
    n_kv: usize,
}

impl Plan {
    /// `cells` yields, for each cell of the cache in turn, its group and what the mask adds to its score; `None` where it is
    /// masked.
    pub fn new(cells: impl Iterator<Item = Option<(Group, f32)>>) -> Self {
        let mut groups: [(Vec<u32>, Vec<f32>); 3] = Default::default();
        let mut n_kv = 0;
        for (cell, seen) in cells.enumerate() {
            n_kv = cell + 1;
            let Some((group, bias)) = seen else { continue };
            let (cells, biases) = &mut groups[group as usize];
            cells.push(cell as u32);
            biases.push(bias);
        }
        let [same, bridge, other] = groups;
        let mut plan = Self {
            cells: Vec::new(),
            bias: None,
            chunks: Vec::new(),
            n_same: same.0.len(),
            n_bridge: bridge.0.len(),
            n_kv,
        };
        let mut bias = Vec::new();
        for (group, (cells, biases)) in [(Group::Same, same), (Group::Bridge, bridge), (Group::Other, other)] {
            let first = plan.cells.len();
            let chunk = |at: usize| Chunk { group, first: first + at, len: CHUNK.min(cells.len() - at) };
            plan.chunks.extend((0..cells.len()).step_by(CHUNK).map(chunk));
            plan.cells.extend(&cells);
            bias.extend(biases);
        }
        plan.bias = bias.iter().any(|bias| *bias != 0.0).then_some(bias);
        plan
    }

    /// Whether all of its cells are in a cache of `n_kv`.
    pub fn fits(&self, n_kv: usize) -> bool {
        self.n_kv <= n_kv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_listed_by_group() {
        let plan = Plan::new(
            [
                Some((Group::Other, 0.0)),
                None,
                Some((Group::Same, 0.0)),
                Some((Group::Bridge, 0.0)),
                Some((Group::Same, 0.0)),
            ]
            .into_iter(),
        );
        assert_eq!((&plan.cells[..], plan.n_same, plan.n_bridge, &plan.bias), (&[2, 4, 3, 0][..], 2, 1, &None));
        let chunks: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.group, chunk.first, chunk.len)).collect();
        assert_eq!(chunks, [(Group::Same, 0, 2), (Group::Bridge, 2, 1), (Group::Other, 3, 1)]);
    }

    #[test]
    fn long_groups_are_cut_and_biases_go_with_their_cells() {
        let plan =
            Plan::new((0..CHUNK + 10).map(|i| Some((if i == 0 { Group::Other } else { Group::Same }, i as f32))));
        let lengths: Vec<_> = plan.chunks.iter().map(|chunk| chunk.len).collect();
        assert_eq!(lengths, [CHUNK, 9, 1]);
        assert_eq!(plan.bias.as_ref().map(|bias| (bias[0], *bias.last().unwrap())), Some((1.0, 0.0)));
    }
}
