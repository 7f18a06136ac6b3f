//! Reading formulas: sums, products, quotients, powers, roots, functions and variables with their indices.
//!
//! What is for a reader to guess is not read: what a product without a sign divides after a slash, what stands after a
//! second slash, digits after a number, factorials, numbers of another base.

use super::algebra::Algebra;
use super::rational::Rational;
use super::tokens::Tokens;

/// Formulas nested deeper are not computed.
const MAX_DEPTH: u8 = 32;

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

type Function = fn(f64) -> f64;

const FUNCTIONS: [(&str, Function); 10] = [
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

impl Algebra {
    /// Reads a formula from normalised text that holds nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // Words are no products of their letters, nor are dates differences.
        let is_word = |run: &str| run.len() > 2;
        let is_symbols = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.');
        if text.chars().all(char::is_alphabetic)
            || (text.trim_start_matches('-').contains('-') && text.chars().all(is_symbols))
        {
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
                    if after_number && next == "\\frac" && factor.exact().is_some() {
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
            return self.function(*function);
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
                    "[" => self.enclosed("]")?.exact()?.to_exponent().filter(|degree| *degree > 1)?,
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
    fn function(&mut self, function: Function) -> Option<Algebra> {
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
            return Some(Algebra::pi());
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
