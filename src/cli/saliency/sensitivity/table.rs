//! What was found of all traces, and its means.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use stepflow::backward::Sensitivity;

use crate::cli::output;

/// A number of each head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    /// The loss's derivative by alpha.
    ByAlpha,
    /// The loss's derivative by tau, where OEB is on.
    ByTau,
    /// What the loss would change by, to first order, with this tau.
    EffectOfTau(f64),
}

impl Quantity {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByAlpha => "dL_dalpha",
            Self::ByTau => "dL_dtau",
            Self::EffectOfTau(_) => "effect_of_tau",
        }
    }

    /// The tau that it is of.
    pub fn tau(self) -> Option<f64> {
        if let Self::EffectOfTau(tau) = self { Some(tau) } else { None }
    }
}

/// A mean over traces, and its standard error, where there are several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    pub mean: f64,
    pub se: Option<f64>,
}

impl Mean {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self { mean, se: (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }

    pub fn times(self, factor: f64) -> Self {
        Self { mean: factor * self.mean, se: self.se.map(|se| factor.abs() * se) }
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.6}", self.mean)?;
        self.se.map_or(Ok(()), |se| write!(f, " (standard error {se:.6})"))
    }
}

/// A row of `sensitivity.csv`, and with a trace in place of the error of `traces.csv`.
#[derive(Serialize)]
struct Row {
    layer: usize,
    head: usize,
    quantity: &'static str,
    tau: Option<f64>,
    mean: f64,
    se: Option<f64>,
    n_traces: usize,
}

#[derive(Serialize)]
struct TraceRow<'a> {
    trace: &'a str,
    layer: usize,
    head: usize,
    quantity: &'static str,
    tau: Option<f64>,
    value: f64,
}

/// All traces, each with its layers.
pub struct Table {
    taus: Vec<f64>,
    repaired: bool,
    traces: Vec<(String, Vec<Sensitivity>)>,
}

impl Table {
    /// Of caps of the floor, or of a model whose repairs are on.
    pub fn new(taus: Vec<f64>, repaired: bool) -> Self {
        Self { taus, repaired, traces: Vec::new() }
    }

    pub fn push(&mut self, name: &str, layers: Vec<Sensitivity>) {
        self.traces.push((name.to_owned(), layers));
    }

    pub fn n_traces(&self) -> usize {
        self.traces.len()
    }

    /// Layers, and heads of the one that has most.
    pub fn shape(&self) -> (usize, usize) {
        let layers = self.traces.first().map_or(&[][..], |(_, layers)| layers);
        (layers.len(), layers.iter().map(|layer| layer.by_tau.len()).max().unwrap_or(0))
    }

    /// What is told of each head.
    pub fn quantities(&self) -> Vec<Quantity> {
        let mut all = vec![Quantity::ByAlpha];
        match self.repaired {
            true => all.push(Quantity::ByTau),
            false => all.extend(self.taus.iter().map(|tau| Quantity::EffectOfTau(*tau))),
        }
        all
    }

    fn value(&self, trace: usize, layer: usize, head: usize, quantity: Quantity) -> Option<f64> {
        let found = self.traces[trace].1.get(layer)?;
        match quantity {
            Quantity::ByAlpha => found.by_alpha.get(head).copied(),
            Quantity::ByTau => found.by_tau.get(head).copied(),
            Quantity::EffectOfTau(tau) => {
                let place = self.taus.iter().position(|other| *other == tau)?;
                found.effects_of_tau.get(head)?.get(place).copied()
            }
        }
    }

    /// Of one head.
    pub fn mean(&self, layer: usize, head: usize, quantity: Quantity) -> Option<Mean> {
        let values: Option<Vec<f64>> =
            (0..self.n_traces()).map(|trace| self.value(trace, layer, head, quantity)).collect();
        values.map(|values| Mean::of(&values))
    }

    /// Of some layers' heads together.
    pub fn sum_over(&self, quantity: Quantity, wanted: impl Fn(usize) -> bool) -> Mean {
        let heads: Vec<(usize, usize)> = self.heads().filter(|(layer, _)| wanted(*layer)).collect();
        let of_trace =
            |trace| heads.iter().filter_map(|(layer, head)| self.value(trace, *layer, *head, quantity)).sum();
        Mean::of(&(0..self.n_traces()).map(of_trace).collect::<Vec<f64>>())
    }

    fn heads(&self) -> impl Iterator<Item = (usize, usize)> {
        let (n_layer, n_head) = self.shape();
        (0..n_layer).flat_map(move |layer| (0..n_head).map(move |head| (layer, head)))
    }

    /// Writes `sensitivity.csv`, and of several traces `traces.csv`.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        output::write_file(&folder.join("sensitivity.csv"), |out| self.means(out))?;
        if self.n_traces() > 1 {
            output::write_file(&folder.join("traces.csv"), |out| self.each(out))?;
        }
        Ok(())
    }

    fn means(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for (layer, head) in self.heads() {
            for quantity in self.quantities() {
                let Some(Mean { mean, se }) = self.mean(layer, head, quantity) else { continue };
                let (name, tau, n_traces) = (quantity.name(), quantity.tau(), self.n_traces());
                csv.serialize(Row { layer, head, quantity: name, tau, mean, se, n_traces })?;
            }
        }
        csv.flush()
    }

    fn each(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for (number, (trace, _)) in self.traces.iter().enumerate() {
            for (layer, head) in self.heads() {
                for quantity in self.quantities() {
                    let Some(value) = self.value(number, layer, head, quantity) else { continue };
                    let (name, tau) = (quantity.name(), quantity.tau());
                    csv.serialize(TraceRow { trace, layer, head, quantity: name, tau, value })?;
                }
            }
        }
        csv.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_of_their_traces() {
        let layer = |value: f64| Sensitivity {
            by_alpha: vec![value, 0.0],
            by_tau: vec![0.0; 2],
            effects_of_tau: vec![vec![2.0 * value], vec![1.0]],
        };
        let mut table = Table::new(vec![0.15], false);
        table.push("a", vec![layer(1.0), layer(5.0)]);
        assert_eq!(table.mean(0, 0, Quantity::ByAlpha), Some(Mean { mean: 1.0, se: None }));
        table.push("b", vec![layer(3.0), layer(5.0)]);
        assert_eq!(table.mean(0, 0, Quantity::ByAlpha), Some(Mean { mean: 2.0, se: Some(1.0) }));
        assert_eq!(table.mean(1, 0, Quantity::EffectOfTau(0.15)), Some(Mean { mean: 10.0, se: Some(0.0) }));
        assert_eq!(table.sum_over(Quantity::EffectOfTau(0.15), |layer| layer == 0), Mean { mean: 5.0, se: Some(2.0) });
    }
}
