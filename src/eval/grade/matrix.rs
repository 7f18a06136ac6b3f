//! Matrices: rows of entries that are compared as answers are. The brackets around them do not count.

use super::algebra::Algebra;
use super::rational::Rational;

/// Environments that differ in their brackets only. The bars of `vmatrix` make a determinant.
const NAMES: [&str; 6] = ["{pmatrix}", "{bmatrix}", "{Bmatrix}", "{matrix}", "{smallmatrix}", "{array}"];

/// Products of matrices with more rows are not computed.
const MAX_ROWS: usize = 8;

type Rows<T> = Vec<Vec<T>>;

/// An entry: what is written there, or what it was computed to be.
pub(super) enum Entry<'a> {
    Text(&'a str),
    Number(Rational),
}

/// The rows of a matrix that stands alone, or of a sum or product of several, or with a factor, that hold numbers.
pub(super) fn parse(text: &str) -> Option<Rows<Entry<'_>>> {
    let text = without_brackets(text);
    let (factor, text) = text.split_at(text.find("\\begin")?);
    let (first, mut rest) = next(text)?;
    if rest.is_empty() && factor.is_empty() {
        return Some(first.into_iter().map(|row| row.into_iter().map(Entry::Text).collect()).collect());
    }
    let factor = match factor.trim_end_matches(['*', ' ']) {
        "" => Algebra::parse("1")?,
        "-" => Algebra::parse("-1")?,
        factor => Algebra::parse(factor)?,
    };
    let numbers = |rows: Rows<&str>| -> Option<Rows<Algebra>> {
        rows.iter().map(|row| row.iter().map(|entry| Algebra::parse(entry.trim())).collect()).collect()
    };
    let mut sum: Option<Rows<Algebra>> = None;
    let mut term = numbers(first)?;
    term.iter_mut().flatten().for_each(|entry| *entry = factor.times(*entry));
    while !rest.is_empty() {
        let is_sum = rest.starts_with('+');
        let (rows, after) = next(rest.trim_start_matches(['+', '*', ' ']))?;
        rest = after;
        if is_sum {
            sum = Some(plus(sum, term)?);
            term = numbers(rows)?;
        } else {
            term = times(&term, &numbers(rows)?)?;
        }
    }
    let entry = |value: &Algebra| Some(Entry::Number(value.number()?));
    plus(sum, term)?.iter().map(|row| row.iter().map(entry).collect()).collect()
}

fn without_brackets(text: &str) -> &str {
    let inner = [("(", ")"), ("[", "]")].into_iter().find_map(|(open, close)| {
        let inner = text.strip_prefix(open)?.strip_suffix(close)?.trim();
        (inner.starts_with("\\begin") && inner.ends_with('}')).then_some(inner)
    });
    inner.unwrap_or(text)
}

/// The entries of the matrix that text begins with, and what follows it.
fn next(text: &str) -> Option<(Rows<&str>, &str)> {
    let inner = text.strip_prefix("\\begin")?;
    let name = NAMES.into_iter().find(|name| inner.starts_with(name))?;
    let mut inner = &inner[name.len()..];
    let end = inner.find("\\end")?;
    let rest = inner[end..].strip_prefix("\\end")?.strip_prefix(name)?.trim();
    inner = inner[..end].trim();
    if name == "{array}" {
        // How its columns are aligned.
        inner = inner.strip_prefix(['c', 'l', 'r']).or_else(|| Some(inner.strip_prefix('{')?.split_once('}')?.1))?;
    }
    // A line break may say how much space it leaves.
    let spaceless = |row: &'_ str| -> Option<usize> {
        let (space, _) = row.trim_start().strip_prefix('[')?.split_once(']')?;
        let is_length = ["pt", "em", "ex", "mm", "cm"].iter().any(|unit| space.ends_with(unit));
        is_length.then(|| row.len() - row.trim_start().len() + space.len() + 2)
    };
    let rows = inner.split("\\\\").map(|row| &row[spaceless(row).unwrap_or(0)..]).filter(|row| !row.trim().is_empty());
    Some((rows.map(|row| row.split('&').collect()).collect(), rest))
}

fn plus(a: Option<Rows<Algebra>>, b: Rows<Algebra>) -> Option<Rows<Algebra>> {
    let Some(a) = a else { return Some(b) };
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.len() == b.len());
    let sum = |(a, b): (&Vec<Algebra>, &Vec<Algebra>)| a.iter().zip(b).map(|(a, b)| a.plus(*b)).collect();
    same.then(|| a.iter().zip(&b).map(sum).collect())
}

fn times(a: &Rows<Algebra>, b: &Rows<Algebra>) -> Option<Rows<Algebra>> {
    let columns = b.first()?.len();
    let fits = a.iter().all(|row| row.len() == b.len()) && b.iter().all(|row| row.len() == columns);
    if !fits || a.len().max(b.len()).max(columns) > MAX_ROWS {
        return None;
    }
    let entry =
        |row: &Vec<Algebra>, column: usize| row.iter().zip(b).map(|(a, b)| a.times(b[column])).reduce(Algebra::plus);
    a.iter().map(|row| (0..columns).map(|column| entry(row, column)).collect()).collect()
}
