//! Odds-Equal Bridge (OEB) and Step Momentum Injection (SMI) as plain arithmetic: the formulas, their configuration and
//! their statistics (arXiv 2604.06695, section 4). Nothing here knows llama.cpp; every kernel is checked against this.

pub mod attend;
mod config;
mod layers;
pub mod oeb;
pub mod smi;
mod stats;

pub use config::{ConfigError, OebConfig, SmiConfig, StepFlowConfig, Window};
pub use layers::{LayerSelection, Side};
pub use stats::{Kernels, LayerStats, Stats};
