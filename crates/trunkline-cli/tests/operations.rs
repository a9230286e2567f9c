//! `secrets`, `keys`, `audit`, `dashboard`, `events` and live members, as a person or a script uses them.

mod common;

use std::process::Stdio;

use common::{Dir, EVENT, Ended, Running};
use rustix::process::Signal;
use serde_json::Value;

/// Runs with an access key in its environment.
fn with_key(dir: &Dir, key: &str, args: &[&str]) -> Ended {
    let mut command = dir.command(args);
    command.env("TRUNKLINE_ACCESS_KEY", key).stdin(Stdio::null());
    Running::start(command).ended()
}

#[test]
fn secrets_come_from_stdin_file_or_environment() {
    let dir = Dir::with_example();
    let made = dir.run_with(&["secrets", "create", "A"], b"one\n");
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.contains("secret A of my-product in every env") && made.out.contains("$Secret{A}"), "{}", made.out);
    let file = dir.write("value", "two");
    dir.ok(&["secrets", "create", "B", "--from-file", &file, "--all-products", "--envs", "dev,prd"]);
    let mut command = dir.command(&["secrets", "create", "C", "--from-env", "C_VALUE", "--env", "prd"]);
    command.env("C_VALUE", "three");
    assert_eq!(Running::start(command).ended().code, 0);
    let list = dir.json(&["secrets", "list"]);
    let shown: Vec<(&str, Option<&str>, String)> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["key"].as_str().expect("a key"), one["product"].as_str(), one["envs"].to_string()))
        .collect();
    let product = Some("my-product");
    assert_eq!(
        shown,
        [("B", None, r#"["dev","prd"]"#.to_owned()), ("A", product, "[]".into()), ("C", product, r#"["prd"]"#.into())],
        "{list}"
    );
    let (code, error) = dir.failure(&["secrets", "create", "D", "--from-env", "NOT_SET"]);
    assert_eq!((code, error["code"].as_str()), (2, Some("INPUT_INVALID")), "{error}");
    let (code, error) = dir.failure(&["secrets", "delete", "X"]);
    assert_eq!((code, error["code"].as_str()), (3, Some("SECRET_NOT_FOUND")), "{error}");
    let twice = dir.run_with(&["secrets", "create", "A"], b"other");
    assert_eq!(twice.code, 4, "{}", twice.err);
    assert_ne!(dir.run(&["secrets", "create", "E", "value"]).code, 0, "no value on the command line");
    let done = dir.json(&["secrets", "rekey"]);
    assert_eq!((&done["secrets"], &done["restart"]), (&3.into(), &false.into()), "{done}");
    dir.ok(&["secrets", "delete", "C", "--env", "prd"]);
    assert_eq!(dir.json(&["secrets", "list"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn a_config_refers_to_a_secret_and_a_running_consumer_follows() {
    let dir = Dir::with_example();
    let config = dir.write("config.json", r#"{ "endpoint": "http://$Secret{PW}@nowhere" }"#);
    dir.ok(&["brokers", "update", "order-events", "--on", "prd=EMBEDDED", "--config", &format!("prd={config}")]);
    let (code, error) = dir.failure(&["produce", EVENT, "{}"]);
    assert_eq!((code, error["code"].as_str()), (3, Some("SECRET_NOT_FOUND")), "{error}");
    let mut command = dir.command(&["produce", EVENT, r#"{"n":0}"#]);
    command.env("TRUNKLINE_SECRET_PW", "from the environment");
    assert_eq!(Running::start(command).ended().code, 0, "as long as the store has none");
    assert_eq!(dir.run_with(&["secrets", "create", "PW"], b"one").code, 0);
    let mut consumer = Running::start(dir.command(&["consume", EVENT, "--output", "json"]));
    assert!(consumer.line().is_some_and(|line| line.contains(r#""n":0"#)));
    for n in 1..=3 {
        assert_eq!(dir.run_with(&["secrets", "rotate", "PW"], format!("value {n}").as_bytes()).code, 0);
        dir.ok(&["produce", EVENT, &format!(r#"{{"n":{n}}}"#)]);
        assert!(consumer.line().is_some_and(|line| line.contains(&format!(r#""n":{n}"#))), "{n}");
    }
    consumer.signal(Signal::INT);
    assert_eq!(consumer.ended().code, 0);
}

#[test]
fn keys_open_the_workspace_and_the_audit_tells_who_came() {
    let dir = Dir::with_example();
    let (code, error) = dir.failure(&["keys", "create", "--role", "viewer"]);
    assert_eq!((code, error["code"].as_str()), (2, Some("INPUT_INVALID")), "the first is an admin's: {error}");
    let made = dir.run(&["keys", "create", "--role", "admin", "--name", "root"]);
    let admin = made.out.trim().to_owned();
    assert!(admin.starts_with("tl_") && made.err.contains("shown once"), "{}", made.err);
    let (code, error) = dir.failure(&["produce", EVENT, "{}"]);
    assert_eq!((code, error["code"].as_str(), error["details"]["reason"].as_str()), (1, Some("ACCESS_DENIED"), Some("key_missing")));
    assert!(error["details"]["next"].as_str().is_some_and(|next| next.contains("TRUNKLINE_ACCESS_KEY")), "{error}");
    assert_eq!(with_key(&dir, &admin, &["produce", EVENT, "{}"]).code, 0);
    let json = with_key(&dir, &admin, &["keys", "create", "--role", "producer", "--expires", "1h", "--output", "json"]);
    let producer: Value = serde_json::from_str(&json.out).expect("JSON");
    let key = producer["key"].as_str().expect("its text");
    assert_eq!(with_key(&dir, key, &["produce", EVENT, "{}"]).code, 0);
    let refused = with_key(&dir, key, &["messages", "query", "--output", "json"]);
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(refused.err.contains("ACCESS_DENIED") && refused.err.contains("viewer"), "{}", refused.err);
    let id = producer["id"].as_str().expect("an id");
    assert_eq!(with_key(&dir, &admin, &["keys", "revoke", id]).code, 0);
    assert!(with_key(&dir, key, &["produce", EVENT, "{}"]).err.contains("revoked"));
    let last = with_key(&dir, &admin, &["keys", "revoke", admin.split('_').nth(1).expect("an id")]);
    assert!(last.code == 4 && last.err.contains("--force"), "{}", last.err);
    let list = with_key(&dir, &admin, &["keys", "list", "--output", "json"]).out;
    assert!(list.contains("\"revoked\"") && list.contains("\"root\"") && !list.contains(&admin), "{list}");

    let rows = with_key(&dir, &admin, &["audit", "list", "--call", "keys.revoke", "--output", "json"]).out;
    let rows: Value = serde_json::from_str(&rows).expect("JSON");
    let outcomes: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["IN_USE", "ok"], "{rows}");
    let verified = with_key(&dir, &admin, &["audit", "verify", "--output", "json"]);
    assert_eq!(verified.code, 0, "{}", verified.err);
    assert_eq!(with_key(&dir, &admin, &["doctor"]).code, 0);
}

#[test]
fn the_dashboard_shows_what_needs_attention() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, r#"{"n":1}"#]);
    let ended = dir.run(&["consume", EVENT, "--exec", "false", "--retry", "none", "--max", "1", "--idle-exit", "3s"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    dir.ok(&["produce", EVENT, r#"{"n":2}"#]);
    let board = dir.json(&["dashboard", "--bucket", "10m"]);
    assert_eq!((&board["stats"]["produced"], &board["stats"]["dead"]), (&2.into(), &1.into()), "{board}");
    assert_eq!(board["topics"][0]["event"], EVENT);
    assert_eq!((&board["brokers"][0]["tag"], &board["brokers"][0]["reachable"]), (&"order-events".into(), &true.into()));
    assert_eq!(board["failures"][0]["count"], 1, "{board}");
    let matters: Vec<&str> = board["attention"].as_array().expect("a list").iter().filter_map(|one| one["matter"].as_str()).collect();
    assert!(matters.contains(&"dead_letters_growing") && matters.contains(&"no_consumer"), "{matters:?}");
    let series = board["series"].as_array().expect("a series");
    assert_eq!(series.iter().filter_map(|bucket| bucket["produced"].as_u64()).sum::<u64>(), 2);
    assert!(series.last().is_some_and(|bucket| bucket["filling"] == true));
    let page = dir.ok(&["dashboard"]);
    assert!(page.contains("died lately") && page.contains("REACHABLE"), "{page}");

    let dead = dir.json(&["events", "list", "--status", "dead"]);
    assert_eq!((&dead["total"], &dead["hasMore"]), (&1.into(), &false.into()), "{dead}");
    let id = dead["events"][0]["process_id"].as_str().expect("an id");
    assert_eq!(dir.json(&["events", "show", id])["status"], "dead");
    assert_eq!(dir.json(&["events", "list", "--category", "produce", "--broker", "order-events"])["total"], 1);
    assert_eq!(dir.json(&["events", "stats"])["produced"], 2);
    assert_eq!(dir.failure(&["events", "list", "--status", "lost"]).0, 2);
}

#[test]
fn live_members_are_listed_with_their_progress() {
    let dir = Dir::with_example();
    let mut consumer = Running::start(dir.command(&["consume", EVENT]));
    dir.ok(&["produce", EVENT, "{}"]);
    assert!(consumer.line().is_some());
    let deadline = std::time::Instant::now() + common::DEADLINE;
    let found = loop {
        let found = dir.json(&["messages", "consumers", "--broker", "order-events"])["consumers"].clone();
        if found[0]["lastProgressAt"].is_u64() {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "it never reported its progress: {found}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!((&found[0]["state"], &found[0]["sdk"], &found[0]["pid"]), (&"live".into(), &"cli".into(), &consumer.pid().into()));
    assert_eq!(dir.json(&["messages", "consumers", "--broker", "nothing"])["consumers"], serde_json::json!([]));
    assert!(dir.json(&["messages", "producers"])["producers"].is_array());
    consumer.signal(Signal::INT);
    assert_eq!(consumer.ended().code, 0);
}
