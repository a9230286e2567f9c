//! The order of chains: of the waiting entries of one chain, only the first may be claimed.
//!
//! Who puts into a chain, or settles or revives one of it, first takes the lock of the chain's shard. A claim takes none: it
//! changes nothing about which entry is the one that may be claimed.

use super::super::link::Db;
use super::super::lock;
use crate::error::Result;

/// The waiting entries of one key, in one shard of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chain {
    pub(super) target: i64,
    pub(super) shard: i64,
    pub(super) chain: i64,
}

/// Keeps others from changing these chains until the transaction ends.
pub(super) async fn lock(db: &Db, schema: &str, chains: &[Chain]) -> Result<()> {
    let number = |chain: &Chain| {
        let (target, shard) = (chain.target.to_le_bytes(), chain.shard.to_le_bytes());
        lock::number(&[b"shard", schema.as_bytes(), &target, &shard])
    };
    lock::take(db, &chains.iter().map(number).collect::<Vec<_>>()).await
}

/// One that may be claimed but is not, and is not the first any more.
const DEMOTE: &str = "UPDATE lot a SET ready_at = NULL FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (target, shard, chain)
    WHERE a.target = c.target AND a.shard = c.shard AND a.chain = c.chain AND a.state = 0 AND a.ready_at IS NOT NULL AND a.owner IS NULL
        AND EXISTS (SELECT 1 FROM lot h WHERE h.target = c.target AND h.shard = c.shard AND h.chain = c.chain AND h.state = 0 AND h.seq < a.seq)";

/// The first, where none may be claimed.
const PROMOTE: &str =
    "UPDATE lot h SET ready_at = h.due_at FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (target, shard, chain),
    LATERAL (
        SELECT seq FROM lot WHERE target = c.target AND shard = c.shard AND chain = c.chain AND state = 0 AND chain IS NOT NULL
        ORDER BY seq LIMIT 1
    ) m
    WHERE h.seq = m.seq AND NOT EXISTS (
        SELECT 1 FROM lot a WHERE a.target = c.target AND a.shard = c.shard AND a.chain = c.chain AND a.state = 0 AND a.chain IS NOT NULL
            AND a.ready_at IS NOT NULL)";

/// Makes the entry with the lowest seq of each chain the one that may be claimed, unless another is claimed just now.
pub(super) async fn rehead(db: &Db, chains: &[Chain]) -> Result<()> {
    let mut chains = chains.to_vec();
    chains.sort_unstable();
    chains.dedup();
    if chains.is_empty() {
        return Ok(());
    }
    let [targets, shards, numbers] = [|c: &Chain| c.target, |c: &Chain| c.shard, |c: &Chain| c.chain]
        .map(|of: fn(&Chain) -> i64| chains.iter().map(of).collect::<Vec<i64>>());
    for sql in [DEMOTE, PROMOTE] {
        db.run("move chains on", sql, &[&targets, &shards, &numbers]).await?;
    }
    Ok(())
}
