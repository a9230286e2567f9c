//! The command on a PostgreSQL store: one catalogue, one lot and one set of idempotency keys for all processes.

mod common;

use std::process::Command;

use common::{Dir, EVENT, Running, orders, setting};
use rustix::process::Signal;

/// A directory of this host, and a schema of the server.
struct Bed {
    dir: Dir,
    server: String,
    schema: String,
}

impl Bed {
    fn new() -> Self {
        let dir = Dir::new();
        let name: String = dir.path().file_name().expect("a name").to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
        let bed = Bed { dir, server: setting("POSTGRES"), schema: format!("cli_{}", name.to_lowercase()) };
        bed.ok(&["init", "--example"]);
        bed
    }

    /// With a password, which the server does not ask for, and which must not be seen.
    fn url(&self) -> String {
        format!("{}?schema={}", self.server.replacen("trunkline@", "trunkline:hunter2@", 1), self.schema)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.dir.command(args);
        command.env("TRUNKLINE_URL", self.url()).env("TRUNKLINE_DATA_DIR", self.dir.path().join("host")).env_remove("TRUNKLINE_MASTER_KEY");
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }

    fn ok(&self, args: &[&str]) -> String {
        let ended = self.start(args).ended();
        assert_eq!(ended.code, 0, "{args:?}: {}{}", ended.out, ended.err);
        assert!(!ended.out.contains("hunter2") && !ended.err.contains("hunter2"), "{args:?} shows the password");
        ended.out
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        let _ = Command::new("psql").args(["-q", "-c", &drop, &self.server]).env("PGOPTIONS", "--client-min-messages=error").status();
    }
}

#[test]
fn what_one_process_writes_another_reads_and_no_password_is_shown() {
    let bed = Bed::new();
    assert!(!bed.dir.path().join(".trunkline").exists(), "what belongs to this host lies where it was told to");
    bed.ok(&["produce", EVENT, r#"{"orderId":"1"}"#]);
    let seen = bed.ok(&["consume", EVENT, "--idle-exit", "1s", "--output", "json"]);
    assert_eq!(seen.lines().count(), 1, "{seen}");
    let doctor = bed.ok(&["doctor", "-vvvv"]);
    assert!(doctor.contains("postgres://"), "{doctor}");
    // Given on the command line, and wrong.
    let wrong = bed.dir.run(&["products", "list", "--url", "postgres://me:hunter2@127.0.0.1:1/db", "-vvvv"]);
    assert_eq!(wrong.code, 5, "{}", wrong.err);
    assert!(!wrong.err.contains("hunter2") && wrong.err.contains("STORE_FAILED"), "{}", wrong.err);
}

#[test]
fn of_a_thousand_keys_from_two_processes_each_is_published_once() {
    let bed = Bed::new();
    let file = orders(&bed.dir, 1_000);
    let args = ["produce", EVENT, "--file", &file, "--idempotency-key-from", "orderId"];
    let (a, b) = (bed.start(&args), bed.start(&args));
    for ended in [a.ended(), b.ended()] {
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    let seen = bed.ok(&["consume", EVENT, "--idle-exit", "2s", "--output", "json"]);
    assert_eq!(seen.lines().count(), 1_000);
}

#[test]
fn what_a_killed_consumer_left_waiting_is_handled_by_another() {
    let bed = Bed::new();
    let file = orders(&bed.dir, 20);
    bed.ok(&["produce", EVENT, "--file", &file]);
    let failed = bed.dir.path().join("failed");
    let fail = format!("cat >/dev/null; echo x >> {}; exit 1", failed.display());
    let killed = bed.start(&["consume", EVENT, "--retry", "20s", "--no-breaker", "--exec", &fail]);
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while waiting(&bed) < 20 {
        assert!(std::time::Instant::now() < deadline, "not all of them wait: {}", waiting(&bed));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    killed.signal(Signal::KILL);
    drop(killed);
    let seen = bed.ok(&["consume", EVENT, "--max", "20", "--output", "json"]);
    assert_eq!(seen.lines().count(), 20);
    assert_eq!(waiting(&bed), 0);
}

#[test]
fn a_store_moves_from_a_directory_to_the_server_and_back_by_a_file() {
    let bed = Bed::new();
    let dir = Dir::with_example();
    dir.ok(&["produce", EVENT, r#"{"orderId":"1"}"#, "--delay", "1h", "--idempotency-key", "k"]);
    let from = format!("sqlite:{}", dir.path().join(".trunkline").display());
    let run = |args: &[&str]| {
        // Both belong to this host, so they share its master key.
        let mut command = dir.command(args);
        command.env("TRUNKLINE_DATA_DIR", dir.path().join(".trunkline"));
        Running::start(command).ended()
    };
    let to = format!("{}_moved", bed.url());
    let moved = run(&["store", "migrate", "--from", &from, "--to", &to, "--output", "json"]);
    assert_eq!(moved.code, 0, "{}", moved.err);
    assert!(moved.out.contains("\"entries\": 1") && moved.out.contains("\"keys\": 1"), "{}", moved.out);
    let again = run(&["store", "migrate", "--from", &from, "--to", &to]);
    assert!(again.code != 0 && again.err.contains("--force") && !again.err.contains("hunter2"), "{}", again.err);
    assert_eq!(run(&["store", "migrate", "--from", &from, "--to", &to, "--force"]).code, 0);
    assert_eq!(run(&["store", "backup", "copy.ndjson", "--url", &to]).code, 0);
    assert_eq!(run(&["store", "restore", "copy.ndjson", "--force"]).code, 0);
    assert!(run(&["topics", "list", "--url", &to]).out.contains(EVENT));
    let drop = format!("DROP SCHEMA {}_moved CASCADE", bed.schema);
    let dropped = Command::new("psql").args(["-q", "-c", &drop, &setting("POSTGRES")]).output().expect("psql");
    assert!(dropped.status.success());
}

/// How many entries of the lot wait.
fn waiting(bed: &Bed) -> u64 {
    let sql = format!("SELECT count(*) FROM {}.lot WHERE state = 0", bed.schema);
    let out = Command::new("psql").args(["-X", "-At", "-c", &sql, &setting("POSTGRES")]).output().expect("psql");
    String::from_utf8_lossy(&out.stdout).trim().parse().expect("a number")
}
