//! The real servers under test, as `scripts/brokers` started them.

use std::process::Stdio;
use std::time::Duration;

/// A server that `scripts/brokers` started. Other tests use it at the same time, unless it is the test's own to hurt.
#[derive(Debug, Clone)]
pub struct Server {
    name: &'static str,
}

/// What can be done to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// SIGKILL.
    Kill,
    /// SIGKILL, then started again with the same port and data; over when it answers.
    Restart,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

/// A server that restarts and reads its journal on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

impl Server {
    /// The server of that name of `scripts/brokers`.
    #[must_use]
    pub fn named(name: &'static str) -> Server {
        Server { name }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Does it, and returns when it is done.
    ///
    /// # Panics
    /// If the script fails: the test has no server then.
    pub async fn act(&self, act: Act) {
        let word = match act {
            Act::Kill => "kill",
            Act::Restart => "restart",
            Act::Stop => "stop",
            Act::Continue => "cont",
        };
        let script = setting("BROKERS");
        let mut command = tokio::process::Command::new(&script);
        command.args([word, self.name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("`{script} {word} {}` did not end within {LIMIT:?}", self.name));
        let output = output.unwrap_or_else(|e| panic!("`{script}` cannot be run: {e}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{script} {word} {}` failed: {said}", self.name);
    }
}

/// What `scripts/brokers` printed as `TRUNKLINE_TEST_…`.
///
/// # Panics
/// If it is not set: a test without its server fails, it is never passed over.
#[must_use]
pub fn setting(name: &str) -> String {
    let variable = format!("TRUNKLINE_TEST_{name}");
    std::env::var(&variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: start the servers with `eval \"$(scripts/brokers up all)\"`, or run `scripts/test`, which does it")
    })
}
