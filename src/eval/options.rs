//! Multiple-choice questions: their options in an order that a seed determines, with letters.

use super::shuffle::permutation;

/// The question with its options, `options[right]` among them, and the letter that the right one has there.
///
/// The order depends on `seed` and on the problem's `id`, not on its place in a file.
pub(super) fn lettered(question: &str, options: &[String], right: usize, id: &str, seed: u64) -> (String, char) {
    let order = permutation(options.len(), seed ^ hash(id));
    let mut text = format!("{question}\n\n");
    let mut letter = 'A';
    for (name, at) in ('A'..='Z').zip(order) {
        text += &format!("{name}) {}\n", options[at]);
        if at == right {
            letter = name;
        }
    }
    text += "\nExactly one option is right. Give its letter as your final answer, in \\boxed{}.";
    (text, letter)
}

/// FNV-1a of 64 bits (Fowler, Noll and Vo): the same on every machine and in every version.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_letter_is_that_of_the_right_option() {
        let options: Vec<String> = ["red", "green", "blue", "grey"].map(String::from).to_vec();
        let mut letters = std::collections::BTreeSet::new();
        for id in 0..50 {
            let (text, letter) = lettered("Which?", &options, 2, &id.to_string(), 1);
            assert!(text.starts_with("Which?\n\nA) ") && text.ends_with("in \\boxed{}."), "{text}");
            assert!(text.contains(&format!("\n{letter}) blue\n")), "{text}");
            letters.insert(letter);
        }
        assert_eq!(letters.len(), 4);
    }

    #[test]
    fn hashes_as_published() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
