//! Tests of the whole: what is recorded is what is asked for later.

mod blocks;
mod failures;
mod queries;
mod upkeep;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::index::{BLOCK, Index, block_row};
use super::rollup::Counts;
use super::*;
use crate::message::Headers;

/// The moment all tests take place at, unless they say otherwise: a whole minute.
pub(super) const T0: Millis = 1_800_000_000_000 - 1_800_000_000_000 % 86_400_000 + 43_200_000;

/// A history in a directory of its own, with a clock that stands.
pub(super) struct Bed {
    pub(super) dir: tempfile::TempDir,
    pub(super) now: Arc<AtomicU64>,
    pub(super) options: Options,
}

impl Bed {
    pub(super) fn new() -> Self {
        let now = Arc::new(AtomicU64::new(T0));
        let clock = now.clone();
        let options = Options {
            clock: Clock::new(move || clock.load(Ordering::Relaxed)),
            maintain_every: Duration::ZERO,
            busy: Duration::ZERO,
            ..Options::default()
        };
        Bed { dir: tempfile::tempdir().expect("a directory"), now, options }
    }

    pub(super) fn set(&self, now: Millis) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(super) fn open(&self) -> (History, Recorder) {
        let history = History::open(self.dir.path(), self.options.clone()).expect("opens");
        let recorder = history.recorder().expect("starts");
        (history, recorder)
    }

    pub(super) fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("history")
    }

    pub(super) fn index(&self) -> Index {
        Index::open(&self.root().join("index.db"), Duration::from_secs(5)).expect("opens")
    }
}

pub(super) fn filed_as(topic: &str, class: Class) -> Arc<Filed> {
    let event = crate::Event::new("orders", topic).expect("an event");
    Arc::new(Filed { address: Address { product: "shop".into(), env: "prd".into(), event }, provider: "EMBEDDED", class })
}

pub(super) fn filed(topic: &str) -> Arc<Filed> {
    filed_as(topic, Class::default())
}

/// The `n`th id of a moment.
pub(super) fn id(ms: Millis, n: u64) -> MessageId {
    MessageId::derived(ms, &[&n.to_le_bytes()])
}

/// A message with what became of it.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) id: MessageId,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) payload: Bytes,
    pub(super) produced_at: Millis,
    pub(super) confirm_us: u32,
    pub(super) position: Option<Position>,
    pub(super) failure: Option<Box<Failure>>,
    pub(super) session: Option<Arc<SessionMark>>,
    pub(super) idempotency_key: Option<Arc<str>>,
    pub(super) replay_of: Option<MessageId>,
}

pub(super) fn produced(id: MessageId, payload: &str) -> Made {
    Made {
        id,
        key: Some(Bytes::from_static(b"k1")),
        headers: Headers::new(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        produced_at: id.millis(),
        confirm_us: 700,
        position: Some(Position { shard: 3, offset: 77 }),
        failure: None,
        session: None,
        idempotency_key: None,
        replay_of: None,
    }
}

pub(super) fn attempt(id: MessageId, step: Step, after: Millis, attempts: u32) -> Attempt {
    Attempt {
        id,
        produced_at: id.millis(),
        step,
        attempts,
        started_at: id.millis() + after,
        wait_us: after * 1_000,
        run_us: 5_000,
        error: (attempts > 0).then(|| "boom".into()),
        key: Some(Bytes::from_static(b"k1")),
        position: Position { shard: 3, offset: 77 },
    }
}

pub(super) fn produces(filed: &Arc<Filed>, made: Vec<Made>) -> Batch {
    let apart = |made: Made| {
        let Made { id, key, headers, payload, produced_at, confirm_us, position, failure, session, idempotency_key, replay_of } = made;
        let mark = Some(Box::new(Mark { session, idempotency_key, replay_of, ..Mark::default() }));
        (Outgoing { id, shard: None, key, headers, payload }, Produced { produced_at, confirm_us, position, failure, mark })
    };
    let (messages, items) = made.into_iter().map(apart).unzip();
    Batch::Produced { filed: filed.clone(), producer: "p1".into(), messages, items }
}

pub(super) fn attempts(filed: &Arc<Filed>, group: &str, items: Vec<Attempt>) -> Batch {
    Batch::Attempts { filed: filed.clone(), group: group.into(), consumer: "c1".into(), session: None, items }
}

/// Counts all blocks of a directory anew, by topic and group, and minute.
pub(super) fn recount(dir: &Path) -> BTreeMap<(String, String, Millis), Counts> {
    let root = dir.join("history");
    let index = Index::open(&root.join("index.db"), Duration::from_secs(5)).expect("opens");
    let readers = reader::Readers::new(&root, 0, Duration::from_secs(5));
    let blocks = readers.blocks();
    let mut statement = index.sql.prepare(&format!("SELECT {BLOCK} FROM block")).expect("prepared");
    let rows: Vec<_> = statement.query_map([], block_row).expect("asked").map(|row| row.expect("read")).collect();
    let mut counts: BTreeMap<_, Counts> = BTreeMap::new();
    for row in rows {
        let table = blocks.table(&index, &row).expect("readable");
        for at in 0..table.len() {
            let row = table.row(at, None, None);
            let ended = row.ended_us() / 1_000;
            counts.entry((row.place.event.to_owned(), row.group.to_owned(), ended - ended % 60_000)).or_default().count(&row.tally());
        }
    }
    counts
}

/// The roll-ups of a directory, by topic and group, and minute.
pub(super) fn rolled(dir: &Path, width: Millis) -> BTreeMap<(String, String, Millis), Counts> {
    let index = Index::open(&dir.join("history/index.db"), Duration::from_secs(5)).expect("opens");
    let mut statement = index
        .sql
        .prepare("SELECT broker || ':' || topic, grp, start, counts FROM rollup JOIN series ON id = series WHERE width = ?1")
        .expect("prepared");
    let row = |row: &rusqlite::Row<'_>| {
        let mut counts = Counts::default();
        counts.merge_encoded(&row.get::<_, Vec<u8>>(3)?).expect("counts");
        Ok(((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64), counts))
    };
    statement.query_map([width as i64], row).expect("asked").map(|row| row.expect("read")).collect()
}
