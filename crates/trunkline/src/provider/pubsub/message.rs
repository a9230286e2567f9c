//! How a message lies in Pub/Sub: data, attributes, ordering key. Data are bytes; attributes are text, at most 100 of them of
//! at most 1,024 bytes each; an ordering key is text of at most 1,024 bytes.
//!
//! | part | where |
//! |---|---|
//! | payload | the data, untouched |
//! | id | attribute `trunkline-id`, 22 characters |
//! | key | on ordered topics the ordering key, where it can be one; else attribute `trunkline-key` |
//! | headers | an attribute each; `trunkline-order` where they are not sorted by name |
//! | headers that cannot be attributes, or are too many, and a key that cannot | all in `trunkline-headers-0`, `-1`, …: base64 of [`Headers::encode`] |

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::PubsubMessage;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::delivery::EnvelopeId;
use crate::message::{Headers, MessageId, Millis, header};
use crate::provider::Outgoing;

/// The attributes of all headers together, where they cannot be attributes of their own.
const HEADERS: &str = "trunkline-headers-";
/// Says that the last of them is the key.
const KEYED: &str = "trunkline-headers-key";
/// The attribute of the order of the headers.
const ORDER: &str = "trunkline-order";
/// The most of one attribute's value, in bytes.
const VALUE: usize = 1024;
/// The most of one attribute's name, in bytes.
const NAME: usize = 256;
/// As many headers are attributes of their own: each place is one character of ASCII, and Pub/Sub takes 100 attributes.
const SINGLE: usize = 70;
/// As many attributes hold the headers that are not.
const PACKED: usize = 90;
/// The first character of [`ORDER`].
const FIRST: u8 = b'0';

/// The most that headers and key may take where they cannot be attributes, in bytes.
pub(super) const LARGEST_HEADERS: usize = PACKED * VALUE / 4 * 3;

/// A message that was received.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) id: EnvelopeId,
    pub(super) key: Option<Bytes>,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Headers,
    pub(super) stored_at: Millis,
    /// Where it lies: see [`offset`].
    pub(super) offset: u64,
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| (1..=VALUE).contains(&text.len()))
}

/// Whether a header may be an attribute of its own.
fn is_name(name: &str) -> bool {
    let own = name == header::ID || name == header::KEY || name == ORDER || name.starts_with(HEADERS);
    !own && (1..=NAME).contains(&name.len()) && !name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("goog"))
}

/// The places of the headers in the order of their names, if each can be an attribute of its own.
fn places(headers: &Headers) -> Option<Vec<u8>> {
    let names: Vec<(&str, &Bytes)> = headers.iter().collect();
    if names.len() > SINGLE || names.iter().any(|(name, value)| text(value).is_none() || !is_name(name)) {
        return None;
    }
    let mut places: Vec<u8> = (0..names.len() as u8).collect();
    places.sort_unstable_by_key(|at| names[usize::from(*at)].0);
    let twice = places.windows(2).any(|pair| names[usize::from(pair[0])].0 == names[usize::from(pair[1])].0);
    (!twice).then_some(places)
}

/// The ordering key of a message on an ordered topic: its key where that can be one, else its hash.
fn ordering_key(key: &[u8]) -> String {
    text(key).map_or_else(|| URL_SAFE_NO_PAD.encode(&Sha256::digest(key)[..16]), str::to_owned)
}

/// A message as Pub/Sub takes it; `None` if its headers are more than attributes can hold.
pub(super) fn encode(message: &Outgoing, ordered: bool) -> Option<PubsubMessage> {
    let mut attributes = HashMap::with_capacity(2 + message.headers.len().min(SINGLE));
    attributes.insert(header::ID.to_owned(), message.id.to_text());
    let ordering_key = message.key.as_deref().filter(|_| ordered).map(ordering_key).unwrap_or_default();
    let key = message.key.as_deref().filter(|key| ordering_key.as_bytes() != *key || key.is_empty());
    let mut apart = false;
    match key.map(text) {
        None => {}
        Some(Some(text)) => drop(attributes.insert(header::KEY.to_owned(), text.to_owned())),
        Some(None) => apart = true,
    }
    let places = if apart || message.headers.is_empty() { None } else { places(&message.headers) };
    match places {
        Some(places) => {
            if !places.is_sorted() {
                let mut order = vec![FIRST; places.len()];
                for (place, at) in (FIRST..).zip(&places) {
                    order[usize::from(*at)] = place;
                }
                attributes.insert(ORDER.to_owned(), String::from_utf8(order).ok()?);
            }
            attributes.extend(message.headers.iter().filter_map(|(name, value)| Some((name.to_owned(), text(value)?.to_owned()))));
        }
        None if apart || !message.headers.is_empty() => {
            let mut headers = message.headers.clone();
            if let Some(key) = message.key.as_ref().filter(|_| apart) {
                headers.push(header::KEY, key.clone());
                attributes.insert(KEYED.to_owned(), "1".to_owned());
            }
            let mut packed = Vec::with_capacity(headers.size() + 8 * headers.len());
            headers.encode(&mut packed);
            if packed.len() > LARGEST_HEADERS {
                return None;
            }
            for (n, part) in packed.chunks(VALUE / 4 * 3).enumerate() {
                attributes.insert(format!("{HEADERS}{n}"), STANDARD_NO_PAD.encode(part));
            }
        }
        None => {}
    }
    Some(PubsubMessage { data: message.payload.clone(), attributes, ordering_key, ..PubsubMessage::default() })
}

/// The parts of a message that was received.
pub(super) fn decode(message: PubsubMessage) -> Decoded {
    let PubsubMessage { data, mut attributes, message_id, publish_time, ordering_key } = message;
    let stored_at =
        publish_time.map_or(0, |at| u64::try_from(at.seconds).unwrap_or(0) * 1000 + u64::try_from(at.nanos).unwrap_or(0) / 1_000_000);
    let mut id = match attributes.remove(header::ID) {
        None => EnvelopeId::Foreign,
        Some(text) => MessageId::from_text(&text).map_or(EnvelopeId::Broken, EnvelopeId::Id),
    };
    let mut key = attributes.remove(header::KEY).map(Bytes::from);
    let keyed = attributes.remove(KEYED).is_some();
    let headers = match packed(&mut attributes) {
        None => single(attributes),
        Some(Some(headers)) if keyed => {
            key = headers.iter().last().map(|(_, value)| value.clone());
            let others = headers.len().saturating_sub(1);
            headers.iter().take(others).map(|(name, value)| (name.to_owned(), value.clone())).collect()
        }
        Some(Some(headers)) => headers,
        Some(None) => {
            id = EnvelopeId::Broken;
            single(attributes)
        }
    };
    let key = key.or_else(|| (!ordering_key.is_empty()).then(|| Bytes::from(ordering_key)));
    let payload = (id != EnvelopeId::Foreign || !data.is_empty()).then_some(data);
    Decoded { id, key, payload, headers, stored_at, offset: offset(&message_id) }
}

/// Headers that lie together; `None` inside if they are damaged.
fn packed(attributes: &mut HashMap<String, String>) -> Option<Option<Headers>> {
    let first = attributes.remove(&format!("{HEADERS}0"))?;
    let mut bytes = Vec::with_capacity(first.len());
    let mut part = Some(first);
    let mut n = 0;
    while let Some(text) = part {
        if STANDARD_NO_PAD.decode_vec(&text, &mut bytes).is_err() {
            return Some(None);
        }
        n += 1;
        part = attributes.remove(&format!("{HEADERS}{n}"));
    }
    Some(Headers::decode(&Bytes::from(bytes)))
}

/// Headers that are attributes of their own: sorted by name, then put in the order they had.
fn single(mut attributes: HashMap<String, String>) -> Headers {
    let order = attributes.remove(ORDER);
    let mut sorted: Vec<(String, Bytes)> = attributes.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let Some(order) = order.filter(|order| order.len() == sorted.len()) else { return sorted.into_iter().collect() };
    let mut taken: Vec<Option<(String, Bytes)>> = sorted.into_iter().map(Some).collect();
    let mut headers: Vec<_> = order.bytes().filter_map(|place| taken.get_mut(usize::from(place.wrapping_sub(FIRST)))?.take()).collect();
    // An order that is not one loses nothing.
    headers.extend(taken.into_iter().flatten());
    headers.into_iter().collect()
}

/// Pub/Sub's message id as a position: a number on the service, and behind a letter on the test server. It is unique in the
/// topic; for messages of one key it grows.
pub(super) fn offset(message_id: &str) -> u64 {
    let digits = message_id.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or_else(|_| xxh3_64(message_id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn id() -> MessageId {
        "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id")
    }

    fn message(payload: &[u8]) -> Outgoing {
        Outgoing { id: id(), shard: None, key: None, headers: Headers::new(), payload: Bytes::copy_from_slice(payload) }
    }

    fn keyed(key: &[u8]) -> Outgoing {
        Outgoing { key: Some(Bytes::copy_from_slice(key)), ..message(b"p") }
    }

    fn with(list: &[(&str, &[u8])]) -> Outgoing {
        let headers = list.iter().map(|(name, value)| (*name, Bytes::copy_from_slice(value))).collect();
        Outgoing { headers, ..message(b"p") }
    }

    /// Attributes as `name=value`, sorted.
    fn shown(message: &PubsubMessage) -> Vec<String> {
        let mut all: Vec<String> = message.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.sort_unstable();
        all
    }

    fn encoded(message: &Outgoing, ordered: bool) -> PubsubMessage {
        encode(message, ordered).expect("it fits")
    }

    /// Comes back as it was sent.
    fn survives(message: &Outgoing) {
        for ordered in [false, true] {
            let back = decode(encoded(message, ordered));
            assert_eq!((back.id, &back.key, back.payload.as_ref()), (EnvelopeId::Id(message.id), &message.key, Some(&message.payload)));
            assert_eq!(back.headers.iter().collect::<Vec<_>>(), message.headers.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn golden() {
        let sent = encoded(&message(b"{\"n\":1}\r\n\0\xff"), false);
        assert_eq!((&*sent.data, &*sent.ordering_key), (&b"{\"n\":1}\r\n\0\xff"[..], ""));
        assert_eq!(shown(&sent), ["trunkline-id=AYkKXayWd0u8zrMCCZqAVw"]);
        // The envelope: forty bytes.
        let all = sent.encoded_len();
        assert_eq!(all - PubsubMessage { data: sent.data, ..PubsubMessage::default() }.encoded_len(), 40);
        let bytes = b"\n\x01p\x12&\n\x0ctrunkline-id\x12\x16AYkKXayWd0u8zrMCCZqAVw";
        assert_eq!(encoded(&message(b"p"), false).encode_to_vec(), bytes);
    }

    #[test]
    fn golden_keys() {
        let sent = encoded(&keyed(b"customer:7"), false);
        assert_eq!((&*sent.ordering_key, &*shown(&sent)[1]), ("", "trunkline-key=customer:7"));
        let sent = encoded(&keyed(b"customer:7"), true);
        assert_eq!((&*sent.ordering_key, sent.attributes.len()), ("customer:7", 1));
        let sent = encoded(&keyed(b"\xff"), true);
        assert_eq!((&*sent.ordering_key, sent.attributes.len()), ("qBAK5qoZQNC2Y7sxzUZhQg", 3));
        assert_eq!(encoded(&keyed(&[b'k'; 1025]), true).ordering_key.len(), 22);
        for key in [&b"k"[..], b"", b"\xff\0", &[b'k'; 1024], &[b'k'; 5000], "Schl\u{fc}ssel".as_bytes(), b"trunkline-id"] {
            survives(&keyed(key));
        }
    }

    #[test]
    fn golden_headers() {
        let sent = encoded(&with(&[("b", b"2"), ("a", b"1"), ("c", b"3")]), false);
        assert_eq!(shown(&sent), ["a=1", "b=2", "c=3", "trunkline-id=AYkKXayWd0u8zrMCCZqAVw", "trunkline-order=102"]);
        let sent = encoded(&with(&[("a", b"1"), ("a", b"2")]), false);
        assert_eq!(shown(&sent)[0], "trunkline-headers-0=AgABAGEBAAAAMQEAYQEAAAAy");
        let many: Vec<(String, Vec<u8>)> = (0..80).map(|n| (format!("h{n}"), vec![b'v'; 200])).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
        let sent = encoded(&with(&many), false);
        assert!(sent.attributes.len() > 10 && sent.attributes.values().all(|value| value.len() <= VALUE));
        let long = vec![b'v'; 60_000];
        for list in [
            &many[..],
            &many[..SINGLE],
            &[("a", b"1"), ("a", b"2"), ("b", b""), ("a", b"1")],
            &[("binary", b"\0\xff"), ("googclient", b"x"), ("trunkline-id", b"y"), ("trunkline-key", b"z")],
            &[("trunkline-order", b"0"), ("trunkline-headers-0", b"x")],
            &[("long", &long)],
        ] {
            survives(&with(list));
            survives(&Outgoing { key: Some(Bytes::from_static(b"\xff")), ..with(list) });
        }
        assert!(encode(&with(&[("long", &vec![b'v'; LARGEST_HEADERS])]), false).is_none());
    }

    #[test]
    fn a_foreign_message_is_what_it_is() {
        let attributes = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), String::new())].into();
        let foreign =
            PubsubMessage { attributes, message_id: "2070443601311540".into(), ordering_key: "k".into(), ..PubsubMessage::default() };
        let decoded = decode(foreign.clone());
        assert_eq!((decoded.id, decoded.payload, decoded.offset), (EnvelopeId::Foreign, None, 2_070_443_601_311_540));
        assert_eq!(decoded.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(decoded.headers.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
        let mut broken = foreign;
        broken.attributes.insert(header::ID.to_owned(), "not an id".to_owned());
        assert_eq!(decode(broken).id, EnvelopeId::Broken);
        let mut broken = encoded(&with(&[("a", b"1"), ("a", b"2")]), false);
        broken.attributes.insert(format!("{HEADERS}0"), "AgA".to_owned());
        assert_eq!(decode(broken).id, EnvelopeId::Broken);
    }

    #[test]
    fn ids_are_positions() {
        assert_eq!((offset("m17"), offset("11834567890123456")), (17, 11_834_567_890_123_456));
        assert_ne!(offset("abc"), offset("abd"));
    }
}
