use super::super::block::{self, AT_FIXED, AT_IDS, AT_PAYLOAD, AT_VARIED, Fault, Head, Read};
use super::super::decode::{Table, Varied};
use super::super::encode::Encoder;
use super::super::row::{HeadersOf, Kind, Queued, Row};
use super::*;

/// What a test compares of a row.
type Seen =
    (MessageId, Kind, String, Option<Vec<u8>>, Vec<u8>, Option<Vec<u8>>, u64, Option<[String; 3]>, Option<String>, u64, Option<MessageId>);

fn seen(row: &Row<'_>) -> Seen {
    let headers = match row.headers {
        HeadersOf::Stored(bytes) => bytes.to_vec(),
        HeadersOf::Live(headers) if headers.is_empty() => Vec::new(),
        HeadersOf::Live(headers) => {
            let mut out = Vec::new();
            headers.encode(&mut out);
            out
        }
    };
    let place = row.place;
    let text = [place.product, place.env, place.event, place.provider, row.who, row.group, row.code, row.text.unwrap_or("-")].join("|");
    let text = format!("{text}|{:?}|{}|{}|{}", row.position, row.first_us, row.run_us, row.attempts);
    let session = row.session.map(|session| session.map(str::to_owned));
    let idempotency = row.idempotency_key.map(str::to_owned);
    (
        row.id,
        row.kind,
        text,
        row.key.map(<[u8]>::to_vec),
        headers,
        row.payload.map(<[u8]>::to_vec),
        row.size,
        session,
        idempotency,
        row.ended_us(),
        row.other,
    )
}

/// Opens every part of a block.
fn read_all(bytes: &[u8]) -> Read<Vec<Seen>> {
    let head = Head::parse(bytes)?;
    let part = |at: usize| block::slice(bytes, &head.sections[at]).and_then(|stored| block::unpack(stored, &head.sections[at]));
    part(0)?;
    let varied = Varied::new(part(AT_VARIED)?)?;
    let payloads = (AT_PAYLOAD..head.sections.len()).map(part).collect::<Read<Vec<_>>>()?;
    let end = head.sections.last().map_or(0, |last| last.offset + u64::from(last.stored));
    if end != bytes.len() as u64 {
        return Err(Fault::Damaged);
    }
    let table = Table::new(head.clone(), part(AT_IDS)?, &part(AT_FIXED)?)?;
    let row = |at| {
        let payload = table.payload(at).map(|(run, range)| payloads.get(run).map_or(&[][..], |bytes| &bytes[range]));
        seen(&table.row(at, Some(&varied), payload))
    };
    Ok((0..table.len()).map(row).collect())
}

fn samples() -> Vec<Queued> {
    let filed = filed("created");
    let mut first = produced(id(T0, 1), r#"{"order":1}"#);
    first.headers.push("tenant", Bytes::from_static(b"t1"));
    first.session = Some(Arc::new(SessionMark { tag: "user".into(), id: "s1".into(), identifier: "ann".into() }));
    first.idempotency_key = Some("once".into());
    first.replay_of = Some(id(T0 - 5, 9));
    let mut failed = produced(id(T0 + 7, 2), "");
    failed.key = None;
    failed.position = None;
    failed.failure = Some(Box::new(Failure { code: "PUBLISH_FAILED", message: "no broker".into() }));
    let large = produced(id(T0 + 8, 3), &"x".repeat(200_000));
    let batches = [
        produces(&filed, vec![first, failed, large]),
        attempts(&filed, "billing", vec![attempt(id(T0, 1), Step::Waiting, 10, 1), attempt(id(T0, 1), Step::Delivered, 900, 1)]),
        Batch::Replayed {
            filed: filed_as("paid", Class { capture: Capture::Metadata, ..Class::default() }),
            id: id(T0 + 9, 4),
            by: id(T0 + 99, 5),
            at: T0 + 99,
        },
    ];
    batches.into_iter().map(|batch| Queued { batch, sizes: None }).collect()
}

fn rows(queued: &[Queued]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = queued.iter().flat_map(|queued| (0..queued.len()).map(|item| queued.row(item))).collect();
    rows.sort_by_key(|row| row.id);
    rows
}

fn write(rows: &[Row<'_>]) -> Vec<u8> {
    let mut encoder = Encoder::new(1).expect("zstd");
    let mut out = Vec::new();
    rows.iter().for_each(|row| encoder.push(row).expect("taken"));
    let meta = encoder.finish(&mut out).expect("written").expect("not empty");
    assert_eq!(meta.records as usize, rows.len());
    out
}

#[test]
fn what_goes_in_comes_out() {
    let queued = samples();
    let rows = rows(&queued);
    let bytes = write(&rows);
    let want: Vec<Seen> = rows.iter().map(seen).collect();
    assert_eq!(read_all(&bytes).expect("readable"), want);
    // And once more, as a merge does it: from what was read.
    let head = Head::parse(&bytes).expect("a header");
    assert_eq!((head.records, head.base, head.sections.len()), (6, T0, 6));
}

#[test]
fn a_flipped_byte_anywhere_is_noticed() {
    let queued = samples();
    let mut rows = rows(&queued);
    rows.retain(|row| row.size < 1_000);
    let bytes = write(&rows);
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            assert!(read_all(&damaged).is_err(), "byte {at}");
        }
    }
    for len in 0..bytes.len() {
        assert!(read_all(&bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn a_newer_block_is_told_apart_from_a_damaged_one() {
    let queued = samples();
    let mut bytes = write(&rows(&queued));
    bytes[4] = 3;
    assert_eq!(Head::parse(&bytes), Err(Fault::Newer));
    assert_eq!(Head::parse(b"TLH"), Err(Fault::Damaged));
}

/// The bytes of version 1, header to payload. If this fails, blocks on users' disks cannot be read any more: raise the version
/// and keep reading the old one.
#[test]
fn version_1_stays_readable() {
    let filed = filed("created");
    let queued = [
        Queued { batch: produces(&filed, vec![produced(id(T0, 1), r#"{"order":1}"#)]), sizes: None },
        Queued { batch: attempts(&filed, "billing", vec![attempt(id(T0, 1), Step::Delivered, 10, 0)]), sizes: None },
    ];
    let rows = rows(&queued);
    assert_eq!(write(&rows), GOLDEN);
    assert_eq!(read_all(GOLDEN).expect("readable"), rows.iter().map(seen).collect::<Vec<_>>());
}

#[rustfmt::skip]
const GOLDEN: &[u8] = &[84, 76, 72, 66, 1, 0, 5, 0, 2, 0, 0, 0, 0, 10, 56, 25, 163, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 44, 0, 0, 0, 44, 0, 0, 0, 200, 166, 4, 176, 2, 0, 0, 0, 28, 0, 0, 0, 28, 0, 0, 0, 126, 40, 225, 19, 3, 0, 0, 0, 101, 0, 0, 0, 101, 0, 0, 0, 239, 130, 37, 91, 4, 0, 0, 0, 6, 0, 0, 0, 6, 0, 0, 0, 254, 178, 221, 43, 5, 0, 0, 0, 11, 0, 0, 0, 11, 0, 0, 0, 94, 39, 127, 255, 95, 168, 37, 74, 193, 92, 2, 137, 236, 45, 10, 145, 8, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 42, 0, 223, 0, 0, 0, 214, 0, 0, 0, 248, 11, 0, 158, 219, 0, 0, 0, 0, 0, 0, 0, 0, 132, 137, 180, 59, 164, 182, 5, 133, 98, 135, 132, 137, 180, 59, 164, 182, 5, 133, 98, 135, 7, 4, 115, 104, 111, 112, 3, 112, 114, 100, 14, 111, 114, 100, 101, 114, 115, 58, 99, 114, 101, 97, 116, 101, 100, 8, 69, 77, 66, 69, 68, 68, 69, 68, 2, 112, 49, 2, 99, 49, 7, 98, 105, 108, 108, 105, 110, 103, 1, 0, 1, 2, 3, 2, 3, 2, 2, 1, 2, 1, 4, 2, 1, 2, 3, 1, 0, 0, 2, 1, 0, 0, 0, 2, 193, 1, 67, 0, 0, 4, 5, 6, 0, 0, 20, 188, 5, 144, 78, 136, 39, 0, 3, 3, 154, 1, 0, 11, 0, 0, 2, 2, 0, 0, 0, 107, 49, 123, 34, 111, 114, 100, 101, 114, 34, 58, 49, 125];
