//! What producers and handlers saw with their own eyes, independent of what the broker says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::MessageId;
use trunkline::consume::handler::Fence;

/// A message whose produce was confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// Its id.
    pub(crate) id: MessageId,
    /// Its key.
    pub(crate) key: Arc<str>,
    /// Its number among the messages of its key, in the order of the confirms.
    pub(crate) sequence: u64,
}

/// How one run of a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It returned success.
    Done,
    /// It returned an error.
    Failed,
}

/// One run of a handler.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The group.
    pub(crate) group: &'static str,
    /// Which member of the group.
    pub(crate) member: usize,
    /// The message.
    pub(crate) id: MessageId,
    /// When it began, on the clock of the whole demo.
    pub(crate) began: u64,
    /// When it ended, on the same clock.
    pub(crate) ended: u64,
    /// What the broker said of its place.
    pub(crate) fence: Fence,
    /// How it ended.
    pub(crate) how: Ended,
}

/// A clock that only counts: of any two readings, by any threads, one is earlier.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// All there is to judge by.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Every confirmed message.
    pub(crate) confirmed: Vec<Confirmed>,
    /// Every run of every handler.
    pub(crate) runs: Vec<Run>,
    /// The dead letters of each group.
    pub(crate) dead: BTreeMap<&'static str, Vec<MessageId>>,
}
