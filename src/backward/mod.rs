//! Exact gradients, one layer at a time: a forward pass that keeps each layer's input, and a backward pass through the layers
//! that are run again from there. Memory grows with the tokens, never with their square.

mod adjoint;
mod attention;
mod bridge;
mod functions;
mod inputs;
mod lanes;
mod loss;
mod memory;
mod pass;
mod product;
mod repairs;
mod run;
mod weights;

pub use attention::{Products, Unwatched, Watch};
pub(crate) use lanes::sums;
pub use memory::Needed;
pub use pass::{LayerResult, Outcome, Pass, Progress, Sensitivity, try_out};
pub use repairs::Repairs;
