//! How a message travels: the payload untouched, the rest as NATS headers, which are lines of text.
//!
//! - The id is the server's own dedup id, `Nats-Msg-Id: tl:<22 characters>`: 40 bytes. A copy that may come again under the
//!   same id (one that waits in the lot, a dead letter) carries it as `trunkline-id` instead, so that the server does not
//!   take it for a repetition and drop it.
//! - The key is `trunkline-key`.
//! - A header stands under its own name with its own text. What is not text is `=?binary?B?<base64>?=`, as RFC 2047 writes
//!   it; a name that NATS does not take, or that means something to NATS, is `trunkline-name-<base64url>`.
//! - NATS keeps the order of the values of one name, not that of different names: where the headers are not sorted by
//!   name, `trunkline-order` says how they stood.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue, NATS_MESSAGE_ID};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;

use crate::delivery::EnvelopeId;
use crate::message::{Headers, MessageId, header};
use crate::provider::Outgoing;

/// In front of the id in `Nats-Msg-Id`, where others put what they like.
const MARK: &str = "tl:";
const ORDER: &str = "trunkline-order";
const NAME: &str = "trunkline-name-";
/// The server's, on what a pinned client is given.
pub(super) const PIN_ID: &str = "Nats-Pin-Id";

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The headers of a message, and the bytes they take on the wire.
pub(super) fn encode(message: &Outgoing) -> (HeaderMap, usize) {
    let mut out = Lines { map: HeaderMap::new(), bytes: 12 };
    if comes_again(&message.headers) {
        out.push(HeaderName::from_static(header::ID), message.id.to_text());
    } else {
        out.push(NATS_MESSAGE_ID, format!("{MARK}{}", message.id.to_text()));
    }
    if let Some(key) = &message.key {
        out.push(HeaderName::from_static(header::KEY), value(key));
    }
    for (name, bytes) in message.headers.iter() {
        out.push(name_of(name), value(bytes));
    }
    if let Some(order) = order(&message.headers) {
        out.push(HeaderName::from_static(ORDER), order);
    }
    (out.map, out.bytes)
}

struct Lines {
    map: HeaderMap,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, name: HeaderName, value: String) {
        self.bytes += AsRef::<str>::as_ref(&name).len() + value.len() + 4;
        // What `value` returns has no line break, which is all that is refused.
        self.map.append(name, HeaderValue::from(value));
    }
}

/// Copies in the lot: the same id may lie in the same stream more than once.
fn comes_again(headers: &Headers) -> bool {
    !headers.is_empty() && [header::NOT_BEFORE, header::ATTEMPT, header::REASON].iter().any(|name| headers.get(name).is_some())
}

/// What a message carried.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) id: EnvelopeId,
    pub(super) key: Option<Bytes>,
    pub(super) headers: Headers,
}

pub(super) fn decode(map: Option<HeaderMap>) -> Envelope {
    let mut envelope = Envelope { id: EnvelopeId::Foreign, key: None, headers: Headers::new() };
    let Some(map) = map else { return envelope };
    let mut order = None;
    let mut own = None;
    // Sorted by name: that is the order where nothing else is said.
    let mut found: BTreeMap<Box<str>, Vec<Bytes>> = BTreeMap::new();
    for (name, values) in map.iter() {
        let name: &str = name.as_ref();
        let first = values.first().map_or("", HeaderValue::as_str);
        match name {
            PIN_ID => {}
            header::ID => own = Some(MessageId::from_text(first).map_or(EnvelopeId::Broken, EnvelopeId::Id)),
            header::KEY => envelope.key = Some(bytes(first)),
            ORDER => order = Some(first.to_owned()),
            "Nats-Msg-Id" if marked(first).is_some() => {
                if let Some(id) = marked(first) {
                    envelope.id = EnvelopeId::Id(id);
                }
            }
            _ => drop(found.insert(original(name), values.iter().map(|value| bytes(value.as_str())).collect())),
        }
    }
    envelope.id = own.unwrap_or(envelope.id);
    if !found.is_empty() {
        envelope.headers = in_order(found, order.as_deref());
    }
    envelope
}

fn marked(text: &str) -> Option<MessageId> {
    text.strip_prefix(MARK).and_then(MessageId::from_text)
}

/// How the names stood, as places in the sorted list of names; `None` if they stood sorted.
fn order(headers: &Headers) -> Option<String> {
    if headers.len() < 2 {
        return None;
    }
    let names: Vec<&str> = headers.iter().map(|(name, _)| name).collect();
    if names.is_sorted() {
        return None;
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    let places = names.iter().filter_map(|name| sorted.binary_search(name).ok());
    Some(if sorted.len() <= DIGITS.len() {
        places.map(|place| char::from(DIGITS[place])).collect()
    } else {
        places.map(|place| place.to_string()).collect::<Vec<_>>().join(".")
    })
}

/// Puts the values back where they stood; an order that does not fit them is passed over.
fn in_order(found: BTreeMap<Box<str>, Vec<Bytes>>, order: Option<&str>) -> Headers {
    let sorted: Vec<(Box<str>, Vec<Bytes>)> = found.into_iter().collect();
    let plain = |sorted: Vec<(Box<str>, Vec<Bytes>)>| {
        sorted.into_iter().flat_map(|(name, values)| values.into_iter().map(move |value| (name.clone(), value))).collect()
    };
    let Some(order) = order else { return plain(sorted) };
    let places: Option<Vec<usize>> = if order.contains('.') {
        order.split('.').map(|part| part.parse().ok()).collect()
    } else {
        order.bytes().map(|digit| DIGITS.iter().position(|known| *known == digit)).collect()
    };
    let mut taken = vec![0_usize; sorted.len()];
    let total: usize = sorted.iter().map(|(_, values)| values.len()).sum();
    let Some(places) = places.filter(|places| places.len() == total) else { return plain(sorted) };
    let mut headers = Vec::with_capacity(total);
    for place in places {
        let next = sorted.get(place).and_then(|(name, values)| {
            let value = values.get(taken[place])?;
            taken[place] += 1;
            Some((name.clone(), value.clone()))
        });
        match next {
            Some(next) => headers.push(next),
            None => return plain(sorted),
        }
    }
    headers.into_iter().collect()
}

fn name_of(name: &str) -> HeaderName {
    let taken = |ours: &str| name.eq_ignore_ascii_case(ours);
    let starts = |with: &str| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let plain = !name.is_empty()
        && name.bytes().all(|byte| (33..=126).contains(&byte) && byte != b':')
        && !starts("nats-")
        && !starts(NAME)
        && ![header::ID, header::KEY, ORDER].into_iter().any(taken);
    let text = if plain { name.to_owned() } else { format!("{NAME}{}", URL_SAFE_NO_PAD.encode(name)) };
    // Only characters that a name may have.
    text.parse().unwrap_or_else(|_| HeaderName::from_static(NAME))
}

fn original(name: &str) -> Box<str> {
    let decoded =
        name.strip_prefix(NAME).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.map_or_else(|| name.into(), Into::into)
}

fn value(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with("=?") && text.trim().len() == text.len() && !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("=?binary?B?{}?=", STANDARD.encode(bytes)),
    }
}

fn bytes(text: &str) -> Bytes {
    let encoded = text.strip_prefix("=?binary?B?").and_then(|text| text.strip_suffix("?="));
    match encoded.and_then(|text| STANDARD.decode(text).ok()) {
        Some(decoded) => decoded.into(),
        None => Bytes::copy_from_slice(text.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(key: Option<&[u8]>, headers: &[(&str, &[u8])]) -> Outgoing {
        let id = MessageId::derived(1_700_000_000_123, &[b"golden"]);
        let headers = headers.iter().map(|(name, value)| (*name, Bytes::copy_from_slice(value))).collect();
        Outgoing { id, shard: None, key: key.map(Bytes::copy_from_slice), headers, payload: Bytes::from_static(b"{}") }
    }

    /// The lines as they stand on the wire, sorted, since the client writes them in any order.
    fn wire(message: &Outgoing) -> Vec<String> {
        let (map, bytes) = encode(message);
        let mut lines: Vec<String> =
            map.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}"))).collect();
        assert_eq!(bytes, 12 + lines.iter().map(|line| line.len() + 2).sum::<usize>(), "the size that was reckoned with");
        lines.sort_unstable();
        lines
    }

    #[test]
    fn golden_bytes() {
        let id = MessageId::derived(1_700_000_000_123, &[b"golden"]).to_text();
        assert_eq!(id, "AYvP5Wh7g1W25BFWf1tdpQ");
        let plain = wire(&message(None, &[]));
        assert_eq!(plain, [format!("Nats-Msg-Id: tl:{id}")]);
        assert_eq!(plain[0].len() + 2, 40, "at most 40 bytes of envelope");
        assert_eq!(wire(&message(Some(b"k 1"), &[])), [format!("Nats-Msg-Id: tl:{id}"), "trunkline-key: k 1".into()]);
        assert_eq!(
            wire(&message(Some(b"\xff"), &[("b", b"2"), ("a", b"1"), ("b", b"3"), ("Nats-Rollup", b"all"), ("n\u{f6}", b" x")])),
            [
                format!("Nats-Msg-Id: tl:{id}"),
                "a: 1".into(),
                "b: 2".into(),
                "b: 3".into(),
                "trunkline-key: =?binary?B?/w==?=".into(),
                "trunkline-name-TmF0cy1Sb2xsdXA: all".into(),
                "trunkline-name-bsO2: =?binary?B?IHg=?=".into(),
                "trunkline-order: CBCAD".into(),
            ]
        );
    }

    #[test]
    fn copies_in_the_lot_are_not_dropped_as_repetitions() {
        let id = MessageId::derived(1_700_000_000_123, &[b"golden"]).to_text();
        for name in [header::NOT_BEFORE, header::ATTEMPT, header::REASON] {
            let copy = message(None, &[(name, b"1")]);
            let mut lines = vec![format!("trunkline-id: {id}"), format!("{name}: 1")];
            lines.sort_unstable();
            assert_eq!(wire(&copy), lines);
            assert_eq!(decode(Some(encode(&copy).0)).id, EnvelopeId::Id(copy.id));
        }
    }

    #[test]
    fn everything_comes_back() {
        let many: Vec<(String, Vec<u8>)> = (0..70_u8).rev().map(|n| (format!("h{n}"), vec![n])).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let lists: [&[(&str, &[u8])]; 8] = [
            &[],
            &[("z", b"1"), ("a", b"2"), ("z", b""), ("a", b"2")],
            &[("empty", b""), ("space", b" x "), ("lines", b"a\r\nb: c"), ("encoded", b"=?binary?B?AA==?=")],
            &[("", b"no name"), ("with space", b"1"), ("a:b", b"2"), ("\u{e9}", b"3")],
            &[("Nats-Msg-Id", b"x"), ("nats-rollup", b"all"), ("trunkline-id", b"y"), ("trunkline-key", b"z")],
            &[("trunkline-order", b"BA"), ("trunkline-name-x", b"1"), ("Trunkline-ID", b"2")],
            &[("text", "Gr\u{fc}\u{df}e \u{2709}".as_bytes()), ("next-line", "a\u{85}b".as_bytes())],
            &many,
        ];
        for headers in lists {
            for key in [None, Some(&b""[..]), Some("Schl\u{fc}ssel: *.>".as_bytes()), Some(b"\0\xff")] {
                let sent = message(key, headers);
                let came = decode(Some(encode(&sent).0));
                assert_eq!(came, Envelope { id: EnvelopeId::Id(sent.id), key: sent.key, headers: sent.headers });
            }
        }
    }

    #[test]
    fn foreign_and_broken_envelopes() {
        assert_eq!(decode(None), Envelope { id: EnvelopeId::Foreign, key: None, headers: Headers::new() });
        let map = |lines: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            lines.iter().for_each(|(name, value)| map.append(*name, *value));
            Some(map)
        };
        // A NUID has 22 characters as well, and is not an id of ours.
        let foreign = decode(map(&[("Nats-Msg-Id", "AYvP5Wh7g1W25BFWf1tdpQ"), ("x", "1"), ("trunkline-order", "??")]));
        assert_eq!(foreign.id, EnvelopeId::Foreign);
        assert_eq!(foreign.headers.get_str("Nats-Msg-Id"), Some("AYvP5Wh7g1W25BFWf1tdpQ"));
        assert_eq!(foreign.headers.len(), 2);
        assert_eq!(decode(map(&[("trunkline-id", "not an id")])).id, EnvelopeId::Broken);
        assert_eq!(decode(map(&[("b", "1"), ("a", "2"), ("trunkline-order", "BZ")])).headers.len(), 2);
    }
}
