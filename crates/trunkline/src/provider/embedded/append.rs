//! Appending to a topic: the one place where batches get their places, and where a failed write or fsync is dealt with.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::disk::{File, How};
use super::encode::Encoder;
use super::error;
use super::options::Fsync;
use super::segment::SegmentHeader;
use super::topic::{Appender, Topic};
use crate::message::now_ms;
use crate::provider::SendError;

/// What was written and not synced yet.
#[derive(Debug)]
pub(super) struct Written {
    /// The ordinals that came first, per shard.
    pub(super) first: Vec<u64>,
    file: Arc<dyn File>,
    segment: u64,
    end: u64,
    cuts: u64,
}

impl Topic {
    /// Writes all batches of the encoder in one piece.
    pub(super) fn append(&self, encoder: &mut Encoder) -> Result<Written, SendError> {
        self.locked(|appender| self.append_locked(appender, encoder)).map_err(error::refused)?
    }

    fn append_locked(&self, appender: &mut Appender, encoder: &mut Encoder) -> Result<Written, SendError> {
        let page = &self.page;
        let len = encoder.bytes().len() as u64;
        self.make_room(appender, len)?;
        let (mut segment, mut start) = (page.segment().load(SeqCst), page.write_end().load(SeqCst));
        let used = start - segment;
        if page.poisoned().load(SeqCst) != 0 || (used > SegmentHeader::len(self.shards) && used + len > self.host.options.segment_limit()) {
            self.roll(appender)?;
            (segment, start) = (page.segment().load(SeqCst), page.write_end().load(SeqCst));
        }
        let file = self.current(appender).map_err(|e| error::not_written(&e))?;
        let at = now_ms().max(page.last_at().load(SeqCst));
        let first = page.ends();
        let mut ends = first.clone();
        encoder.seal(start, at, &mut ends);
        page.dirty().store(1, SeqCst);
        if let Err(e) = file.write_at(encoder.bytes(), start - segment) {
            // The tail is as before. If not even that can be done, `dirty` stays, and the next one who comes recovers.
            let whole = file.truncate(start - segment).is_ok();
            if whole {
                page.dirty().store(0, SeqCst);
            }
            return Err(SendError { ambiguous: !whole, ..error::not_written(&e) });
        }
        for (shard, (old, new)) in (0..self.shards).zip(first.iter().zip(&ends)) {
            if old != new {
                page.end(shard).store(*new, SeqCst);
            }
        }
        page.last_at().store(at, SeqCst);
        page.write_end().store(start + len, SeqCst);
        page.dirty().store(0, SeqCst);
        Ok(Written { first, file, segment, end: start + len, cuts: page.cuts().load(SeqCst) })
    }

    /// Makes what was written visible, after it is as durable as it has to be.
    pub(super) fn commit(&self, written: &Written) -> Result<(), SendError> {
        match self.host.options.fsync {
            Fsync::Always => {
                if let Err(e) = written.file.sync() {
                    return Err(self.poison(written.segment, &e));
                }
            }
            Fsync::Interval(_) => {
                self.page.lax().store(1, SeqCst);
                self.unsynced.store(true, SeqCst);
            }
        }
        self.raise(written.end);
        // Who cuts raises `cuts` first and then reads `durable`; here it is the other way round. So either the cut saw
        // this batch as durable and left it, or the cut is seen here.
        if self.page.cuts().load(SeqCst) == written.cuts {
            Ok(())
        } else {
            Err(error::not_synced("another process could not sync the same file"))
        }
    }

    /// After a failed fsync the kernel may have dropped what was written and calls the rest clean: trying again would
    /// answer `Ok` to nothing. So the segment ends at what was durable before, and the next write begins another.
    fn poison(&self, segment: u64, e: &io::Error) -> SendError {
        let marked = self.locked(|appender| {
            self.page.cuts().fetch_add(1, SeqCst);
            if self.page.segment().load(SeqCst) == segment {
                self.page.poisoned().store(1, SeqCst);
            }
            appender.file = None;
        });
        if let Err(error) = marked {
            tracing::error!(topic = %self.name, %error, "a segment could not be closed after a failed fsync");
        }
        error::not_synced(&e.to_string())
    }

    /// The file that is written to.
    fn current(&self, appender: &mut Appender) -> io::Result<Arc<dyn File>> {
        let start = self.page.segment().load(SeqCst);
        match &appender.file {
            Some((open, file)) if *open == start => Ok(Arc::clone(file)),
            _ => {
                let file = self.host.disk.open(&self.segment_path(start), How::Write)?;
                appender.file = Some((start, Arc::clone(&file)));
                Ok(file)
            }
        }
    }

    /// Ends the segment and begins the next one.
    pub(super) fn roll(&self, appender: &mut Appender) -> Result<(), SendError> {
        let page = &self.page;
        let old = self.current(appender).map_err(|e| error::not_written(&e))?;
        let (segment, start) = (page.segment().load(SeqCst), page.write_end().load(SeqCst));
        let (mut previous_end, mut ordinals) = (start, page.ends());
        if page.poisoned().load(SeqCst) != 0 {
            previous_end = page.durable().load(SeqCst);
            ordinals = self.ordinals_at(segment, &*old, previous_end)?;
            // Only to free the room: the header of the next segment says where this one ends.
            let _ = old.truncate(previous_end - segment);
        } else if let Err(e) = old.sync() {
            page.cuts().fetch_add(1, SeqCst);
            page.poisoned().store(1, SeqCst);
            appender.file = None;
            return Err(SendError { ambiguous: false, ..error::not_synced(&e.to_string()) });
        }
        let header = SegmentHeader { start, previous_end, at: now_ms().max(page.last_at().load(SeqCst)), ordinals };
        // From here on the new file may be there. After a death, or if it could only half be made, nothing more may go into
        // the old one, which ends where the new one says: whoever comes next looks at the files.
        page.dirty().store(1, SeqCst);
        let file = self.create_segment(&header).map_err(|e| error::not_written(&e))?;
        for (shard, end) in (0..self.shards).zip(&header.ordinals) {
            page.end(shard).store(*end, SeqCst);
        }
        page.segment().store(start, SeqCst);
        page.write_end().store(start + SegmentHeader::len(self.shards), SeqCst);
        page.durable().fetch_max(start + SegmentHeader::len(self.shards), SeqCst);
        page.poisoned().store(0, SeqCst);
        page.dirty().store(0, SeqCst);
        appender.file = Some((start, file));
        Ok(())
    }

    fn ordinals_at(&self, segment: u64, file: &dyn File, end: u64) -> Result<Vec<u64>, SendError> {
        let path = self.segment_path(segment);
        let mut head = vec![0; usize::try_from(SegmentHeader::len(self.shards)).unwrap_or(0)];
        file.read_at(&mut head, 0).map_err(|e| error::not_written(&e))?;
        let scan = SegmentHeader::decode(&head, self.shards, &path).and_then(|header| self.scan(&header, file, end));
        Ok(scan.map_err(error::refused)?.ends)
    }

    /// Syncs what others, or an interval, left: what a process wrote that was killed before its fsync, too.
    pub(super) fn settle_tail(&self) {
        let synced = self.locked(|appender| -> io::Result<_> {
            if self.page.poisoned().load(SeqCst) != 0 {
                return Ok(None);
            }
            let file = self.current(appender)?;
            Ok(Some((file, self.page.segment().load(SeqCst), self.page.write_end().load(SeqCst))))
        });
        match synced {
            Ok(Ok(Some((file, segment, end)))) => match file.sync() {
                Ok(()) if self.page.durable().load(SeqCst) < end => self.raise(end),
                Ok(()) => {}
                Err(e) => {
                    let failed = self.poison(segment, &e);
                    tracing::error!(topic = %self.name, error = %failed.error, "a confirmed message may not be on the disk");
                }
            },
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(topic = %self.name, %error, "the log could not be synced"),
            Err(error) => tracing::warn!(topic = %self.name, %error, "the log could not be synced"),
        }
    }
}
