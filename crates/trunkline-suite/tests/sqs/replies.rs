//! What no emulator does, on answers as SQS's API reference gives them: refused credentials and actions, throttling, full
//! queues, calls that fail in part. No server of SQS takes part in these.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use trunkline::config::{ProviderConfig, ProviderKind};
use trunkline::delivery::{Delivery, Settle, Settled};
use trunkline::provider::sqs::{Options, Sqs};
use trunkline::provider::{
    GroupSpec, Outgoing, Prefetch, Provider, SendError, Signal, Stage, Start, SubscribeOptions, Subscription, SubscriptionState, TopicSpec,
    shard_of,
};
use trunkline::{Code, Headers, MessageId};
use trunkline_suite::elasticmq::{Asked, Replies, error};

const SECRET: &str = "a-very-secret-key";
const TOKEN: &str = "a-very-secret-token";

fn config(more: &Value) -> Value {
    let mut config = json!({
        "region": "eu-west-1", "accessKeyId": "AKIDTEST", "secretAccessKey": SECRET, "sessionToken": TOKEN, "create": false,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

async fn connect(more: &Value) -> Arc<dyn Provider> {
    let Ok(ProviderConfig::AwsSqs(config)) = ProviderConfig::parse(ProviderKind::AwsSqs, &config(more)) else { panic!("not a config") };
    let options = Options { lease: Duration::from_secs(1), wait: Duration::from_secs(1), ..Options::default() };
    Arc::new(Sqs::open(&config, options).await.unwrap())
}

fn url(queue: &str) -> String {
    format!("http://sqs.test/1/{queue}")
}

fn queue(asked: &Asked) -> String {
    let url = asked.body["QueueUrl"].as_str().unwrap_or_default();
    url.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Everything well: these queues are there, all that is sent is taken, nothing is to be received.
fn well(queues: &[&str], asked: &Asked) -> (u16, Value) {
    let done = |more: fn(&Value) -> Value| {
        let entries = asked.body["Entries"].as_array().cloned().unwrap_or_default();
        let entries: Vec<Value> = entries.iter().map(more).collect();
        (200, json!({ "Successful": entries, "Failed": [] }))
    };
    match &*asked.action {
        "ListQueues" => (200, json!({ "QueueUrls": queues.iter().map(|queue| url(queue)).collect::<Vec<_>>() })),
        "GetQueueUrl" => match asked.body["QueueName"].as_str() {
            Some(name) if queues.contains(&name) => (200, json!({ "QueueUrl": url(name) })),
            _ => error(400, "QueueDoesNotExist", "The specified queue does not exist."),
        },
        "ListQueueTags" => (200, json!({ "Tags": { "trunkline-topic": queues[0] } })),
        "GetQueueAttributes" => (200, json!({ "Attributes": {} })),
        "SendMessageBatch" => {
            done(|entry| json!({ "Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "x", "SequenceNumber": "18849496460467696128" }))
        }
        "DeleteMessageBatch" | "ChangeMessageVisibilityBatch" => done(|entry| json!({ "Id": entry["Id"] })),
        _ => (200, json!({})),
    }
}

fn topic(name: &str) -> TopicSpec {
    TopicSpec::new(name, 4, name.ends_with(".fifo"))
}

fn messages(n: usize, key: Option<&str>) -> Arc<Vec<Outgoing>> {
    let key = key.map(|key| Bytes::from(key.to_owned()));
    let one = |n| Outgoing {
        id: MessageId::now(),
        shard: key.as_ref().map(|key| shard_of(key, 4)),
        key: key.clone(),
        headers: Headers::new(),
        payload: Bytes::from(format!("{{\"n\":{n}}}")),
    };
    Arc::new((0..n).map(one).collect())
}

async fn subscribe(provider: &Arc<dyn Provider>, topic: &TopicSpec) -> Arc<dyn Subscription> {
    let group = GroupSpec { name: topic.name.clone(), start: Start::Latest };
    let options = SubscribeOptions { member: "test".into(), prefetch: Prefetch { count: 100, bytes: 1 << 20 } };
    provider.subscribe(std::slice::from_ref(topic), &group, options).await.unwrap()
}

fn failure<T>(result: &Result<T, SendError>) -> &SendError {
    result.as_ref().err().expect("it was not confirmed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_in_part_fails_those_messages() {
    let server = Replies::new(|asked| match &*asked.action {
        "SendMessageBatch" => (
            200,
            json!({
                "Successful": [{ "Id": "0", "MessageId": "m", "MD5OfMessageBody": "x" }, { "Id": "3", "MessageId": "m", "MD5OfMessageBody": "x" }],
                "Failed": [
                    { "Id": "1", "SenderFault": false, "Code": "InternalError", "Message": "try again" },
                    { "Id": "2", "SenderFault": true, "Code": "InvalidMessageContents", "Message": "no" },
                ],
            }),
        ),
        _ => well(&["t"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let results = provider.send(&topic("t"), messages(5, None)).await;
    assert!(results[0].is_ok() && results[3].is_ok());
    let seen: Vec<_> = [1, 2, 4].map(|at| failure(&results[at])).map(|failed| (failed.retryable, failed.ambiguous)).into();
    // The server failed; the message is refused; nothing was said of it.
    assert_eq!(seen, [(true, true), (false, false), (true, true)]);
}

/// A produce goes to every group's queue: what some have is not confirmed, and comes again only to the others.
#[tokio::test(flavor = "multi_thread")]
async fn what_some_queues_have_is_sent_to_the_others_only() {
    let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let calls = seen.clone();
    let server = Replies::new(move |asked| {
        if asked.action == "SendMessageBatch" {
            let queue = queue(&asked);
            let count = *calls.lock().entry(queue.clone()).and_modify(|n| *n += 1).or_insert(1);
            if queue == "t-billing" && count <= 2 {
                return error(403, "RequestThrottled", "Slow down");
            }
        }
        well(&["t", "t-billing"], &asked)
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let batch = messages(3, None);
    for _ in 0..2 {
        for result in provider.send(&topic("t"), batch.clone()).await {
            let failed = failure(&result);
            assert!(failed.retryable && failed.ambiguous, "{failed:?}");
            assert_eq!(failed.error.detail_str("reason"), Some("throttled"));
            assert_eq!(failed.error.details()["missing"], json!(["t-billing"]));
        }
    }
    assert!(provider.send(&topic("t"), batch.clone()).await.iter().all(Result::is_ok));
    assert_eq!(*seen.lock(), HashMap::from([("t".into(), 1), ("t-billing".into(), 3)]));
    // It is complete: the same again is a new message.
    assert!(provider.send(&topic("t"), batch).await.iter().all(Result::is_ok));
    assert_eq!(seen.lock()["t"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_failed_call_none_of_its_key_is_sent() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let server = Replies::new(move |asked| match &*asked.action {
        "SendMessageBatch" if count.fetch_add(1, Ordering::SeqCst) == 0 => error(503, "ServiceUnavailable", ""),
        _ => well(&["t.fifo"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let results = provider.send(&topic("t.fifo"), messages(25, Some("k"))).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(results[..10].iter().map(failure).all(|failed| failed.retryable && failed.ambiguous));
    assert!(results[10..].iter().map(failure).all(|failed| failed.retryable && !failed.ambiguous));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overtaken_is_not_sent_again() {
    let server = Replies::new(|asked| match &*asked.action {
        "SendMessageBatch" => (
            200,
            json!({
                "Successful": [{ "Id": "1", "MessageId": "m", "MD5OfMessageBody": "x" }],
                "Failed": [{ "Id": "0", "SenderFault": false, "Code": "InternalError", "Message": "" }],
            }),
        ),
        _ => well(&["t.fifo"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let results = provider.send(&topic("t.fifo"), messages(2, Some("k"))).await;
    let failed = failure(&results[0]);
    assert!(!failed.retryable && results[1].is_ok(), "{results:?}");
    assert_eq!(failed.error.detail_str("reason"), Some("overtaken"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_ambiguous_and_a_refused_connection_is_not() {
    let server = Replies::new(|asked| if asked.action == "SendMessageBatch" { (0, json!({})) } else { well(&["t"], &asked) }).await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let lost = provider.send(&topic("t"), messages(1, None)).await.remove(0);
    assert!(failure(&lost).ambiguous && failure(&lost).retryable, "{lost:?}");
    drop(server);
    // A port where nobody listens.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let provider = connect(&json!({ "endpoint": format!("http://{free}") })).await;
    let refused = provider.send(&topic("t"), messages(1, None)).await.remove(0);
    let failed = failure(&refused);
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::ConnectionFailed, true, false));
}

async fn states(subscription: &Arc<dyn Subscription>, wanted: &SubscriptionState) {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let signals = subscription.next(10, usize::MAX, Duration::from_secs(1)).await.unwrap();
        if signals.iter().any(|signal| matches!(signal, Signal::State(state) if state == wanted)) {
            return;
        }
    }
    panic!("it never was {wanted:?}");
}

/// Too many in flight, or too many calls: a named state, and it goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn limits_are_states_that_pass() {
    for (status, code, word) in
        [(403, "OverLimit", "over_limit"), (403, "RequestThrottled", "throttled"), (503, "ServiceUnavailable", "unreachable")]
    {
        let full = Arc::new(AtomicBool::new(true));
        let now = full.clone();
        let server = Replies::new(move |asked| match &*asked.action {
            "ReceiveMessage" if now.load(Ordering::SeqCst) => error(status, code, "limit"),
            _ => well(&["t"], &asked),
        })
        .await;
        let provider = connect(&json!({ "endpoint": server.endpoint })).await;
        let subscription = subscribe(&provider, &topic("t")).await;
        states(&subscription, &SubscriptionState::Degraded(word)).await;
        full.store(false, Ordering::SeqCst);
        states(&subscription, &SubscriptionState::Live).await;
        subscription.close(Instant::now() + Duration::from_secs(5)).await;
    }
}

/// A queue that is gone ends the subscription, so that its owner makes it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_gone_ends_the_subscription() {
    let server = Replies::new(|asked| match &*asked.action {
        "ReceiveMessage" => error(400, "QueueDoesNotExist", ""),
        _ => well(&["t"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let subscription = subscribe(&provider, &topic("t")).await;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < end, "a consumer of a queue that is gone went on in silence");
        if let Err(error) = subscription.next(10, usize::MAX, Duration::from_secs(1)).await {
            assert_eq!(error.code(), Code::TopicNotFound);
            return;
        }
    }
}

async fn one(subscription: &Arc<dyn Subscription>) -> Delivery {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        for signal in subscription.next(1, usize::MAX, Duration::from_secs(1)).await.unwrap() {
            if let Signal::Deliveries { mut items, .. } = signal {
                return items.remove(0);
            }
        }
    }
    panic!("no message came");
}

/// The server says that the lease is gone: the delivery is nobody's to settle any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_is_stale() {
    let (sent, renewed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (first, renews) = (sent.clone(), renewed.clone());
    let server = Replies::new(move |asked| match &*asked.action {
        "ReceiveMessage" if !first.swap(true, Ordering::SeqCst) => {
            (200, json!({ "Messages": [{ "MessageId": "m", "ReceiptHandle": "h", "Body": "b", "MD5OfBody": "x" }] }))
        }
        "ChangeMessageVisibilityBatch" => {
            renews.fetch_add(1, Ordering::SeqCst);
            let said = "Value h for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
            let failed = json!([{ "Id": "0", "SenderFault": true, "Code": "InvalidParameterValue", "Message": said }]);
            (200, json!({ "Successful": [], "Failed": failed }))
        }
        _ => well(&["t"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let subscription = subscribe(&provider, &topic("t")).await;
    let delivery = one(&subscription).await;
    // The lease of a second is renewed from the receipt on, by itself; that it is lost is seen then.
    let end = Instant::now() + Duration::from_secs(20);
    while renewed.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < end, "the lease of a held message was not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(subscription.extend(&[delivery.token]).await, [false]);
    assert_eq!(subscription.settle(&[(delivery.token, Settle::Done)]).await, [Settled::Stale]);
}

async fn probe(more: &Value) -> Vec<Stage> {
    connect(more).await.probe(Instant::now() + Duration::from_secs(10)).await
}

/// What a person is told: the stage, the code, and the fix.
fn diagnosis(stages: &[Stage]) -> (&'static str, Code, String) {
    let last = stages.iter().find(|stage| !stage.ok).expect("a stage failed");
    (last.stage, last.code.expect("a code"), last.fix.clone().expect("a fix"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_has_a_diagnosis_of_its_own() {
    // The secrets travel in the signature only; the session token is sent, and shown nowhere.
    let token = Arc::new(AtomicBool::new(false));
    let seen = token.clone();
    let server = Replies::new(move |asked| {
        let lines = asked.headers.to_lowercase();
        seen.store(lines.contains("x-amz-security-token") && lines.contains(TOKEN) && !lines.contains(SECRET), Ordering::SeqCst);
        well(&["t"], &asked)
    })
    .await;
    let stages = probe(&json!({ "endpoint": server.endpoint })).await;
    assert!(stages.iter().all(|stage| stage.ok), "{stages:?}");
    assert!(token.load(Ordering::SeqCst));

    let server = Replies::new(|_| error(403, "InvalidClientTokenId", &format!("The Canonical String was {TOKEN}"))).await;
    let stages = probe(&json!({ "endpoint": server.endpoint })).await;
    let (stage, code, fix) = diagnosis(&stages);
    assert_eq!((stage, code), ("authenticate", Code::AuthenticationFailed));
    assert!(fix.contains("secretAccessKey"), "{fix}");
    assert!(!format!("{stages:?}").contains(TOKEN) && !format!("{stages:?}").contains(SECRET));

    let server = Replies::new(|_| error(403, "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized")).await;
    let (stage, code, fix) = diagnosis(&probe(&json!({ "endpoint": server.endpoint })).await);
    assert_eq!((stage, code), ("permissions", Code::AuthenticationFailed));
    assert!(fix.contains("sqs:ListQueues") && fix.contains("ReceiveMessage"), "{fix}");

    // May everything but create.
    let server = Replies::new(|asked| match &*asked.action {
        "CreateQueue" => error(403, "AccessDenied", "not authorized to perform: sqs:createqueue"),
        _ => well(&["t"], &asked),
    })
    .await;
    let (stage, _, fix) = diagnosis(&probe(&json!({ "endpoint": server.endpoint, "create": true })).await);
    assert!(stage == "ensure" && fix.contains("sqs:CreateQueue") && fix.contains("create: false"), "{stage}: {fix}");

    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (stage, code, fix) = diagnosis(&probe(&json!({ "endpoint": format!("http://{free}") })).await);
    assert_eq!((stage, code), ("connect", Code::ConnectionFailed));
    assert!(fix.contains("port"), "{fix}");

    let (stage, code, _) = diagnosis(&probe(&json!({ "endpoint": "http://no-such-host.invalid:1" })).await);
    assert_eq!((stage, code), ("resolve", Code::ConnectionFailed));

    // Plain text where TLS was meant.
    let https = server.endpoint.replace("http:", "https:");
    let (stage, code, fix) = diagnosis(&probe(&json!({ "endpoint": https })).await);
    assert_eq!((stage, code), ("tls", Code::ConnectionFailed));
    assert!(fix.contains("tls.ca"), "{fix}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_is_not_allowed_is_not_tried_again() {
    let server = Replies::new(|asked| match &*asked.action {
        "SendMessageBatch" => error(403, "AccessDeniedException", "not authorized to perform: sqs:sendmessage"),
        _ => well(&["t"], &asked),
    })
    .await;
    let provider = connect(&json!({ "endpoint": server.endpoint })).await;
    let result = provider.send(&topic("t"), messages(1, None)).await.remove(0);
    let failed = failure(&result);
    assert_eq!((failed.error.code(), failed.retryable, failed.ambiguous), (Code::AuthenticationFailed, false, false));
    assert_eq!(failed.error.detail_str("reason"), Some("permission_missing"));
}

#[tokio::test]
async fn nothing_shows_a_secret() {
    let provider = connect(&json!({ "endpoint": "http://127.0.0.1:1" })).await;
    let shown = format!("{provider:?}");
    assert!(!shown.contains(SECRET) && !shown.contains(TOKEN), "{shown}");
}
