//! Whether what stands between two boxes or formulas joins them into one answer.

/// Words that take back what was said, or say it again.
const NO_JOINTS: [&str; 32] = [
    "about",
    "actually",
    "answer",
    "approximately",
    "are",
    "but",
    "equals",
    "equivalent",
    "equivalently",
    "hence",
    "i",
    "instead",
    "is",
    "it",
    "namely",
    "no",
    "not",
    "rather",
    "roughly",
    "simplified",
    "simplifies",
    "simplify",
    "simply",
    "so",
    "that",
    "then",
    "therefore",
    "this",
    "thus",
    "wait",
    "was",
    "which",
];

/// A longer gap joins nothing.
const MAX_LENGTH: usize = 120;

/// More words than these are a sentence.
const MAX_WORDS: usize = 6;

/// Whether a gap is a comma, "and" or "or", perhaps with a unit before and a name after it: `}$ apples and $y = `. Nothing
/// but signs joins as well.
pub(super) fn is_joint(gap: &str) -> bool {
    if gap.len() > MAX_LENGTH || gap.contains("\n\n") {
        return false;
    }
    let words_only =
        ["\\text", "\\quad", "\\qquad", "\\mathrm"].iter().fold(gap.to_owned(), |gap, name| gap.replace(name, " "));
    // The name of what follows.
    let unnamed = words_only.trim_end_matches([' ', '$', '(', '\\']).strip_suffix('=').and_then(|gap| {
        let cut = gap.rfind(" and ").map(|at| at + 5).or_else(|| gap.rfind(" or ").map(|at| at + 4));
        cut.or_else(|| gap.rfind(',').map(|at| at + 1)).map(|at| &gap[..at])
    });
    let gap = unnamed.unwrap_or(&words_only);
    let is_sign =
        |c: char| matches!(c, ',' | ';' | '&' | '+' | '$' | '(' | ')' | '[' | ']' | '{' | '}' | '\\' | '*' | '~' | '"');
    if !gap.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || is_sign(c)) {
        return false;
    }
    let words: Vec<String> =
        gap.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
    let joins = words.is_empty() || words.iter().any(|word| word == "and" || word == "or") || gap.contains(',');
    joins && words.len() <= MAX_WORDS && !words.iter().any(|word| NO_JOINTS.contains(&word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joints() {
        for gap in [
            "",
            ", ",
            " and ",
            "$ or $",
            r" \quad \text{and} \quad ",
            " papers and ",
            r"\) and \( y_2 = ",
            r" \\ ",
            ", y = ",
            ", and",
        ] {
            assert!(is_joint(gap), "{gap}");
        }
        for gap in [
            " = ",
            ". ",
            ", no: ",
            "\n\n",
            " so ",
            " no no ",
            r" \Rightarrow ",
            ", not ",
            " or rather ",
            ", which is ",
            " 5 and ",
        ] {
            assert!(!is_joint(gap), "{gap}");
        }
    }
}
