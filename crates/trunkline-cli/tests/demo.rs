//! The demo as a new user meets it: it is green, quick, and its last three lines work.

mod common;

use std::time::{Duration, Instant};

use common::{Run, run, run_with};

/// A full demo, as `trunkline demo` runs it.
#[test]
fn the_demo_is_green_and_its_next_commands_work() {
    let parent = tempfile::tempdir().expect("tempdir");
    let data = parent.path().join("demo");
    let since = Instant::now();
    let demo = run(&["demo", "--keep", data.to_str().expect("utf-8")]);
    assert!(demo.ok, "{demo:#?}");
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    assert_eq!(demo.out.lines().filter(|line| line.starts_with("ok ")).count(), 3, "{}", demo.out);
    assert!(!demo.out.contains("FAILED"), "{}", demo.out);
    let commands: Vec<&str> = demo.out.lines().map(str::trim).filter(|line| line.contains(" --data ")).collect();
    assert_eq!(commands.len(), 3, "{}", demo.out);
    for command in commands {
        let done = shell(command);
        assert!(done.ok && !done.out.trim().is_empty(), "{command}: {done:#?}");
    }
}

#[test]
fn the_summary_is_one_object_and_agrees_with_the_history() {
    let demo = run(&["demo", "--rounds", "2", "--output", "json"]);
    assert!(demo.ok, "{demo:#?}");
    let summary = demo.json();
    assert_eq!((&summary["ok"], &summary["produced"]), (&true.into(), &120.into()));
    let groups = summary["groups"].as_array().expect("groups");
    for group in groups {
        let (handled, dead) = (group["handled"].as_u64().expect("handled"), group["deadLetters"].as_u64().expect("dead"));
        assert_eq!(handled + dead, 120, "{group}");
    }
    let sum = |field: &str| groups.iter().map(|group| group[field].as_u64().expect("a count")).sum::<u64>();
    let stats = &summary["stats"];
    assert_eq!((&stats["produced"], &stats["delivered"]), (&120.into(), &sum("handled").into()), "{stats}");
    assert_eq!((&stats["dead"], &stats["failedAttempts"]), (&sum("deadLetters").into(), &sum("failedRuns").into()), "{stats}");
    assert!(stats["runMs"]["p50"].as_f64().is_some_and(|ms| ms > 0.5), "{stats}");
    assert_eq!((&stats["waiting"], &stats["depth"], &stats["inFlight"]), (&0.into(), &0.into(), &0.into()), "{stats}");
    std::fs::remove_dir_all(summary["data"].as_str().expect("data")).expect("the demo's directory");
}

#[test]
fn any_deliveries_will_do() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("in.ndjson");
    let line = |kind: &str, n: u32| format!("{{\"event\":\"{kind}\",\"payload\":{{\"n\":{n},\"sender\":{{\"login\":\"ann\"}}}}}}\n");
    let text: String = (0..30).map(|n| line(["a", "b", "b", "c", "c", "c"][n as usize % 6], n)).collect();
    std::fs::write(&file, text).expect("written");
    let data = dir.path().join("data");
    let args = ["demo", "--input", file.to_str().expect("utf-8"), "--rounds", "3", "--output", "json", "--data", data.to_str().expect("utf-8")];
    let summary = run(&args).json();
    assert_eq!((&summary["kinds"], &summary["keys"], &summary["produced"]), (&3.into(), &3.into(), &90.into()));
    assert_eq!(summary["groups"][0]["deadLetters"], 15, "the rarest kind: {summary}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("mine"), "precious").expect("written");
    let refused = run(&["demo", "--keep", dir.path().to_str().expect("utf-8")]);
    assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{refused:#?}");
    assert!(refused.err.contains("has something in it already"), "{}", refused.err);
}

fn shell(command: &str) -> Run {
    run_with("sh", &["-c", command], None)
}
