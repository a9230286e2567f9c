//! Due times are fired once, by whoever is open; what fails is shown and goes on; what is cancelled does not.

use std::time::Duration;

use serde_json::json;

use super::fire::message_id;
use super::*;
use crate::Trunkline;
use crate::store::Store;
use crate::store::schedule::{ScheduleSettle, ScheduleStore};
use crate::store::sqlite::{Options, SqliteStore};

const EVENT: &str = "reports:due";

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Bed { dir: tempfile::tempdir().expect("a directory") }
    }

    async fn open(&self) -> (Trunkline, Env) {
        let trunkline = Trunkline::open(&self.dir.path().join("data").display().to_string()).await.expect("open");
        if trunkline.catalog().list_products().is_empty() {
            let broker = json!({ "name": "R", "tag": "reports", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] });
            trunkline.catalog().create_broker(Some("shop"), broker).await.expect("broker");
            let topic = json!({ "name": "Due", "tag": EVENT, "sample": { "kind": "daily" }, "validate": "reject" });
            trunkline.catalog().create_topic(Some("shop"), topic).await.expect("topic");
        }
        let env = trunkline.env("shop", "prd");
        (trunkline, env)
    }
}

fn payload() -> Value {
    json!({ "kind": "daily" })
}

/// Waits until a schedule is as it should be; the loop asks the store, which is told by nobody.
async fn until(env: &Env, id: MessageId, is: impl Fn(&ScheduleView) -> bool) -> ScheduleView {
    let wait = async {
        loop {
            let view = env.schedule(&id.to_string()).await.expect("fetch").expect("there");
            if is(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("in time")
}

async fn ready(env: &Env) -> u64 {
    env.groups(EVENT).await.expect("groups")[0].ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_due_time_is_fired_once_by_two_instances() {
    let bed = Bed::new();
    let ((_a, env), (_b, _other)) = (bed.open().await, bed.open().await);
    let timing = Timing::every(Duration::from_secs(1)).starting(now_ms()).limit(3);
    let dispatched = env.produce(EVENT, &payload()).key("k").header("tenant", "a").dispatch(timing).await.expect("dispatch");
    let done = until(&env, dispatched.schedule_id, |view| view.state == ScheduleState::Done).await;
    assert_eq!((done.fired, done.failures, ready(&env).await), (3, 0, 3));
    let last = done.last_at.expect("a due time");
    assert_eq!(done.last_process_id, Some(message_id(dispatched.schedule_id, last)));
    assert_eq!((last - dispatched.next_at) % 1_000, 0);
}

#[tokio::test]
async fn a_crash_between_the_send_and_the_note_gives_the_same_id() {
    let bed = Bed::new();
    let (trunkline, env) = bed.open().await;
    let far = env.produce(EVENT, &payload()).dispatch(Timing::at(now_ms() + 3_600_000)).await.expect("dispatch").schedule_id;
    let mut record = trunkline.store().schedule_get(far).await.expect("get").expect("there");
    let due = now_ms() - 10_000;
    let timing = Timing::every(Duration::from_secs(1)).starting(due).limit(1).to_value();
    (record.id, record.timing, record.next_at) = (MessageId::now(), timing, Some(due));
    // Its owner sends, and dies before it notes that: the claim is what is left.
    let sent = env.inner().produce_due(&record, due).await.expect("sent").process_id;
    trunkline.close(Duration::from_secs(5)).await;
    let store = SqliteStore::open(&bed.dir.path().join("data"), Options::default()).expect("the store");
    store.schedule_add(&record).await.expect("add");
    let claimed = store.schedule_claim(10, "dead", Duration::from_millis(1)).await.expect("claim");
    assert_eq!(claimed[0].0.firing_at, Some(due));
    store.close().await;

    let (_trunkline, env) = bed.open().await;
    let done = until(&env, record.id, |view| view.state == ScheduleState::Done).await;
    assert_eq!((sent, done.last_process_id), (message_id(record.id, due), Some(sent)));
    assert_eq!((done.fired, done.missed, done.last_at, sent.millis()), (1, 0, Some(due), due));
    assert_eq!(ready(&env).await, 2, "twice on the broker, with one id");
}

#[tokio::test]
async fn what_came_due_while_nobody_was_open_is_made_up_for_once() {
    let bed = Bed::new();
    let (trunkline, env) = bed.open().await;
    let start = now_ms() + 3_600_000;
    let every = Timing::every(Duration::from_secs(1)).starting(start).limit(1);
    let id = env.produce(EVENT, &payload()).dispatch(every).await.expect("dispatch").schedule_id;
    let past = Timing::every(Duration::from_secs(1)).starting(now_ms() - 10_000).limit(1).to_value();
    let mut record = trunkline.store().schedule_get(id).await.expect("get").expect("there");
    // As it lies there when the first process opens after ten seconds.
    (record.id, record.timing, record.next_at) = (MessageId::now(), past, Some(now_ms() - 10_000));
    trunkline.store().schedule_add(&record).await.expect("add");
    let done = until(&env, record.id, |view| view.state == ScheduleState::Done).await;
    assert!(done.fired == 1 && done.missed >= 10, "{done:?}");
    assert_eq!(ready(&env).await, 1);
}

#[tokio::test]
async fn a_firing_that_fails_is_shown_and_goes_when_it_can() {
    let bed = Bed::new();
    let (trunkline, env) = bed.open().await;
    let far = env.produce(EVENT, &payload()).dispatch(Timing::at(now_ms() + 3_600_000)).await.expect("dispatch").schedule_id;
    trunkline.catalog().update_topic(Some("shop"), EVENT, json!({ "sample": { "kind": 1 } })).await.expect("update");
    // One that comes due after the schema has changed.
    let mut record = trunkline.store().schedule_get(far).await.expect("get").expect("there");
    let (id, now) = (MessageId::now(), now_ms());
    (record.id, record.timing, record.next_at) = (id, Timing::at(now).to_value(), Some(now));
    trunkline.store().schedule_add(&record).await.expect("add");
    let failing = until(&env, id, |view| view.failures > 0).await;
    assert!(failing.error.as_deref().is_some_and(|error| error.starts_with("PAYLOAD_INVALID")), "{failing:?}");
    assert_eq!(env.schedules(&ScheduleQuery { failing: true, ..Default::default() }).await.expect("list").total, 1);
    trunkline.catalog().update_topic(Some("shop"), EVENT, json!({ "sample": { "kind": "daily" } })).await.expect("update");
    let done = until(&env, id, |view| view.state == ScheduleState::Done).await;
    assert_eq!((done.fired, done.missed, done.error, ready(&env).await), (1, 0, None, 1));
}

#[tokio::test]
async fn a_schedule_is_paused_resumed_and_cancelled() {
    let bed = Bed::new();
    let (trunkline, env) = bed.open().await;
    let far = Timing::at(now_ms() + 3_600_000);
    let id = env.produce(EVENT, &payload()).dispatch(far).await.expect("dispatch").schedule_id.to_string();
    let paused = env.pause_schedule(&id).await.expect("pause");
    assert_eq!((paused.state, paused.next_at), (ScheduleState::Paused, None));
    assert_eq!(env.pause_schedule(&id).await.expect("again").state, ScheduleState::Paused);
    let resumed = env.resume_schedule(&id).await.expect("resume");
    // Who changes a schedule need not be somebody who may read payloads.
    assert_eq!((resumed.state, resumed.message), (ScheduleState::Active, None));
    assert_eq!(env.schedule(&id).await.expect("fetch").and_then(|schedule| schedule.message), Some(payload()));
    assert_eq!(env.cancel_schedule(&id).await.expect("cancel").state, ScheduleState::Cancelled);
    assert_eq!(env.resume_schedule(&id).await.expect_err("cancelled").code(), Code::InputInvalid);
    assert_eq!(env.schedules(&ScheduleQuery::default()).await.expect("list").total, 0);
    let all = ScheduleQuery { all: true, event: Some(EVENT.into()), ..Default::default() };
    assert_eq!(env.schedules(&all).await.expect("list").total, 1);
    let unknown = MessageId::now().to_string();
    for error in
        [env.pause_schedule(&unknown).await, env.cancel_schedule("x").await, trunkline.env("shop", "dev").cancel_schedule(&id).await]
    {
        assert_eq!(error.expect_err("unknown").code(), Code::ScheduleNotFound);
    }
    assert_eq!(env.schedule("x").await.expect("fetch"), None);
}

#[tokio::test]
async fn what_every_firing_would_be_refused_for_is_refused_at_once() {
    let bed = Bed::new();
    let (_trunkline, env) = bed.open().await;
    let soon = || Timing::at(now_ms());
    let code = async |produce: Produce<'_>| produce.dispatch(soon()).await.expect_err("refused").code();
    assert_eq!(code(env.produce("reports:gone", &payload())).await, Code::TopicNotFound);
    assert_eq!(code(env.produce(EVENT, &json!({ "kind": 1 }))).await, Code::PayloadInvalid);
    assert_eq!(code(env.produce(EVENT, &payload()).cache("none")).await, Code::CacheNotFound);
    assert_eq!(code(env.produce(EVENT, &payload()).idempotency_key("k")).await, Code::InputInvalid);
    assert_eq!(code(env.produce(EVENT, &payload()).header("trunkline-id", "x")).await, Code::InputInvalid);
    assert_eq!(env.schedules(&ScheduleQuery { all: true, ..Default::default() }).await.expect("list").total, 0);
    let settle = ScheduleSettle::Fired { id: MessageId::now(), next_at: None };
    assert!(!env.inner().store.schedule_settle(MessageId::now(), "nobody", settle).await.expect("settle"));
}
