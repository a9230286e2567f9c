//! Bundles: one filter over the terms of many blocks, so that a rare term is looked for in hundreds of places, not thousands.

use rusqlite::{OptionalExtension, TransactionBehavior, params};

use crate::error::Result;

use super::Class;
use super::compact::{class_of, open};
use super::encode::Encoder;
use super::index::{BlockRow, Index, add_file, block_row, columns_of, failed};
use super::reader::Blocks;
use super::sink::Sink;
use super::terms;

/// Blocks of a bundle.
const BLOCKS: usize = 32;

/// Bundles one run of blocks that are merged no more; `false` if there are not enough.
pub(super) fn step(sink: &mut Sink, encoder: &mut Encoder, blocks: &Blocks) -> Result<bool> {
    let Some((class, day, picked)) = pick(&sink.index).map_err(failed("looking for blocks to bundle"))? else { return Ok(false) };
    let mut bundled = Vec::with_capacity(picked.len());
    for row in picked {
        let Ok(opened) = open(&sink.index, blocks, &row, false) else {
            // It stays by itself, and is not tried again.
            sink.index.sql.execute("UPDATE block SET bundle = 0 WHERE id = ?1", [row.id]).map_err(failed("setting a block aside"))?;
            continue;
        };
        for at in 0..opened.len() {
            encoder.push(&opened.bare_row(at))?;
        }
        bundled.push(row);
    }
    let mut filter = Vec::new();
    terms::build(&mut encoder.take_terms(), &mut filter);
    let mut body = crc32fast::hash(&filter).to_le_bytes().to_vec();
    body.extend_from_slice(&filter);
    let (name, offset) = sink.append(class, day, &body)?;
    commit(&mut sink.index, class, day, (&name, offset, body.len() as u32), &bundled).map_err(failed("bundling blocks"))?;
    Ok(true)
}

fn pick(index: &Index) -> rusqlite::Result<Option<(Class, u32, Vec<BlockRow>)>> {
    let kind = index
        .sql
        .prepare_cached(
            "SELECT f.class, f.age_ms, f.class_bytes, f.day FROM block b INDEXED BY block_loose JOIN file f ON f.id = b.file
             WHERE b.gen >= 4 AND b.bundle IS NULL GROUP BY f.class, f.day HAVING count(*) >= ?1 LIMIT 1",
        )?
        .query_row([BLOCKS as i64], |row| Ok((row.get::<_, String>(0)?, class_of(row)?, row.get::<_, u32>(3)?)))
        .optional()?;
    let Some((name, class, day)) = kind else { return Ok(None) };
    let mut statement = index.sql.prepare_cached(&format!(
        "SELECT {} FROM block b INDEXED BY block_loose JOIN file f ON f.id = b.file
         WHERE b.gen >= 4 AND b.bundle IS NULL AND f.class = ?1 AND f.day = ?2 ORDER BY b.id_from LIMIT ?3",
        columns_of("b")
    ))?;
    let picked = statement.query_map(params![name, day, BLOCKS as i64], block_row)?.collect::<rusqlite::Result<_>>()?;
    Ok(Some((class, day, picked)))
}

fn commit(index: &mut Index, class: Class, day: u32, body: (&str, u64, u32), bundled: &[BlockRow]) -> rusqlite::Result<()> {
    let (name, offset, len) = body;
    let tx = index.sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let file = add_file(&tx, class, day, name, offset, len)?;
    let bundle =
        tx.prepare_cached("INSERT INTO bundle (file, offset, len) VALUES (?1, ?2, ?3)")?.insert(params![file, offset as i64, len])?;
    for row in bundled {
        tx.prepare_cached("UPDATE block SET bundle = ?2 WHERE id = ?1")?.execute(params![row.id, bundle])?;
    }
    tx.commit()
}
