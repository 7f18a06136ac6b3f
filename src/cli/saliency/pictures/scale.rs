//! Colours for values: one logarithmic scale for all layers, so that they compare.

use stepflow::saliency::StepMap;

/// Factors that the colours span at least and at most.
const LEAST_SPAN: f64 = 10.0;
const MOST_SPAN: f64 = 1e4;

/// From which value to which colours run.
pub struct Scale {
    /// The darkest colour, and everything below.
    pub low: f64,
    /// The brightest colour, and everything above.
    pub high: f64,
}

impl Scale {
    /// Limits that leave out the thousandth part of all positive values at the high end, and the hundredth at the low one or
    /// what lies four decades below: over more, colours do not tell values apart. The first step has but itself to draw from:
    /// often far more than anything else, that says nothing, and is left out. `src/pages/map.js` has the same rule.
    pub fn of<'a>(maps: impl Iterator<Item = &'a StepMap>) -> Self {
        let rows = maps.flat_map(|map| (1..map.n_steps()).flat_map(|query| map.row(query)));
        let mut values: Vec<f64> = rows.copied().filter(|value| *value > 0.0 && value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * (values.len().max(1) - 1) as f64).round() as usize).copied();
        let (low, high) = (at(0.01).unwrap_or(0.1), at(0.999).unwrap_or(1.0));
        // Values that hardly differ are not to look as if they did.
        Self { low: low.clamp(high / MOST_SPAN, high / LEAST_SPAN), high }
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
    fn colours_span_four_decades_at_most_and_no_outlier_sets_their_end() {
        // 50 steps: 1275 values, of which one is far above the others, and many are far below.
        let mut map = StepMap::new(50);
        let cells = (0..50).flat_map(|query| (0..=query).map(move |key| (query, key)));
        for (i, (query, key)) in cells.enumerate() {
            map.set(query, key, if i == 0 || i == 700 { 1e3 } else { 10f64.powf(-15.0 * i as f64 / 1275.0) });
        }
        let scale = Scale::of(std::iter::once(&map));
        assert!((0.9..=1.0).contains(&scale.high), "{}", scale.high);
        assert_eq!(scale.low, scale.high / 1e4);
        let alike = Scale::of(std::iter::once(&StepMap::<f64>::new(3).map(|_| 2.0)));
        assert_eq!((alike.low, alike.high), (0.2, 2.0));
    }

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
