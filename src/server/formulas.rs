//! Where a text has formulas: LaTeX between `$`, `$$`, `\(` and `\)`, `\[` and `\]`, and what models write without any of
//! these, `\boxed{...}` and environments. A dollar before a price is none. Takes time in proportion to the text.

use std::collections::HashMap;
use std::ops::Range;

/// A formula in a text; ranges are of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formula {
    /// With its delimiters.
    pub whole: Range<usize>,
    /// Without.
    pub latex: Range<usize>,
    /// Whether it stands on a line of its own.
    pub display: bool,
}

/// Environments that are formulas without a delimiter around them.
const ENVIRONMENTS: [&str; 21] = [
    "align",
    "align*",
    "aligned",
    "alignat",
    "alignat*",
    "array",
    "bmatrix",
    "Bmatrix",
    "cases",
    "equation",
    "equation*",
    "gather",
    "gather*",
    "gathered",
    "matrix",
    "multline",
    "multline*",
    "pmatrix",
    "split",
    "vmatrix",
    "Vmatrix",
];

/// Bytes within which the brace of a `\boxed{` without delimiters has to close.
const MAX_BOX: usize = 1000;

/// The formulas of `text`, in order; none reaches into one of the ranges of `code`, which are in order, too.
pub fn find(text: &str, code: &[Range<usize>]) -> Vec<Formula> {
    let mut finder = Finder { text, code, closers: HashMap::new() };
    let (mut formulas, mut at) = (Vec::new(), 0);
    while at < text.len() {
        while finder.code.first().is_some_and(|range| range.end <= at) {
            finder.code = &finder.code[1..];
        }
        if let Some(range) = finder.code.first().filter(|range| range.start <= at) {
            at = range.end;
            continue;
        }
        let formula = match text.as_bytes()[at] {
            b'\\' => finder.after_backslash(at),
            b'$' => finder.after_dollar(at),
            _ => None,
        };
        at = match &formula {
            Some(formula) => formula.whole.end,
            None => at + finder.plain_length(at),
        };
        formulas.extend(formula);
    }
    formulas
}

struct Finder<'a> {
    text: &'a str,
    /// The code that is still ahead.
    code: &'a [Range<usize>],
    /// Of each closing delimiter that was looked for, the next one, or the text's length if there is none.
    closers: HashMap<&'static str, usize>,
}

impl Finder<'_> {
    fn after_backslash(&mut self, at: usize) -> Option<Formula> {
        let rest = &self.text[at + 1..];
        match rest.as_bytes().first()? {
            b'(' => self.between(at, 2, "\\)", false),
            b'[' => self.between(at, 2, "\\]", true),
            b'b' if rest.starts_with("boxed{") => self.boxed(at),
            b'b' => {
                let name = rest.strip_prefix("begin{")?;
                let name = ENVIRONMENTS
                    .iter()
                    .find(|known| name.strip_prefix(**known).is_some_and(|after| after.starts_with('}')))?;
                let end = self.closer(at, name)?;
                let whole = at..end + "\\end{}".len() + name.len();
                Some(Formula { latex: whole.clone(), whole, display: true })
            }
            _ => None,
        }
    }

    fn after_dollar(&mut self, at: usize) -> Option<Formula> {
        let rest = &self.text[at..];
        match rest.bytes().take_while(|&byte| byte == b'$').count() {
            1 => self.between(at, 1, "$", false).filter(|formula| self.is_no_price(formula)),
            2 => self.between(at, 2, "$$", true),
            _ => None,
        }
    }

    /// Bytes of what is no formula at `at`.
    fn plain_length(&self, at: usize) -> usize {
        let rest = &self.text.as_bytes()[at..];
        match rest[0] {
            b'$' => rest.iter().take_while(|&&byte| byte == b'$').count(),
            b'\\' => 1 + self.text[at + 1..].chars().next().map_or(0, char::len_utf8),
            _ => 1,
        }
    }

    fn between(&mut self, at: usize, length: usize, closer: &'static str, display: bool) -> Option<Formula> {
        let latex = at + length..self.closer(at + length, closer)?;
        let inner = &self.text[latex.clone()];
        if inner.trim().is_empty() || (closer.starts_with('$') && has_blank_line(inner)) {
            return None;
        }
        Some(Formula { whole: at..latex.end + closer.len(), latex, display })
    }

    /// Where `closer`, or the end of the environment of that name, comes next; not behind code.
    fn closer(&mut self, from: usize, closer: &'static str) -> Option<usize> {
        let known = self.closers.get(closer).copied().filter(|&known| known >= from);
        let found = known.unwrap_or_else(|| match closer.as_bytes()[0].is_ascii_alphabetic() {
            true => position(self.text, from, &format!("\\end{{{closer}}}")),
            false => position(self.text, from, closer),
        });
        self.closers.insert(closer, found);
        let limit = self.code.first().map_or(self.text.len(), |range| range.start);
        (found < limit).then_some(found)
    }

    /// A dollar sign opens a formula if what follows is no space, and closes it if what precedes is none and no number
    /// follows, as pandoc has it. Of `US$5`, `$5/$x` or `($5)` none opens or closes any.
    fn is_no_price(&self, formula: &Formula) -> bool {
        let (before, after) = (&self.text[..formula.whole.start], &self.text[formula.whole.end..]);
        let inner = &self.text[formula.latex.clone()];
        !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            && !inner.starts_with(char::is_whitespace)
            && !inner.ends_with(|c: char| c.is_whitespace() || matches!(c, '/' | '('))
            && !after.starts_with(|c: char| c.is_ascii_digit())
    }

    fn boxed(&self, at: usize) -> Option<Formula> {
        let limit = self.code.first().map_or(self.text.len(), |range| range.start).min(at + MAX_BOX);
        let (mut depth, mut escaped) = (0, false);
        for (index, byte) in self.text.as_bytes()[..limit].iter().enumerate().skip(at + "\\boxed".len()) {
            match byte {
                _ if escaped => {}
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            escaped = !escaped && *byte == b'\\';
            if depth == 0 {
                let whole = at..index + 1;
                return Some(Formula { latex: whole.clone(), whole, display: false });
            }
        }
        None
    }
}

/// Where `wanted` begins from `from` on, but behind a backslash of its own; the text's length if nowhere.
fn position(text: &str, from: usize, wanted: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        if bytes[at..].starts_with(wanted.as_bytes()) {
            return at;
        }
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    text.len()
}

fn has_blank_line(text: &str) -> bool {
    text.trim().lines().any(|line| line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<(&str, bool)> {
        find(text, &[]).into_iter().map(|formula| (&text[formula.latex], formula.display)).collect()
    }

    #[test]
    fn every_kind_of_delimiter() {
        for (text, latex, display) in [
            ("so $x^2$.", "x^2", false),
            ("**$x$**", "x", false),
            ("当$x$时", "x", false),
            ("the $n$th", "n", false),
            ("$5$ apples", "5", false),
            ("$\\$5 + \\$6$", "\\$5 + \\$6", false),
            ("$a\n+ b$", "a\n+ b", false),
            ("\\(x\\)", "x", false),
            ("\\( a \\\\) b \\)", " a \\\\) b ", false),
            ("$$x$$", "x", true),
            ("$$\nx\n$$", "\nx\n", true),
            ("\\[\n\\boxed{1}\n\\]", "\n\\boxed{1}\n", true),
            ("\\[\n\nx\n\n\\]", "\n\nx\n\n", true),
            ("It is \\boxed{\\frac{1}{2}}.", "\\boxed{\\frac{1}{2}}", false),
            ("\\boxed{\\{1\\}}", "\\boxed{\\{1\\}}", false),
            ("\\begin{align*}\na &= b\n\\end{align*}\n", "\\begin{align*}\na &= b\n\\end{align*}", true),
            ("$5 and $x$", "x", false),
            ("He has $20 and spends $5, so $20-5=15$.", "20-5=15", false),
        ] {
            assert_eq!(found(text), [(latex, display)], "{text}");
        }
    }

    #[test]
    fn prices_and_what_does_not_close_are_none() {
        for text in [
            "$5 and $6",
            "$5, then $6.",
            "It costs $5-$6 each.",
            "US$5 and CA$6",
            "US$5 or A$b",
            "5$, 6$",
            "($5/$6)",
            "$HOME/$USER",
            "**$5** or **$6**",
            "costs $1,000.50 (or $2,000)",
            "| $5 | $6 |",
            "$",
            "$$",
            "$$$",
            "it is $$$ and $$$",
            "$ x $",
            "\\$x\\$",
            "\\\\(x\\\\)",
            "\\(x",
            "\\[x\\)",
            "$a\n\nb$",
            "$$a\n\nb$$",
            "\\boxed{1",
            "\\begin{align}x",
            "\\begin{verbatim}x\\end{verbatim}",
            "\\(\\) \\(  \\)",
        ] {
            assert_eq!(found(text).len(), 0, "{text}: {:?}", found(text));
        }
    }

    #[test]
    fn code_has_none_and_none_reaches_into_it() {
        let text = "`$a$` \\( `b` \\) $c$";
        let code = [0..5, 9..12];
        assert_eq!(find(text, &code).into_iter().map(|formula| &text[formula.latex]).collect::<Vec<_>>(), ["c"]);
    }

    proptest! {
        /// Formulas come in order, and lie on characters.
        #[test]
        fn formulas_are_parts_of_the_text(text in "([$\\\\(){}\\[\\]a1 \n\u{e9}]|\\\\boxed\\{|\\\\begin\\{align\\}|\\\\end\\{align\\}){0,40}") {
            let mut end = 0;
            for Formula { whole, latex, .. } in find(&text, &[]) {
                prop_assert!(end <= whole.start && whole.start <= latex.start && latex.end <= whole.end);
                prop_assert!(text.get(whole.clone()).is_some() && text.get(latex).is_some());
                end = whole.end;
            }
        }
    }
}
