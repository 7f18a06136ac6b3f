//! The folder of a run: what it is (`run.json`), its samples so far (`samples.jsonl`), its results.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

use super::sample::Sample;

/// Everything that decides what a run's samples are; two runs with equal ones can be joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Of this format.
    pub version: u32,
    /// The model's name, file, architecture and description.
    pub model: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of the model file.
    pub model_sha256: String,
    /// The problem file's name.
    pub problems: String,
    /// SHA-256 of problems, answers and the order of options.
    pub problems_sha256: String,
    /// How many problems there are, over all shards.
    pub n_problems: usize,
    /// Name and settings of every arm, the one to compare with first.
    pub arms: Vec<(String, String)>,
    /// Samples for each problem and arm.
    pub samples: usize,
    /// Sampling, context and everything else that changes answers, as text.
    pub settings: Vec<(String, String)>,
    /// This part of the problems, and of how many: problem i belongs to part i mod n.
    pub shard: (usize, usize),
}

impl Run {
    /// Of the format that this program writes.
    pub const VERSION: u32 = 2;

    /// The problems of this part.
    pub fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let (part, n) = self.shard;
        (0..self.n_problems).filter(move |index| index % n == part)
    }

    /// The first thing in which two runs differ, beyond their shards.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let fields = |run: &Self| {
            let arms = run.arms.iter().map(|(name, settings)| format!("{name}:{settings}")).collect::<Vec<_>>();
            let mut fields = vec![
                ("version".to_owned(), run.version.to_string()),
                ("model".to_owned(), run.model_sha256.clone()),
                ("problems".to_owned(), run.problems_sha256.clone()),
                ("arms".to_owned(), arms.join(" ")),
                ("samples".to_owned(), run.samples.to_string()),
            ];
            fields.extend(run.settings.clone());
            fields
        };
        let (ours, theirs) = (fields(self), fields(other));
        let differing = ours.iter().zip(&theirs).find(|(a, b)| a != b);
        differing.map(|((name, ours), (_, theirs))| differs(name, ours, theirs))
    }
}

/// In what a setting differs: the words of it that do, and of a long one only that it does.
fn differs(name: &str, ours: &str, theirs: &str) -> String {
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.split(' ').collect(), theirs.split(' ').collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let start = ours.iter().zip(&theirs).take_while(same).count();
    let end = ours[start..].iter().rev().zip(theirs[start..].iter().rev()).take_while(same).count();
    // "temp: Some(0.5)" needs its name.
    let from = start.saturating_sub(usize::from(start > 0 && ours[start - 1].ends_with(':')));
    let words = |all: &[&str]| all[from..all.len() - end].join(" ").trim_end_matches(',').to_owned();
    match (words(&ours), words(&theirs)) {
        (ours, theirs) if ours.len() + theirs.len() > 120 => format!("other {name}"),
        (ours, theirs) => format!("{name}: {ours} here, {theirs} there"),
    }
}

/// A run that cannot be begun, gone on with, or joined.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// There is a run already.
    #[error("{} holds a run already; name another folder with -o (or go on with `stepflow eval --resume`)", .0.display())]
    Exists(PathBuf),
    /// There is another run.
    #[error("{path} holds another run ({difference}); name another folder with -o", path = path.display())]
    Differs {
        /// The folder.
        path: PathBuf,
        /// In what.
        difference: String,
    },
}

/// The folder of a run, open for more samples.
pub struct Folder {
    path: PathBuf,
    samples: File,
}

impl Folder {
    /// Begins a run in `path`, or goes on with it: then its samples so far are returned, and the unfinished line that an
    /// interruption left is cut off.
    ///
    /// # Errors
    /// When there is a run that is not to be gone on with, or is another one, or a file cannot be used.
    pub fn open(path: &Path, run: &Run, resume: bool) -> Result<(Self, Vec<Sample>), FolderError> {
        let io = |error| FolderError::Io { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(io)?;
        let description = path.join("run.json");
        match description.exists() {
            true if !resume => return Err(FolderError::Exists(path.to_owned())),
            true => {
                let there = read_run(path)?;
                let of = |(part, parts): (usize, usize)| format!("{}/{parts}", part + 1);
                let shard = format!("shard {} here, {} there", of(run.shard), of(there.shard));
                let difference = run.difference(&there).or((run.shard != there.shard).then_some(shard));
                if let Some(difference) = difference {
                    return Err(FolderError::Differs { path: path.to_owned(), difference });
                }
            }
            false => {
                let mut json = serde_json::to_vec_pretty(run).map_err(|error| io(error.into()))?;
                json.push(b'\n');
                files::write_whole(&description, |file| file.write_all(&json)).map_err(io)?;
            }
        }
        let file = path.join("samples.jsonl");
        let (samples, whole) = if file.exists() { read_samples(&file)? } else { (Vec::new(), 0) };
        let io = |error| FolderError::Io { path: file.clone(), error };
        let mut opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(io)?;
        opened.set_len(whole).and_then(|()| opened.seek(SeekFrom::End(0))).map_err(io)?;
        Ok((Self { path: path.to_owned(), samples: opened }, samples))
    }

    /// Adds a finished sample; it is with the system when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, sample: &Sample) -> Result<(), FolderError> {
        let line = serde_json::to_vec(sample).map_err(io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.samples.write_all(&line)
        });
        written.map_err(|error| FolderError::Io { path: self.path.join("samples.jsonl"), error })
    }

    /// Writes a result beside the samples, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<(), FolderError> {
        let path = self.path.join(name);
        files::write_whole(&path, |file| file.write_all(text.as_bytes()))
            .map_err(|error| FolderError::Io { path, error })
    }
}

/// What the run in `folder` is.
///
/// # Errors
/// When there is none, or its description cannot be read.
pub fn read_run(folder: &Path) -> Result<Run, FolderError> {
    let path = folder.join("run.json");
    let bytes = std::fs::read(&path).map_err(|error| FolderError::Io { path: path.clone(), error })?;
    let run: Run = serde_json::from_slice(&bytes).map_err(|error| FolderError::Malformed {
        path: path.clone(),
        reason: format!("expected the description of a run: {error}"),
    })?;
    let (part, n) = run.shard;
    match run.version == Run::VERSION && part < n {
        true => Ok(run),
        false => Err(FolderError::Malformed { path, reason: "expected a run of this version of stepflow".to_owned() }),
    }
}

/// The samples in a file, and how many bytes of it hold them: the last line may be cut short.
///
/// # Errors
/// When the file cannot be read, or a line that is not the last is no sample, or a sample stands there twice.
pub fn read_samples(path: &Path) -> Result<(Vec<Sample>, u64), FolderError> {
    let io = |error| FolderError::Io { path: path.to_owned(), error };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut samples, mut whole, mut line) = (Vec::<Sample>::new(), 0, Vec::new());
    let mut seen = HashSet::new();
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(io)?;
        if line.last() != Some(&b'\n') {
            return Ok((samples, whole));
        }
        let malformed = |reason: String| FolderError::Malformed {
            path: path.to_owned(),
            reason: format!("line {}: {reason}", samples.len() + 1),
        };
        let sample: Sample = serde_json::from_slice(&line).map_err(|e| malformed(format!("expected a sample: {e}")))?;
        if !seen.insert((sample.index, sample.arm.clone(), sample.sample)) {
            return Err(malformed(format!(
                "a second sample {} of {} by {}",
                sample.sample, sample.problem, sample.arm
            )));
        }
        samples.push(sample);
        whole += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_in_the_words_that_differ() {
        let sampling = |temp: &str| format!("SamplingParams {{ seed: Some(1), temp: {temp}, top_k: None }}");
        assert_eq!(
            differs("sampling", &sampling("Some(0.6)"), &sampling("None")),
            "sampling: temp: Some(0.6) here, temp: None there"
        );
        assert_eq!(differs("predict", "30", "31"), "predict: 30 here, 31 there");
        assert_eq!(differs("problems", &"a".repeat(64), &"b".repeat(64)), "other problems");
    }
}
