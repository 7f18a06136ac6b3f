//! StepFlow in a running graph: its repairs as a hook, and the handle on them.

mod control;
mod hook;
mod on_device;
mod settings;

pub use control::Control;
pub use hook::Repair;
