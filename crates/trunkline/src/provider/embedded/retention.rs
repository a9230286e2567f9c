//! Retention: whole old segments are unlinked, but never one with a message that a known group has not settled.

use std::sync::atomic::Ordering::SeqCst;

use super::error;
use super::reader::Segment;
use super::segment::SegmentHeader;
use super::topic::{Appender, Topic};
use crate::error::Result;
use crate::message::{millis, now_ms};
use crate::provider::SendError;

impl Topic {
    /// Frees what `len` more bytes need within the limit.
    pub(super) fn make_room(&self, appender: &mut Appender, len: u64) -> Result<(), SendError> {
        let Some(limit) = self.host.options.retention.bytes else { return Ok(()) };
        let over = || (self.page.write_end().load(SeqCst) + len).saturating_sub(self.page.oldest().load(SeqCst)) > limit;
        if !over() {
            return Ok(());
        }
        self.drop_segments(len).map_err(error::refused)?;
        let used = self.page.write_end().load(SeqCst) - self.page.segment().load(SeqCst);
        if over() && used > SegmentHeader::len(self.shards) {
            // All that is left is the segment that is written to: it can go as soon as it is not that any more.
            let floor = self.floor().map_err(error::refused)?;
            if floor.iter().zip(self.page.ends()).all(|(settled, end)| *settled >= end) {
                self.roll(appender)?;
                self.drop_segments(len).map_err(error::refused)?;
            }
        }
        // A single write that is larger than the limit still goes into an empty log.
        let empty = self.page.write_end().load(SeqCst) - self.page.oldest().load(SeqCst) <= SegmentHeader::len(self.shards);
        if over() && !empty { Err(error::log_full(limit)) } else { Ok(()) }
    }

    /// Unlinks what retention lets go.
    pub(super) fn retain(&self) -> Result<()> {
        if self.host.options.retention == super::options::Retention::default() {
            return Ok(());
        }
        // Reads the header of the segment that is written to.
        self.all_segments()?;
        self.locked(|appender| {
            if self.stale() {
                self.roll(appender).map_err(|failed| failed.error)?;
            }
            self.drop_segments(0)
        })?
    }

    /// Whether the segment that is written to should end, so that its messages can go when they are old enough.
    fn stale(&self) -> bool {
        let Some(age) = self.host.options.retention.age else { return false };
        let used = self.page.write_end().load(SeqCst) - self.page.segment().load(SeqCst);
        let begun = self.segments.read().last().map_or(0, |segment| segment.header.at);
        used > SegmentHeader::len(self.shards) && begun > 0 && begun + millis(age) / 4 < now_ms()
    }

    /// The lowest ordinal, per shard, that some group has not settled.
    fn floor(&self) -> Result<Vec<u64>> {
        let mut floor = vec![u64::MAX; self.shards as usize];
        for group in self.open_groups()? {
            for (shard, low) in (0..self.shards).zip(&mut floor) {
                *low = (*low).min(group.page.shard(shard).cursor().load(SeqCst));
            }
        }
        Ok(floor)
    }

    fn drop_segments(&self, more: u64) -> Result<()> {
        let retention = self.host.options.retention;
        let segments = self.all_segments()?;
        let end = self.page.write_end().load(SeqCst) + more;
        let mut floor = None;
        for (index, pair) in segments.windows(2).enumerate() {
            let [old, next] = pair else { break };
            let large = retention.bytes.is_some_and(|bytes| end.saturating_sub(old.header.start) > bytes);
            let aged = retention.age.is_some_and(|age| next.header.at + millis(age) < now_ms());
            if !large && !aged {
                break;
            }
            if floor.is_none() {
                floor = Some(self.floor()?);
            }
            if !passed(floor.as_deref().unwrap_or_default(), next) {
                break;
            }
            self.page.oldest().store(next.header.start, SeqCst);
            let path = self.segment_path(old.header.start);
            match self.host.disk.remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(error::disk(&e, "cannot remove", &path)),
                _ => tracing::debug!(topic = %self.name, segment = old.header.start, index, "retention removed a segment"),
            }
        }
        Ok(())
    }
}

/// Whether all before this segment is settled.
fn passed(floor: &[u64], next: &Segment) -> bool {
    floor.iter().zip(&next.header.ordinals).all(|(settled, first)| settled >= first)
}
