//! Damaged models: whatever is wrong with a file, the program answers or says so in one line.
//!
//! STEPFLOW_MUTATIONS sets how many files are tried; each is made from its number alone, and a failure names it.
#![cfg(unix)]

mod program;
mod tiny;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use program::{Outcome, run, stepflow};
use stepflow::gguf::{Array, GgmlType, Gguf, GgufError, GgufWriter, Value};
use tiny::{Arch, WeightType};

/// Commands that read a model, each with what makes it quick.
const COMMANDS: &[&[&str]] =
    &[&["inspect"], &["-p", "hi", "-n", "1", "-st", "--temp", "0", "-c", "64", "-t", "1", "--no-warmup"]];

#[test]
fn damaged_models_are_answered_or_refused_in_one_line() {
    let count = std::env::var("STEPFLOW_MUTATIONS").map_or(200, |count| count.parse().unwrap());
    let next = AtomicU64::new(0);
    let refused = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    let failures: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            let mut failures = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return failures;
                }
                let (file, what) = mutated(number);
                let known = Gguf::open(file.path()).and_then(|gguf| gguf.check_loadable());
                for command in COMMANDS {
                    let outcome = run(stepflow(command.iter().map(Path::new).chain([Path::new("-m"), file.path()])));
                    refused.fetch_add(u64::from(!outcome.status.success()), Ordering::Relaxed);
                    // Of a file that is cut behind its header, `inspect` says what that tells.
                    let is_cut = matches!(known, Err(GgufError::Truncated { .. }));
                    let known_bad = known.is_err() && !(is_cut && command[0] == "inspect");
                    if let Some(fault) = fault(&outcome, known_bad) {
                        failures.push(format!("mutation {number} ({what}): {fault}"));
                    }
                }
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    eprintln!("{count} damaged models, {} refused", refused.load(Ordering::Relaxed));
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
}

/// What is wrong with how a run ended. One that hangs is killed by [`run`].
fn fault(outcome: &Outcome, known_bad: bool) -> Option<String> {
    let stderr = &outcome.stderr;
    let one_line = stderr.starts_with("stepflow: ") && stderr.lines().count() == 1;
    match (outcome.status.signal(), outcome.code()) {
        (Some(signal), _) => Some(format!("killed by signal {signal}: {stderr:?}")),
        (_, Some(0)) if known_bad => Some("the check refuses it and the program runs it".to_owned()),
        // What a damaged model says may fill its context, which is said after the answer.
        (_, Some(0 | 3)) => None,
        (_, _) if one_line => None,
        (_, code) => Some(format!("code {code:?}, expected one line of its own: {stderr:?}")),
    }
}

/// A damaged copy of a tiny model, and what was done to it: bytes, or what the file says in valid form.
fn mutated(number: u64) -> (tempfile::NamedTempFile, String) {
    let mut random = Random(number);
    let arch = Arch::ALL[random.below(5)];
    let ty = [WeightType::Q4_0, WeightType::Q8_0][random.below(2)];
    let path = tiny::tiny(arch, ty);
    let mut bytes = std::fs::read(&path).unwrap();
    let mut what = format!("{} {ty:?}", arch.name());
    if random.below(2) == 0 {
        what += &restate(&mut bytes, &mut random);
    } else {
        let data = parse(&bytes).tensors().iter().map(|tensor| tensor.start).min().unwrap() as usize;
        for _ in 0..[1, 1, 2, 3][random.below(4)] {
            what += &format!(", {}", mutate(&mut bytes, data, &mut random));
        }
    }
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    (file, what)
}

fn parse(bytes: &[u8]) -> Gguf {
    Gguf::parse(bytes, bytes.len() as u64).unwrap()
}

/// Writes the file anew with one or two things wrong in it; everything else fits together.
fn restate(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let gguf = parse(bytes);
    let mut metadata: Vec<(String, Value)> =
        gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut tensors: Vec<(String, Vec<u64>, GgmlType)> =
        gguf.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.dims.clone(), tensor.ty)).collect();
    let mut what = String::new();
    for _ in 0..=random.below(2) {
        if random.below(3) > 0 {
            let at = random.below(metadata.len());
            let (key, value) = &mut metadata[at];
            *value = other_value(value, random);
            what += &format!(", {key} {value}");
        } else {
            let at = random.below(tensors.len());
            let (name, dims, ty) = &mut tensors[at];
            match random.below(5) {
                0 => *ty = GgmlType::ALL[random.below(GgmlType::ALL.len())],
                1 => dims.reverse(),
                2 => dims.push(1 + random.below(3) as u64),
                3 => dims[0] = [32, 64, 128, 512, 1024][random.below(5)],
                _ => *name = format!("{name}.lost"),
            }
            what += &format!(", {name} {dims:?} {ty:?}");
        }
    }
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer.metadata(&key, value).unwrap();
    }
    for ((name, dims, ty), old) in tensors.iter().zip(gguf.tensors()) {
        let old = &bytes[old.range().start as usize..old.range().end as usize];
        let rows = dims.iter().skip(1).product::<u64>() * dims[0].div_ceil(ty.block_size());
        let data: Vec<u8> = old.iter().copied().cycle().take((rows * ty.block_bytes()) as usize).collect();
        if let Err(error) = writer.tensor(name, dims, *ty, data) {
            return format!("{what}: nothing, {error}");
        }
    }
    let mut written = Vec::new();
    if let Err(error) = writer.finish(&mut written) {
        return format!("{what}: nothing, {error}");
    }
    *bytes = written;
    what
}

/// Another value for the same key: an extreme number, a number near by, another type, a shorter or a mixed-up array.
fn other_value(value: &Value, random: &mut Random) -> Value {
    match (random.below(4), value) {
        (0..3, Value::U32(n)) => match random.below(3) {
            0 => (random.hostile() as u32).into(),
            1 => n.wrapping_add(random.below(5) as u32).wrapping_sub(2).into(),
            _ => (n / 2 * random.below(4) as u32).into(),
        },
        (0..3, Value::F32(_)) => [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, 1e38][random.below(6)].into(),
        (0..3, Value::Bool(flag)) => (!flag).into(),
        (0..3, Value::String(_)) => {
            ["", "llama", "qwen2", "gemma3", "gpt-oss", "t5", "bert", "mamba", "rwkv7", "{{"][random.below(10)].into()
        }
        (0..3, Value::Array(Array::String(texts))) => {
            let mut texts = texts.clone();
            let at = random.below(texts.len());
            match random.below(3) {
                0 => texts.truncate(at),
                1 => drop(texts.remove(at)),
                _ => texts[at] = ["", "a", "<think>", "\u{fffd}"][random.below(4)].to_owned(),
            }
            texts.into()
        }
        (0..3, Value::Array(Array::I32(numbers))) => {
            let mut numbers = numbers.clone();
            let at = random.below(numbers.len());
            numbers[at] = random.hostile() as i32;
            numbers.into()
        }
        _ => match random.below(6) {
            0 => (random.hostile()).into(),
            1 => (random.hostile() as i32).into(),
            2 => "text".into(),
            3 => vec![random.hostile() as u32; random.below(20)].into(),
            4 => 0.5_f32.into(),
            _ => true.into(),
        },
    }
}

/// One kind of damage to a file whose tensor data begins at `data`.
fn mutate(bytes: &mut Vec<u8>, data: usize, random: &mut Random) -> String {
    let header = data.min(bytes.len());
    let end = bytes.len();
    match random.below(8) {
        0 => {
            let bound = [header, end][random.below(2)];
            let length = random.below(bound + 1);
            bytes.truncate(length);
            format!("cut at {length}")
        }
        1 => flip(bytes, 0..24, random),
        2 => flip(bytes, 0..header, random),
        3 => flip(bytes, header..end, random),
        4 => overwrite(bytes, 0..header, random),
        // Most of a header is vocabulary; what else there is comes before and after it.
        5 => overwrite(bytes, 0..header.min(1200), random),
        6 => overwrite(bytes, header.saturating_sub(8000)..header, random),
        _ => hostile_number(bytes, random),
    }
}

/// Flips one bit.
fn flip(bytes: &mut [u8], range: std::ops::Range<usize>, random: &mut Random) -> String {
    let Some(at) = random.inside(range, bytes.len()) else { return "nothing".to_owned() };
    let bit = random.below(8);
    bytes[at] ^= 1 << bit;
    format!("bit {bit} of byte {at}")
}

/// Writes a number of 4 or 8 bytes somewhere, small ones and extreme ones: types, counts, lengths, dimensions.
fn overwrite(bytes: &mut [u8], range: std::ops::Range<usize>, random: &mut Random) -> String {
    let Some(at) = random.inside(range, bytes.len()) else { return "nothing".to_owned() };
    let (number, width) = (random.hostile(), [1, 4, 8][random.below(3)]);
    for (byte, new) in bytes[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
        *byte = *new;
    }
    format!("{width} bytes of {number:#x} at {at}")
}

/// Replaces the value of a metadata key that holds a plain number, or its type.
fn hostile_number(bytes: &mut [u8], random: &mut Random) -> String {
    const KEYS: [&[u8]; 19] = [
        b".context_length",
        b".embedding_length",
        b".block_count",
        b".feed_forward_length",
        b".attention.head_count",
        b".attention.head_count_kv",
        b".attention.key_length",
        b".attention.value_length",
        b".attention.layer_norm_rms_epsilon",
        b".rope.dimension_count",
        b".rope.freq_base",
        b".attention.sliding_window",
        b".expert_count",
        b".expert_used_count",
        b".expert_feed_forward_length",
        b"general.file_type",
        b"tokenizer.ggml.bos_token_id",
        b"tokenizer.ggml.eos_token_id",
        b"tokenizer.ggml.tokens",
    ];
    let key = KEYS[random.below(KEYS.len())];
    let found = bytes.windows(key.len()).position(|window| window == key);
    let Some(at) = found.map(|at| at + key.len()) else { return "nothing".to_owned() };
    let (number, at) = (random.hostile(), at + 4 * random.below(2));
    for (byte, new) in bytes[at..].iter_mut().zip(&(number as u32).to_le_bytes()) {
        *byte = *new;
    }
    format!("{:#x} at {at} behind {}", number as u32, String::from_utf8_lossy(key))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A place in a range, as far as the file holds it.
    fn inside(&mut self, range: std::ops::Range<usize>, length: usize) -> Option<usize> {
        let end = range.end.min(length);
        (range.start < end).then(|| range.start + self.below(end - range.start))
    }

    fn hostile(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(16) as u64,
            1 => self.below(5000) as u64,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => u64::MAX - self.below(16) as u64,
            _ => self.next(),
        }
    }
}
