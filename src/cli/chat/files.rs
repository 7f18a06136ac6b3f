//! The files that a chat leaves: statistics, its trace, and maps.

use stepflow::engine::Session;

use super::args::ConversationArgs;
use crate::cli::{output, saliency};

/// Writes the files that the flags ask for.
///
/// # Errors
/// When a file cannot be written; nothing is left of it then, and the other one is written all the same.
pub fn save(args: &ConversationArgs, session: &Session) -> anyhow::Result<()> {
    // Without StepFlow there are none, and a file that is there may hold those of another run.
    let stats = args.stats.as_deref().zip(session.stepflow()).map_or(Ok(()), |(path, control)| {
        let mut json = control.stats().to_json();
        json["works"] = session.works_in().into();
        let json = serde_json::to_string_pretty(&json)?;
        output::write_file(path, |out| writeln!(out, "{json}"))
    });
    let trace = args.save_trace.as_deref().map_or(Ok(()), |path| {
        let trace = session.trace();
        output::write_file(path, |out| trace.write(out))
    });
    stats.and(trace)
}

/// Finds out whether [`save`] could write its files, before a long answer is generated.
///
/// # Errors
/// When it could not.
pub fn check(args: &ConversationArgs) -> anyhow::Result<()> {
    args.stats.iter().chain(&args.save_trace).try_for_each(|path| output::check_writable(path))?;
    args.saliency.as_deref().map_or(Ok(()), saliency::check_folder)
}
