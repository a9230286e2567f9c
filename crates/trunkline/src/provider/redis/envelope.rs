//! What of a message lies in the fields of a stream entry.
//!
//! `trunkline-id`, 16 bytes; `key`, if it has one; `payload`; then its headers, each a field of its own, in order. After
//! `payload` every name is a header's, so nothing needs to be escaped: a stream's entry is a list, names may repeat.
//!
//! An entry of another client is read by the same names wherever they stand. Where it has one field only, that is its
//! payload, whatever its name.

use bytes::Bytes;
use redis::{Cmd, Value};

use crate::delivery::EnvelopeId;
use crate::message::{Headers, MessageId, header};
use crate::provider::Outgoing;

const KEY: &str = "key";
const PAYLOAD: &str = "payload";

/// Appends the fields of a message to an `XADD`.
pub(super) fn write(cmd: &mut Cmd, message: &Outgoing) {
    cmd.arg(header::ID).arg(&message.id.as_bytes()[..]);
    if let Some(key) = &message.key {
        cmd.arg(KEY).arg(&key[..]);
    }
    cmd.arg(PAYLOAD).arg(&message.payload[..]);
    for (name, value) in message.headers.iter() {
        cmd.arg(name).arg(&value[..]);
    }
}

/// How many arguments that is, and about how many bytes.
pub(super) fn room(message: &Outgoing) -> (usize, usize) {
    (6 + 2 * message.headers.len(), 48 + message.size())
}

/// A message as its entry holds it.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) id: EnvelopeId,
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Headers,
}

/// Reads the fields of an entry: names and values by turns.
pub(super) fn read(fields: Vec<Value>) -> Entry {
    let mut entry = Entry { id: EnvelopeId::Foreign, key: None, payload: None, headers: Headers::new() };
    let alone = fields.len() == 2;
    let mut ours = false;
    let mut fields = fields.into_iter();
    let mut first = true;
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let (name, value) = (bytes(name), bytes(value));
        let open = !(ours && entry.payload.is_some());
        match &name[..] {
            b"trunkline-id" if open && entry.id == EnvelopeId::Foreign => {
                entry.id = id(&value);
                ours = first;
            }
            b"key" if open && entry.key.is_none() => entry.key = Some(value.into()),
            b"payload" if open && entry.payload.is_none() => entry.payload = Some(value.into()),
            _ if alone => entry.payload = Some(value.into()),
            _ => entry.headers.push(String::from_utf8_lossy(&name), value),
        }
        first = false;
    }
    entry
}

/// 16 bytes, or the 22 characters that a person can type.
fn id(value: &[u8]) -> EnvelopeId {
    let typed = || std::str::from_utf8(value).ok().and_then(MessageId::from_text);
    MessageId::from_bytes(value).or_else(typed).map_or(EnvelopeId::Broken, EnvelopeId::Id)
}

/// The bytes of a string of any kind; nothing else is a name or a value.
pub(super) fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        Value::Int(number) => number.to_string().into_bytes(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(key: Option<&'static [u8]>, headers: &[(&str, &'static [u8])]) -> Outgoing {
        Outgoing {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id"),
            shard: None,
            key: key.map(Bytes::from_static),
            headers: headers.iter().map(|(name, value)| (*name, Bytes::from_static(value))).collect(),
            payload: Bytes::from_static(b"{\"n\":1}"),
        }
    }

    fn fields(message: &Outgoing) -> Vec<Vec<u8>> {
        let mut cmd = Cmd::new();
        write(&mut cmd, message);
        let simple = |arg| match arg {
            redis::Arg::Simple(bytes) => Vec::from(bytes),
            _ => Vec::new(),
        };
        cmd.args_iter().map(simple).collect()
    }

    fn values(fields: &[&[u8]]) -> Vec<Value> {
        fields.iter().map(|field| Value::BulkString(field.to_vec())).collect()
    }

    const ID: &[u8] = b"\x01\x89\x0a\x5d\xac\x96\x77\x4b\xbc\xce\xb3\x02\x09\x9a\x80\x57";

    #[test]
    fn the_bytes_on_the_broker_are_these() {
        assert_eq!(fields(&message(None, &[])), [b"trunkline-id", ID, b"payload", b"{\"n\":1}"]);
        let full = message(Some(b"k\xff"), &[("a", b"1"), ("payload", b"x"), ("a", b"\0"), ("key", b"")]);
        let wanted: [&[u8]; 14] =
            [b"trunkline-id", ID, b"key", b"k\xff", b"payload", b"{\"n\":1}", b"a", b"1", b"payload", b"x", b"a", b"\0", b"key", b""];
        assert_eq!(fields(&full), wanted);
        // The envelope: all that is neither the user's payload, nor the key's bytes, nor a header.
        let envelope = |message: &Outgoing| fields(message).iter().map(Vec::len).sum::<usize>() - message.size();
        assert_eq!((envelope(&message(None, &[])), envelope(&full)), (35, 38));
    }

    #[test]
    fn what_was_written_is_read() {
        for sent in [message(None, &[]), message(Some(b"k"), &[("key", b"1"), ("payload", b"2"), ("trunkline-id", b"3"), ("key", b"4")])] {
            let fields = fields(&sent).into_iter().map(Value::BulkString).collect();
            let Outgoing { id, key, headers, payload, .. } = sent;
            assert_eq!(read(fields), Entry { id: EnvelopeId::Id(id), key, payload: Some(payload), headers });
        }
    }

    #[test]
    fn entries_of_others_are_read() {
        let entry = read(values(&[b"data", b"{}"]));
        assert_eq!((entry.id, entry.payload, entry.headers.len()), (EnvelopeId::Foreign, Some(Bytes::from_static(b"{}")), 0));
        let entry = read(values(&[b"source", b"web", b"payload", b"{}", b"key", b"k", b"trunkline-id", b"AYkKXayWd0u8zrMCCZqAVw"]));
        assert!(matches!(entry.id, EnvelopeId::Id(id) if id.as_bytes() == ID));
        assert_eq!((entry.key.as_deref(), entry.payload.as_deref()), (Some(&b"k"[..]), Some(&b"{}"[..])));
        assert_eq!(entry.headers.get_str("source"), Some("web"));
        let entry = read(values(&[b"a", b"1", b"b", b"2"]));
        assert_eq!((entry.payload, entry.headers.len()), (None, 2));
        assert_eq!(read(values(&[b"trunkline-id", b"no", b"payload", b"x"])).id, EnvelopeId::Broken);
        assert_eq!(read(Vec::new()).payload, None);
    }
}
