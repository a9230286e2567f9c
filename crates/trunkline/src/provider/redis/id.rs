//! The id of an entry of a stream, and how it is a position.

use std::fmt;

use redis::{RedisWrite, ToRedisArgs, Value};

use crate::message::Millis;

/// `<ms>-<sequence>`, as Redis gives it: the server's clock, and a number within that millisecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub(super) ms: Millis,
    pub(super) seq: u64,
}

/// An offset is the milliseconds and, in its low bits, the sequence. 22 bits hold four million entries of one millisecond
/// and leave room for the clock until the year 2109.
const SEQ_BITS: u32 = 22;

impl EntryId {
    /// The first id of a millisecond.
    pub(super) fn at(ms: Millis) -> Self {
        EntryId { ms, seq: 0 }
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(EntryId { ms: ms.parse().ok()?, seq: seq.parse().ok()? })
    }

    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::BulkString(text) => EntryId::parse(text),
            Value::SimpleString(text) => EntryId::parse(text.as_bytes()),
            _ => None,
        }
    }

    /// As the offset of a position. Ids that no clock gives (a client chose them) keep their order as far as 64 bits go.
    pub(super) fn offset(self) -> u64 {
        if self.ms >> (64 - SEQ_BITS) != 0 { u64::MAX } else { (self.ms << SEQ_BITS).saturating_add(self.seq) }
    }

    pub(super) fn from_offset(offset: u64) -> Self {
        EntryId { ms: offset >> SEQ_BITS, seq: offset & ((1 << SEQ_BITS) - 1) }
    }

    /// The largest id below this one: what a group has read that starts here.
    pub(super) fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => EntryId { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => EntryId { ms, seq: seq - 1 },
        }
    }

    /// The smallest id above this one.
    pub(super) fn after(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => EntryId { seq, ..self },
            None => EntryId::at(self.ms.saturating_add(1)),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl ToRedisArgs for EntryId {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_position_and_back() {
        let id = EntryId::parse(b"1763736000123-42").expect("an id");
        assert_eq!((id, EntryId::from_offset(id.offset())), (EntryId { ms: 1_763_736_000_123, seq: 42 }, id));
        assert_eq!(id.to_string(), "1763736000123-42");
        assert!(EntryId::at(id.ms + 1).offset() > id.offset() && id.after().offset() == id.offset() + 1);
        assert_eq!((id.before().after(), EntryId::at(5).before()), (id, EntryId { ms: 4, seq: u64::MAX }));
        assert_eq!(EntryId::default().before(), EntryId::default());
        for text in ["", "1", "a-1", "1-", "-1", "1-2-3", "18446744073709551616-0"] {
            assert_eq!(EntryId::parse(text.as_bytes()), None, "{text}");
        }
        // Beyond any clock: still the last of all.
        assert_eq!(EntryId { ms: 1 << 50, seq: 1 }.offset(), u64::MAX);
    }
}
