//! Maps as tidy rows: one row a number.

use std::io;

use serde::Serialize;

use super::{HeadMaps, LayerMaps, MetricMap, Pool};
use crate::trace::{Segment, Step};

/// A row of `cells.csv`. Empty fields belong to methods that estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell<'a> {
    /// The run.
    pub run_id: &'a str,
    /// How it was measured.
    pub method: &'a str,
    /// The layer, from 0.
    pub layer: usize,
    /// The step that looks, from 0.
    pub query_step: usize,
    /// The step that is looked at.
    pub key_step: usize,
    /// The segment of the first.
    pub query_segment: Segment,
    /// The segment of the second.
    pub key_segment: Segment,
    /// Pairs of tokens between them.
    pub n_pairs: usize,
    /// What was measured.
    pub metric: &'a str,
    /// Its value, in the metric's unit; `None` where it was not measured.
    pub value: Option<f64>,
    /// Standard error of the value.
    pub se: Option<f64>,
    /// Forwards that it took.
    pub n_probes: Option<usize>,
    /// Relative change of the attention.
    pub eps: Option<f64>,
    /// Whether its sign is not established.
    #[serde(serialize_with = "in_capitals")]
    pub below_noise: Option<bool>,
    /// How far the slopes to either side are from the value.
    pub curvature: Option<f64>,
}

/// A row of `heads.csv`: a cell of one head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadCell<'a> {
    /// The run.
    pub run_id: &'a str,
    /// The layer, from 0.
    pub layer: usize,
    /// The head, from 0.
    pub head: usize,
    /// The step that looks, from 0.
    pub query_step: usize,
    /// The step that is looked at.
    pub key_step: usize,
    /// Pairs of tokens between them.
    pub n_pairs: usize,
    /// As [`HeadMaps::saliency`].
    pub saliency: f64,
    /// As [`HeadMaps::signed`].
    pub signed: f64,
}

/// TRUE or FALSE: what R reads as logical, pandas and polars as Boolean.
fn in_capitals<S: serde::Serializer>(value: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|value| if value { "TRUE" } else { "FALSE" }).serialize(serializer)
}

/// What all rows of a run share.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Its name.
    pub id: &'a str,
    /// How it was measured.
    pub method: &'a str,
    /// The trace's steps.
    pub steps: &'a [Step],
    /// Which tokens they are.
    pub pool: &'a Pool,
}

impl<'a> Run<'a> {
    /// The rows of a layer.
    pub fn cells(self, layer: &'a LayerMaps) -> impl Iterator<Item = Cell<'a>> {
        layer.maps.iter().flat_map(move |map| {
            let pairs = (0..map.values.n_steps()).flat_map(|query| (0..=query).map(move |key| (query, key)));
            pairs.map(move |(query, key)| self.cell(layer.layer, map, query, key))
        })
    }

    /// The rows of a layer's heads.
    pub fn heads(self, layer: &'a LayerMaps) -> impl Iterator<Item = HeadCell<'a>> {
        layer.heads.iter().enumerate().flat_map(move |(head, maps)| {
            let pairs = (0..maps.saliency.n_steps()).flat_map(|query| (0..=query).map(move |key| (query, key)));
            pairs.map(move |pair| self.head_cell(layer.layer, head, maps, pair))
        })
    }

    fn head_cell(self, layer: usize, head: usize, maps: &HeadMaps, (query, key): (usize, usize)) -> HeadCell<'a> {
        HeadCell {
            run_id: self.id,
            layer,
            head,
            query_step: query,
            key_step: key,
            n_pairs: self.pool.n_pairs(query, key),
            saliency: maps.saliency.get(query, key),
            signed: maps.signed.get(query, key),
        }
    }

    /// Writes all rows of heads as CSV.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_heads(self, layers: &'a [LayerMaps], out: impl io::Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for cell in layers.iter().flat_map(|layer| self.heads(layer)) {
            csv.serialize(cell)?;
        }
        csv.flush()
    }

    /// Writes all rows as CSV.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_csv(self, layers: &'a [LayerMaps], out: impl io::Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        for cell in layers.iter().flat_map(|layer| self.cells(layer)) {
            csv.serialize(cell)?;
        }
        csv.flush()
    }

    fn cell(self, layer: usize, map: &MetricMap, query_step: usize, key_step: usize) -> Cell<'a> {
        let value = map.values.get(query_step, key_step);
        let measured = !value.is_nan();
        let estimate = map.estimates.as_ref().map(|map| map.get(query_step, key_step)).filter(|_| measured);
        Cell {
            run_id: self.id,
            method: self.method,
            layer,
            query_step,
            key_step,
            query_segment: self.steps[query_step].segment,
            key_segment: self.steps[key_step].segment,
            n_pairs: self.pool.n_pairs(query_step, key_step),
            metric: map.metric.name(),
            value: measured.then_some(value),
            se: estimate.map(|estimate| estimate.se),
            n_probes: estimate.map(|estimate| estimate.n_probes),
            eps: estimate.map(|estimate| estimate.eps),
            below_noise: estimate.map(|estimate| estimate.below_noise(value)),
            curvature: estimate.map(|estimate| estimate.curvature),
        }
    }
}
