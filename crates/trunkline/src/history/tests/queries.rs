use super::*;

fn query(change: impl FnOnce(&mut Query)) -> Query {
    let mut query = Query { product: Some("shop".into()), env: Some("prd".into()), ..Query::default() };
    change(&mut query);
    query
}

async fn ids(history: &History, query: &Query) -> Vec<MessageId> {
    history.query(query).await.expect("answered").messages.iter().map(|record| record.process_id).collect()
}

#[tokio::test]
async fn a_record_reads_as_specified() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let mut message = produced(id(T0, 1), r#"{"order": 1}"#);
    message.headers.push("tenant", Bytes::from_static(b"t1"));
    message.session = Some(Arc::new(SessionMark { tag: "user".into(), id: "s1".into(), identifier: "ann".into() }));
    message.idempotency_key = Some("once".into());
    recorder.record(produces(&filed, vec![message]));
    recorder.record(attempts(
        &filed,
        "billing",
        vec![attempt(id(T0, 1), Step::Waiting, 10, 1), attempt(id(T0, 1), Step::Delivered, 900, 1)],
    ));
    recorder.record(Batch::Replayed { filed: filed.clone(), id: id(T0, 1), by: id(T0 + 2_000, 2), at: T0 + 2_000 });
    recorder.flush().await.expect("written");
    let record = history.get(id(T0, 1)).await.expect("readable").expect("known");
    let (text, by) = (id(T0, 1).to_string(), id(T0 + 2_000, 2).to_string());
    assert_eq!(
        serde_json::to_value(&record).expect("json"),
        serde_json::json!({
            "process_id": text, "eventId": text, "product": "shop", "env": "prd", "brokerTag": "orders", "topicTag": "created",
            "event": "orders:created", "provider": "EMBEDDED", "status": "delivered", "category": "replay", "key": "k1",
            "headers": {"tenant": "t1"}, "payload": {"order": 1}, "size": 12,
            "session": {"tag": "user", "id": "s1", "identifier": "ann"}, "producer": "p1",
            "producedAt": Time(T0).to_string(), "idempotencyKey": "once", "replayedBy": by,
            "groups": [{"group": "billing", "consumer": "c1", "status": "delivered", "attempts": 2,
                "startedAt": Time(T0 + 900).to_string(), "settledAt": Time(T0 + 905).to_string(),
                "waitMs": 10.0, "runMs": 5.0, "error": "boom"}],
        })
    );
    assert_eq!(Time(T0).to_string(), "2027-01-15T12:00:00.000Z");
    let steps: Vec<_> = record.life.iter().map(|moment| (moment.at.0 - T0, moment.step)).collect();
    assert_eq!(steps, [(0, None), (15, Some(Step::Waiting)), (905, Some(Step::Delivered)), (2_000, None)]);
    assert_eq!(history.get(id(T0, 77)).await.expect("readable"), None);
}

#[tokio::test]
async fn payloads_are_json_or_base64_or_not_kept() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let all = filed("all");
    let mut bytes = produced(id(T0, 1), "");
    bytes.payload = Bytes::from_static(b"\xff\x00");
    recorder.record(produces(&all, vec![bytes, produced(id(T0, 2), "")]));
    let bare = filed_as("bare", Class { capture: Capture::Metadata, ..Class::default() });
    recorder.record(produces(&bare, vec![produced(id(T0, 3), "12345")]));
    let off = filed_as("off", Class { capture: Capture::Off, ..Class::default() });
    recorder.record(produces(&off, vec![produced(id(T0, 4), "12345")]));
    recorder.flush().await.expect("written");
    let payload = async |n| {
        let record = history.get(id(T0, n)).await.expect("readable")?;
        Some((serde_json::to_value(&record).expect("json").get("payload").cloned(), record.size))
    };
    assert_eq!(payload(1).await, Some((Some(serde_json::json!({"base64": "/wA="})), 2)));
    assert_eq!(payload(2).await, Some((Some(serde_json::json!({"base64": ""})), 0)));
    assert_eq!(payload(3).await, Some((None, 5)));
    assert_eq!(payload(4).await, None);
    let stats = history.stats(&StatsQuery { topic: Some("off".into()), ..StatsQuery::default() }).await.expect("answered");
    assert_eq!((stats.counters.produced, stats.counters.bytes), (1, 5));
}

/// What nothing is kept of is counted in the statistics, but it is nothing that a query could find.
#[tokio::test]
async fn the_total_is_of_what_can_be_found() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let off = filed_as("off", Class { capture: Capture::Off, ..Class::default() });
    recorder.record(produces(&filed("created"), (0..50).map(|n| produced(id(T0, n), "1")).collect()));
    recorder.record(produces(&off, (50..80).map(|n| produced(id(T0, n), "1")).collect()));
    recorder.flush().await.expect("written");
    let page = history.query(&query(|q| q.limit = Some(10))).await.expect("a page");
    assert_eq!((page.total, page.total_is_exact, page.of, page.has_more), (50, true, 50, true));
    let stats = history.stats(&StatsQuery::default()).await.expect("answered");
    assert_eq!(stats.counters.produced, 80);
    let page = history.query(&query(|q| q.topic = Some("off".into()))).await.expect("a page");
    assert_eq!((page.total, page.total_is_exact, page.of), (0, true, 0));
}

#[tokio::test]
async fn the_status_is_the_worst_of_its_groups() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let mut failed = produced(id(T0, 6), "6");
    failed.failure = Some(Box::new(Failure { code: "PUBLISH_FAILED", message: "no".into() }));
    let mut items: Vec<_> = (1..6).map(|n| produced(id(T0 + n, n), "1")).collect();
    items.push(failed);
    recorder.record(produces(&filed, items));
    let at = |n| id(T0 + n, n);
    let a = |n, step, tries| vec![attempt(at(n), step, 10, tries)];
    recorder.record(attempts(&filed, "a", a(1, Step::Delivered, 0)));
    recorder.record(attempts(&filed, "b", a(1, Step::Dead, 9)));
    recorder.record(attempts(&filed, "a", a(2, Step::Dropped, 0)));
    recorder.record(attempts(&filed, "a", a(3, Step::Held, 1)));
    recorder.record(attempts(&filed, "b", a(3, Step::Delivered, 0)));
    recorder.record(attempts(&filed, "a", a(4, Step::Dead, 9)));
    recorder.record(attempts(&filed, "a", vec![attempt(at(4), Step::Reprocessed, 99, 0)]));
    recorder.flush().await.expect("written");
    for (status, want) in [
        (Status::Dead, vec![at(1)]),
        (Status::Failed, vec![id(T0, 6)]),
        (Status::Retrying, vec![at(3)]),
        (Status::Pending, vec![at(5), at(4)]),
        (Status::Delivered, vec![at(2)]),
    ] {
        assert_eq!(ids(&history, &query(|q| q.status = Some(status))).await, want, "{status:?}");
    }
    let at_group = |group: &str, status| query(|q| (q.group, q.status) = (Some(group.into()), Some(status)));
    assert_eq!(ids(&history, &at_group("a", Status::Delivered)).await, [at(2), at(1)]);
    assert_eq!(ids(&history, &at_group("b", Status::Dead)).await, [at(1)]);
    assert_eq!(ids(&history, &query(|q| q.category = Some(Category::DeadLetter))).await, [at(1)]);
    assert_eq!(ids(&history, &query(|q| q.group = Some("b".into()))).await, [at(3), at(1)]);
    let dropped = history.get(at(2)).await.expect("readable").expect("known");
    assert!(dropped.groups[0].dropped && dropped.status == Status::Delivered);
}

#[tokio::test]
async fn terms_lead_to_their_messages() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    for topic in ["a", "b"] {
        let filed = filed(topic);
        for n in 0..1_500u64 {
            let mut message = produced(id(T0 + n, n), &format!("{{\"n\":{n}}}"));
            message.key = Some(Bytes::from(format!("k{}", n % 500)));
            message.headers.push("tenant", Bytes::from(format!("t{}", n % 750)));
            let session = SessionMark { tag: "user".into(), id: format!("s{n}"), identifier: format!("u{}", n % 300) };
            message.session = Some(Arc::new(session));
            message.id = MessageId::derived(T0 + n, &[topic.as_bytes(), &n.to_le_bytes()]);
            recorder.record(produces(&filed, vec![message]));
        }
    }
    recorder.flush().await.expect("written");
    let count = async |change: fn(&mut Query)| {
        let page = history.query(&query(|q| (q.limit, _) = (Some(1_000), change(q)))).await.expect("answered");
        assert!(page.total_is_exact && page.total == page.messages.len() as u64);
        page.total
    };
    assert_eq!(count(|q| q.key = Some("k7".into())).await, 6);
    assert_eq!(count(|q| (q.key, q.broker, q.topic) = (Some("k7".into()), Some("orders".into()), Some("b".into()))).await, 3);
    assert_eq!(count(|q| q.header = Some("tenant=t9".into())).await, 4);
    assert_eq!(count(|q| q.session = Some("s9".into())).await, 2);
    assert_eq!(count(|q| q.identifier = Some("u9".into())).await, 10);
    assert_eq!(count(|q| (q.identifier, q.key) = (Some("u9".into()), Some("k9".into()))).await, 2);
    assert_eq!(count(|q| q.producer = Some("p2".into())).await, 0);
    assert_eq!(count(|q| (q.from, q.to) = (Some(T0 + 100), Some(T0 + 200))).await, 200);
    assert_eq!(count(|q| q.env = Some("dev".into())).await, 0);
    assert_eq!(count(|q| q.text = Some("\"n\":77}".into())).await, 2);
    for bad in [
        query(|q| q.limit = Some(0)),
        query(|q| q.page = Some(0)),
        query(|q| q.header = Some("x".into())),
        query(|q| q.cursor = Some("x".into())),
    ] {
        assert_eq!(history.query(&bad).await.expect_err("refused").code(), crate::Code::InputInvalid);
    }
}

#[tokio::test]
async fn cursors_and_pages_are_complete_without_repeats() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    // Out of order, several of one moment, and with late outcomes in blocks that span all of it.
    let all: Vec<MessageId> = (0..600u64).map(|n| id(T0 + (n * 7_919) % 60_000 / 100 * 100, n)).collect();
    for part in all.chunks(37) {
        recorder.record(produces(&filed, part.iter().map(|id| produced(*id, "1")).collect()));
        recorder.record(attempts(&filed, "g", part.iter().map(|id| attempt(*id, Step::Delivered, 5, 0)).collect()));
        recorder.flush().await.expect("written");
    }
    let mut sorted = all.clone();
    sorted.sort();
    for ascending in [false, true] {
        if !ascending {
            sorted.reverse()
        }
        let mut found = Vec::new();
        let mut next = query(|q| (q.limit, q.ascending, q.group) = (Some(17), ascending, Some("g".into())));
        loop {
            let page = history.query(&next).await.expect("answered");
            assert_eq!((page.has_more, page.messages.len()), (page.cursor.is_some(), if page.has_more { 17 } else { 600 % 17 }));
            found.extend(page.messages.iter().map(|record| record.process_id));
            next.cursor = page.cursor;
            if !page.has_more {
                break;
            }
        }
        assert_eq!(found, sorted);
        let third = history.query(&query(|q| (q.limit, q.ascending, q.page) = (Some(10), ascending, Some(3)))).await.expect("answered");
        assert_eq!(third.messages.iter().map(|r| r.process_id).collect::<Vec<_>>(), sorted[20..30]);
        assert_eq!((third.total, third.total_is_exact), (600, true));
        if !ascending { sorted.reverse() } else { break }
    }
    let other = history.query(&query(|q| q.limit = Some(5))).await.expect("answered").cursor;
    assert!(other.is_some());
    let stolen = query(|q| (q.cursor, q.topic) = (other, Some("x".into())));
    assert_eq!(history.query(&stolen).await.expect_err("not its own").code(), crate::Code::InputInvalid);
}

#[tokio::test]
async fn a_text_search_without_time_says_how_far_it_came() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let filed = filed("created");
    let messages = (0..1_000u64).map(|n| produced(id(T0 + n, n), if n % 400 == 100 { "{\"a\":\"needle\"}" } else { "{}" }));
    recorder.record(produces(&filed, messages.collect()));
    recorder.flush().await.expect("written");
    let mut next = query(|q| (q.text, q.budget) = (Some("needle".into()), Some(Duration::ZERO)));
    let (mut found, mut scanned) = (Vec::new(), Vec::new());
    loop {
        let page = history.query(&next).await.expect("answered");
        assert_eq!(page.of, 1_000);
        found.extend(page.messages.iter().map(|record| record.produced_at.0 - T0));
        scanned.push(page.scanned);
        assert_eq!(page.total_is_exact, scanned.len() == 1 && !page.has_more);
        next.cursor = page.cursor;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(found, [900, 500, 100]);
    assert!(scanned.is_sorted() && scanned[0] == 64 && scanned.len() == 16 && scanned.last() == Some(&1_000), "{scanned:?}");
}

#[tokio::test]
async fn statistics_come_from_the_roll_ups() {
    let bed = Bed::new();
    bed.set(T0 + 150_000);
    let (history, recorder) = bed.open();
    for topic in ["a", "b"] {
        let filed = filed(topic);
        for n in 0..100 {
            let id = id(T0 + n * 1_500, n);
            recorder.record(produces(&filed, vec![produced(id, "12345")]));
            recorder.record(attempts(
                &filed,
                "g",
                vec![attempt(id, Step::Waiting, 10, 1), attempt(id, if n == 0 { Step::Dead } else { Step::Delivered }, 20, 2)],
            ));
        }
    }
    recorder.flush().await.expect("written");
    let stats = history.stats(&StatsQuery { from: Some(T0), to: Some(T0 + 150_000), ..StatsQuery::default() }).await.expect("answered");
    let counters = stats.counters;
    assert_eq!((counters.produced, counters.bytes, counters.delivered, counters.dead), (200, 1_000, 198, 2));
    assert_eq!((counters.failed_attempts, counters.retried), (202, 200));
    assert_eq!(stats.topics.iter().map(|t| (&*t.event, t.counters.produced)).collect::<Vec<_>>(), [("orders:a", 100), ("orders:b", 100)]);
    assert!((stats.wait_ms.p50.expect("counted") - 10.0).abs() < 1.5 && (stats.run_ms.p99.expect("counted") - 5.0).abs() < 0.8);
    assert!((stats.rates.produced - 200.0 / 150.0).abs() < 1e-9);
    let series =
        history.series(&StatsQuery { from: Some(T0), to: Some(T0 + 150_000), ..StatsQuery::default() }, 1).await.expect("answered");
    assert_eq!(series.iter().map(|b| (b.counters.produced, b.filling)).collect::<Vec<_>>(), [(80, false), (80, false), (40, true)]);
    let json = serde_json::to_value(&stats).expect("json");
    assert!(json["waitMs"]["p95"].is_number() && json["publishFailed"] == 0 && json["topics"][0]["groups"][0]["group"] == "g");
    let none = history.stats(&StatsQuery { from: Some(5), to: Some(4), ..StatsQuery::default() }).await;
    assert_eq!(none.expect_err("refused").code(), crate::Code::InputInvalid);
}

#[tokio::test]
async fn what_others_produced_is_known_by_what_was_done_with_it() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    recorder.record(attempts(&filed("created"), "g", vec![attempt(id(T0, 1), Step::Dead, 10, 1)]));
    recorder.flush().await.expect("written");
    let page = history.query(&query(|q| q.key = Some("k1".into()))).await.expect("answered");
    let record = &page.messages[0];
    assert_eq!((record.process_id, record.status, &record.producer, record.produced_at), (id(T0, 1), Status::Dead, &None, Time(T0)));
    assert_eq!((page.total, page.total_is_exact, page.of), (1, true, 0));
    assert!(record.payload.is_none() && record.position == Some(Position { shard: 3, offset: 77 }));
}

#[tokio::test]
async fn a_produce_that_was_given_up_and_then_confirmed_is_confirmed() {
    let bed = Bed::new();
    let (history, recorder) = bed.open();
    let mut failed = produced(id(T0, 1), "1");
    failed.failure = Some(Box::new(Failure { code: "PUBLISH_FAILED", message: "no answer".into() }));
    recorder.record(produces(&filed("created"), vec![failed]));
    recorder.flush().await.expect("written");
    let record = history.get(id(T0, 1)).await.expect("readable").expect("known");
    assert_eq!((record.status, record.failure), (Status::Failed, Some(("PUBLISH_FAILED".into(), "no answer".into()))));
    recorder.record(produces(&filed("created"), vec![produced(id(T0, 1), "1")]));
    recorder.flush().await.expect("written");
    let record = history.get(id(T0, 1)).await.expect("readable").expect("known");
    assert_eq!((record.status, record.failure), (Status::Pending, None));
    assert_eq!(history.query(&query(|q| q.status = Some(Status::Failed))).await.expect("answered").total, 0);
}
