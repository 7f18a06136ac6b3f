//! A hook of one's own: the share of attention that each layer gives to the first token.
//! `cargo run --release --example 2_watch_attention -- MODEL.gguf`.

use std::sync::{Arc, Mutex};

use stepflow::llama::{
    Attention, Batch, Context, ContextParams, FlashAttention, Hook, HookError, Model, ModelParams, Point, Row,
};

/// Mean attention on the first token, by layer.
struct FirstToken(Arc<Mutex<Vec<(usize, f32)>>>);

impl Hook for FirstToken {
    fn begin(&mut self, _: &[Row]) {}

    fn wants(&self, point: Point, _layer: usize) -> bool {
        point == Point::Attention
    }

    fn attention(&mut self, mut attention: Attention<'_>) -> Result<(), HookError> {
        let first = attention.cells.find(0, 0).ok_or("the first token is in no cell")?;
        let (n_head, last) = (attention.n_head, attention.rows.len() - 1);
        let sum: f32 = (0..n_head).map(|head| attention.row_mut(head, last)[first]).sum();
        self.0.lock().map_err(|e| e.to_string())?.push((attention.layer, sum / n_head as f32));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("expected a GGUF file")?;
    let model = Arc::new(Model::load(path.as_ref(), &ModelParams::default())?);
    let shares = Arc::new(Mutex::new(Vec::new()));
    let params = ContextParams { n_ctx: 256, flash_attention: FlashAttention::Off, ..ContextParams::default() };
    let mut context = Context::new(model.clone(), &params, Some(Box::new(FirstToken(shares.clone()))))?;

    let tokens = model.tokenize("Attention sinks collect what no other token wants.", true, false);
    let rows = tokens.into_iter().enumerate().map(|(position, token)| Row::plain(token, position)).collect();
    context.decode(&Batch { rows })?;
    for (layer, share) in shares.lock().map_err(|e| e.to_string())?.iter() {
        println!("layer {layer:2}: {:5.1}%", 100.0 * share);
    }
    Ok(())
}
