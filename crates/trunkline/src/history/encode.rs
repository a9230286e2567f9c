//! Writing a block: records in, bytes out.

use std::collections::HashMap;

use zstd::bulk::Compressor;

use crate::error::{Error, Result};
use crate::message::{Headers, Millis};

use super::block::{FILTER, FIXED, FIXED_HEAD, Head, IDS, PAYLOAD, PAYLOAD_RUN, SECTION_HEAD, Section, VARIED};
use super::levels::level_of;
use super::row::{HeadersOf, KeyOf, Row};
use super::terms::{self, Term};
use super::wire::{put, put_bytes, put_signed};

/// The columns of FIXED, in their order.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(super) enum Column {
    Kind,
    Flags,
    Place,
    Who,
    Group,
    At,
    Started,
    First,
    Run,
    Attempts,
    Shard,
    Offset,
    Size,
    Session,
    Text,
    KeyId,
    KeyLen,
    HeadersLen,
    IdempotencyLen,
}

/// How many columns there are.
pub(super) const COLUMNS: usize = 19;

/// What a record has.
pub(super) mod flag {
    pub(crate) const KEY: u64 = 1;
    pub(crate) const SAME_KEY: u64 = 1 << 1;
    pub(crate) const HEADERS: u64 = 1 << 2;
    pub(crate) const SESSION: u64 = 1 << 3;
    pub(crate) const IDEMPOTENCY: u64 = 1 << 4;
    pub(crate) const OTHER: u64 = 1 << 5;
    pub(crate) const POSITION: u64 = 1 << 6;
    pub(crate) const PAYLOAD: u64 = 1 << 7;
    pub(crate) const TEXT: u64 = 1 << 8;
}

/// What the index has to know of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) level: u8,
    pub(super) id_from: Millis,
    pub(super) id_to: Millis,
    pub(super) records: u32,
    /// Of them, produces.
    pub(super) messages: u32,
    /// Bytes up to the end of FILTER.
    pub(super) head: u32,
    /// Bytes up to the end of IDS.
    pub(super) top: u32,
}

/// Texts of a block, each once. The last ones seen are found by their address, without hashing.
#[derive(Default)]
struct Dictionary {
    bytes: Vec<u8>,
    spans: Vec<(u32, u32)>,
    index: HashMap<u64, u32>,
    recent: Vec<(usize, u8, u32)>,
}

impl Dictionary {
    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
        self.index.clear();
        self.recent.clear();
        self.recent.resize(64, (0, 0, 0));
    }

    fn is(&self, at: u32, text: &str) -> bool {
        let (start, len) = self.spans[at as usize];
        &self.bytes[start as usize..(start + len) as usize] == text.as_bytes()
    }

    #[inline]
    fn intern(&mut self, kind: Term, text: &str, terms: &mut Vec<u64>) -> u32 {
        let address = text.as_ptr() as usize;
        let slot = ((address >> 3) ^ (address >> 9) ^ kind as usize) & 63;
        let (seen, seen_kind, at) = self.recent[slot];
        if seen == address && seen_kind == kind as u8 && !self.spans.is_empty() && self.is(at, text) {
            return at;
        }
        let hash = terms::term(kind, text.as_bytes());
        let found = self.index.get(&hash).copied().filter(|at| self.is(*at, text));
        let at = found.unwrap_or_else(|| {
            let at = self.spans.len() as u32;
            self.spans.push((self.bytes.len() as u32, text.len() as u32));
            self.bytes.extend_from_slice(text.as_bytes());
            self.index.insert(hash, at);
            if kind != Term::Plain {
                terms.push(hash);
            }
            at
        });
        self.recent[slot] = (address, kind as u8, at);
        at
    }
}

/// Makes blocks, one after another, with the same buffers.
pub(super) struct Encoder {
    columns: [Vec<u8>; COLUMNS],
    varied: [Vec<u8>; 4],
    dictionary: Dictionary,
    places: Vec<[u32; 4]>,
    /// The address and the number of the place of the last record: they come in long runs of one topic.
    last_place: (usize, u32),
    terms: Vec<u64>,
    ids: Vec<u128>,
    kinds: u16,
    messages: u32,
    /// It says something that the first version of blocks has no words for.
    is_newer: bool,
    offsets: [u64; 64],
    last_key: (u128, std::ops::Range<usize>),
    run: Vec<u8>,
    runs: Vec<u8>,
    run_sections: Vec<Section>,
    scratch: Vec<u8>,
    compressor: Compressor<'static>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("records", &self.ids.len()).finish_non_exhaustive()
    }
}

impl Encoder {
    pub(super) fn new(level: i32) -> Result<Self> {
        let mut encoder = Encoder {
            columns: Default::default(),
            varied: Default::default(),
            dictionary: Dictionary::default(),
            places: Vec::new(),
            last_place: (0, 0),
            terms: Vec::new(),
            ids: Vec::new(),
            kinds: 0,
            messages: 0,
            is_newer: false,
            offsets: [0; 64],
            last_key: (0, 0..0),
            run: Vec::new(),
            runs: Vec::new(),
            run_sections: Vec::new(),
            scratch: Vec::new(),
            compressor: Compressor::new(level).map_err(|e| Error::store(format!("zstd cannot be set up: {e}")))?,
        };
        encoder.clear();
        Ok(encoder)
    }

    /// How hard to compress from now on.
    pub(super) fn set_effort(&mut self, level: i32) {
        let _ = self.compressor.set_compression_level(level);
    }

    fn clear(&mut self) {
        self.columns.iter_mut().for_each(Vec::clear);
        self.varied.iter_mut().for_each(Vec::clear);
        self.dictionary.clear();
        self.places.clear();
        self.last_place = (0, 0);
        self.terms.clear();
        self.ids.clear();
        (self.kinds, self.messages, self.is_newer) = (0, 0, false);
        self.offsets = [0; 64];
        self.last_key = (0, 0..0);
        self.run.clear();
        self.runs.clear();
        self.run_sections.clear();
    }

    #[inline]
    fn put(&mut self, column: Column, value: u64) {
        put(&mut self.columns[column as usize], value);
    }

    #[inline]
    fn put_signed(&mut self, column: Column, value: i64) {
        put_signed(&mut self.columns[column as usize], value);
    }

    /// Takes the next record; they come in the order of their ids.
    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<()> {
        let id = u128::from_be_bytes(*row.id.as_bytes());
        let id_ms = row.id.millis() as i64;
        self.kinds |= 1 << row.kind as u16;
        self.columns[Column::Kind as usize].push(row.kind as u8);
        let place = self.place(row);
        self.put(Column::Place, u64::from(place));
        let mut flags = self.key(id, row.key);
        let mut key_id = 0;
        self.ids.push(id);
        self.put_signed(Column::At, row.at as i64 - id_ms);
        if row.kind.is_step() {
            let who = self.dictionary.intern(Term::Consumer, row.who, &mut self.terms);
            let group = self.dictionary.intern(Term::Group, row.group, &mut self.terms);
            self.put(Column::Who, u64::from(who));
            self.put(Column::Group, u64::from(group));
            self.put_signed(Column::Started, row.started_at as i64 - row.at as i64);
            self.put(Column::First, row.first_us);
            self.put(Column::Run, row.run_us);
            self.put(Column::Attempts, u64::from(row.attempts));
            flags |= self.session(row.session);
            self.is_newer |= row.session.is_some();
        } else if row.kind.is_produce() {
            self.messages += 1;
            let who = self.dictionary.intern(Term::Producer, row.who, &mut self.terms);
            self.put(Column::Who, u64::from(who));
            self.put(Column::First, row.first_us);
            self.put(Column::Size, row.size);
            flags |= self.session(row.session) | self.idempotency(row.idempotency_key);
            flags |= self.content(row, &mut key_id)?;
        }
        if let Some(position) = row.position {
            flags |= flag::POSITION;
            self.put(Column::Shard, u64::from(position.shard));
            let last = std::mem::replace(&mut self.offsets[position.shard as usize & 63], position.offset);
            self.put_signed(Column::Offset, position.offset.wrapping_sub(last) as i64);
        }
        if let Some(other) = row.other {
            flags |= flag::OTHER;
            self.varied[3].extend_from_slice(other.as_bytes());
        }
        if row.text.is_some() || !row.code.is_empty() {
            flags |= flag::TEXT;
            let code = self.dictionary.intern(Term::Plain, row.code, &mut self.terms);
            let text = self.dictionary.intern(Term::Plain, row.text.unwrap_or_default(), &mut self.terms);
            self.put(Column::Text, u64::from(code));
            self.put(Column::Text, u64::from(text));
        }
        self.put(Column::Flags, flags);
        // The key it is encrypted with: its place among the texts, from 1.
        self.put(Column::KeyId, key_id);
        Ok(())
    }

    fn place(&mut self, row: &Row<'_>) -> u32 {
        let address = row.place.filed;
        if address != 0 && address == self.last_place.0 {
            return self.last_place.1;
        }
        let at = self.find_place(row);
        self.last_place = (address, at);
        at
    }

    fn find_place(&mut self, row: &Row<'_>) -> u32 {
        let place = row.place;
        let names =
            [place.product, place.env, place.event, place.provider].map(|name| self.dictionary.intern(Term::Plain, name, &mut self.terms));
        if let Some(at) = self.places.iter().rposition(|known| *known == names) {
            return at as u32;
        }
        self.places.push(names);
        let broker = place.event.split(':').next().unwrap_or_default();
        self.terms.push(terms::event_term(place.product, place.env, place.event));
        self.terms.push(terms::broker_term(place.product, place.env, broker));
        self.places.len() as u32 - 1
    }

    fn key(&mut self, id: u128, key: Option<&[u8]>) -> u64 {
        let Some(key) = key else { return 0 };
        let (last_id, last) = &self.last_key;
        if *last_id == id && self.varied[0][last.clone()] == *key {
            return flag::KEY | flag::SAME_KEY;
        }
        self.terms.push(terms::term(Term::Key, key));
        let start = self.varied[0].len();
        self.varied[0].extend_from_slice(key);
        self.last_key = (id, start..self.varied[0].len());
        self.put(Column::KeyLen, key.len() as u64);
        flag::KEY
    }

    /// Headers and payload, as they are or encrypted: then nothing can be asked of the headers either.
    fn content(&mut self, row: &Row<'_>, key_id: &mut u64) -> Result<u64> {
        let subject = match row.key_of {
            KeyOf::Plain => return Ok(self.headers(row.headers) | self.payload(row.payload)?),
            KeyOf::Live(key) => &**key.id(),
            KeyOf::Stored(subject) => subject,
        };
        *key_id = u64::from(self.dictionary.intern(Term::Plain, subject, &mut self.terms)) + 1;
        self.is_newer = true;
        match (row.key_of, row.headers) {
            (KeyOf::Live(key), headers) => {
                let mut plain = Vec::new();
                match headers {
                    HeadersOf::Live(headers) => headers.encode(&mut plain),
                    HeadersOf::Stored(bytes) => plain.extend_from_slice(bytes),
                }
                let (headers, payload) = key.seal_parts(row.id.as_bytes(), &plain, row.payload)?;
                Ok(self.put_headers(&headers) | self.payload(payload.as_deref())?)
            }
            (_, HeadersOf::Stored(bytes)) => Ok(self.put_headers(bytes) | self.payload(row.payload)?),
            (_, HeadersOf::Live(_)) => self.payload(row.payload),
        }
    }

    fn put_headers(&mut self, bytes: &[u8]) -> u64 {
        self.varied[1].extend_from_slice(bytes);
        self.put(Column::HeadersLen, bytes.len() as u64);
        flag::HEADERS
    }

    fn headers(&mut self, headers: HeadersOf<'_>) -> u64 {
        let start = self.varied[1].len();
        match headers {
            HeadersOf::Live(headers) if headers.is_empty() => return 0,
            HeadersOf::Stored([]) => return 0,
            HeadersOf::Live(headers) => {
                headers.encode(&mut self.varied[1]);
                self.terms.extend(headers.iter().map(|(name, value)| terms::header_term(name, value)));
            }
            HeadersOf::Stored(bytes) => {
                self.varied[1].extend_from_slice(bytes);
                let headers = Headers::decode(&bytes::Bytes::copy_from_slice(bytes)).unwrap_or_default();
                self.terms.extend(headers.iter().map(|(name, value)| terms::header_term(name, value)));
            }
        }
        let len = self.varied[1].len() - start;
        self.put(Column::HeadersLen, len as u64);
        flag::HEADERS
    }

    fn session(&mut self, session: Option<[&str; 3]>) -> u64 {
        let Some([tag, id, identifier]) = session else { return 0 };
        for (kind, text) in [(Term::Plain, tag), (Term::Session, id), (Term::Identifier, identifier)] {
            let at = self.dictionary.intern(kind, text, &mut self.terms);
            self.put(Column::Session, u64::from(at));
        }
        flag::SESSION
    }

    fn idempotency(&mut self, key: Option<&str>) -> u64 {
        let Some(key) = key else { return 0 };
        self.terms.push(terms::term(Term::Idempotency, key.as_bytes()));
        self.varied[2].extend_from_slice(key.as_bytes());
        self.put(Column::IdempotencyLen, key.len() as u64);
        flag::IDEMPOTENCY
    }

    fn payload(&mut self, payload: Option<&[u8]>) -> Result<u64> {
        let Some(payload) = payload else { return Ok(0) };
        if !self.run.is_empty() && self.run.len() + payload.len() > PAYLOAD_RUN {
            self.close_run()?;
        }
        self.run.extend_from_slice(payload);
        Ok(flag::PAYLOAD)
    }

    fn close_run(&mut self) -> Result<()> {
        let section = pack(&mut self.compressor, PAYLOAD, &self.run, &mut self.runs)?;
        self.run_sections.push(section);
        self.run.clear();
        Ok(())
    }

    /// The terms of all records pushed since the last block, which are forgotten.
    pub(super) fn take_terms(&mut self) -> Vec<u64> {
        self.kind_terms();
        let terms = std::mem::take(&mut self.terms);
        self.clear();
        terms
    }

    fn kind_terms(&mut self) {
        self.terms.extend((0..9u8).filter(|kind| self.kinds & (1 << kind) != 0).map(|kind| terms::term(Term::Kind, &[kind])));
    }

    /// Writes the block of all records pushed since the last one, and begins anew.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> Result<Option<Meta>> {
        let written = self.write(out);
        self.clear();
        written
    }

    fn write(&mut self, out: &mut Vec<u8>) -> Result<Option<Meta>> {
        let (Some(first), Some(last)) = (self.ids.first(), self.ids.last()) else { return Ok(None) };
        let (base, to) = ((first >> 80) as u64, (last >> 80) as u64);
        let level = level_of(base, to);
        if !self.run.is_empty() {
            self.close_run()?;
        }
        self.kind_terms();
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        let start = body.len();
        terms::build(&mut self.terms, &mut body);
        let mut sections = vec![plain(FILTER, &body[start..])];
        let start = body.len();
        for id in &self.ids {
            body.extend_from_slice(&(((id >> 80) as u64 - base) as u32).to_le_bytes());
        }
        for id in &self.ids {
            body.extend_from_slice(&id.to_be_bytes()[6..]);
        }
        sections.push(plain(IDS, &body[start..]));
        let mut raw = Vec::with_capacity(self.columns.iter().map(|column| column.len() + 4).sum::<usize>() + self.dictionary.bytes.len());
        self.fixed(&mut raw);
        sections.push(pack(&mut self.compressor, FIXED, &raw, &mut body)?);
        raw.clear();
        self.varied.iter().for_each(|column| put(&mut raw, column.len() as u64));
        self.varied.iter().for_each(|column| raw.extend_from_slice(column));
        sections.push(pack(&mut self.compressor, VARIED, &raw, &mut body)?);
        sections.append(&mut self.run_sections);
        let header = FIXED_HEAD + sections.len() * SECTION_HEAD + 4;
        let head = header as u32 + sections[0].stored;
        let meta = Meta {
            level,
            id_from: base,
            id_to: to,
            records: self.ids.len() as u32,
            messages: self.messages,
            head,
            top: head + sections[1].stored,
        };
        out.reserve_exact(header + body.len() + self.runs.len());
        Head { records: meta.records, base, sections }.encode(level, self.is_newer, out);
        out.extend_from_slice(&body);
        out.extend_from_slice(&self.runs);
        self.scratch = body;
        Ok(Some(meta))
    }

    fn fixed(&self, raw: &mut Vec<u8>) {
        put(raw, self.dictionary.spans.len() as u64);
        for (start, len) in &self.dictionary.spans {
            put_bytes(raw, &self.dictionary.bytes[*start as usize..(*start + *len) as usize]);
        }
        put(raw, self.places.len() as u64);
        self.places.iter().flatten().for_each(|at| put(raw, u64::from(*at)));
        self.columns.iter().for_each(|column| put(raw, column.len() as u64));
        self.columns.iter().for_each(|column| raw.extend_from_slice(column));
    }
}

fn plain(kind: u8, bytes: &[u8]) -> Section {
    let len = bytes.len() as u32;
    Section { kind, packed: false, raw: len, stored: len, crc: crc32fast::hash(bytes), offset: 0 }
}

/// Appends `raw`, compressed if that makes it smaller.
fn pack(compressor: &mut Compressor<'static>, kind: u8, raw: &[u8], out: &mut Vec<u8>) -> Result<Section> {
    let start = out.len();
    out.resize(start + zstd::zstd_safe::compress_bound(raw.len()), 0);
    let packed =
        compressor.compress_to_buffer(raw, &mut out[start..]).map_err(|e| Error::store(format!("a block cannot be compressed: {e}")))?;
    let is_smaller = packed < raw.len();
    if is_smaller {
        out.truncate(start + packed);
    } else {
        out.truncate(start);
        out.extend_from_slice(raw);
    }
    Ok(Section { raw: raw.len() as u32, packed: is_smaller, ..plain(kind, &out[start..]) })
}
