//! Reading a topic: whole batches in large pieces, from which messages are sliced without copying.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{File, How, read_exact_at};
use super::error;
use super::index::Index;
use super::segment::{BatchView, FrameOut, NoBatch, SegmentHeader, frame, frame_len};
use super::topic::Topic;
use crate::error::Result;
use crate::message::Millis;

/// How much is read at once.
const CHUNK: u64 = 512 * 1024;
/// How many of them are kept for the other shards of a topic, which are mostly read at the same place.
const KEPT: usize = 8;

/// A segment as readers know it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    /// Open as long as somebody reads it.
    file: Mutex<Option<Weak<dyn File>>>,
    pub(super) index: Mutex<Index>,
}

/// What was read last, over all topics of a handle.
#[derive(Debug, Default)]
pub(super) struct Chunks(Mutex<VecDeque<Chunk>>);

#[derive(Debug)]
struct Chunk {
    topic: u64,
    start: u64,
    bytes: Bytes,
}

/// What lies at a place of the log.
#[derive(Debug)]
pub(super) enum Piece {
    /// Whole batches from there on, and maybe the beginning of another.
    Bytes(Bytes),
    /// The segment ends here; the next batch is there.
    Next(u64),
    /// Nothing yet.
    End,
}

impl Topic {
    /// All segments that are kept, the oldest first.
    pub(super) fn all_segments(&self) -> Result<Vec<Arc<Segment>>> {
        let (current, oldest) = (self.page.segment().load(SeqCst), self.page.oldest().load(SeqCst));
        {
            let known = self.segments.read();
            if known.last().is_some_and(|s| s.header.start == current) && known.first().is_some_and(|s| s.header.start == oldest) {
                return Ok(known.clone());
            }
        }
        let mut known = self.segments.write();
        let mut fresh = Vec::new();
        for start in self.list_segments()?.into_iter().filter(|start| (oldest..=current).contains(start)) {
            match known.iter().find(|s| s.header.start == start) {
                Some(segment) => fresh.push(Arc::clone(segment)),
                None => fresh.extend(self.load_segment(start)?),
            }
        }
        known.clone_from(&fresh);
        Ok(fresh)
    }

    /// Reads the header of a segment; `None` if it was unlinked meanwhile.
    fn load_segment(&self, start: u64) -> Result<Option<Arc<Segment>>> {
        let path = self.segment_path(start);
        let mut head = vec![0; usize::try_from(SegmentHeader::len(self.shards)).unwrap_or(0)];
        match self.host.disk.open(&path, How::Read).and_then(|file| read_exact_at(&*file, &mut head, 0)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|e| error::disk(&e, "cannot read", &path))?,
        }
        let header = SegmentHeader::decode(&head, self.shards, &path)?;
        let index = Mutex::new(Index::new(&header, self.shards));
        Ok(Some(Arc::new(Segment { header, file: Mutex::default(), index })))
    }

    /// The file of a segment, opened once for all that read it at the same time.
    pub(super) fn file_of(&self, segment: &Segment) -> Result<Arc<dyn File>> {
        let mut known = segment.file.lock();
        if let Some(file) = known.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let path = self.segment_path(segment.header.start);
        let file = self.host.disk.open(&path, How::Read).map_err(|e| error::disk(&e, "cannot open", &path))?;
        *known = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// The segment of a place, where its data ends, and where the next one's begins.
    fn segment_at(&self, place: u64, durable: u64) -> Result<(Arc<Segment>, u64, Option<u64>)> {
        let segments = self.all_segments()?;
        let index = segments.partition_point(|s| s.header.start <= place).saturating_sub(1);
        let Some(segment) = segments.get(index) else { return Err(error::damaged(&self.dir, "it has no segment")) };
        let next = segments.get(index + 1).map(|next| &next.header);
        let end = next.map_or(durable, |next| next.previous_end.min(durable));
        Ok((Arc::clone(segment), end, next.map(|next| next.start + SegmentHeader::len(self.shards))))
    }

    /// What lies at `place`, at least `want` bytes of it if the log is that long. `open` keeps the file for the next call.
    pub(super) fn piece(&self, place: u64, want: usize, open: &mut Option<(u64, Arc<dyn File>)>) -> Result<Piece> {
        let durable = self.page.durable().load(SeqCst);
        if place >= durable {
            return Ok(Piece::End);
        }
        if let Some(bytes) = self.host.chunks.find(self.serial, place, want) {
            return Ok(Piece::Bytes(bytes));
        }
        let (segment, end, next) = self.segment_at(place, durable)?;
        let start = segment.header.start;
        let first = start + SegmentHeader::len(self.shards);
        if place < first {
            // The end of the segment before is the beginning of this one; or what was here is no longer kept.
            return Ok(Piece::Next(first));
        }
        if place >= end {
            return Ok(next.map_or(Piece::End, Piece::Next));
        }
        let file = match open {
            Some((opened, file)) if *opened == start => Arc::clone(file),
            _ => self.file_of(&segment)?,
        };
        let len = (end - place).min(CHUNK.max(want as u64));
        let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(&*file, &mut buf, place - start).map_err(|e| error::disk(&e, "cannot read", &self.segment_path(start)))?;
        *open = Some((start, file));
        let bytes = Bytes::from(buf);
        self.host.chunks.keep(self.serial, place, &bytes);
        Ok(Piece::Bytes(bytes))
    }
}

impl Chunks {
    fn find(&self, topic: u64, place: u64, want: usize) -> Option<Bytes> {
        let chunks = self.0.lock();
        chunks.iter().rev().filter(|chunk| chunk.topic == topic).find_map(|chunk| {
            let at = usize::try_from(place.checked_sub(chunk.start)?).ok()?;
            (at + want.max(1) <= chunk.bytes.len()).then(|| chunk.bytes.slice(at..))
        })
    }

    fn keep(&self, topic: u64, start: u64, bytes: &Bytes) {
        let mut chunks = self.0.lock();
        if chunks.len() >= KEPT {
            chunks.pop_front();
        }
        chunks.push_back(Chunk { topic, start, bytes: bytes.clone() });
    }

    /// Forgets what was read of a topic.
    pub(super) fn forget(&self, topic: u64) {
        self.0.lock().retain(|chunk| chunk.topic != topic);
    }
}

/// Reads the messages of one shard in order.
#[derive(Debug)]
pub(super) struct Reader {
    topic: Arc<Topic>,
    shard: u32,
    /// The next message to give.
    next: u64,
    /// The next batch to look at; `None` before the first look.
    place: Option<u64>,
    /// No message before this one lies at `place` or behind it.
    reached: u64,
    open: Option<(u64, Arc<dyn File>)>,
    /// What was read and not looked at yet, from `place` on.
    ahead: Bytes,
    extent: Option<Run>,
}

/// The rest of an extent.
#[derive(Debug)]
struct Run {
    bytes: Bytes,
    at: usize,
    next: u64,
    end: u64,
    stored_at: Millis,
}

/// Looking further ahead than this for a message is slower than finding it by the index.
const FAR: u64 = 4096;

impl Reader {
    pub(super) fn new(topic: &Arc<Topic>, shard: u32, next: u64) -> Self {
        Reader { topic: Arc::clone(topic), shard, next, place: None, reached: 0, open: None, ahead: Bytes::new(), extent: None }
    }

    /// Goes to another message.
    pub(super) fn seek(&mut self, ordinal: u64) {
        if self.extent.as_ref().is_none_or(|run| ordinal < run.next || ordinal >= run.end) {
            self.extent = None;
            if ordinal < self.reached || ordinal > self.reached + FAR {
                self.place = None;
            }
        }
        self.next = ordinal;
    }

    /// The next message at or behind the one that is sought, with its ordinal; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, FrameOut, Millis)>> {
        loop {
            if let Some(run) = &mut self.extent {
                while run.next < run.end {
                    let len = frame_len(&run.bytes, run.at).ok_or_else(|| damaged(&self.topic))?;
                    let (at, ordinal) = (run.at, run.next);
                    run.at += len;
                    run.next += 1;
                    if ordinal >= self.next {
                        let frame = frame(&run.bytes, at, len).ok_or_else(|| damaged(&self.topic))?;
                        self.next = ordinal + 1;
                        return Ok(Some((ordinal, frame, run.stored_at)));
                    }
                }
                self.extent = None;
            }
            if !self.find_extent()? {
                return Ok(None);
            }
        }
    }

    /// Looks for the extent with the next message.
    fn find_extent(&mut self) -> Result<bool> {
        let mut place = match self.place {
            Some(place) => place,
            None => {
                let found = self.topic.locate(self.shard, self.next)?;
                self.reached = found.ordinal;
                self.ahead = Bytes::new();
                found.place
            }
        };
        let mut want = 1;
        loop {
            self.place = Some(place);
            if self.ahead.len() < want {
                match self.topic.piece(place, want, &mut self.open)? {
                    Piece::Bytes(bytes) if bytes.len() >= want => self.ahead = bytes,
                    Piece::Bytes(_) => return Err(damaged(&self.topic)),
                    Piece::End => {
                        // An empty slice would still hold on to what it was cut from.
                        self.ahead = Bytes::new();
                        return Ok(false);
                    }
                    Piece::Next(next) => {
                        self.ahead = Bytes::new();
                        place = next;
                        want = 1;
                        continue;
                    }
                }
            }
            let batch = match BatchView::parse(&self.ahead, place) {
                Ok(batch) if batch.len() <= self.ahead.len() => batch,
                Ok(batch) => {
                    want = batch.len();
                    continue;
                }
                Err(NoBatch::Short(n)) => {
                    want = n;
                    continue;
                }
                Err(NoBatch::Wrong) => return Err(damaged(&self.topic)),
            };
            let (len, stored_at) = (batch.len(), batch.at());
            let extent = batch.extents().find(|extent| extent.shard == self.shard);
            let bytes = self.ahead.split_to(len);
            place += len as u64;
            want = 1;
            let Some(extent) = extent else { continue };
            let end = extent.base + u64::from(extent.count);
            self.reached = self.reached.max(end);
            if end <= self.next {
                continue;
            }
            let bytes = bytes.slice(extent.offset..extent.offset + extent.len);
            if crc32fast::hash(&bytes) != extent.crc {
                return Err(damaged(&self.topic));
            }
            self.place = Some(place);
            self.extent = Some(Run { bytes, at: 0, next: extent.base, end, stored_at });
            return Ok(true);
        }
    }
}

fn damaged(topic: &Topic) -> crate::Error {
    error::damaged(&topic.dir, "a batch of its log fails its checksum")
}
