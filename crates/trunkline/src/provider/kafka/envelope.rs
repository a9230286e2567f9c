//! A message as it lies on Kafka: key and payload as they are, the id as 16 bytes in the header `trunkline-id`, and all
//! other headers as native ones, in their order.

use bytes::{BufMut, Bytes, BytesMut};
use rdkafka::message::{Header, OwnedHeaders};

use super::queue::Message;
use crate::delivery::EnvelopeId;
use crate::message::{Headers, MessageId, Millis, header};
use crate::provider::Outgoing;

/// What a record batch of one message takes beside key, payload and headers: 61 bytes of the batch, 36 of the record at
/// most (KIP-98, "Message Format").
const FRAME: usize = 61 + 36;
/// The lengths of a header's name and value, at most.
const HEADER_FRAME: usize = 10;
/// The header of the id: name, value, and their two lengths of a byte each.
pub(super) const ID_BYTES: usize = header::ID.len() + 16 + 2;
/// What is kept free of the broker's limit for the envelope of a message without headers.
pub(super) const OVERHEAD: usize = FRAME + HEADER_FRAME + ID_BYTES;
/// Small messages share a buffer of this size; what one of them keeps alive is at most that.
const CHUNK: usize = 16 << 10;

/// What a message takes on the broker, at most.
pub(super) fn wire_size(message: &Outgoing) -> usize {
    OVERHEAD + message.size() + message.headers.len() * HEADER_FRAME
}

/// The headers as they are sent. `None` if a name holds a zero byte, which librdkafka cannot send.
pub(super) fn headers_out(message: &Outgoing) -> Option<OwnedHeaders> {
    let id = Header { key: header::ID, value: Some(message.id.as_bytes()) };
    let mut out = OwnedHeaders::new_with_capacity(1 + message.headers.len()).insert(id);
    for (name, value) in message.headers.iter() {
        if name.contains('\0') {
            return None;
        }
        out = out.insert(Header { key: name, value: Some(&value[..]) });
    }
    Some(out)
}

/// A message that came, in memory of our own.
#[derive(Debug, Clone)]
pub(super) struct Came {
    pub(super) offset: i64,
    pub(super) id: EnvelopeId,
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) stored_at: Millis,
}

impl Came {
    /// Bytes it holds.
    pub(super) fn size(&self) -> usize {
        let len = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        len(&self.payload) + len(&self.key) + self.headers.size() + 64
    }

    /// Copies a message, into a buffer that many small ones share.
    pub(super) fn copy(message: &Message, arena: &mut BytesMut) -> Self {
        let mut keep = |part: &[u8]| {
            if part.is_empty() {
                return Bytes::new();
            }
            if part.len() > CHUNK / 4 {
                return Bytes::copy_from_slice(part);
            }
            if arena.capacity() < part.len() {
                *arena = BytesMut::with_capacity(CHUNK);
            }
            arena.put_slice(part);
            arena.split().freeze()
        };
        let (mut id, mut headers) = (EnvelopeId::Foreign, Headers::new());
        for (name, value) in message.headers() {
            let value = value.unwrap_or_default();
            if name == header::ID.as_bytes() && id == EnvelopeId::Foreign {
                id = MessageId::from_bytes(value).map_or(EnvelopeId::Broken, EnvelopeId::Id);
                if id != EnvelopeId::Broken {
                    continue;
                }
            }
            headers.push(String::from_utf8_lossy(name), keep(value));
        }
        Came {
            offset: message.offset(),
            id,
            key: message.key().map(&mut keep),
            payload: message.payload().map(&mut keep),
            headers,
            stored_at: Millis::try_from(message.timestamp()).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;

    fn outgoing(headers: &[(&str, &[u8])]) -> Outgoing {
        Outgoing {
            id: MessageId::from_bytes(&[1, 2, 3, 4, 5, 6, 0x70, 8, 0x90, 10, 11, 12, 13, 14, 15, 16]).expect("an id"),
            shard: None,
            key: Some(Bytes::from_static(b"k")),
            headers: headers.iter().map(|(name, value)| (*name, Bytes::copy_from_slice(value))).collect(),
            payload: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn the_envelope_is_one_header_of_thirty_bytes() {
        let out = headers_out(&outgoing(&[])).expect("taken");
        let all: Vec<_> = out.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect();
        assert_eq!(all, [("trunkline-id".to_owned(), Some(vec![1, 2, 3, 4, 5, 6, 0x70, 8, 0x90, 10, 11, 12, 13, 14, 15, 16]))]);
        assert_eq!(ID_BYTES, 30);
    }

    #[test]
    fn headers_keep_their_order_and_come_more_than_once() {
        let out = headers_out(&outgoing(&[("a", b"1"), ("\u{fc}", b"\xff\x00"), ("a", b"")])).expect("taken");
        let all: Vec<_> = out.iter().skip(1).map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect();
        let wanted = [("a".to_owned(), Some(b"1".to_vec())), ("\u{fc}".to_owned(), Some(vec![0xff, 0])), ("a".to_owned(), Some(vec![]))];
        assert_eq!(all, wanted);
        assert!(headers_out(&outgoing(&[("a\0b", b"1")])).is_none());
    }
}
