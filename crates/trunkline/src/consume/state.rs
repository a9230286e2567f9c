//! How a consumer fares, for everyone to see.

use serde::Serialize;

/// The state of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum State {
    /// The first subscription, or a new one after a loss, is being opened.
    Connecting,
    /// Joined, with or without a shard.
    Live,
    /// Works only in part: `handler_failing`, `stuck_handler`, `store_down`, `key_blocked`, `reconnecting`, or a provider's word.
    Degraded(&'static str),
    /// Ended.
    Closed,
}

impl State {
    /// As the registry and the CLI show it.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            State::Connecting => "connecting".into(),
            State::Live => "live".into(),
            State::Degraded(reason) => format!("degraded: {reason}"),
            State::Closed => "closed".into(),
        }
    }
}
