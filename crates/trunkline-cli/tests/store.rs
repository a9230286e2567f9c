//! A data directory that cannot be used: read-only, damaged, full. Nothing is destroyed, and the error says what to do.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Dir, EVENT};

/// A small file system of its own, unmounted when dropped. Where mounting is not allowed the test fails and says so.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(at: &'a Path, options: &str) -> Self {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
        assert!(done.is_ok_and(|status| status.success()), "a tmpfs cannot be mounted here: run the tests as root");
        Mount(at)
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "remount {options}");
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_read_only_directory_is_named() {
    let dir = Dir::new();
    let mount = Mount::new(dir.path(), "size=64m");
    dir.ok(&["init", "--example"]);
    dir.ok(&["produce", EVENT, r#"{"a":1}"#]);
    mount.remount("ro");
    let (code, error) = dir.failure(&["produce", EVENT, r#"{"a":2}"#]);
    assert_eq!((code, error["code"].as_str()), (5, Some("STORE_FAILED")), "{error}");
    assert!(error["details"]["next"].is_string(), "{error}");
    mount.remount("rw");
    assert_eq!(dir.consume(&[]).len(), 1, "it works again");
}

#[test]
fn a_data_file_of_random_bytes_stays_as_it_is() {
    let dir = Dir::with_example();
    let data = dir.path().join(".trunkline");
    let database = std::fs::read_dir(&data)
        .expect("the data directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0")))
        .expect("a database");
    let junk: Vec<u8> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(&database, &junk).expect("damaged");
    for side in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{side}", database.display()));
    }
    let (code, error) = dir.failure(&["produce", EVENT, "{}"]);
    assert_eq!((code, error["code"].as_str()), (5, Some("STORE_FAILED")), "{error}");
    assert!(error["details"]["next"].is_string(), "{error}");
    assert_eq!(dir.run(&["doctor"]).code, 5);
    assert!(std::fs::read(&database).expect("the file") == junk, "it was touched");
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let dir = Dir::new();
    let mount = Mount::new(dir.path(), "size=24m");
    dir.ok(&["init", "--example"]);
    let line = format!("{{\"x\":\"{}\"}}\n", "y".repeat(60_000));
    let file = std::env::temp_dir().join(format!("trunkline-full-{}.ndjson", std::process::id()));
    std::fs::write(&file, line.repeat(600)).expect("a file");
    let (code, error) = dir.failure(&["produce", EVENT, "--file", &file.display().to_string(), "--in-flight", "20", "--timeout", "3s"]);
    let _ = std::fs::remove_file(&file);
    assert!(matches!(error["code"].as_str(), Some("PUBLISH_FAILED" | "STORE_FAILED")), "{error}");
    assert!(matches!(code, 5 | 6), "{error}");
    let confirmed = error["details"]["confirmed"].as_u64().expect("an account");
    assert!(confirmed > 0, "{error}");
    mount.remount("size=200m");
    let got = dir.consume(&["--idle-exit", "3s"]).len() as u64;
    assert!(got >= confirmed, "{got} of {confirmed} confirmed messages are there");
    dir.ok(&["produce", EVENT, "{}"]);
    assert_eq!(dir.consume(&[]).len(), 1, "it goes on");
}

#[test]
fn doctor_says_that_all_is_well() {
    let dir = Dir::with_example();
    let report = dir.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");
    let areas: Vec<&str> = report["checks"].as_array().expect("checks").iter().filter_map(|check| check["area"].as_str()).collect();
    assert!(
        areas.contains(&"store") && areas.contains(&"file") && areas.iter().any(|area| area.starts_with("broker order-events/prd")),
        "{areas:?}"
    );
    assert_eq!(dir.run(&["doctor", "nothing"]).code, 3);
}
