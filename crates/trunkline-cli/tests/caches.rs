//! Caches on the command line: a message that equals an earlier one is sent once.

mod common;

use common::{Dir, EVENT};

#[test]
fn an_equal_message_is_sent_once_until_the_cache_is_cleared() {
    let dir = Dir::with_example();
    let made = dir.json(&["caches", "create", "recent", "--expiry", "1h"]);
    assert_eq!((&made["tag"], &made["expiry"]), (&"recent".into(), &3_600_000.into()));
    let ask = || dir.json(&["produce", EVENT, "{\"orderId\":\"1\",\"amount\":1.5}", "--cache", "recent"]);
    let (first, again) = (ask(), ask());
    assert_eq!((&first["cached"], &again["cached"]), (&false.into(), &true.into()));
    assert_eq!(first["process_id"], again["process_id"]);
    let values = dir.json(&["caches", "values", "recent"]);
    assert_eq!((&values["total"], &values["values"][0]["process_id"]), (&1.into(), &first["process_id"]));
    assert_eq!(dir.json(&["caches", "clear", "recent"])["cleared"], 1);
    assert_eq!(ask()["cached"], false);
    assert_eq!(dir.consume(&["--from", "earliest"]).len(), 2);
}

#[test]
fn what_is_wrong_is_said_with_the_next_step() {
    let dir = Dir::with_example();
    let (code, error) = dir.failure(&["produce", EVENT, "{}", "--cache", "recent"]);
    assert_eq!((&error["code"], code != 0), (&"CACHE_NOT_FOUND".into(), true));
    assert!(error["details"]["next"].as_str().is_some_and(|next| next.contains("trunkline caches create recent")), "{error}");
    assert_eq!(dir.failure(&["caches", "create", "recent"]).1["details"]["field"], "expiry");
    dir.ok(&["caches", "create", "recent", "--expiry", "5m"]);
    assert_eq!(dir.failure(&["caches", "create", "recent", "--expiry", "5m"]).1["code"], "ALREADY_EXISTS");
    dir.ok(&["caches", "update", "recent", "--expiry", "10m"]);
    assert_eq!(dir.json(&["caches", "show", "recent"])["expiry"], 600_000);
    dir.ok(&["caches", "delete", "recent"]);
    assert_eq!(dir.failure(&["caches", "show", "recent"]).1["code"], "CACHE_NOT_FOUND");
}
