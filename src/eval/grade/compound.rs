//! Quantities of two units: `2 h 30 min`, `5 dollars and 50 cents`, `6 ft 2 in`.

use super::rational::Rational;

/// Units with their names, the larger first, and how many of the next one it holds; one without a next unit is its kind's
/// smallest.
const KINDS: [&[(&[&str], i128)]; 5] = [
    &[
        (&["week", "weeks"], 7),
        (&["d", "day", "days"], 24),
        (&["h", "hr", "hrs", "hour", "hours"], 60),
        (&["m", "min", "mins", "minute", "minutes"], 60),
        (&["s", "sec", "secs", "second", "seconds"], 1),
    ],
    &[(&["dollar", "dollars", "euro", "euros", "pound", "pounds"], 100), (&["cent", "cents", "penny", "pence"], 1)],
    &[(&["yd", "yard", "yards"], 3), (&["ft", "foot", "feet"], 12), (&["in", "inch", "inches"], 1)],
    &[(&["lb", "lbs", "pound", "pounds"], 16), (&["oz", "ounce", "ounces"], 1)],
    &[
        (&["km", "kilometer", "kilometers", "kilometre", "kilometres"], 1000),
        (&["m", "meter", "meters", "metre", "metres"], 100),
        (&["cm", "centimeter", "centimeters", "centimetre", "centimetres"], 1),
    ],
];

/// A quantity has no more parts.
const MAX_PARTS: usize = 4;

/// The whole as a number of the first unit, where each part but the first has a smaller unit of the same kind.
pub(super) fn parse(text: &str) -> Option<Rational> {
    let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty() && *word != "and").collect();
    let parts: Vec<(Rational, &str)> = match words.len() {
        4.. if words.len() <= 2 * MAX_PARTS && words.len().is_multiple_of(2) => {
            words.chunks(2).map(|part| Some((Rational::parse(part[0])?, part[1]))).collect::<Option<_>>()?
        }
        2 | 3 => words.iter().map(|word| attached(word)).collect::<Option<_>>()?,
        _ => return None,
    };
    KINDS.iter().find_map(|units| whole(&parts, units))
}

/// `2h`
fn attached(word: &str) -> Option<(Rational, &str)> {
    let (number, unit) = word.split_at(word.find(|c: char| c.is_ascii_alphabetic())?);
    Some((Rational::parse(number)?, unit))
}

fn whole(parts: &[(Rational, &str)], units: &[(&[&str], i128)]) -> Option<Rational> {
    let place =
        |unit: &str| units.iter().position(|(names, _)| names.contains(&&*unit.trim_end_matches('.').to_lowercase()));
    let first = place(parts.first()?.1)?;
    let (mut sum, mut last) = (parts.first()?.0, first);
    for (number, unit) in &parts[1..] {
        let at = place(unit).filter(|at| *at > last)?;
        let held: i128 = units[first..at].iter().map(|(_, held)| held).product();
        sum = sum.plus(number.over(Rational::new(held, 1)?)?)?;
        last = at;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_first_unit() {
        for (text, expected) in [
            ("2 h 30 min", "5/2"),
            ("2h 30min", "5/2"),
            ("2 hours and 30 minutes", "5/2"),
            ("1 day, 12 hours", "3/2"),
            ("5 dollars and 50 cents", "11/2"),
            ("6 feet 2 inches", "37/6"),
            ("2 lb 8 oz", "5/2"),
            ("1 hour 1 minute 30 seconds", "41/40"),
            ("3 m 20 cm", "16/5"),
        ] {
            assert_eq!(parse(text).map(|n| n.to_string()).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "2 h", "30 min 2 h", "2 h 30", "2 h 3 kg", "3 cats and 5 dogs", "2 h 3 h", "5 dollars and tax"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
