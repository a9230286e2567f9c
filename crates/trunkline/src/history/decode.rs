//! Reading a block: the metadata of its records at once, the rest where it is asked for.

use crate::delivery::Position;
use crate::message::MessageId;

use super::block::{AT_FIXED, AT_IDS, Fault, Head, Read, id_at};
use super::encode::{COLUMNS, Column, flag};
use super::row::{HeadersOf, KeyOf, Kind, Place, Row};
use super::wire::Input;
use crate::sessions::TAG;

type Span = (u32, u32);

/// The fixed part of one record.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    kind: u8,
    flags: u16,
    place: u32,
    who: u32,
    group: u32,
    at: u64,
    started: u64,
    first: u64,
    run: u64,
    attempts: u32,
    shard: u32,
    offset: u64,
    size: u64,
    session: [u32; 3],
    /// The place of the subject's id among the texts, from 1; 0: not encrypted.
    key_id: u32,
    code: u32,
    text: u32,
    key: Span,
    headers: Span,
    idempotency: Span,
    other: u32,
    payload: u64,
}

impl Cell {
    /// Bytes of the payload as it lies there.
    fn stored_size(&self) -> u64 {
        self.size + if self.key_id == 0 { 0 } else { TAG as u64 }
    }
}

/// The metadata of a block, decompressed.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) head: Head,
    ids: Vec<u8>,
    dictionary: Vec<Box<str>>,
    places: Vec<[u32; 4]>,
    cells: Vec<Cell>,
}

/// Keys, headers, idempotency keys and other ids of a block, decompressed.
#[derive(Debug)]
pub(super) struct Varied {
    bytes: Vec<u8>,
    starts: [usize; 5],
}

impl Varied {
    pub(super) fn new(bytes: Vec<u8>) -> Read<Self> {
        let parse = || {
            let mut input = Input::new(&bytes);
            let mut starts = [0; 5];
            for at in 0..4 {
                starts[at + 1] = starts[at] + input.small()? as usize;
            }
            (input.at() + starts[4] == bytes.len()).then(|| starts.map(|start| start + input.at()))
        };
        let starts = parse().ok_or(Fault::Damaged)?;
        Ok(Varied { bytes, starts })
    }

    fn get(&self, column: usize, (start, len): Span) -> &[u8] {
        self.bytes[self.starts[column]..self.starts[column + 1]].get(start as usize..(start + len) as usize).unwrap_or_default()
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl Table {
    /// The table of a block with these sections.
    pub(super) fn new(head: Head, ids: Vec<u8>, fixed: &[u8]) -> Read<Self> {
        debug_assert_eq!(ids.len(), head.sections[AT_IDS].raw as usize);
        debug_assert_eq!(fixed.len(), head.sections[AT_FIXED].raw as usize);
        let mut table = Table { head, ids, dictionary: Vec::new(), places: Vec::new(), cells: Vec::new() };
        table.parse(fixed).ok_or(Fault::Damaged)?;
        Ok(table)
    }

    fn parse(&mut self, fixed: &[u8]) -> Option<()> {
        let mut input = Input::new(fixed);
        for _ in 0..input.number()? {
            let text = input.text()?;
            self.dictionary.push(text.into());
        }
        let texts = self.dictionary.len() as u32;
        for _ in 0..input.number()? {
            let place = [input.small()?, input.small()?, input.small()?, input.small()?];
            self.places.push(place.iter().all(|at| *at < texts).then_some(place)?);
        }
        let mut lens = [0; COLUMNS];
        for len in &mut lens {
            *len = input.small()? as usize;
        }
        let mut columns = [Input::new(&[]); COLUMNS];
        for (column, len) in columns.iter_mut().zip(lens) {
            *column = Input::new(input.take(len)?);
        }
        let mut cells =
            Cells { columns, offsets: [0; 64], ends: [0; 4], payload: 0, last_key: (0, 0), texts, places: self.places.len() as u32 };
        self.cells.reserve_exact(self.head.records as usize);
        for at in 0..self.head.records as usize {
            let id = id_at(&self.ids, self.head.records as usize, self.head.base, at)?;
            self.cells.push(cells.next(id)?);
        }
        (input.is_empty() && cells.columns.iter().all(Input::is_empty)).then_some(())
    }

    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// Bytes it holds in memory.
    pub(super) fn size(&self) -> usize {
        let texts: usize = self.dictionary.iter().map(|text| text.len() + 32).sum();
        self.ids.len() + self.cells.len() * size_of::<Cell>() + texts + 256
    }

    fn text(&self, at: u32) -> &str {
        &self.dictionary[at as usize]
    }

    pub(super) fn id(&self, at: usize) -> MessageId {
        id_at(&self.ids, self.cells.len(), self.head.base, at).unwrap_or_else(|| MessageId::derived(0, &[]))
    }

    pub(super) fn find(&self, id: MessageId) -> std::ops::Range<usize> {
        super::block::find(&self.ids, self.cells.len(), self.head.base, id)
    }

    /// The run of payloads this record's payload is in, and where: `None` if it was not kept.
    pub(super) fn payload(&self, at: usize) -> Option<(usize, std::ops::Range<usize>)> {
        let cell = &self.cells[at];
        if u64::from(cell.flags) & flag::PAYLOAD == 0 {
            return None;
        }
        let mut start = cell.payload;
        for (run, section) in self.head.sections[super::block::AT_PAYLOAD..].iter().enumerate() {
            let raw = u64::from(section.raw);
            // An empty payload at the very end of a run belongs to it as well as to the next.
            if start + cell.stored_size() <= raw {
                return Some((run, start as usize..(start + cell.stored_size()) as usize));
            }
            start = start.checked_sub(raw)?;
        }
        (cell.stored_size() == 0).then_some((usize::MAX, 0..0))
    }

    /// One record. Without `varied` it has no key, headers, idempotency key and other id.
    pub(super) fn row<'a>(&'a self, at: usize, varied: Option<&'a Varied>, payload: Option<&'a [u8]>) -> Row<'a> {
        let cell = &self.cells[at];
        let flags = u64::from(cell.flags);
        let has = |bit: u64| flags & bit != 0;
        let [product, env, event, provider] = self.places[cell.place as usize].map(|name| self.text(name));
        let kind = Kind::ALL[usize::from(cell.kind)];
        Row {
            id: self.id(at),
            kind,
            place: Place { product, env, event, provider, filed: 0 },
            who: if kind == Kind::Replayed { "" } else { self.text(cell.who) },
            group: if kind.is_step() { self.text(cell.group) } else { "" },
            key: varied.filter(|_| has(flag::KEY)).map(|varied| varied.get(0, cell.key)),
            headers: HeadersOf::Stored(varied.filter(|_| has(flag::HEADERS)).map(|varied| varied.get(1, cell.headers)).unwrap_or_default()),
            payload,
            size: cell.size,
            at: cell.at,
            started_at: cell.started,
            first_us: cell.first,
            run_us: cell.run,
            attempts: cell.attempts,
            position: has(flag::POSITION).then_some(Position { shard: cell.shard, offset: cell.offset }),
            session: has(flag::SESSION).then(|| cell.session.map(|name| self.text(name))),
            key_of: cell.key_id.checked_sub(1).map_or(KeyOf::Plain, |at| KeyOf::Stored(self.text(at))),
            idempotency_key: varied
                .filter(|_| has(flag::IDEMPOTENCY))
                .and_then(|varied| std::str::from_utf8(varied.get(2, cell.idempotency)).ok()),
            other: varied.filter(|_| has(flag::OTHER)).and_then(|varied| MessageId::from_bytes(varied.get(3, (cell.other, 16)))),
            code: if has(flag::TEXT) { self.text(cell.code) } else { "" },
            text: has(flag::TEXT).then(|| self.text(cell.text)).filter(|text| !text.is_empty()),
        }
    }
}

/// Reads the columns side by side.
struct Cells<'a> {
    columns: [Input<'a>; COLUMNS],
    offsets: [u64; 64],
    ends: [u32; 4],
    payload: u64,
    last_key: Span,
    texts: u32,
    places: u32,
}

impl Cells<'_> {
    fn number(&mut self, column: Column) -> Option<u64> {
        self.columns[column as usize].number()
    }

    fn text(&mut self, column: Column) -> Option<u32> {
        self.columns[column as usize].small().filter(|at| *at < self.texts)
    }

    fn span(&mut self, column: Column, varied: usize) -> Option<Span> {
        let len = self.columns[column as usize].small()?;
        let start = self.ends[varied];
        self.ends[varied] = start.checked_add(len)?;
        Some((start, len))
    }

    fn next(&mut self, id: MessageId) -> Option<Cell> {
        let kind = *Kind::ALL.get(usize::from(self.columns[Column::Kind as usize].byte()?))?;
        let flags = self.number(Column::Flags)?;
        let has = |bit: u64| flags & bit != 0;
        let mut cell = Cell { kind: kind as u8, flags: u16::try_from(flags).ok()?, ..Cell::default() };
        cell.place = self.columns[Column::Place as usize].small().filter(|at| *at < self.places)?;
        cell.key_id = self.columns[Column::KeyId as usize].small().filter(|at| *at <= self.texts)?;
        cell.at = id.millis().wrapping_add_signed(self.columns[Column::At as usize].signed()?);
        if has(flag::KEY) {
            if !has(flag::SAME_KEY) {
                self.last_key = self.span(Column::KeyLen, 0)?;
            }
            cell.key = self.last_key;
        }
        if kind.is_step() {
            cell.who = self.text(Column::Who)?;
            cell.group = self.text(Column::Group)?;
            cell.started = cell.at.wrapping_add_signed(self.columns[Column::Started as usize].signed()?);
            cell.first = self.number(Column::First)?;
            cell.run = self.number(Column::Run)?;
            cell.attempts = self.columns[Column::Attempts as usize].small()?;
            self.session(flags, &mut cell)?;
        } else if kind.is_produce() {
            cell.who = self.text(Column::Who)?;
            cell.first = self.number(Column::First)?;
            cell.size = self.number(Column::Size)?;
            self.produce(flags, &mut cell)?;
        }
        if has(flag::POSITION) {
            cell.shard = self.columns[Column::Shard as usize].small()?;
            let last = &mut self.offsets[cell.shard as usize & 63];
            *last = last.wrapping_add_signed(self.columns[Column::Offset as usize].signed()?);
            cell.offset = *last;
        }
        if has(flag::OTHER) {
            cell.other = self.ends[3];
            self.ends[3] += 16;
        }
        if has(flag::TEXT) {
            cell.code = self.text(Column::Text)?;
            cell.text = self.text(Column::Text)?;
        }
        Some(cell)
    }

    fn produce(&mut self, flags: u64, cell: &mut Cell) -> Option<()> {
        if flags & flag::HEADERS != 0 {
            cell.headers = self.span(Column::HeadersLen, 1)?;
        }
        self.session(flags, cell)?;
        if flags & flag::IDEMPOTENCY != 0 {
            cell.idempotency = self.span(Column::IdempotencyLen, 2)?;
        }
        if flags & flag::PAYLOAD != 0 {
            cell.payload = self.payload;
            self.payload = self.payload.checked_add(cell.stored_size())?;
        }
        Some(())
    }

    fn session(&mut self, flags: u64, cell: &mut Cell) -> Option<()> {
        if flags & flag::SESSION != 0 {
            cell.session = [self.text(Column::Session)?, self.text(Column::Session)?, self.text(Column::Session)?];
        }
        Some(())
    }
}
