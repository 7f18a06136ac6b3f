//! What StepFlow does to the accuracy of a model's answers, with error bars.
//!
//! Every [`Arm`] answers the same [`Problem`]s; a [`Plan`] generates the [`Sample`]s side by side, a [`Folder`] keeps them
//! as they finish, and a [`Summary`] compares every arm with the first one, problem by problem. Replies that were made
//! elsewhere are [`graded`] from a file.

mod arm;
mod fault;
mod fields;
pub mod folder;
pub mod grade;
pub mod graded;
mod options;
pub mod problem;

mod run;
mod sample;
mod shuffle;
pub mod speed;
pub mod stats;
mod summary;
pub mod table;
pub mod tune;

pub use arm::{Arm, ArmError};
pub use folder::{Folder, FolderError, Run};
pub use grade::Answer;
pub use problem::{Format, Problem, ProblemError};
pub use run::Plan;
pub use sample::{Key, Repairs, Sample, Tokens};
pub use summary::{Difference, Outcome, Summary};
