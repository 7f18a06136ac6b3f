//! Binds the kernels' interface.

use std::path::PathBuf;

/// Writes `kernels.rs` for device.h in the folder `kernels`.
pub fn bind(kernels: &str) {
    for header in ["device.h", "args.h"] {
        println!("cargo:rerun-if-changed={kernels}/{header}");
    }
    let header = format!("{kernels}/device.h");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    let bindings = bindgen::Builder::default()
        .header(&header)
        .allowlist_type("Sf.*")
        .allowlist_var("SF_.*")
        .prepend_enum_name(false)
        .derive_partialeq(true)
        .no_partialeq("SfKernels")
        .generate()
        .unwrap_or_else(|error| panic!("{header}: {error}"));
    bindings.write_to_file(out).expect("cargo's own folder can be written");
}
