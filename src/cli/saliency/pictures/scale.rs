//! Colours for values: one logarithmic scale for all layers, so that they compare.

use stepflow::saliency::StepMap;

/// From which value to which colours run.
pub struct Scale {
    /// The darkest colour, and everything below.
    pub low: f64,
    /// The brightest colour, and everything above.
    pub high: f64,
}

impl Scale {
    /// Limits that leave out the hundredth part of all positive values at the low end, and the thousandth at the high one.
    pub fn of<'a>(maps: impl Iterator<Item = &'a StepMap>) -> Self {
        let rows = maps.flat_map(|map| (0..map.n_steps()).flat_map(|query| map.row(query)));
        let mut values: Vec<f64> = rows.copied().filter(|value| *value > 0.0 && value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * (values.len().max(1) - 1) as f64).round() as usize).copied();
        let (low, high) = (at(0.01).unwrap_or(0.1), at(0.999).unwrap_or(1.0));
        // Values that hardly differ are not to look as if they did.
        Self { low: low.min(high / 10.0), high }
    }

    /// Where a value lies between the limits, 0 to 1; `None` of what was not measured.
    pub fn position(&self, value: f64) -> Option<f64> {
        let share = (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln();
        (!value.is_nan()).then(|| share.clamp(0.0, 1.0))
    }

    /// The colour of a position.
    pub fn colour(position: f64) -> [u8; 3] {
        colorous::VIRIDIS.eval_continuous(position).as_array()
    }

    /// The powers of ten within the limits.
    pub fn ticks(&self) -> Vec<i32> {
        (self.low.log10().ceil() as i32..=self.high.log10().floor() as i32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_logarithmic_and_within_limits() {
        let scale = Scale { low: 1e-4, high: 1.0 };
        assert!((scale.position(1e-2).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!([0.0, 1e-9, 5.0].map(|value| scale.position(value)), [Some(0.0), Some(0.0), Some(1.0)]);
        assert_eq!(scale.position(f64::NAN), None);
        assert_eq!(scale.ticks(), [-4, -3, -2, -1, 0]);
        let nothing = Scale::of(std::iter::once(&StepMap::new(3)));
        assert_eq!(nothing.position(0.0), Some(0.0));
    }
}
