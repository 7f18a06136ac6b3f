//! What the program says on stderr about a session: what it is, how fast, what StepFlow did.

use stepflow::engine::{Control, Session, Summary};
use stepflow::llama::Model;
use stepflow::stepflow::Kernels;
use stepflow::trace::{Family, Markers};

use super::flags::FamilyArgs;

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
