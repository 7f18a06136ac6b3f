//! From prompt to tokens: what every front of the program uses.
//!
//! A [`Session`] turns the tokens of a prompt into a stream of [`Event`]s; [`ChatTemplate`] makes the prompt, [`Sampler`]
//! chooses the tokens, and [`Repair`] is StepFlow as a graph hook. [`score`] scores a given text instead; it needs no
//! more than a context, which [`open`] makes. [`recorded`] makes a trace of a conversation that was had elsewhere.

mod answer;
mod budget;
mod events;
mod fit;
mod flash;
mod gbnf;
mod grammar;
mod open;
mod parallel;
mod recorded;
mod sampling;
mod score;
mod session;
mod slots;
mod template;
mod text;
mod tokens;
mod work;

pub use events::{Event, Finish, Request, Summary};
pub use fit::{Fit, Need};
pub use flash::{flash_attention, keeps_flash_attention, works_in};
pub use grammar::{Grammar, GrammarError, Triggers};
pub use open::{load_adapter, open, warm_up};
pub use parallel::{Generated, Job, Parallel};
pub use recorded::{RecordedError, recorded};
pub use sampling::{DeadEnd, Sampler, SamplerKind, SamplingParams};
pub use score::{label, score};
pub use session::{EngineError, Session, SessionParams, about, markers_of};
pub use slots::{SlotStatus, Slots, StepReport};
pub use stepflow_core::repair::{Control, Repair};
pub use template::{ChatTemplate, Message, Prompt, TemplateError, enable_thinking};
pub use tokens::{prompt_tokens, tokenize};
pub use work::{Alternatives, Ended, SlotEvent, Stop, Timings, TokenChoice, Work};
