//! Whole numbers in words: `seven`, `forty-two`, `one hundred and five`.

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];

const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

const SCALES: [(&str, u32); 3] = [("thousand", 1_000), ("million", 1_000_000), ("billion", 1_000_000_000)];

/// Longer texts are no numbers.
const MAX_LENGTH: usize = 120;

/// Text that begins with a number in words, with that number in digits instead.
pub(super) fn in_digits(text: &str) -> Option<String> {
    let (number, length) = number(text.get(..MAX_LENGTH).unwrap_or(text))?;
    let rest = &text[length..];
    // `zero-sum` is a word of its own.
    if rest.starts_with('-') {
        return None;
    }
    rest.is_empty().then(|| number.to_string()).or_else(|| Some(format!("{number} {}", rest.trim_start())))
}

/// The number at the beginning of a text, and its length.
fn number(text: &str) -> Option<(u64, usize)> {
    let (mut total, mut group, mut length) = (0u64, None::<u64>, 0);
    for word in text.split_inclusive([' ', '-']) {
        let at = word.as_ptr() as usize - text.as_ptr() as usize;
        let bare = word.trim_end_matches([' ', '-']).to_ascii_lowercase();
        let scale = SCALES.iter().find(|(name, _)| *name == bare).map(|(_, scale)| u64::from(*scale));
        group = match (&*bare, group, scale) {
            ("and", Some(group), _) if group % 100 == 0 || total > 0 => {
                let goes_on = text[at + word.len()..]
                    .split(|c: char| !c.is_alphabetic())
                    .next()
                    .is_some_and(|next| value(&next.to_ascii_lowercase()).is_some());
                if goes_on { Some(group) } else { break }
            }
            ("hundred", Some(group), _) if (1..10).contains(&group) => Some(group * 100),
            (_, Some(group), Some(scale)) => {
                total += group * scale;
                Some(0)
            }
            (word, group, _) => match (value(word), group.unwrap_or(0)) {
                (Some(value), before) if group.is_none() || fits(before, value) => Some(before + value),
                _ => break,
            },
        };
        length = at + bare.len();
    }
    Some((total + group?, length))
}

/// Whether a number of two digits or one goes on what stands before it: `five` after `forty`, `forty` after `hundred`.
fn fits(before: u64, value: u64) -> bool {
    let after_hundred = before.is_multiple_of(100) && value > 0;
    after_hundred || before % 100 >= 20 && before.is_multiple_of(10) && (1..10).contains(&value)
}

fn value(word: &str) -> Option<u64> {
    let of = |words: &[&str], factor: u64, first: u64| {
        words.iter().zip(first..).find_map(|(name, n)| (*name == word).then_some(n * factor))
    };
    of(&SMALL, 1, 0).or_else(|| of(&TENS, 10, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbers() {
        for (text, expected) in [
            ("zero", "0"),
            ("Seven", "7"),
            ("forty-two", "42"),
            ("forty two marbles", "42 marbles"),
            ("twelve apples and pears", "12 apples and pears"),
            ("one hundred and five", "105"),
            ("three hundred twelve thousand and six", "312006"),
            ("two million", "2000000"),
            ("five and six", "5 and six"),
            ("one hundred and no more", "100 and no more"),
        ] {
            assert_eq!(in_digits(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "none", "hundred", "fivefold", "zero-sum game", "forty-second street", "and five", "-", "é"] {
            assert_eq!(in_digits(text).filter(|text| text.parse::<u64>().is_ok()), None, "{text}");
        }
    }
}
