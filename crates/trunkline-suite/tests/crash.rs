//! Every crash of recorded runs of the embedded broker: what was confirmed is there, and in order.
//!
//! `TRUNKLINE_CRASH_RUNS` says how many runs are recorded (1).

use std::time::Instant;

use trunkline_suite::recording_disk::Faults;
use trunkline_suite::recording_disk::run::{Report, Sends, record, record_many, replay};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn crashes_of(seed: u64, rounds: usize, mixed: u64, faults: Faults) -> (Report, Sends) {
    let (disk, sends) = runtime().block_on(record(seed, rounds, faults)).expect("a run");
    (replay(disk.tape(), mixed, 2), sends)
}

#[test]
fn what_was_confirmed_survives_every_crash() {
    let runs = std::env::var("TRUNKLINE_CRASH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let begun = Instant::now();
    let mut crashes = 0;
    for seed in 0..runs {
        let (report, sends) = crashes_of(seed, 60, 4, Faults::default());
        assert!(report.failures.is_empty(), "run {seed}:\n{}", report.failures.join("\n"));
        assert_eq!(sends.ambiguous + sends.refused, 0, "a send failed on a sound disk");
        crashes += report.crashes;
    }
    let took = begun.elapsed().as_secs_f64();
    println!("{crashes} crashes in {took:.1} s, {:.0} a second", crashes as f64 / took);
    assert!(crashes >= 10_000 * runs as usize, "only {crashes} crashes");
}

#[test]
fn four_senders_at_once_survive_every_crash() {
    let disk = runtime().block_on(record_many(12)).expect("a run");
    let report = replay(disk.tape(), 4, 2);
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

#[test]
fn failed_syncs_confirm_nothing_that_a_crash_can_take() {
    for every in [2, 3, 7] {
        let (report, sends) = crashes_of(100 + every, 30, 3, Faults { fail_every: Some(every), ..Faults::default() });
        assert!(report.failures.is_empty(), "every {every}th sync fails:\n{}", report.failures.join("\n"));
        assert!(sends.ambiguous > 0, "every {every}th sync failed, and no send was said to be ambiguous: {sends:?}");
    }
}

#[test]
fn a_disk_that_does_not_sync_is_caught() {
    let (report, sends) = crashes_of(7, 10, 2, Faults { skip_syncs: true, ..Faults::default() });
    assert!(sends.confirmed > 0);
    assert!(!report.failures.is_empty(), "confirms before fsync, and no crash showed it");
}

#[test]
fn a_sync_error_that_is_ignored_is_caught() {
    let (report, sends) = crashes_of(8, 20, 2, Faults { fail_every: Some(3), hide_failures: true, ..Faults::default() });
    assert_eq!(sends.ambiguous, 0, "the errors are hidden");
    assert!(!report.failures.is_empty(), "an fsync error was ignored, and no crash showed it");
}
