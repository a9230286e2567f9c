//! Products, brokers, topics and groups by command.

mod common;

use common::{Dir, EVENT};

#[test]
fn a_broker_and_a_topic_by_flags() {
    let dir = Dir::new();
    dir.ok(&["init"]);
    dir.ok(&["brokers", "create", "mail", "--on", "prd=EMBEDDED", "--description", "All mail"]);
    dir.ok(&[
        "topics",
        "create",
        "mail:sent",
        "--sample",
        r#"{"to":"a@b.c"}"#,
        "--retry",
        "1s,5s",
        "--timeout",
        "1m",
        "--retention-age",
        "7d",
    ]);
    let topic = dir.json(&["topics", "show", "mail:sent"]);
    assert_eq!((topic["brokerTag"].as_str(), topic["topicTag"].as_str()), (Some("mail"), Some("sent")));
    assert_eq!(topic["sample"]["to"], "a@b.c");
    assert_eq!(topic["defaults"]["timeout"], "1m", "{topic}");
    assert!(dir.ok(&["brokers", "list"]).contains("prd: EMBEDDED"));
    assert_eq!(dir.json(&["products", "show", "my-product"])["brokers"], serde_json::json!(["mail"]));
    dir.ok(&["produce", "mail:sent", "{}"]);

    let (code, error) = dir.failure(&["brokers", "create", "mail", "--on", "prd=EMBEDDED"]);
    assert_eq!((code, error["code"].as_str()), (4, Some("BROKER_EXISTS")));
    assert_eq!(dir.failure(&["topics", "create", "mail:sent"]).1["code"], "TOPIC_EXISTS");
    assert_eq!(dir.failure(&["topics", "show", "mail:lost"]).0, 3);
    assert_eq!(dir.failure(&["brokers", "create", "x", "--on", "prd=KAFKAA"]).0, 2);

    dir.ok(&["topics", "update", "mail:sent", "--name", "Mail that was sent"]);
    assert_eq!(dir.json(&["topics", "show", "mail:sent"])["name"], "Mail that was sent");
    assert_eq!(dir.failure(&["products", "delete", "my-product"]).0, 4);
    dir.ok(&["topics", "delete", "mail:sent"]);
    dir.ok(&["brokers", "delete", "mail"]);
    dir.ok(&["products", "delete", "my-product"]);
    assert_eq!(dir.json(&["products", "list"]), serde_json::json!([]));
}

#[test]
fn updates_say_what_they_break_and_leave_behind() {
    let dir = Dir::new();
    dir.ok(&["init"]);
    dir.ok(&["brokers", "create", "mail", "--on", "prd=EMBEDDED"]);
    let schema = |kind: &str| format!(r#"{{"schema":{{"type":"object","properties":{{"n":{{"type":"{kind}"}}}}}}}}"#);
    let (wide, narrow) = (dir.write("wide.json", schema("number")), dir.write("narrow.json", schema("integer")));
    dir.ok(&["topics", "create", "mail:sent", "--from-json", &wide]);
    let update = dir.json(&["topics", "update", "mail:sent", "--name", "Mail"]);
    assert_eq!((&update["name"], &update["breaking"]), (&"Mail".into(), &serde_json::json!([])));
    let narrowed = dir.run(&["topics", "update", "mail:sent", "--from-json", &narrow]);
    assert!(narrowed.code == 0 && narrowed.err.contains("breaking: /n: number is not taken any more"), "{narrowed:?}");
    dir.ok(&["topics", "update", "mail:sent", "--from-json", &wide]);
    let update = dir.json(&["topics", "update", "mail:sent", "--from-json", &narrow]);
    assert_eq!((&update["breaking"][0]["path"], &update["breaking"][0]["change"]), (&"/n".into(), &"type_narrowed".into()));

    dir.ok(&["produce", "mail:sent", "{}"]);
    let config = dir.write("config.json", r#"{"path":"elsewhere"}"#);
    let moved = dir.run(&["brokers", "update", "mail", "--on", "prd=EMBEDDED", "--config", &format!("prd={config}")]);
    assert!(moved.code == 0 && moved.err.contains("1 message"), "{moved:?}");
    let back = dir.json(&["brokers", "update", "mail", "--on", "prd=EMBEDDED"]);
    assert_eq!(back["leftBehind"], serde_json::json!([]), "{back}");
}

#[test]
fn documents_come_from_json_and_credentials_stay_hidden() {
    let dir = Dir::new();
    dir.ok(&["init"]);
    let broker = r#"{"name":"Stock","envs":[{"slug":"prd","type":"RABBITMQ","config":{"host":"mq","username":"u","password":"hunter2"}}]}"#;
    let created = dir.run_with(&["brokers", "create", "stock", "--from-json", "-", "--output", "json"], broker.as_bytes());
    assert_eq!(created.code, 0, "{}", created.err);
    let shown = dir.json(&["brokers", "show", "stock"]);
    assert_eq!(shown["envs"][0]["config"]["password"], "***");
    for text in [created.out, dir.ok(&["brokers", "show", "stock"]), dir.run(&["-vvvv", "brokers", "list"]).err] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let bad = dir.run_with(&["brokers", "create", "other", "--from-json", "-"], br#"{"password":"hunter2",}"#);
    assert_eq!(bad.code, 2);
    assert!(!bad.err.contains("hunter2"), "{}", bad.err);
}

#[test]
fn groups_are_declared_paused_and_removed() {
    let dir = Dir::with_example();
    dir.ok(&["groups", "create", EVENT, "billing"]);
    assert_eq!(dir.failure(&["groups", "create", EVENT, "billing"]).0, 4);
    dir.ok(&["produce", EVENT, "{}"]);
    let group = dir.json(&["groups", "show", EVENT, "billing"]);
    assert_eq!((group["ready"].as_u64(), group["paused"].as_bool()), (Some(1), Some(false)), "{group}");
    dir.ok(&["groups", "pause", EVENT, "billing"]);
    assert!(dir.ok(&["groups", "list", EVENT]).contains("paused"));
    assert!(dir.consume(&["--group", "billing"]).is_empty(), "it is paused");
    dir.ok(&["groups", "resume", EVENT, "billing"]);
    assert_eq!(dir.consume(&["--group", "billing"]).len(), 1);
    dir.ok(&["groups", "delete", EVENT, "billing"]);
    assert_eq!(dir.failure(&["groups", "show", EVENT, "billing"]).0, 3);
    assert_eq!(dir.failure(&["groups", "show", EVENT, "billing"]).1["code"], "GROUP_NOT_FOUND");
    assert_eq!(dir.failure(&["jobs", "show", "nothing"]).0, 3);
    assert_eq!(dir.json(&["jobs", "list"]), serde_json::json!([]));
}
