//! When to try a request again.

use std::time::Duration;

use anyhow::{Error, Result};

/// Attempts in a row that may fail without a new byte before the network is given up.
const ATTEMPTS: u32 = 5;

/// Pause after the first failure; each further one doubles it.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a request failed.
pub enum Failure {
    /// The connection or the server broke down; another attempt may succeed.
    Lost(Error),
    /// Another attempt would end the same way.
    Refused(Error),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Lost(root_cause(error))
    }
}

/// The innermost error alone: those around it repeat the URL.
pub fn root_cause(error: impl Into<Error>) -> Error {
    Error::msg(error.into().root_cause().to_string())
}

/// The failures so far.
#[derive(Default)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    /// Waits until the next attempt is due, or returns the error where none makes sense.
    pub async fn after(&mut self, failure: Failure, progressed: bool) -> Result<()> {
        let error = match failure {
            Failure::Refused(error) => return Err(error),
            Failure::Lost(error) => error,
        };
        self.failures = if progressed { 1 } else { self.failures + 1 };
        if self.failures == ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(PAUSE * 2u32.pow(self.failures - 1)).await;
        Ok(())
    }
}
