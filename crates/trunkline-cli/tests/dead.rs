//! `dead`: dead letters found, grouped, shown, edited, handed over again, discarded.

mod common;

use common::{Dir, EVENT};
use serde_json::Value;

/// Five dead letters of `billing`, of two errors; their ids in the order they were produced.
fn five() -> (Dir, Vec<String>) {
    let dir = Dir::with_example();
    dir.ok(&["groups", "create", EVENT, "billing"]);
    let produce = |n: u32| {
        let receipt = dir.json(&["produce", EVENT, &format!("{{\"n\":{n}}}"), "--key", &format!("k{n}"), "--header", "region=eu"]);
        receipt["process_id"].as_str().expect("an id").to_owned()
    };
    let ids: Vec<String> = (0..5).map(produce).collect();
    let script = r#"case $TRUNKLINE_KEY in k0|k1) echo "no such customer" >&2;; *) echo "no price" >&2;; esac; exit 1"#;
    dir.ok(&["consume", EVENT, "--group", "billing", "--exec", script, "--retry", "none", "--max", "5"]);
    (dir, ids)
}

fn ids(list: &Value) -> Vec<&str> {
    list["deadLetters"].as_array().expect("dead letters").iter().map(|dead| dead["process_id"].as_str().expect("an id")).collect()
}

#[test]
fn they_are_listed_and_grouped_by_error() {
    let (dir, all) = five();
    let list = dir.json(&["dead", "list", "--limit", "2"]);
    assert_eq!((list["total"].as_u64(), &list["hasMore"]), (Some(5), &true.into()), "{list}");
    let second = dir.json(&["dead", "list", "--limit", "2", "--page", "3"]);
    assert_eq!((ids(&second).len(), &second["hasMore"]), (1, &false.into()), "{second}");
    let groups = dir.json(&["dead", "groups", "--event", EVENT]);
    let counts: Vec<(&str, u64)> = groups
        .as_array()
        .expect("groups")
        .iter()
        .map(|g| (g["error"].as_str().expect("an error"), g["count"].as_u64().expect("a count")))
        .collect();
    assert_eq!(counts, [("no price", 3), ("no such customer", 2)]);
    let of = |filter: &[&str]| dir.json(&[&["dead", "list"], filter].concat())["total"].as_u64().expect("a total");
    assert_eq!((of(&["--error", "no price"]), of(&["--group", "audit"]), of(&["--id", &all[0], "--id", &all[4]])), (3, 0, 2));
    assert_eq!((of(&["--from", "1h"]), of(&["--to", "1h"]), of(&["--broker", "order-events", "--topic", "order-created"])), (5, 0, 5));
    let told = dir.run(&["dead", "groups"]);
    assert!(told.out.contains("no such customer") && told.out.contains("attempts_exhausted"), "{}", told.out);
}

#[test]
fn one_is_shown_with_all_it_has() {
    let (dir, all) = five();
    let told = dir.ok(&["dead", "show", &all[0]]);
    for part in [all[0].as_str(), "billing", "no such customer", "attempts_exhausted", "region: eu", "\"n\": 0"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let shown = dir.json(&["dead", "show", &all[0]]);
    assert_eq!((shown[0]["attempts"].as_u64(), &shown[0]["payload"]["n"]), (Some(1), &0.into()), "{shown}");
    assert_eq!(dir.failure(&["dead", "show", &all[0], "--group", "audit"]).0, 3);
}

#[test]
fn an_edit_is_what_is_handed_over() {
    let (dir, all) = five();
    let id = all[2].as_str();
    dir.ok(&["dead", "edit", id, "--payload", "{\"n\":20}", "--header", "fixed=yes", "--unset-header", "region"]);
    let shown = dir.json(&["dead", "show", id]);
    assert_eq!(shown[0]["headers"], serde_json::json!({ "fixed": "yes" }), "{shown}");
    dir.ok(&["dead", "reprocess", "--id", id]);
    let got = dir.consume(&["--group", "billing", "--max", "1"]);
    assert_eq!(
        (got[0]["process_id"].as_str(), &got[0]["message"]["n"], &got[0]["headers"]["fixed"]),
        (Some(id), &20.into(), &"yes".into())
    );
    assert_eq!(dir.json(&["dead", "list"])["total"], 4);
    let refused = dir.failure(&["dead", "edit", &all[3], "--payload", "{n:1}"]);
    assert_eq!((refused.0, &refused.1["code"]), (2, &"PAYLOAD_INVALID".into()));
    assert_eq!(dir.failure(&["dead", "edit", &all[3], "--header", "trunkline-id=1"]).0, 2);
}

#[test]
fn an_editor_may_do_it_or_leave_it() {
    let (dir, all) = five();
    let edit = |editor: &str| {
        let mut command = dir.command(&["dead", "edit", &all[1]]);
        command.env("EDITOR", editor);
        common::Running::start(command).ended()
    };
    assert!(edit("true").out.contains("nothing was changed"));
    let failed = edit("false");
    assert!(failed.code == 2 && failed.err.contains("nothing was changed"), "{failed:?}");
    assert_eq!(edit("sed -i s/1/111/").code, 0);
    assert_eq!(dir.json(&["dead", "show", &all[1]])[0]["payload"]["n"], 111);
    let broken = edit("sed -i s/:/{/");
    assert!(broken.code == 2 && broken.err.contains("PAYLOAD_INVALID"), "{broken:?}");
}

#[test]
fn a_dry_run_counts_and_a_reprocess_tells_of_each() {
    let (dir, _) = five();
    let dry = dir.json(&["dead", "reprocess", "--error", "no price", "--dry-run"]);
    assert_eq!((dry["matched"].as_u64(), dry["reprocessed"].as_u64()), (Some(3), Some(0)), "{dry}");
    // The list begins with the newest death, a reprocess with the oldest.
    let list = dir.json(&["dead", "list", "--error", "no price"]);
    let mut first: Vec<&str> = ids(&list).into_iter().rev().take(2).collect();
    first.sort_unstable();
    let done = dir.json(&["dead", "reprocess", "--error", "no price", "--limit", "2", "--rate", "100", "--yes"]);
    assert_eq!((done["matched"].as_u64(), done["reprocessed"].as_u64(), &done["state"]), (Some(2), Some(2), &"done".into()), "{done}");
    assert_eq!(done["results"].as_array().map(Vec::len), Some(2), "{done}");
    assert!(dir.json(&["jobs", "show", done["job_id"].as_str().expect("a job")])["done"] == 2);
    let got = dir.consume(&["--group", "billing", "--max", "2"]);
    let mut back: Vec<&str> = got.iter().filter_map(|message| message["process_id"].as_str()).collect();
    back.sort_unstable();
    assert_eq!(back, first, "the same ids");
    assert!(got.iter().all(|message| message["attempt"] == 1), "attempts count from 0: {got:?}");
    let record = dir.json(&["messages", "show", first[0]]);
    assert_eq!(record["groups"][0]["status"], "delivered", "{record}");
}

#[test]
fn a_reprocess_to_the_topic_is_a_new_message_for_everyone() {
    let (dir, all) = five();
    let done = dir.json(&["dead", "reprocess", "--id", &all[0], "--target", "topic", "--payload", "{\"n\":99}"]);
    assert_eq!(done["reprocessed"], 1, "{done}");
    let got = dir.consume(&["--group", "billing"]);
    assert_eq!((got.len(), &got[0]["message"]["n"]), (1, &99.into()), "{got:?}");
    let new = got[0]["process_id"].as_str().expect("an id");
    assert_eq!(dir.json(&["messages", "show", new])["replayOf"].as_str(), Some(all[0].as_str()));
    assert_eq!(dir.json(&["dead", "list"])["total"], 4);
}

#[test]
fn nothing_is_discarded_by_accident() {
    let (dir, all) = five();
    assert_eq!(dir.failure(&["dead", "discard", "--yes"]).0, 2, "which ones?");
    assert_eq!(dir.failure(&["dead", "discard", "--all"]).0, 2, "nobody said yes");
    assert_eq!(dir.json(&["dead", "list"])["total"], 5);
    assert_eq!(dir.json(&["dead", "discard", "--id", &all[0], "--yes"])["discarded"], 1);
    assert_eq!(dir.json(&["dead", "discard", "--all", "--yes"])["discarded"], 4);
    assert_eq!(dir.json(&["dead", "list"])["total"], 0);
    assert!(dir.ok(&["dead", "reprocess"]).contains("no dead letter matches"));
}
