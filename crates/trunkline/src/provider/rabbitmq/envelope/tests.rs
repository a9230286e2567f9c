use std::io::Cursor;

use lapin::protocol::basic;
use lapin::types::generation::gen_field_table;

use super::*;

fn id() -> MessageId {
    "0190a1b2-c3d4-7e5f-8a6b-112233445566".parse().expect("an id")
}

fn message(headers: Headers) -> Outgoing {
    Outgoing { id: id(), shard: None, key: None, headers, payload: Bytes::from_static(b"{}") }
}

/// The header table as it lies on the wire.
fn wire(properties: &BasicProperties) -> Vec<u8> {
    let table = properties.headers().clone().unwrap_or_default();
    let mut room = vec![0; 64 << 10];
    let written = gen_field_table(&table)(Cursor::new(room.as_mut_slice()).into()).expect("a table");
    let (_, len) = written.into_inner();
    room.truncate(len as usize);
    room
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn come(message: &Outgoing, place: u64) -> Decoded {
    decode(&encode(message, place), "key", false, &message.payload)
}

#[test]
fn a_plain_message_carries_forty_bytes() {
    let properties = encode(&message(Headers::new()), 0x0102_0304_0506);
    let wire = wire(&properties);
    // length of the table, then: length and name, type, length, id, place
    let golden = "00000028" // 40 bytes
        .to_owned()
        + "0c"
        + &hex(b"trunkline-id")
        + "78"
        + "00000016"
        + "0190a1b2c3d47e5f8a6b112233445566"
        + "010203040506";
    assert_eq!(hex(&wire), golden);
    assert_eq!(properties.delivery_mode(), &Some(2));
    let others = [properties.content_type(), properties.message_id(), properties.kind(), properties.app_id()];
    assert!(others.iter().all(|property| property.is_none()) && properties.timestamp().is_none());
    let _: basic::AMQPProperties = properties;
}

#[test]
fn key_and_headers_are_native() {
    let mut all = message([("b", "2"), ("a", "1"), ("b", "3")].into_iter().collect());
    all.key = Some(Bytes::from_static(b"k\xff"));
    let wire = hex(&wire(&encode(&all, 1)));
    let parts = [
        "0161".to_owned() + "53" + "00000001" + "31",
        "0162".to_owned() + "41" + "0000000c" + "53" + "00000001" + "32" + "53" + "00000001" + "33",
        "0d".to_owned() + &hex(b"trunkline-key") + "78" + "00000002" + "6bff",
        "0f".to_owned() + &hex(b"trunkline-order") + "78" + "00000003" + "010001",
    ];
    for part in parts {
        assert!(wire.contains(&part), "{part} is not in {wire}");
    }
    let came = come(&all, 1);
    assert_eq!((came.key, came.headers), (all.key, all.headers));
}

#[test]
fn any_headers_survive_in_their_order() {
    let many: Vec<(String, String)> = (0..700).map(|at| (format!("h{}", at * 7 % 300), at.to_string())).collect();
    let none: Vec<(String, String)> = vec![("z".into(), String::new()), ("a".into(), "x".into()), ("z".into(), "y".into())];
    for list in [many, none] {
        let sent = message(list.into_iter().collect());
        assert_eq!(come(&sent, 9).headers, sent.headers);
    }
}

#[test]
fn a_damaged_order_leaves_the_headers() {
    let sent = message([("b", "2"), ("a", "1")].into_iter().collect());
    let mut table = encode(&sent, 1).headers().clone().unwrap_or_default();
    for order in [&b"\x01"[..], b"\x01\x01", b"\x07\x00", b""] {
        table.insert(ORDER.into(), AMQPValue::ByteArray(order.into()));
        let came = decode(&BasicProperties::default().with_headers(table.clone()), "key", false, b"");
        assert_eq!(came.headers, [("a", "1"), ("b", "2")].into_iter().collect());
    }
}

#[test]
fn the_place_says_when() {
    let places = Places::default();
    let (first, second) = (places.take(3), places.take(1));
    assert_eq!(second.max(first + 3), second);
    assert!((first / PER_MS + YEAR_2020).abs_diff(now_ms()) < 1000);
    let came = come(&message(Headers::new()), first);
    assert_eq!((came.id, came.place, came.stored_at), (EnvelopeId::Id(id()), first, first / PER_MS + YEAR_2020));
    assert!(is_numbered(first) && first < 1 << 48);
}

#[test]
fn the_integer_count_of_the_broker_is_read_and_hidden() {
    for (count, wanted) in
        [(AMQPValue::LongLongInt(3), 4), (AMQPValue::LongUInt(3), 4), (AMQPValue::ShortShortUInt(1), 2), (AMQPValue::LongLongInt(-1), 1)]
    {
        let mut table = FieldTable::default();
        table.insert(DELIVERY_COUNT.into(), count);
        table.insert(ACQUIRED_COUNT.into(), AMQPValue::LongLongInt(9));
        let came = decode(&BasicProperties::default().with_headers(table), "key", false, b"");
        assert_eq!(came.deliveries, Deliveries::UpperBound(wanted));
        assert!(came.headers.is_empty());
    }
    assert_eq!(decode(&BasicProperties::default(), "key", true, b"").deliveries, Deliveries::UpperBound(2));
}

#[test]
fn ids_of_others_are_taken_and_broken_ones_are_told() {
    let of = |value: AMQPValue| {
        let mut table = FieldTable::default();
        table.insert(header::ID.into(), value);
        decode(&BasicProperties::default().with_headers(table), "key", false, b"x")
    };
    let text = id().to_text();
    assert_eq!(of(AMQPValue::ByteArray(id().as_bytes()[..].into())).id, EnvelopeId::Id(id()));
    assert_eq!(of(AMQPValue::LongString(text.into())).id, EnvelopeId::Id(id()));
    for broken in
        [AMQPValue::LongString("nonsense".into()), AMQPValue::ByteArray(vec![0; 22].into()), AMQPValue::LongInt(7), AMQPValue::Void]
    {
        assert_eq!(of(broken).id, EnvelopeId::Broken);
    }
}

#[test]
fn a_foreign_message_keeps_its_place() {
    let plain = BasicProperties::default().with_timestamp(1_700_000_000).with_content_type("text/plain".into());
    let (a, b) = (decode(&plain, "key", false, b"x"), decode(&plain, "key", true, b"x"));
    assert_eq!((a.id, a.place, a.stored_at), (EnvelopeId::Foreign, b.place, 1_700_000_000_000));
    assert!(!is_numbered(a.place) && i64::try_from(a.place).is_ok());
    assert_eq!(a.headers.get_str("content-type"), Some("text/plain"));
    assert_ne!(a.place, decode(&plain, "key", false, b"y").place);
    let named = |name: &str, body: &[u8]| decode(&plain.clone().with_message_id(name.into()), "key", false, body).place;
    assert_ne!(named("1", b"x"), named("2", b"x"));
    assert_eq!(named("1", b"x"), named("1", b"x"));
}

#[test]
fn typed_values_of_others_become_text() {
    let mut inner = FieldTable::default();
    inner.insert("n".into(), AMQPValue::LongInt(-4));
    for (value, wanted) in [
        (AMQPValue::Boolean(true), "true"),
        (AMQPValue::LongInt(-4), "-4"),
        (AMQPValue::Double(1.5), "1.5"),
        (AMQPValue::Timestamp(12), "12"),
        (AMQPValue::FieldTable(inner), "{\"n\":-4}"),
        (AMQPValue::Void, ""),
    ] {
        assert_eq!(bytes(&value), wanted.as_bytes());
    }
}
