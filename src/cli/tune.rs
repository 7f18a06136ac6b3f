//! `tune`: chooses StepFlow's settings for a model on problems that are not for the test.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use stepflow::builtin;
use stepflow::engine::{EngineError, Parallel};
use stepflow::eval::tune::{Tuned, tune};
use stepflow::eval::{Arm, Plan};
use stepflow::llama::LlamaError;

use super::eval::args::TaskArgs;
use super::eval::task::Task;
use super::progress::Progress;
use super::setup::Interrupt;
use super::{config_file, exit, output};

/// Tuning.
#[derive(Debug, Clone, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub task: TaskArgs,
    /// File for the chosen settings (TOML), for `--config`; stdout by default.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &TuneArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    output::check_result(args.output.as_deref())?;
    let task = Task::new(&args.task, builtin::VALIDATION, 1, &interrupt)?;
    let mut parallel = task.parallel(true)?;
    let outcome =
        interrupt.during(|| tune(task.problems.len(), &mut |arm, range| answer(&task, &mut parallel, arm, range)));
    match outcome {
        Err(EngineError::Llama(LlamaError::Interrupted)) => {
            say!("stepflow: interrupted; nothing was chosen");
            Ok(exit::INTERRUPTED)
        }
        outcome => {
            let tuned = outcome?;
            let text = describe(&task, &tuned)?;
            output::write_result(args.output.as_deref(), |out| out.write_all(text.as_bytes()))?;
            Ok(exit::OK)
        }
    }
}

/// Has an arm answer some of the problems.
fn answer(task: &Task, parallel: &mut Parallel, arm: &Arm, range: Range<usize>) -> Result<Vec<bool>, EngineError> {
    let indices: Vec<usize> = range.clone().collect();
    let mut right = vec![false; range.len()];
    let mut progress = Progress::new(&arm.name, "problems", range.len());
    let mut done = 0;
    let plan = Plan {
        problems: &task.problems,
        prompts: &task.prompts,
        arms: std::slice::from_ref(arm),
        samples: 1,
        sampling: &task.sampling,
        max_tokens: task.max_tokens,
    };
    plan.run(parallel, &task.model, &indices, &HashSet::new(), &mut |sample| {
        right[sample.index - range.start] = sample.correct;
        done += 1;
        progress.at(done);
        Ok::<(), EngineError>(())
    })?;
    drop(progress);
    let correct = right.iter().filter(|right| **right).count();
    say!("{}: {correct} of {} right on problems {}-{}", arm.name, range.len(), range.start, range.end - 1);
    Ok(right)
}

/// The chosen settings as a file that `--config` reads, what they gain and how sure that is in its comments.
fn describe(task: &Task, tuned: &Tuned) -> anyhow::Result<String> {
    let (best, baseline) = (&tuned.best, &tuned.baseline);
    let against = best.against(baseline);
    let n = best.right.len().min(baseline.right.len());
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let mut text = format!(
        "# Chosen among {} settings on {n} problems of {}: {} against {} without StepFlow.\n",
        tuned.tried,
        task.name,
        percent(best.accuracy()),
        percent(baseline.accuracy()),
    );
    text += &match best.arm.stepflow.is_on() {
        true => format!(
            "# Difference {:+.1} points, 95% interval {:+.1} to {:+.1}, McNemar p {:.3}. The best of many looks better than it \
             is:\n# measure it on other problems with `stepflow eval --arm baseline --arm tuned:THIS.toml`.\n",
            against.difference * 100.0,
            against.interval.low * 100.0,
            against.interval.high * 100.0,
            against.p,
        ),
        false => "# None was better than doing without StepFlow, so nothing is turned on.\n".to_owned(),
    };
    Ok(text + &config_file::write(&best.arm.stepflow)?)
}
