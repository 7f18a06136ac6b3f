//! Which tests are run, and on which tokens.

use std::ops::Range;

use anyhow::{Context as _, ensure};
use stepflow::llama::{Row, Token};
use stepflow::trace::Segment;

use super::args::BenchArgs;

/// Tokens from one step start to the next: a sentence.
const STEP: usize = 20;

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Tokens of a prompt, decoded in batches; 0 in a test of generation.
    pub n_prompt: usize,
    /// Tokens generated one by one; 0 in a test of a prompt.
    pub n_gen: usize,
    /// Tokens in the context before.
    pub n_depth: usize,
}

impl Test {
    /// llama-bench's name for it: `pp512`, `tg128 @ d2048`.
    pub fn label(&self) -> String {
        let what = match self.n_gen {
            0 => format!("pp{}", self.n_prompt),
            n_gen => format!("tg{n_gen}"),
        };
        if self.n_depth == 0 { what } else { format!("{what} @ d{}", self.n_depth) }
    }

    /// What the context holds before: a question of a third, then thinking.
    pub fn before(&self, n_vocab: usize) -> Vec<Row> {
        rows(0..self.n_depth, self.n_depth / 3, n_vocab)
    }

    /// What is timed, cut into what is timed together: single thinking tokens, or a prompt that is half question.
    pub fn timed(&self, n_vocab: usize) -> Vec<Vec<Row>> {
        let start = self.n_depth;
        if self.n_gen == 0 {
            return vec![rows(start..start + self.n_prompt, start + self.n_prompt / 2, n_vocab)];
        }
        let rows = rows(start..start + self.n_gen, start, n_vocab);
        rows.into_iter().map(|row| vec![Row { logits: true, ..row }]).collect()
    }
}

/// The tests that the flags ask for, in llama-bench's order.
pub fn tests(args: &BenchArgs) -> anyhow::Result<Vec<Test>> {
    let mut tests = Vec::new();
    for &n_depth in &args.n_depth {
        let prompts = args.n_prompt.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, n_depth });
        let generations = args.n_gen.iter().map(|&n_gen| Test { n_prompt: 0, n_gen, n_depth });
        tests.extend(prompts.chain(generations).filter(|test| test.n_prompt + test.n_gen > 0));
    }
    ensure!(!tests.is_empty(), "no test to run: expected a -p or -n above 0, found only 0");
    Ok(tests)
}

/// Tokens of context that the longest test needs.
pub fn n_ctx(tests: &[Test]) -> anyhow::Result<u32> {
    let length = |test: &Test| test.n_depth.checked_add(test.n_prompt.max(test.n_gen));
    let fits = |length: Option<usize>| length.and_then(|length| i32::try_from(length).ok());
    let longest = tests.iter().map(|test| fits(length(test)).with_context(|| too_long(test)));
    let longest = longest.collect::<anyhow::Result<Vec<i32>>>()?.into_iter().max();
    Ok(longest.unwrap_or(0).unsigned_abs())
}

fn too_long(test: &Test) -> String {
    format!("{}: expected depth and test to be at most {} tokens together; use a smaller -d", test.label(), i32::MAX)
}

/// Tokens as a real run has them, so that StepFlow works as it does there: thinking from a position on, in steps. The
/// very first token is question, as the first token of any text is.
fn rows(positions: Range<usize>, thinking_from: usize, n_vocab: usize) -> Vec<Row> {
    let last = positions.end.saturating_sub(1);
    let row = |position: usize| {
        let thinking = position >= thinking_from.max(1);
        let starts_step = thinking && position >= STEP && position.is_multiple_of(STEP);
        Row {
            token: token(position, n_vocab),
            position,
            sequence: 0,
            segment: if thinking { Segment::Thinking } else { Segment::Question },
            previous_step: starts_step.then(|| position - STEP..position),
            logits: position == last,
        }
    };
    positions.map(row).collect()
}

/// A token that is as good as random, and the same in every run (Knuth's multiplicative hash).
fn token(position: usize, n_vocab: usize) -> Token {
    let hash = (position as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Token((hash % n_vocab.max(1) as u64) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_llama_benchs() {
        let test = |n_prompt, n_gen, n_depth| Test { n_prompt, n_gen, n_depth }.label();
        assert_eq!(test(512, 0, 0), "pp512");
        assert_eq!(test(0, 128, 2048), "tg128 @ d2048");
    }

    #[test]
    fn the_context_holds_the_longest_test() {
        let tests = [Test { n_prompt: 512, n_gen: 0, n_depth: 0 }, Test { n_prompt: 0, n_gen: 64, n_depth: 2048 }];
        assert_eq!(n_ctx(&tests).unwrap(), 2112);
        for n_depth in [i32::MAX as usize, usize::MAX] {
            let error = n_ctx(&[Test { n_prompt: 0, n_gen: 1, n_depth }]).unwrap_err().to_string();
            assert!(error.contains("2147483647"), "{error}");
        }
    }

    #[test]
    fn tokens_are_labelled_as_in_a_real_run() {
        let test = Test { n_prompt: 0, n_gen: 30, n_depth: 90 };
        let before = test.before(1000);
        assert_eq!(before.iter().filter(|row| row.segment == Segment::Question).count(), 30);
        let timed = test.timed(1000);
        assert!(timed.iter().flatten().all(|row| row.segment == Segment::Thinking && row.logits));
        let starts: Vec<_> = timed.iter().flatten().filter_map(|row| row.previous_step.clone()).collect();
        assert_eq!((starts.len(), &starts[0]), (1, &(80..100)));
        let prompt = Test { n_prompt: 40, n_gen: 0, n_depth: 0 }.timed(1000);
        assert_eq!(prompt[0].iter().filter(|row| row.segment == Segment::Thinking).count(), 20);
        assert!(prompt[0].iter().all(|row| (0..1000).contains(&row.token.0)));
    }
}
