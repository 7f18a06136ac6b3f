//! The inputs of all layers, from the forward pass to the backward pass: in memory, or in a temporary file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Inputs of layers, of equally many numbers each.
pub(super) enum Inputs {
    Memory(Vec<Vec<f32>>),
    File { file: File, n: usize },
}

impl Inputs {
    /// For inputs of `n` numbers. A temporary file has no name, and goes when it is closed.
    pub fn new(n: usize, in_file: bool) -> io::Result<Self> {
        Ok(if in_file { Self::File { file: tempfile::tempfile()?, n } } else { Self::Memory(Vec::new()) })
    }

    /// Keeps the next layer's.
    pub fn push(&mut self, input: &[f32]) -> io::Result<()> {
        match self {
            Self::Memory(all) => {
                all.push(input.to_vec());
                Ok(())
            }
            Self::File { file, n } => {
                assert_eq!(input.len(), *n, "an input of the same size");
                let mut bytes = Vec::with_capacity(BLOCK * 4);
                for block in input.chunks(BLOCK) {
                    bytes.clear();
                    bytes.extend(block.iter().flat_map(|x| x.to_ne_bytes()));
                    file.write_all(&bytes)?;
                }
                Ok(())
            }
        }
    }

    /// A layer's.
    pub fn of_layer(&mut self, layer: usize) -> io::Result<Vec<f32>> {
        match self {
            Self::Memory(all) => Ok(all[layer].clone()),
            Self::File { file, n } => {
                file.seek(SeekFrom::Start((layer * *n * 4) as u64))?;
                let (mut input, mut bytes) = (Vec::with_capacity(*n), vec![0; BLOCK * 4]);
                while input.len() < *n {
                    let bytes = &mut bytes[..(*n - input.len()).min(BLOCK) * 4];
                    file.read_exact(bytes)?;
                    input.extend(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_ne_bytes(*x)));
                }
                Ok(input)
            }
        }
    }
}

/// Numbers that are written and read at once.
const BLOCK: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let input = |layer: usize| (0..BLOCK + 7).map(|i| (i * 3 + layer) as f32).collect::<Vec<_>>();
        for in_file in [false, true] {
            let mut inputs = Inputs::new(BLOCK + 7, in_file).unwrap();
            (0..3).for_each(|layer| inputs.push(&input(layer)).unwrap());
            (0..3).rev().for_each(|layer| assert_eq!(inputs.of_layer(layer).unwrap(), input(layer)));
        }
    }
}
