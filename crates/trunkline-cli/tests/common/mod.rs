//! Drives the real binary, each command with a deadline.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// No command of these tests may take longer.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub ok: bool,
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    /// The JSON document on standard output.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The same, after it succeeded.
    #[track_caller]
    pub fn done(self) -> Self {
        assert!(self.ok, "{self:#?}");
        self
    }
}

/// Runs the binary.
pub fn run(args: &[&str]) -> Run {
    run_with(binary(), args, None)
}

/// Where the binary is.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_trunkline")
}

/// Runs a program with its standard input.
pub fn run_with(program: impl AsRef<OsStr>, args: &[&str], input: Option<&str>) -> Run {
    let mut child = start(program, args, if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).expect("its input");
    }
    let status = wait(&mut child);
    Run { ok: status == Some(0), code: status.unwrap_or(-1), out: out.join().expect("stdout"), err: err.join().expect("stderr") }
}

/// Starts a program in a place without a trunkline.yaml.
pub fn start(program: impl AsRef<OsStr>, args: &[&str], input: Stdio) -> Child {
    let mut command = Command::new(program);
    command.args(args).current_dir(std::env::temp_dir()).env_remove("TRUNKLINE_URL").env_remove("VISUAL").env_remove("EDITOR");
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn reader(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.expect("piped").read_to_string(&mut text).expect("UTF-8");
        text
    })
}

/// The exit code; ends what passes the deadline.
pub fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("waited") {
            return status.code();
        }
        if Instant::now() > until {
            child.kill().expect("ended");
            panic!("it did not end within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A workspace with product `shop`, an embedded broker `orders` and its topic `created`.
pub struct Shop {
    dir: tempfile::TempDir,
}

/// The topic of [`Shop`].
pub const EVENT: &str = "orders:created";

impl Shop {
    /// Makes it.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("trunkline.yaml");
        let text = "product: shop\nenv: dev\nbrokers:\n  - tag: orders\n    name: Orders\n    envs: [{ slug: dev, type: EMBEDDED }]\n    topics: [{ tag: created, name: Created }]\n";
        std::fs::write(&file, text).expect("written");
        let shop = Shop { dir };
        shop.run(&["apply", "-f", file.to_str().expect("utf-8"), "--yes"]).done();
        shop
    }

    /// Where its data lies.
    pub fn data(&self) -> String {
        self.path().join("data").display().to_string()
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a command on it.
    pub fn run(&self, args: &[&str]) -> Run {
        self.run_with(args, None)
    }

    /// Runs a command on it with its standard input.
    pub fn run_with(&self, args: &[&str], input: Option<&str>) -> Run {
        let data = self.data();
        run_with(binary(), &[args, &["--data", &data]].concat(), input)
    }

    /// Runs a command on it; its JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--output", "json"]].concat()).done().json()
    }

    /// Produces a message; its id.
    pub fn produce(&self, payload: &str, more: &[&str]) -> String {
        let receipt = self.json(&[&["produce", EVENT, payload], more].concat());
        receipt["process_id"].as_str().expect("an id").to_owned()
    }

    /// Lets every message of a group die.
    pub fn bury_all(&self, group: &str, reason: &str) {
        let command = format!("echo '{reason}' >&2; exit 65");
        self.consume(group, &command);
    }

    /// Handles what there is with a command.
    pub fn consume(&self, group: &str, command: &str) {
        self.run(&["consume", EVENT, "--group", group, "--exec", command, "--idle-exit", "1s"]).done();
    }
}
