//! `consume`: how it ends, what exit codes of a command mean, and what survives the death of a consumer.

mod common;

use std::collections::BTreeSet;

use common::{Dir, EVENT, Running, orders};
use rustix::process::Signal;
use serde_json::Value;

fn produce(dir: &Dir, key: &str) -> String {
    dir.json(&["produce", EVENT, &format!("{{\"orderId\":\"{key}\"}}"), "--key", key, "--header", "x-tenant=t 1"])["process_id"]
        .as_str()
        .expect("an id")
        .to_owned()
}

#[test]
fn a_command_gets_the_message_and_its_surroundings() {
    let dir = Dir::with_example();
    let id = produce(&dir, "k1");
    let script = r#"cat; echo; echo "$TRUNKLINE_ID|$TRUNKLINE_KEY|$TRUNKLINE_ATTEMPT|$TRUNKLINE_EVENT|$TRUNKLINE_GROUP|$TRUNKLINE_HEADER_X_TENANT|$TRUNKLINE_HEADERS""#;
    let out = dir.ok(&["consume", EVENT, "--max", "1", "--group", "g1", "--exec", script]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], r#"{"orderId":"k1"}"#);
    assert_eq!(lines[1], format!("{id}|k1|1|{EVENT}|g1|t 1|{{\"x-tenant\":\"t 1\"}}"));
}

#[test]
fn exit_codes_are_verdicts() {
    let dir = Dir::with_example();
    for key in ["fine", "later", "bury", "fail"] {
        produce(&dir, key);
    }
    let script = r#"case $TRUNKLINE_KEY in
        fine) exit 0;;
        later) [ -e seen ] || { touch seen; exit 75; };;
        bury) echo "no such customer" >&2; exit 65;;
        fail) echo noise >&2; echo "boom at line 7" >&2; exit 1;;
    esac"#;
    let args = ["consume", EVENT, "--exec", script, "--later", "200ms", "--retry", "none", "--max", "5", "--output", "json"];
    let out = dir.ok(&args);
    let runs: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of =
        |key: &str| runs.iter().filter(|run| run["key"] == key).map(|run| run["verdict"].as_str().expect("a verdict")).collect::<Vec<_>>();
    assert_eq!((of("fine"), of("later"), of("bury"), of("fail")), (vec!["done"], vec!["later", "done"], vec!["buried"], vec!["failed"]));
    let error = |key: &str| runs.iter().find(|run| run["key"] == key).expect("a run")["error"].clone();
    assert_eq!((error("bury"), error("fail")), ("no such customer".into(), "boom at line 7".into()));
    assert!(runs.iter().filter(|run| run["key"] == "later").all(|run| run["attempt"] == 1), "later is not a failure");
    let group = dir.json(&["groups", "show", EVENT, "my-product"]);
    assert_eq!((group["dead"].as_u64(), group["waiting"].as_u64(), group["ready"].as_u64()), (Some(2), Some(0), Some(0)), "{group}");
}

#[test]
fn a_failed_command_is_tried_again() {
    let dir = Dir::with_example();
    produce(&dir, "k");
    let script = r#"echo "$TRUNKLINE_ATTEMPT"; [ "$TRUNKLINE_ATTEMPT" -ge 3 ]"#;
    assert_eq!(dir.ok(&["consume", EVENT, "--exec", script, "--retry", "50ms,50ms,50ms", "--max", "3"]).trim(), "1\n2\n3");
    assert_eq!(dir.json(&["groups", "show", EVENT, "my-product"])["dead"], 0);
}

#[test]
fn a_command_that_hangs_is_ended_with_its_children() {
    let dir = Dir::with_example();
    produce(&dir, "k");
    let marker = dir.path().join("pid").display().to_string();
    let script = format!("sleep 600 & echo $! > {marker}; wait");
    let mut consumer =
        Running::start(dir.command(&["consume", EVENT, "--exec", &script, "--retry", "none", "--timeout", "500ms", "--idle-exit", "1s"]));
    assert_eq!(common::code(consumer.status()), 0);
    common::until_gone(std::fs::read_to_string(marker).expect("it ran").trim());
    assert_eq!(dir.json(&["groups", "show", EVENT, "my-product"])["dead"], 1);
}

#[test]
fn max_takes_no_more_than_it_says() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "--file", &orders(&dir, 50)]);
    assert_eq!(dir.consume(&["--max", "7"]).len(), 7);
    assert_eq!(dir.consume(&["--max", "3", "--concurrency", "16"]).len(), 3);
    assert_eq!(dir.consume(&["--concurrency", "4"]).len(), 40);
}

#[test]
fn groups_each_get_every_message() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "--file", &orders(&dir, 5)]);
    assert_eq!(dir.consume(&["--group", "a"]).len(), 5);
    assert_eq!(dir.consume(&["--group", "b", "--from", "earliest"]).len(), 5);
    assert_eq!(dir.consume(&["--group", "c", "--from", "latest"]).len(), 0);
    assert_eq!(dir.consume(&["--group", "a"]).len(), 0);
    dir.ok(&["groups", "seek", EVENT, "a", "--to", "earliest"]);
    assert_eq!(dir.consume(&["--group", "a"]).len(), 5);
}

#[test]
fn ctrl_c_lets_what_runs_finish() {
    let dir = Dir::with_example();
    produce(&dir, "k");
    let script = "echo started; while [ ! -e go ]; do sleep 0.02; done; echo finished";
    let mut consumer = Running::start(dir.command(&["consume", EVENT, "--exec", script]));
    assert_eq!(consumer.line().as_deref(), Some("started"));
    consumer.signal(Signal::INT);
    consumer.until_said("stopping");
    dir.write("go", "");
    assert_eq!(consumer.line().as_deref(), Some("finished"));
    assert_eq!(common::code(consumer.status()), 0);
    assert!(dir.consume(&[]).is_empty(), "what was finished was acked");
}

#[test]
fn a_second_ctrl_c_quits_at_once() {
    let dir = Dir::with_example();
    produce(&dir, "k");
    let mut consumer = Running::start(dir.command(&["consume", EVENT, "--exec", "sleep 600 & echo $!; wait"]));
    let pid = consumer.line().expect("the command runs");
    consumer.signal(Signal::INT);
    consumer.until_said("stopping");
    consumer.signal(Signal::INT);
    assert_eq!(common::code(consumer.status()), 130);
    common::until_gone(&pid);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "--file", &orders(&dir, 5)]);
    let few = format!("consume {EVENT} --group few");
    let idle = format!("consume {EVENT} --group idle --from latest");
    let json = format!("consume {EVENT} --group json --output json");
    let binary = assert_cmd::cargo::cargo_bin!("trunkline").display().to_string();
    for (args, reader) in
        [(&*few, "head -1 > /dev/null"), (&*idle, "true"), (&*json, "head -1 > /dev/null"), ("help exec", "head -1 > /dev/null")]
    {
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &format!("set -o pipefail; '{binary}' {args} | {reader}")]);
        command
            .current_dir(dir.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let ended = Running::start(command).ended();
        assert_eq!(ended.code, 0, "{args}: {}", ended.err);
        assert!(!ended.err.contains("panic") && !ended.err.contains("error"), "{args}: {}", ended.err);
    }
}

#[test]
fn another_takes_over_from_one_that_was_killed() {
    const ALL: usize = 120;
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, "--file", &orders(&dir, ALL), "--key-from", "orderId"]);
    let args = ["consume", EVENT, "--exec", "echo $TRUNKLINE_KEY; sleep 0.05", "--concurrency", "4"];
    let mut seen = BTreeSet::new();
    let mut first = Running::start(dir.command(&args));
    while seen.len() < ALL / 2 {
        seen.insert(first.line().expect("a key"));
    }
    first.signal(Signal::KILL);
    assert_eq!(common::code(first.status()), 137);
    assert!(seen.len() < ALL, "it was killed half way");
    let mut second = Running::start(dir.command(&args));
    while seen.len() < ALL {
        seen.insert(second.line().expect("a key"));
    }
    second.signal(Signal::INT);
    assert_eq!(common::code(second.status()), 0);
    assert_eq!(seen.len(), ALL, "nothing is missing");
}

#[test]
fn two_consumers_share_the_work() {
    const ALL: usize = 60;
    let dir = Dir::with_example();
    let args = ["consume", EVENT, "--exec", "echo $TRUNKLINE_KEY; sleep 0.02", "--concurrency", "2"];
    let mut both: Vec<Running> = (0..2).map(|_| Running::start(dir.command(&args))).collect();
    both.iter_mut().for_each(|consumer| consumer.until_said("consuming"));
    dir.ok(&["produce", EVENT, "--file", &orders(&dir, ALL), "--key-from", "orderId"]);
    // Until nothing is left of it, whoever took it.
    let deadline = std::time::Instant::now() + common::DEADLINE;
    loop {
        let group = dir.json(&["groups", "show", EVENT, "my-product"]);
        if group["ready"] == 0 && group["inFlight"] == 0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{group}");
    }
    let mut keys = Vec::new();
    for consumer in both {
        consumer.signal(Signal::INT);
        let ended = consumer.ended();
        assert_eq!(ended.code, 0, "{}", ended.err);
        keys.extend(ended.out.lines().map(str::to_owned));
    }
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert_eq!((all, keys.len()), (ALL, ALL), "each once");
}

#[test]
fn a_consumer_that_ended_is_gone_at_once() {
    let dir = Dir::with_example();
    let mut consumer = Running::start(dir.command(&["consume", EVENT]));
    consumer.until_said("consuming");
    let deadline = std::time::Instant::now() + common::DEADLINE;
    let members = || dir.json(&["groups", "show", EVENT, "my-product"])["members"].as_array().map(Vec::len);
    while members() != Some(1) {
        assert!(std::time::Instant::now() < deadline, "it never appeared");
    }
    assert_eq!(dir.failure(&["topics", "delete", EVENT]).1["code"], "IN_USE");
    consumer.signal(Signal::TERM);
    assert_eq!(common::code(consumer.status()), 0);
    assert_eq!(members(), Some(0));
    dir.ok(&["topics", "delete", EVENT]);
}

#[test]
fn what_a_command_buried_is_edited_and_reprocessed() {
    let dir = Dir::with_example();
    let id = produce(&dir, "k");
    let script = r#"grep -q '"fixed":true' || { echo "field missing" >&2; exit 1; }"#;
    dir.ok(&["consume", EVENT, "--exec", script, "--retry", "none", "--max", "1"]);
    let dead = dir.json(&["dead", "list"]);
    let letter = &dead["deadLetters"][0];
    assert_eq!((letter["process_id"].as_str(), letter["error"].as_str()), (Some(&*id), Some("field missing")), "{dead}");
    assert_eq!((letter["reason"].as_str(), letter["attempts"].as_u64()), (Some("attempts_exhausted"), Some(1)), "{dead}");
    dir.ok(&["dead", "edit", &id, "--payload", r#"{"orderId":"k","fixed":true}"#]);
    let done = dir.json(&["dead", "reprocess", "--id", &id, "--yes"]);
    assert_eq!((done["matched"].as_u64(), done["reprocessed"].as_u64()), (Some(1), Some(1)), "{done}");
    let out = dir.ok(&["consume", EVENT, "--exec", script, "--max", "1", "--output", "json"]);
    let run: Value = serde_json::from_str(out.trim()).expect("a run");
    assert_eq!((run["verdict"].as_str(), run["process_id"].as_str(), run["attempt"].as_u64()), (Some("done"), Some(&*id), Some(1)));
    assert_eq!(dir.json(&["groups", "show", EVENT, "my-product"])["dead"], 0);
    let shown = dir.json(&["jobs", "show", done["job_id"].as_str().expect("a job")]);
    assert_eq!((shown["state"].as_str(), shown["done"].as_u64()), (Some("done"), Some(1)));
}

#[test]
fn the_background_work_runs_alone() {
    let dir = Dir::with_example();
    dir.ok(&["groups", "create", EVENT, "late"]);
    dir.ok(&["produce", EVENT, "{}", "--delay", "500ms"]);
    let mut worker = Running::start(dir.command(&["run"]));
    worker.until_said("running on");
    // Nobody else is at work when it falls due; what is there afterwards, the worker has published.
    worker.works_quietly_for(std::time::Duration::from_secs(2));
    worker.signal(Signal::TERM);
    assert_eq!(common::code(worker.status()), 0);
    assert_eq!(dir.json(&["groups", "show", EVENT, "late"])["ready"], 1);
}
