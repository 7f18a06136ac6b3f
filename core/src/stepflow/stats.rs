//! What StepFlow did, counted per layer.

use std::collections::BTreeMap;

/// What worked on a layer, by where its data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Host memory, inside flash attention.
    Fused,
    /// Host memory, in place.
    Host,
    /// The memory of a device that there are no kernels for: read, changed on the host, and written back.
    ReadBack,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl Kernels {
    /// The kernels for data of ggml's `backend`.
    pub fn of(backend: &str) -> Self {
        match backend {
            "CUDA" => Self::Cuda,
            "MTL" => Self::Metal,
            _ => Self::ReadBack,
        }
    }

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Host => "host",
            Self::ReadBack => "read-back",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// Statistics of one layer. Means are over what the layer saw; 0 where it saw nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerStats {
    /// Rows (query token, head) of thinking or summary tokens that OEB looked at.
    pub rows_seen: u64,
    /// Rows that OEB lifted to their floor.
    pub rows_bridged: u64,
    /// Sum over rows seen of the bridged segment's share of attention before OEB.
    pub bridge_before: f64,
    /// The same after OEB.
    pub bridge_after: f64,
    /// Step starts that SMI injected into.
    pub injections: u64,
    /// Sum over injections of the injected norm relative to the head output's.
    pub injected_norm: f64,
    /// What worked on the layer last, if anything did.
    pub kernels: Option<Kernels>,
}

impl LayerStats {
    /// Counts one OEB row.
    pub fn add_row(&mut self, before: f64, after: f64, bridged: bool) {
        self.rows_seen += 1;
        self.rows_bridged += u64::from(bridged);
        self.bridge_before += before;
        self.bridge_after += after;
    }

    /// Counts one injection; `relative_norm` is |injected| / |head output| over all heads of the token.
    pub fn add_injection(&mut self, relative_norm: f64) {
        self.injections += 1;
        self.injected_norm += relative_norm;
    }

    /// Adds another's counts to these.
    pub fn merge(&mut self, other: &Self) {
        self.rows_seen += other.rows_seen;
        self.rows_bridged += other.rows_bridged;
        self.bridge_before += other.bridge_before;
        self.bridge_after += other.bridge_after;
        self.injections += other.injections;
        self.injected_norm += other.injected_norm;
        self.kernels = other.kernels.or(self.kernels);
    }

    /// Mean share of attention on the bridged segment before OEB.
    pub fn mean_bridge_before(&self) -> f64 {
        mean(self.bridge_before, self.rows_seen)
    }

    /// Mean share of attention on the bridged segment after OEB.
    pub fn mean_bridge_after(&self) -> f64 {
        mean(self.bridge_after, self.rows_seen)
    }

    /// Mean norm of what SMI injected, relative to the head output.
    pub fn mean_injected_norm(&self) -> f64 {
        mean(self.injected_norm, self.injections)
    }
}

fn mean(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Statistics of every layer that StepFlow worked in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// By layer index.
    pub layers: BTreeMap<usize, LayerStats>,
}

impl Stats {
    /// The layer's statistics, to count into.
    pub fn layer(&mut self, layer: usize) -> &mut LayerStats {
        self.layers.entry(layer).or_default()
    }

    /// Adds another's counts to these, layer by layer.
    pub fn merge(&mut self, other: &Self) {
        other.layers.iter().for_each(|(&layer, stats)| self.layer(layer).merge(stats));
    }

    /// All layers added up.
    pub fn total(&self) -> LayerStats {
        let mut total = LayerStats::default();
        self.layers.values().for_each(|layer| total.merge(layer));
        total
    }

    /// As JSON: totals, then one object a layer, means included.
    pub fn to_json(&self) -> serde_json::Value {
        let row = |s: &LayerStats| {
            serde_json::json!({
                "rows_seen": s.rows_seen,
                "rows_bridged": s.rows_bridged,
                "mean_bridge_before": s.mean_bridge_before(),
                "mean_bridge_after": s.mean_bridge_after(),
                "injections": s.injections,
                "mean_injected_norm": s.mean_injected_norm(),
            })
        };
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(layer, stats)| {
                let mut object = row(stats);
                object["layer"] = (*layer).into();
                object["kernels"] = stats.kernels.map(Kernels::name).into();
                object
            })
            .collect();
        serde_json::json!({ "total": row(&self.total()), "layers": layers })
    }
}
