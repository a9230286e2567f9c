//! How a consumer fares, for everyone to see.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

/// The state of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum State {
    /// The first subscription, or a new one after a loss, is being opened.
    Connecting,
    /// Joined, with or without a shard.
    Live,
    /// Works only in part: `reconnecting`, `store_down`, `handler_failing`, `stuck_handler`, `key_blocked`, or a provider's
    /// word. Where several hold, the first one of this list is shown; it is live again when none is left.
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

/// Why a consumer is not simply live. Each comes and goes on its own; of those that hold, the first one here is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// For good.
    Closed,
    /// The first subscription is being opened.
    Connecting,
    /// The subscription is being rebuilt.
    Reconnecting,
    /// A wait or a burial cannot be written.
    StoreDown,
    /// Whether messages were handled before cannot be looked up, and must be.
    DedupeDown,
    /// The breaker of the group is open.
    HandlerFailing,
    /// A handler did not return within its grace.
    StuckHandler,
    /// The chains of a shard are full.
    KeyBlocked,
    /// The provider says so, with a word of its own.
    Provider,
}

const CAUSES: [Cause; 9] = [
    Cause::Closed,
    Cause::Connecting,
    Cause::Reconnecting,
    Cause::StoreDown,
    Cause::DedupeDown,
    Cause::HandlerFailing,
    Cause::StuckHandler,
    Cause::KeyBlocked,
    Cause::Provider,
];

impl Cause {
    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// All that is the matter with a consumer, and the state that follows from it.
#[derive(Debug)]
pub(crate) struct Health {
    causes: AtomicU32,
    /// What the provider said last.
    word: Mutex<&'static str>,
    state: watch::Sender<State>,
}

impl Health {
    /// Of a consumer that is connecting.
    pub(crate) fn new() -> Self {
        let causes = AtomicU32::new(Cause::Connecting.bit());
        Health { causes, word: Mutex::new(""), state: watch::Sender::new(State::Connecting) }
    }

    /// Whether this is the matter.
    pub(crate) fn is(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::SeqCst) & cause.bit() != 0
    }

    /// Notes that this is the matter, or is no longer; whether that is news.
    pub(crate) fn set(&self, cause: Cause, holds: bool) -> bool {
        let bit = cause.bit();
        let before = if holds { self.causes.fetch_or(bit, Ordering::SeqCst) } else { self.causes.fetch_and(!bit, Ordering::SeqCst) };
        let news = (before & bit != 0) != holds;
        if news {
            self.show();
        }
        news
    }

    /// Notes what the provider says: its word, or that all is well.
    pub(crate) fn provider(&self, word: Option<&'static str>) {
        if let Some(word) = word {
            *self.word.lock() = word;
        }
        self.set(Cause::Provider, word.is_some());
        self.show();
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The causes are read under the lock of the state, so that of two changes at once the later one is what is seen.
    fn show(&self) {
        self.state.send_if_modified(|shown| {
            let state = CAUSES.into_iter().find(|cause| self.is(*cause)).map_or(State::Live, |cause| self.state_of(cause));
            std::mem::replace(shown, state) != state
        });
    }

    fn state_of(&self, cause: Cause) -> State {
        State::Degraded(match cause {
            Cause::Closed => return State::Closed,
            Cause::Connecting => return State::Connecting,
            Cause::Reconnecting => "reconnecting",
            Cause::StoreDown | Cause::DedupeDown => "store_down",
            Cause::HandlerFailing => "handler_failing",
            Cause::StuckHandler => "stuck_handler",
            Cause::KeyBlocked => "key_blocked",
            Cause::Provider => *self.word.lock(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_only_when_no_cause_is_left() {
        let health = Health::new();
        let state = health.state();
        let shown = || *state.borrow();
        assert_eq!(shown(), State::Connecting);
        assert!(health.set(Cause::Connecting, false));
        assert_eq!(shown(), State::Live);
        health.set(Cause::KeyBlocked, true);
        assert!(health.set(Cause::StoreDown, true) && !health.set(Cause::StoreDown, true));
        assert_eq!(shown(), State::Degraded("store_down"));
        // The store is back, the keys are still blocked.
        health.set(Cause::StoreDown, false);
        assert_eq!(shown(), State::Degraded("key_blocked"));
        health.provider(Some("throttled"));
        health.set(Cause::KeyBlocked, false);
        assert_eq!(shown(), State::Degraded("throttled"));
        health.provider(Some("no_quorum"));
        assert_eq!(shown(), State::Degraded("no_quorum"));
        health.provider(None);
        assert_eq!(shown(), State::Live);
    }

    /// What the provider says of its connection says nothing of the handler.
    #[test]
    fn a_live_provider_hides_no_other_cause() {
        let health = Health::new();
        health.set(Cause::Connecting, false);
        health.set(Cause::HandlerFailing, true);
        health.provider(None);
        assert_eq!(*health.state().borrow(), State::Degraded("handler_failing"));
    }

    #[test]
    fn closed_is_for_good() {
        let health = Health::new();
        health.set(Cause::Closed, true);
        health.set(Cause::Connecting, false);
        health.set(Cause::Reconnecting, true);
        assert_eq!(*health.state().borrow(), State::Closed);
    }

    #[test]
    fn every_cause_has_a_bit_of_its_own() {
        assert_eq!(CAUSES.iter().map(|cause| cause.bit()).fold(0, |all, bit| all | bit).count_ones() as usize, CAUSES.len());
    }
}
