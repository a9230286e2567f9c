//! Schedules on the command line: two processes on one data directory fire each due time once, a killed one loses none.

mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::{Dir, EVENT, Running};
use rustix::process::Signal;
use serde_json::Value;

const PAYLOAD: &str = "{\"orderId\":\"1\",\"amount\":1}";

fn show(dir: &Dir, id: &str) -> Value {
    dir.json(&["schedules", "show", id])
}

/// Waits until a schedule has ended.
fn until_done(dir: &Dir, id: &str) -> Value {
    let deadline = Instant::now() + common::DEADLINE;
    loop {
        let schedule = show(dir, id);
        if schedule["state"] == "done" {
            return schedule;
        }
        assert!(Instant::now() < deadline, "{schedule}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn dispatch(dir: &Dir, flags: &[&str]) -> String {
    let dispatched = dir.json(&[&["dispatch", EVENT, PAYLOAD], flags].concat());
    assert_eq!(dispatched["scope"], "host");
    dispatched["schedule_id"].as_str().expect("an id").to_owned()
}

fn runner(dir: &Dir) -> Running {
    let mut running = Running::start(dir.command(&["run"]));
    running.until_said("running on");
    running
}

#[test]
fn two_processes_fire_each_due_time_once_and_a_killed_one_loses_none() {
    let dir = Dir::with_example();
    let (first, second) = (runner(&dir), runner(&dir));
    let id = dispatch(&dir, &["--every", "1s", "--limit", "5", "--key", "k", "--header", "tenant=a"]);
    while show(&dir, &id)["fired"].as_u64() < Some(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // What it was doing is taken over by the other one, or by whoever comes next.
    first.signal(Signal::KILL);
    let done = until_done(&dir, &id);
    drop((first, second));
    assert_eq!(done["fired"], 5, "{done}");
    let messages = dir.consume(&["--from", "earliest"]);
    let ids: HashSet<&str> = messages.iter().map(|message| message["process_id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), 5, "each due time has one id: {messages:?}");
    assert!(ids.contains(done["last_process_id"].as_str().expect("an id")), "{done}");
}

#[test]
fn a_schedule_is_shown_paused_resumed_and_cancelled() {
    let dir = Dir::with_example();
    let id = dispatch(&dir, &["--cron", "0 9 * * MON-FRI", "--tz", "Europe/Berlin"]);
    let list = dir.json(&["schedules", "list"]);
    assert_eq!((&list["total"], &list["schedules"][0]["schedule"]["cron"]), (&1.into(), &"0 9 * * MON-FRI".into()));
    assert_eq!(show(&dir, &id)["message"]["orderId"], "1");
    assert!(dir.ok(&["schedules", "list"]).contains("0 9 * * MON-FRI"));
    assert_eq!(dir.json(&["schedules", "pause", &id])["state"], "paused");
    assert!(dir.json(&["schedules", "resume", &id])["nextAt"].as_u64().is_some());
    assert_eq!(dir.json(&["schedules", "cancel", &id])["state"], "cancelled");
    assert_eq!(dir.json(&["schedules", "list"])["total"], 0);
    assert_eq!(dir.json(&["schedules", "list", "--all"])["total"], 1);
}

#[test]
fn what_is_wrong_is_said_with_its_field() {
    let dir = Dir::with_example();
    let field = |flags: &[&str]| dir.failure(&[&["dispatch", EVENT, PAYLOAD], flags].concat()).1["details"]["field"].clone();
    assert_eq!(field(&["--cron", "99 * * * *"]), "cron");
    assert_eq!(field(&["--cron", "0 9 * * *", "--tz", "Mars/Base"]), "tz");
    assert_eq!(field(&["--every", "10ms"]), "every");
    assert_eq!(field(&["--at", "tomorrow"]), "at");
    assert_eq!(dir.run(&["dispatch", EVENT, PAYLOAD]).code, 2, "a time is needed");
    let (_, error) = dir.failure(&["schedules", "cancel", "0198a3c2-7d1e-7b4f-9a60-2f1d5c3b8e97"]);
    assert_eq!(error["code"], "SCHEDULE_NOT_FOUND");
}
