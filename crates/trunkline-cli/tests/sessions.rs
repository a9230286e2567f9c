//! Sessions by command: from the definition to the erasure.

mod common;

use common::{Dir, EVENT};
use serde_json::{Value, json};

const SELECTOR: &str = "$Session{userId}";

fn dir() -> Dir {
    let dir = Dir::with_example();
    dir.ok(&["sessions", "define", "user", "--selector", SELECTOR, "--expiry", "7", "--period", "days", "--sample", r#"{"userId":"1"}"#]);
    dir
}

/// A session of this user: its id, the file with its token, its refresh token.
fn start(dir: &Dir, user: &str) -> (String, String, String) {
    let started = dir.json(&["sessions", "start", "user", &json!({ "userId": user }).to_string()]);
    let text = |name: &str| started[name].as_str().expect(name).to_owned();
    (text("sessionId"), dir.write(&format!("token-{user}"), text("token") + "\n"), text("refreshToken"))
}

#[test]
fn a_definition_is_made_changed_and_applied_from_a_file() {
    let dir = dir();
    let again = dir.failure(&["sessions", "define", "user", "--from-json", &dir.write("s.json", "{}")]);
    assert_eq!((again.0, again.1["code"].as_str()), (2, Some("INPUT_INVALID")), "{again:?}");
    dir.ok(&["sessions", "update", "user", "--expiry", "12", "--period", "hours"]);
    let shown = dir.json(&["sessions", "show", "user"]);
    assert_eq!((&shown["expiry"], &shown["period"], &shown["selector"]), (&json!(12), &json!("hours"), &json!(SELECTOR)));
    assert!(dir.ok(&["sessions", "list"]).contains("12h"));
    let typo = dir.write("typo.json", r#"{ "selectr": "$Session{a}" }"#);
    let (code, error) = dir.failure(&["sessions", "update", "user", "--from-json", &typo]);
    assert!(code == 2 && error["message"].as_str().is_some_and(|text| text.contains("selector")), "{error}");
    let unknown = dir.failure(&["sessions", "show", "usr"]);
    assert_eq!((unknown.0, unknown.1["code"].as_str()), (3, Some("SESSION_NOT_FOUND")));
    let file = dir.write(
        "more.yaml",
        "product: my-product\nsessions: [{ tag: admin, selector: '$Session{id}', expiry: 1, period: hours, schema: { id: 1 } }]\n",
    );
    assert_eq!(dir.json(&["apply", "-f", &file])["changed"], 1);
    assert_eq!(dir.json(&["apply", "-f", &file])["changed"], 0);
    dir.ok(&["sessions", "delete", "admin"]);
    assert_eq!(dir.json(&["sessions", "list"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_session_lives_by_commands() {
    let dir = dir();
    let (id, token, refresh) = start(&dir, "ann");
    let verified = dir.json(&["sessions", "verify", "user", "--token-file", &token]);
    assert_eq!((&verified["valid"], &verified["data"], &verified["sessionId"]), (&json!(true), &json!({ "userId": "ann" }), &json!(id)));
    assert_eq!(dir.failure(&["sessions", "verify", "user"]).1["details"]["field"], "token-file");
    let missing = dir.failure(&["sessions", "start", "user", "{\"name\":\"ann\"}"]);
    assert_eq!((missing.0, &missing.1["details"]["field"]), (2, &json!("data.userId")));

    let file = dir.write("refresh", &refresh);
    let next: Value = dir.json(&["sessions", "refresh", "user", "--token-file", &file]);
    assert_eq!(next["sessionId"], json!(id));
    let users = dir.json(&["sessions", "users", "user"]);
    assert_eq!((&users["total"], &users["totalPages"], &users["users"][0]["identifier"]), (&json!(1), &json!(1), &json!("ann")));
    assert_eq!(dir.json(&["sessions", "active", "user", "--identifier", "ann"])["sessions"][0]["sessionId"], json!(id));

    dir.ok(&["sessions", "keys", "rotate"]);
    assert_eq!(dir.json(&["sessions", "keys", "list"]).as_array().map(Vec::len), Some(2));
    assert_eq!(dir.json(&["sessions", "verify", "user", "--token-file", &token])["valid"], true);
    let (bob, bobs, _) = start(&dir, "bob");
    assert_eq!(dir.json(&["sessions", "revoke", "user", "--session", &bob])["revoked"], 1);
    assert_eq!(dir.json(&["sessions", "verify", "user", "--token-file", &bobs]), json!({ "valid": false }));
    assert_eq!(dir.json(&["sessions", "revoke", "user", "--identifier", "ann"])["revoked"], 1);
    start(&dir, "cleo");
    assert!(dir.ok(&["sessions", "revoke-all", "user"]).contains("revoked 1 session"));
    assert_eq!(dir.run(&["sessions", "revoke", "user"]).code, 2);
}

#[test]
fn a_message_is_produced_consumed_and_erased_for_a_session() {
    let dir = dir();
    let (id, token, _) = start(&dir, "canary-user");
    let sent = dir.json(&["produce", EVENT, r#"{"note":"canary-note"}"#, "--session-file", &token]);
    let process_id = sent["process_id"].as_str().expect("an id");
    let mut by_env = dir.command(&["produce", EVENT, "{}"]);
    by_env.env("TRUNKLINE_SESSION", "user:not-a-token");
    let refused = by_env.output().expect("it runs");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("SESSION_INVALID") && !text.contains("not-a-token"), "{text}");
    assert_eq!(dir.failure(&["consume", EVENT, "--session", "user:x", "--idle-exit", "1s"]).1["code"], "SESSION_INVALID");

    let seen = dir.consume(&["--session-file", &token]);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["session"], json!({ "tag": "user", "id": id, "identifier": "canary-user", "data": { "userId": "canary-user" } }));
    let found = dir.json(&["messages", "query", "--identifier", "canary-user"]);
    assert_eq!(found["messages"][0]["process_id"], json!(process_id));
    assert!(dir.ok(&["messages", "show", process_id]).contains("canary-note"));

    assert_eq!(dir.failure(&["sessions", "erase", "user", "canary-user"]).1["code"], "IN_USE");
    assert_eq!(dir.json(&["sessions", "erase", "user", "canary-user", "--yes"]), json!({ "erased": true, "sessions": 1 }));
    assert_eq!(dir.json(&["sessions", "erase", "user", "canary-user", "--yes"])["erased"], false);
    let shown = dir.json(&["messages", "show", process_id]);
    assert!(shown["erased"] == true && !shown.to_string().contains("canary"), "{shown}");
    assert!(dir.ok(&["messages", "show", process_id]).contains("erased"));
    assert_eq!(dir.failure(&["replay", process_id, "--force"]).1["details"]["reason"], "erased");
    assert_eq!(dir.json(&["sessions", "verify", "user", "--token-file", &token])["valid"], false);
}
