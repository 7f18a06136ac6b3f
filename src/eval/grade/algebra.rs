//! Formulas as values: an exact number where it is rational, and otherwise floating point at a few points of its variables.
//!
//! Sums, products, quotients, powers, roots, trigonometric functions, exponents and natural logarithms are read. Two
//! formulas whose values agree to eleven digits at all points are taken for equal. That is sure for rational numbers, which
//! are exact. For others it is an error only where two differ by less than that: sums that lose digits, in which one term
//! vanishes beside another, are not computed for that reason. Whatever cannot be read is not computed either.

use super::rational::Rational;

/// Points at which formulas are compared; variables are positive at all but the last.
const POINTS: usize = 3;

/// Relative difference below which two values are equal.
const TOLERANCE: f64 = 1e-11;

/// A term this small beside another makes their sum useless for comparing.
const LOST: f64 = 1e-5;

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
    /// Pi.
    pub(super) fn pi() -> Self {
        Self { exact: None, at: [std::f64::consts::PI; POINTS], is_constant: true, has_power: false }
    }

    /// Its exact value, if it is rational.
    pub(super) fn exact(self) -> Option<Rational> {
        self.exact
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
    pub(super) fn variable(name: &str) -> Self {
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

    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
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

    pub(super) fn over(self, other: Self) -> Self {
        self.join(other, self.both(other, Rational::over), |a, b| a / b)
    }

    pub(super) fn negative(self) -> Self {
        Self { exact: self.exact.and_then(|n| n.times(Rational::new(-1, 1)?)), at: self.at.map(|x| -x), ..self }
    }

    pub(super) fn power(self, exponent: Self) -> Self {
        let whole = exponent.exact.and_then(Rational::to_exponent);
        let exact = self.exact.zip(whole).and_then(|(base, exponent)| base.power(exponent));
        let value = self.join(exponent, exact, |a, b| whole.map_or_else(|| a.powf(b), |whole| a.powi(whole)));
        Self { has_power: value.has_power || (self.is_constant && exponent.is_constant), ..value }
    }

    pub(super) fn root(self, degree: i32) -> Self {
        let exact = self.exact.and_then(|number| number.root(degree));
        self.join(self, exact, |x, _| match degree {
            2 => x.sqrt(),
            3 => x.cbrt(),
            _ => x.powf(1.0 / f64::from(degree)),
        })
    }
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
