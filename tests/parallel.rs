//! Many sequences side by side: what each gives does not depend on what runs beside it.

mod common;
mod tiny;

use std::sync::Arc;

use stepflow::engine::{self, EngineError, Generated, Job, Parallel, Sampler, SamplingParams, Session, SessionParams};
use stepflow::llama::{ContextParams, FlashAttention, Model, ModelParams};
use stepflow::stepflow::StepFlowConfig;
use stepflow::trace::Family;
use tiny::{Arch, WeightType};

const SLOTS: usize = 4;
const PROMPTS: [&str; 7] =
    ["one", "two three", "<think>", "the <think> lazy dog", "a longer prompt than the others have", "", "seven"];

fn params() -> ContextParams {
    ContextParams { n_ctx: 256, n_threads: 1, n_threads_batch: 1, ..ContextParams::default() }
}

fn parallel(model: &Arc<Model>) -> Parallel {
    let markers = Family::ThinkTags.markers();
    Parallel::new(model.clone(), &params(), &StepFlowConfig::paper(), markers, SLOTS).unwrap()
}

/// Lengths differ, so that slots become free at different times.
fn job(model: &Model, prompt: usize) -> Job {
    let (tokens, _) = engine::tokenize(model, &format!("x {}", PROMPTS[prompt]));
    let sampling = SamplingParams { seed: Some(prompt as u32), temp: 1.0, ..SamplingParams::default() };
    Job { tokens, question: 0, max_tokens: 10 + 7 * (prompt % 3), sampler: Sampler::new(&sampling, model) }
}

/// Runs the jobs in this order. Times differ from run to run and are left out.
fn run(parallel: &mut Parallel, model: &Model, order: &[usize]) -> Vec<(usize, Generated)> {
    let mut done = Vec::new();
    let mut jobs = order.iter().map(|&prompt| (prompt, job(model, prompt)));
    let mut finished = |prompt, generated: Generated| {
        done.push((prompt, Generated { time: Default::default(), ..generated }));
        Ok::<_, EngineError>(())
    };
    parallel.run(&mut jobs, &mut finished).unwrap();
    done.sort_by_key(|(prompt, _)| *prompt);
    done
}

#[test]
fn an_answer_depends_on_nothing_that_runs_beside_it() {
    for arch in Arch::ALL {
        let model = Arc::new(Model::load(&tiny::tiny(arch, WeightType::Q4_0), &ModelParams::default()).unwrap());
        let mut context = parallel(&model);
        let together = run(&mut context, &model, &[0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(together.len(), PROMPTS.len());
        assert!(together.iter().any(|(_, generated)| generated.stats.total().rows_bridged > 0), "{arch:?}");
        assert_eq!(run(&mut context, &model, &[6, 3, 0, 5, 2, 1, 4]), together, "{arch:?}: another order");
        let alone: Vec<_> = (0..PROMPTS.len()).flat_map(|prompt| run(&mut context, &model, &[prompt])).collect();
        assert_eq!(alone, together, "{arch:?}: alone");
        let fresh = run(&mut parallel(&model), &model, &[5, 6]);
        assert_eq!(fresh, together[5..], "{arch:?}: in another context");
    }
}

#[test]
fn side_by_side_is_as_a_session_one_at_a_time() {
    let Some(path) = common::smollm2() else { return };
    let model = Arc::new(Model::load(&path, &ModelParams::default()).unwrap());
    let markers = Family::Implicit.markers();
    let mut parallel = Parallel::new(model.clone(), &params(), &StepFlowConfig::paper(), markers, SLOTS).unwrap();
    let greedy = || Sampler::new(&SamplingParams { temp: 0.0, ..SamplingParams::default() }, &model);
    let prompts = ["The capital of France is", "One, two, three,", "Once upon a time", "Water boils at", "2 + 2 ="];
    let job = |prompt: &str| {
        let tokens = engine::tokenize(&model, prompt).0;
        Job { question: tokens.len(), tokens, max_tokens: 12, sampler: greedy() }
    };
    let mut jobs = prompts.iter().map(|prompt| (*prompt, job(prompt)));
    let mut same = 0;
    parallel
        .run(&mut jobs, &mut |prompt, generated| {
            let context = ContextParams { flash_attention: FlashAttention::Off, ..params() };
            let params = SessionParams {
                context,
                stepflow: StepFlowConfig::paper(),
                family: Some(Family::Implicit),
                ..SessionParams::default()
            };
            let mut session = Session::new(model.clone(), &params)?;
            let tokens = engine::tokenize(&model, prompt).0;
            let request = engine::Request {
                question: tokens.len(),
                tokens,
                max_tokens: Some(12),
                reasoning_budget: None,
                stop: &[],
            };
            let mut text = Vec::new();
            session.generate(&request, &mut greedy(), &mut |event| {
                if let engine::Event::Token { piece, .. } = event {
                    text.extend_from_slice(piece);
                }
            })?;
            same += usize::from(text == generated.text);
            Ok::<_, EngineError>(())
        })
        .unwrap();
    // A tie within the noise of another batch size may fall the other way; most must not.
    assert!(same >= prompts.len() - 1, "{same} of {} are the same", prompts.len());
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = Arc::new(Model::load(&tiny::tiny(Arch::Qwen2, WeightType::F32), &ModelParams::default()).unwrap());
    let mut parallel = parallel(&model);
    let mut refuse = |tokens| {
        let sampler = Sampler::new(&SamplingParams::default(), &model);
        let mut jobs = std::iter::once(((), Job { tokens, question: 0, max_tokens: 1, sampler }));
        parallel.run(&mut jobs, &mut |(), _| Ok::<_, EngineError>(())).unwrap_err()
    };
    assert!(matches!(refuse(vec![]), EngineError::EmptyPrompt));
    let long = vec![stepflow::llama::Token(1); 257];
    assert!(matches!(refuse(long), EngineError::PromptTooLong { n_prompt: 257, n_ctx: 256 }));
}
