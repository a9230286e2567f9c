//! How a message lies in SQS: the body, the attributes, and on FIFO queues the message group. SQS carries text, and ten
//! attributes at most.
//!
//! | part | where |
//! |---|---|
//! | payload of valid, non-empty text | the body, untouched |
//! | any other payload | attribute `trunkline-payload` (Binary), and the body is `-` |
//! | id | attribute `trunkline-id`, 22 characters |
//! | key | FIFO: the message group where it can be one; else attribute `trunkline-key` |
//! | headers | one attribute each; `trunkline-order` where they are not sorted by name |
//! | headers that cannot be attributes, or are too many | all in attribute `trunkline-headers` ([`Headers::encode`]) |
//!
//! What is empty has the type `String.empty` and the value `-`: SQS takes no empty values.

use std::collections::HashMap;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::delivery::EnvelopeId;
use crate::message::{Headers, MessageId, Millis, header};
use crate::provider::Outgoing;

/// The attribute of a payload that SQS cannot carry as text.
pub(super) const PAYLOAD: &str = "trunkline-payload";
/// The attribute of all headers, where they cannot be attributes of their own.
pub(super) const HEADERS: &str = "trunkline-headers";
/// The attribute of the order of the headers.
pub(super) const ORDER: &str = "trunkline-order";
/// As many attributes as SQS takes on a message.
const ATTRIBUTES: usize = 10;
/// The type and the value of what is empty.
const EMPTY: (&str, &str) = ("String.empty", "-");
/// One digit for the place of each header.
const DIGITS: &[u8; ATTRIBUTES] = b"0123456789";

/// A message as SQS takes it.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    pub(super) body: String,
    pub(super) attributes: HashMap<String, MessageAttributeValue>,
    /// On FIFO queues.
    pub(super) group: Option<String>,
    /// As SQS counts it: the body, and name, type and value of each attribute.
    pub(super) size: usize,
}

/// A message as SQS hands it out.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) id: EnvelopeId,
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) receives: u32,
    pub(super) stored_at: Millis,
    /// Where it lies, for a history: see [`offset`].
    pub(super) offset: u64,
}

/// Text as SQS takes it in bodies and attributes: the characters of XML 1.0, and not empty.
fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty())?;
    // All others are below the space, or these two.
    let plain = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars().all(plain).then_some(text)
}

fn value(kind: &str, text: Option<&str>, bytes: Option<&[u8]>) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder().data_type(kind).set_string_value(text.map(str::to_owned));
    let value = value.set_binary_value(bytes.map(Blob::new)).build();
    value.unwrap_or_else(|_| unreachable!("the one required field, the type, is set"))
}

fn any_value(bytes: &[u8]) -> MessageAttributeValue {
    match text(bytes) {
        Some(text) => value("String", Some(text), None),
        None if bytes.is_empty() => value(EMPTY.0, Some(EMPTY.1), None),
        None => value("Binary", None, Some(bytes)),
    }
}

fn bytes_of(value: MessageAttributeValue) -> Bytes {
    if value.data_type == EMPTY.0 {
        return Bytes::new();
    }
    match (value.string_value, value.binary_value) {
        (Some(text), _) => Bytes::from(text),
        (None, Some(blob)) => Bytes::from(blob.into_inner()),
        (None, None) => Bytes::new(),
    }
}

/// Whether a header may be an attribute of its own.
fn is_name(name: &str) -> bool {
    let own = [header::ID, header::KEY, PAYLOAD, HEADERS, ORDER].contains(&name);
    let reserved = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    !own && plain && !dots && (1..=256).contains(&name.len()) && !reserved("aws.") && !reserved("amazon.")
}

/// The places of the headers in the order of their names, if each can be an attribute of its own.
fn places(headers: &Headers, room: usize) -> Option<Vec<usize>> {
    let names: Vec<(&str, &Bytes)> = headers.iter().collect();
    if names.len() > room || names.iter().any(|(name, value)| value.is_empty() || !is_name(name)) {
        return None;
    }
    let mut places: Vec<usize> = (0..names.len()).collect();
    places.sort_unstable_by_key(|at| names[*at].0);
    let twice = places.windows(2).any(|pair| names[pair[0]].0 == names[pair[1]].0);
    let sorted = places.is_sorted();
    (!twice && (sorted || names.len() < room)).then_some(places)
}

/// A message as a queue takes it.
pub(super) fn encode(message: &Outgoing, fifo: bool) -> Encoded {
    let mut attributes = HashMap::with_capacity(1 + message.headers.len().min(ATTRIBUTES));
    let id = message.id.to_text();
    let group = fifo.then(|| group_of(message.key.as_deref(), &id));
    if let Some(key) = &message.key
        && group.as_deref().map(str::as_bytes) != Some(key)
    {
        attributes.insert(header::KEY.to_owned(), any_value(key));
    }
    attributes.insert(header::ID.to_owned(), value("String", Some(&id), None));
    let body = match text(&message.payload) {
        Some(text) => text.to_owned(),
        None => {
            attributes.insert(PAYLOAD.to_owned(), any_bytes(&message.payload));
            EMPTY.1.to_owned()
        }
    };
    if !message.headers.is_empty() {
        match places(&message.headers, ATTRIBUTES - attributes.len()) {
            Some(places) => {
                if !places.is_sorted() {
                    let mut order = vec![b'0'; places.len()];
                    for (place, at) in places.iter().enumerate() {
                        order[*at] = DIGITS[place];
                    }
                    attributes.insert(ORDER.to_owned(), any_value(&order));
                }
                attributes.extend(message.headers.iter().map(|(name, value)| (name.to_owned(), any_value(value))));
            }
            None => {
                let mut packed = Vec::with_capacity(message.headers.size() + 8 * message.headers.len());
                message.headers.encode(&mut packed);
                attributes.insert(HEADERS.to_owned(), value("Binary", None, Some(&packed)));
            }
        }
    }
    let size = body.len() + attributes.iter().map(|(name, value)| attribute_size(name, value)).sum::<usize>();
    Encoded { body, attributes, group, size }
}

/// As a Binary also where it is text that SQS does not take.
fn any_bytes(bytes: &[u8]) -> MessageAttributeValue {
    if bytes.is_empty() { any_value(bytes) } else { value("Binary", None, Some(bytes)) }
}

fn attribute_size(name: &str, value: &MessageAttributeValue) -> usize {
    let (text, bytes) = (value.string_value().map_or(0, str::len), value.binary_value().map_or(0, |blob| blob.as_ref().len()));
    name.len() + value.data_type().len() + text + bytes
}

/// The message group: the key where it can be one, else its hash; a message without a key is a group of its own.
fn group_of(key: Option<&[u8]>, id: &str) -> String {
    let Some(key) = key else { return id.to_owned() };
    let plain = (1..=128).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic) && key != id.as_bytes();
    match std::str::from_utf8(key) {
        Ok(text) if plain => text.to_owned(),
        _ => URL_SAFE_NO_PAD.encode(&Sha256::digest(key)[..16]),
    }
}

/// The parts of a message that was received.
pub(super) fn decode(message: &mut Message) -> Decoded {
    let mut system = message.attributes.take().unwrap_or_default();
    let mut number = |name| system.remove(&name).and_then(|text: String| text.parse::<u64>().ok());
    let receives = number(MessageSystemAttributeName::ApproximateReceiveCount).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX));
    let stored_at = number(MessageSystemAttributeName::SentTimestamp).unwrap_or(0);
    let group = system.remove(&MessageSystemAttributeName::MessageGroupId);
    let sequence = system.remove(&MessageSystemAttributeName::SequenceNumber);

    let mut attributes = message.message_attributes.take().unwrap_or_default();
    let id_text = attributes.remove(header::ID).map(bytes_of);
    let id = match &id_text {
        None => EnvelopeId::Foreign,
        Some(text) => {
            let id = std::str::from_utf8(text).ok().and_then(MessageId::from_text);
            id.map_or(EnvelopeId::Broken, EnvelopeId::Id)
        }
    };
    let key = match (attributes.remove(header::KEY), &group) {
        (Some(key), _) => Some(bytes_of(key)),
        // Its own group: it has no key.
        (None, Some(group)) if id_text.as_deref() != Some(group.as_bytes()) => Some(Bytes::copy_from_slice(group.as_bytes())),
        _ => None,
    };
    let payload = match attributes.remove(PAYLOAD) {
        Some(payload) => Some(bytes_of(payload)),
        None => message.body.take().map(Bytes::from),
    };
    let order = attributes.remove(ORDER).map(bytes_of);
    let packed = attributes.remove(HEADERS).map(bytes_of);
    let (headers, id) = match packed.as_ref().map(Headers::decode) {
        Some(Some(headers)) => (headers, id),
        Some(None) => (single(attributes, None), EnvelopeId::Broken),
        None => (single(attributes, order.as_deref()), id),
    };
    let of_broker = message.message_id.as_deref().unwrap_or_default();
    let offset = match (&sequence, id) {
        (Some(sequence), _) => offset(sequence),
        (None, EnvelopeId::Id(_)) => stored_at << 20 | (xxh3_64(of_broker.as_bytes()) & 0xf_ffff),
        // What a foreign message is known by: nothing but SQS's own id.
        (None, _) => xxh3_64(of_broker.as_bytes()),
    };
    Decoded { id, key, payload, headers, receives, stored_at, offset }
}

/// Headers that are attributes of their own: sorted by name, then put in the order they had.
fn single(attributes: HashMap<String, MessageAttributeValue>, order: Option<&[u8]>) -> Headers {
    let mut sorted: Vec<(String, Bytes)> = attributes.into_iter().map(|(name, value)| (name, bytes_of(value))).collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if let Some(order) = order.filter(|order| order.len() == sorted.len()) {
        let mut places: Vec<usize> = (0..sorted.len()).collect();
        places.sort_by_key(|at| {
            let digit = u8::try_from(*at).ok().and_then(|at| DIGITS.get(usize::from(at)));
            digit.and_then(|digit| order.iter().position(|place| place == digit))
        });
        let mut taken: Vec<Option<(String, Bytes)>> = sorted.into_iter().map(Some).collect();
        return places.into_iter().filter_map(|at| taken[at].take()).collect();
    }
    sorted.into_iter().collect()
}

/// A FIFO queue's sequence number as a position. Those of AWS have 20 digits, just above 64 bits, and end in eight zero
/// bits; higher is later all the same.
pub(super) fn offset(sequence: &str) -> u64 {
    match sequence.parse::<u128>() {
        Ok(number) if number < 1 << 63 => number as u64,
        Ok(number) => (1 << 63) + ((number >> 8) & ((1 << 63) - 1)) as u64,
        Err(_) => xxh3_64(sequence.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MessageId {
        "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id")
    }

    fn message(payload: &[u8]) -> Outgoing {
        Outgoing { id: id(), shard: None, key: None, headers: Headers::new(), payload: Bytes::copy_from_slice(payload) }
    }

    /// Attributes as `name:type=value`, sorted.
    fn shown(encoded: &Encoded) -> Vec<String> {
        let mut all: Vec<String> = encoded
            .attributes
            .iter()
            .map(|(name, value)| {
                let bytes = value.binary_value().map(|blob| format!("{:?}", blob.as_ref()));
                format!("{name}:{}={}", value.data_type(), bytes.or(value.string_value().map(str::to_owned)).unwrap_or_default())
            })
            .collect();
        all.sort_unstable();
        all
    }

    /// As it comes back.
    fn received(encoded: Encoded) -> Decoded {
        let system = HashMap::from([
            (MessageSystemAttributeName::ApproximateReceiveCount, "2".to_owned()),
            (MessageSystemAttributeName::SentTimestamp, "1700000000123".to_owned()),
        ]);
        let mut message = Message::builder().message_id("broker-id").body(encoded.body);
        message = message.set_message_attributes(Some(encoded.attributes)).set_attributes(Some(system));
        if let Some(group) = encoded.group {
            message = message.attributes(MessageSystemAttributeName::MessageGroupId, group);
        }
        decode(&mut message.build())
    }

    fn headers(list: &[(&str, &[u8])]) -> Headers {
        list.iter().map(|(name, value)| (*name, Bytes::copy_from_slice(value))).collect()
    }

    #[test]
    fn golden_text() {
        let encoded = encode(&message(b"{\"n\":1}\r\n"), false);
        assert_eq!(encoded.body, "{\"n\":1}\r\n");
        assert_eq!(shown(&encoded), ["trunkline-id:String=AYkKXayWd0u8zrMCCZqAVw"]);
        assert_eq!(encoded.group, None);
        // The envelope: forty bytes.
        assert_eq!(encoded.size, "{\"n\":1}\r\n".len() + 40);
    }

    #[test]
    fn golden_binary() {
        let encoded = encode(&message(b"\xff\x00"), false);
        assert_eq!(encoded.body, "-");
        assert_eq!(shown(&encoded), ["trunkline-id:String=AYkKXayWd0u8zrMCCZqAVw", "trunkline-payload:Binary=[255, 0]"]);
        let encoded = encode(&message(b""), false);
        assert_eq!((&*encoded.body, &*shown(&encoded)[1]), ("-", "trunkline-payload:String.empty=-"));
        // Text that SQS does not take.
        assert_eq!(shown(&encode(&message(b"a\x01"), false))[1], "trunkline-payload:Binary=[97, 1]");
    }

    #[test]
    fn golden_keys() {
        let keyed = |key: &[u8]| Outgoing { key: Some(Bytes::copy_from_slice(key)), ..message(b"p") };
        let encoded = encode(&keyed(b"customer:7"), false);
        assert_eq!(shown(&encoded)[1], "trunkline-key:String=customer:7");
        let encoded = encode(&keyed(b"customer:7"), true);
        assert_eq!((encoded.group.as_deref(), encoded.attributes.len()), (Some("customer:7"), 1));
        let encoded = encode(&keyed(b"two words"), true);
        assert_eq!(encoded.group.as_deref(), Some("oD8dYRZF61OtFsGvVGygeQ"));
        assert_eq!(shown(&encoded)[1], "trunkline-key:String=two words");
        let encoded = encode(&message(b"p"), true);
        assert_eq!((encoded.group.as_deref(), encoded.attributes.len()), (Some("AYkKXayWd0u8zrMCCZqAVw"), 1));
    }

    #[test]
    fn golden_headers() {
        let with = |list: &[(&str, &[u8])]| Outgoing { headers: headers(list), ..message(b"p") };
        let encoded = encode(&with(&[("a", b"1"), ("b", b"\xff")]), false);
        assert_eq!(shown(&encoded), ["a:String=1", "b:Binary=[255]", "trunkline-id:String=AYkKXayWd0u8zrMCCZqAVw"]);
        let encoded = encode(&with(&[("b", b"1"), ("c", b"2"), ("a", b"3")]), false);
        assert_eq!(shown(&encoded)[4], "trunkline-order:String=120");
        let encoded = encode(&with(&[("a", b"1"), ("a", b"2")]), false);
        assert_eq!(shown(&encoded)[0], "trunkline-headers:Binary=[2, 0, 1, 0, 97, 1, 0, 0, 0, 49, 1, 0, 97, 1, 0, 0, 0, 50]");
    }

    #[test]
    fn what_is_sent_comes_back() {
        let many: Vec<(String, Vec<u8>)> = (0..12).map(|n| (format!("h{n}"), vec![n])).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
        let nine: Vec<(&str, &[u8])> = many[..9].to_vec();
        let unsorted: Vec<(&str, &[u8])> = nine.iter().rev().copied().collect();
        let lists: [&[(&str, &[u8])]; 8] = [
            &[],
            &[("a", b"1")],
            &[("b", b"1"), ("a", b"\x00"), ("c", b"3")],
            &[("empty", b"")],
            &[("with space", b"1"), ("AWS.x", b"2"), ("trunkline-id", b"3")],
            &nine,
            &unsorted,
            &many,
        ];
        let keys: [Option<&[u8]>; 6] =
            [None, Some(b""), Some(b"k"), Some(b"\xff\xfe"), Some(b"AYkKXayWd0u8zrMCCZqAVw"), Some(&[b'x'; 200])];
        let payloads: [&[u8]; 4] = [b"text", b"", b"\x00\xff", "ünïcödé ✉ 𝄞\u{fffd}".as_bytes()];
        for fifo in [false, true] {
            for list in lists {
                for key in keys {
                    for payload in payloads {
                        let key = key.map(Bytes::copy_from_slice);
                        let sent = Outgoing { headers: headers(list), key: key.clone(), ..message(payload) };
                        let encoded = encode(&sent, fifo);
                        assert!(encoded.attributes.len() <= ATTRIBUTES);
                        let came = received(encoded);
                        assert_eq!(came.id, EnvelopeId::Id(id()));
                        assert_eq!((came.key, came.payload.as_deref()), (key, Some(payload)));
                        assert_eq!(came.headers, sent.headers);
                        assert_eq!((came.receives, came.stored_at), (2, 1_700_000_000_123));
                    }
                }
            }
        }
    }

    #[test]
    fn a_foreign_message_is_known_by_the_broker_s_id() {
        let foreign = || Message::builder().message_id("broker-id").body("hello").build();
        let came = decode(&mut foreign());
        assert_eq!((came.id, came.payload.as_deref(), came.key), (EnvelopeId::Foreign, Some(&b"hello"[..]), None));
        assert_eq!(came.offset, decode(&mut foreign()).offset);
        let mut broken = foreign();
        broken.message_attributes = Some(HashMap::from([(header::ID.to_owned(), value("String", Some("no id"), None))]));
        assert_eq!(decode(&mut broken).id, EnvelopeId::Broken);
    }

    #[test]
    fn sequence_numbers_rise() {
        let numbers = ["0", "7", "18849496460467696128", "18849496460467696384", "18849496460467700000"];
        let offsets: Vec<u64> = numbers.map(offset).into();
        assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "{offsets:?}");
    }
}
