//! Formulas as values: an exact number where it is rational, and otherwise floating point at a few points of its variables.
//!
//! Sums, products, quotients, powers, roots, trigonometric functions, exponents and natural logarithms are read. Two
//! formulas whose values agree to eleven digits at all points are taken for equal. That is sure for rational numbers, which
//! are exact. For others it is an error only where two differ by less than that: sums that lose digits, in which one term
//! vanishes beside another, are not computed for that reason. Whatever cannot be read is not computed either.

use super::rational::Rational;
use super::tokens::Tokens;

/// Points at which formulas are compared; variables are positive at all but the last.
const POINTS: usize = 3;

/// Formulas nested deeper are not computed.
const MAX_DEPTH: u8 = 32;

/// Relative difference below which two values are equal.
const TOLERANCE: f64 = 1e-11;

/// A term this small beside another makes their sum useless for comparing.
const LOST: f64 = 1e-5;

const GREEK: [&str; 22] = [
    "\\alpha",
    "\\beta",
    "\\gamma",
    "\\delta",
    "\\epsilon",
    "\\varepsilon",
    "\\zeta",
    "\\eta",
    "\\theta",
    "\\iota",
    "\\kappa",
    "\\lambda",
    "\\mu",
    "\\nu",
    "\\xi",
    "\\rho",
    "\\sigma",
    "\\tau",
    "\\phi",
    "\\varphi",
    "\\psi",
    "\\omega",
];

const FUNCTIONS: [(&str, fn(f64) -> f64); 10] = [
    ("\\sin", f64::sin),
    ("\\cos", f64::cos),
    ("\\tan", f64::tan),
    ("\\cot", |x| x.tan().recip()),
    ("\\sec", |x| x.cos().recip()),
    ("\\csc", |x| x.sin().recip()),
    ("\\arcsin", f64::asin),
    ("\\arccos", f64::acos),
    ("\\arctan", f64::atan),
    ("\\ln", f64::ln),
];

/// What a formula is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Algebra {
    exact: Option<Rational>,
    /// Its value at each point; not a number where it has none or has lost digits.
    at: [f64; POINTS],
    /// Whether there is no variable in it.
    pub(super) is_constant: bool,
    /// Whether a number is raised to a power in it.
    has_power: bool,
}

impl Algebra {
    /// Reads a formula from normalised text that holds nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // Words are no products of their letters, nor are dates differences.
        let is_word = |run: &str| run.len() > 2;
        let is_symbols = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.');
        if text.chars().all(char::is_alphabetic) || (text.contains('-') && text.chars().all(is_symbols)) {
            return None;
        }
        let mut parser = Parser { tokens: Tokens::of(text).map(|(_, token)| token).collect(), at: 0, depth: 0 };
        let single = |token: &&&str| token.chars().all(|c| c.is_ascii_alphabetic());
        if parser.tokens.chunk_by(|a, b| single(&a) && single(&b)).any(|run| single(&&run[0]) && is_word(&run.concat()))
        {
            return None;
        }
        let value = parser.sum()?;
        (parser.peek().is_none()).then_some(value)
    }

    /// The number that it is, if it is rational and no power was left standing in it.
    pub(super) fn number(self) -> Option<Rational> {
        self.exact.filter(|_| !self.has_power)
    }

    /// Whether both have the same value. A power is not the plain number that it makes.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self.exact, other.exact) {
            (Some(a), Some(b)) => a == b && self.has_power == other.has_power,
            _ => self.ratio(other).is_some_and(|ratio| (ratio - 1.0).abs() <= TOLERANCE),
        }
    }

    /// What the other is multiplied with to give this one, if it is the same at all points.
    pub(super) fn ratio(&self, other: &Self) -> Option<f64> {
        let pairs = self.at.iter().zip(&other.at).filter(|(a, b)| a.is_finite() && b.is_finite());
        let ratios: Vec<f64> = pairs.map(|(a, b)| if a == b { 1.0 } else { a / b }).collect();
        let first = *ratios.first()?;
        let same = ratios.iter().all(|ratio| (ratio - first).abs() <= TOLERANCE * first.abs());
        (same && ratios.len() > 1 && first != 0.0 && first.is_finite()).then_some(first)
    }

    pub(super) fn exactly(number: Rational) -> Self {
        Self { exact: Some(number), at: [number.to_f64(); POINTS], is_constant: true, has_power: false }
    }

    /// A variable: its values follow from its name.
    fn variable(name: &str) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let at = std::array::from_fn(|point| {
            for byte in name.bytes().chain([b'0' + point as u8]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            let size = 0.6 + (hash >> 40) as f64 / f64::from(1 << 24);
            if point == POINTS - 1 && hash & (1 << 39) == 0 { -size } else { size }
        });
        Self { exact: None, at, is_constant: false, has_power: false }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { exact: None, at: self.at.map(f), ..self }
    }

    fn join(self, other: Self, exact: Option<Rational>, f: impl Fn(f64, f64) -> f64) -> Self {
        let at = match exact {
            Some(number) => [number.to_f64(); POINTS],
            None => std::array::from_fn(|point| f(self.at[point], other.at[point])),
        };
        let is_constant = self.is_constant && other.is_constant;
        Self { exact, at, is_constant, has_power: self.has_power || other.has_power }
    }

    fn both(self, other: Self, f: impl Fn(Rational, Rational) -> Option<Rational>) -> Option<Rational> {
        f(self.exact?, other.exact?)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.join(other, self.both(other, Rational::plus), |a, b| {
            let (small, large) = (a.abs().min(b.abs()), a.abs().max(b.abs()));
            let is_lost = |size: f64| size != 0.0 && size < LOST * large;
            if is_lost(small) || (a + b).abs() < LOST * large { f64::NAN } else { a + b }
        })
    }

    pub(super) fn times(self, other: Self) -> Self {
        self.join(other, self.both(other, Rational::times), |a, b| a * b)
    }

    fn over(self, other: Self) -> Self {
        self.join(other, self.both(other, Rational::over), |a, b| a / b)
    }

    pub(super) fn negative(self) -> Self {
        Self { exact: self.exact.and_then(|n| n.times(Rational::new(-1, 1)?)), at: self.at.map(|x| -x), ..self }
    }

    fn power(self, exponent: Self) -> Self {
        let whole = exponent.exact.and_then(Rational::to_exponent);
        let exact = self.exact.zip(whole).and_then(|(base, exponent)| base.power(exponent));
        let value = self.join(exponent, exact, |a, b| whole.map_or_else(|| a.powf(b), |whole| a.powi(whole)));
        Self { has_power: value.has_power || (self.is_constant && exponent.is_constant), ..value }
    }

    fn root(self, degree: i32) -> Self {
        let exact = self.exact.and_then(|number| number.root(degree));
        self.join(self, exact, |x, _| match degree {
            2 => x.sqrt(),
            3 => x.cbrt(),
            _ => x.powf(1.0 / f64::from(degree)),
        })
    }
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    depth: u8,
}

impl<'a> Parser<'a> {
    /// The next token that is no space.
    fn peek(&mut self) -> Option<&'a str> {
        while self.tokens.get(self.at) == Some(&" ") {
            self.at += 1;
        }
        self.tokens.get(self.at).copied()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn deeper(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    fn sum(&mut self) -> Option<Algebra> {
        self.deeper()?;
        let mut sum = self.signed_product()?;
        while matches!(self.peek(), Some("+" | "-")) {
            sum = sum.plus(self.signed_product()?);
        }
        self.depth -= 1;
        Some(sum)
    }

    fn signed_product(&mut self) -> Option<Algebra> {
        let negative = self.take("-");
        if !negative {
            self.take("+");
        }
        let product = self.product()?;
        Some(if negative { product.negative() } else { product })
    }

    fn product(&mut self) -> Option<Algebra> {
        let mut after_number = self.peek().is_some_and(is_digit);
        let mut product = self.power()?;
        let mut divided = false;
        loop {
            match self.peek() {
                Some("*") => {
                    self.at += 1;
                    let negative = self.take("-");
                    let factor = self.power()?;
                    product = product.times(if negative { factor.negative() } else { factor });
                }
                // What a second slash divides, and what of a product without a sign, is for the reader to guess.
                Some("/") if !divided => {
                    self.at += 1;
                    product = product.over(self.power()?);
                    divided = true;
                }
                Some(next) if begins_factor(next) && !is_digit(next) && !divided => {
                    let factor = self.power()?;
                    if after_number && next == "\\frac" && factor.exact.is_some() {
                        return None;
                    }
                    product = product.times(factor);
                }
                _ => return Some(product),
            }
            after_number = false;
        }
    }

    fn power(&mut self) -> Option<Algebra> {
        let base = self.atom()?;
        if self.take("^") { Some(base.power(self.exponent()?)) } else { Some(base) }
    }

    fn exponent(&mut self) -> Option<Algebra> {
        match self.peek()? {
            "{" | "(" | "\\frac" | "\\sqrt" => self.atom(),
            digit if is_digit(digit) => {
                self.at += 1;
                let number = Rational::parse(digit).map(Algebra::exactly);
                number.filter(|_| !self.tokens.get(self.at).copied().is_some_and(is_digit))
            }
            _ => self.symbol(),
        }
    }

    fn atom(&mut self) -> Option<Algebra> {
        let token = self.peek()?;
        if let Some((_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == token) {
            self.at += 1;
            return self.function(function);
        }
        match token {
            "(" => self.enclosed(")"),
            "[" => self.enclosed("]"),
            "{" => self.enclosed("}"),
            "|" => Some(self.enclosed("|")?.map(f64::abs)),
            "\\frac" => {
                self.at += 1;
                let numerator = self.enclosed("}")?;
                Some(numerator.over(self.enclosed("}")?))
            }
            "\\sqrt" => {
                self.at += 1;
                let degree = match self.peek()? {
                    "[" => self.enclosed("]")?.exact?.to_exponent().filter(|degree| *degree > 1)?,
                    _ => 2,
                };
                Some(self.enclosed("}")?.root(degree))
            }
            digit if is_digit(digit) => self.number(),
            _ => self.symbol(),
        }
    }

    /// What stands between the bracket that is next and the one that closes it.
    fn enclosed(&mut self, close: &str) -> Option<Algebra> {
        self.at += usize::from(matches!(self.peek()?, "(" | "[" | "{" | "|"));
        let value = self.sum()?;
        self.take(close).then_some(value)
    }

    fn number(&mut self) -> Option<Algebra> {
        let digits: String = self.tokens[self.at..].iter().take_while(|token| is_digit(token)).copied().collect();
        self.at += digits.len();
        // What is written in another base is no number, and more digits than these would not be seen.
        (digits.len() <= 16 && self.tokens.get(self.at) != Some(&"_")).then_some(())?;
        Rational::parse(&digits).map(Algebra::exactly)
    }

    /// A function of what follows: of brackets, or of factors up to the next sign or function.
    fn function(&mut self, function: &fn(f64) -> f64) -> Option<Algebra> {
        self.deeper()?;
        let exponent = if self.take("^") { Some(self.exponent()?) } else { None };
        let mut argument = self.power()?;
        let enclosed = matches!(self.tokens[self.at - 1], ")" | "}");
        while !enclosed
            && self.peek().is_some_and(|next| begins_factor(next) && !matches!(next, "(" | "[") && !is_function(next))
        {
            argument = argument.times(self.power()?);
        }
        self.depth -= 1;
        let value = argument.map(function);
        Some(exponent.map_or(value, |exponent| value.power(exponent)))
    }

    /// A variable with its index, pi, or a sum's sign with its bounds.
    fn symbol(&mut self) -> Option<Algebra> {
        let start = self.at;
        let token = self.peek()?;
        if token == "\\pi" {
            self.at += 1;
            return Some(Algebra {
                exact: None,
                at: [std::f64::consts::PI; POINTS],
                is_constant: true,
                has_power: false,
            });
        }
        let is_sum = token == "\\sum";
        let is_letter = token.chars().all(|c| c.is_ascii_alphabetic());
        (is_letter || is_sum || GREEK.contains(&token)).then_some(())?;
        self.at += 1;
        while self.peek() == Some("_") || (is_sum && self.peek() == Some("^")) {
            self.at += 1;
            self.skip_group()?;
        }
        Some(Algebra::variable(&self.tokens[start..self.at].concat().replace(' ', "")))
    }

    fn skip_group(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                "{" => depth += 1,
                "}" => depth = depth.checked_sub(1)?,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

fn is_digit(token: &str) -> bool {
    token.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn is_function(token: &str) -> bool {
    FUNCTIONS.iter().any(|(name, _)| *name == token)
}

fn begins_factor(token: &str) -> bool {
    let is_letter = token.chars().all(|c| c.is_ascii_alphabetic());
    let is_command = matches!(token, "(" | "[" | "{" | "\\frac" | "\\sqrt" | "\\pi" | "\\sum");
    is_letter || is_command || is_digit(token) || is_function(token) || GREEK.contains(&token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(a: &str, b: &str) -> bool {
        let [a, b] = [a, b].map(|text| Algebra::parse(&super::super::text::normalise(text)));
        a.zip(b).is_some_and(|(a, b)| a.equals(&b) && b.equals(&a))
    }

    #[test]
    fn equal_formulas_are_equal() {
        for (a, b) in [
            ("9+1", "10"),
            (r"2\sqrt{3}", r"\sqrt{12}"),
            (r"\sqrt[3]{8}", "2"),
            (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
            ("(x+1)^2", "x^2+2x+1"),
            (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
            (r"\tan^2(y)+1", r"\sec^2(y)"),
            (r"2\sin b\cos a", r"2\cos a \sin b"),
            (r"x^{2/3}", r"\sqrt[3]{x}^2"),
            (r"10^{\frac{\sqrt{13}-5}{6}}", r"10^{-\frac{5-\sqrt{13}}{6}}"),
            ("a_1b", "ba_{1}"),
            (r"\sum_{k=0}^{n} F_k G_k", r"\sum_{k=0}^{n} G_k F_k"),
            ("4.12310562561766", r"\sqrt{17}"),
            (r"-\frac{\pi}{3}", r"\frac{-\pi}{3}"),
        ] {
            assert!(equal(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn different_formulas_differ() {
        for (a, b) in [
            (r"\sqrt{x^2}", "x"),
            ("f(x)", "f(y)"),
            ("x+2n+1", "x+1"),
            ("2^{10}", "1024"),
            ("3.1416", r"\pi"),
            (r"4\sqrt{2}", "4"),
            ("a_1", "a_2"),
            ("x^{12}", "x^{21}"),
            (r"\frac{1+\sqrt5}{2}", r"\frac{1-\sqrt5}{2}"),
        ] {
            assert!(!equal(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_computed() {
        for text in
            ["", "+", "4 2", "204_5", "5!", "1/2x", "1/2/3", "2020-01-02", "word", "x^12", "7:32", "(", "1,2", "12cmx"]
        {
            assert_eq!(Algebra::parse(text), None, "{text}");
        }
        assert_eq!(Algebra::parse(&("(".repeat(99) + "1" + &")".repeat(99))), None);
    }
}
