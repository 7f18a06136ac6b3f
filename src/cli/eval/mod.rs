//! `eval`: what StepFlow does to the accuracy of a model's answers.

pub mod args;
mod grade;
mod merge;
pub mod task;

use std::collections::HashSet;
use std::path::Path;

use stepflow::builtin;
use stepflow::engine::{self, EngineError};
use stepflow::eval::{Arm, Folder, FolderError, Plan, Run, Sample, Summary, speed, table};
use stepflow::llama::LlamaError;

use super::exit::{self, Usage};
use super::progress::Progress;
use super::setup::Interrupt;
use super::{config_file, output};
pub use args::EvalArgs;
use args::{EvalCommand, Shard};
use task::Task;

/// Runs the command.
pub fn run(args: &EvalArgs) -> anyhow::Result<u8> {
    match &args.command {
        Some(EvalCommand::Merge(args)) => merge::run(args),
        Some(EvalCommand::Grade(args)) => grade::run(args),
        None => evaluate(args),
    }
}

fn evaluate(args: &EvalArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    let arms = arms(&args.arms)?;
    let samples = args.samples as usize;
    let task = Task::new(&args.task, builtin::TEST, samples, &interrupt)?;
    let mut parallel = task.parallel(arms.iter().any(|arm| arm.stepflow.is_on()))?;
    // What cannot be meant in this model is told before any work.
    arms.iter().try_for_each(|arm| parallel.configure(&arm.stepflow)).map_err(EngineError::from)?;
    let run = describe(&task, &arms, samples, args.shard)?;
    let (mut folder, mut done) = Folder::open(&args.output, &run, args.resume)?;

    let indices: Vec<usize> = run.indices().collect();
    let keys: HashSet<_> = done.iter().map(|s| (s.index, s.arm.clone(), s.sample)).collect();
    let total = indices.len() * arms.len() * samples;
    if !done.is_empty() {
        say!("stepflow: {} of {total} samples are there already", done.len());
    }
    let plan = Plan {
        problems: &task.problems,
        prompts: &task.prompts,
        arms: &arms,
        samples,
        sampling: &task.sampling,
        max_tokens: task.max_tokens,
    };
    let mut tally = Tally::new(&arms, &done);
    let mut progress = Progress::new("eval", "samples", total);
    let outcome = interrupt.during(|| {
        plan.run(&mut parallel, &task.model, &indices, &keys, &mut |sample| {
            folder.add(&sample)?;
            tally.count(&sample);
            done.push(sample);
            progress.say(done.len(), &tally.to_string());
            Ok::<(), Failure>(())
        })
    });
    drop(progress);
    match outcome {
        Ok(()) => {}
        Err(Failure::Engine(EngineError::Llama(LlamaError::Interrupted))) => {
            let path = args.output.display();
            say!("stepflow: interrupted: {} of {total} samples are in {path}; go on with --resume", done.len());
            return Ok(exit::INTERRUPTED);
        }
        Err(failure) => return Err(failure.into()),
    }
    conclude(&folder, &run, &done, args.json)?;
    Ok(exit::OK)
}

/// Sums a run up: to stdout, and into its folder.
fn conclude(folder: &Folder, run: &Run, samples: &[Sample], json: bool) -> anyhow::Result<()> {
    let summary = Summary::new(run, samples);
    let speeds = speed::speeds(run, samples);
    folder.write("summary.json", &summary.to_json())?;
    folder.write("summary.md", &table::markdown(&summary))?;
    folder.write("speed.json", &format!("{}\n", serde_json::to_string_pretty(&speeds)?))?;
    say!("\n{}", table::speeds(&speeds));
    output::write_result(None, |out| match json {
        true => out.write_all(summary.to_json().as_bytes()),
        false => out.write_all(table::results(&summary).as_bytes()),
    })
}

/// The arms that the flags name; the four of the paper where they name none.
fn arms(flags: &[String]) -> anyhow::Result<Vec<Arm>> {
    let default = [Arm::BASELINE, "oeb", "smi", "stepflow"].map(str::to_owned);
    let named = if flags.is_empty() { &default } else { flags };
    let mut arms: Vec<Arm> = Vec::new();
    for text in named {
        let arm = match text.split_once(':') {
            Some((name, file)) if file.ends_with(".toml") => {
                let settings = config_file::read(Path::new(file))?;
                format!("{name}:{}", Arm { name: name.to_owned(), stepflow: settings }.settings()).parse()?
            }
            _ => text.parse::<Arm>().map_err(|error| Usage(error.to_string()))?,
        };
        if arms.iter().any(|other| other.name == arm.name) {
            return Err(Usage(format!("--arm {text}: there are two arms named {}", arm.name)).into());
        }
        arms.push(arm);
    }
    Ok(arms)
}

fn describe(task: &Task, arms: &[Arm], samples: usize, Shard(part, parts): Shard) -> anyhow::Result<Run> {
    Ok(Run {
        version: Run::VERSION,
        model: engine::about(&task.model),
        model_sha256: task.model_sha256()?,
        problems: task.name.clone(),
        problems_sha256: task.problems_sha256(),
        n_problems: task.problems.len(),
        arms: arms.iter().map(|arm| (arm.name.clone(), arm.settings())).collect(),
        samples,
        settings: task.settings(),
        shard: (part, parts),
    })
}

/// Accuracy so far, of every arm: "baseline 61.3%, stepflow 63.0%".
struct Tally(Vec<(String, usize, usize)>);

impl Tally {
    fn new(arms: &[Arm], done: &[Sample]) -> Self {
        let mut tally = Self(arms.iter().map(|arm| (arm.name.clone(), 0, 0)).collect());
        done.iter().for_each(|sample| tally.count(sample));
        tally
    }

    fn count(&mut self, sample: &Sample) {
        if let Some((_, correct, all)) = self.0.iter_mut().find(|(arm, ..)| *arm == sample.arm) {
            *correct += usize::from(sample.correct);
            *all += 1;
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (arm, correct, all)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            match all {
                0 => write!(f, "{comma}{arm} -")?,
                _ => write!(f, "{comma}{arm} {:.1}%", 100.0 * *correct as f64 / *all as f64)?,
            }
        }
        Ok(())
    }
}

/// What can end the work: the engine, or the folder.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Folder(#[from] FolderError),
}
