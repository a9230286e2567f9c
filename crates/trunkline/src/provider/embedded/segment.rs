//! The bytes of a segment: its header, its batches, their extents and frames. All numbers are little-endian.
//!
//! ```text
//! segment  "TLKSEGMT" version:u32 header_len:u32 shards:u32 0:u32 start:u64 previous_end:u64 at:u64
//!          ordinal:u64 × shards  crc:u32 0:u32   batches…
//! batch    magic:u32 crc:u32 len:u32 extents:u32 start:u64 at:u64 count:u32 0:u32  extents…  frames…
//! extent   shard:u32 count:u32 base:u64 offset:u32 len:u32 crc:u32 0:u32
//! frame    len:u32 flags:u32 key_id:u32 [id:16] [key_len:u32 key] [headers_len:u32 headers] payload
//! ```
//!
//! `start` is the place in the whole log, so bytes of another place never pass for a batch. The CRC of a batch covers
//! its header and extents, the CRC of an extent its frames: who reads one shard checks only that. `key_id` is 0.

use std::path::Path;

use bytes::Bytes;

use super::error;
use crate::error::Result;
use crate::message::{Headers, MessageId, Millis};

/// The version of all files of a log.
pub(super) const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"TLKSEGMT";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"TLB1");

/// Bytes of a batch before its extents.
pub(super) const BATCH: usize = 40;
/// Bytes of an extent.
pub(super) const EXTENT: usize = 32;
/// Bytes of a frame before its parts.
pub(super) const FRAME: usize = 12;

const HAS_ID: u32 = 1;
const HAS_KEY: u32 = 2;
const HAS_HEADERS: u32 = 4;

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// A length that was bounded before it came here.
pub(super) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The name of the file of the segment that starts there.
pub(super) fn file_name(start: u64) -> String {
    format!("{start:020}.log")
}

/// The start in the name of a segment's file.
pub(super) fn start_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Where it starts in the log.
    pub(super) start: u64,
    /// Where the data of the segment before it ends; what lies there beyond was cut off.
    pub(super) previous_end: u64,
    /// When it was begun.
    pub(super) at: Millis,
    /// The ordinal its first message has, per shard.
    pub(super) ordinals: Vec<u64>,
}

impl SegmentHeader {
    /// Bytes of a header.
    pub(super) fn len(shards: u32) -> u64 {
        56 + u64::from(shards) * 8
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let shards = len32(self.ordinals.len());
        let mut out = Vec::with_capacity(56 + self.ordinals.len() * 8);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len32(56 + self.ordinals.len() * 8).to_le_bytes());
        out.extend_from_slice(&u64::from(shards).to_le_bytes());
        for word in [self.start, self.previous_end, self.at].iter().chain(&self.ordinals) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&u64::from(crc).to_le_bytes());
        out
    }

    /// The header in the first bytes of a file.
    pub(super) fn decode(bytes: &[u8], shards: u32, path: &Path) -> Result<Self> {
        if bytes.len() < 16 || &bytes[..8] != MAGIC {
            return Err(error::damaged(path, "it does not start as a segment"));
        }
        let version = u32_at(bytes, 8);
        if version > VERSION {
            return Err(error::newer(path, version));
        }
        let len = 56 + shards as usize * 8;
        if bytes.len() < len || u32_at(bytes, 12) as usize != len || u32_at(bytes, 16) != shards {
            return Err(error::damaged(path, "its header has another length"));
        }
        if u64_at(bytes, len - 8) != u64::from(crc32fast::hash(&bytes[..len - 8])) {
            return Err(error::damaged(path, "its header fails the checksum"));
        }
        let ordinals = (0..shards as usize).map(|shard| u64_at(bytes, 48 + shard * 8)).collect();
        Ok(SegmentHeader { start: u64_at(bytes, 24), previous_end: u64_at(bytes, 32), at: u64_at(bytes, 40), ordinals })
    }
}

/// The header of a batch with its extents, over the bytes it lies in.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchView<'a>(&'a [u8]);

/// One shard's part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) shard: u32,
    pub(super) count: u32,
    pub(super) base: u64,
    /// From the start of the batch.
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) crc: u32,
}

/// Why no batch stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBatch {
    /// This many bytes are needed to tell.
    Short(usize),
    /// The bytes are not those of a batch that was written here.
    Wrong,
}

impl<'a> BatchView<'a> {
    /// Checks the header at the start of `bytes`, which may end before the frames do.
    pub(super) fn parse(bytes: &'a [u8], start: u64) -> Result<Self, NoBatch> {
        if bytes.len() < BATCH {
            return Err(NoBatch::Short(BATCH));
        }
        let (len, extents) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
        let head = BATCH + extents.saturating_mul(EXTENT);
        if u32_at(bytes, 0) != BATCH_MAGIC || u64_at(bytes, 16) != start || head > len {
            return Err(NoBatch::Wrong);
        }
        if bytes.len() < head {
            return Err(NoBatch::Short(head));
        }
        if u32_at(bytes, 4) != crc32fast::hash(&bytes[8..head]) {
            return Err(NoBatch::Wrong);
        }
        let view = BatchView(bytes);
        // The checksum held, but lengths that lead out of the batch must not lead to a panic either.
        if view.extents().any(|e| e.offset < head || e.offset.saturating_add(e.len) > len) {
            return Err(NoBatch::Wrong);
        }
        Ok(view)
    }

    pub(super) fn len(self) -> usize {
        u32_at(self.0, 8) as usize
    }

    pub(super) fn at(self) -> Millis {
        u64_at(self.0, 24)
    }

    pub(super) fn extents(self) -> impl Iterator<Item = Extent> + 'a {
        let bytes = self.0;
        (0..u32_at(bytes, 12) as usize).map(move |i| {
            let at = BATCH + i * EXTENT;
            Extent {
                shard: u32_at(bytes, at),
                count: u32_at(bytes, at + 4),
                base: u64_at(bytes, at + 8),
                offset: u32_at(bytes, at + 16) as usize,
                len: u32_at(bytes, at + 20) as usize,
                crc: u32_at(bytes, at + 24),
            }
        })
    }

    /// Whether all frames are there and as they were written.
    pub(super) fn intact(self) -> bool {
        self.0.len() >= self.len() && self.extents().all(|e| crc32fast::hash(&self.0[e.offset..e.offset + e.len]) == e.crc)
    }
}

/// Writes an extent; its base comes with [`seal`].
pub(super) fn put_extent(batch: &mut [u8], index: usize, extent: &Extent) {
    let at = BATCH + index * EXTENT;
    put(batch, at, &extent.shard.to_le_bytes());
    put(batch, at + 4, &extent.count.to_le_bytes());
    put(batch, at + 8, &extent.base.to_le_bytes());
    put(batch, at + 16, &len32(extent.offset).to_le_bytes());
    put(batch, at + 20, &len32(extent.len).to_le_bytes());
    put(batch, at + 24, &extent.crc.to_le_bytes());
    put(batch, at + 28, &[0; 4]);
}

/// Finishes a batch whose extents and frames stand already: gives each extent its base and the batch its place.
pub(super) fn seal(batch: &mut [u8], extents: usize, start: u64, at: Millis, mut base: impl FnMut(u32, u32) -> u64) {
    let len = len32(batch.len());
    let mut messages = 0;
    for i in 0..extents {
        let place = BATCH + i * EXTENT;
        let (shard, count) = (u32_at(batch, place), u32_at(batch, place + 4));
        put(batch, place + 8, &base(shard, count).to_le_bytes());
        messages += count;
    }
    put(batch, 0, &BATCH_MAGIC.to_le_bytes());
    put(batch, 8, &len.to_le_bytes());
    put(batch, 12, &len32(extents).to_le_bytes());
    put(batch, 16, &start.to_le_bytes());
    put(batch, 24, &at.to_le_bytes());
    put(batch, 32, &messages.to_le_bytes());
    put(batch, 36, &[0; 4]);
    let crc = crc32fast::hash(&batch[8..BATCH + extents * EXTENT]);
    put(batch, 4, &crc.to_le_bytes());
}

/// One message as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameIn<'a> {
    pub(super) id: Option<&'a MessageId>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) headers: &'a Headers,
    pub(super) payload: &'a [u8],
}

impl FrameIn<'_> {
    fn headers_len(&self) -> usize {
        2 + self.headers.len() * 6 + self.headers.size()
    }

    /// Bytes of the frame.
    pub(super) fn len(&self) -> usize {
        FRAME
            + self.id.map_or(0, |_| 16)
            + self.key.map_or(0, |key| 4 + key.len())
            + if self.headers.is_empty() { 0 } else { 4 + self.headers_len() }
            + self.payload.len()
    }

    /// Writes it to `out`, which has exactly [`FrameIn::len`] bytes. `scratch` is only there to be used again.
    pub(super) fn write(&self, out: &mut [u8], scratch: &mut Vec<u8>) {
        let mut flags = 0;
        put(out, 0, &len32(out.len()).to_le_bytes());
        put(out, 8, &[0; 4]);
        let mut at = FRAME;
        if let Some(id) = self.id {
            flags |= HAS_ID;
            put(out, at, id.as_bytes());
            at += 16;
        }
        let mut part = |flag: u32, bytes: &[u8]| {
            flags |= flag;
            put(out, at, &len32(bytes.len()).to_le_bytes());
            put(out, at + 4, bytes);
            at += 4 + bytes.len();
        };
        if let Some(key) = self.key {
            part(HAS_KEY, key);
        }
        if !self.headers.is_empty() {
            scratch.clear();
            self.headers.encode(scratch);
            part(HAS_HEADERS, scratch);
        }
        put(out, at, self.payload);
        put(out, 4, &flags.to_le_bytes());
    }
}

/// One message as it is read; shares the bytes it was read from.
#[derive(Debug, Clone)]
pub(super) struct FrameOut {
    /// The 16 bytes of the id, whatever they are.
    pub(super) id: Option<[u8; 16]>,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) payload: Bytes,
}

/// Bytes of the frame at `at`, if they are all there.
pub(super) fn frame_len(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes.get(at..at + FRAME).map(|head| u32_at(head, 0) as usize)?;
    (len >= FRAME && at + len <= bytes.len()).then_some(len)
}

/// The frame of `len` bytes at `at`; `None` if its parts do not fit into it.
pub(super) fn frame(bytes: &Bytes, at: usize, len: usize) -> Option<FrameOut> {
    let (flags, end) = (u32_at(bytes, at + 4), at + len);
    let mut at = at + FRAME;
    let mut id = None;
    if flags & HAS_ID != 0 {
        id = Some(bytes.get(at..at + 16).filter(|_| at + 16 <= end)?.try_into().ok()?);
        at += 16;
    }
    let mut part = |flag: u32| -> Option<Option<Bytes>> {
        if flags & flag == 0 {
            return Some(None);
        }
        let n = (at + 4 <= end).then(|| u32_at(bytes, at) as usize)?;
        let from = at + 4;
        at = from.checked_add(n).filter(|to| *to <= end)?;
        Some(Some(bytes.slice(from..at)))
    };
    let key = part(HAS_KEY)?;
    let headers = part(HAS_HEADERS)?.map_or(Some(Headers::new()), |bytes| Headers::decode(&bytes))?;
    Some(FrameOut { id, key, headers, payload: bytes.slice(at..end) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::*;

    fn one_batch() -> Vec<u8> {
        let id = MessageId(Uuid::from_bytes([7; 16]));
        let headers: Headers = [("h", Bytes::from_static(b"v"))].into_iter().collect();
        let frame = FrameIn { id: Some(&id), key: Some(b"k"), headers: &headers, payload: b"hello" };
        let head = BATCH + EXTENT;
        let mut batch = vec![0; head + frame.len()];
        frame.write(&mut batch[head..], &mut Vec::new());
        let (len, crc) = (frame.len(), crc32fast::hash(&batch[head..]));
        put_extent(&mut batch, 0, &Extent { shard: 3, count: 1, base: 0, offset: head, len, crc });
        seal(&mut batch, 1, 4096, 1_700_000_000_000, |_, _| 42);
        batch
    }

    #[test]
    fn a_batch_has_these_bytes() {
        let hex: String = one_batch().iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "544c4231",
            "1826b276",
            "7c000000",
            "01000000",
            "0010000000000000",
            "0068e5cf8b010000",
            "01000000",
            "00000000",
            "03000000",
            "01000000",
            "2a00000000000000",
            "48000000",
            "34000000",
            "7ee95f0e",
            "00000000",
            "34000000",
            "07000000",
            "00000000",
            "07070707070707070707070707070707",
            "01000000",
            "6b",
            "0a000000",
            "0100",
            "0100",
            "68",
            "01000000",
            "76",
            "68656c6c6f",
        );
        assert_eq!(hex, golden);
    }

    #[test]
    fn no_damaged_batch_passes() {
        let batch = one_batch();
        let view = BatchView::parse(&batch, 4096).expect("whole");
        assert!(view.intact());
        let extent = view.extents().next().expect("one");
        let bytes = Bytes::from(batch.clone());
        let frame = frame(&bytes, extent.offset, extent.len).expect("whole");
        assert_eq!((frame.id, frame.key.as_deref(), &frame.payload[..]), (Some([7; 16]), Some(&b"k"[..]), &b"hello"[..]));
        assert_eq!(frame.headers.get_str("h"), Some("v"));
        assert_eq!(BatchView::parse(&batch, 4095).map(|_| ()), Err(NoBatch::Wrong), "of another place");
        for at in 0..batch.len() {
            let mut wrong = batch.clone();
            wrong[at] ^= 0x40;
            assert!(BatchView::parse(&wrong, 4096).map_or(true, |view| !view.intact()), "byte {at}");
        }
        for len in 0..batch.len() {
            assert!(BatchView::parse(&batch[..len], 4096).map_or(true, |view| !view.intact()), "{len} bytes");
        }
    }

    #[test]
    fn a_header_survives_and_nothing_else_passes() {
        let header = SegmentHeader { start: 1, previous_end: 2, at: 3, ordinals: vec![4, 5] };
        let bytes = header.encode();
        let path = Path::new("a.log");
        assert_eq!(bytes.len() as u64, SegmentHeader::len(2));
        assert_eq!(SegmentHeader::decode(&bytes, 2, path).expect("whole"), header);
        assert!(SegmentHeader::decode(&bytes, 3, path).is_err());
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert!(SegmentHeader::decode(&wrong, 2, path).is_err(), "byte {at}");
            assert!(SegmentHeader::decode(&bytes[..at], 2, path).is_err(), "{at} bytes");
        }
    }
}
