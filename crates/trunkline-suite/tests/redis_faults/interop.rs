//! Clients that know nothing of Trunkline, both ways: redis-cli.

use bytes::Bytes;
use trunkline::Headers;
use trunkline::delivery::EnvelopeId;
use trunkline::provider::Outgoing;

use crate::private::{DURABLE, MEMORY, Private};
use crate::{done, group, message, send, subscribe, take, topic};

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_reads_what_was_produced() {
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let topic = topic("t");
    provider.ensure(&topic, &[group("cli")]).await.unwrap();
    let headers: Headers = [("source", "web"), ("source", "app")].into_iter().collect();
    send(&*provider, &topic, vec![Outgoing { key: Some(Bytes::from_static(b"k-1")), headers, ..message("{\"total\":12}") }]).await;
    let said = server.cli(&["XREADGROUP", "GROUP", "cli", "me", "STREAMS", "t", ">"]);
    let lines: Vec<&str> = said.lines().collect();
    // The stream, the entry's id, then its fields: the id of the message, its key, its payload as it was sent, its headers.
    assert_eq!((lines[0], lines[2]), ("t", "trunkline-id"));
    let rest: Vec<&str> = lines.into_iter().skip_while(|line| *line != "key").collect();
    assert_eq!(rest, ["key", "k-1", "payload", "{\"total\":12}", "source", "web", "source", "app"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_cli_produces_is_consumed() {
    let server = Private::start(MEMORY).await;
    let provider = server.open().await;
    let (topic, group) = (topic("t"), group("g"));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    server.cli(&["XADD", "t", "*", "data", "{\"n\":1}"]);
    server.cli(&["XADD", "t", "*", "payload", "{\"n\":2}", "key", "k", "source", "cli"]);
    server.cli(&["XADD", "t", "*", "total", "12", "currency", "EUR"]);
    server.cli(&["XADD", "t", "7000000000000-5", "payload", "far in the future"]);
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, 4).await;
    assert!(got.iter().all(|delivery| delivery.id == EnvelopeId::Foreign));
    assert_eq!(got[0].payload.as_deref(), Some(&b"{\"n\":1}"[..]));
    assert_eq!((got[1].payload.as_deref(), got[1].key.as_deref()), (Some(&b"{\"n\":2}"[..]), Some(&b"k"[..])));
    assert_eq!(got[1].headers.get_str("source"), Some("cli"));
    assert_eq!((got[2].payload.as_ref(), got[2].headers.get_str("currency")), (None, Some("EUR")));
    assert_eq!(got[3].stored_at, 7_000_000_000_000);
    let places: Vec<u64> = got.iter().map(|delivery| delivery.position.offset).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    done(&*subscription, &got).await;
    assert_eq!(server.cli(&["XPENDING", "t", "g"]).lines().next(), Some("0"));
}

/// A group that redis-cli made and read in part is gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_another_client_is_gone_on_with() {
    let server = Private::start(DURABLE).await;
    for n in 0..4 {
        server.cli(&["XADD", "t", "*", "payload", &n.to_string()]);
    }
    server.cli(&["XGROUP", "CREATE", "t", "g", "0"]);
    server.cli(&["XREADGROUP", "GROUP", "g", "cli", "COUNT", "2", "NOACK", "STREAMS", "t", ">"]);
    let provider = server.open().await;
    let (topic, group) = (topic("t"), group("g"));
    let ensured = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    assert!(ensured.created.is_empty() && ensured.drift.is_empty(), "{ensured:?}");
    let subscription = subscribe(&*provider, &topic, &group).await.unwrap();
    let got = take(&*subscription, 2).await;
    assert_eq!(got.iter().filter_map(|delivery| delivery.payload.as_deref()).collect::<Vec<_>>(), [b"2", b"3"]);
    done(&*subscription, &got).await;
}
