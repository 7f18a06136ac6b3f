//! The GPU kernels against the oracle, case by case: their sources on the CPU, or with `STEPFLOW_KERNELS` a built library
//! on the GPU that it is for.

mod attend;
mod attention;
mod cache;
mod draw;
mod oeb;
mod probe;
#[path = "../shim/mod.rs"]
mod shim;
mod smi;

use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shim::Language;
use stepflow::kernels::{Device, Library, Place, Plain, Table};

/// A device with kernels to check.
struct On {
    name: &'static str,
    device: Device,
    place: Place,
}

impl On {
    /// The first device of a library, which serves a backend of this name from here on.
    fn new(name: &'static str, library: Library) -> Self {
        library.provide(name);
        Self { name, device: Device::open(library, 0).unwrap(), place: Place { backend: name, ordinal: 0 } }
    }
}

fn devices() -> &'static [On] {
    static DEVICES: OnceLock<Vec<On>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        if let Some(path) = std::env::var_os("STEPFLOW_KERNELS") {
            return vec![On::new("GPU", Library::open(path.as_ref()).unwrap())];
        }
        let folder = tempfile::tempdir().unwrap();
        let shim = |name, language| On::new(name, shim::library(language, folder.path()));
        vec![shim("CUDA sources", Language::Cuda), shim("Metal sources", Language::Metal)]
    })
}

/// Runs `check` on `cases` draws, as many as some seconds allow on the CPU: ten times as many on a GPU, or as many as
/// `STEPFLOW_KERNEL_CASES` says.
fn check<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let asked = std::env::var("STEPFLOW_KERNEL_CASES").map(|text| text.parse().expect("a number of cases"));
    let cases = asked.unwrap_or(if std::env::var_os("STEPFLOW_KERNELS").is_some() { 10 * cases } else { cases });
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, check).unwrap();
}

fn table<T: Plain>(device: &Device, values: Vec<T>) -> Table<T> {
    let mut table = Table::default();
    table.upload(device, values).unwrap();
    table
}
