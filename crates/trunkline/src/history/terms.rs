//! Terms: what a block can be asked for without being opened, and the filter that answers "certainly not here".

use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// What a term is about: `42` as a key and `42` as a session are two terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Term {
    /// In the dictionary, but nothing to ask for.
    Plain = 0,
    Key = 1,
    Session = 2,
    Identifier = 3,
    Producer = 4,
    Consumer = 5,
    Group = 6,
    Idempotency = 7,
    Header = 8,
    Event = 9,
    Broker = 10,
    Kind = 11,
}

/// The hash of a term.
#[inline]
pub(super) fn term(kind: Term, value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, kind as u64)
}

/// The hash of a header, as of `name=value`.
pub(super) fn header_term(name: &str, value: &[u8]) -> u64 {
    let mut joined = [0u8; 256];
    let len = name.len() + 1 + value.len();
    if len <= joined.len() {
        joined[..name.len()].copy_from_slice(name.as_bytes());
        joined[name.len()] = b'=';
        joined[name.len() + 1..len].copy_from_slice(value);
        return term(Term::Header, &joined[..len]);
    }
    parts_term(Term::Header, &[name.as_bytes(), b"=", value])
}

/// The hash of several parts as if they stood side by side.
pub(super) fn parts_term(kind: Term, parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::with_seed(kind as u64);
    parts.iter().for_each(|part| hash.update(part));
    hash.digest()
}

/// The term of a topic in an env.
pub(super) fn event_term(product: &str, env: &str, event: &str) -> u64 {
    parts_term(Term::Event, &[product.as_bytes(), b"\0", env.as_bytes(), b"\0", event.as_bytes()])
}

/// The term of a broker in an env.
pub(super) fn broker_term(product: &str, env: &str, broker: &str) -> u64 {
    parts_term(Term::Broker, &[product.as_bytes(), b"\0", env.as_bytes(), b"\0", broker.as_bytes()])
}

/// Appends the filter over `terms`; nothing if it cannot be built, which reads as "perhaps".
pub(super) fn build(terms: &mut Vec<u64>, out: &mut Vec<u8>) {
    terms.sort_unstable();
    terms.dedup();
    if terms.len() < 2 {
        // The construction is not made for so few: a second term that nobody asks for.
        terms.extend([1, 2]);
        terms.sort_unstable();
        terms.dedup();
    }
    if let Ok(filter) = BinaryFuse8::try_from(terms.as_slice()) {
        let start = out.len();
        out.resize(start + BinaryFuse8::DESCRIPTOR_LEN, 0);
        filter.dma_copy_descriptor_to(&mut out[start..]);
        out.extend_from_slice(filter.dma_fingerprints());
    }
}

/// Whether a block with this filter may hold all of the terms.
pub(super) fn may_hold(filter: &[u8], terms: &[u64]) -> bool {
    if filter.len() <= BinaryFuse8::DESCRIPTOR_LEN {
        return true;
    }
    let (descriptor, fingerprints) = filter.split_at(BinaryFuse8::DESCRIPTOR_LEN);
    let word = |at: usize| u32::from_le_bytes([descriptor[at], descriptor[at + 1], descriptor[at + 2], descriptor[at + 3]]) as usize;
    let (segment, mask, count) = (word(8), word(12), word(16));
    // The reader indexes without asking: what does not fit together is no filter.
    if mask >= segment.max(1) || count.saturating_add(2 * segment) > fingerprints.len() {
        return true;
    }
    let filter = BinaryFuse8Ref::from_dma(descriptor, fingerprints);
    terms.iter().all(|term| filter.contains(term))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_knows_its_terms_whatever_their_number() {
        for n in [0u64, 1, 2, 3, 10, 100, 3_000] {
            let all: Vec<u64> = (0..n).map(|i| term(Term::Key, &i.to_le_bytes())).collect();
            let mut out = Vec::new();
            build(&mut all.iter().chain(&all).copied().collect(), &mut out);
            assert!(all.iter().all(|t| may_hold(&out, &[*t])), "{n}");
            let wrong = (0..1_000u64).filter(|i| may_hold(&out, &[term(Term::Session, &i.to_le_bytes())])).count();
            assert!(wrong < 30, "{n}: {wrong}");
        }
    }

    #[test]
    fn nonsense_is_perhaps() {
        for len in [0, 5, 21, 100] {
            assert!(may_hold(&vec![0xff; len], &[1]));
        }
    }

    #[test]
    fn long_and_short_headers_hash_alike() {
        let value = vec![b'v'; 300];
        assert_eq!(header_term("n", b"v"), parts_term(Term::Header, &[b"n=v"]));
        assert_eq!(header_term("n", &value), parts_term(Term::Header, &[b"n=", &value]));
    }
}
