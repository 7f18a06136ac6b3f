//! Room for recursion: llama.cpp's template engine, grammar writer and parser recurse over what they are given.

use super::super::stack::on_stack;
use super::ChatError;

/// In bytes. The hungriest are templates that describe a tool's parameters by macros calling themselves, with some
/// 10 KiB a level; std::regex takes up to 1 KiB for every letter that no rule's name may have; the parser takes 3 KiB
/// for every bracket that is open. See limits.rs for how many of each there may be.
const STACK: usize = 64 << 20;

/// Runs `work` on a large stack, whatever the caller's is.
pub(super) fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, ChatError> + Send) -> Result<T, ChatError> {
    on_stack(STACK, work).map_err(|error| ChatError::Internal(format!("cannot start a thread: {error}")))?
}
