//! What llama.cpp computes of a layer for each row alone, recorded from one decode and run again for any rows.
//!
//! A layer is cut where rows meet: at attention. Before it, [`Layer::pre`] makes queries, keys and values of the layer's input;
//! behind it, [`Layer::post`] makes the layer's output of its input and of what attention gave. Nothing of it is written down
//! for an architecture: what llama.cpp builds is what runs again, with the same bits.

mod node;
mod operation;
mod part;
mod record;
mod weight;

pub use node::{Glu, Layout, Node, Operation, Unary};
#[cfg(test)]
pub(crate) use part::tests::Bench;
pub use part::{Part, Which, Workspace};
pub use record::{Attention, Layer, Recorded, Replay, Softcap};
pub use weight::Weight;
