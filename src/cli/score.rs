//! `score`: the negative log-likelihood of every token of a text, with StepFlow or without.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use stepflow::engine::{self, Control, EngineError};
use stepflow::llama::{Context, LlamaError, Model, Row, Token};
use stepflow::trace::{Segment, Step};

use super::flags::{ContextArgs, EscapeArgs, ModelArgs, StepFlowArgs};
use super::progress::Progress;
use super::report;
use super::setup::{self, Interrupt};
use super::{exit, input, output};

/// Scoring.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub context: ContextArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub stepflow: StepFlowArgs,
    /// The text to score; special tokens in it count as such.
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "tokens"])]
    pub prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub escape: EscapeArgs,
    /// File with the text to score; stdin by default.
    #[arg(short, long, value_name = "FNAME", conflicts_with = "tokens")]
    pub file: Option<PathBuf>,
    /// File with token numbers instead of text: a JSON array, or separated by white space.
    #[arg(long, value_name = "FNAME")]
    pub tokens: Option<PathBuf>,
    /// Tokens at the beginning that are prompt: an implicit family starts to think after them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub prompt_tokens: usize,
    /// Output format.
    #[arg(long, value_enum, default_value_t = ScoreFormat::Csv)]
    pub format: ScoreFormat,
    /// JSON output, as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Write to a file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Output formats of `score`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScoreFormat {
    /// One row a token.
    Csv,
    /// One object.
    Json,
}

/// Tokens from which on progress is shown.
const WORTH_PROGRESS: usize = 2048;

/// Runs the command.
pub fn run(args: &ScoreArgs) -> anyhow::Result<u8> {
    let interrupt = Interrupt::install()?;
    let mut params = setup::session_params(&args.context, &args.stepflow, args.model.lora()?, &interrupt)?;
    let source = Source::read(args)?;
    setup::warn_of_idle_settings(&args.stepflow, &params.stepflow, args.context.size.flash_attn, false);
    let mut model = setup::load_with_context(&args.model, &mut params.context)?;
    setup::warn_of_context(&args.context, args.context.size.ctx_size as usize, &model);
    report::warn_if_family_does_not_fit(&args.stepflow.family, &model);
    // As it is with StepFlow, so that scores with and without compare.
    params.context.flash_attention = engine::flash_attention(&model, &params.context)?;
    let tokens = source.tokens(&model)?;
    params.context.n_ctx = n_ctx(args.context.size.ctx_size, &model, tokens.len())?;
    // Every token of a batch wants its logits, which take a vocabulary each.
    params.context.n_batch = params.context.n_ubatch;

    let (family, found, markers) = engine::markers_of(&model, &params);
    if args.prompt_tokens > tokens.len() {
        let (asked, has) = (args.prompt_tokens, tokens.len());
        bail!(exit::Usage(format!("--prompt-tokens {asked}: expected at most the {has} tokens of the text")));
    }
    if params.stepflow.oeb.is_some() && markers.think_start.is_none() && args.prompt_tokens == 0 {
        say!(
            "stepflow: all of the text is taken as thinking, so OEB has no prompt to bridge to; --prompt-tokens says how many \
             tokens are prompt"
        );
    }
    let (rows, steps) = engine::label(&model, markers.clone(), &tokens, args.prompt_tokens);
    let mut adapter = engine::load_adapter(&mut model, params.lora.as_deref())?;
    let (mut context, control) = engine::open(model.clone(), &params.context, &params.stepflow, adapter.as_mut())?;
    report::say_family(control.as_ref(), (family, found));
    if control.is_some() {
        engine::warm_up(&mut context, control.as_ref())?;
        report::warn_of_flash_attention(args.context.size.flash_attn, &engine::works_in(&context));
    }

    let (scores, interrupted) = score(&mut context, rows.clone(), &interrupt)?;
    let scored = Scored::new(&model, &rows, &steps, &scores, control.as_ref());
    output::write_result(args.output.as_deref(), |out| match args.json || args.format == ScoreFormat::Json {
        true => scored.write_json(out),
        false => scored.write_csv(out),
    })?;
    scored.summarize(control.as_ref());
    if interrupted {
        say!("stepflow: interrupted: {} of {} tokens are scored", scored.tokens.len(), rows.len());
        return Ok(exit::INTERRUPTED);
    }
    report::warn_if_never_engaged(control.as_ref(), &markers);
    Ok(exit::OK)
}

/// The scores, and whether Ctrl-C cut them short.
fn score(context: &mut Context, rows: Vec<Row>, interrupt: &Interrupt) -> Result<(Vec<f64>, bool), EngineError> {
    let mut scores = Vec::with_capacity(rows.len());
    let mut progress = (rows.len() > WORTH_PROGRESS).then(|| Progress::new("score", "tokens", rows.len()));
    let outcome = interrupt.during(|| {
        engine::score(context, rows, |so_far| {
            scores.extend_from_slice(&so_far[scores.len()..]);
            if let Some(progress) = &mut progress {
                progress.at(scores.len() + 1);
            }
        })
    });
    match outcome {
        Ok(scores) => Ok((scores, false)),
        Err(LlamaError::Interrupted) => Ok((scores, true)),
        Err(error) => Err(error.into()),
    }
}

/// What is to be scored, before the model is there to make sense of it.
enum Source {
    Text(String),
    Numbers(Vec<i64>),
}

impl Source {
    fn read(args: &ScoreArgs) -> anyhow::Result<Self> {
        let source = match &args.tokens {
            Some(path) => {
                let numbers = parse_numbers(&input::read_text(path)?);
                Some(Self::Numbers(numbers.with_context(|| path.display().to_string())?))
            }
            None => input::text(args.prompt.as_deref().map(|text| args.escape.read(text)), args.file.as_deref())?
                .map(Self::Text),
        };
        match source {
            Some(Self::Text(text)) if text.is_empty() => bail!("the text to score is empty"),
            Some(Self::Numbers(numbers)) if numbers.is_empty() => bail!("there are no tokens to score"),
            Some(source) => Ok(source),
            None => bail!("nothing to score: give a text with -p, -f or on stdin, or token numbers with --tokens"),
        }
    }

    fn tokens(&self, model: &Model) -> anyhow::Result<Vec<Token>> {
        let numbers = match self {
            Self::Text(text) => return Ok(engine::tokenize(model, text).0),
            Self::Numbers(numbers) => numbers,
        };
        let token = |(position, &number): (usize, &i64)| match i32::try_from(number) {
            Ok(id) if (0..model.n_vocab()).contains(&(id as usize)) => Ok(Token(id)),
            _ => bail!("token {position}: expected a number from 0 to {}, found {number}", model.n_vocab() - 1),
        };
        numbers.iter().enumerate().map(token).collect()
    }
}

/// Token numbers: a JSON array, or separated by white space.
fn parse_numbers(text: &str) -> anyhow::Result<Vec<i64>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).context("expected a JSON array of token numbers");
    }
    let number = |word: &str| word.parse().map_err(|_| anyhow::anyhow!("expected token numbers, found `{word}`"));
    text.split_whitespace().map(number).collect()
}

/// The size of a context that holds the text: what the flag says, else no more than needed.
fn n_ctx(flag: u32, model: &Model, n_tokens: usize) -> Result<u32, EngineError> {
    let limit = if flag == 0 { model.n_ctx_train() } else { flag };
    match u32::try_from(n_tokens) {
        Ok(n_tokens) if n_tokens <= limit => Ok(if flag == 0 { n_tokens } else { flag }),
        _ => Err(EngineError::PromptTooLong { n_prompt: n_tokens, n_ctx: limit as usize }),
    }
}

/// One line of the result.
#[derive(Serialize)]
struct ScoredToken {
    position: usize,
    token: i32,
    piece: String,
    segment: Segment,
    /// The number of its step, from 0.
    step: usize,
    /// In nats; nothing predicts the first token.
    nll: Option<f64>,
}

/// The result.
#[derive(Serialize)]
struct Scored {
    model: serde_json::Map<String, serde_json::Value>,
    n_tokens: usize,
    mean_nll: Option<f64>,
    perplexity: Option<f64>,
    stepflow: Option<serde_json::Value>,
    tokens: Vec<ScoredToken>,
}

impl Scored {
    /// `scores` may end early; tokens without a score are left out.
    fn new(model: &Model, rows: &[Row], steps: &[Step], scores: &[f64], control: Option<&Control>) -> Self {
        let step_of = |position: usize| steps.partition_point(|step| step.tokens.end <= position);
        let nlls = std::iter::once(None).chain(scores.iter().copied().map(Some));
        let scored = |(row, nll): (&Row, Option<f64>)| ScoredToken {
            position: row.position,
            token: row.token.0,
            piece: String::from_utf8_lossy(&model.piece(row.token)).into_owned(),
            segment: row.segment,
            step: step_of(row.position),
            nll,
        };
        let tokens: Vec<_> = rows.iter().zip(nlls).map(scored).collect();
        let mean_nll = (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
        Self {
            model: engine::about(model),
            n_tokens: tokens.len(),
            mean_nll,
            perplexity: mean_nll.map(f64::exp),
            stepflow: control.map(|control| control.stats().to_json()),
            tokens,
        }
    }

    fn write_csv(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for token in &self.tokens {
            csv.serialize(ScoredToken { piece: output::cell(&token.piece).into_owned(), ..*token })?;
        }
        csv.flush()
    }

    fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    /// One line on stderr.
    fn summarize(&self, control: Option<&Control>) {
        match (self.mean_nll, self.perplexity) {
            (Some(mean), Some(perplexity)) => {
                eprint!("mean nll {mean:.4} nats, perplexity {perplexity:.3} over {} tokens", self.n_tokens - 1);
            }
            _ => eprint!("no token has one before it to be predicted from"),
        }
        if let Some(control) = control {
            let total = control.stats().total();
            let (bridged, seen, injections) = (total.rows_bridged, total.rows_seen, total.injections);
            eprint!("; StepFlow bridged {bridged} of {seen} rows and injected {injections} times");
        }
        say!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_numbers_as_json_or_words() {
        assert_eq!(parse_numbers("[1, 2,\n3]").unwrap(), [1, 2, 3]);
        assert_eq!(parse_numbers(" 1 2\n3\t-4 ").unwrap(), [1, 2, 3, -4]);
        assert!(parse_numbers("").unwrap().is_empty());
        for wrong in ["1 2 x", "[1, 2", "[1.5]", "{}"] {
            let error = format!("{:#}", parse_numbers(wrong).unwrap_err());
            assert!(error.starts_with("expected") && error.contains("token numbers"), "{wrong}: {error}");
        }
    }
}
