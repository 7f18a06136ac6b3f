//! One sequence from prompt to tokens: what every front of the program uses.

mod repair;
mod score;

pub use repair::{Control, Repair};
pub use score::score;
