//! One queue for each group: found, told apart, lost, and sent to in tens.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use trunkline::delivery::{Delivery, EnvelopeId, Settle, Settled};
use trunkline::provider::sqs::{Options, Sqs};
use trunkline::provider::{
    GroupSpec, Outgoing, Prefetch, Provider, Remove, Signal, Start, SubscribeOptions, Subscription, TopicSpec, shard_of,
};
use trunkline::{Code, Headers, MessageId};
use trunkline_suite::elasticmq::{Counter, config, connect, options, query};
use trunkline_suite::server::setting;

const PATIENCE: Duration = Duration::from_secs(60);

fn name() -> String {
    format!("q{}", &MessageId::now().0.simple().to_string()[4..])
}

fn topic(name: &str) -> TopicSpec {
    TopicSpec::new(name, 4, name.ends_with(".fifo"))
}

fn group(name: &str) -> GroupSpec {
    GroupSpec { name: name.into(), start: Start::Latest }
}

fn message(payload: impl Into<Bytes>) -> Outgoing {
    Outgoing { id: MessageId::now(), shard: None, key: None, headers: Headers::new(), payload: payload.into() }
}

fn messages(n: usize) -> Arc<Vec<Outgoing>> {
    Arc::new((0..n).map(|at| message(format!("{{\"n\":{at}}}"))).collect())
}

async fn confirmed(provider: &Arc<dyn Provider>, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> HashSet<MessageId> {
    for result in provider.send(topic, batch.clone()).await {
        result.unwrap_or_else(|failed| panic!("not confirmed: {failed:?}"));
    }
    batch.iter().map(|message| message.id).collect()
}

async fn member(provider: &Arc<dyn Provider>, topic: &TopicSpec, group: &GroupSpec) -> Arc<dyn Subscription> {
    let options = SubscribeOptions { member: "test".into(), prefetch: Prefetch { count: 1_000, bytes: 64 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), group, options).await.unwrap()
}

/// Handles until `n` have come; each is acked.
async fn handle(subscription: &Arc<dyn Subscription>, n: usize) -> Vec<Delivery> {
    let (mut all, end) = (Vec::new(), Instant::now() + PATIENCE);
    while all.len() < n {
        assert!(Instant::now() < end, "{} of {n} came in time", all.len());
        let mut came = Vec::new();
        for signal in subscription.next(1_000, usize::MAX, Duration::from_secs(1)).await.unwrap() {
            if let Signal::Deliveries { items, .. } = signal {
                came.extend(items);
            }
        }
        let settles: Vec<_> = came.iter().map(|delivery| (delivery.token, Settle::Done)).collect();
        assert!(subscription.settle(&settles).await.iter().all(|settled| *settled == Settled::Settled));
        all.extend(came);
    }
    all
}

fn ids(deliveries: &[Delivery]) -> HashSet<MessageId> {
    let id = |delivery: &Delivery| match delivery.id {
        EnvelopeId::Id(id) => id,
        other => panic!("{other:?} instead of an id"),
    };
    deliveries.iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_another_process_made_is_found() {
    let topic = topic(&name());
    let often = Options { look: Duration::from_millis(50), ..options() };
    let producer: Arc<dyn Provider> = Arc::new(Sqs::open(&config(&json!({})), often).await.unwrap());
    producer.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    confirmed(&producer, &topic, messages(1)).await;
    // Another catalogue's group: this producer is never told of it.
    let other = connect(&json!({})).await;
    let billing = group(&format!("{}-billing", topic.name));
    other.ensure(&topic, std::slice::from_ref(&billing)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sent = confirmed(&producer, &topic, messages(3)).await;
    assert_eq!(ids(&handle(&member(&other, &topic, &billing).await, 3).await), sent);
    assert_eq!(handle(&member(&producer, &topic, &group(&topic.name)).await, 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_only_looks_like_a_group_gets_nothing() {
    let topic = topic(&name());
    let strange = format!("{}-eu", topic.name);
    query("/", &[("Action", "CreateQueue"), ("QueueName", &strange)]).await;
    let provider = connect(&json!({})).await;
    provider.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    confirmed(&provider, &topic, messages(5)).await;
    let path = format!("/{}/{strange}", setting("SQS_ACCOUNT"));
    let answer = query(&path, &[("Action", "ReceiveMessage"), ("MaxNumberOfMessages", "10")]).await;
    assert!(!answer.contains("<Message>"), "another's queue was sent to: {answer}");
    // Whoever names it as a group is heard, and told what it lacks.
    let ensured = provider.ensure(&topic, &[group(&strange)]).await.unwrap();
    assert!(ensured.drift.iter().any(|drift| drift.contains("trunkline-topic")), "{:?}", ensured.drift);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_gone_stops_nobody() {
    let topic = topic(&name());
    let (stays, goes) = (group(&topic.name), group("goes"));
    let other = connect(&json!({})).await;
    other.ensure(&topic, &[stays.clone(), goes.clone()]).await.unwrap();
    let producer = connect(&json!({})).await;
    confirmed(&producer, &topic, messages(1)).await;
    other.remove(Remove::Group(&topic, &goes.name)).await.unwrap();
    let batch = messages(3);
    for failed in producer.send(&topic, batch.clone()).await {
        let failed = failed.expect_err("one of its queues is gone");
        assert!(failed.retryable && failed.ambiguous, "{failed:?}");
        assert_eq!(failed.error.code(), Code::TopicNotFound);
    }
    // Sent again, as long as it takes to see that the group is gone: each is in the queue that is left, and there once.
    let end = Instant::now() + PATIENCE;
    while producer.send(&topic, batch.clone()).await.iter().any(Result::is_err) {
        assert!(Instant::now() < end, "a group that is gone stops the others");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let sent: HashSet<_> = batch.iter().map(|message| message.id).collect();
    let member = member(&producer, &topic, &stays).await;
    let came = handle(&member, 4).await;
    assert!(ids(&came).is_superset(&sent));
    assert!(member.next(10, usize::MAX, Duration::from_secs(1)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_create_a_missing_queue_is_named() {
    let topic = topic(&name());
    let provider = connect(&json!({ "create": false })).await;
    let error = provider.ensure(&topic, &[group(&topic.name)]).await.expect_err("it is not there");
    assert_eq!((error.code(), error.detail_str("queue")), (Code::TopicNotFound, Some(&*topic.name)));
    query("/", &[("Action", "CreateQueue"), ("QueueName", &topic.name)]).await;
    let ensured = provider.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    assert!(ensured.created.is_empty());
    let sent = confirmed(&provider, &topic, messages(2)).await;
    assert_eq!(ids(&handle(&member(&provider, &topic, &group(&topic.name)).await, 2).await), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_s_url_is_a_name() {
    let queue = name();
    query("/", &[("Action", "CreateQueue"), ("QueueName", &queue)]).await;
    let topic = topic(&format!("{}/{}/{queue}", setting("SQS"), setting("SQS_ACCOUNT")));
    let provider = connect(&json!({})).await;
    let audit = group(&format!("{}-audit", topic.name));
    provider.ensure(&topic, &[group(&topic.name), audit.clone()]).await.unwrap();
    let sent = confirmed(&provider, &topic, messages(3)).await;
    for group in [group(&topic.name), audit] {
        assert_eq!(ids(&handle(&member(&provider, &topic, &group).await, 3).await), sent);
    }
    provider.remove(Remove::Topic(&topic)).await.unwrap();
    assert_eq!(provider.depth(&topic, &topic.name).await.expect_err("removed").code(), Code::GroupNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_does_beyond_the_promise_is_drift() {
    let topic = topic(&name());
    let attributes =
        [("Action", "CreateQueue"), ("QueueName", &*topic.name), ("Attribute.1.Name", "DelaySeconds"), ("Attribute.1.Value", "7")];
    query("/", &attributes).await;
    let ensured = connect(&json!({})).await.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    assert!(ensured.drift.iter().any(|drift| drift.contains("delays every message by 7 s")), "{:?}", ensured.drift);
}

/// One subscription to more queues than fit its prefetch at once: an empty one holds up no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_where_nothing_comes_holds_up_no_other() {
    let provider = connect(&json!({})).await;
    let names: Vec<String> = (0..6).map(|_| name()).collect();
    let topics: Vec<TopicSpec> = names.iter().map(|name| topic(name)).collect();
    // The group's name is that of a part, which each topic adds to its own.
    let group = group("many");
    for topic in &topics {
        provider.ensure(topic, std::slice::from_ref(&group)).await.unwrap();
    }
    for prefetch in [Prefetch { count: 256, bytes: 4 << 20 }, Prefetch { count: 10, bytes: 64 << 20 }] {
        let options = SubscribeOptions { member: "test".into(), prefetch };
        let subscription = provider.subscribe(&topics, &group, options).await.unwrap();
        for topic in &topics {
            let sent = confirmed(&provider, topic, messages(1)).await;
            let came = handle(&subscription, 1).await;
            assert!(came.iter().all(|delivery| matches!(delivery.id, EnvelopeId::Id(id) if sent.contains(&id))));
        }
        subscription.close(Instant::now() + Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_share_calls_as_far_as_they_fit() {
    let topic = topic(&name());
    let provider = connect(&json!({})).await;
    provider.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    let batch: Vec<_> = (0..12).map(|n| message(vec![b'a' + n; 300_000])).collect();
    let sent = confirmed(&provider, &topic, Arc::new(batch)).await;
    let came = handle(&member(&provider, &topic, &group(&topic.name)).await, 12).await;
    assert_eq!(ids(&came), sent);
    assert!(came.iter().all(|delivery| delivery.payload.as_ref().is_some_and(|payload| payload.len() == 300_000)));
}

/// Where there is much to do, ten messages share each call, in every direction.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_ten_messages_share_a_call() {
    const N: usize = 1_000;
    let counter = Counter::new().await;
    let topic = topic(&name());
    let provider = connect(&json!({ "endpoint": counter.endpoint })).await;
    provider.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    let sent = confirmed(&provider, &topic, messages(N)).await;
    assert_eq!(ids(&handle(&member(&provider, &topic, &group(&topic.name)).await, N).await), sent);
    for (action, most) in [("SendMessageBatch", N / 10), ("ReceiveMessage", N * 12 / 100), ("DeleteMessageBatch", N * 12 / 100)] {
        let calls = counter.calls(action);
        assert!((1..=most).contains(&calls), "{calls} calls of {action} for {N} messages");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_queue_drops_what_is_sent_twice() {
    let topic = topic(&format!("{}.fifo", name()));
    let provider = connect(&json!({})).await;
    assert!(provider.capabilities(&topic).dedup_window_ms > 0);
    provider.ensure(&topic, &[group(&topic.name)]).await.unwrap();
    let key = Bytes::from_static(b"customer:7");
    let one = Outgoing { shard: Some(shard_of(&key, 4)), key: Some(key), ..message("once") };
    for _ in 0..3 {
        confirmed(&provider, &topic, Arc::new(vec![one.clone()])).await;
    }
    let member = member(&provider, &topic, &group(&topic.name)).await;
    assert_eq!(handle(&member, 1).await[0].key, one.key);
    let more = member.next(10, usize::MAX, Duration::from_secs(1)).await.unwrap();
    assert!(more.is_empty(), "{more:?}");
}
