//! From the bytes of tokens to text that can be shown: whole characters, and nothing that a stop text may begin with.

/// The text of one answer, as it grows.
pub(super) struct Text {
    stops: Vec<String>,
    /// Bytes that may be part of a stop text, or of a character that is not whole yet.
    held: Vec<u8>,
}

impl Text {
    /// A text that ends where one of `stops` begins.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: Vec::new() }
    }

    /// Takes bytes in. Returns what can be shown, and the stop text if one came up: what follows it is dropped.
    pub fn push(&mut self, bytes: &[u8]) -> (String, Option<String>) {
        self.held.extend_from_slice(bytes);
        let found = self.stops.iter().filter_map(|stop| Some((find(&self.held, stop.as_bytes())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            let stop = stop.clone();
            self.held.truncate(at);
            return (self.flush(), Some(stop));
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop.as_bytes())).max().unwrap_or(0);
        let shown = whole_characters(&self.held[..self.held.len() - kept]);
        let rest = self.held.split_off(shown);
        (lossy(&std::mem::replace(&mut self.held, rest)), None)
    }

    /// What was held back, when nothing follows.
    pub fn flush(&mut self) -> String {
        lossy(&std::mem::take(&mut self.held))
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// Length of the longest end of `text` that `stop` begins with.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

/// Length of `bytes` without a character that is cut off at their end.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let cut = (tail..bytes.len()).rev().find(|&at| bytes[at] >= 0xC0);
    match cut.map(|at| (at, std::str::from_utf8(&bytes[at..]))) {
        // No length of the error: more bytes could complete the character.
        Some((at, Err(error))) if error.error_len().is_none() => at,
        _ => bytes.len(),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(stops: &[&str], pieces: &[&[u8]]) -> (String, Option<String>) {
        let mut text = Text::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut all = String::new();
        for piece in pieces {
            let (part, stop) = text.push(piece);
            all.push_str(&part);
            if stop.is_some() {
                return (all, stop);
            }
        }
        (all + &text.flush(), None)
    }

    #[test]
    fn what_could_be_a_stop_text_is_held_back_until_it_is_none() {
        let mut text = Text::new(vec!["END".into()]);
        assert_eq!(text.push(b"a E"), ("a ".into(), None));
        assert_eq!(text.push(b"N"), (String::new(), None));
        assert_eq!(text.push(b"x"), ("ENx".into(), None));
        assert_eq!(text.push(b" EEND more"), (" E".into(), Some("END".into())));
    }

    #[test]
    fn the_earliest_stop_text_wins() {
        assert_eq!(shown(&["late", "ear"], &[b"an early, late"]), ("an ".into(), Some("ear".into())));
    }

    #[test]
    fn characters_are_shown_whole_and_broken_ones_replaced() {
        let mut text = Text::new(Vec::new());
        assert_eq!(text.push(&[b'a', 0xF0, 0x9F]), ("a".into(), None));
        assert_eq!(text.push(&[0xA4, 0x97]), ("\u{1F917}".into(), None));
        assert_eq!(text.push(&[0xFF, b'b', 0xE4]), ("\u{FFFD}b".into(), None));
        assert_eq!(text.flush(), "\u{FFFD}");
    }

    proptest! {
        /// However a text is cut into pieces, the same is shown.
        #[test]
        fn cuts_do_not_matter(text in "[ab\u{e9}\u{1F917}]{0,24}", stop in "[ab\u{e9}]{1,3}", cuts in prop::collection::vec(0usize..60, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), Some(stop.clone())),
                None => (text.clone(), None),
            };
            prop_assert_eq!(shown(&[&stop], &pieces), expected);
        }
    }
}
