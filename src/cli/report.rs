//! What the program says on stderr about its work, and the files it leaves: statistics and traces.

use std::io::IsTerminal;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stepflow::engine::{Control, Event, Session, Summary};
use stepflow::llama::Model;
use stepflow::stepflow::{Kernels, Stats};
use stepflow::trace::{Family, Markers};

use super::args::{ConversationArgs, FamilyArgs};
use super::{output, saliency};

/// The first lines of a chat.
pub fn banner(session: &Session) {
    let model = session.model();
    let repairs = if session.stepflow().is_some() { "on" } else { "off" };
    say!("{}, context {}, StepFlow {repairs}", model.description(), session.n_ctx());
    say!("/exit  /regen  /clear  /read <file>  /stepflow on|off  /stats   Ctrl-C stops an answer\n");
}

/// Says which family is assumed when StepFlow is on and nothing in the model tells.
pub fn say_family(stepflow: Option<&Control>, (family, found): (Family, bool)) {
    if stepflow.is_some() && !found {
        say!(
            "stepflow: this model's vocabulary and template mark no thinking; taking all it generates as thinking \
             (--family {family}; --think-start and --think-end name other marks)"
        );
    }
}

/// Speeds, as llama-cli prints them.
pub fn timings(summary: &Summary) {
    let (prompt, generation) = (summary.prompt_speed(), summary.generation_speed());
    say!("\n[ Prompt: {prompt:.1} t/s | Generation: {generation:.1} t/s ]");
}

/// StepFlow's statistics, as a table.
pub fn stats(session: &Session) {
    let Some(control) = session.stepflow() else {
        say!("StepFlow is not part of this session; /stepflow on makes it so.");
        return;
    };
    let stats = control.stats();
    say!("layer  rows seen  bridged  pB before  pB after  injections  norm    kernels");
    for (layer, s) in &stats.layers {
        say!(
            "{layer:5}  {:9}  {:7}  {:9.4}  {:8.4}  {:10}  {:.4}  {}",
            s.rows_seen,
            s.rows_bridged,
            s.mean_bridge_before(),
            s.mean_bridge_after(),
            s.injections,
            s.mean_injected_norm(),
            s.kernels.map_or("-", Kernels::name)
        );
    }
}

/// Writes the files that the flags ask for.
///
/// # Errors
/// When a file cannot be written; nothing is left of it then, and the other one is written all the same.
pub fn save(args: &ConversationArgs, session: &Session) -> anyhow::Result<()> {
    let stats = args.stats.as_deref().map_or(Ok(()), |path| {
        let stats = session.stepflow().map_or_else(Stats::default, |control| control.stats());
        let json = serde_json::to_string_pretty(&stats.to_json())?;
        output::write_file(path, |out| writeln!(out, "{json}"))
    });
    let trace = args.save_trace.as_deref().map_or(Ok(()), |path| {
        let trace = session.trace();
        output::write_file(path, |out| trace.write(out))
    });
    stats.and(trace)
}

/// Finds out whether [`save`] could write its files, before a long answer is generated.
///
/// # Errors
/// When it could not.
pub fn check_files(args: &ConversationArgs) -> anyhow::Result<()> {
    args.stats.iter().chain(&args.save_trace).try_for_each(|path| output::check_writable(path))?;
    args.saliency_csv.as_deref().map_or(Ok(()), saliency::check_folder)
}

/// A user who asked for StepFlow learns when it had nothing to do.
pub fn warn_if_never_engaged(stepflow: Option<&Control>, markers: &Markers) {
    let Some(control) = stepflow else { return };
    let total = control.stats().total();
    if control.is_on() && total.rows_seen == 0 && total.injections == 0 {
        let start = markers.think_start.as_deref().unwrap_or("the first generated token");
        say!(
            "stepflow: StepFlow never engaged: thinking opens with {start:?}, and none came or too little to work on; \
             see --family and --think-start"
        );
    }
}

/// A user who names a family learns when the model's vocabulary is not made for it.
pub fn warn_if_family_does_not_fit(args: &FamilyArgs, model: &Model) {
    let Some(family) = args.family.filter(|_| args.think_start.is_none() && args.think_end.is_none()) else { return };
    if !family.fits(|text| model.token_of(text).is_some(), model.chat_template()) {
        let tokens = family.tokens().join(" and ");
        say!(
            "stepflow: --family {family}: this model's vocabulary has no {tokens}; thinking is found only where it writes \
             them as text"
        );
    }
}

/// Progress of a long prompt: a bar on a terminal, nothing elsewhere (the answer is the sign of life).
#[derive(Default)]
pub struct PromptProgress {
    bar: Option<ProgressBar>,
}

impl PromptProgress {
    const WORTH_A_BAR: usize = 1024;

    /// Follows the events of a generation.
    pub fn on_event(&mut self, event: &Event<'_>) {
        match event {
            Event::Prompt { done, total } if done < total && std::io::stderr().is_terminal() => {
                if total - done >= Self::WORTH_A_BAR || self.bar.is_some() {
                    let bar = self.bar.get_or_insert_with(|| bar("prompt", "tokens", *total));
                    bar.set_position(*done as u64);
                }
            }
            _ => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

/// Progress of work whose result comes at its end, and the time that is left: a bar on a terminal, a line every tenth
/// elsewhere.
pub struct Progress {
    what: String,
    unit: &'static str,
    total: usize,
    /// Tenths of the work that were told.
    told: usize,
    bar: ProgressBar,
}

impl Progress {
    /// Of `total` units of work.
    pub fn new(what: &str, unit: &'static str, total: usize) -> Self {
        let bar = bar(what, unit, total);
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { what: what.to_owned(), unit, total, told: 0, bar }
    }

    /// So much is done.
    pub fn at(&mut self, done: usize) {
        self.say(done, "");
    }

    /// So much is done, with this to say of it.
    pub fn say(&mut self, done: usize, so_far: &str) {
        let tenths = done * 10 / self.total.max(1);
        self.bar.set_position(done as u64);
        self.bar.set_message(so_far.to_owned());
        if self.bar.is_hidden() && tenths > self.told {
            let left = HumanDuration(self.bar.eta());
            say!("{}: {done}/{} {}, {left} left {so_far}", self.what, self.total, self.unit);
        }
        self.told = tenths;
    }
}

fn bar(what: &str, unit: &str, total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template(&format!("{what} {{bar:40}} {{pos}}/{{len}} {unit}, {{eta}} left  {{msg}}"));
    ProgressBar::new(total as u64).with_style(style.expect("the template is valid"))
}
