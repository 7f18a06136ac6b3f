//! StepFlow in the graphs that a scheduler runs: what is known of each cache, and the callback that is there while a graph
//! runs.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use ggml_sys::{Ggml, Tensor};
use stepflow_core::graph::{self, State, layer_of, on_node};
use stepflow_core::repair::{Control, Repair};
use stepflow_core::stepflow::Stats;
use stepflow_core::trace::{Segment, TraceFile, TraceToken};

use super::chains::{Chains, Event};
use super::model::Model;
use super::reading::{Read, Reading, Unread};
use super::report;
use super::runtime::{Callback, Graph, Runtime, Sched};
use super::settings::{SETTINGS, Settings};

/// A cache, and all that is known of the texts in it. It outlives schedulers, which are made anew.
struct Cache {
    state: Box<State>,
    chains: Chains,
    control: Control,
    model: Arc<Model>,
    tokens: Tokens,
}

/// Tokens that were seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokens {
    /// All of them.
    pub all: u64,
    /// Those of thinking and answers, which StepFlow can work on.
    pub treated: u64,
    /// Those that were left alone, as what they continue was written unseen.
    pub unknown: u64,
}

// SAFETY: what the state points to is a graph that runs; it is used under the cache's lock alone.
unsafe impl Send for Cache {}

/// A cache that graphs may be in, one at a time. It is never given back: a process has few.
type Shared = &'static Mutex<Option<Cache>>;

/// By the address of the cache's first tensor.
static CACHES: LazyLock<Mutex<HashMap<usize, Shared>>> = LazyLock::new(Mutex::default);

/// What was done in texts and caches that are no more.
static PAST: LazyLock<Mutex<(Stats, Tokens)>> = LazyLock::new(Mutex::default);

/// Models, by the address of a weight, and the file that is mapped there.
static MODELS: LazyLock<Mutex<HashMap<usize, Loaded>>> = LazyLock::new(Mutex::default);

/// What a program has loaded: its file, and the model if it could be read.
type Loaded = (Option<PathBuf>, Option<Arc<Model>>);

/// The callback that a program gave each scheduler, and what it is called with.
static CALLBACKS: LazyLock<Mutex<HashMap<usize, (Callback, usize)>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the callback that a program gives a scheduler: ours calls it.
pub fn remember_callback(sched: Sched, callback: Callback, user: *mut c_void) {
    lock(&CALLBACKS).insert(sched as usize, (callback, user as usize));
}

/// Bytes of a tensor are written outside of any graph: if they are keys of a cache, nothing is known of its cells any more.
///
/// # Safety
/// It is a tensor of the runtime's ggml.
pub unsafe fn written(runtime: &'static Runtime, tensor: *mut Tensor, bytes: Range<usize>) {
    let Some(ggml) = &runtime.ggml else { return };
    // SAFETY: by this function's contract.
    let Some(tensor) = (unsafe { graph::Tensor::new(ggml, tensor) }) else { return };
    let owner = tensor.owner();
    if layer_of(owner.name(), b"cache_k_l").is_none() {
        return;
    }
    let start = (tensor.data() as usize).saturating_sub(owner.data() as usize);
    let ([_, row, ..], [_, rows, ..], [_, all, streams, _]) = (tensor.strides(), tensor.shape(), owner.shape());
    let first = (start + bytes.start) / row.max(1);
    let end = (start.saturating_add(bytes.end)).div_ceil(row.max(1)).min(first + rows).min(all * streams);
    // In a graph that runs, nothing of a cache is set.
    let cache = CACHES.try_lock().ok().and_then(|caches| caches.get(&owner.address()).copied());
    if let Some(mut cache) = cache.and_then(|cache| cache.try_lock().ok())
        && let Some(cache) = cache.as_mut()
    {
        cache.chains.lose(first..end);
    }
}

/// A graph that StepFlow is in while it runs.
pub struct Entered {
    cache: MutexGuard<'static, Option<Cache>>,
    running: Box<Running>,
    runtime: &'static Runtime,
    sched: Sched,
}

/// What the callback is given.
struct Running {
    state: *mut State,
    program: (Callback, usize),
    wanted_by_program: bool,
    wanted_by_us: bool,
}

/// Reads a graph that is about to run, and has StepFlow work in it. `None` where there is nothing to do.
///
/// # Safety
/// It is a graph of `ggml`, which `sched` is about to run on this thread.
pub unsafe fn enter(runtime: &'static Runtime, ggml: &'static Ggml, sched: Sched, graph: Graph) -> Option<Entered> {
    let settings = SETTINGS.as_ref().map_err(|why| report::left_alone(&runtime.name(), why)).ok()?;
    // SAFETY: by this function's contract.
    let reading = match unsafe { Reading::read(ggml, &runtime.sched, graph) } {
        Ok(read) => match read? {
            Read::Tokens(reading) => reading,
            Read::Shift { cache, by } => {
                let known = lock(&CACHES).get(&cache).copied();
                if let Some(cache) = known.map(lock).as_mut().and_then(|cache| cache.as_mut()) {
                    cache.shift(&by);
                }
                return None;
            }
        },
        Err(Unread { cache, why }) => {
            report::left_alone(&runtime.name(), &why);
            // What it writes is not followed; other caches are as they were.
            let known = lock(&CACHES).get(&cache).copied();
            known.into_iter().for_each(|cache| *lock(cache) = None);
            return None;
        }
    };
    let model = model(&reading, runtime, settings)?;
    let cache: Shared = lock(&CACHES).entry(reading.cache).or_insert_with(|| Box::leak(Box::new(Mutex::new(None))));
    let mut cache = lock(cache);
    if cache.as_ref().is_none_or(|cache| !Arc::ptr_eq(&cache.model, &model)) {
        *cache = Some(Cache::new(ggml, model, settings).map_err(|why| report::left_alone(&runtime.name(), &why)).ok()?);
    }
    let known = cache.as_mut()?;
    known.begin(&reading);
    if settings.check {
        return None;
    }
    let program = lock(&CALLBACKS).get(&(sched as usize)).copied().unwrap_or((None, 0));
    let state = &raw mut *known.state;
    let mut running = Box::new(Running { state, program, wanted_by_program: false, wanted_by_us: false });
    // SAFETY: the scheduler's own function; what the callback is given lives until `leave`.
    unsafe { (runtime.sched.set_callback)(sched, Some(callback), (&raw mut *running).cast()) };
    Some(Entered { cache, running, runtime, sched })
}

impl Entered {
    /// The graph has run, to its end or not.
    pub fn leave(mut self, ran: bool) {
        let (program, user) = self.running.program;
        // SAFETY: the scheduler's own function, and what the program gave it.
        unsafe { (self.runtime.sched.set_callback)(self.sched, program, user as *mut c_void) };
        let Some(cache) = self.cache.as_mut() else { return };
        cache.state.end(ran);
        if let Some(why) = cache.state.error.take() {
            report::left_alone(&self.runtime.name(), &why);
        }
    }
}

impl Cache {
    fn new(ggml: &'static Ggml, model: Arc<Model>, settings: &Settings) -> Result<Self, String> {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let repair = Repair::new(&settings.stepflow, model.n_layer, n_threads).map_err(|error| error.to_string())?;
        let control = repair.control();
        report::at_start(&model, &repair);
        let state = Box::new(State::new(ggml, Box::new(repair), settings.all_layers));
        Ok(Self { state, chains: Chains::new(model.markers.clone()), control, model, tokens: Tokens::default() })
    }

    /// The texts that have an answer.
    fn traces(&self) -> impl Iterator<Item = TraceFile> {
        let model = &self.model;
        self.chains.texts().map(|(tokens, tracker)| TraceFile {
            model: model.about.clone(),
            family: model.family,
            markers: model.markers.clone(),
            tokens: tokens
                .iter()
                .zip(tracker.segments())
                .map(|(&id, &segment)| TraceToken { id, piece: model.piece(id), segment })
                .collect(),
            steps: tracker.steps(),
        })
    }

    /// A graph is about to run.
    fn begin(&mut self, reading: &Reading<'_>) {
        let Self { state, chains, model, tokens, control } = self;
        let (rows, events, unknown) =
            chains.label(&reading.places, |row, cell| reading.sees(row, cell), |token| model.piece(token));
        tokens.all += rows.len() as u64;
        tokens.treated += rows.iter().filter(|row| row.segment != Segment::Question).count() as u64;
        tokens.unknown += unknown as u64;
        events.into_iter().for_each(|event| follow(state, control, event));
        state.begin(&rows);
    }

    /// Positions were moved.
    fn shift(&mut self, by: &[i32]) {
        let events = self.chains.shift(|cell| by.get(cell).copied().map_or(0, i64::from));
        events.into_iter().for_each(|event| follow(&mut self.state, &self.control, event));
    }
}

impl Tokens {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.treated += other.treated;
        self.unknown += other.unknown;
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let mut past = lock(&PAST);
        past.0.merge(&self.control.stats());
        past.1.add(self.tokens);
    }
}

/// What happened to a chain, in the books of the caches.
fn follow(state: &mut State, control: &Control, event: Event) {
    match event {
        Event::Fork { from, to, n } => state.fork(from, to, n),
        Event::Question(sequence) => state.relabel(sequence, Segment::Question),
        Event::Removed { chain, positions } => state.remove(chain, &positions),
        Event::Forget(sequence) => {
            state.forget(sequence);
            // Of every text that there ever was, a process has no room.
            lock(&PAST).0.merge(&control.take_stats(sequence));
        }
    }
}

/// The model of a graph; `None` where it cannot be found, which is said once. Where a text begins, it is looked at again: in
/// the place of a model that was let go there may be another.
fn model(reading: &Reading<'_>, runtime: &Runtime, settings: &Settings) -> Option<Arc<Model>> {
    let mut models = lock(&MODELS);
    let weight = reading.weight as usize;
    let begins = reading.places.iter().any(|place| place.position == 0);
    if let Some((_, model)) = models.get(&weight).filter(|_| !begins) {
        return model.clone();
    }
    let file = Model::file_of(reading.weight, settings);
    match models.get(&weight) {
        Some((known, model)) if *known == file => model.clone(),
        _ => {
            let model = Model::open(file.as_deref(), settings).map(Arc::new);
            let model = model.map_err(|why| report::left_alone(&runtime.name(), &why)).ok();
            models.insert(weight, (file, model.clone()));
            model
        }
    }
}

/// What was done so far in all caches, and to how many tokens.
pub fn totals() -> (Stats, Tokens) {
    let (mut all, mut tokens) = PAST.try_lock().map(|past| past.clone()).unwrap_or_default();
    // A graph may still run in another thread when the process ends.
    let Ok(caches) = CACHES.try_lock() else { return (all, tokens) };
    for cache in caches.values().filter_map(|cache| cache.try_lock().ok()) {
        if let Some(cache) = cache.as_ref() {
            all.merge(&cache.control.stats());
            tokens.add(cache.tokens);
        }
    }
    (all, tokens)
}

/// What was said in all caches that no graph runs in now, each with a number of its own.
pub fn traces() -> Vec<(usize, TraceFile)> {
    let Ok(caches) = CACHES.try_lock() else { return Vec::new() };
    let caches = caches.values().filter_map(|cache| cache.try_lock().ok());
    let traces = caches.flat_map(|cache| cache.iter().flat_map(Cache::traces).collect::<Vec<_>>());
    traces.enumerate().collect()
}

/// `ggml_backend_sched_eval_callback`: the program's own, if there is one, and ours. An error of ours ends no graph.
///
/// # Safety
/// `user` is the [`Running`] of the graph that runs.
unsafe extern "C" fn callback(node: *mut Tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: by this function's contract; the state is used by nobody else until the graph has run.
    let (running, state) = unsafe {
        let running = &mut *user.cast::<Running>();
        let state = running.state;
        (running, state)
    };
    let (program, data) = running.program;
    // SAFETY: as the scheduler would call it.
    let of_program = |ask| program.is_some_and(|program| unsafe { program(node, ask, data as *mut c_void) });
    // SAFETY: as above.
    let failed = unsafe { (*state).error.is_some() };
    if ask {
        running.wanted_by_program = of_program(true);
        // SAFETY: as above; the node is one of the graph that runs.
        running.wanted_by_us = !failed && unsafe { on_node(node, true, state.cast()) && (*state).error.is_none() };
        return running.wanted_by_program || running.wanted_by_us;
    }
    if running.wanted_by_us && !failed {
        // SAFETY: as above.
        unsafe { on_node(node, false, state.cast()) };
    }
    !running.wanted_by_program || of_program(false)
}
