//! Merging small blocks: fewer to look at, and narrower, the more there are of the same time.

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::message::Millis;

use super::block::{self, AT_FIXED, AT_IDS, AT_PAYLOAD, AT_VARIED, Fault, Head, Read};
use super::decode::{Table, Varied};
use super::encode::{Encoder, Meta};
use super::index::{BlockRow, Index, block_row, columns_of, failed};
use super::levels;
use super::reader::Blocks;
use super::row::Row;
use super::sink::{Built, Sink, Work};
use super::{Capture, Class};

/// The generation of blocks that are merged no more.
pub(super) const SETTLED: u8 = 4;
/// So many of one kind are merged.
const ENOUGH: i64 = 16;
/// At most so many at once, …
const BLOCKS: i64 = 64;
/// … and so many bytes and records.
const BYTES: u64 = 4 << 20;
const RECORDS: u32 = 32_768;
/// Records of a merged block.
const BLOCK_RECORDS: usize = 1_000;
/// Fewer do not get a narrow block of their own.
const MIN: usize = 512;

/// The generation a new block begins with: one that is full and narrow is not worth touching again.
pub(super) fn generation(meta: &Meta) -> u8 {
    if meta.level == 0 && meta.records as usize >= BLOCK_RECORDS * 2 / 3 { SETTLED } else { 0 }
}

/// Merges one run of blocks; `false` if there are not enough of any kind.
pub(super) fn step(sink: &mut Sink, encoder: &mut Encoder, blocks: &Blocks, now: Millis) -> Result<bool> {
    let Some((class, day, picked)) = pick(&sink.index).map_err(failed("looking for blocks to merge"))? else { return Ok(false) };
    let mut opened = Vec::with_capacity(picked.len());
    let mut removed = Vec::with_capacity(picked.len());
    for row in picked {
        match open(&sink.index, blocks, &row, true) {
            Ok(block) => {
                opened.push(block);
                removed.push(row);
            }
            // Left as it is, for whoever can mend it; and not tried again.
            Err(_) => {
                sink.index
                    .sql
                    .execute("UPDATE block SET gen = ?2 WHERE id = ?1", params![row.id, SETTLED])
                    .map_err(failed("setting a block aside"))?;
            }
        }
    }
    if removed.len() < 2 {
        return Ok(!removed.is_empty());
    }
    let next = removed.iter().map(|row| row.generation).max().unwrap_or(0) + 1;
    let work = merge(encoder, &opened, class, day, next)?;
    sink.commit(&work, &removed, None, now)?;
    Ok(true)
}

/// The class of a file, of its first three columns.
pub(super) fn class_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Class> {
    let name: String = row.get(0)?;
    // Of `Off` nothing is kept, so that no file is of it.
    let capture = if name.starts_with("metadata") { Capture::Metadata } else { Capture::Full };
    Ok(Class { capture, age_ms: row.get::<_, i64>(1)? as u64, bytes: row.get::<_, i64>(2)? as u64 })
}

type Picked = (Class, u32, Vec<BlockRow>);

fn pick(index: &Index) -> rusqlite::Result<Option<Picked>> {
    let kind = index
        .sql
        .prepare_cached(
            "SELECT f.class, f.age_ms, f.class_bytes, f.day, b.level, b.gen FROM block b INDEXED BY block_small JOIN file f ON f.id = b.file
             WHERE b.gen < 4 GROUP BY f.class, f.day, b.level, b.gen HAVING count(*) >= ?1 ORDER BY count(*) DESC LIMIT 1",
        )?
        .query_row([ENOUGH], |row| {
            Ok((row.get::<_, String>(0)?, class_of(row)?, row.get::<_, u32>(3)?, row.get::<_, u8>(4)?, row.get::<_, u8>(5)?))
        })
        .optional()?;
    let Some((name, class, day, level, generation)) = kind else { return Ok(None) };
    let columns = columns_of("b");
    let mut statement = index.sql.prepare_cached(&format!(
        "SELECT {columns} FROM block b INDEXED BY block_small JOIN file f ON f.id = b.file
         WHERE b.gen = ?1 AND b.gen < 4 AND b.level = ?2 AND f.class = ?3 AND f.day = ?4 ORDER BY b.id_from LIMIT ?5"
    ))?;
    let mut picked = Vec::new();
    let (mut bytes, mut records) = (0, 0);
    for row in statement.query_map(params![generation, level, name, day, BLOCKS], block_row)? {
        let row = row?;
        bytes += u64::from(row.len);
        records += row.meta.records;
        if picked.len() >= 2 && (bytes > BYTES || records > RECORDS) {
            break;
        }
        picked.push(row);
    }
    Ok(Some((class, day, picked)))
}

/// A whole block in memory.
pub(super) struct Opened {
    table: Table,
    varied: Varied,
    payloads: Vec<Vec<u8>>,
}

/// Reads a block, with or without its payloads.
pub(super) fn open(index: &Index, blocks: &Blocks, row: &BlockRow, payloads: bool) -> Read<Opened> {
    let bytes = blocks.whole(index, row)?;
    let head = Head::parse(&bytes)?;
    let section = |at: usize| {
        let section = head.sections.get(at).ok_or(Fault::Damaged)?;
        let start = section.offset as usize;
        block::unpack(bytes.get(start..start + section.stored as usize).ok_or(Fault::Damaged)?, section)
    };
    let runs = if payloads { AT_PAYLOAD..head.sections.len() } else { 0..0 };
    let payloads = runs.map(section).collect::<Read<_>>()?;
    let varied = Varied::new(section(AT_VARIED)?)?;
    let (ids, fixed) = (section(AT_IDS)?, section(AT_FIXED)?);
    Ok(Opened { table: Table::new(head, ids, &fixed)?, varied, payloads })
}

impl Opened {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// A record without its payload.
    pub(super) fn bare_row(&self, at: usize) -> Row<'_> {
        self.table.row(at, Some(&self.varied), None)
    }

    fn row(&self, at: usize) -> Row<'_> {
        let payload =
            self.table.payload(at).map(|(run, range)| self.payloads.get(run).and_then(|bytes| bytes.get(range)).unwrap_or_default());
        self.table.row(at, Some(&self.varied), payload)
    }
}

fn merge(encoder: &mut Encoder, opened: &[Opened], class: Class, day: u32, next: u8) -> Result<Work> {
    let mut entries: Vec<(u128, u32, u32)> = Vec::new();
    for (block, opened) in opened.iter().enumerate() {
        entries.extend((0..opened.table.len()).map(|at| (u128::from_be_bytes(*opened.table.id(at).as_bytes()), block as u32, at as u32)));
    }
    entries.sort_by_key(|(id, ..)| *id);
    let times: Vec<Millis> = entries.iter().map(|(id, ..)| (id >> 80) as u64).collect();
    let mut work = Work::default();
    for part in levels::split(&times, Some(MIN), BLOCK_RECORDS) {
        for entry in part {
            let (_, block, at) = entries[entry as usize];
            encoder.push(&opened[block as usize].row(at as usize))?;
        }
        let mut bytes = Vec::new();
        if let Some(meta) = encoder.finish(&mut bytes)? {
            work.blocks.push(Built { class, day, generation: generation(&meta).max(next), meta, bytes });
        }
    }
    Ok(work)
}
