//! Formulas as plain text writes them, in LaTeX: `sqrt(2)`, `√12`, `2pi`.

/// Rewrites roots and pi; all else stays.
pub(super) fn as_latex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['√', 's', 'p']) {
        out.push_str(&rest[..at]);
        let begins_name = !out.ends_with(|c: char| c.is_alphabetic() || c == '\\');
        rest = &rest[at..];
        let (written, length) = root(rest, begins_name).or_else(|| pi(rest, begins_name)).unwrap_or_else(|| {
            let first = rest.chars().next().map_or(0, char::len_utf8);
            (rest[..first].to_owned(), first)
        });
        out.push_str(&written);
        rest = &rest[length..];
    }
    out + rest
}

/// A root of what stands in parentheses or of a number, and its length.
fn root(text: &str, begins_name: bool) -> Option<(String, usize)> {
    let of = text.strip_prefix('√').or_else(|| text.strip_prefix("sqrt").filter(|_| begins_name))?;
    let name = text.len() - of.len();
    let digits = digits(of);
    if text.starts_with('√') && digits > 0 {
        return Some((format!("\\sqrt{{{}}}", &of[..digits]), name + digits));
    }
    let inner = of.strip_prefix('(')?;
    let end = inner.find(['(', ')']).filter(|end| inner[*end..].starts_with(')'))?;
    Some((format!("\\sqrt{{{}}}", &inner[..end]), name + end + 2))
}

fn pi(text: &str, begins_name: bool) -> Option<(String, usize)> {
    let rest = text.strip_prefix("pi")?;
    (begins_name && !rest.starts_with(char::is_alphabetic)).then(|| ("\\pi ".to_owned(), 2))
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_formulas_are_latex() {
        for (text, expected) in [
            ("3 + sqrt(2)", r"3 + \sqrt{2}"),
            ("2√12 + √(x+1)", r"2\sqrt{12} + \sqrt{x+1}"),
            ("2pi/3", r"2\pi /3"),
            ("√x, sqrt((1)), pie, spi, asqrt(2)", "√x, sqrt((1)), pie, spi, asqrt(2)"),
            (r"\sqrt{2} \pi \sqrt(2)", r"\sqrt{2} \pi \sqrt(2)"),
        ] {
            assert_eq!(as_latex(text), expected, "{text}");
        }
    }
}
