//! A Redis of a test's own, to be configured, killed and filled: other tests never see it.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline::Result;
use trunkline::config::{ProviderConfig, ProviderKind, RedisConfig};
use trunkline::provider::Provider;
use trunkline::provider::redis::{Options, Redis};

/// With every confirmed write on the disk.
pub(crate) const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];
/// Gone when it dies.
pub(crate) const MEMORY: &[&str] = &["--appendonly", "no"];
/// Short, so that what waits for a lease is quick.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// See the module. Killed when it is dropped.
pub(crate) struct Private {
    port: u16,
    dir: TempDir,
    settings: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Private {
    pub(crate) async fn start(settings: &[&str]) -> Private {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let settings = settings.iter().map(|text| (*text).to_owned()).collect();
        let server = Private { port, dir: tempfile::tempdir().expect("a directory"), settings, child: Mutex::new(None) };
        server.begin().await;
        server
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn begin(&self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &self.port.to_string(), "--dir"])
            .arg(self.dir.path())
            .args(&self.settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("redis-server cannot be started: `scripts/brokers fetch redis` installs it");
        *self.child.lock() = Some(child);
        let end = Instant::now() + Duration::from_secs(60);
        while self.cli(&["PING"]) != "PONG" {
            let said = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "redis-server does not answer: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGKILL, then started again with what it has on disk.
    pub(crate) async fn restart(&self) {
        self.kill();
        self.begin().await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.lock().as_ref().and_then(|child| Pid::from_raw(child.id().try_into().expect("a pid"))).expect("it runs");
        kill_process(pid, signal).expect("a signal");
    }

    /// What redis-cli says to a command: a client that knows nothing of Trunkline.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).stdin(Stdio::null()).output();
        let output = output.expect("redis-cli cannot be run: `scripts/brokers fetch redis` installs it");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The same, where the answer is a number.
    pub(crate) fn count(&self, args: &[&str]) -> usize {
        let said = self.cli(args);
        said.parse().unwrap_or_else(|_| panic!("{args:?} was answered {said}"))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn config(&self) -> Value {
        json!({ "url": format!("redis://{}", self.address()) })
    }

    pub(crate) async fn open(&self) -> Arc<dyn Provider> {
        open(self.config(), short()).await.expect("a connection")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn short() -> Options {
    Options { lease: LEASE, revoke: Duration::from_millis(1500), ..Options::default() }
}

pub(crate) fn parsed(config: &Value) -> RedisConfig {
    match ProviderConfig::parse(ProviderKind::Redis, config).expect("a config") {
        ProviderConfig::Redis(config) => config,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn open(config: Value, options: Options) -> Result<Arc<dyn Provider>> {
    Ok(Arc::new(Redis::with_options(&parsed(&config), options).await?))
}
