//! What the program says on stderr about a session: what it is, how fast, and what of it StepFlow can work on.

use indicatif::{BinaryBytes, HumanCount};
use stepflow::engine::{Control, Session, Summary};
use stepflow::llama::Model;
use stepflow::trace::{Family, Markers};

use super::bench;
use super::flags::{FamilyArgs, Switch};

/// The first lines of a chat: the model and its size, the context and the memory taken.
pub fn banner(session: &Session) {
    let model = session.model();
    let file = model.path().file_name().unwrap_or_default().to_string_lossy();
    let name = model.metadata().str("general.name").unwrap_or(&file);
    let architecture = model.metadata().architecture().unwrap_or_default();
    // llama.cpp names a model's kind, its size if it is one of those known, and the format of its weights.
    let description = model.description();
    let format = description.strip_prefix(architecture).and_then(|rest| rest.trim_start().split_once(' '));
    let format = format.map_or(description.as_str(), |(_, format)| format);
    let (parameters, size) = (short_count(model.n_params()), BinaryBytes(model.size()));
    say!("{name}: {architecture}, {parameters} parameters, {format}, {size}");
    let n_ctx = session.n_ctx() as u64;
    let trained = match u64::from(model.n_ctx_train()) {
        n if n == 0 || n == n_ctx => String::new(),
        n => format!(" (the model was trained with {})", HumanCount(n)),
    };
    let memory =
        bench::resident_bytes().map_or(String::new(), |bytes| format!(", {} of memory taken", BinaryBytes(bytes)));
    let repairs = if session.stepflow().is_some() { "on" } else { "off" };
    say!("context of {} tokens{trained}{memory}, StepFlow {repairs}", HumanCount(n_ctx));
    say!("/help lists the commands, Ctrl-C stops an answer\n");
}

/// As models are named: `135M`, `1.5B`.
fn short_count(n: u64) -> String {
    let (n, unit) = match n {
        0..1_000_000 => (n as f64 / 1e3, "K"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "B"),
    };
    format!("{n:.*}{unit}", usize::from(n < 10.0))
}

/// Says which family is assumed when StepFlow is on and nothing in the model tells.
pub fn say_family(stepflow: Option<&Control>, (family, found): (Family, bool)) {
    if stepflow.is_some() && !found {
        say!(
            "stepflow: this model's vocabulary and template mark no thinking; taking all it generates as thinking until {} \
             (--family {family}; --think-start and --think-end name other marks)",
            family.markers().closing()
        );
    }
}

/// Says where StepFlow could not have the flash attention that was asked for.
pub fn warn_of_flash_attention(asked: Switch, works_in: &str) {
    if asked == Switch::On && works_in.starts_with("on the softmax") {
        say!("stepflow: -fa on changes nothing: StepFlow works {works_in}");
    }
}

/// Speeds, as llama-cli prints them.
pub fn timings(summary: &Summary) {
    let (prompt, generation) = (summary.prompt_speed(), summary.generation_speed());
    say!("\n[ Prompt: {prompt:.1} t/s | Generation: {generation:.1} t/s ]");
}

/// A user who asked for StepFlow learns when it had nothing to do.
pub fn warn_if_never_engaged(stepflow: Option<&Control>, markers: &Markers) {
    let Some(control) = stepflow else { return };
    let total = control.stats().total();
    if control.is_on() && total.rows_seen == 0 && total.injections == 0 {
        if !control.has_effect() {
            say!("stepflow: StepFlow changed nothing: of its repairs none has a layer and a strength above 0");
            return;
        }
        let opens = match &markers.think_start {
            Some(start) => format!("thinking opens with {start:?}, and none came or too little to work on"),
            None => format!("all is thinking until {}, and too little came to work on", markers.closing()),
        };
        say!("stepflow: StepFlow never engaged: {opens}; see --family and --think-start");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        for (n, short) in [
            (512, "0.5K"),
            (1_730_000, "1.7M"),
            (134_515_008, "135M"),
            (1_543_714_304, "1.5B"),
            (32_763_876_352, "33B"),
        ] {
            assert_eq!(short_count(n), short);
        }
    }
}
