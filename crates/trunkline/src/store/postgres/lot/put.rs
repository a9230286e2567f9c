//! Putting entries into the lot.

use std::collections::HashSet;

use uuid::Uuid;

use super::super::link::Db;
use super::chain::{self, Chain};
use super::clean;
use crate::error::Result;
use crate::store::common::{DEAD, ERROR_MAX, HEADERS_FORMAT, WAITING, cut, error_group, int, number};
use crate::store::{LotEntry, LotState};

/// An entry with the number of its target.
pub(in super::super) type Filed = (i64, LotEntry);

/// Both rows of each entry; those that are there already stay as they are. Numbers are given in the order of the list.
const PUT: &str = "WITH given AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
        $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::text[], $17::bytea[],
        $18::bytea[], $19::bytea[])
    WITH ORDINALITY AS g (target, state, id, chain, shard, position, size, due_at, ready_at, attempts, produced_at, died_at, reason,
        error_group, error, job, key, headers, payload, at)
), put AS (
    INSERT INTO lot (target, state, id, chain, shard, position, size, due_at, ready_at, attempts, produced_at, died_at, reason, error_group,
        error, job)
    SELECT target, state, id, chain, shard, position, size, due_at, ready_at, attempts, produced_at, died_at, reason, error_group, error, job
    FROM given ORDER BY at
    ON CONFLICT DO NOTHING RETURNING seq, id, target
)
INSERT INTO lot_body (seq, format, key, headers, payload)
SELECT put.seq, $20, given.key, given.headers, given.payload FROM put JOIN given USING (id, target)";

/// The entries by columns.
#[derive(Default)]
struct Columns<'a> {
    target: Vec<i64>,
    state: Vec<i64>,
    id: Vec<Uuid>,
    chain: Vec<Option<i64>>,
    shard: Vec<i64>,
    position: Vec<i64>,
    size: Vec<i64>,
    due_at: Vec<i64>,
    ready_at: Vec<Option<i64>>,
    attempts: Vec<i64>,
    produced_at: Vec<i64>,
    died_at: Vec<Option<i64>>,
    reason: Vec<Option<String>>,
    error_group: Vec<Option<String>>,
    error: Vec<Option<String>>,
    job: Vec<Option<&'a str>>,
    key: Vec<Option<&'a [u8]>>,
    headers: Vec<Vec<u8>>,
    payload: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, target: i64, entry: &'a LotEntry, wall: i64) {
        let (message, state) = (&entry.message, number(entry.state));
        let mut headers = Vec::new();
        message.headers.encode(&mut headers);
        let key = message.key.as_deref();
        let size = headers.len() + message.payload.len() + key.map_or(0, <[u8]>::len);
        let error = entry.error.as_deref().map(clean);
        let error = error.as_deref().map(|error| cut(error, ERROR_MAX));
        // The head of a chain is chosen when all are there.
        let chained = state == WAITING && entry.chain.is_some();
        self.target.push(target);
        self.state.push(state);
        self.id.push(message.id.0);
        self.chain.push(entry.chain.map(u64::cast_signed));
        self.shard.push(i64::from(message.position.shard));
        self.position.push(message.position.offset.cast_signed());
        self.size.push(int(size as u64));
        self.due_at.push(int(entry.due_at));
        self.ready_at.push((state != DEAD && !chained).then_some(int(entry.due_at)));
        self.attempts.push(i64::from(entry.attempts));
        self.produced_at.push(int(message.produced_at));
        self.died_at.push((state == DEAD).then(|| entry.died_at.map_or(wall, int)));
        self.error_group.push(error_group(error, entry.reason.as_deref()).map(str::to_owned));
        self.error.push(error.map(str::to_owned));
        self.reason.push(entry.reason.as_deref().map(clean));
        self.job.push(entry.job.as_deref());
        self.key.push(key);
        self.headers.push(headers);
        self.payload.push(&message.payload);
    }
}

/// Puts entries without chains.
pub(in super::super) async fn put(db: &Db, entries: &[Filed]) -> Result<()> {
    let mut seen = HashSet::new();
    let mut c = Columns::default();
    // One row of a statement must not meet another of it.
    for (target, entry) in entries.iter().filter(|(target, entry)| seen.insert((*target, entry.message.id))) {
        c.push(*target, entry, db.wall());
    }
    db.run(
        "put into the lot",
        PUT,
        &[
            &c.target,
            &c.state,
            &c.id,
            &c.chain,
            &c.shard,
            &c.position,
            &c.size,
            &c.due_at,
            &c.ready_at,
            &c.attempts,
            &c.produced_at,
            &c.died_at,
            &c.reason,
            &c.error_group,
            &c.error,
            &c.job,
            &c.key,
            &c.headers,
            &c.payload,
            &HEADERS_FORMAT,
        ],
    )
    .await
    .map(drop)
}

/// Puts entries of which some belong to chains, in a transaction.
pub(in super::super) async fn put_chained(db: &Db, schema: &str, entries: &[Filed]) -> Result<()> {
    let chains: Vec<Chain> = entries
        .iter()
        .filter(|(_, entry)| entry.state == LotState::Waiting)
        .filter_map(|(target, entry)| {
            entry.chain.map(|chain| Chain { target: *target, shard: i64::from(entry.message.position.shard), chain: chain.cast_signed() })
        })
        .collect();
    chain::lock(db, schema, &chains).await?;
    put(db, entries).await?;
    chain::rehead(db, &chains).await
}
