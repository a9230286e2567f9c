//! How the members of an ordered group deal with each other.

use std::time::Duration;

/// Times of ordered groups. The defaults are for use; tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long a member has to give up a shard that another one is to have. Default 30 s, as long as a handler may take.
    pub revoke: Duration,
    /// How often members tell each other that they live. Default 1 s.
    pub beat: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { revoke: Duration::from_secs(30), beat: Duration::from_secs(1) }
    }
}

impl Options {
    /// After so long without a word a member counts as gone.
    pub(super) fn silence(&self) -> Duration {
        self.beat * 7 / 2
    }
}
