//! `eval grade`: grades replies that were made anywhere.

use std::path::PathBuf;

use clap::Args;
use stepflow::eval::{graded, table};

use crate::cli::{exit, input, output};

/// Grading.
#[derive(Debug, Clone, Args)]
pub struct GradeArgs {
    /// JSONL; each line has a `reply`, the right `answer` and, for multiple choice, `choices`. `-` is stdin.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// File for the lines with `extracted` and `correct`; stdout by default.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &GradeArgs) -> anyhow::Result<u8> {
    output::check_result(args.output.as_deref())?;
    let name = if args.file.as_os_str() == "-" { "stdin".to_owned() } else { args.file.display().to_string() };
    let graded = graded::grade(&name, &input::text_of(&args.file)?)?;
    output::write_result(args.output.as_deref(), |out| out.write_all(graded.lines.as_bytes()))?;
    say!("stepflow: {}", table::right(graded.correct, graded.total));
    Ok(exit::OK)
}
