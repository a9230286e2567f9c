//! The whole library over RabbitMQ: names, retries, dead letters, both forms of the lot, order, a restart.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::dead_letter::{DeadFilter, Reprocess};
use trunkline::{Code, Consumer, Context, Env, MessageId, Raw, State, Trunkline};
use trunkline_suite::promise::{Seen, retries, until};
use trunkline_suite::server::{Act, setting};

use crate::bed::{self, ctl, name, server, url};

const EVENT: &str = "orders:created";

struct Library {
    trunkline: Trunkline,
    env: Env,
    product: String,
    dir: TempDir,
}

impl Library {
    /// Another instance on the same data directory, as a process of its own would open it.
    async fn another(&self) -> (Trunkline, Env) {
        let data = self.dir.path().join("data");
        let trunkline = Trunkline::builder().url(data.to_string_lossy()).single_host(true).open().await.unwrap();
        (trunkline.clone(), trunkline.env(&self.product, "prd"))
    }

    /// A consumer that only writes down what it is given.
    async fn watch(&self) -> (Consumer, Seen<MessageId>) {
        let seen = Seen::new();
        let s = seen.clone();
        let consume = self.env.consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.process_id);
            async {}
        });
        (consume.await.unwrap(), seen)
    }

    async fn produce(&self, n: u64) -> trunkline::Result<MessageId> {
        self.env.produce(EVENT, &json!({ "n": n })).await.map(|receipt| receipt.process_id)
    }
}

/// A product of its own on the server.
async fn library(single_host: bool, config: Value, topic: Value) -> Library {
    let dir = tempfile::tempdir().unwrap();
    let trunkline = Trunkline::builder().url(dir.path().join("data").to_string_lossy()).single_host(single_host).open().await.unwrap();
    let product = name("p");
    let mut fields = json!({ "url": url() });
    fields.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let envs = json!([{ "slug": "prd", "type": "RABBITMQ", "config": fields }]);
    trunkline.catalog().create_broker(Some(&product), json!({ "name": "Orders", "tag": "orders", "envs": envs })).await.unwrap();
    let mut fields = json!({ "name": "Created", "tag": EVENT });
    fields.as_object_mut().unwrap().extend(topic.as_object().unwrap().clone());
    trunkline.catalog().create_topic(Some(&product), fields).await.unwrap();
    Library { env: trunkline.env(&product, "prd"), trunkline, product, dir }
}

async fn fails_waits_and_dies(single_host: bool) {
    let _server = server().await;
    let library = library(single_host, json!({}), json!({})).await;
    let env = &library.env;
    // Produced before anybody consumes: it is the default group's all the same.
    let good = env.produce(EVENT, &json!({ "n": 1 })).await.unwrap().process_id;
    let bad = env.produce(EVENT, &json!({ "n": 2 })).header("h", "1").await.unwrap().process_id;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push((c.process_id, c.attempt));
            async move { if c.process_id == good && c.attempt >= 2 { Ok(()) } else { Err("not yet") } }
        })
        .retry(retries(&[50, 5_100]))
        .await
        .unwrap();
    let mut all = seen.wait(5).await;
    all.sort_unstable();
    let mut wanted = vec![(good, 1), (good, 2), (bad, 1), (bad, 2), (bad, 3)];
    wanted.sort_unstable();
    assert_eq!(all, wanted);
    until("it is buried", || async { env.dead_letters(&DeadFilter::default(), 1, 10).await.unwrap().1 == 1 }).await;
    let dead = env.dead_letter(bad).await.unwrap().remove(0);
    assert_eq!((dead.attempts, dead.message.headers.get_str("h"), &dead.message.payload[..]), (3, Some("1"), &b"{\"n\":2}"[..]));
    until("nothing is held", || async { consumer.in_flight() == 0 }).await;
    consumer.close(Duration::from_secs(5)).await;
    let dead = format!("{0}.prd.orders.created.{0}.dead.{0}\t", library.product);
    let lies = || async {
        let queues = ctl(&["list_queues", "name", "messages", "--silent"]).await;
        queues.lines().find_map(|line| line.strip_prefix(&dead)).map(str::to_owned)
    };
    if single_host {
        assert_eq!(lies().await, None);
    } else {
        // The server counts only now and then.
        until("the dead letter lies on the broker too", || async { lies().await.as_deref() == Some("1") }).await;
    }
    // Handed over again, it is done.
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.process_id);
            async {}
        })
        .await
        .unwrap();
    env.reprocess(Reprocess::default()).await.unwrap();
    assert_eq!(seen.wait(1).await, [bad]);
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_go_through_the_lot_on_the_broker() {
    fails_waits_and_dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_go_through_the_store_of_a_single_host() {
    fails_waits_and_dies(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_waits_on_the_broker() {
    let _server = server().await;
    let library = library(false, json!({}), json!({})).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = library
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push((c.process_id, std::time::Instant::now()));
            async {}
        })
        .await
        .unwrap();
    let begun = std::time::Instant::now();
    let id = library.env.produce(EVENT, &json!(1)).delay(Duration::from_secs(1)).await.unwrap().process_id;
    let got = seen.wait(1).await;
    assert_eq!(got[0].0, id);
    assert!(got[0].1 - begun >= Duration::from_secs(1));
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_order_on_a_single_host_and_are_refused_without() {
    let _server = server().await;
    let refused = library(false, json!({}), json!({ "ordering": "key", "shards": 2 })).await;
    let error = refused.env.consume(EVENT, |_: Raw, _: Context| async {}).await.unwrap_err();
    assert_eq!(error.code(), Code::CapabilityUnsupported);
    refused.trunkline.close(Duration::from_secs(5)).await;

    let library = library(true, json!({}), json!({ "ordering": "key", "shards": 4 })).await;
    let seen = Seen::new();
    let failed: std::sync::Arc<Mutex<HashSet<u64>>> = std::sync::Arc::default();
    let mut consumers = Vec::new();
    for _ in 0..3 {
        let (s, failed) = (seen.clone(), failed.clone());
        let consume = library.env.consume(EVENT, move |payload: Value, c: Context| {
            let n = payload["n"].as_u64().unwrap();
            // Every seventh fails once.
            let fails = n.is_multiple_of(7) && failed.lock().insert(n);
            if !fails {
                s.push((c.key.unwrap_or_default(), n));
            }
            async move { if fails { Err("once") } else { Ok(()) } }
        });
        consumers.push(consume.retry(retries(&[20, 40])).await.unwrap());
    }
    for n in 0..300_u64 {
        library.env.produce(EVENT, &json!({ "n": n })).key(format!("key-{}", n % 10)).await.unwrap();
    }
    let all = seen.wait(300).await;
    for key in 0..10_u64 {
        let of_key: Vec<u64> = all.iter().filter(|(_, n)| n % 10 == key).map(|(_, n)| *n).collect();
        assert_eq!(of_key, (0..30).map(|at| at * 10 + key).collect::<Vec<_>>(), "key {key}");
    }
    for consumer in consumers {
        consumer.close(Duration::from_secs(10)).await;
    }
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_under_a_running_program_loses_nothing() {
    let (server, _one) = server().await;
    let library = library(true, json!({}), json!({})).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consumer = library
        .env
        .consume(EVENT, move |_: Raw, c: Context| {
            s.push(c.process_id);
            async {}
        })
        .await
        .unwrap();
    let producing = tokio::spawn({
        let env = library.env.clone();
        async move {
            let mut sure = Vec::new();
            for n in 0..400 {
                if let Ok(receipt) = env.produce(EVENT, &json!({ "n": n })).await {
                    sure.push(receipt.process_id);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sure
        }
    });
    seen.wait(50).await;
    server.act(Act::Restart).await;
    let sure = producing.await.unwrap();
    assert_eq!(sure.len(), 400, "a restart is shorter than the deadline of a produce");
    until("all confirmed ones are handled", || async {
        let handled: HashSet<_> = seen.all().into_iter().collect();
        sure.iter().all(|id| handled.contains(id))
    })
    .await;
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_the_config_are_used() {
    let _server = server().await;
    let (exchange, queue, key) = (name("ex"), name("q"), name("rk"));
    let library = library(true, json!({ "exchange": exchange, "queue": queue, "routingKey": key }), json!({})).await;
    let second = json!({ "name": "Paid", "tag": "orders:paid" });
    library.trunkline.catalog().create_topic(Some(&library.product), second).await.unwrap();
    for event in [EVENT, "orders:paid"] {
        let seen = Seen::new();
        for group in [None, Some("audit")] {
            let s = seen.clone();
            let mut consume = library.env.consume(event, move |_: Raw, c: Context| {
                s.push(c.process_id);
                async {}
            });
            if let Some(group) = group {
                consume = consume.group(group);
            }
            drop(consume.await.unwrap());
        }
        let s = seen.clone();
        let consumer = library
            .env
            .consume(event, move |_: Raw, c: Context| {
                s.push(c.process_id);
                async {}
            })
            .await
            .unwrap();
        let id = library.env.produce(event, &json!(1)).await.unwrap().process_id;
        assert!(seen.wait(1).await.contains(&id));
        consumer.close(Duration::from_secs(5)).await;
    }
    let bindings = ctl(&["list_bindings", "source_name", "routing_key", "destination_name", "--silent"]).await;
    let mut ours: Vec<_> = bindings.lines().filter(|line| line.starts_with(&exchange)).collect();
    ours.sort_unstable();
    let wanted = [
        format!("{exchange}\t{key}\t{queue}"),
        format!("{exchange}\t{key}\t{queue}.audit"),
        format!("{exchange}\t{key}.paid\t{queue}.paid"),
        format!("{exchange}\t{key}.paid\t{queue}.paid.audit"),
    ];
    assert_eq!(ours, wanted);
    library.trunkline.close(Duration::from_secs(10)).await;
}

/// Three programs share the keys; handlers fail, one program dies, and the server is killed.
#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_order_through_failures_a_death_and_a_restart() {
    let (server, _one) = server().await;
    let library = library(true, json!({}), json!({ "ordering": "key", "shards": 4 })).await;
    let seen: Seen<(u64, u64)> = Seen::new();
    let failed: std::sync::Arc<Mutex<HashSet<u64>>> = std::sync::Arc::default();
    let mut programs = Vec::new();
    for _ in 0..3 {
        let (trunkline, env) = library.another().await;
        let (s, failed) = (seen.clone(), failed.clone());
        let consume = env.consume(EVENT, move |payload: Value, _: Context| {
            let n = payload["n"].as_u64().unwrap();
            let fails = n.is_multiple_of(11) && failed.lock().insert(n);
            if !fails {
                s.push((n % 10, n));
            }
            async move { if fails { Err("once") } else { Ok(()) } }
        });
        programs.push((consume.retry(retries(&[20, 40])).await.unwrap(), trunkline));
    }
    const ALL: u64 = 600;
    let producing = tokio::spawn({
        let env = library.env.clone();
        async move {
            for n in 0..ALL {
                env.produce(EVENT, &json!({ "n": n })).key(format!("key-{}", n % 10)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    seen.wait(150).await;
    drop(programs.remove(0));
    seen.wait(300).await;
    server.act(Act::Restart).await;
    producing.await.unwrap();
    let handled = || seen.all().into_iter().map(|(_, n)| n).collect::<HashSet<_>>().len() as u64;
    until("all are handled", || async { handled() == ALL }).await;
    for key in 0..10 {
        // What was not yet settled when its owner died comes once more; nothing comes before what it follows.
        let mut first = Vec::new();
        for (_, n) in seen.all().into_iter().filter(|(of, _)| *of == key) {
            if !first.contains(&n) {
                first.push(n);
            }
        }
        assert_eq!(first, (0..ALL / 10).map(|at| at * 10 + key).collect::<Vec<_>>(), "key {key}");
    }
    for (consumer, trunkline) in programs {
        consumer.close(Duration::from_secs(10)).await;
        trunkline.close(Duration::from_secs(10)).await;
    }
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_alarm_is_told_and_waited_out() {
    let _server = server().await;
    let library = library(true, json!({}), json!({})).await;
    let (consumer, seen) = library.watch().await;
    let before = library.produce(0).await.unwrap();
    assert_eq!(seen.wait(1).await, [before]);
    ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await;
    let refused = library.env.produce(EVENT, &json!(1)).timeout(Duration::from_secs(12)).await.unwrap_err();
    let patient = tokio::spawn({
        let env = library.env.clone();
        async move { env.produce(EVENT, &json!(2)).await.map(|receipt| receipt.process_id) }
    });
    let state = consumer.state();
    ctl(&["set_vm_memory_high_watermark", "absolute", "1GiB"]).await;
    assert_eq!((refused.code(), refused.detail_str("reason")), (Code::PublishFailed, Some("broker_blocked")), "{refused:?}");
    assert_eq!(state, State::Live, "consuming goes on");
    let sent = patient.await.unwrap().expect("the alarm is shorter than the deadline of a produce");
    until("what waited is handled", || async { seen.all().contains(&sent) }).await;
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_beyond_the_consumer_timeout_is_told_and_runs_again() {
    let _server = server().await;
    ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1500), application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let library = library(true, json!({}), json!({})).await;
    let seen = Seen::new();
    let s = seen.clone();
    let consume = library.env.consume(EVENT, move |_: Raw, c: Context| {
        s.push(c.process_id);
        let first = s.all().len() == 1;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
        }
    });
    let consumer = consume.await.unwrap();
    let mut states = consumer.states();
    let id = library.produce(0).await.unwrap();
    let lost = tokio::time::timeout(bed::PATIENCE, states.wait_for(|state| *state == State::Degraded("reconnecting"))).await;
    ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1800000), application:set_env(rabbit, channel_tick_interval, 60000)."])
        .await;
    lost.expect("the server ends what is held too long").unwrap();
    assert_eq!(seen.wait(2).await, [id, id]);
    until("it is live again", || async { consumer.state() == State::Live && consumer.in_flight() == 0 }).await;
    let next = library.produce(1).await.unwrap();
    assert_eq!(seen.wait(3).await[2], next);
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

/// Longer than two heartbeats: the connections are given up while the server sleeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_for_long_is_found_again() {
    let (server, _one) = server().await;
    let library = library(true, json!({}), json!({})).await;
    let (consumer, seen) = library.watch().await;
    let before = library.produce(0).await.unwrap();
    assert_eq!(seen.wait(1).await, [before]);
    let mut states = consumer.states();
    server.act(Act::Stop).await;
    let patient = tokio::spawn({
        let env = library.env.clone();
        async move { env.produce(EVENT, &json!(1)).timeout(Duration::from_secs(60)).await.map(|receipt| receipt.process_id) }
    });
    let noticed = tokio::time::timeout(Duration::from_secs(45), states.wait_for(|state| *state == State::Degraded("reconnecting"))).await;
    server.act(Act::Continue).await;
    noticed.expect("a silent server is noticed").unwrap();
    let sent = patient.await.unwrap().unwrap();
    until("what waited is handled", || async { seen.all().contains(&sent) }).await;
    until("it is live again", || async { consumer.state() == State::Live }).await;
    consumer.close(Duration::from_secs(5)).await;
    library.trunkline.close(Duration::from_secs(10)).await;
}

/// As `trunkline doctor` shows it: also of a config that cannot be opened.
#[tokio::test(flavor = "multi_thread")]
async fn the_connection_test_names_the_stage_that_failed() {
    let _server = server().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port: u16 = bed::address().rsplit(':').next().unwrap().parse().unwrap();
    let plain = json!({ "host": "127.0.0.1", "port": port, "username": setting("USER"), "password": setting("PASSWORD"),
                        "vhost": setting("RABBITMQ_VHOST") });
    let library = library(true, json!({}), json!({})).await;
    for (tag, change, wanted) in [
        ("right", json!({}), None),
        ("password", json!({ "password": "hunter2" }), Some(("authenticate", Code::AuthenticationFailed))),
        ("port", json!({ "port": nobody }), Some(("connect", Code::ConnectionFailed))),
        ("tls", json!({ "tls": { "ca": setting("TLS_CA") } }), Some(("tls", Code::ConnectionFailed))),
        (
            "permission",
            json!({ "username": setting("LIMITED_USER"), "password": setting("LIMITED_PASSWORD") }),
            Some(("permissions", Code::AuthenticationFailed)),
        ),
    ] {
        let mut config = plain.clone();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let envs = json!([{ "slug": "prd", "type": "RABBITMQ", "config": config }]);
        let broker = json!({ "name": tag, "tag": tag, "envs": envs });
        library.trunkline.catalog().create_broker(Some(&library.product), broker).await.unwrap();
        let test = library.env.test_connection(tag).await.unwrap();
        let failed = test.stages.iter().find(|stage| !stage.ok);
        assert_eq!(failed.map(|stage| (stage.stage, stage.code.unwrap())), wanted, "{tag}: {:?}", test.stages);
        assert_eq!(test.success, wanted.is_none());
        assert!(failed.is_none_or(|stage| stage.fix.is_some()) && !format!("{test:?}").contains("hunter2"));
    }
    library.trunkline.close(Duration::from_secs(5)).await;
}
