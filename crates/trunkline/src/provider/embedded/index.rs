//! Finding a message by its ordinal or its time: a sparse index per segment, built when it is first asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::error;
use super::reader::Segment;
use super::segment::{BatchView, NoBatch, SegmentHeader};
use super::topic::Topic;
use crate::error::Result;
use crate::message::Millis;

/// One mark for so many bytes of the log.
const SPACING: u64 = 1 << 20;
/// Read at once when only headers are wanted.
const HEAD: usize = 16 * 1024;

/// A place between two batches and what comes next there.
#[derive(Debug, Clone)]
struct Mark {
    place: u64,
    ordinals: Box<[u64]>,
    /// The time of the batch before.
    at: Millis,
}

/// The marks of a segment, as far as it was looked through.
#[derive(Debug)]
pub(super) struct Index {
    marks: Vec<Mark>,
    /// Where looking goes on.
    tip: Mark,
}

impl Index {
    pub(super) fn new(header: &SegmentHeader, shards: u32) -> Self {
        let tip = Mark { place: header.start + SegmentHeader::len(shards), ordinals: header.ordinals.clone().into(), at: header.at };
        Index { marks: vec![tip.clone()], tip }
    }
}

/// Where a message is to be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Located {
    /// A batch before it, or its own.
    pub(super) place: u64,
    /// The first ordinal of its shard from there on.
    pub(super) ordinal: u64,
}

impl Topic {
    /// Where the message lies; the oldest that is kept if it is no longer there.
    pub(super) fn locate(&self, shard: u32, ordinal: u64) -> Result<Located> {
        let (_, _, mark) = self.mark(shard, ordinal)?;
        Ok(Located { place: mark.place, ordinal: mark.ordinals[shard as usize] })
    }

    /// The mark before a message, with its segment and where that ends if it is not the last one.
    fn mark(&self, shard: u32, ordinal: u64) -> Result<(Arc<Segment>, Option<u64>, Mark)> {
        let segments = self.all_segments()?;
        let shard = shard as usize;
        let index = segments.partition_point(|s| s.header.ordinals[shard] <= ordinal).saturating_sub(1);
        let Some(segment) = segments.get(index) else { return Err(error::damaged(&self.dir, "it has no segment")) };
        let end = segments.get(index + 1).map(|next| next.header.previous_end);
        let mut index = segment.index.lock();
        self.extend(segment, end, &mut index, |tip| tip.ordinals[shard] > ordinal)?;
        let mark = index.marks.partition_point(|mark| mark.ordinals[shard] <= ordinal).saturating_sub(1);
        Ok((Arc::clone(segment), end, index.marks[mark].clone()))
    }

    /// When the message was stored, or the first behind it that is kept; `None` if there is none.
    pub(super) fn time_of(&self, shard: u32, ordinal: u64) -> Result<Option<Millis>> {
        let (segment, end, mut tip) = self.mark(shard, ordinal)?;
        let mut found = None;
        self.walk(&segment, end, &mut tip, |_, batch| {
            let mut extents = batch.extents().filter(|extent| extent.shard == shard);
            found = extents.find(|extent| extent.base + u64::from(extent.count) > ordinal).map(|_| batch.at());
            found.is_some()
        })?;
        Ok(found)
    }

    /// The first ordinal of every shard that was stored at `time` or later.
    pub(super) fn ordinals_at_time(&self, time: Millis) -> Result<Vec<u64>> {
        let segments = self.all_segments()?;
        let index = segments.partition_point(|s| s.header.at < time).saturating_sub(1);
        let Some(segment) = segments.get(index) else { return Err(error::damaged(&self.dir, "it has no segment")) };
        let end = segments.get(index + 1).map(|next| next.header.previous_end);
        let mut tip = {
            let mut index = segment.index.lock();
            self.extend(segment, end, &mut index, |tip| tip.at >= time)?;
            let mark = index.marks.partition_point(|mark| mark.at < time).saturating_sub(1);
            index.marks[mark].clone()
        };
        self.walk(segment, end, &mut tip, |_, batch| batch.at() >= time)?;
        Ok(tip.ordinals.into_vec())
    }

    /// The oldest ordinal that is kept, per shard.
    pub(super) fn first_ordinals(&self) -> Result<Vec<u64>> {
        let segments = self.all_segments()?;
        Ok(segments.first().map_or_else(|| self.page.ends(), |segment| segment.header.ordinals.clone()))
    }

    /// Looks further through a segment until `enough`.
    fn extend(&self, segment: &Arc<Segment>, end: Option<u64>, index: &mut Index, enough: impl Fn(&Mark) -> bool) -> Result<()> {
        while !enough(&index.tip) {
            let last = index.marks.last().map_or(0, |mark| mark.place);
            let before = index.tip.place;
            self.walk(segment, end, &mut index.tip, |tip, _| tip.place >= last + SPACING)?;
            if index.tip.place >= last + SPACING {
                index.marks.push(index.tip.clone());
            }
            if index.tip.place == before {
                break;
            }
        }
        Ok(())
    }

    /// Goes from batch to batch until one of which `stop` is true, given what comes next there.
    fn walk(&self, segment: &Segment, end: Option<u64>, tip: &mut Mark, mut stop: impl FnMut(&Mark, BatchView<'_>) -> bool) -> Result<()> {
        let durable = self.page.durable().load(SeqCst);
        let end = end.map_or(durable, |end| end.min(durable));
        if tip.place >= end {
            return Ok(());
        }
        let start = segment.header.start;
        let (file, path) = (self.file_of(segment)?, self.segment_path(start));
        let mut want = HEAD;
        let mut buf = Vec::new();
        'read: while tip.place < end {
            buf.resize(want, 0);
            let n = file.read_at(&mut buf, tip.place - start).map_err(|e| error::disk(&e, "cannot read", &path))?;
            let mut at = 0;
            while tip.place < end {
                let batch = match BatchView::parse(buf.get(at..n).unwrap_or_default(), tip.place) {
                    Ok(batch) => batch,
                    Err(NoBatch::Short(need)) if at > 0 || need > n => {
                        if at == 0 && n < want {
                            return Err(error::damaged(&path, "a batch is cut"));
                        }
                        want = want.max(need);
                        continue 'read;
                    }
                    Err(_) => return Err(error::damaged(&path, "a batch fails its checksum")),
                };
                if stop(tip, batch) {
                    return Ok(());
                }
                for extent in batch.extents() {
                    if let Some(next) = tip.ordinals.get_mut(extent.shard as usize) {
                        *next = extent.base + u64::from(extent.count);
                    }
                }
                tip.at = batch.at();
                tip.place += batch.len() as u64;
                at += batch.len();
            }
        }
        Ok(())
    }
}
