//! What Prometheus is told: llama-server's names (`llamacpp:*`) for what both measure, `stepflow_*` for the rest.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, Opts, Registry, TextEncoder,
};

use crate::engine::{Ended, StepReport};

/// Upper bounds of the buckets of times to the first token, in seconds.
const FIRST_TOKEN: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of the buckets of times between tokens, in seconds.
const BETWEEN_TOKENS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// All that is measured.
pub struct Metrics {
    registry: Registry,
    prompt_tokens: IntCounter,
    prompt_tokens_cached: IntCounter,
    prompt_seconds: Counter,
    predicted_tokens: IntCounter,
    predicted_seconds: Counter,
    decodes: IntCounter,
    most_tokens: IntCounter,
    prompt_speed: Gauge,
    predicted_speed: Gauge,
    processing: Gauge,
    deferred: Gauge,
    busy_slots: Gauge,
    rows_seen: IntCounter,
    rows_bridged: IntCounter,
    injections: IntCounter,
    bridge_mass: GaugeVec,
    requests: CounterVec,
    first_token: Histogram,
    between_tokens: Histogram,
    /// Since the last scrape, which the gauges are means over.
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    prompt: (usize, Duration),
    predicted: (usize, Duration),
    steps: StepReport,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let told = Told(&registry);
        // llama-server lists these; there is no speculative decoding here.
        for name in ["draft_tokens", "accepted_tokens", "drafts"] {
            told.counter(&format!("llamacpp:spec_decode_num_{name}_total"), "Always 0: no speculative decoding.");
        }
        Self {
            prompt_tokens: told.counter("llamacpp:prompt_tokens_total", "Prompt tokens decoded."),
            prompt_tokens_cached: told
                .counter("llamacpp:prompt_tokens_cached_total", "Prompt tokens found in the cache."),
            prompt_seconds: told.seconds("llamacpp:prompt_seconds_total", "Time spent on prompts."),
            predicted_tokens: told.counter("llamacpp:tokens_predicted_total", "Tokens generated."),
            predicted_seconds: told.seconds("llamacpp:tokens_predicted_seconds_total", "Time spent on generating."),
            decodes: told.counter("llamacpp:n_decode_total", "Calls of llama.cpp's decode."),
            most_tokens: told.counter("llamacpp:n_tokens_max", "Most tokens that a sequence has held."),
            prompt_speed: told
                .gauge("llamacpp:prompt_tokens_seconds", "Prompt tokens per second since the last scrape."),
            predicted_speed: told.gauge(
                "llamacpp:predicted_tokens_seconds",
                "Generated tokens per second and slot since the last scrape.",
            ),
            processing: told.gauge("llamacpp:requests_processing", "Answers being generated."),
            deferred: told.gauge("llamacpp:requests_deferred", "Answers waiting for a slot."),
            busy_slots: told
                .gauge("llamacpp:n_busy_slots_per_decode", "Slots at work in a decode since the last scrape."),
            rows_seen: told
                .counter("stepflow_rows_seen_total", "Attention rows (token, head, layer) that OEB looked at."),
            rows_bridged: told.counter("stepflow_rows_bridged_total", "Attention rows that OEB lifted to their floor."),
            injections: told.counter("stepflow_injections_total", "Step starts (token, layer) that SMI injected into."),
            bridge_mass: told.register(
                GaugeVec::new(
                    Opts::new(
                        "stepflow_bridge_mass",
                        "Mean attention on the bridged segment in the last answer, by OEB layer.",
                    ),
                    &["layer", "when"],
                )
                .expect("a valid name"),
            ),
            requests: told.register(
                CounterVec::new(Opts::new("stepflow_requests_total", "Requests by status."), &["status"])
                    .expect("a valid name"),
            ),
            first_token: told.histogram(
                "stepflow_time_to_first_token_seconds",
                "From arrival to first token.",
                &FIRST_TOKEN,
            ),
            between_tokens: told.histogram(
                "stepflow_token_latency_seconds",
                "Between two tokens of an answer.",
                &BETWEEN_TOKENS,
            ),
            window: Mutex::default(),
            registry,
        }
    }
}

/// Where metrics register as they are made. The names are constants, so failures are mistakes of the program.
struct Told<'a>(&'a Registry);

impl Told<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("each name once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect("a valid name"))
    }

    fn seconds(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help).expect("a valid name"))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help).expect("a valid name"))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(options).expect("a valid name"))
    }
}

impl Metrics {
    /// Counts a step of the engine.
    pub fn count_step(&self, report: StepReport) {
        self.decodes.inc_by(report.n_decode as u64);
        let mut window = self.window();
        window.steps.n_decode += report.n_decode;
        window.steps.n_busy += report.n_busy;
    }

    /// Counts a token of an answer whose request came, or whose last token was generated, at `since`.
    pub fn count_token(&self, is_first: bool, since: Instant) {
        let histogram = if is_first { &self.first_token } else { &self.between_tokens };
        histogram.observe(since.elapsed().as_secs_f64());
    }

    /// Counts an answer.
    pub fn count_answer(&self, ended: &Ended) {
        let timings = &ended.timings;
        self.prompt_tokens.inc_by(timings.n_prompt as u64);
        self.prompt_tokens_cached.inc_by(timings.n_cached as u64);
        self.prompt_seconds.inc_by(timings.prompt.as_secs_f64());
        self.predicted_tokens.inc_by(ended.n_generated as u64);
        self.predicted_seconds.inc_by(timings.generation.as_secs_f64());
        self.most_tokens.inc_by((ended.tokens.len() as u64).saturating_sub(self.most_tokens.get()));
        let total = ended.stats.total();
        self.rows_seen.inc_by(total.rows_seen);
        self.rows_bridged.inc_by(total.rows_bridged);
        self.injections.inc_by(total.injections);
        for (layer, stats) in ended.stats.layers.iter().filter(|(_, stats)| stats.rows_seen > 0) {
            let of = |when: &str| self.bridge_mass.with_label_values(&[&layer.to_string(), when]);
            of("before").set(stats.mean_bridge_before());
            of("after").set(stats.mean_bridge_after());
        }
        let mut window = self.window();
        window.prompt.0 += timings.n_prompt;
        window.prompt.1 += timings.prompt;
        window.predicted.0 += ended.n_generated.saturating_sub(1);
        window.predicted.1 += timings.generation;
    }

    /// Counts a request that was answered with `status`.
    pub fn count_request(&self, status: u16) {
        self.requests.with_label_values(&[&status.to_string()]).inc();
    }

    /// Mean seconds that an answer took so far.
    pub fn seconds_per_answer(&self) -> f64 {
        let answers = self.first_token.get_sample_count();
        let seconds = self.prompt_seconds.get() + self.predicted_seconds.get();
        if answers == 0 { 0.0 } else { seconds / answers as f64 }
    }

    /// Prometheus' text format, version 0.0.4; the means start anew.
    pub fn scrape(&self, processing: usize, deferred: usize) -> String {
        let window = std::mem::take(&mut *self.window());
        let per_second =
            |(n, time): (usize, Duration)| if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() };
        self.prompt_speed.set(per_second(window.prompt));
        self.predicted_speed.set(per_second(window.predicted));
        self.busy_slots.set(window.steps.n_busy as f64 / window.steps.n_decode.max(1) as f64);
        self.processing.set(processing as f64);
        self.deferred.set(deferred as f64);
        let mut text = Vec::new();
        // Only writing can fail, and memory takes everything.
        _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    fn window(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_register_and_show_up() {
        let metrics = Metrics::default();
        metrics.count_step(StepReport { n_decode: 2, n_busy: 6 });
        metrics.count_request(200);
        metrics.count_token(true, Instant::now());
        let text = metrics.scrape(1, 2);
        for line in [
            "# TYPE llamacpp:prompt_tokens_total counter",
            "llamacpp:n_decode_total 2",
            "llamacpp:requests_deferred 2",
            "llamacpp:n_busy_slots_per_decode 3",
            "stepflow_requests_total{status=\"200\"} 1",
            "stepflow_time_to_first_token_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
