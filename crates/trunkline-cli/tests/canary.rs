//! Credentials with values that occur nowhere else, put in by every way there is. Then everything that Trunkline wrote is searched
//! for them: the data directory with its log of changes, output, errors, logs at their loudest, command lines.

mod common;

use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use common::{Dir, EVENT, Ended, Running};
use rustix::process::Signal;

/// What must be found nowhere, and everything that is searched for it.
struct Hunt {
    dir: Dir,
    /// Credentials lie in files of their own, apart from what is searched.
    inputs: Dir,
    canaries: Vec<String>,
    /// Opens the workspace.
    key: Option<String>,
    said: String,
}

impl Hunt {
    /// A value that occurs nowhere else.
    fn canary(&mut self, of: &str) -> String {
        let value = format!("canary-{of}-{:016x}", unique());
        self.canaries.push(value.clone());
        value
    }

    fn start(&self, args: &[&str], piped: bool) -> Running {
        let mut command = self.dir.command(&[args, &["-vvvv"]].concat());
        command.env("TRUNKLINE_LOG", "trace").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
        if let Some(key) = &self.key {
            command.env("TRUNKLINE_ACCESS_KEY", key);
        }
        if piped {
            command.stdin(Stdio::piped());
        }
        Running::start(command)
    }

    /// Runs to the end as loudly as it can; what it said is searched later.
    fn run(&mut self, args: &[&str], input: &str) -> Ended {
        let mut running = self.start(args, !input.is_empty());
        self.look_at_command_line(&running);
        if let Some(mut stdin) = running.stdin.take() {
            std::io::Write::write_all(&mut stdin, input.as_bytes()).expect("standard input");
        }
        let ended = running.ended();
        self.said.push_str(&format!("{args:?}\n{}{}", ended.out, ended.err));
        ended
    }

    fn ok(&mut self, args: &[&str], input: &str) -> String {
        let ended = self.run(args, input);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.err);
        ended.out
    }

    fn look_at_command_line(&self, running: &Running) {
        let line = std::fs::read(format!("/proc/{}/cmdline", running.pid())).unwrap_or_default();
        self.search("the command line", &line);
    }

    /// The canary that stands there, as it is or written in another way.
    fn find(&self, bytes: &[u8]) -> Option<&str> {
        let stands = |form: &str| {
            // Files are made longer than what is in them: what is empty needs no search.
            let mut parts = bytes.split(|byte| *byte == 0).filter(|part| part.len() >= form.len());
            parts.any(|part| part.windows(form.len()).any(|window| window == form.as_bytes()))
        };
        self.canaries.iter().find(|canary| stands(canary) || stands(&STANDARD_NO_PAD.encode(canary))).map(String::as_str)
    }

    fn search(&self, place: &str, bytes: &[u8]) {
        let found = self.find(bytes).map(|canary| &canary[..canary.len().min(14)]);
        assert_eq!(found, None, "it stands in {place}");
    }

    fn search_files(&self, dir: &Path) -> usize {
        let mut files = 0;
        for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                files += self.search_files(&path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                self.search(&path.display().to_string(), &bytes);
                files += 1;
            }
        }
        files
    }
}

fn unique() -> u64 {
    // As unique as a test needs it: a name that the system gave, hashed.
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

#[test]
fn no_credential_is_written_anywhere() {
    let mut hunt = Hunt { dir: Dir::new(), inputs: Dir::new(), canaries: Vec::new(), key: None, said: String::new() };
    hunt.ok(&["init", "--example"], "");

    // The first key, and from then on everything with it.
    let admin = hunt.dir.run(&["keys", "create", "--role", "admin"]).out.trim().to_owned();
    hunt.canaries.push(admin.splitn(3, '_').last().expect("a secret part").to_owned());
    hunt.key = Some(admin);
    let made = {
        let mut command = hunt.dir.command(&["keys", "create", "--role", "viewer", "--name", "v", "--output", "json"]);
        command.env("TRUNKLINE_ACCESS_KEY", hunt.key.clone().expect("a key"));
        Running::start(command).ended()
    };
    let viewer: serde_json::Value = serde_json::from_str(&made.out).expect("JSON");
    let text = viewer["key"].as_str().expect("its text").to_owned();
    hunt.canaries.push(text.splitn(3, '_').last().expect("a secret part").to_owned());

    // Secrets by every way in, also such as are refused.
    let (piped, filed, rotated, refused) = (hunt.canary("stdin"), hunt.canary("file"), hunt.canary("rotated"), hunt.canary("refused"));
    hunt.ok(&["secrets", "create", "PIPED"], &format!("{piped}\n"));
    let file = hunt.inputs.write("secret.txt", &filed);
    hunt.ok(&["secrets", "create", "FILED", "--from-file", &file, "--all-products", "--output", "json"], "");
    hunt.ok(&["secrets", "rotate", "PIPED"], &rotated);
    assert_ne!(hunt.run(&["secrets", "create", "PIPED"], &refused).code, 0);
    assert_ne!(hunt.run(&["secrets", "create", "not a tag"], &refused).code, 0);
    hunt.ok(&["secrets", "list"], "");
    hunt.ok(&["secrets", "list", "--output", "json"], "");

    // Configs with credentials, and one that refers to secrets and is opened.
    let (sasl, url, broken) = (hunt.canary("sasl"), hunt.canary("url"), hunt.canary("broken"));
    for (name, provider, config) in [
        (
            "k",
            "KAFKA",
            serde_json::json!({ "brokers": ["127.0.0.1:1"], "sasl": { "mechanism": "plain", "username": "u", "password": sasl } }),
        ),
        ("r", "RABBITMQ", serde_json::json!({ "url": format!("amqp://u:{url}@127.0.0.1:1/v") })),
    ] {
        let file = hunt.inputs.write(&format!("{name}.json"), config.to_string());
        hunt.ok(&["brokers", "create", name, "--on", &format!("prd={provider}"), "--config", &format!("prd={file}")], "");
        hunt.ok(&["topics", "create", &format!("{name}:t")], "");
        assert_ne!(hunt.run(&["produce", &format!("{name}:t"), "{}", "--timeout", "1s"], "").code, 0, "its client is not compiled in");
        hunt.ok(&["brokers", "show", name, "--output", "json"], "");
    }
    let wrong = serde_json::json!({ "brokers": 7, "sasl": { "mechanism": "nonsense", "password": broken, "pasword": broken } });
    let wrong = hunt.inputs.write("wrong.json", wrong.to_string());
    assert_ne!(hunt.run(&["brokers", "create", "w", "--on", "prd=KAFKA", "--config", &format!("prd={wrong}")], "").code, 0);
    let cut = hunt.inputs.write("cut.json", format!("{{\"password\": \"{broken}\""));
    assert_ne!(hunt.run(&["brokers", "create", "w", "--on", "prd=KAFKA", "--config", &format!("prd={cut}")], "").code, 0);
    let refers = hunt.inputs.write("refers.json", r#"{ "endpoint": "http://$Secret{FILED}:$Secret{PIPED}@nowhere" }"#);
    hunt.ok(&["brokers", "update", "order-events", "--on", "prd=EMBEDDED", "--config", &format!("prd={refers}")], "");

    // Work, while the store's log of changes is there and a consumer is open.
    let mut consumer = hunt.start(&["consume", EVENT], false);
    consumer.until_said("consuming");
    hunt.look_at_command_line(&consumer);
    hunt.ok(&["produce", EVENT, r#"{"n":1}"#], "");
    assert!(consumer.line().is_some(), "it came through");
    hunt.ok(&["secrets", "rotate", "FILED", "--from-file", &hunt.inputs.write("new.txt", &piped), "--all-products"], "");
    hunt.ok(&["produce", EVENT, r#"{"n":2}"#], "");
    assert!(consumer.line().is_some(), "it came through the new connection or the old one");
    for args in [
        &["doctor"][..],
        &["doctor", "--output", "json"],
        &["brokers", "list", "--output", "json"],
        &["topics", "list", "--output", "json"],
        &["keys", "list", "--output", "json"],
        &["keys", "list"],
        &["audit", "list", "--output", "json"],
        &["audit", "verify"],
        &["dashboard", "--output", "json"],
        &["messages", "query", "--output", "json"],
        &["messages", "consumers", "--output", "json"],
        &["apply", "--dry-run"],
        &["secrets", "rekey", "--output", "json"],
        &["secrets", "delete", "FILED", "--all-products"],
    ] {
        let ended = hunt.run(args, "");
        assert!(ended.code == 0 || args[0] == "doctor", "{args:?}: {}", ended.err);
    }
    assert_ne!(hunt.run(&["produce", EVENT, "{}"], "").code, 0, "its secret is gone");
    assert!(hunt.search_files(&hunt.dir.path().join(".trunkline")) > 5, "the data directory, and its log of changes");
    consumer.signal(Signal::INT);
    let ended = consumer.ended();
    hunt.said.push_str(&format!("{}{}", ended.out, ended.err));

    // A key that is wrong, or stands where an id should, is not repeated either.
    let wrong = format!("tl_0123456789abcdef_{}", hunt.canary("wrongkey"));
    let right = hunt.key.replace(wrong);
    assert_ne!(hunt.run(&["keys", "list"], "").code, 0);
    hunt.key = right;
    assert_ne!(hunt.run(&["products", "show", "nothing"], "").code, 0);
    hunt.search_files(hunt.dir.path());
    // What does hold one is found.
    assert_eq!(hunt.find(&std::fs::read(&file).expect("a secret in a file")), Some(filed.as_str()));
    let said = std::mem::take(&mut hunt.said);
    assert!(said.contains("trunkline") && said.len() > 10_000, "it was loud: {} bytes", said.len());
    hunt.search("what was said", said.as_bytes());
}
