//! Backup, restore and migration by command: what was sealed, signed, revoked and planned holds in the copy as it did before.

mod common;

use std::process::Stdio;

use common::{Dir, EVENT, Ended, Running};
use serde_json::{Value, json};

/// Runs with an access key, on the store of this URL, whose master key lies in the example's directory.
fn run(dir: &Dir, key: &str, url: &str, args: &[&str]) -> Ended {
    let mut command = dir.command(&[args, &["--url", url, "--output", "json"]].concat());
    command.env("TRUNKLINE_ACCESS_KEY", key).stdin(Stdio::null());
    Running::start(command).ended()
}

fn json_of(dir: &Dir, key: &str, url: &str, args: &[&str]) -> Value {
    let ended = run(dir, key, url, args);
    assert_eq!(ended.code, 0, "{args:?}: {}", ended.err);
    serde_json::from_str(&ended.out).expect("JSON")
}

/// A workspace with a secret in use, a session, an erased subject, a schedule and an access key.
struct Filled {
    dir: Dir,
    url: String,
    key: String,
    token: String,
    erased: String,
    /// A schedule and when it is due.
    schedule: (String, u64),
}

impl Filled {
    fn new() -> Self {
        let dir = Dir::with_example();
        let config = dir.write("config.json", r#"{ "endpoint": "http://$Secret{PW}@nowhere" }"#);
        dir.ok(&["brokers", "update", "order-events", "--on", "prd=EMBEDDED", "--config", &format!("prd={config}")]);
        assert_eq!(dir.run_with(&["secrets", "create", "PW"], b"one").code, 0);
        let selector = "$Session{userId}";
        dir.ok(&[
            "sessions",
            "define",
            "user",
            "--selector",
            selector,
            "--expiry",
            "7",
            "--period",
            "days",
            "--sample",
            r#"{"userId":"1"}"#,
        ]);
        let start = |user: &str| {
            let started = dir.json(&["sessions", "start", "user", &json!({ "userId": user }).to_string()]);
            dir.write(&format!("token-{user}"), started["token"].as_str().expect("a token"))
        };
        let (token, erased) = (start("canary-ann"), start("bob"));
        dir.ok(&["sessions", "erase", "user", "bob", "--yes"]);
        let planned = dir.json(&["dispatch", EVENT, r#"{"orderId":"1","amount":1}"#, "--every", "1h"]);
        let id = planned["schedule_id"].as_str().expect("an id").to_owned();
        let due = dir.json(&["schedules", "show", &id])["nextAt"].as_u64().expect("a due time");
        let key = dir.ok(&["keys", "create", "--role", "admin", "--name", "root"]).trim().to_owned();
        let url = format!("sqlite:{}", dir.path().join(".trunkline").display());
        Filled { dir, url, key, token, erased, schedule: (id, due) }
    }

    /// The copy at this URL is as good as the store was.
    fn holds_in(&self, url: &str) {
        let get = |args: &[&str]| json_of(&self.dir, &self.key, url, args);
        // First of all, since what follows is audited too.
        let (copy, source) = (get(&["audit", "verify"]), json_of(&self.dir, &self.key, &self.url, &["audit", "verify"]));
        assert_eq!((&copy["ok"], &copy["rows"]), (&json!(true), &source["rows"]));
        assert_eq!(run(&self.dir, "", url, &["secrets", "list"]).code, 1, "without the key it stays shut");
        assert_eq!(get(&["sessions", "verify", "user", "--token-file", &self.token])["data"], json!({ "userId": "canary-ann" }));
        assert_eq!(get(&["sessions", "verify", "user", "--token-file", &self.erased])["valid"], false);
        assert_eq!(get(&["sessions", "active", "user", "--identifier", "bob"])["sessions"], json!([]));
        let shown = get(&["schedules", "show", &self.schedule.0]);
        assert_eq!((&shown["nextAt"], &shown["state"]), (&json!(self.schedule.1), &json!("active")));
        // Its broker's config asks for the secret, which is opened with the master key.
        get(&["produce", EVENT, r#"{"orderId":"2","amount":2}"#]);
    }
}

#[test]
fn a_restored_store_verifies_resolves_and_stays_shut_as_before() {
    let filled = Filled::new();
    let Filled { dir, url, key, .. } = &filled;
    let made = json_of(dir, key, url, &["store", "backup", "copy.ndjson"]);
    assert_eq!(
        (&made["counts"]["secrets"], &made["counts"]["accessKeys"], &made["counts"]["schedules"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let text = std::fs::read_to_string(dir.path().join("copy.ndjson")).expect("the backup");
    let master = std::fs::read_to_string(dir.path().join(".trunkline/master.key")).expect("the master key");
    assert!(!text.contains(master.trim()) && !text.contains("canary-ann") && !text.contains(key.as_str()), "nothing is open in it");
    let refused = run(dir, key, &format!("sqlite:{}", dir.path().join("other").display()), &["store", "restore", "copy.ndjson"]);
    assert!(refused.code == 5 && refused.err.contains("master_key") && refused.err.contains("TRUNKLINE_MASTER_KEY"), "{}", refused.err);

    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).expect("a directory");
    std::fs::copy(dir.path().join(".trunkline/master.key"), restored.join("master.key")).expect("the same master key");
    let to = format!("sqlite:{}", restored.display());
    assert_eq!(json_of(dir, key, &to, &["store", "restore", "copy.ndjson"])["counts"], made["counts"]);
    filled.holds_in(&to);
}

#[test]
fn a_migrated_store_needs_the_same_master_key() {
    let filled = Filled::new();
    let Filled { dir, url, key, .. } = &filled;
    let migrate = |to: &str| run(dir, key, url, &["store", "migrate", "--from", url, "--to", to]);
    let other = migrate(&format!("sqlite:{}", dir.path().join("other").display()));
    assert!(other.code == 5 && other.err.contains("master_key") && other.err.contains("TRUNKLINE_MASTER_KEY"), "{}", other.err);
    let moved = dir.path().join("moved");
    std::fs::create_dir(&moved).expect("a directory");
    std::fs::copy(dir.path().join(".trunkline/master.key"), moved.join("master.key")).expect("the same master key");
    let to = format!("sqlite:{}", moved.display());
    assert_eq!(migrate(&to).code, 0);
    filled.holds_in(&to);
}
