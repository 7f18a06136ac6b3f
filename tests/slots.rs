//! Slots: what each job gives is what a session of its own gives, whatever ran beside it or before it.

mod common;
mod tiny;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use stepflow::engine::{
    Ended, EngineError, Event, Request, Sampler, SamplingParams, Session, SessionParams, SlotEvent, Slots, Stop, Work,
    tokenize,
};
use stepflow::llama::{ContextParams, Model, ModelParams, Token};
use stepflow::stepflow::{OebConfig, SmiConfig, StepFlowConfig};
use stepflow::trace::Family;
use tiny::{Arch, WeightType};

const N: usize = 3;

fn params(n_ctx: u32, streams: bool) -> ContextParams {
    ContextParams { n_ctx, streams, n_threads: 1, n_threads_batch: 1, ..ContextParams::default() }
}

fn slots(model: &Arc<Model>, streams: bool) -> Slots {
    let paper = StepFlowConfig::paper();
    Slots::new(model.clone(), &params(600, streams), Some(&paper), Family::Implicit.markers(), N, None).unwrap()
}

fn greedy(model: &Model) -> Sampler {
    Sampler::new(&SamplingParams { temp: 0.0, ..SamplingParams::default() }, model)
}

fn settings() -> [StepFlowConfig; 4] {
    let oeb = |tau_max| Some(OebConfig { tau_max, ..OebConfig::default() });
    let smi = |alpha| Some(SmiConfig { alpha, ..SmiConfig::default() });
    [
        StepFlowConfig::default(),
        StepFlowConfig::paper(),
        StepFlowConfig { oeb: oeb(0.6), smi: None },
        StepFlowConfig { oeb: None, smi: smi(0.9) },
    ]
}

/// A job, and what it tells.
fn work(model: &Model, tokens: Vec<Token>, n: usize, stepflow: StepFlowConfig) -> (Work, Receiver<SlotEvent>) {
    let (tell, told) = channel();
    let mut work = Work::new(tokens, greedy(model), Box::new(move |event| tell.send(event).is_ok()));
    (work.max_tokens, work.stepflow) = (Some(n), stepflow);
    (work, told)
}

fn ended(told: &Receiver<SlotEvent>) -> Box<Ended> {
    loop {
        match told.recv().expect("it ends") {
            SlotEvent::Ended(ended) => return ended,
            SlotEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn run(slots: &mut Slots) {
    while !slots.is_idle() {
        slots.step().unwrap();
    }
}

/// One job alone.
fn answer(slots: &mut Slots, tokens: &[Token], n: usize, stepflow: &StepFlowConfig) -> Box<Ended> {
    let (work, told) = work(&slots.model().clone(), tokens.to_vec(), n, stepflow.clone());
    slots.start(work);
    run(slots);
    ended(&told)
}

fn by_session(model: &Arc<Model>, tokens: &[Token], n: usize, stepflow: &StepFlowConfig) -> Vec<Token> {
    let stepflow = if stepflow.is_on() {
        stepflow.clone()
    } else {
        StepFlowConfig { oeb: Some(OebConfig { tau_max: 0.0, ..OebConfig::default() }), smi: None }
    };
    let params = SessionParams {
        context: params(200, false),
        stepflow,
        family: Some(Family::Implicit),
        ..SessionParams::default()
    };
    let mut session = Session::new(model.clone(), &params).unwrap();
    let request =
        Request { tokens: tokens.to_vec(), question: 0, max_tokens: Some(n), reasoning_budget: None, stop: &[] };
    let generated = Mutex::new(tokens.to_vec());
    let mut take = |event: Event<'_>| {
        if let Event::Token { token, .. } = event {
            generated.lock().unwrap().push(token);
        }
    };
    session.generate(&request, &mut greedy(model), &mut take).unwrap();
    generated.into_inner().unwrap()
}

fn models() -> Vec<(String, Arc<Model>)> {
    let load = |path: &std::path::Path| Arc::new(Model::load(path, &ModelParams::default()).unwrap());
    let tiny = [Arch::ALL[0], Arch::ALL[Arch::ALL.len() - 1]];
    let mut models: Vec<_> =
        tiny.iter().map(|arch| (format!("{arch:?}"), load(&tiny::tiny(*arch, WeightType::Q4_0)))).collect();
    models.extend(common::smollm2().map(|path| ("SmolLM2".to_owned(), load(&path))));
    models
}

#[test]
fn jobs_with_settings_of_their_own_are_as_sessions_of_their_own() {
    for (name, model) in models() {
        let prompts =
            ["One. Two. Three. Four", "The quick brown fox", "2 + 2 = 4. 3 + 3 =", "A dog. A cat. A", "x y z"];
        let jobs: Vec<_> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| (tokenize(&model, prompt).0, 12 + 5 * i, settings()[i % 4].clone()))
            .collect();
        let expected: Vec<_> = jobs.iter().map(|(tokens, n, config)| by_session(&model, tokens, *n, config)).collect();
        for streams in [true, false] {
            let mut slots = slots(&model, streams);
            let mut told = Vec::new();
            for (tokens, n, config) in &jobs {
                while slots.is_full() {
                    slots.step().unwrap();
                }
                let (work, receiver) = work(&model, tokens.clone(), *n, config.clone());
                slots.start(work);
                // Jobs come while others are at work.
                slots.step().unwrap();
                told.push(receiver);
            }
            run(&mut slots);
            for (i, told) in told.iter().enumerate() {
                assert_eq!(ended(told).tokens, expected[i], "{name}, streams {streams}, job {i}");
            }
        }
    }
}

#[test]
fn what_repairs_had_a_hand_in_is_not_used_again_by_others() {
    for (name, model) in models() {
        for streams in [true, false] {
            let prompt = tokenize(&model, "One. Two. Three. Four. Five. Six").0;
            let mut used = slots(&model, streams);
            let first = answer(&mut used, &prompt, 20, &settings()[2]);
            // A prompt that is all that was said: of its keys the first answer's repairs have changed some.
            let (plain, again) = (settings()[0].clone(), settings()[1].clone());
            for config in [plain, again] {
                let fresh = answer(&mut slots(&model, streams), &first.tokens, 20, &config);
                let reused = answer(&mut used, &first.tokens, 20, &config);
                assert_eq!(reused.tokens, fresh.tokens, "{name}, streams {streams}, {config:?}");
            }
            // What was decoded without repairs is used by anyone.
            let plain = answer(&mut used, &first.tokens, 1, &settings()[0]);
            assert!(plain.timings.n_cached > 0, "{name}: {:?}", plain.timings);
        }
    }
}

#[test]
fn who_goes_away_frees_the_slot_and_others_go_on() {
    let (_, model) = models().remove(0);
    let mut slots = slots(&model, true);
    let prompt = tokenize(&model, "One. Two").0;
    let (gone, told) = work(&model, prompt.clone(), 100, StepFlowConfig::default());
    let (stays, heard) = work(&model, prompt.clone(), 30, StepFlowConfig::paper());
    slots.start(gone);
    slots.start(stays);
    (0..4).for_each(|_| _ = slots.step().unwrap());
    drop(told);
    slots.step().unwrap();
    assert_eq!(slots.status().iter().filter(|slot| slot.job.is_some()).count(), 1);
    run(&mut slots);
    assert_eq!(ended(&heard).n_generated, 30);
}

/// A job that does not end before its context.
fn endless(model: &Model, tokens: Vec<Token>) -> (Work, Receiver<SlotEvent>) {
    let ends = (0..model.n_vocab() as i32).map(Token).filter(|&token| model.is_end(token));
    let logit_bias = ends.map(|token| (token, f32::NEG_INFINITY)).collect();
    let (mut work, told) = work(model, tokens, usize::MAX, StepFlowConfig::default());
    work.sampler = Sampler::new(&SamplingParams { temp: 0.0, logit_bias, ..SamplingParams::default() }, model);
    (work, told)
}

#[test]
fn beside_a_full_slot_and_in_small_batches_others_go_on() {
    let (_, model) = models().remove(0);
    let paper = StepFlowConfig::paper();
    let params = ContextParams { n_batch: 2, n_ubatch: 2, ..params(600, true) };
    let mut slots = Slots::new(model.clone(), &params, Some(&paper), Family::Implicit.markers(), N, None).unwrap();
    let prompt = tokenize(&model, "One. Two").0;
    let long = prompt.iter().copied().cycle().take(slots.n_ctx() - 10).collect();
    let told = [prompt.clone(), long, prompt].map(|tokens| {
        let (work, told) = endless(&model, tokens);
        slots.start(work);
        told
    });
    run(&mut slots);
    told.iter().for_each(|told| assert_eq!(ended(told).stop, Stop::ContextFull));
}

#[test]
fn a_context_that_is_shared_and_full_ends_one_answer_after_the_other() {
    let (_, model) = models().remove(0);
    let mut slots = slots(&model, false);
    let prompt = tokenize(&model, "One. Two").0;
    let told = [(); N].map(|()| {
        let (work, told) = endless(&model, prompt.clone());
        slots.start(work);
        told
    });
    run(&mut slots);
    let mut lengths = told.map(|told| {
        let ended = ended(&told);
        assert_eq!(ended.stop, Stop::ContextFull);
        ended.tokens.len()
    });
    lengths.sort_unstable();
    let n_ctx = slots.n_ctx();
    assert!(
        lengths[0] < n_ctx / 2 && lengths[N - 1] == n_ctx + 1,
        "{lengths:?}: the last one has all of it in the end"
    );
}

#[test]
fn a_full_context_ends_answers_and_refuses_prompts() {
    let (_, model) = models().remove(0);
    let prompt = tokenize(&model, "One. Two").0;
    for streams in [true, false] {
        let mut slots = slots(&model, streams);
        let n_ctx = slots.n_ctx();
        let (endless, told) = endless(&model, prompt.clone());
        slots.start(endless);
        run(&mut slots);
        let full = ended(&told);
        assert_eq!(full.stop, Stop::ContextFull, "streams {streams}");
        assert_eq!(full.tokens.len(), n_ctx + 1, "every cell is used, and the last token needs none");
        let (work, told) = work(&model, vec![prompt[0]; n_ctx], 1, StepFlowConfig::default());
        slots.start(work);
        match told.recv().unwrap() {
            SlotEvent::Failed(EngineError::PromptTooLong { n_prompt, .. }) => assert_eq!(n_prompt, n_ctx),
            other => panic!("{other:?}"),
        }
    }
}
