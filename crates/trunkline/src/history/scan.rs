//! Walking the messages in the order of their ids, over blocks that overlap, opening only those that may matter.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use rusqlite::params;

use crate::error::Result;
use crate::message::{MessageId, Millis};

use super::block::{Fault, Read};
use super::decode::{Table, Varied};
use super::index::{BLOCK, BlockRow, Gap, block_row, failed};
use super::levels::SPANS;
use super::query::{Cursor, Query};
use super::reader::{Reader, unreadable};
use super::record::Record;
use super::row::{HeadersOf, Row};
use super::terms::{self, Term};
use super::text;

/// Index rows that are read at once.
const ROWS: usize = 256;
/// Messages, or blocks, between two looks at the clock; so many are looked at even without any time.
const STRIDE: u64 = 64;

/// The whole life of one message.
pub(super) fn life(reader: &Reader, id: MessageId) -> Result<Option<Record>> {
    let blocks = reader.index.covering(id.millis(), id.millis()).map_err(failed("reading the history"))?;
    let mut buffer = Vec::new();
    assemble(reader, id, blocks.iter(), &mut buffer).map_err(|(fault, block)| unreadable(fault, &block))
}

type Found<'a> = (&'a BlockRow, Arc<Table>, Arc<Varied>, Vec<Option<(Arc<Vec<u8>>, std::ops::Range<usize>)>>);

/// Puts a message together from the blocks that cover its id.
fn assemble<'a>(
    reader: &Reader,
    id: MessageId,
    blocks: impl Iterator<Item = &'a BlockRow>,
    buffer: &mut Vec<u8>,
) -> std::result::Result<Option<Record>, (Fault, BlockRow)> {
    let mut found: Vec<Found<'_>> = Vec::new();
    for block in blocks {
        match load(reader, id, block, buffer) {
            Ok(Some((table, varied, payloads))) => found.push((block, table, varied, payloads)),
            Ok(None) | Err(Fault::Gone) => {}
            Err(fault) => return Err((fault, *block)),
        }
    }
    let rows = found.iter().flat_map(|(_, table, varied, payloads)| {
        table.find(id).zip(payloads).map(|(at, payload)| {
            let payload = payload.as_ref().map(|(bytes, range)| bytes.get(range.clone()).unwrap_or_default());
            table.row(at, Some(varied), payload)
        })
    });
    Ok(Record::assemble(rows.collect()))
}

type Loaded = (Arc<Table>, Arc<Varied>, Vec<Option<(Arc<Vec<u8>>, std::ops::Range<usize>)>>);

fn load(reader: &Reader, id: MessageId, block: &BlockRow, buffer: &mut Vec<u8>) -> Read<Option<Loaded>> {
    let (index, blocks) = (&reader.index, &reader.blocks);
    let Some(table) = blocks.find(index, block, id, buffer)? else { return Ok(None) };
    let varied = blocks.varied(index, block, &table)?;
    let mut payloads = Vec::new();
    for at in table.find(id) {
        payloads.push(match table.payload(at) {
            Some((run, range)) => Some((blocks.payloads(index, block, &table, run)?, range)),
            None => None,
        });
    }
    Ok(Some((table, varied, payloads)))
}

/// A block that was opened for its candidates.
struct Opened {
    block: BlockRow,
    table: Arc<Table>,
    varied: Option<Arc<Varied>>,
    /// Candidates of it that are still to come.
    left: usize,
}

/// What a scan came to.
pub(super) struct Scanned {
    pub(super) messages: Vec<Record>,
    /// Messages that matched, those before the page included.
    pub(super) matched: u64,
    pub(super) cursor: Option<Cursor>,
    pub(super) scanned: u64,
    /// Blocks that could not be read.
    pub(super) damaged: Vec<Gap>,
}

/// One pass over the messages of a query.
pub(super) struct Scan<'a> {
    reader: &'a Reader,
    query: &'a Query,
    all: Vec<u64>,
    any: Vec<u64>,
    from: Millis,
    to: Millis,
    bound: u128,
    rows: Vec<BlockRow>,
    row_at: usize,
    after: Option<(Millis, i64)>,
    heap: BinaryHeap<(u128, u32, u32)>,
    opened: Vec<Option<Opened>>,
    cover: Cover,
    /// What the filters of bundles said.
    bundles: HashMap<i64, bool>,
    damaged: Vec<Gap>,
    buffer: Vec<u8>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(reader: &'a Reader, query: &'a Query, cursor: Option<Cursor>) -> Self {
        let kinds = query.kinds();
        let is_all = kinds.len() == super::row::Kind::ALL.len();
        Scan {
            reader,
            query,
            all: query.terms(),
            any: if is_all { Vec::new() } else { kinds.iter().map(|kind| terms::term(Term::Kind, &[*kind as u8])).collect() },
            from: query.from.unwrap_or(0),
            to: query.to.unwrap_or(1 << 47),
            bound: cursor.map_or(u128::MAX, |cursor| cursor.bound),
            rows: Vec::new(),
            row_at: 0,
            after: None,
            heap: BinaryHeap::new(),
            opened: Vec::new(),
            cover: Cover::default(),
            bundles: HashMap::new(),
            damaged: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn key(&self, id: MessageId) -> u128 {
        let id = u128::from_be_bytes(*id.as_bytes());
        if self.query.ascending { !id } else { id }
    }

    /// The largest key a record of this block can have.
    fn edge(&self, block: &BlockRow) -> u128 {
        if self.query.ascending { !(u128::from(block.meta.id_from) << 80) } else { ((u128::from(block.meta.id_to) + 1) << 80) - 1 }
    }

    /// Runs until the page is full, the time is over, or there is nothing left.
    pub(super) fn run(mut self, skip: u64, start: Cursor) -> Result<Scanned> {
        let snapshot = self.reader.index.sql.unchecked_transaction().map_err(failed("reading the history"))?;
        let budget = self.query.budget.unwrap_or(std::time::Duration::from_millis(if self.query.text.is_some() { 150 } else { 2_000 }));
        let began = Instant::now();
        let mut out = Scanned { messages: Vec::new(), matched: 0, cursor: None, scanned: start.scanned, damaged: Vec::new() };
        let mut last = None;
        let (mut looked, mut opened) = (0u64, 0u64);
        let cursor = |bound, scanned| Some(Cursor { bound, scanned, page: start.page + 1 });
        loop {
            // All blocks that may hold a larger key than the largest known come first.
            while let Some(block) = self.peek()? {
                let edge = self.edge(&block);
                if self.heap.peek().is_some_and(|(key, ..)| *key > edge) {
                    break;
                }
                opened += 1;
                if opened.is_multiple_of(STRIDE) && began.elapsed() >= budget {
                    let at = self.heap.peek().map_or(edge, |(key, ..)| (*key).max(edge));
                    out.cursor = cursor(self.bound.min(at.saturating_add(1)), out.scanned);
                    out.damaged = self.damaged;
                    return Ok(out);
                }
                self.row_at += 1;
                self.open(block)?;
            }
            let Some((key, slot, at)) = self.heap.pop() else { break };
            let candidate = self.take(slot);
            if last.replace(key) == Some(key) {
                continue;
            }
            looked += 1;
            out.scanned += 1;
            let record = self.look(candidate, at as usize)?;
            self.bound = key;
            if let Some(record) = record {
                if out.messages.len() == self.query.limit() {
                    // One more than the page: it is the first of the next.
                    out.scanned -= 1;
                    out.cursor = cursor(key + 1, out.scanned);
                    break;
                }
                out.matched += 1;
                if out.matched > skip {
                    out.messages.push(record);
                }
            }
            if looked.is_multiple_of(STRIDE) && began.elapsed() >= budget {
                out.cursor = cursor(key, out.scanned);
                break;
            }
        }
        out.damaged = self.damaged;
        drop(snapshot);
        Ok(out)
    }

    /// One candidate less of this block; the block itself.
    fn take(&mut self, slot: u32) -> Option<(BlockRow, Arc<Table>, Option<Arc<Varied>>)> {
        let place = &mut self.opened[slot as usize];
        let opened = place.as_mut()?;
        let taken = (opened.block, opened.table.clone(), opened.varied.clone());
        opened.left -= 1;
        if opened.left == 0 {
            *place = None;
        }
        Some(taken)
    }

    /// The next block in the order of the walk.
    fn peek(&mut self) -> Result<Option<BlockRow>> {
        if self.row_at == self.rows.len() {
            if self.row_at > 0 && self.row_at < ROWS {
                return Ok(None);
            }
            self.fetch().map_err(failed("reading the history"))?;
        }
        Ok(self.rows.get(self.row_at).copied())
    }

    fn fetch(&mut self) -> rusqlite::Result<()> {
        // Before and behind the bound nothing has to be read; a block reaches a day at most.
        let bound_ms = if self.query.ascending { (!self.bound >> 80) as u64 } else { (self.bound >> 80) as u64 };
        let (from, to) = if self.query.ascending { (self.from.max(bound_ms), self.to) } else { (self.from, self.to.min(bound_ms + 1)) };
        let day = SPANS[SPANS.len() - 1];
        let (sql, start) = if self.query.ascending {
            (
                format!(
                    "SELECT {BLOCK} FROM block INDEXED BY block_asc WHERE (id_from, id) > (?1, ?2) AND id_to >= ?3 AND id_from < ?4 ORDER BY id_from, id LIMIT ?5"
                ),
                (from.saturating_sub(day), -1),
            )
        } else {
            (
                format!(
                    "SELECT {BLOCK} FROM block INDEXED BY block_end WHERE (id_to, id) < (?1, ?2) AND id_to >= ?3 AND id_from < ?4 ORDER BY id_to DESC, id DESC LIMIT ?5"
                ),
                (to.saturating_add(day), i64::MAX),
            )
        };
        let (after, id) = self.after.unwrap_or(start);
        let mut statement = self.reader.index.sql.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after as i64, id, from as i64, to as i64, ROWS as i64], block_row)?;
        self.rows = rows.collect::<rusqlite::Result<_>>()?;
        self.row_at = 0;
        if let Some(last) = self.rows.last() {
            self.after = Some((if self.query.ascending { last.meta.id_from } else { last.meta.id_to }, last.id));
        }
        Ok(())
    }

    /// Puts a block's candidates on the heap.
    fn open(&mut self, block: BlockRow) -> Result<()> {
        match self.candidates(&block) {
            Ok(()) | Err(Fault::Gone) => Ok(()),
            Err(fault) => {
                self.damage(fault, &block);
                Ok(())
            }
        }
    }

    fn damage(&mut self, fault: Fault, block: &BlockRow) {
        let gap = Gap {
            from: block.meta.id_from,
            to: block.meta.id_to,
            count: u64::from(block.meta.records),
            reason: if fault == Fault::Newer { "newer" } else { "damaged" }.into(),
        };
        if !self.damaged.contains(&gap) {
            self.damaged.push(gap);
        }
    }

    fn candidates(&mut self, block: &BlockRow) -> Read<()> {
        let (index, blocks) = (&self.reader.index, &self.reader.blocks);
        let asks = !self.all.is_empty() || !self.any.is_empty();
        if let Some(bundle) = block.bundle.filter(|bundle| *bundle > 0 && asks) {
            let may =
                self.bundles.entry(bundle).or_insert_with(|| blocks.bundle_may_hold(index, bundle, &self.all, &self.any, &mut self.buffer));
            if !*may {
                return Ok(());
            }
        }
        if !blocks.may_hold(index, block, &self.all, &self.any, &mut self.buffer)? {
            return Ok(());
        }
        let table = blocks.table(index, block)?;
        let needs_varied = self.query.keyed() || self.query.header.is_some() || self.query.text.is_some();
        let varied = if needs_varied { Some(blocks.varied(index, block, &table)?) } else { None };
        let slot = self.opened.iter().position(Option::is_none).unwrap_or(self.opened.len());
        let mut left = 0;
        for at in 0..table.len() {
            let id = table.id(at);
            let (ms, key) = (id.millis(), self.key(id));
            if key >= self.bound || ms < self.from || ms >= self.to {
                continue;
            }
            let row = table.row(at, varied.as_deref(), None);
            if self.query.leads(&row) && self.leads_by_bytes(&row) {
                self.heap.push((key, slot as u32, at as u32));
                left += 1;
            }
        }
        if left > 0 {
            let opened = Some(Opened { block: *block, table, varied, left });
            if slot == self.opened.len() { self.opened.push(opened) } else { self.opened[slot] = opened }
        }
        Ok(())
    }

    fn leads_by_bytes(&self, row: &Row<'_>) -> bool {
        let key = || self.query.key.as_ref().is_none_or(|want| row.key == Some(want.as_bytes()));
        if self.query.keyed() && row.kind != super::row::Kind::Replayed && !key() {
            return false;
        }
        let Some(header) = &self.query.header else { return true };
        // Close enough: the message itself is asked again.
        matches!(row.headers, HeadersOf::Stored(bytes) if header.split('=').all(|part| text::contains(bytes, part)))
    }

    /// The message of a candidate, if it is one that was asked for.
    fn look(&mut self, candidate: Option<(BlockRow, Arc<Table>, Option<Arc<Varied>>)>, at: usize) -> Result<Option<Record>> {
        let Some((block, table, varied)) = candidate else { return Ok(None) };
        if let Some(needle) = &self.query.text {
            match self.has_text(&block, &table, varied.as_deref(), at, needle) {
                Ok(true) => {}
                Ok(false) | Err(Fault::Gone) => return Ok(None),
                Err(fault) => {
                    self.damage(fault, &block);
                    return Ok(None);
                }
            }
        }
        let id = table.id(at);
        let blocks = self.cover.blocks(self.reader, id.millis(), self.query.ascending)?;
        match assemble(self.reader, id, blocks, &mut self.buffer) {
            Ok(record) => Ok(record.filter(|record| self.query.matches(record))),
            Err((fault, block)) => {
                self.damage(fault, &block);
                Ok(None)
            }
        }
    }

    fn has_text(&self, block: &BlockRow, table: &Table, varied: Option<&Varied>, at: usize, needle: &str) -> Read<bool> {
        let row = table.row(at, varied, None);
        let headers = match row.headers {
            HeadersOf::Stored(bytes) => bytes,
            HeadersOf::Live(_) => &[],
        };
        if row.key.is_some_and(|key| text::contains(key, needle)) || text::contains(headers, needle) {
            return Ok(true);
        }
        let Some((run, range)) = table.payload(at) else { return Ok(false) };
        let bytes = self.reader.blocks.payloads(&self.reader.index, block, table, run)?;
        Ok(text::contains(bytes.get(range).unwrap_or_default(), needle))
    }
}

/// The blocks around the ids that are looked up one after another, asked from the index once for many.
#[derive(Default)]
struct Cover {
    from: Millis,
    to: Millis,
    width: Millis,
    blocks: Vec<BlockRow>,
}

impl Cover {
    fn blocks(&mut self, reader: &Reader, ms: Millis, ascending: bool) -> Result<impl Iterator<Item = &BlockRow>> {
        if self.to == 0 || ms < self.from || ms > self.to {
            // Few blocks were found: look at more time at once, and the other way round.
            self.width = if self.blocks.len() < 200 { (self.width * 2).clamp(8, 60_000) } else { self.width / 2 };
            (self.from, self.to) = if ascending { (ms, ms + self.width) } else { (ms.saturating_sub(self.width), ms) };
            self.blocks = reader.index.covering(self.from, self.to).map_err(failed("reading the history"))?;
        }
        Ok(self.blocks.iter().filter(move |block| block.meta.id_from <= ms && ms <= block.meta.id_to))
    }
}
