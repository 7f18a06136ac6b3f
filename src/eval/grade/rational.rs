//! Exact numbers and the ways of writing them.

use std::fmt;

/// A fraction in lowest terms with a positive denominator. Whatever would overflow is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rational {
    numerator: i128,
    denominator: i128,
}

/// Denominators from here on are of decimals that a computer printed.
const ROUNDED: i128 = 1_000_000_000_000;

impl Rational {
    /// `None` where the denominator is zero.
    pub(super) fn new(numerator: i128, denominator: i128) -> Option<Self> {
        let divisor = i128::try_from(gcd(numerator.unsigned_abs(), denominator.unsigned_abs())).ok()?;
        let divisor = divisor * denominator.signum();
        Some(Self { numerator: numerator.checked_div(divisor)?, denominator: denominator.checked_div(divisor)? })
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    pub(super) fn times(self, other: Self) -> Option<Self> {
        let numerator = self.numerator.checked_mul(other.numerator)?;
        Self::new(numerator, self.denominator.checked_mul(other.denominator)?)
    }

    pub(super) fn over(self, other: Self) -> Option<Self> {
        self.times(Self::new(other.denominator, other.numerator)?)
    }

    fn power_of_ten(exponent: i32) -> Option<Self> {
        let power = 10i128.checked_pow(exponent.unsigned_abs())?;
        if exponent < 0 { Self::new(1, power) } else { Self::new(power, 1) }
    }

    /// The number raised to a whole power.
    pub(super) fn power(self, exponent: i32) -> Option<Self> {
        let of = |n: i128| n.checked_pow(exponent.unsigned_abs());
        let (numerator, denominator) = (of(self.numerator)?, of(self.denominator)?);
        if exponent < 0 { Self::new(denominator, numerator) } else { Self::new(numerator, denominator) }
    }

    /// Its root where that is a fraction, too.
    pub(super) fn root(self, degree: i32) -> Option<Self> {
        let of = |n: i128| {
            let near = (n as f64).powf(1.0 / f64::from(degree)).round() as i128;
            (n >= 0 && near.checked_pow(degree.unsigned_abs()) == Some(n)).then_some(near)
        };
        Self::new(of(self.numerator)?, of(self.denominator)?)
    }

    /// The nearest floating-point number.
    pub(super) fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// It as an exponent, if it is a whole number that is small enough to be one.
    pub(super) fn to_exponent(self) -> Option<i32> {
        i32::try_from(self.numerator).ok().filter(|n| self.denominator == 1 && n.abs() <= 1000)
    }

    /// Whether it is an integer.
    pub(super) fn is_integer(self) -> bool {
        self.denominator == 1
    }

    /// The same number; also one that floating point rounds it to, which a denominator beyond 10^12 shows.
    pub(super) fn is(self, other: Self) -> bool {
        let rounded = self.denominator.max(other.denominator) >= ROUNDED;
        let (a, b) = (self.to_f64(), other.to_f64());
        self == other || (rounded && (a - b).abs() <= 1e-12 * a.abs().max(b.abs()))
    }

    /// The number that as many percent are.
    pub(super) fn hundredth(self) -> Option<Self> {
        self.over(Self { numerator: 100, denominator: 1 })
    }

    /// Reads a number from normalised text that holds nothing else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        signed(text, |text| {
            decimal(text)
                .or_else(|| decimal(&with_decimal_point(text)?))
                .or_else(|| repeating(text))
                .or_else(|| scientific(text))
                .or_else(|| fraction(text))
                .or_else(|| mixed(text))
        })
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn signed(text: &str, unsigned: impl Fn(&str) -> Option<Rational>) -> Option<Rational> {
    let text = text.trim();
    match text.strip_prefix('-') {
        Some(rest) => unsigned(rest.trim_start())?.times(Rational { numerator: -1, denominator: 1 }),
        None => unsigned(text.strip_prefix('+').unwrap_or(text).trim_start()),
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Digits without their thousands separators: `1,234` or `1 234`.
fn ungrouped(text: &str) -> Option<String> {
    let Some(separator) = text.chars().find(|c| !c.is_ascii_digit()) else { return Some(text.to_owned()) };
    let mut groups = text.split(separator);
    let first = groups.next()?;
    let grouped = matches!(separator, ',' | ' ')
        && (1..=3).contains(&first.len())
        && !first.starts_with('0')
        && groups.all(|group| group.len() == 3 && is_digits(group));
    grouped.then(|| text.replace(separator, ""))
}

/// The digits before and after the point of a well-formed decimal number of any length, idle zeros left out.
fn digits(text: &str) -> Option<(String, &str)> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let whole = ungrouped(whole)?;
    let some = !whole.is_empty() || !decimals.is_empty();
    (some && is_digits(decimals)).then(|| (whole.trim_start_matches('0').to_owned(), decimals.trim_end_matches('0')))
}

/// The plain digits of a decimal number that is too large for [`Rational`].
pub(super) fn too_large(text: &str) -> Option<String> {
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (whole, decimals) = digits(unsigned)?;
    Some(format!("{sign}{whole}{}{decimals}", if decimals.is_empty() { "" } else { "." }))
}

/// `12`, `1,234.50`, `.5`
fn decimal(text: &str) -> Option<Rational> {
    let (whole, decimals) = digits(text)?;
    let numerator = format!("0{whole}{decimals}").parse().ok()?;
    Rational::new(numerator, 10i128.checked_pow(decimals.len().try_into().ok()?)?)
}

/// `1.234,50` and `1.234.567`, where points separate thousands, as `1234.50` and `1234567`.
fn with_decimal_point(text: &str) -> Option<String> {
    let (whole, decimals) = text.split_once(',').unwrap_or((text, ""));
    let points = whole.matches('.').count();
    let is_clear = points > 1 || (points == 1 && !decimals.is_empty());
    (is_clear && is_digits(decimals)).then(|| Some(format!("{}.{decimals}", ungrouped(&whole.replace('.', ","))?)))?
}

/// `0.\overline{3}`, `0.1\bar{6}`, `2.\dot{3}`
fn repeating(text: &str) -> Option<Rational> {
    let (head, rest) = ["\\overline", "\\bar", "\\dot"].iter().find_map(|sign| text.split_once(sign))?;
    let period = rest.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(rest.trim());
    let (whole, start) = head.split_once('.')?;
    let fits = is_digits(period) && !period.is_empty() && is_digits(start);
    let ten = |digits: usize| 10i128.checked_pow(u32::try_from(digits).ok()?);
    let nines = ten(period.len())?.checked_sub(1)?.checked_mul(ten(start.len())?)?;
    let whole = decimal(&format!("{whole}.{start}"))?;
    fits.then(|| whole.plus(Rational::new(period.parse().ok()?, nines)?))?
}

/// `3.2e5`, `3.2*10^{-5}`, `10^5`
fn scientific(text: &str) -> Option<Rational> {
    let (mantissa, exponent) = match text.split_once("10^") {
        Some((before, exponent)) => {
            let mantissa = if before.is_empty() { "1" } else { before.trim_end().strip_suffix('*')? };
            let inner = exponent.strip_prefix('{').and_then(|e| e.strip_suffix('}'));
            (mantissa, inner.unwrap_or(exponent))
        }
        None => text.split_once(['e', 'E'])?,
    };
    decimal(mantissa.trim_end())?.times(Rational::power_of_ten(exponent.trim().parse().ok()?)?)
}

/// `\frac{-3}{4}`, `3/4`
fn fraction(text: &str) -> Option<Rational> {
    let inner = text.strip_prefix("\\frac{").and_then(|t| t.strip_suffix('}'));
    let (numerator, denominator) = inner.and_then(|t| t.split_once("}{")).or_else(|| text.split_once('/'))?;
    signed(numerator, decimal)?.over(signed(denominator, decimal)?)
}

/// `1\frac{1}{2}`, `1 1/2`
fn mixed(text: &str) -> Option<Rational> {
    let at = text.find("\\frac").or_else(|| text.rfind(' '))?;
    let (whole, part) = (text[..at].trim_end(), text[at..].trim_start());
    if whole.is_empty() || !is_digits(whole) || part.contains('-') {
        return None;
    }
    decimal(whole)?.plus(fraction(part)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact() {
        for (text, expected) in [
            ("007", "7"),
            ("-0.50", "-1/2"),
            ("+.5", "1/2"),
            ("-0", "0"),
            ("1,234,567", "1234567"),
            ("1 234.5", "2469/2"),
            ("6/4", "3/2"),
            ("- 3 / -4", "3/4"),
            (r"\frac{1.5}{-3}", "-1/2"),
            (r"-1\frac{1}{2}", "-3/2"),
            ("2 1/4", "9/4"),
            ("3.2e-1", "8/25"),
            ("3.2 * 10^{5}", "320000"),
            ("10^3", "1000"),
            ("1.234,50", "2469/2"),
            ("1.234.567", "1234567"),
            (r"0.\overline{3}", "1/3"),
            (r"-0.1\overline6", "-1/6"),
            (r"2.\bar{12}", "70/33"),
            ("170141183460469231731687303715884105727", "170141183460469231731687303715884105727"),
        ] {
            assert_eq!(Rational::parse(text).map(|n| n.to_string()).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_or_too_large_is_none() {
        for text in [
            "",
            "-",
            ".",
            "x",
            "1,23",
            "0,123",
            "1,2345",
            "1,234 567",
            "1/0",
            "1/2/3",
            "--1",
            "1e",
            "1e39",
            "2^10",
            "1 2",
            "1.2.3",
            "1.234,5,6",
            "1.23,45",
            r"0.\overline{}",
            r"\overline{3}",
            "1\\frac{-1}{2}",
            "1.5\\frac{1}{2}",
            "170141183460469231731687303715884105728",
            "5-",
            "１",
        ] {
            assert_eq!(Rational::parse(text), None, "{text}");
        }
    }
}
