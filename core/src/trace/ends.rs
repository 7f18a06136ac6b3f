//! The characters that end a sentence, and those that belong to the end when they follow it.
//!
//! Facts are those of Unicode's property `Sentence_Terminal` (PropList.txt, Unicode 16), less U+104A, which Burmese writes
//! for a comma; with the ellipsis and the Greek question mark, which the property leaves out.

use std::ops::RangeInclusive;

/// What has been seen of a sentence end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Ending {
    #[default]
    None,
    /// Ends the sentence if white space or a tag follows.
    Narrow,
    /// Ends the sentence whatever follows.
    Wide,
    /// A full-width point after a digit: wide, but for a digit after it, of which it is the decimal point.
    Point,
}

impl Ending {
    /// What `c` ends as far as it alone can tell.
    pub(super) fn of(c: char) -> Ending {
        let is_in = |ranges: &[RangeInclusive<char>]| ranges.iter().any(|range| range.contains(&c));
        match c {
            _ if is_in(WIDE) => Ending::Wide,
            _ if is_in(NARROW) => Ending::Narrow,
            _ => Ending::None,
        }
    }

    pub(super) fn ends_before(self, c: char) -> bool {
        match self {
            Ending::None => false,
            Ending::Narrow => c.is_whitespace() || c == '<',
            Ending::Wide => !is_closer(c) && Ending::of(c) == Ending::None,
            Ending::Point => Ending::Wide.ends_before(c) && !is_digit(c),
        }
    }
}

/// Ends after which white space need not follow: those of scripts that set none, and the danda, after which it is often left
/// out. None of them is written for anything else, but the full-width point.
const WIDE: &[RangeInclusive<char>] = &[
    '।'..='।',
    '။'..='။',
    '។'..='៕',
    '。'..='。',
    '︒'..='︒',
    '︕'..='︖',
    '﹒'..='﹒',
    '﹖'..='﹗',
    '！'..='！',
    '．'..='．',
    '？'..='？',
    '｡'..='｡',
];

/// Ends after which white space follows.
#[rustfmt::skip]
const NARROW: &[RangeInclusive<char>] = &[
    // Latin, Greek, Cyrillic and whatever borrows from them.
    '!'..='!', '.'..='.', '?'..='?', '\u{37E}'..='\u{37E}', '\u{2024}'..='\u{2024}', '…'..='…', '‼'..='‽', '⁇'..='⁉',
    '\u{2CF9}'..='\u{2CFB}', '\u{2E2E}'..='\u{2E2E}', '\u{2E3C}'..='\u{2E3C}', '\u{2E53}'..='\u{2E54}',
    // Armenian, Arabic and Urdu, Syriac, N'Ko, Samaritan, Indic verse ends, Ethiopic.
    '։'..='։', '\u{61D}'..='؟', '۔'..='۔', '\u{700}'..='\u{702}', '\u{7F9}'..='\u{7F9}', '\u{837}'..='\u{837}',
    '\u{839}'..='\u{839}', '\u{83D}'..='\u{83E}', '॥'..='॥', '።'..='።', '፧'..='፨',
    // Canadian syllabics, Philippine scripts, Mongolian, Limbu, Tai Tham, Balinese, Lepcha, Ol Chiki.
    '\u{166E}'..='\u{166E}', '\u{1735}'..='\u{1736}', '\u{1803}'..='\u{1803}', '\u{1809}'..='\u{1809}',
    '\u{1944}'..='\u{1945}', '\u{1AA8}'..='\u{1AAB}', '\u{1B4E}'..='\u{1B4F}', '\u{1B5A}'..='\u{1B5B}',
    '\u{1B5E}'..='\u{1B5F}', '\u{1B7D}'..='\u{1B7F}', '\u{1C3B}'..='\u{1C3C}', '\u{1C7E}'..='\u{1C7F}',
    // Lisu, Vai, Bamum, Phags-pa, Saurashtra, Kayah Li, Javanese, Cham, Meetei Mayek.
    '\u{A4FF}'..='\u{A4FF}', '\u{A60E}'..='\u{A60F}', '\u{A6F3}'..='\u{A6F3}', '\u{A6F7}'..='\u{A6F7}',
    '\u{A876}'..='\u{A877}', '\u{A8CE}'..='\u{A8CF}', '\u{A92F}'..='\u{A92F}', '\u{A9C8}'..='\u{A9C9}',
    '\u{AA5D}'..='\u{AA5F}', '\u{AAF0}'..='\u{AAF1}', '\u{ABEB}'..='\u{ABEB}',
    // Beyond the first plane.
    '\u{10A56}'..='\u{10A57}', '\u{10F55}'..='\u{10F59}', '\u{10F86}'..='\u{10F89}', '\u{11047}'..='\u{11048}',
    '\u{110BE}'..='\u{110C1}', '\u{11141}'..='\u{11143}', '\u{111C5}'..='\u{111C6}', '\u{111CD}'..='\u{111CD}',
    '\u{111DE}'..='\u{111DF}', '\u{11238}'..='\u{11239}', '\u{1123B}'..='\u{1123C}', '\u{112A9}'..='\u{112A9}',
    '\u{113D4}'..='\u{113D5}', '\u{1144B}'..='\u{1144C}', '\u{115C2}'..='\u{115C3}', '\u{115C9}'..='\u{115D7}',
    '\u{11641}'..='\u{11642}', '\u{1173C}'..='\u{1173E}', '\u{11944}'..='\u{11944}', '\u{11946}'..='\u{11946}',
    '\u{11A42}'..='\u{11A43}', '\u{11A9B}'..='\u{11A9C}', '\u{11C41}'..='\u{11C42}', '\u{11EF7}'..='\u{11EF8}',
    '\u{11F43}'..='\u{11F44}', '\u{16A6E}'..='\u{16A6F}', '\u{16AF5}'..='\u{16AF5}', '\u{16B37}'..='\u{16B38}',
    '\u{16B44}'..='\u{16B44}', '\u{16D6E}'..='\u{16D6F}', '\u{16E98}'..='\u{16E98}', '\u{1BC9F}'..='\u{1BC9F}',
    '\u{1DA88}'..='\u{1DA88}',
];

/// Quotes, brackets and Markdown emphasis that close what the end closes.
const CLOSERS: &str = ")]}\"'*_`”’»›）］｝】」』》〉〕〗｣";

/// White space of more than one byte.
const SPACES: &[RangeInclusive<char>] = &[
    '\u{85}'..='\u{85}',
    '\u{A0}'..='\u{A0}',
    '\u{1680}'..='\u{1680}',
    '\u{2000}'..='\u{200A}',
    '\u{2028}'..='\u{2029}',
    '\u{202F}'..='\u{202F}',
    '\u{205F}'..='\u{205F}',
    '\u{3000}'..='\u{3000}',
];

pub(super) fn is_closer(c: char) -> bool {
    CLOSERS.contains(c)
}

/// A digit beside a full-width point.
pub(super) fn is_digit(c: char) -> bool {
    matches!(c, '0'..='9' | '０'..='９')
}

/// Whether a character that begins with `bytes`, not yet whole, is to be taken for a letter: no closing mark, wide end or white
/// space begins so. A first byte alone is taken for a letter's too, if three or four bytes are to come: tokenizers that
/// cut a closing mark cut it later, but have lone bytes for letters. Not so `EF`, with which full-width marks begin.
pub(super) fn begins_letter(bytes: &[u8]) -> bool {
    if let [0xE0..=0xEE | 0xF0..=0xF4] = bytes {
        return true;
    }
    let begins = |c: char| c.encode_utf8(&mut [0; 4]).as_bytes().starts_with(bytes);
    let ranges = [WIDE, SPACES, &['０'..='９']].into_iter().flatten().cloned();
    !CLOSERS.chars().chain(ranges.flatten()).any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_character_is_a_letter_or_may_be_a_mark() {
        for letter in ["然", "こ", "ゆ", "カ", "𝑥", "क", "က", "한", "é"] {
            let bytes = letter.as_bytes();
            assert!((1..bytes.len()).all(|n| begins_letter(&bytes[..n])), "{letter}");
        }
        for mark in ["」", "”", "）", "！", "।", "\u{3000}", "１", "》", "›"] {
            assert!(!begins_letter(&mark.as_bytes()[..2]), "{mark}");
        }
        assert!(!begins_letter(&"）".as_bytes()[..1]) && !begins_letter(&"»".as_bytes()[..1]));
    }

    #[test]
    fn white_space_is_what_the_standard_library_says() {
        let listed = |c: char| c.is_ascii() || SPACES.iter().any(|range| range.contains(&c));
        assert!(('\0'..=char::MAX).filter(|c| c.is_whitespace()).all(listed));
        assert!(SPACES.iter().cloned().flatten().all(char::is_whitespace));
    }
}
