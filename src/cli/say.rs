//! Saying something on stderr.

/// A line on stderr. Unlike `eprintln!` it does not panic when nobody reads it: what is said there is no result.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
