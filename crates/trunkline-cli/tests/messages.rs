//! `messages`, `replay` and `stats`: what happened to every message, found again.

mod common;

use common::{Dir, EVENT, Running};
use rustix::process::Signal;
use serde_json::Value;

/// Three messages: the first handled by `billing` after a failure, the second dead there, the third not handled yet.
fn three() -> (Dir, [String; 3]) {
    let dir = Dir::with_example();
    dir.ok(&["groups", "create", EVENT, "billing"]);
    let produce = |n: u32| {
        let payload = format!("{{\"orderId\":\"{n}\",\"note\":\"größer {n}\"}}");
        let header = format!("region=eu-{n}");
        let receipt = dir.json(&["produce", EVENT, &payload, "--key", &format!("k{n}"), "--header", &header]);
        receipt["process_id"].as_str().expect("an id").to_owned()
    };
    let ids = [produce(1), produce(2)];
    let script = r#"case $TRUNKLINE_KEY in
        k1) [ "$TRUNKLINE_ATTEMPT" -ge 2 ] || { echo "locked" >&2; exit 1; };;
        k2) echo "no such customer" >&2; exit 65;;
    esac"#;
    dir.ok(&["consume", EVENT, "--group", "billing", "--exec", script, "--retry", "20ms", "--max", "3"]);
    let [one, two] = ids;
    let three = produce(3);
    (dir, [one, two, three])
}

fn ids(page: &Value) -> Vec<&str> {
    page["messages"].as_array().expect("messages").iter().map(|message| message["process_id"].as_str().expect("an id")).collect()
}

#[test]
fn every_filter_finds_what_it_names() {
    let (dir, [one, two, three]) = three();
    let producer = dir.json(&["messages", "show", &one])["producer"].as_str().expect("a producer").to_owned();
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[&three, &two, &one]),
        (&["--order", "asc"], &[&one, &two, &three]),
        (&["--event", EVENT], &[&three, &two, &one]),
        (&["--broker", "order-events"], &[&three, &two, &one]),
        (&["--broker", "order-events", "--topic", "other"], &[]),
        (&["--key", "k2"], &[&two]),
        (&["--status", "dead"], &[&two]),
        (&["--status", "delivered", "--group", "billing"], &[&one]),
        (&["--category", "dead_letter"], &[&two]),
        (&["--group", "billing"], &[&two, &one]),
        (&["--header", "region=eu-3"], &[&three]),
        (&["--text", "größer 1"], &[&one]),
        (&["--producer", &producer], &[&one]),
        (&["--session", "none"], &[]),
        (&["--identifier", "none"], &[]),
        (&["--from", "1h"], &[&three, &two, &one]),
        (&["--to", "1h"], &[]),
        (&["--limit", "1", "--page", "2"], &[&two]),
    ];
    for (filter, expected) in cases {
        let page = dir.json(&[&["messages", "query"], *filter].concat());
        assert_eq!(ids(&page), *expected, "{filter:?}");
    }
}

#[test]
fn pages_follow_each_other_by_cursor() {
    let (dir, [one, two, three]) = three();
    let mut cursor: Option<String> = None;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let mut args = vec!["messages", "query", "--limit", "1"];
        args.extend(cursor.as_deref().map(|cursor| ["--cursor", cursor]).into_iter().flatten());
        let page = dir.json(&args);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        cursor = page["cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, [three, two, one]);
    let (code, error) = dir.failure(&["messages", "query", "--cursor", "nonsense"]);
    assert_eq!((code, &error["details"]["field"]), (2, &"cursor".into()), "{error}");
}

#[test]
fn a_page_for_people_says_how_many_there_are() {
    let (dir, [_, two, _]) = three();
    let page = dir.run(&["messages", "query", "--status", "dead"]);
    assert!(page.out.contains(&two) && page.out.contains("billing dead"), "{}", page.out);
    assert!(page.err.contains("1 in all; scanned"), "{}", page.err);
}

#[test]
fn a_life_is_told_from_the_produce_to_the_end() {
    let (dir, [one, two, _]) = three();
    let told = dir.ok(&["messages", "show", &one]);
    let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("{text:?} is not in {told}"));
    assert!(at("produced") < at("failed, tried again shortly: locked") && at("failed, tried again") < at("handled"), "{told}");
    assert!(told.contains("region: eu-1") && told.contains("\"orderId\": \"1\"") && told.contains("größer"), "{told}");
    let record = dir.json(&["messages", "show", &two]);
    assert_eq!((&record["status"], &record["groups"][0]["group"]), (&"dead".into(), &"billing".into()), "{record}");
    assert_eq!(record["payload"]["orderId"], "2");
    let steps: Vec<&Value> = record["life"].as_array().expect("a life").iter().map(|moment| &moment["step"]).collect();
    assert_eq!(steps, [&Value::Null, &"dead".into()], "{record}");
}

#[test]
fn what_is_not_there_is_not_found() {
    let dir = Dir::with_example();
    for command in [["messages", "show"], ["dead", "show"]] {
        let (code, error) = dir.failure(&[&command[..], &["0190a0b0-0000-7000-8000-000000000000"]].concat());
        assert_eq!((code, &error["code"]), (3, &"MESSAGE_NOT_FOUND".into()), "{command:?} {error}");
    }
    assert_eq!(dir.run(&["messages", "show", "event-123"]).code, 2);
}

#[test]
fn the_tail_prints_what_comes_once_and_ends_with_ctrl_c() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "{\"n\":0}"]);
    let mut tail = Running::start(dir.command(&["messages", "tail", "--event", EVENT]));
    tail.until_said("following");
    let sent: Vec<String> = (1..4)
        .map(|n| dir.json(&["produce", EVENT, &format!("{{\"n\":{n}}}")])["process_id"].as_str().expect("an id").to_owned())
        .collect();
    for id in &sent {
        let line = tail.line().expect("a line");
        assert!(line.contains(id), "{line} is not about {id}");
    }
    tail.signal(Signal::INT);
    let ended = tail.ended();
    assert_eq!((ended.code, ended.out.as_str()), (0, ""), "each once, and nothing from before: {ended:?}");
}

#[test]
fn a_replay_is_a_new_message_and_is_refused_twice() {
    let (dir, [one, two, three]) = three();
    let replayed = dir.json(&["replay", &two, "--payload", "{\"orderId\":\"2b\"}"]);
    assert_eq!((&replayed["success"], replayed["replayOf"].as_str()), (&true.into(), Some(two.as_str())), "{replayed}");
    let new = replayed["process_id"].as_str().expect("an id");
    let record = dir.json(&["messages", "show", new]);
    assert_eq!((record["replayOf"].as_str(), &record["payload"]["orderId"]), (Some(two.as_str()), &"2b".into()), "{record}");
    assert_eq!(record["headers"]["region"], "eu-2", "its headers come along");
    assert!(dir.ok(&["messages", "show", &two]).contains(&format!("replayed as {new}")));
    let (code, error) = dir.failure(&["replay", &two]);
    assert_eq!((code, &error["code"]), (4, &"ALREADY_REPLAYED".into()), "{error}");
    dir.ok(&["replay", &two, "--force"]);
    assert_eq!(dir.failure(&["replay", &three]).0, 2, "pending needs --force");
    assert_eq!(dir.failure(&["replay", &one, "--payload", "{nonsense"]).1["code"], "PAYLOAD_INVALID");
    let page = dir.json(&["messages", "query", "--category", "replay"]);
    assert!(ids(&page).contains(&two.as_str()), "{page}");
}

#[test]
fn a_replay_to_one_group_reaches_only_that_group() {
    let (dir, [one, ..]) = three();
    let new = dir.json(&["replay", &one, "--group", "billing"])["process_id"].as_str().expect("an id").to_owned();
    let got = dir.consume(&["--group", "billing"]);
    let ids: Vec<&str> = got.iter().filter_map(|message| message["process_id"].as_str()).collect();
    assert!(ids.contains(&new.as_str()), "{got:?}");
    let others = dir.consume(&[]);
    assert!(others.iter().all(|message| message["process_id"] != new.as_str()), "{others:?}");
}

#[test]
fn stats_count_what_happened_and_what_waits() {
    let (dir, _) = three();
    let stats = dir.json(&["stats"]);
    let of = |field: &str| stats[field].as_u64();
    assert_eq!((of("produced"), of("delivered"), of("retried"), of("dead")), (Some(3), Some(1), Some(1), Some(1)), "{stats}");
    // One waits for billing, all three for the default group.
    assert_eq!((of("depth"), of("publishFailed"), of("waiting")), (Some(4), Some(0), Some(0)), "{stats}");
    assert!(of("oldestAgeMs").is_some() && stats["waitMs"]["p50"].as_f64().is_some(), "{stats}");
    assert_eq!(dir.json(&["stats", "--event", "order-events:other"])["produced"], 0);
    let told = dir.ok(&["stats", "--by", "group", "--event", EVENT]);
    assert!(told.lines().any(|line| line.contains("billing")) && told.contains("my-product"), "{told}");
    assert_eq!(dir.failure(&["stats", "--from", "1m", "--to", "2m"]).0, 2);
}

#[test]
fn watched_stats_come_again_until_ctrl_c() {
    let dir = Dir::with_example();
    let mut watch = Running::start(dir.command(&["stats", "--watch=100ms", "--output", "json"]));
    for _ in 0..3 {
        let stats: Value = serde_json::from_str(&watch.line().expect("a line")).expect("JSON");
        assert_eq!(stats["produced"], 0);
    }
    watch.signal(Signal::INT);
    assert_eq!(watch.ended().code, 0);
}
