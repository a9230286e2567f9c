//! How the embedded broker is opened.

use std::path::PathBuf;
use std::time::Duration;

/// When a confirmed message is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before it is confirmed.
    Always,
    /// At most this long after it was confirmed: survives the death of the process, not of the machine.
    Interval(Duration),
}

/// How long messages are kept. A message that a known group has not settled is kept in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Kept at least this long, and not much longer.
    pub age: Option<Duration>,
    /// At most about this many bytes per topic.
    pub bytes: Option<u64>,
}

/// How the embedded broker is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The directory; created if missing.
    pub dir: PathBuf,
    /// The largest payload plus key and headers, in bytes. Default 1 MiB, at most 1 GiB.
    pub max_payload: usize,
    /// When a confirmed message is on the disk. Default: before it is confirmed.
    pub fsync: Fsync,
    /// How long messages are kept. Default: for ever.
    pub retention: Retention,
    /// How large one file of the log gets, in bytes. Default 64 MiB.
    pub segment_bytes: u64,
    /// After this a member that gives no sign of life loses its shards. Default 2.5 s.
    pub lease: Duration,
}

impl Options {
    /// The defaults for a directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Options {
            dir: dir.into(),
            max_payload: 1 << 20,
            fsync: Fsync::Always,
            retention: Retention::default(),
            segment_bytes: 64 << 20,
            lease: Duration::from_millis(2500),
        }
    }

    /// How large a segment gets: at least four fit into the bytes that are kept.
    pub(super) fn segment_limit(&self) -> u64 {
        self.segment_bytes.min(self.retention.bytes.map_or(u64::MAX, |bytes| bytes / 4)).max(1024)
    }

    /// How often leases are renewed.
    pub(super) fn heartbeat(&self) -> Duration {
        (self.lease / 5).max(Duration::from_millis(5))
    }
}
