//! Slots: what each job gives is what a session of its own gives, whatever ran beside it or before it.

mod common;
mod tiny;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use stepflow::engine::{
    Alternatives, Ended, EngineError, Event, Request, Sampler, SamplingParams, Session, SessionParams, SlotEvent,
    Slots, Stop, TokenChoice, Work, tokenize,
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
    work.alternatives = Some(Alternatives { n: 8, after_sampling: false });
    (work, told)
}

fn ended(told: &Receiver<SlotEvent>) -> Box<Ended> {
    heard(told).ended
}

/// An answer, and what its tokens were chosen among.
struct Heard {
    ended: Box<Ended>,
    choices: Vec<(Token, TokenChoice)>,
}

fn heard(told: &Receiver<SlotEvent>) -> Heard {
    let mut choices = Vec::new();
    loop {
        match told.recv().expect("it ends") {
            SlotEvent::Ended(ended) => return Heard { ended, choices },
            SlotEvent::Token { token, choice, .. } => choices.extend(choice.map(|choice| (token, choice))),
            SlotEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

impl Heard {
    /// The largest difference of a log-probability to another answer's, up to where they part; and how many tokens that is.
    fn difference(&self, other: &Self) -> (f32, usize) {
        let (mut worst, mut n) = (0.0_f32, 0);
        for ((token, choice), (other_token, other)) in self.choices.iter().zip(&other.choices) {
            let both = |(token, p): &(Token, f32)| Some((p.ln() - log_probability(other, *token)?).abs());
            // Of unlikely tokens the logarithm is all noise.
            let likely = choice.top.iter().filter(|(_, p)| *p > 0.01).filter_map(both);
            worst = likely.fold(worst, |worst, d| if worst.is_nan() || d <= worst { worst } else { d });
            n += 1;
            if token != other_token {
                break;
            }
        }
        (worst, n)
    }

    /// Checks that it says `expected` up to where the next token is anyone's guess: llama.cpp's sums depend on where in the
    /// cache a sequence lies and on what is decoded with it, so that of two tokens as likely as each other, within
    /// `tolerance` of a log-probability, either may come. Returns how many tokens were the same.
    fn check(&self, expected: &[Token], tolerance: f32, case: &str) -> usize {
        for (i, ((token, choice), expected)) in self.choices.iter().zip(expected).enumerate() {
            if token != expected {
                let [ours, theirs] = [token, expected].map(|token| log_probability(choice, *token));
                let gap = ours.zip(theirs).map_or(f32::INFINITY, |(a, b)| (a - b).abs());
                assert!(gap <= tolerance, "{case}: token {i} is {token:?} and not {expected:?}, {gap} less likely");
                return i;
            }
        }
        self.choices.len().min(expected.len())
    }
}

fn log_probability(choice: &TokenChoice, token: Token) -> Option<f32> {
    choice.top.iter().find(|(other, _)| *other == token).map(|(_, p)| p.ln())
}

fn run(slots: &mut Slots) {
    while !slots.is_idle() {
        slots.step().unwrap();
    }
}

/// One job alone.
fn answer(slots: &mut Slots, tokens: &[Token], n: usize, stepflow: &StepFlowConfig) -> Heard {
    let (work, told) = work(&slots.model().clone(), tokens.to_vec(), n, stepflow.clone());
    slots.start(work);
    run(slots);
    heard(&told)
}

/// A prompt, tokens to generate and settings.
type Job = (Vec<Token>, usize, StepFlowConfig);

/// Jobs that come while others are at work.
fn together(model: &Arc<Model>, streams: bool, jobs: &[Job]) -> Vec<Heard> {
    let mut slots = slots(model, streams);
    let mut told = Vec::new();
    for (tokens, n, config) in jobs {
        while slots.is_full() {
            slots.step().unwrap();
        }
        let (work, receiver) = work(model, tokens.clone(), *n, config.clone());
        slots.start(work);
        slots.step().unwrap();
        told.push(receiver);
    }
    run(&mut slots);
    told.iter().map(heard).collect()
}

/// How far a log-probability may be from that of another layout: what plain llama.cpp shows for the same jobs without
/// StepFlow, times 8, for the repairs pass differences on to later layers; and what rounding of the result itself can give.
fn tolerance(model: &Arc<Model>, streams: bool, jobs: &[Job]) -> f32 {
    let plain: Vec<Job> = jobs.iter().map(|(tokens, n, _)| (tokens.clone(), *n, StepFlowConfig::default())).collect();
    let alone = plain.iter().map(|(tokens, n, config)| answer(&mut slots(model, streams), tokens, *n, config));
    let differences = together(model, streams, &plain).into_iter().zip(alone).map(|(a, b)| a.difference(&b).0);
    8.0 * differences.fold(0.0, f32::max) + 1e-4
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
    generated.into_inner().unwrap().split_off(tokens.len())
}

fn models() -> Vec<(String, Arc<Model>)> {
    let load = |path: &std::path::Path| Arc::new(Model::load(path, &ModelParams::default()).unwrap());
    let tiny = [Arch::ALL[0], Arch::ALL[Arch::ALL.len() - 1]];
    // Quantized products round activations; where these models are random, that hides differences of other kinds.
    let mut models: Vec<_> =
        tiny.iter().map(|arch| (format!("{arch:?}"), load(&tiny::tiny(*arch, WeightType::F32)))).collect();
    models.extend(common::smollm2().map(|path| ("SmolLM2".to_owned(), load(&path))));
    models
}

#[test]
fn jobs_with_settings_of_their_own_are_as_sessions_of_their_own() {
    for (name, model) in models() {
        let prompts =
            ["One. Two. Three. Four", "The quick brown fox", "2 + 2 = 4. 3 + 3 =", "A dog. A cat. A", "x y z"];
        let jobs: Vec<Job> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| (tokenize(&model, prompt).0, 12 + 5 * i, settings()[i % 4].clone()))
            .collect();
        for streams in [true, false] {
            let tolerance = tolerance(&model, streams, &jobs);
            let (mut same, mut all) = (0, 0);
            for (i, (heard, job)) in together(&model, streams, &jobs).iter().zip(&jobs).enumerate() {
                let case = format!("{name}, streams {streams}, job {i}");
                let (tokens, n, config) = job;
                let alone = answer(&mut slots(&model, streams), tokens, *n, config);
                let (difference, _) = heard.difference(&alone);
                assert!(difference <= tolerance, "{case}: {difference} from the same job alone, {tolerance} allowed");
                same += heard.check(&by_session(&model, tokens, *n, config), tolerance, &case);
                all += heard.choices.len();
            }
            assert!(4 * same >= all, "{name}, streams {streams}: only {same} of {all} tokens could be compared");
        }
    }
}

/// The check above sees settings that are another job's.
#[test]
fn settings_show_beyond_the_noise() {
    let mut seen = 0;
    for (name, model) in models() {
        let prompt = tokenize(&model, "One. Two. Three. Four").0;
        let job = |config: &StepFlowConfig| vec![(prompt.clone(), 24, config.clone())];
        let of = |config: &StepFlowConfig| together(&model, false, &job(config)).remove(0);
        let tolerance = tolerance(&model, false, &job(&settings()[0]));
        let plain = of(&settings()[0]);
        for config in &settings()[1..] {
            let other = of(config);
            let total = other.ended.stats.total();
            if total.rows_bridged + total.injections == 0 {
                continue;
            }
            let (difference, _) = other.difference(&plain);
            seen += 1;
            assert!(difference > tolerance, "{name}, {config:?}: {difference} shows nothing beyond {tolerance}");
        }
    }
    assert!(seen >= models().len(), "the repairs had hardly anything to do");
}

#[test]
fn what_repairs_had_a_hand_in_is_not_used_again_by_others() {
    for (name, model) in models() {
        for streams in [true, false] {
            let prompt = tokenize(&model, "One. Two. Three. Four. Five. Six").0;
            let (plain, paper) = (&settings()[0], &settings()[1]);
            let mut used = slots(&model, streams);
            let first = answer(&mut used, &prompt, 20, &settings()[2]).ended;
            // A prompt in part from the cache is decoded in other batches. What that alone changes, times 8 as above.
            let mut plain_used = slots(&model, streams);
            answer(&mut plain_used, &prompt, 20, plain);
            let fresh = answer(&mut slots(&model, streams), &first.tokens, 20, plain);
            let tolerance = 8.0 * answer(&mut plain_used, &first.tokens, 20, plain).difference(&fresh).0 + 1e-4;
            // A prompt that is all that was said: of its keys the first answer's repairs have changed some.
            for config in [plain, paper] {
                let fresh = answer(&mut slots(&model, streams), &first.tokens, 20, config);
                let (difference, _) = answer(&mut used, &first.tokens, 20, config).difference(&fresh);
                let case = format!("{name}, streams {streams}, {config:?}");
                assert!(difference <= tolerance, "{case}: {difference}, {tolerance} allowed");
            }
            // What was decoded without repairs is used by anyone.
            let plain = answer(&mut used, &first.tokens, 1, &settings()[0]).ended;
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
