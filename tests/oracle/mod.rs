//! Tiny models as they are written down, in float64: nothing of it is shared with what it is compared to.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use stepflow::gguf::{GgmlType, Gguf};
use stepflow::stepflow::oeb::{Group, bridge_row};
use stepflow::trace::Segment;

use crate::tiny::Arch;

/// A model of [`tiny`](crate::tiny) with weights in float32.
pub struct Oracle {
    arch: Arch,
    weights: HashMap<String, Vec<f64>>,
    gguf: Gguf,
}

/// What is done to a model while it runs.
#[derive(Clone, Default)]
pub struct Change {
    /// Attention of a layer, head, query and key is multiplied with this.
    pub nudge: Option<([usize; 4], f64)>,
    /// To an element of a token's row of a layer's input this is added: layer, token, element.
    pub shift: Option<([usize; 3], f64)>,
    pub repairs: Option<Repairs>,
}

/// StepFlow as the paper writes it, with settings for each layer.
#[derive(Clone)]
pub struct Repairs {
    pub segments: Vec<Segment>,
    /// First tokens of steps, and the windows before them.
    pub starts: Vec<(usize, Range<usize>)>,
    pub tau: Vec<Option<f64>>,
    pub alpha: Vec<Option<f64>>,
}

const EPSILON: f64 = 1e-6;
const LAYERS: usize = 8;

impl Oracle {
    pub fn open(arch: Arch, path: &Path) -> Self {
        let gguf = Gguf::open(path).unwrap();
        let mut file = std::fs::File::open(path).unwrap();
        let mut weights = HashMap::new();
        for tensor in gguf.tensors() {
            assert_eq!(tensor.ty, GgmlType::F32, "{}", tensor.name);
            let mut data = vec![0; tensor.bytes as usize];
            file.seek(SeekFrom::Start(tensor.start)).unwrap();
            file.read_exact(&mut data).unwrap();
            let floats = data.as_chunks::<4>().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect();
            weights.insert(tensor.name.clone(), floats);
        }
        Self { arch, weights, gguf }
    }

    fn size(&self, name: &str) -> usize {
        self.gguf.arch_u64(name).unwrap() as usize
    }

    fn is_gemma(&self) -> bool {
        matches!(self.arch, Arch::Gemma2 | Arch::Gemma3)
    }

    fn has_experts(&self) -> bool {
        matches!(self.arch, Arch::GptOss | Arch::Qwen3Moe | Arch::Mixtral)
    }

    /// A weight, if the model has it.
    fn weight(&self, name: &str) -> Option<&[f64]> {
        self.weights.get(name).map(Vec::as_slice)
    }

    /// A matrix times a row, and a bias where there is one.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let matrix = self.weight(&format!("{name}.weight")).unwrap_or_else(|| panic!("no {name}"));
        let mut y = times(matrix, x);
        if let Some(bias) = self.weight(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        y
    }

    /// The same for one of several experts.
    fn expert(&self, name: &str, expert: usize, x: &[f64], rows: usize) -> Vec<f64> {
        let matrices = self.weight(&format!("{name}.weight")).unwrap();
        let mut y = times(&matrices[expert * rows * x.len()..(expert + 1) * rows * x.len()], x);
        if let Some(bias) = self.weight(&format!("{name}.bias")) {
            y.iter_mut().zip(&bias[expert * rows..]).for_each(|(y, bias)| *y += bias);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.weight(&format!("{name}.weight")).unwrap_or_else(|| panic!("no {name}"));
        let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + EPSILON).sqrt();
        x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
    }

    /// Mean surprise of all tokens but the first.
    pub fn loss(&self, tokens: &[usize], change: &Change) -> f64 {
        let surprise = |(logits, target): (Vec<f64>, &usize)| {
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most - logits[*target]
        };
        let all = self.logits(tokens, change).into_iter().zip(&tokens[1..]);
        all.map(surprise).sum::<f64>() / (tokens.len() - 1) as f64
    }

    /// Mean logit of some tokens, as those before them give it.
    pub fn logit(&self, tokens: &[usize], of: Range<usize>, change: &Change) -> f64 {
        let logits = self.logits(tokens, change);
        let n = of.len() as f64;
        of.map(|token| logits[token - 1][tokens[token]]).sum::<f64>() / n
    }

    /// Logits that follow each token.
    fn logits(&self, tokens: &[usize], change: &Change) -> Vec<Vec<f64>> {
        let embeddings = self.weight("token_embd.weight").unwrap();
        let width = self.size("embedding_length");
        let scale = if self.is_gemma() { (width as f64).sqrt() } else { 1.0 };
        let embed = |token: &usize| embeddings[token * width..(token + 1) * width].iter().map(|x| x * scale).collect();
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        for layer in 0..LAYERS {
            if let Some(([l, token, element], by)) = change.shift
                && l == layer
            {
                rows[token][element] += by;
            }
            rows = self.layer(layer, &rows, change);
        }
        let of_row = |row: &Vec<f64>| {
            let row = self.norm("output_norm", row);
            let mut logits = times(self.weight("output.weight").unwrap_or(embeddings), &row);
            if self.arch == Arch::Gemma2 {
                logits.iter_mut().for_each(|x| *x = 5.0 * (*x / 5.0).tanh());
            }
            logits
        };
        rows.iter().map(of_row).collect()
    }

    fn layer(&self, layer: usize, rows: &[Vec<f64>], change: &Change) -> Vec<Vec<f64>> {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        let attended = self.attention(layer, rows, change);
        let mut out = Vec::new();
        for (row, heads) in rows.iter().zip(attended) {
            let mut attention = self.linear(&name("attn_output"), &heads);
            if self.is_gemma() {
                attention = self.norm(&name("post_attention_norm"), &attention);
            }
            let middle: Vec<f64> = row.iter().zip(attention).map(|(a, b)| a + b).collect();
            let norm = if self.arch == Arch::GptOss { "post_attention_norm" } else { "ffn_norm" };
            let x = self.norm(&name(norm), &middle);
            let mut y = if self.has_experts() { self.experts(layer, &x) } else { self.feed_forward(layer, &x) };
            if self.is_gemma() {
                y = self.norm(&name("post_ffw_norm"), &y);
            }
            out.push(middle.iter().zip(y).map(|(a, b)| a + b).collect());
        }
        out
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        let act = |x: f64| if self.is_gemma() { gelu(x) } else { x * sigmoid(x) };
        let (gate, up) = (self.linear(&name("ffn_gate"), x), self.linear(&name("ffn_up"), x));
        let hidden: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| act(*gate) * up).collect();
        self.linear(&name("ffn_down"), &hidden)
    }

    fn experts(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        let logits = self.linear(&name("ffn_gate_inp"), x);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let chosen = &order[..self.size("expert_used_count")];
        let sum: f64 = chosen.iter().map(|expert| logits[*expert].exp()).sum();
        let width = self.weight(&name("ffn_norm.weight")).map_or(x.len(), <[f64]>::len);
        let hidden = self.size("feed_forward_length");
        let mut y = vec![0.0; width];
        for expert in chosen {
            let gate = self.expert(&name("ffn_gate_exps"), *expert, x, hidden);
            let up = self.expert(&name("ffn_up_exps"), *expert, x, hidden);
            let act = |(gate, up): (&f64, &f64)| {
                if self.arch == Arch::GptOss {
                    let gate = gate.min(7.0);
                    gate * sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1.0)
                } else {
                    gate * sigmoid(*gate) * up
                }
            };
            let inner: Vec<f64> = gate.iter().zip(&up).map(act).collect();
            let of_expert = self.expert(&name("ffn_down_exps"), *expert, &inner, width);
            y.iter_mut().zip(of_expert).for_each(|(y, x)| *y += logits[*expert].exp() / sum * x);
        }
        y
    }

    /// What all heads give each row.
    fn attention(&self, layer: usize, rows: &[Vec<f64>], change: &Change) -> Vec<Vec<f64>> {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        let (n_head, n_head_kv) = (self.size("attention.head_count"), self.size("attention.head_count_kv"));
        let dim = self.size("attention.key_length");
        let halves = !matches!(self.arch, Arch::Llama | Arch::Mixtral);
        let heads = |stem: &str, rotate: bool| -> Vec<Vec<Vec<f64>>> {
            let of_row = |(position, row): (usize, &Vec<f64>)| {
                let x = self.norm(&name("attn_norm"), row);
                let all = self.linear(&name(stem), &x);
                let of_head = |head: &[f64]| {
                    let norm = name(&format!("{stem}_norm"));
                    let has_norm = self.weight(&format!("{norm}.weight")).is_some();
                    let head = if has_norm { self.norm(&norm, head) } else { head.to_vec() };
                    if rotate { rotated(&head, position, halves) } else { head }
                };
                all.chunks_exact(dim).map(of_head).collect()
            };
            rows.iter().enumerate().map(of_row).collect()
        };
        let (queries, keys, values) = (heads("attn_q", true), heads("attn_k", true), heads("attn_v", false));
        let has_window = match self.arch {
            Arch::GptOss | Arch::Gemma2 => layer.is_multiple_of(2),
            Arch::Gemma3 => layer % 6 != 5,
            _ => false,
        };
        let window = if has_window { self.size("attention.sliding_window") } else { usize::MAX };
        let sinks = self.weight(&name("attn_sinks.weight"));
        let mut out = vec![Vec::new(); rows.len()];
        for (query, out) in out.iter_mut().enumerate() {
            let first = (query + 1).saturating_sub(window);
            for head in 0..n_head {
                let shared = head / (n_head / n_head_kv);
                let score = |key: usize| {
                    let product: f64 = queries[query][head].iter().zip(&keys[key][shared]).map(|(a, b)| a * b).sum();
                    let score = product / (dim as f64).sqrt();
                    if self.arch == Arch::Gemma2 { 2.0 * (score / 2.0).tanh() } else { score }
                };
                let mut probs: Vec<f64> = (first..=query).map(|key| score(key).exp()).collect();
                let sum = probs.iter().sum::<f64>() + sinks.map_or(0.0, |sinks| sinks[head].exp());
                probs.iter_mut().for_each(|p| *p /= sum);
                if let Some(repairs) = &change.repairs {
                    repairs.bridge(layer, query, first, &mut probs, sinks.is_some());
                }
                if let Some(([l, h, q, k], factor)) = change.nudge
                    && (l, h, q) == (layer, head, query)
                    && k >= first
                {
                    probs[k - first] *= factor;
                }
                let mut output = vec![0.0; dim];
                for (key, p) in (first..=query).zip(&probs) {
                    output.iter_mut().zip(&values[key][shared]).for_each(|(out, value)| *out += p * value);
                }
                if let Some(repairs) = &change.repairs {
                    repairs.inject(layer, query, &mut output, |token| &values[token][shared]);
                }
                out.extend(output);
            }
        }
        out
    }
}

impl Repairs {
    fn bridge(&self, layer: usize, query: usize, first: usize, probs: &mut [f64], sinks: bool) {
        let own = self.segments[query];
        let Some(tau) = self.tau[layer].filter(|_| own.bridged().is_some()) else { return };
        let group = |key: usize| match self.segments[key] {
            other if other == own => Group::Same,
            other if Some(other) == own.bridged() => Group::Bridge,
            _ => Group::Other,
        };
        let groups: Vec<_> = (first..=query).map(|key| Some(group(key))).collect();
        bridge_row(probs, &groups, tau, sinks);
    }

    fn inject<'v>(&self, layer: usize, query: usize, output: &mut [f64], value: impl Fn(usize) -> &'v Vec<f64>) {
        let Some(alpha) = self.alpha[layer] else { return };
        for (_, window) in self.starts.iter().filter(|(start, _)| *start == query) {
            for token in window.clone() {
                output.iter_mut().zip(value(token)).for_each(|(out, x)| *out += alpha / window.len() as f64 * x);
            }
        }
    }
}

fn times(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

fn rotated(head: &[f64], position: usize, halves: bool) -> Vec<f64> {
    let mut out = head.to_vec();
    let n = head.len();
    for pair in 0..n / 2 {
        let angle = position as f64 * 10_000f64.powf(-2.0 * pair as f64 / n as f64);
        let (a, b) = if halves { (pair, pair + n / 2) } else { (2 * pair, 2 * pair + 1) };
        out[a] = head[a] * angle.cos() - head[b] * angle.sin();
        out[b] = head[a] * angle.sin() + head[b] * angle.cos();
    }
    out
}
