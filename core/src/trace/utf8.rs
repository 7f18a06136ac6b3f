//! Characters from bytes that tokens may cut anywhere.

/// A decoder that takes one byte at a time. What is no UTF-8 becomes U+FFFD, and a cut-off character is dropped.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Utf8 {
    bytes: [u8; 4],
    held: usize,
    expected: usize,
}

impl Utf8 {
    /// Takes the next byte; returns the character that it completes and the number of that character's bytes.
    pub(super) fn push(&mut self, byte: u8) -> Option<(char, usize)> {
        let continues = is_continuation(byte) && self.held > 0;
        if !continues {
            self.held = 0;
            self.expected = match byte {
                0xC2..0xE0 => 2,
                0xE0..0xF0 => 3,
                0xF0..0xF5 => 4,
                _ => 1,
            };
        }
        self.bytes[self.held] = byte;
        self.held += 1;
        if self.held < self.expected {
            return None;
        }
        let text = std::str::from_utf8(&self.bytes[..self.held]).ok();
        let length = std::mem::take(&mut self.held);
        Some((text.and_then(|text| text.chars().next()).unwrap_or(char::REPLACEMENT_CHARACTER), length))
    }

    /// The bytes of a character that has begun and is not whole.
    pub(super) fn beginning(&self) -> Option<&[u8]> {
        (self.held > 0).then(|| &self.bytes[..self.held])
    }

    /// Whether a character goes on in the token that comes next. An empty token leaves it open.
    pub(super) fn goes_on(&self, piece: &[u8]) -> bool {
        self.held > 0 && piece.first().is_none_or(|&byte| is_continuation(byte))
    }
}

fn is_continuation(byte: u8) -> bool {
    (0x80..0xC0).contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> String {
        let mut utf8 = Utf8::default();
        bytes.iter().filter_map(|&byte| utf8.push(byte)).map(|(c, _)| c).collect()
    }

    #[test]
    fn recovers_after_bytes_that_are_no_utf8() {
        assert_eq!(decode(b"a\xE2\x82b\x80\xFFc"), "ab\u{FFFD}\u{FFFD}c");
        assert_eq!(decode(b"\xED\xA0\x80a"), "\u{FFFD}a");
    }

    proptest! {
        #[test]
        fn valid_text_comes_out_as_it_went_in(text in any::<String>()) {
            prop_assert_eq!(decode(text.as_bytes()), text);
        }

        #[test]
        fn any_bytes_are_taken(bytes in any::<Vec<u8>>()) {
            decode(&bytes);
        }
    }
}
