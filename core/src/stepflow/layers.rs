//! Which layers a repair works in: `0-6,9` or a share such as `25%`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The end of the model that a share of its layers is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first layers: where OEB works.
    Shallow,
    /// The last layers: where SMI works.
    Deep,
}

/// Layers as a user writes them, before the model's number of layers is known.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerSelection {
    /// A share of the layers, in percent of the model, rounded down: `25%`.
    Percent(f64),
    /// Inclusive ranges of layer indices, counted from 0: `0-6,9`.
    Ranges(Vec<(usize, usize)>),
}

impl LayerSelection {
    /// The layers of a model with `n_layer` of them. A share is taken from `side`.
    ///
    /// # Errors
    /// When a range reaches past the last layer.
    pub fn resolve(&self, n_layer: usize, side: Side) -> Result<BTreeSet<usize>, ConfigError> {
        match self {
            Self::Percent(percent) => {
                let count = (n_layer as f64 * percent / 100.0).floor() as usize;
                Ok(match side {
                    Side::Shallow => (0..count).collect(),
                    Side::Deep => (n_layer - count..n_layer).collect(),
                })
            }
            Self::Ranges(ranges) => {
                if let Some(&(_, last)) = ranges.iter().find(|&&(_, last)| last >= n_layer) {
                    return Err(ConfigError::LayerOutside { layer: last, n_layer });
                }
                Ok(ranges.iter().flat_map(|&(first, last)| first..=last).collect())
            }
        }
    }
}

/// Layers in ascending order, as ranges.
impl FromIterator<usize> for LayerSelection {
    fn from_iter<I: IntoIterator<Item = usize>>(layers: I) -> Self {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for layer in layers {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == layer => *last = layer,
                _ => ranges.push((layer, layer)),
            }
        }
        Self::Ranges(ranges)
    }
}

impl FromStr for LayerSelection {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::Layers { found: text.to_owned() };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| malformed())?;
            if !(0.0..=100.0).contains(&percent) {
                return Err(malformed());
            }
            return Ok(Self::Percent(percent));
        }
        let number = |s: &str| s.trim().parse::<usize>().map_err(|_| malformed());
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last { Err(malformed()) } else { Ok((first, last)) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self::Ranges)
    }
}

impl fmt::Display for LayerSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Ranges(ranges) => {
                for (i, (first, last)) in ranges.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    match first == last {
                        true => write!(f, "{comma}{first}")?,
                        false => write!(f, "{comma}{first}-{last}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str, n_layer: usize, side: Side) -> Vec<usize> {
        text.parse::<LayerSelection>().unwrap().resolve(n_layer, side).unwrap().into_iter().collect()
    }

    #[test]
    fn shares_come_from_their_side() {
        assert_eq!(layers("25%", 30, Side::Shallow), (0..7).collect::<Vec<_>>());
        assert_eq!(layers("25%", 30, Side::Deep), (23..30).collect::<Vec<_>>());
        assert_eq!(layers("0%", 30, Side::Deep), Vec::<usize>::new());
        assert_eq!(layers("100%", 3, Side::Deep), [0, 1, 2]);
    }

    #[test]
    fn ranges_and_single_layers() {
        assert_eq!(layers("0-2,9", 12, Side::Shallow), [0, 1, 2, 9]);
        assert_eq!("0-2,9".parse::<LayerSelection>().unwrap().to_string(), "0-2,9");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "x", "3-1", "-1", "1-", "101%", "NaN%", "-5%", "1,,2", "99999999999999999999999"] {
            let error = text.parse::<LayerSelection>().unwrap_err().to_string();
            assert!(error.contains("0-6,9"), "{text}: {error}");
        }
        let outside = "0-30".parse::<LayerSelection>().unwrap().resolve(30, Side::Shallow).unwrap_err();
        assert!(outside.to_string().contains("0-29"), "{outside}");
    }
}
