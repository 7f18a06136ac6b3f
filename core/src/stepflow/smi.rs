//! Step Momentum Injection: the first token of a thinking step is handed a summary of the step before (section 4.2).

/// The plain oracle: adds `alpha` times the mean of `values` to one head's output, in float64.
///
/// `output` is `[head_dim]`, before the output projection; `values` holds one `[head_dim]` row of V for every cell of
/// the window, of the key-value head that this head reads. No values, no change.
pub fn inject(output: &mut [f64], values: &[Vec<f64>], alpha: f64) {
    if values.is_empty() {
        return;
    }
    for (i, out) in output.iter_mut().enumerate() {
        *out += alpha * values.iter().map(|v| v[i]).sum::<f64>() / values.len() as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_scaled_mean() {
        let mut output = [1.0, 2.0];
        inject(&mut output, &[vec![1.0, 0.0], vec![3.0, -2.0]], 0.5);
        assert_eq!(output, [2.0, 1.5]);
    }

    #[test]
    fn an_empty_window_changes_nothing() {
        let mut output = [1.0];
        inject(&mut output, &[], 0.5);
        assert_eq!(output, [1.0]);
    }
}
