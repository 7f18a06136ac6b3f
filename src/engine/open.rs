//! A context with StepFlow inside, and whether StepFlow has a place in the model.

use std::path::Path;
use std::sync::Arc;

use crate::llama::{Adapter, Batch, Context, ContextParams, Hook, LlamaError, Model, Row, Token};
use crate::stepflow::StepFlowConfig;
use crate::trace::Segment;

use super::flash::flash_attention;
use super::{Control, EngineError, Repair};

/// Makes a context of `model` with the repairs that `stepflow` asks for, and with the LoRA adapter. With repairs, there is
/// a [`Control`]. The adapter must outlive the context.
///
/// # Errors
/// When a setting is wrong, the model offers StepFlow no place, or llama.cpp fails.
pub fn open(
    model: Arc<Model>,
    context: &ContextParams,
    stepflow: &StepFlowConfig,
    adapter: Option<&mut Adapter>,
) -> Result<(Context, Option<Control>), EngineError> {
    let mut context = context.clone();
    let mut hook: Option<Box<dyn Hook>> = None;
    let mut control = None;
    if stepflow.is_on() {
        check_hookable(&model)?;
        context.flash_attention = flash_attention(&model, &context)?;
        let repair = Repair::new(stepflow, model.n_layer(), context.n_threads.max(1) as usize)?;
        control = Some(repair.control());
        hook = Some(Box::new(repair));
    }
    let mut context = Context::new(model, &context, hook)?;
    if let Some(adapter) = adapter {
        context.set_adapter(adapter)?;
    }
    Ok((context, control))
}

/// Loads a LoRA adapter for `model`, of which no context may exist yet; no path, no adapter.
///
/// # Errors
/// When the model is in use already, or the file is not an adapter of it.
pub fn load_adapter(model: &mut Arc<Model>, path: Option<&Path>) -> Result<Option<Adapter>, EngineError> {
    let Some(path) = path else { return Ok(None) };
    let Some(model) = Arc::get_mut(model) else {
        let reason = "another session uses the model; load it once more".to_owned();
        return Err(LlamaError::Adapter { path: path.to_owned(), reason }.into());
    };
    Ok(Some(model.load_adapter(path)?))
}

/// Runs one token through an empty context and forgets it: pages the weights in, and finds out whether StepFlow, if
/// there is a control of it, has a place in the graph.
///
/// # Errors
/// When it has none, or decoding fails.
pub fn warm_up(context: &mut Context, stepflow: Option<&Control>) -> Result<(), EngineError> {
    let model = context.model();
    let token = model.bos().or(model.eos()).unwrap_or(Token(0));
    let segment = Segment::Question;
    let row = Row { token, position: 0, sequence: 0, segment, previous_step: None, logits: true };
    context.decode(&Batch { rows: vec![row] })?;
    context.truncate(0, 0);
    check_offered(context, stepflow)
}

/// What can be told before the first decode.
fn check_hookable(model: &Model) -> Result<(), EngineError> {
    let reason = if model.is_recurrent() {
        "the model keeps a recurrent state and has no attention over earlier tokens"
    } else if model.has_encoder() {
        "the model has an encoder, and StepFlow is made for decoders"
    } else {
        return Ok(());
    };
    Err(EngineError::NotHookable(reason.to_owned()))
}

/// What can be told only after a decode.
pub(super) fn check_offered(context: &Context, stepflow: Option<&Control>) -> Result<(), EngineError> {
    if stepflow.is_some() && !context.offers_attention() {
        let reason = "its graph has no attention over cached keys (a recurrent or unusual architecture)";
        return Err(EngineError::NotHookable(reason.to_owned()));
    }
    Ok(())
}
