//! One spelling for what can be written in several ways, in LaTeX and in Unicode.

use super::plain;
use super::tokens::Tokens;

/// Rewrites an answer: `\dfrac12` as `\frac{1}{2}`, `\text{cm}` as ` cm `, no `$`, `\left`, degrees or extra spaces.
pub(super) fn normalise(answer: &str) -> String {
    let mut writer = Writer::default();
    let answer = plain::as_latex(answer);
    for (_, token) in Tokens::of(&answer) {
        writer.push(spelling(token));
    }
    let text =
        writer.out.replace("^{\\circ}", "").replace("^\\circ", "").replace("+/-", "\\pm ").replace(") U (", ")\\cup (");
    // Markdown around the answer, and the sentence that it ends.
    let is_wrapping = |c: char| c.is_whitespace() || matches!(c, '*' | '`' | '"');
    let is_ending = |c: char| is_wrapping(c) || matches!(c, '.' | ',' | ';' | ':');
    let text = text.trim_start_matches(is_wrapping).trim_end_matches(is_ending);
    without_minus(text).map_or_else(|| text.to_owned(), |value| format!("-{value}"))
}

/// The value behind a sign that is a word: `minus 4`.
pub(super) fn without_minus(text: &str) -> Option<&str> {
    let value = ["minus ", "negative "].iter().find_map(|sign| {
        let (head, rest) = text.split_at_checked(sign.len())?;
        head.eq_ignore_ascii_case(sign).then(|| rest.trim_start())
    });
    value.filter(|value| value.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '\\')))
}

/// The token that stands for all that mean the same; empty for those that mean nothing.
fn spelling(token: &str) -> &str {
    match token {
        "$" | "\\$" | "€" | "£" | "\\(" | "\\)" | "\\[" | "\\]" | "\\left" | "\\right" | "\\displaystyle"
        | "\\hline" => "",
        "\\big" | "\\Big" | "\\bigl" | "\\bigr" | "\\Bigl" | "\\Bigr" => "",
        "\\," | "\\;" | "\\:" | "\\>" | "\\ " | "~" | "\\quad" | "\\qquad" | "\\degree" | "°" => " ",
        "\\dfrac" | "\\tfrac" | "\\cfrac" => "\\frac",
        "\\mathrm" | "\\mathbf" | "\\mathsf" | "\\mbox" | "\\operatorname" | "\\boxed" | "\\fbox" => "\\text",
        "\\textbf" | "\\textit" | "\\textrm" | "\\textsf" | "\\texttt" | "\\textnormal" => "\\text",
        "\\times" | "\\cdot" | "×" | "·" | "⋅" => "*",
        "\\%" | "％" => "%",
        "\\lbrace" => "\\{",
        "\\rbrace" => "\\}",
        "\\lt" => "<",
        "\\gt" => ">",
        "\\le" | "≤" | "\\leqslant" => "\\leq",
        "\\ge" | "≥" | "\\geqslant" => "\\geq",
        "±" => "\\pm",
        "∓" => "\\mp",
        "≈" => "\\approx",
        "∈" => "\\in",
        "\\lor" | "\\vee" | "∨" => " or ",
        "\\land" | "\\wedge" | "∧" => " and ",
        "\\ne" | "≠" => "\\neq",
        "−" | "–" => "-",
        "π" => "\\pi",
        "√" => "\\sqrt",
        "∞" => "\\infty",
        "∪" | "\\bigcup" => "\\cup",
        "\\varnothing" | "∅" => "\\emptyset",
        "\\langle" => "(",
        "\\rangle" => ")",
        "½" => " 1/2",
        "⅓" => " 1/3",
        "⅔" => " 2/3",
        "¼" => " 1/4",
        "¾" => " 3/4",
        "⅕" => " 1/5",
        "⅖" => " 2/5",
        "⅗" => " 3/5",
        "⅘" => " 4/5",
        "⅙" => " 1/6",
        "⅚" => " 5/6",
        "⅛" => " 1/8",
        "⅜" => " 3/8",
        "⅝" => " 5/8",
        "⅞" => " 7/8",
        "⁄" => "/",
        "²" => "^2",
        "³" => "^3",
        token if token.chars().all(char::is_whitespace) => " ",
        token => token,
    }
}

/// What an open brace is to become when it closes.
enum Open {
    /// A group that starts at this offset; without its braces if it holds a single character.
    Group(usize),
    /// An argument, after which the command expects so many more.
    Argument(u8),
    /// Text that stands without its command.
    Text,
}

#[derive(Default)]
struct Writer {
    out: String,
    open: Vec<Open>,
    /// Arguments that the last `\frac` or `\sqrt` still expects.
    arguments: u8,
    in_root_index: bool,
    text_follows: bool,
    /// No space follows: `\!` takes it back.
    tight: bool,
    after_command: bool,
}

impl Writer {
    fn push(&mut self, token: &str) {
        // A letter would make another name of the command before it.
        if self.after_command && token.starts_with(char::is_alphabetic) {
            self.out.push(' ');
        }
        match token {
            "" => {}
            "\\!" => self.tight = true,
            " " if self.tight => return,
            " " => self.space(),
            "\\text" => self.text_follows = true,
            "=" if self.out.ends_with(['<', '>']) || self.out.ends_with(" !") => self.relation(),
            "^" if self.out.ends_with(' ') => {
                self.out.pop();
                self.out.push('^');
            }
            "{" => self.open(),
            "}" => self.close(),
            "\\frac" | "\\sqrt" => {
                self.out.push_str(token);
                self.arguments = if token == "\\frac" { 2 } else { 1 };
            }
            "[" if self.out.ends_with("\\sqrt") => self.index(token, true),
            "]" if self.in_root_index => self.index(token, false),
            _ if self.arguments > 0 && !self.in_root_index => {
                self.out.extend(["{", token, "}"]);
                self.arguments -= 1;
            }
            _ => self.out.push_str(token),
        }
        self.text_follows &= matches!(token, "" | " " | "\\text");
        self.tight = token == "\\!";
        self.after_command =
            self.arguments == 0 && token.strip_prefix('\\').is_some_and(|name| name.starts_with(char::is_alphabetic));
    }

    /// `<=`, `>=` and `!=` as they are in LaTeX.
    fn relation(&mut self) {
        let sign = match self.out.pop() {
            Some('<') => "\\leq ",
            Some('>') => "\\geq ",
            _ => "\\neq ",
        };
        self.out.push_str(sign);
    }

    fn space(&mut self) {
        if self.arguments == 0 && !self.out.ends_with(' ') {
            self.out.push(' ');
        }
    }

    fn index(&mut self, bracket: &str, opens: bool) {
        self.out.push_str(bracket);
        self.in_root_index = opens;
    }

    fn open(&mut self) {
        if self.text_follows {
            self.open.push(Open::Text);
            return self.space();
        }
        self.open.push(match self.arguments {
            0 => Open::Group(self.out.len()),
            expected => Open::Argument(expected - 1),
        });
        self.arguments = 0;
        self.out.push('{');
    }

    fn close(&mut self) {
        match self.open.pop() {
            None => {}
            Some(Open::Text) => self.space(),
            Some(Open::Argument(expected)) => {
                self.out.push('}');
                self.arguments = expected;
            }
            // A comma of its own separates no elements.
            Some(Open::Group(at)) if self.out[at + 1..].trim() == "," => {
                self.out.truncate(self.out[..at].trim_end().len());
                self.out.push(',');
            }
            Some(Open::Group(at)) => match self.out[at + 1..].chars().nth(1) {
                None => drop(self.out.remove(at)),
                Some(_) => self.out.push('}'),
            },
        }
    }
}

/// Normalised text as it is compared: without spaces and idle signs, fractions as `\frac`, words in lower case.
pub(super) fn compact(text: &str) -> String {
    let is_words = text.len() > 1 && text.chars().all(|c| c.is_alphabetic() || c == ' ');
    if is_words {
        return text.replace(' ', "").to_lowercase();
    }
    let spaceless = without(text.strip_prefix('+').unwrap_or(text), ' ', |before, after| before && after);
    let out = without(&spaceless, '*', |_, after| after);
    slash_as_fraction(&out).or_else(|| sign_before_fraction(&out)).unwrap_or(out)
}

/// Leaves out a character, unless it is needed given whether digits stand before and after it.
fn without(text: &str, idle: char, needed: impl Fn(bool, bool) -> bool) -> String {
    let mut chars = text.chars().peekable();
    let mut out = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        let after = chars.peek().is_some_and(char::is_ascii_digit);
        if c != idle || needed(out.ends_with(|c: char| c.is_ascii_digit()), after) {
            out.push(c);
        }
    }
    out
}

/// `-\sqrt{3}/2` as `-\frac{\sqrt{3}}{2}`, where it is clear what the slash divides.
fn slash_as_fraction(text: &str) -> Option<String> {
    let (sign, body) = text.strip_prefix('-').map_or(("", text), |body| ("-", body));
    let (numerator, denominator) = body.split_once('/')?;
    let in_brackets = |t: &str| t.strip_prefix('(').and_then(|t| t.strip_suffix(')')).map(str::to_owned);
    let inner = |t: &str| in_brackets(t).filter(|t| !t.contains(['(', ')', ','])).unwrap_or_else(|| t.to_owned());
    let is_clear = is_term(numerator) && is_term(denominator);
    let is_closed = denominator.bytes().all(|b| b.is_ascii_digit()) || in_brackets(denominator).is_some();
    (is_clear && is_closed).then(|| format!("{sign}\\frac{{{}}}{{{}}}", inner(numerator), inner(denominator)))
}

/// `\frac{-\sqrt{3}}{2}` as `-\frac{\sqrt{3}}{2}`, where the sign is of the whole numerator.
fn sign_before_fraction(text: &str) -> Option<String> {
    let body = text.strip_prefix("\\frac{-")?;
    let numerator = &body[..body.find("}{")?];
    is_term(numerator).then(|| format!("-\\frac{{{body}"))
}

/// Whether text is a single term: no sum, quotient or list outside of brackets, which are balanced.
fn is_term(text: &str) -> bool {
    let depth = text.chars().try_fold(0usize, |depth, c| match c {
        '(' | '[' | '{' => Some(depth + 1),
        ')' | ']' | '}' => depth.checked_sub(1),
        '+' | '-' | '/' | '=' | ',' | '<' | '>' | ' ' if depth == 0 => None,
        _ => Some(depth),
    });
    depth == Some(0) && !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_meet() {
        for (text, expected) in [
            (r"\dfrac12", r"\frac{1}{2}"),
            (r"\tfrac {3} 4", r"\frac{3}{4}"),
            (r"\frac\pi2", r"\frac{\pi}{2}"),
            (r"\sqrt3 + √5", r"\sqrt{3} + \sqrt{5}"),
            (r"\sqrt[3]2", r"\sqrt[3]{2}"),
            (r"x^{2}_{10}", r"x^2_{10}"),
            (r"$1{,}234.$", "1,234"),
            (r"12\text{ cm}^{2}", "12 cm^2"),
            (r"\left( 1,\, 2 \right)", "( 1, 2 )"),
            (r"30^{\circ}", "30"),
            (r"**5.**", "5"),
            (r"\boxed{\text{(B)}}", "(B)"),
            ("}}{", "{"),
        ] {
            assert_eq!(normalise(text), expected, "{text}");
        }
    }

    #[test]
    fn compact_text_keeps_what_matters() {
        for (text, expected) in [
            ("New York", "newyork"),
            ("1 1/2", "1 1/2"),
            (r"2 * \sqrt{3}", r"2\sqrt{3}"),
            ("2 * 3", "2*3"),
            (r"-\sqrt{3}/2", r"-\frac{\sqrt{3}}{2}"),
            ("(a + b)/2", r"\frac{a+b}{2}"),
            ("a + b/2", "a+b/2"),
            ("1/2x", "1/2x"),
            (r"\frac{-\sqrt{3}}{2}", r"-\frac{\sqrt{3}}{2}"),
            (r"\frac{-1+a}{2}", r"\frac{-1+a}{2}"),
            (r"\frac{-\frac{1}{x}+1}{2}", r"\frac{-\frac{1}{x}+1}{2}"),
        ] {
            assert_eq!(compact(text), expected, "{text}");
        }
    }
}
