//! Turns messages into batches, grouped by shard. Its buffers are used again, so a message costs no allocation.

use super::segment::{self, BATCH, EXTENT, Extent, FrameIn};
use crate::provider::Outgoing;

/// Frames of one batch go up to about this many bytes: what a reader reads at once should hold a few batches.
const BATCH_BYTES: usize = 128 * 1024;

/// What a message that is not written has instead of a shard.
pub(super) const NOWHERE: u32 = u32::MAX;

/// A batch that stands in the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) extents: usize,
}

/// Messages as the bytes to be written, but for the places that are only known under the append lock.
#[derive(Debug)]
pub(super) struct Encoder {
    shards: u32,
    /// Where the next message without a shard goes.
    turn: u32,
    buf: Vec<u8>,
    used: usize,
    batches: Vec<Batch>,
    /// The shard of every message, in the order they came.
    assigned: Vec<u32>,
    sizes: Vec<usize>,
    counts: Vec<u32>,
    touched: Vec<u32>,
    scratch: Vec<u8>,
}

fn view(message: &Outgoing) -> FrameIn<'_> {
    FrameIn { id: Some(&message.id), key: message.key.as_deref(), headers: &message.headers, payload: &message.payload }
}

impl Encoder {
    pub(super) fn new(shards: u32) -> Self {
        Encoder {
            shards,
            turn: rand::random_range(0..shards),
            buf: Vec::new(),
            used: 0,
            batches: Vec::new(),
            assigned: Vec::new(),
            sizes: vec![0; shards as usize],
            counts: vec![0; shards as usize],
            touched: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Encodes all messages for which `takes` is true.
    pub(super) fn encode<'a>(&mut self, messages: impl Iterator<Item = &'a Outgoing> + Clone, takes: impl Fn(&Outgoing) -> bool) {
        self.used = 0;
        self.batches.clear();
        self.assigned.clear();
        let mut rest = messages;
        loop {
            let start = rest.clone();
            let (mut n, mut bytes) = (0, 0);
            while bytes < BATCH_BYTES {
                let Some(message) = rest.next() else { break };
                n += 1;
                bytes += self.assign(message, &takes);
            }
            if n == 0 {
                break;
            }
            if bytes > 0 {
                self.batch(start.take(n), n, bytes);
            }
        }
    }

    /// Chooses the shard of a message and says how many bytes its frame has.
    fn assign(&mut self, message: &Outgoing, takes: &impl Fn(&Outgoing) -> bool) -> usize {
        if !takes(message) {
            self.assigned.push(NOWHERE);
            return 0;
        }
        let shard = message.shard.unwrap_or_else(|| {
            self.turn = (self.turn + 1) % self.shards;
            self.turn
        });
        let len = view(message).len();
        self.assigned.push(shard);
        let at = shard as usize;
        if self.counts[at] == 0 {
            self.touched.push(shard);
        }
        self.counts[at] += 1;
        self.sizes[at] += len;
        len
    }

    fn batch<'a>(&mut self, messages: impl Iterator<Item = &'a Outgoing>, n: usize, bytes: usize) {
        self.touched.sort_unstable();
        let head = BATCH + self.touched.len() * EXTENT;
        let (at, len) = (self.used, head + bytes);
        if self.buf.len() < at + len {
            self.buf.resize(at + len, 0);
        }
        let batch = &mut self.buf[at..at + len];
        // From here on `sizes` says where the next frame of a shard goes.
        let mut offset = head;
        for shard in &self.touched {
            offset += std::mem::replace(&mut self.sizes[*shard as usize], offset);
        }
        let shards = &self.assigned[self.assigned.len() - n..];
        for (message, shard) in messages.zip(shards).filter(|(_, shard)| **shard != NOWHERE) {
            let frame = view(message);
            let from = self.sizes[*shard as usize];
            let to = from + frame.len();
            frame.write(&mut batch[from..to], &mut self.scratch);
            self.sizes[*shard as usize] = to;
        }
        let mut offset = head;
        for (index, shard) in self.touched.iter().enumerate() {
            let end = self.sizes[*shard as usize];
            let (len, crc) = (end - offset, crc32fast::hash(&batch[offset..end]));
            segment::put_extent(batch, index, &Extent { shard: *shard, count: self.counts[*shard as usize], base: 0, offset, len, crc });
            offset = end;
            self.sizes[*shard as usize] = 0;
            self.counts[*shard as usize] = 0;
        }
        self.batches.push(Batch { at, len, extents: self.touched.len() });
        self.touched.clear();
        self.used = at + len;
    }

    /// The bytes to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[..self.used]
    }

    /// Gives every batch its place from `start` on, and every message its ordinal from those in `ends` on, which rise.
    pub(super) fn seal(&mut self, start: u64, at: u64, ends: &mut [u64]) {
        for batch in &self.batches {
            let bytes = &mut self.buf[batch.at..batch.at + batch.len];
            segment::seal(bytes, batch.extents, start + batch.at as u64, at, |shard, count| {
                let end = &mut ends[shard as usize];
                *end += u64::from(count);
                *end - u64::from(count)
            });
        }
    }

    /// The shard of every message, [`NOWHERE`] for those that were not taken.
    pub(super) fn assigned(&self) -> &[u32] {
        &self.assigned
    }

    /// Frees what a rare large batch took.
    pub(super) fn shrink(&mut self) {
        if self.buf.len() > 16 << 20 {
            self.buf = Vec::new();
        }
    }
}
