//! Finds the sources of the llama.cpp that this package is linked with.

use std::path::PathBuf;

/// Their folder. The crate that builds llama.cpp says where it was built, and CMake keeps there what it was built from;
/// cargo need not be asked, which may be offline.
pub fn llama_sources() -> PathBuf {
    let root = PathBuf::from(std::env::var_os("DEP_LLAMA_ROOT").expect("llama-cpp-sys-2 builds with CMake"));
    let cache = root.join("build/CMakeCache.txt");
    let text = std::fs::read_to_string(&cache).unwrap_or_else(|error| panic!("{}: {error}", cache.display()));
    let folder = text.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="));
    folder.unwrap_or_else(|| panic!("{}: expected CMAKE_HOME_DIRECTORY, found none", cache.display())).into()
}
