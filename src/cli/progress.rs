//! Progress of long work, on stderr.

use std::io::IsTerminal;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stepflow::engine::Event;

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
        self.bar.set_message(if so_far.is_empty() { String::new() } else { format!("({so_far})") });
        if self.bar.is_hidden() && tenths > self.told {
            let left = HumanDuration(self.bar.eta());
            let so_far = if so_far.is_empty() { String::new() } else { format!(", {so_far}") };
            say!("{}: {done}/{} {}, {left} left{so_far}", self.what, self.total, self.unit);
        }
        self.told = tenths;
    }
}

fn bar(what: &str, unit: &str, total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template(&format!("{what} {{bar:40}} {{pos}}/{{len}} {unit}, {{eta}} left {{msg}}"));
    ProgressBar::new(total as u64).with_style(style.expect("the template is valid"))
}
