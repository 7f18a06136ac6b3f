//! Times both arms, in turns.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stepflow::llama::{Batch, Context, FlashAttention, LlamaError, Row};

use super::machine;
use super::plan::Test;

/// Generated tokens that warm an arm up.
const WARM_UP: usize = 4;

/// One side of the comparison.
pub struct Arm {
    /// Its name in the results.
    pub name: &'static str,
    context: Context,
    /// By how much the process grew while this arm ran, in bytes.
    growth: i64,
}

/// What was measured in a test.
pub struct Samples {
    /// Time of every repetition, for each arm.
    pub times: [Vec<Duration>; 2],
    /// Speed of the second arm over the first one's, for every repetition.
    pub ratios: Vec<f64>,
}

impl Arm {
    /// An arm that runs in `context`.
    pub fn new(name: &'static str, context: Context) -> Self {
        Self { name, context, growth: 0 }
    }

    /// How its attention runs.
    pub fn flash_attention(&self) -> FlashAttention {
        self.context.flash_attention()
    }

    /// Decodes rows that follow on what the cache holds, and waits for their logits.
    fn decode(&mut self, rows: &[Row]) -> Result<Duration, LlamaError> {
        let resident = machine::resident_bytes();
        let batches: Vec<_> = rows.chunks(self.context.max_batch()).map(|rows| Batch { rows: rows.to_vec() }).collect();
        let started = Instant::now();
        for batch in &batches {
            // Not every backend looks at the flag inside a decode.
            if self.context.interrupt().load(Ordering::Relaxed) {
                return Err(LlamaError::Interrupted);
            }
            self.context.decode(batch)?;
        }
        if let Some(batch) = batches.last() {
            // A GPU works on after decode returned; who reads the logits waits for it.
            black_box(self.context.logits(batch.rows.len() - 1));
        }
        let time = started.elapsed();
        if let (Some(before), Some(after)) = (resident, machine::resident_bytes()) {
            self.growth += after as i64 - before as i64;
        }
        Ok(time)
    }

    /// Brings the cache to hold `rows` and nothing else; `held` of its tokens hold them already.
    fn rewind(&mut self, rows: &[Row], held: bool) -> Result<(), LlamaError> {
        // A sliding window forgets what it slides past, and a recurrent state cannot go back.
        let slides = self.context.model().metadata().arch_u64("attention.sliding_window").is_some_and(|n| n > 0);
        if held && !slides && self.context.truncate(0, rows.len()) {
            return Ok(());
        }
        self.context.truncate(0, 0);
        self.decode(rows).map(|_| ())
    }
}

/// Runs a test on both arms; `progress` is told the repetitions that are done.
///
/// # Errors
/// As [`Context::decode`].
pub fn measure(
    test: &Test,
    repetitions: usize,
    arms: &mut [Arm; 2],
    mut progress: impl FnMut(usize),
) -> Result<Samples, LlamaError> {
    let n_vocab = arms[0].context.model().n_vocab();
    let before = test.before(n_vocab);
    let timed = test.timed(n_vocab);
    let mut samples = Samples { times: Default::default(), ratios: Vec::new() };
    for repetition in 0..=repetitions {
        for arm in arms.iter_mut() {
            arm.rewind(&before, repetition > 0)?;
        }
        if repetition == 0 {
            take_turns(&timed[..timed.len().min(WARM_UP)], repetition, arms)?;
            continue;
        }
        let times = take_turns(&timed, repetition, arms)?;
        samples.ratios.push(ratio(&times));
        for (all, times) in samples.times.iter_mut().zip(&times) {
            all.push(times.iter().sum());
        }
        progress(repetition);
    }
    Ok(samples)
}

/// Both arms decode the same rows in turns. Who goes first changes every time, for the second one finds the weights in
/// the processor's cache.
fn take_turns(timed: &[Vec<Row>], round: usize, arms: &mut [Arm; 2]) -> Result<[Vec<Duration>; 2], LlamaError> {
    let mut times = [Vec::with_capacity(timed.len()), Vec::with_capacity(timed.len())];
    for (i, rows) in timed.iter().enumerate() {
        for turn in 0..arms.len() {
            let arm = (round + i + turn) % arms.len();
            times[arm].push(arms[arm].decode(rows)?);
        }
    }
    Ok(times)
}

/// Speed of the second arm over the first one's: the median over pairs of neighbours in time.
fn ratio([first, second]: &[Vec<Duration>; 2]) -> f64 {
    let pairs = first.iter().zip(second);
    median(pairs.map(|(first, second)| first.as_secs_f64() / second.as_secs_f64().max(1e-9)).collect())
}

/// The middle value, or the mean of the two middle ones; NaN of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// By how much more the process grew in all of the second arm's work than in the first one's, in bytes: what StepFlow
/// holds on to. `None` where the system does not tell.
pub fn extra_memory(arms: &[Arm; 2]) -> Option<u64> {
    machine::resident_bytes()?;
    Some((arms[1].growth - arms[0].growth).max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn a_slow_moment_of_both_does_not_move_the_ratio() {
        let ms = |times: [u64; 3]| times.map(Duration::from_millis).to_vec();
        let ratio = ratio(&[ms([10, 900, 10]), ms([20, 1800, 20])]);
        // Both arms are slowed alike; what is left is rounding.
        assert!((ratio - 0.5).abs() <= 1e-12, "{ratio}");
    }
}
