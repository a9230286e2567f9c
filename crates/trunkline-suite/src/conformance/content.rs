//! What comes out is what went in: payload, key, headers, id, time.

use bytes::Bytes;
use trunkline::Headers;
use trunkline::message::now_ms;
use trunkline::provider::Outgoing;

use crate::bed::message;
use crate::{Bed, Got, Verdict};

/// Sends these and compares each with what comes.
async fn survive(bed: &Bed, batch: Vec<Outgoing>) -> Verdict<Vec<Got>> {
    let (topic, group) = bed.topic(1).await?;
    bed.send(&topic, batch.clone()).await?;
    let mut member = bed.member(&topic, &group).await?;
    let got = member.handle(batch.len()).await?;
    for sent in batch {
        let Some(got) = got.iter().find(|got| got.id().ok() == Some(sent.id)) else {
            return Err(crate::Failure::new(format!("a message of {} bytes did not come", sent.size())));
        };
        let delivery = &got.delivery;
        let payload = delivery.payload.clone().unwrap_or_default();
        check!(payload == sent.payload, "a payload of {} bytes came with {} bytes or others", sent.payload.len(), payload.len());
        check!(delivery.key == sent.key, "the key {:?} came as {:?}", sent.key, delivery.key);
        let (sent, came): (Vec<_>, Vec<_>) = (sent.headers.iter().collect(), delivery.headers.iter().collect());
        check!(came == sent, "the headers {sent:?} came as {came:?}");
    }
    Ok(got)
}

fn keyed(key: impl Into<Bytes>) -> Outgoing {
    let key = key.into();
    Outgoing { key: Some(key.clone()), ..message(key) }
}

fn with_headers(headers: Headers) -> Outgoing {
    Outgoing { headers, ..message("headers") }
}

pub(super) async fn payloads_survive(bed: Bed) -> Verdict {
    let all: Vec<u8> = (0..=255).collect();
    let payloads = [Bytes::new(), Bytes::from(all.repeat(3)), Bytes::from_static(b"\0"), Bytes::from("ünïcödé ✉".to_owned())];
    survive(&bed, payloads.into_iter().map(message).collect()).await.map(drop)
}

pub(super) async fn large_payloads_survive(bed: Bed) -> Verdict {
    let (topic, _) = bed.topic(1).await?;
    let most = (bed.capabilities(&topic).max_message_bytes - 512).min(1 << 20);
    let noise: Vec<u8> = (0..most as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let sizes = [most, most / 3, 65_536.min(most), 65_535.min(most), 4096];
    survive(&bed, sizes.iter().map(|size| message(noise[..*size].to_vec())).collect()).await.map(drop)
}

pub(super) async fn a_json_payload_is_not_touched(bed: Bed) -> Verdict {
    let payloads = ["{ \"b\" : 1.0, \"a\":1e3,\r\n\"a\": 2 }", "\"\\u00e9\"", "[1,\n2 ]\n", "null", "{\"big\":12345678901234567890123}"];
    survive(&bed, payloads.into_iter().map(message).collect()).await.map(drop)
}

pub(super) async fn keys_survive(bed: Bed) -> Verdict {
    let keys = ["k", "Schlüssel-✉-鍵", "with space/and:signs*.#>", "trunkline-id"];
    let mut batch: Vec<_> = keys.into_iter().map(keyed).collect();
    batch.push(keyed("k".repeat(200)));
    batch.push(message("no key"));
    survive(&bed, batch).await.map(drop)
}

pub(super) async fn headers_survive(bed: Bed) -> Verdict {
    let twice: Headers = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")].into_iter().collect();
    let many: Headers = (0..60).map(|at| (format!("header-{at}"), format!("value {at}"))).collect();
    let odd: Headers = [
        ("empty", Bytes::new()),
        ("text", Bytes::from("Grüße ✉".to_owned())),
        ("Mixed-Case", Bytes::from_static(b"Yes")),
        ("traceparent", Bytes::from_static(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
    ]
    .into_iter()
    .collect();
    let binary: Headers = [("binary", Bytes::from_static(b"\0\x01\xff\xfe"))].into_iter().collect();
    let own: Headers = [("trunkline-session", "{\"user\":1}"), ("trunkline-attempt", "3")].into_iter().collect();
    let batch = [twice, many, odd, binary, own, Headers::new()].into_iter().map(with_headers).collect();
    survive(&bed, batch).await.map(drop)
}

pub(super) async fn keys_stay_with_their_messages(bed: Bed) -> Verdict {
    survive(&bed, (0..40).map(|at| keyed(format!("key-{at}"))).collect()).await.map(drop)
}

pub(super) async fn ids_and_times_survive(bed: Bed) -> Verdict {
    let before = now_ms();
    let got = survive(&bed, (0..10).map(|at| message(format!("{at}"))).collect()).await?;
    for got in got {
        let (stored, slack) = (got.delivery.stored_at, 60_000);
        check!(stored + slack > before && stored < now_ms() + slack, "stored at {stored} ms, sent about {before} ms");
    }
    Ok(())
}
