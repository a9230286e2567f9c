//! A topic's sample on the command line: the schema it yields, what does not fit, and what a change of it breaks.

mod common;

use common::{Dir, EVENT};

#[test]
fn a_payload_that_does_not_fit_is_named_and_not_sent() {
    let dir = Dir::with_example();
    let shown = dir.json(&["topics", "show", EVENT]);
    assert_eq!(shown["inferredSchema"]["required"], serde_json::json!(["amount", "orderId"]));
    assert_eq!(shown["validate"], "warn");
    let wrong = "{\"orderId\":7,\"amount\":1}";
    let (code, error) = dir.failure(&["produce", EVENT, wrong, "--validate-only"]);
    assert_eq!((&error["code"], &error["details"]["pointer"], code != 0), (&"PAYLOAD_INVALID".into(), &"/orderId".into(), true));
    assert!(dir.run(&["produce", EVENT, wrong]).err.contains("do not fit"), "warned");
    dir.ok(&["topics", "update", EVENT, "--validate", "reject"]);
    assert_eq!(dir.failure(&["produce", EVENT, wrong]).1["details"]["problems"][0]["pointer"], "/orderId");
    let fits = dir.json(&["produce", EVENT, "{\"orderId\":\"7\",\"amount\":1}", "--dry-run"]);
    assert_eq!(fits["valid"], true);
    let ended = dir.run(&["consume", EVENT, "--idle-exit", "1s", "--from", "earliest"]);
    assert_eq!((ended.code, ended.out.lines().count()), (0, 0), "{}", ended.out);
    let dead = dir.json(&["dead", "list"]);
    assert!(dead.to_string().contains("payload_invalid"), "{dead}");
}

#[test]
fn a_changed_sample_says_what_breaks_before_it_is_written() {
    let dir = Dir::with_example();
    let narrower = ["topics", "update", EVENT, "--sample", "{\"orderId\":7,\"amount\":1}"];
    let plan = dir.json(&[&narrower[..], &["--dry-run"]].concat());
    assert_eq!((&plan["breaking"][0]["path"], &plan["breaking"][0]["change"]), (&"/orderId".into(), &"type_narrowed".into()));
    assert_eq!(dir.json(&["topics", "show", EVENT])["sample"]["orderId"], "123", "nothing was written");
    let ended = dir.run(&narrower);
    assert!(ended.err.contains("breaking: /orderId"), "{}", ended.err);
    let schema = ["topics", "update", EVENT, "--schema", "{\"type\":\"objekt\"}"];
    assert_eq!(dir.failure(&schema).1["details"]["field"], "schema");
    dir.ok(&["topics", "update", EVENT, "--schema", "{\"required\":[\"id\"]}"]);
    assert_eq!(dir.failure(&["produce", EVENT, "{}", "--validate-only"]).1["details"]["pointer"], "");
}
