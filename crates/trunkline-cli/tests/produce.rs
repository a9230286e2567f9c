//! `produce`: one message, files, and everything that is refused.

mod common;

use common::{Dir, EVENT, Running, orders};
use std::io::Write;
use std::process::Stdio;

#[test]
fn the_quick_example_arrives() {
    let dir = Dir::with_example();
    let receipt = dir.json(&["produce", EVENT, r#"{"orderId":"123","amount":99.99}"#, "--key", "123", "--header", "tenant=t1"]);
    assert_eq!(receipt["success"], true);
    let got = dir.consume(&["--max", "1"]);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0]["process_id"], receipt["process_id"]);
    assert_eq!(got[0]["message"], serde_json::json!({ "orderId": "123", "amount": 99.99 }));
    assert_eq!((got[0]["key"].as_str(), got[0]["headers"]["tenant"].as_str()), (Some("123"), Some("t1")));
    assert_eq!((got[0]["event"].as_str(), got[0]["group"].as_str()), (Some(EVENT), Some("my-product")));
    assert_eq!((got[0]["attempt"].as_u64(), got[0].get("encoding")), (Some(1), None));
    assert!(got[0]["producedAt"].is_u64());
    assert!(dir.consume(&[]).is_empty(), "it was acked");
}

#[test]
fn people_get_the_id_and_the_line() {
    let dir = Dir::with_example();
    let id = dir.ok(&["produce", EVENT, r#"{"orderId":"1"}"#]);
    let line = dir.ok(&["consume", EVENT, "--idle-exit", "1s", "--max", "1"]);
    assert!(line.contains(id.trim()) && line.contains(r#"{"orderId":"1"}"#), "{line}");
}

#[test]
fn the_payload_comes_from_stdin_too() {
    let dir = Dir::with_example();
    assert_eq!(dir.run_with(&["produce", EVENT, "-"], br#"{"a":1}"#).code, 0);
    assert_eq!(dir.run_with(&["produce", EVENT], br#"{"a":2}"#).code, 0);
    assert_eq!(dir.consume(&[]).len(), 2);
}

#[test]
fn what_is_wrong_is_named_with_the_next_step() {
    let dir = Dir::with_example();
    let cases: [(&[&str], i32, &str); 7] = [
        (&["produce", "order-events:order-craeted", "{}"], 3, "TOPIC_NOT_FOUND"),
        (&["produce", "nothing:order-created", "{}"], 3, "BROKER_NOT_FOUND"),
        (&["produce", "order-created", "{}"], 2, "EVENT_INVALID"),
        (&["produce", EVENT, "{nope"], 2, "PAYLOAD_INVALID"),
        (&["produce", EVENT, "{}", "--product", "other"], 3, "PRODUCT_NOT_FOUND"),
        (&["produce", EVENT, "{}", "--env", "dev"], 3, "BROKER_ENV_NOT_FOUND"),
        (&["consume", "order-events:order-craeted"], 3, "TOPIC_NOT_FOUND"),
    ];
    for (args, code, name) in cases {
        let (got, error) = dir.failure(args);
        assert_eq!((got, error["code"].as_str()), (code, Some(name)), "{args:?}: {error}");
        assert!(error["details"]["next"].as_str().is_some_and(|next| !next.is_empty()), "{args:?} has no next step: {error}");
        assert!(error["message"].is_string() && error["retryable"] == false);
        let text = dir.run(args).err;
        assert!(text.starts_with(&format!("error[{name}]: ")) && text.contains("\n  next: "), "{text}");
    }
    let (_, error) = dir.failure(&["produce", "order-events:order-craeted", "{}"]);
    assert!(error["details"]["next"].as_str().expect("next").contains("trunkline topics"), "{error}");
    assert!(dir.consume(&[]).is_empty(), "nothing was sent");
}

#[test]
fn raw_bytes_are_sent_as_they_are() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "{nope", "--raw"]);
    dir.write("bytes", [0xff, 0x00, 0x01]);
    assert_eq!(dir.run_with(&["produce", EVENT, "-", "--raw"], &[0xff, 0x00, 0x01]).code, 0);
    let got = dir.consume(&[]);
    let of = |encoding: &str| got.iter().find(|message| message["encoding"] == encoding).map(|message| message["message"].clone());
    assert_eq!((of("text"), of("base64")), (Some("{nope".into()), Some("/wAB".into())));
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let dir = Dir::with_example();
    let big = format!("\"{}\"", "x".repeat((1 << 20) + 1));
    let ended = dir.run_with(&["produce", EVENT, "-", "--output", "json"], big.as_bytes());
    let error: serde_json::Value = serde_json::from_str(&ended.err).expect("an error");
    assert_eq!((ended.code, error["code"].as_str()), (2, Some("PAYLOAD_TOO_LARGE")));
    assert!(dir.consume(&[]).is_empty());
}

#[test]
fn a_file_is_produced_line_by_line() {
    let dir = Dir::with_example();
    let file = orders(&dir, 2_500);
    let summary = dir.json(&["produce", EVENT, "--file", &file, "--key-from", "orderId"]);
    assert_eq!((summary["produced"].as_u64(), summary["failed"].as_u64()), (Some(2_500), Some(0)));
    let got = dir.consume(&["--max", "2500"]);
    let mut keys: Vec<&str> = got.iter().filter_map(|message| message["key"].as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((got.len(), keys.len()), (2_500, 2_500));
    assert!(got.iter().all(|message| message["key"] == message["message"]["orderId"]));
}

#[test]
fn a_bad_line_is_named_and_the_rest_accounted_for() {
    let dir = Dir::with_example();
    let file = dir.write("mixed.ndjson", "{\"orderId\":1}\n\n{\"orderId\":2}\n{oops\n{\"orderId\":5}\n");
    let (code, error) = dir.failure(&["produce", EVENT, "--file", &file]);
    assert_eq!((code, error["code"].as_str()), (2, Some("PAYLOAD_INVALID")));
    let details = &error["details"];
    assert_eq!(
        (details["line"].as_u64(), details["confirmed"].as_u64(), details["nextLine"].as_u64()),
        (Some(4), Some(2), Some(4)),
        "{error}"
    );
    assert!(error["message"].as_str().expect("a message").contains("line 4"), "{error}");
    dir.write("mixed.ndjson", "{\"orderId\":1}\n\n{\"orderId\":2}\n{}\n{\"orderId\":5}\n");
    assert_eq!(dir.json(&["produce", EVENT, "--file", &file, "--from-line", "4"])["produced"], 2);
    assert_eq!(dir.consume(&[]).len(), 4, "the mended file arrived once");
    let (code, error) = dir.failure(&["produce", EVENT, "--file", &file, "--key-from", "/orderId"]);
    assert_eq!((code, error["details"]["line"].as_u64()), (2, Some(4)), "a line without the key: {error}");
}

#[test]
fn an_idempotency_key_publishes_once() {
    let dir = Dir::with_example();
    let once = |payload| dir.json(&["produce", EVENT, payload, "--idempotency-key", "k1"]);
    let (first, second) = (once(r#"{"a":1,"b":2}"#), once(r#"{"b":2,"a":1}"#));
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&false.into(), &true.into()));
    assert_eq!(first["process_id"], second["process_id"]);
    let (code, error) = dir.failure(&["produce", EVENT, r#"{"a":2}"#, "--idempotency-key", "k1"]);
    assert_eq!((code, error["code"].as_str()), (4, Some("IDEMPOTENCY_CONFLICT")));
    assert_eq!(dir.consume(&[]).len(), 1);
    let file = orders(&dir, 20);
    let again = || dir.json(&["produce", EVENT, "--file", &file, "--idempotency-key-from", "/orderId"]);
    assert_eq!((again()["produced"].as_u64(), again()["duplicates"].as_u64()), (Some(20), Some(20)));
    assert_eq!(dir.consume(&[]).len(), 20);
}

#[test]
fn a_delay_is_kept() {
    let dir = Dir::with_example();
    let since = std::time::Instant::now();
    dir.ok(&["produce", EVENT, "{}", "--delay", "2s"]);
    let mut consumer = Running::start(dir.command(&["consume", EVENT, "--max", "1", "--output", "json"]));
    assert!(consumer.line().is_some());
    assert!(since.elapsed() >= std::time::Duration::from_secs(2));
    assert_eq!(consumer.ended().code, 0);
}

#[test]
fn an_interrupted_file_says_how_far_it_came() {
    let dir = Dir::with_example();
    let mut command = dir.command(&["produce", EVENT, "--file", "-", "--output", "json"]);
    command.stdin(Stdio::piped());
    let mut producer = Running::start(command);
    let mut stdin = producer.stdin.take().expect("stdin");
    stdin.write_all(b"{}\n{}\n{}\n").expect("three lines");
    stdin.flush().expect("flushed");
    // Three are there when a consumer has seen them; the producer still waits for its input.
    let mut consumer = Running::start(dir.command(&["consume", EVENT, "--max", "3", "--output", "json"]));
    (0..3).for_each(|_| assert!(consumer.line().is_some()));
    producer.signal(rustix::process::Signal::INT);
    let ended = producer.ended();
    assert_eq!(ended.code, 130, "{}", ended.err);
    let error: serde_json::Value = serde_json::from_str(ended.err.lines().last().unwrap_or_default()).expect("an error");
    assert_eq!((error["details"]["confirmed"].as_u64(), error["details"]["nextLine"].as_u64()), (Some(3), Some(4)));
    drop(stdin);
}
