//! A fresh directory, the real binary, and children that cannot outlive their test.
#![allow(dead_code, clippy::allow_attributes, unreachable_pub, reason = "every test file uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Nothing here takes longer, or it is stuck.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const EVENT: &str = "order-events:order-created";

/// A working directory of its own.
pub struct Dir(pub tempfile::TempDir);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Dir {
    pub fn new() -> Self {
        Dir(tempfile::tempdir().expect("a directory"))
    }

    /// With the quick example's broker and topic.
    pub fn with_example() -> Self {
        let dir = Dir::new();
        dir.ok(&["init", "--example"]);
        dir
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("trunkline"));
        command
            .args(args)
            .current_dir(self.path())
            .env_remove("TRUNKLINE_URL")
            .env_remove("TRUNKLINE_LOG")
            .env_remove("TRUNKLINE_ACCESS_KEY")
            .env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, b"")
    }

    /// Runs to the end with this standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut command = self.command(args);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut running = Running::start(command);
        if let Some(mut stdin) = running.stdin.take() {
            stdin.write_all(input).expect("standard input");
        }
        running.ended()
    }

    /// Runs to a good end; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}{}", ended.out, ended.err);
        ended.out
    }

    /// Runs to a good end with JSON output.
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["--output", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    /// Runs to a failure: its exit code, its error as JSON.
    pub fn failure(&self, args: &[&str]) -> (i32, Value) {
        let ended = self.run(&[args, &["--output", "json"]].concat());
        let last = ended.err.lines().last().unwrap_or_default();
        (ended.code, serde_json::from_str(last).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ended.err)))
    }

    /// Every message of an event (the example's, unless one comes first) that waits for a group, as `consume` prints it.
    pub fn consume(&self, args: &[&str]) -> Vec<Value> {
        let idle: &[&str] = if args.contains(&"--idle-exit") { &[] } else { &["--idle-exit", "1s"] };
        let event: &[&str] = if args.first().is_some_and(|first| !first.starts_with('-')) { &[] } else { &[EVENT] };
        let args = [&["consume", "--output", "json"], event, args, idle].concat();
        self.ok(&args).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

/// A child at work: killed when it is dropped.
pub struct Running {
    child: Child,
    pub stdin: Option<ChildStdin>,
    out: Receiver<String>,
    err: Receiver<String>,
    deadline: Instant,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary");
        let out = lines(child.stdout.take().expect("stdout"));
        let err = lines(child.stderr.take().expect("stderr"));
        Running { stdin: child.stdin.take(), child, out, err, deadline: Instant::now() + DEADLINE }
    }

    /// The next line of standard output; `None` at its end.
    pub fn line(&mut self) -> Option<String> {
        next(&self.out, self.deadline)
    }

    /// Waits until stderr says this.
    pub fn until_said(&mut self, text: &str) {
        while let Some(line) = next(&self.err, self.deadline) {
            if line.contains(text) {
                return;
            }
        }
        panic!("it never said: {text}");
    }

    /// Lets it work for this long: for what happens at a time, and says nothing when it does.
    pub fn works_quietly_for(&mut self, while_: Duration) {
        if let Ok(line) = self.err.recv_timeout(while_) {
            panic!("it said: {line}");
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("a signal");
    }

    /// Waits for the end.
    pub fn status(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < self.deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end and takes what is left of the output.
    pub fn ended(mut self) -> Ended {
        drop(self.stdin.take());
        let rest = |lines: &Receiver<String>, deadline| std::iter::from_fn(|| next(lines, deadline)).collect::<Vec<_>>().join("\n");
        let (out, err) = (rest(&self.out, self.deadline), rest(&self.err, self.deadline));
        let status = self.status();
        Ended { code: code(status), out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process that nobody here can wait for has ended.
pub fn until_gone(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "process {pid} still runs");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As a shell says it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn next(lines: &Receiver<String>, deadline: Instant) -> Option<String> {
    match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(line) => Some(line),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("no line within the deadline"),
    }
}

/// A file of so many orders, each with its own number.
pub fn orders(dir: &Dir, n: usize) -> String {
    let lines: String = (0..n).map(|i| format!("{{\"orderId\":\"{i}\",\"amount\":{i}.5}}\n")).collect();
    dir.write("orders.ndjson", lines)
}

/// What `scripts/brokers` printed as `TRUNKLINE_TEST_…`; a test without its server fails.
pub fn setting(name: &str) -> String {
    let variable = format!("TRUNKLINE_TEST_{name}");
    std::env::var(&variable).unwrap_or_else(|_| panic!("{variable} is not set: start the server with scripts/brokers, or run scripts/test"))
}

/// Plays the demo on a server, and removes what it made there.
pub fn demo_on(kind: &str, config: &Value) {
    let dir = Dir::new();
    let file = dir.write("server.json", serde_json::json!({ "type": kind, "config": config }).to_string());
    let summary = dir.json(&["demo", "--rounds", "3", "--keep", "data", "--broker", &format!("@{file}")]);
    assert_eq!((&summary["ok"], &summary["provider"], &summary["produced"]), (&true.into(), &kind.into(), &180.into()), "{summary}");
    let remove = summary["remove"]["command"].as_str().expect("a command");
    assert!(remove.contains("brokers delete webhooks --purge"), "{remove}");
    let removed = dir.run(&["brokers", "delete", "webhooks", "--purge", "--data", "data"]);
    assert_eq!(removed.code, 0, "{}{}", removed.out, removed.err);
}
