//! Room for recursion: llama.cpp recurses over what it is given, in some places.

/// Runs `work` on a stack of `size` bytes, whatever the caller's is.
///
/// # Errors
/// When the system has no room for it.
pub(crate) fn on_stack<T: Send>(size: usize, work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("stack".to_owned()).stack_size(size).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
