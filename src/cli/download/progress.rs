//! How far a transfer is, on standard error.

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

/// A bar on a terminal; elsewhere a line for each tenth.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    size: u64,
    tenths: u64,
}

impl Progress {
    /// Progress of the file `name` of `size` bytes, `start` of which are there already.
    pub fn new(name: &str, size: u64, start: u64) -> Self {
        let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {eta}");
        let bar = ProgressBar::new(size).with_prefix(name.to_owned()).with_position(start);
        bar.reset_eta();
        Self {
            bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
            name: name.to_owned(),
            size,
            tenths: tenths(start, size),
        }
    }

    /// So many bytes are there now.
    pub fn set(&mut self, length: u64) {
        self.bar.set_position(length);
        let tenths = tenths(length, self.size);
        if self.bar.is_hidden() && tenths > self.tenths {
            eprintln!("{}: {}% of {}", self.name, tenths * 10, BinaryBytes(self.size));
        }
        self.tenths = tenths;
    }

    /// All bytes are there.
    pub fn finish(self) {
        self.bar.finish();
    }
}

fn tenths(length: u64, size: u64) -> u64 {
    (u128::from(length) * 10 / u128::from(size.max(1))) as u64
}
