//! The engine's thread: it alone has the context, fills its slots from the queue, and steps.

use std::time::Duration;

use crate::engine::{EngineError, Slots};

use super::app::{App, Ready};

/// How soon a wish to end is noticed while there is nothing to do.
const PATIENCE: Duration = Duration::from_millis(100);

/// Runs until `end` says so; what is running or waiting then is finished first.
///
/// # Errors
/// When decoding is interrupted.
pub fn run(app: &App, ready: &Ready, mut slots: Slots, end: impl Fn() -> bool) -> Result<(), EngineError> {
    loop {
        if end() {
            app.queue.close();
        }
        while !slots.is_full()
            && let Some(work) = app.queue.pop()
        {
            slots.start(work);
        }
        if slots.is_idle() {
            ready.slots().clone_from(&slots.status());
            if app.queue.is_closed() && app.queue.is_empty() {
                return Ok(());
            }
            app.queue.wait(PATIENCE);
            continue;
        }
        let stepped = slots.step();
        ready.slots().clone_from(&slots.status());
        match stepped {
            Ok(report) => app.metrics.count_step(report),
            Err(error) => {
                slots.stop_all();
                return Err(error);
            }
        }
    }
}
