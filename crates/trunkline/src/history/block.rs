//! The shape of a block: a header, then sections that are read apart.
//!
//! ```text
//! magic "TLHB" | version u16 | sections u16 | records u32 | first id's ms u64 | level u8, 3 zeros
//!   | per section { kind u8, packed u8, zero u16, raw u32, stored u32, crc32 u32 } | crc32 of all before
//! FILTER   binary fuse filter over the terms
//! IDS      u32 ms after the first id, per record; then the other 10 bytes of each id; sorted
//! FIXED    dictionary, places, and one column per field
//! VARIED   keys, headers, idempotency keys, ids of other messages
//! PAYLOAD  runs of whole payloads of about 64 KiB, as many as there are
//! ```
//! All numbers are little-endian. A lookup by id reads up to IDS, a search by terms the FILTER, and only a true hit more.

use std::cell::RefCell;

use zstd::bulk::Decompressor;

use crate::message::MessageId;

use super::wire::Input;

thread_local! {
    // Setting one up takes longer than most sections do.
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// What every block starts with.
pub(super) const MAGIC: [u8; 4] = *b"TLHB";
/// The newest version this code writes, for blocks that hold sessions; it reads no newer one.
pub(super) const VERSION: u16 = 2;
/// The version of all other blocks.
const PLAIN: u16 = 1;
/// Bytes of the header before its sections.
pub(super) const FIXED_HEAD: usize = 24;
/// Bytes of the header per section.
pub(super) const SECTION_HEAD: usize = 16;
/// A run of payloads is closed when it has this many bytes.
pub(super) const PAYLOAD_RUN: usize = 48 * 1024;

/// The kinds of sections, in their order.
pub(super) const FILTER: u8 = 1;
pub(super) const IDS: u8 = 2;
pub(super) const FIXED: u8 = 3;
pub(super) const VARIED: u8 = 4;
pub(super) const PAYLOAD: u8 = 5;

/// Where the sections of the metadata are in [`Head::sections`]; payload runs follow.
pub(super) const AT_FILTER: usize = 0;
pub(super) const AT_IDS: usize = 1;
pub(super) const AT_FIXED: usize = 2;
pub(super) const AT_VARIED: usize = 3;
pub(super) const AT_PAYLOAD: usize = 4;

/// One section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: u8,
    /// Whether it is compressed.
    pub(super) packed: bool,
    pub(super) raw: u32,
    pub(super) stored: u32,
    pub(super) crc: u32,
    /// Bytes from the start of the block.
    pub(super) offset: u64,
}

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) records: u32,
    pub(super) base: u64,
    pub(super) sections: Vec<Section>,
}

/// What can be wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes are not what was written.
    Damaged,
    /// A newer Trunkline wrote it.
    Newer,
    /// Its file is gone: its time was over.
    Gone,
}

/// The result of reading.
pub(super) type Read<T> = Result<T, Fault>;

impl Head {
    /// Reads a header off the front of a block.
    pub(super) fn parse(bytes: &[u8]) -> Read<Head> {
        let mut input = Input::new(bytes);
        if input.array() != Some(MAGIC) {
            return Err(Fault::Damaged);
        }
        let version = input.array().map(u16::from_le_bytes).ok_or(Fault::Damaged)?;
        if version > VERSION {
            return Err(Fault::Newer);
        }
        Self::parse_sections(&mut input, bytes).ok_or(Fault::Damaged)
    }

    fn parse_sections(input: &mut Input<'_>, bytes: &[u8]) -> Option<Head> {
        let count = usize::from(u16::from_le_bytes(input.array()?));
        let len = FIXED_HEAD + count * SECTION_HEAD;
        let crc = u32::from_le_bytes(bytes.get(len..len + 4)?.try_into().ok()?);
        if crc != crc32fast::hash(&bytes[..len]) {
            return None;
        }
        let (records, base) = (input.u32()?, input.u64()?);
        input.u32()?;
        let mut offset = len as u64 + 4;
        let mut sections = Vec::with_capacity(count);
        for at in 0..count {
            let [kind, packed, _, _] = input.array()?;
            let section = Section { kind, packed: packed == 1, raw: input.u32()?, stored: input.u32()?, crc: input.u32()?, offset };
            offset += u64::from(section.stored);
            if kind != [FILTER, IDS, FIXED, VARIED, PAYLOAD][at.min(AT_PAYLOAD)] {
                return None;
            }
            sections.push(section);
        }
        (count >= AT_PAYLOAD && sections[AT_IDS].stored as usize == records as usize * 14).then_some(Head { records, base, sections })
    }

    /// The bytes of the whole header with its check sum.
    pub(super) fn encode(&self, level: u8, is_newer: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&if is_newer { VERSION } else { PLAIN }.to_le_bytes());
        out.extend_from_slice(&(self.sections.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&[level, 0, 0, 0]);
        for section in &self.sections {
            out.extend_from_slice(&[section.kind, u8::from(section.packed), 0, 0]);
            out.extend_from_slice(&section.raw.to_le_bytes());
            out.extend_from_slice(&section.stored.to_le_bytes());
            out.extend_from_slice(&section.crc.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

/// The bytes of a section out of a run that starts with its block, checked.
pub(super) fn slice<'a>(bytes: &'a [u8], section: &Section) -> Read<&'a [u8]> {
    let start = section.offset as usize;
    let part = bytes.get(start..start + section.stored as usize).ok_or(Fault::Damaged)?;
    check(part, section)?;
    Ok(part)
}

/// Checks the stored bytes of a section.
pub(super) fn check(stored: &[u8], section: &Section) -> Read<()> {
    if stored.len() == section.stored as usize && crc32fast::hash(stored) == section.crc { Ok(()) } else { Err(Fault::Damaged) }
}

/// The section as it was before it was compressed.
pub(super) fn unpack(stored: &[u8], section: &Section) -> Read<Vec<u8>> {
    check(stored, section)?;
    if !section.packed {
        return Ok(stored.to_vec());
    }
    let raw = UNPACKER.with_borrow_mut(|unpacker| {
        if unpacker.is_none() {
            *unpacker = Decompressor::new().ok();
        }
        unpacker.as_mut().and_then(|unpacker| unpacker.decompress(stored, section.raw as usize).ok())
    });
    let raw = raw.ok_or(Fault::Damaged)?;
    if raw.len() == section.raw as usize { Ok(raw) } else { Err(Fault::Damaged) }
}

/// The id of record `at`.
pub(super) fn id_at(ids: &[u8], records: usize, base: u64, at: usize) -> Option<MessageId> {
    let ms = base + u64::from(ms_at(ids, at));
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&ids[records * 4 + at * 10..][..10]);
    MessageId::from_bytes(&bytes)
}

fn ms_at(ids: &[u8], at: usize) -> u32 {
    let at = at * 4;
    u32::from_le_bytes([ids[at], ids[at + 1], ids[at + 2], ids[at + 3]])
}

/// The records of this id.
pub(super) fn find(ids: &[u8], records: usize, base: u64, id: MessageId) -> std::ops::Range<usize> {
    let Some(want) = id.millis().checked_sub(base).and_then(|ms| u32::try_from(ms).ok()) else { return 0..0 };
    let (mut low, mut high) = (0, records);
    while low < high {
        let middle = low.midpoint(high);
        if ms_at(ids, middle) < want { low = middle + 1 } else { high = middle }
    }
    let rest = &id.as_bytes()[6..];
    let is = |at: usize| &ids[records * 4 + at * 10..][..10] == rest;
    while low < records && ms_at(ids, low) == want && !is(low) {
        low += 1;
    }
    let mut end = low;
    while end < records && ms_at(ids, end) == want && is(end) {
        end += 1;
    }
    low..end
}
