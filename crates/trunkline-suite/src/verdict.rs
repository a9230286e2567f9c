//! How a scenario says what it saw.

use std::fmt;

use trunkline::Error;

/// What a provider did against its contract, in one sentence with the numbers.
#[derive(Clone)]
pub struct Failure(String);

/// The outcome of a scenario, or of a step of one.
pub type Verdict<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with this sentence.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Failure(text.into())
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn context(self, doing: &str) -> Self {
        Failure(format!("{doing}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(format!("{error:?}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure(error.to_string())
    }
}

/// Ends the scenario with a failure unless the condition holds.
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($text)+)));
        }
    };
}
