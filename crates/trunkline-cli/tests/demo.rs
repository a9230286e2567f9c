//! The demo as a new user meets it: it is green, quick, and its last three lines work.

mod common;

use std::time::{Duration, Instant};

use common::{Dir, Running};
use rustix::process::Signal;

/// The demo says that it takes seconds.
const QUICK: Duration = Duration::from_secs(30);

#[test]
fn the_demo_is_green_and_its_next_commands_work() {
    let dir = Dir::new();
    let since = Instant::now();
    let demo = dir.run(&["demo", "--keep", "data"]);
    assert_eq!(demo.code, 0, "{}{}", demo.out, demo.err);
    assert!(since.elapsed() < QUICK, "{:?}", since.elapsed());
    assert_eq!(demo.out.lines().filter(|line| line.starts_with("ok ")).count(), 3, "{}", demo.out);
    assert!(!demo.out.lines().any(|line| line.starts_with("FAILED")), "{}", demo.out);
    let commands: Vec<&str> = demo.out.lines().map(str::trim).filter(|line| line.contains(" --data ")).collect();
    assert_eq!(commands.len(), 3, "{}", demo.out);
    for command in commands {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command]).env_remove("TRUNKLINE_URL").current_dir(dir.path());
        shell.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let done = Running::start(shell).ended();
        assert_eq!(done.code, 0, "{command}: {done:#?}");
        assert!(!done.out.trim().is_empty(), "{command}: {done:#?}");
    }
}

#[test]
fn the_summary_is_one_object_and_agrees_with_the_history() {
    let dir = Dir::new();
    let summary = dir.json(&["demo", "--rounds", "2", "--keep", "data"]);
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
}

#[test]
fn any_deliveries_will_do() {
    let dir = Dir::new();
    let line = |kind: &str, n: u32| format!("{{\"event\":\"{kind}\",\"payload\":{{\"n\":{n},\"sender\":{{\"login\":\"ann\"}}}}}}\n");
    let text: String = (0..30).map(|n| line(["a", "b", "b", "c", "c", "c"][n as usize % 6], n)).collect();
    let input = dir.write("in.ndjson", text);
    let summary = dir.json(&["demo", "--input", &input, "--rounds", "3", "--data", "data"]);
    assert_eq!((&summary["kinds"], &summary["keys"], &summary["produced"]), (&3.into(), &3.into(), &90.into()));
    assert_eq!(summary["groups"][0]["deadLetters"], 15, "the rarest kind: {summary}");
    assert!(dir.path().join("data").is_dir(), "--data says where");
}

#[test]
fn what_is_there_already_is_left_alone() {
    let dir = Dir::new();
    let file = dir.write("mine", "precious");
    let (code, error) = dir.failure(&["demo", "--keep", "."]);
    assert_eq!((code, &error["code"]), (2, &"INPUT_INVALID".into()), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing was added beside {file}");
}

#[test]
fn ctrl_c_ends_it() {
    let dir = Dir::new();
    let mut demo = Running::start(dir.command(&["demo", "--keep", "data", "--rounds", "10000"]));
    demo.until_said("produced");
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code, 130);
}
