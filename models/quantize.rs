//! Writes a model with its matrices in another type: `quantize IN.gguf OUT.gguf q4_0`.

use std::path::Path;

use stepflow::gguf::GgmlType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, ty] = &args[..] else { return Err("expected IN.gguf OUT.gguf TYPE".into()) };
    let named = |known: &GgmlType| format!("{known:?}").eq_ignore_ascii_case(ty);
    let ty = GgmlType::ALL.into_iter().find(named).ok_or(format!("unknown type {ty}"))?;
    Ok(stepflow::llama::quantize(Path::new(from), Path::new(to), ty)?)
}
