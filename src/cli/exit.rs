//! Exit codes, all of them.

use stepflow::engine::{EngineError, Finish};
use stepflow::llama::LlamaError;

/// All went well.
pub const OK: u8 = 0;
/// Something failed; stderr says what.
pub const FAILURE: u8 = 1;
/// The command line cannot be meant.
pub const USAGE: u8 = 2;
/// The context is full: the answer or the text is not complete.
pub const CONTEXT_FULL: u8 = 3;
/// Another program cannot be run, as `env` and `nohup` say it.
pub const NOT_RUN: u8 = 126;
/// Another program is not found, as they say it.
pub const NOT_FOUND: u8 = 127;
/// Ctrl-C, as shells count it.
pub const INTERRUPTED: u8 = 130;

/// The code of a generation that ended without an error.
pub fn of_finish(finish: Finish) -> u8 {
    match finish {
        Finish::Stop | Finish::Length => OK,
        Finish::ContextFull => CONTEXT_FULL,
        Finish::Interrupted => INTERRUPTED,
    }
}

/// A command line that cannot be meant, for a reason that is only seen later than its parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The code of an error.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        return USAGE;
    }
    match error.downcast_ref::<EngineError>() {
        Some(EngineError::PromptTooLong { .. } | EngineError::Llama(LlamaError::ContextFull { .. })) => CONTEXT_FULL,
        Some(EngineError::Llama(LlamaError::Interrupted)) => INTERRUPTED,
        Some(EngineError::Config(_)) => USAGE,
        _ => FAILURE,
    }
}
