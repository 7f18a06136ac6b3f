//! `bench`: speed with and without StepFlow, in one process.
//!
//! Two runs of a program on one machine can differ by a third, so nothing is told from two runs: both arms, contexts of
//! one model, take turns token by token, and the ratio is that of neighbours in time.

mod args;
mod format;
mod machine;
mod measure;
mod plan;
mod record;

use stepflow::engine::{self, EngineError};
use stepflow::llama::{ContextParams, LlamaError};
use stepflow::stepflow::StepFlowConfig;

use super::flags::{ContextArgs, SizeArgs};
use super::progress::Progress;
use super::setup::{self, Interrupt};
use super::{exit, output};
pub use args::BenchArgs;
pub use machine::resident_bytes;
use measure::Arm;
use plan::Test;
use record::{Record, Setting};

/// Runs the command.
pub fn run(args: &BenchArgs) -> anyhow::Result<u8> {
    let tests = plan::tests(args)?;
    setup::check_caches(args.cache_type_v, args.flash_attn)?;
    output::check_result(args.output.as_deref())?;
    let interrupt = Interrupt::install()?;
    let stepflow = setup::repairs_or_all(&args.stepflow.repairs)?;
    let context = context_args(args, plan::n_ctx(&tests)?);
    let mut params =
        ContextParams { all_layers: setup::all_layers(&args.stepflow), ..setup::context_params(&context, &interrupt) };
    let mut model = setup::load_with_context(&args.model, &mut params)?;
    let mut adapter = engine::load_adapter(&mut model, args.model.lora()?)?;
    // What StepFlow cannot work in is told before anything else is done.
    let (mut context, control) = engine::open(model.clone(), &params, &stepflow, adapter.as_mut())?;
    engine::warm_up(&mut context, control.as_ref())?;
    let (mut baseline, none) = engine::open(model.clone(), &params, &StepFlowConfig::default(), adapter.as_mut())?;
    engine::warm_up(&mut baseline, none.as_ref())?;
    let mut arms = [Arm::new("baseline", baseline), Arm::new(arm_name(&stepflow), context)];
    let setting = Setting::new(&model, &params, args.model.n_gpu_layers);
    let mut records = Vec::new();
    let outcome = interrupt.during(|| measure_all(&tests, args.repetitions, &setting, &mut arms, &mut records));
    // Whatever ended the tests, those that are done are worth their time.
    output::write_result(args.output.as_deref(), |out| format::write(args.format(), &records, out))?;
    if let Some(bytes) = measure::extra_memory(&arms) {
        say!("stepflow: memory of {} beyond the baseline's: {:.2} MiB", arms[1].name, bytes as f64 / (1 << 20) as f64);
    }
    match outcome {
        Err(LlamaError::Interrupted) => {
            say!("stepflow: interrupted: {} of {} tests are done", records.len() / arms.len(), tests.len());
            Ok(exit::INTERRUPTED)
        }
        outcome => outcome.map(|()| exit::OK).map_err(|error| EngineError::from(error).into()),
    }
}

fn measure_all(
    tests: &[Test],
    repetitions: u32,
    setting: &Setting,
    arms: &mut [Arm; 2],
    records: &mut Vec<Record>,
) -> Result<(), LlamaError> {
    for test in tests {
        let test_time = output::utc_now();
        let mut progress = Progress::new(&test.label(), "repetitions", repetitions as usize);
        let samples = measure::measure(test, repetitions as usize, arms, |done| progress.at(done))?;
        let memory = measure::extra_memory(arms);
        records.extend((0..arms.len()).map(|i| Record::new(setting, test, &test_time, &arms[i], i, &samples, memory)));
    }
    Ok(())
}

/// The arm of these repairs.
fn arm_name(stepflow: &StepFlowConfig) -> &'static str {
    match (&stepflow.oeb, &stepflow.smi) {
        (Some(_), None) => "oeb",
        (None, Some(_)) => "smi",
        _ => "stepflow",
    }
}

/// The flags of a context, as the other commands take them.
fn context_args(args: &BenchArgs, n_ctx: u32) -> ContextArgs {
    let size = SizeArgs {
        ctx_size: n_ctx,
        batch_size: args.batch_size,
        ubatch_size: args.ubatch_size,
        flash_attn: args.flash_attn,
        cache_type_k: args.cache_type_k,
        cache_type_v: args.cache_type_v,
    };
    ContextArgs { size, threads: args.threads, threads_batch: None }
}
