//! The `stepflow` program.
fn main() {}
