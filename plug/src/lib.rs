//! StepFlow inside a program that loads llama.cpp as a library: no fork of it, and no rebuild.
//!
//! Loaded before llama.cpp (`LD_PRELOAD`, or `dlopen` with `RTLD_GLOBAL`), it stands in for the function that runs a graph
//! (`exports.rs`). From each graph it reads which tokens run at which positions and in which cells (`reading.rs`), tells which
//! text each continues (`chains.rs`), labels them by the model file that is mapped (`model.rs`), and has StepFlow work in the
//! graph (`scheduler.rs`). What it knows of ggml is found out in the process (`runtime.rs`); what it cannot find out it leaves
//! alone, and says so once (`report.rs`).
#![warn(missing_docs)]

#[cfg(target_os = "linux")]
mod attach;
mod chains;
mod exports;
mod model;
mod reading;
mod report;
mod runtime;
mod scheduler;
mod settings;
mod vocabulary;
