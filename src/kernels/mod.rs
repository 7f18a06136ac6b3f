//! OEB and SMI on the data of a running graph. [`host`] works on host memory; `stepflow::stepflow` holds the oracle.

pub mod host;
