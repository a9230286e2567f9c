//! Streams and consumers as operators set them up, and what becomes of messages there.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::capability::Durability;
use trunkline::delivery::{Delivery, EnvelopeId, Settle, Settled};
use trunkline::message::header;
use trunkline::provider::{Outgoing, ReadFrom, Remove, Signal, Subscription, SubscriptionState, TopicSpec};
use trunkline::{Code, Headers, MessageId};
use trunkline_suite::server::setting;

use crate::bed::{ask, done, foreign, fresh, group, join, message, open, plain, send, take, topic};

/// A stream made by an operator, with these settings as well.
async fn stream(topic: &TopicSpec, more: Value) {
    let mut config = json!({ "name": topic.name, "subjects": [topic.name], "storage": "file", "num_replicas": 1 });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = ask(&foreign().await, &format!("STREAM.CREATE.{}", topic.name), config).await;
    assert!(answer.get("error").is_none(), "{answer}");
}

#[tokio::test]
async fn what_may_lose_messages_is_reported() {
    let provider = open(&plain()).await.unwrap();
    for (more, word) in [
        (json!({ "max_msgs": 10 }), "discard=old with max_msgs=10"),
        (json!({ "max_bytes": 100_000, "max_age": 3_600_000_000_000_u64 }), "discard=old with max_bytes=100000, max_age="),
        (json!({ "max_age": 3_600_000_000_000_u64, "discard": "new" }), "max_age="),
        (json!({ "retention": "interest" }), "retention is 'interest'"),
        (json!({ "retention": "workqueue" }), "only one group"),
        (json!({ "storage": "memory" }), "in memory"),
        (json!({ "no_ack": true }), "not confirmed"),
    ] {
        let topic = topic("drift");
        stream(&topic, more.clone()).await;
        let ensured = provider.ensure(&topic, &[]).await.unwrap();
        assert!(ensured.drift.iter().any(|drift| drift.contains(word)), "{more}: {:?}", ensured.drift);
    }
    let good = topic("good");
    stream(&good, json!({})).await;
    assert_eq!(provider.ensure(&good, &[group()]).await.unwrap().drift, [] as [&str; 0]);
}

#[tokio::test]
async fn durability_is_that_of_the_stream() {
    let provider = open(&plain()).await.unwrap();
    let (file, memory) = (topic("file"), topic("memory"));
    stream(&memory, json!({ "storage": "memory", "max_msg_size": 5000, "duplicate_window": 7_000_000_000_u64 })).await;
    provider.ensure(&file, &[]).await.unwrap();
    provider.ensure(&memory, &[]).await.unwrap();
    assert_eq!(provider.capabilities(&file).durability, Durability::Written);
    let memory = provider.capabilities(&memory);
    assert_eq!((memory.durability, memory.dedup_window_ms), (Durability::Memory, 7_000));
    assert!(memory.max_message_bytes < 5000);
}

/// A stream that is full refuses what comes, says so, and takes it again when there is room.
#[tokio::test]
async fn a_full_stream_refuses_and_recovers() {
    let provider = open(&plain()).await.unwrap();
    let topic = topic("full");
    stream(&topic, json!({ "max_msgs": 2, "discard": "new" })).await;
    provider.ensure(&topic, &[]).await.unwrap();
    for _ in 0..2 {
        send(&*provider, &topic, message("x")).await.unwrap();
    }
    let late = message("late");
    let error = send(&*provider, &topic, late.clone()).await.expect_err("full");
    assert_eq!((error.error.code(), error.error.detail_str("reason")), (Code::PublishFailed, Some("stream_full")), "{error:?}");
    assert!(error.retryable && !error.ambiguous);
    ask(&foreign().await, &format!("STREAM.PURGE.{}", topic.name), Value::Null).await;
    send(&*provider, &topic, late).await.unwrap();
}

/// A stream that drops its oldest messages at a limit: a member says so while its group is behind, and is well again after.
#[tokio::test]
async fn a_stream_that_drops_the_oldest_says_so() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("drops"), group());
    stream(&topic, json!({ "max_msgs": 5, "discard": "old" })).await;
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    for n in 0..12 {
        send(&*provider, &topic, message(n.to_string())).await.unwrap();
    }
    let member = join(&*provider, &topic, &group).await;
    let mut got = said(&*member, SubscriptionState::Degraded("messages_dropped")).await;
    got.extend(take(&*member, 5 - got.len()).await);
    assert_eq!(got.iter().map(|delivery| delivery.position.offset).collect::<Vec<_>>(), [8, 9, 10, 11, 12]);
    done(&*member, &got).await;
    assert_eq!(said(&*member, SubscriptionState::Live).await.len(), 0);
    send(&*provider, &topic, message("next")).await.unwrap();
    let got = take(&*member, 1).await;
    done(&*member, &got).await;
}

/// What comes until a member says that this is its state.
async fn said(member: &dyn Subscription, wanted: SubscriptionState) -> Vec<Delivery> {
    let mut got = Vec::new();
    let all = async {
        let mut found = false;
        while !found {
            for signal in member.next(16, usize::MAX, Duration::from_secs(1)).await.unwrap() {
                match signal {
                    Signal::Deliveries { items, .. } => got.extend(items),
                    Signal::State(state) => {
                        assert_eq!(state, wanted);
                        found = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("it is said");
    got
}

#[tokio::test]
async fn many_topics_in_one_stream() {
    let name = fresh("ALL");
    let provider = open(&json!({ "servers": setting("NATS"), "stream": name })).await.unwrap();
    let (a, b) = (topic("a"), TopicSpec { ordered: true, shards: 2, ..topic("b") });
    let group = group();
    for topic in [&a, &b] {
        provider.ensure(topic, std::slice::from_ref(&group)).await.unwrap();
        let again = provider.ensure(topic, std::slice::from_ref(&group)).await.unwrap();
        assert_eq!((again.created.len(), again.drift), (0, vec![]));
    }
    for topic in [&a, &b] {
        send(&*provider, topic, message(topic.name.to_string())).await.unwrap();
        let member = join(&*provider, topic, &group).await;
        let got = take(&*member, 1).await;
        assert_eq!(got[0].payload.as_deref(), Some(topic.name.as_bytes()));
        done(&*member, &got).await;
    }
    provider.remove(Remove::Topic(&a)).await.unwrap();
    let info = ask(&foreign().await, &format!("STREAM.INFO.{name}"), Value::Null).await;
    assert_eq!(info["config"]["subjects"], json!([format!("{}._shard.*", b.name)]), "the other topic stays");
    assert_eq!((&info["state"]["consumer_count"], &info["state"]["messages"]), (&json!(2), &json!(1)));
    let error = send(&*provider, &a, message("gone")).await.expect_err("removed");
    assert_eq!((error.error.code(), error.ambiguous), (Code::TopicNotFound, false));
    provider.remove(Remove::Topic(&b)).await.unwrap();
    let info = ask(&foreign().await, &format!("STREAM.INFO.{name}"), Value::Null).await;
    assert_eq!((&info["state"]["consumer_count"], &info["state"]["messages"]), (&json!(0), &json!(0)));
    // The stream stays, and takes the next topic.
    assert_eq!(info["config"]["subjects"], json!([format!("_trunkline.none.{name}")]));
    provider.ensure(&a, &[]).await.unwrap();
    send(&*provider, &a, message("again")).await.unwrap();
    let info = ask(&foreign().await, &format!("STREAM.INFO.{name}"), Value::Null).await;
    assert_eq!(info["config"]["subjects"], json!([a.name]));
}

/// Eight processes add topics to one stream at the same time, and others remove some: none is lost, none comes back.
#[tokio::test]
async fn many_add_topics_to_one_stream_at_once() {
    let config = json!({ "servers": setting("NATS"), "stream": fresh("CROWD") });
    let provider = open(&config).await.unwrap();
    let gone: Vec<TopicSpec> = (0..4).map(|n| TopicSpec { ordered: n % 2 == 0, shards: 2, ..topic("gone") }).collect();
    for topic in &gone {
        provider.ensure(topic, &[]).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (config, topic) = (config.clone(), TopicSpec { ordered: n % 2 == 0, shards: 3, ..topic("crowd") });
        tasks.spawn(async move {
            let provider = open(&config).await.unwrap();
            provider.ensure(&topic, &[]).await.unwrap();
            Some(topic)
        });
    }
    for topic in gone.clone() {
        let config = config.clone();
        tasks.spawn(async move {
            open(&config).await.unwrap().remove(Remove::Topic(&topic)).await.unwrap();
            None
        });
    }
    for topic in tasks.join_all().await.into_iter().flatten() {
        send(&*provider, &topic, message("x")).await.unwrap();
        let again = provider.ensure(&topic, &[]).await.unwrap();
        assert_eq!((again.created.len(), again.drift), (0, vec![]));
    }
    for topic in &gone {
        let error = send(&*provider, topic, message("gone")).await.expect_err("removed");
        assert_eq!((error.error.code(), error.ambiguous), (Code::TopicNotFound, false));
    }
}

/// A topic that stands on the list of a stream, but whose subject another stream has by now, is in nobody's way.
#[tokio::test]
async fn a_subject_that_went_elsewhere_is_in_nobodys_way() {
    let (name, other) = (fresh("LEFT"), fresh("OTHER"));
    let provider = open(&json!({ "servers": setting("NATS"), "stream": name })).await.unwrap();
    let (moved, next) = (topic("moved"), topic("next"));
    provider.ensure(&moved, &[]).await.unwrap();
    let client = foreign().await;
    ask(&client, &format!("STREAM.DELETE.{name}"), Value::Null).await;
    let taken = json!({ "name": other, "subjects": [moved.name], "num_replicas": 1 });
    ask(&client, &format!("STREAM.CREATE.{other}"), taken).await;
    provider.ensure(&next, &[]).await.unwrap();
    send(&*provider, &next, message("x")).await.unwrap();
    let error = provider.ensure(&moved, &[]).await.expect_err("taken");
    assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some("stream")));
    assert!(error.detail_str("next").unwrap().contains(&other), "{error:?}");
}

#[tokio::test]
async fn a_subject_of_another_stream_is_named() {
    let topic = topic("taken");
    let name = fresh("OTHER");
    let other = json!({ "name": name, "subjects": [topic.name], "num_replicas": 1 });
    ask(&foreign().await, &format!("STREAM.CREATE.{name}"), other).await;
    let error = open(&plain()).await.unwrap().ensure(&topic, &[]).await.expect_err("taken");
    assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some("stream")));
    assert!(error.detail_str("next").unwrap().contains(&name), "{error:?}");
    let config = json!({ "servers": setting("NATS"), "stream": name });
    open(&config).await.unwrap().ensure(&topic, &[]).await.unwrap();
}

#[tokio::test]
async fn the_same_id_is_stored_once() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("dedup"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let message = message("once");
    let first = send(&*provider, &topic, message.clone()).await.unwrap();
    assert_eq!(send(&*provider, &topic, message.clone()).await.unwrap(), first);
    // A copy that waits in the lot comes again under the same id, and must not be taken for a repetition.
    let copy = Outgoing { headers: Headers::from_iter([(header::NOT_BEFORE, "1700000000000")]), ..message.clone() };
    let (second, third) = (send(&*provider, &topic, copy.clone()).await.unwrap(), send(&*provider, &topic, copy).await.unwrap());
    assert!(first < second && second < third);
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 3).await;
    assert!(got.iter().all(|delivery| delivery.id == EnvelopeId::Id(message.id)));
}

#[tokio::test]
async fn a_megabyte_passes_and_what_is_larger_is_refused() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("large"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let noise: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let large = Outgoing {
        key: Some("Schlüssel ✉".into()),
        headers: [("binary", &b"\0\xff\r\n"[..]), ("ünïcode", "Grüße".as_bytes())].into_iter().map(|(n, v)| (n, v.to_vec())).collect(),
        ..message(noise)
    };
    send(&*provider, &topic, large.clone()).await.unwrap();
    let error = send(&*provider, &topic, message(vec![0; (1 << 20) + 1])).await.expect_err("over the limit");
    assert_eq!((error.error.code(), error.retryable, error.ambiguous), (Code::PayloadTooLarge, false, false));
    let many: Headers = (0..2_000).map(|at| (format!("header-{at}"), "x".repeat(40))).collect();
    let error = send(&*provider, &topic, Outgoing { headers: many, ..message("x") }).await.expect_err("too many headers");
    assert_eq!(error.error.code(), Code::PayloadTooLarge);
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 1).await;
    assert_eq!((got[0].payload.as_ref(), got[0].key.as_ref()), (Some(&large.payload), large.key.as_ref()));
    assert_eq!(got[0].headers, large.headers);
}

/// Delayed redeliveries take up room among what a consumer may have in hand, so only a share of it may be delayed.
#[tokio::test]
async fn delayed_messages_never_stall_a_group() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("delayed"), group());
    provider.ensure(&topic, &[]).await.unwrap();
    let config = json!({
        "name": group.name, "durable_name": group.name, "ack_policy": "explicit", "max_ack_pending": 8,
        "ack_wait": 2_500_000_000_u64, "filter_subject": topic.name,
    });
    let body = json!({ "stream_name": topic.name, "config": config });
    ask(&foreign().await, &format!("CONSUMER.CREATE.{}.{}", topic.name, group.name), body).await;
    let drift = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap().drift;
    assert!(drift.iter().any(|drift| drift.contains("max_ack_pending=8")), "{drift:?}");
    for n in 0..20 {
        send(&*provider, &topic, message(n.to_string())).await.unwrap();
    }
    let member = join(&*provider, &topic, &group).await;
    let (mut delayed, mut refused, mut handled) = (0, 0, 0);
    while handled < 18 {
        for delivery in take(&*member, 1).await {
            let retry = Settle::Retry { after: Duration::from_secs(30), counted: true };
            match member.settle(&[(delivery.token, retry)]).await[..] {
                [Settled::Settled] => delayed += 1,
                [Settled::Unknown] => {
                    refused += 1;
                    done(&*member, std::slice::from_ref(&delivery)).await;
                    handled += 1;
                }
                ref other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((delayed, refused), (2, 18), "a quarter of eight");
}

/// A push consumer of the name of a group cannot be consumed from, and that is said before anything is received.
#[tokio::test]
async fn a_consumer_that_pushes_is_refused() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("push"), group());
    provider.ensure(&topic, &[]).await.unwrap();
    let config = json!({ "name": group.name, "durable_name": group.name, "ack_policy": "explicit", "deliver_subject": fresh("to") });
    let body = json!({ "stream_name": topic.name, "config": config });
    ask(&foreign().await, &format!("CONSUMER.CREATE.{}.{}", topic.name, group.name), body).await;
    let drift = provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap().drift;
    assert!(drift.iter().any(|drift| drift.contains("pushes")), "{drift:?}");
    let options =
        trunkline::provider::SubscribeOptions { member: "m".into(), prefetch: trunkline::provider::Prefetch { count: 1, bytes: 1 } };
    let error = provider.subscribe(std::slice::from_ref(&topic), &group, options).await.expect_err("a push consumer");
    assert_eq!((error.code(), error.retryable()), (Code::SubscribeFailed, false));
}

/// A stream that is removed under a member ends it; made again, the group goes on with what comes.
#[tokio::test]
async fn a_stream_that_is_removed_under_a_member() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("removed"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    ask(&foreign().await, &format!("STREAM.DELETE.{}", topic.name), Value::Null).await;
    let ended = async {
        loop {
            if let Err(error) = member.next(1, usize::MAX, Duration::from_secs(1)).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the member ends");
    assert!(matches!(error.code(), Code::GroupNotFound | Code::TopicNotFound), "{error:?}");
    let error = send(&*provider, &topic, message("x")).await.expect_err("no stream");
    assert_eq!((error.error.code(), error.error.detail_str("reason"), error.ambiguous), (Code::TopicNotFound, Some("no_stream"), false));
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, message("again")).await.unwrap();
    let member = join(&*provider, &topic, &group).await;
    let got = take(&*member, 1).await;
    done(&*member, &got).await;
}

/// A member that joins its ordered group again under its name has its shards at once, with higher epochs.
#[tokio::test]
async fn a_member_that_comes_back_has_its_shards_at_once() {
    use trunkline::provider::{Prefetch, Signal, SubscribeOptions};
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (TopicSpec { ordered: true, shards: 3, ..topic("back") }, group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let options = SubscribeOptions { member: "the-same".into(), prefetch: Prefetch { count: 10, bytes: 1 << 20 } };
        let member = provider.subscribe(std::slice::from_ref(&topic), &group, options).await.unwrap();
        let mut epochs = Vec::new();
        while epochs.len() < 3 {
            let signals = tokio::time::timeout(Duration::from_secs(1), member.next(1, usize::MAX, Duration::from_secs(5))).await;
            for signal in signals.expect("assigned long before a lease ends").unwrap() {
                if let Signal::Assigned { epoch, .. } = signal {
                    epochs.push(epoch);
                }
            }
        }
        assert!(epochs.iter().all(|epoch| *epoch > last), "{epochs:?} after {last}");
        last = epochs.into_iter().max().unwrap();
        // Without a word, as when its connection died.
        drop(member);
    }
}

/// What is made for the moment goes with it.
#[tokio::test]
async fn reading_and_counting_leave_no_consumer_behind() {
    let provider = open(&plain()).await.unwrap();
    let (topic, group) = (topic("tidy"), group());
    provider.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    send(&*provider, &topic, message("x")).await.unwrap();
    for _ in 0..5 {
        provider.read(&topic, ReadFrom::Time { shard: 0, at: 0 }, 10).await.unwrap();
        provider.depth(&topic, &group.name).await.unwrap();
    }
    let info = ask(&foreign().await, &format!("STREAM.INFO.{}", topic.name), Value::Null).await;
    assert_eq!(info["state"]["consumer_count"], 1);
}

/// Four thousand messages leave together, and each has an answer of its own, in order.
#[tokio::test]
async fn a_batch_is_one_round_trip() {
    let provider = open(&plain()).await.unwrap();
    let topic = topic("batch");
    provider.ensure(&topic, &[]).await.unwrap();
    let batch: Vec<_> = (0..4_096).map(|n| message(n.to_string())).collect();
    let ids: Vec<MessageId> = batch.iter().map(|message| message.id).collect();
    let results = provider.send(&topic, Arc::new(batch)).await;
    let offsets: Vec<u64> = results.into_iter().map(|result| result.unwrap().offset).collect();
    assert_eq!(offsets, (1..=4_096).collect::<Vec<u64>>());
    let stored = provider.read(&topic, ReadFrom::Time { shard: 0, at: 0 }, 5_000).await.unwrap();
    assert_eq!(stored.iter().filter_map(|stored| stored.id).collect::<Vec<_>>(), ids);
}
