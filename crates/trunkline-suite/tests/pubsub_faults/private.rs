//! A test server of a test's own, to be stopped and started anew: other tests never see it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use trunkline_suite::server::setting;

/// See the module. Killed when it is dropped.
pub(crate) struct Private {
    address: String,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Private {
    pub(crate) async fn start(arguments: &[&str]) -> Private {
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        let server = Private { address, arguments, child: Mutex::new(None) };
        server.begin().await;
        server
    }

    fn program() -> Command {
        let mut command = Command::new(setting("PUBSUB_PROGRAM"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    async fn begin(&self) {
        let child = Self::program().args(["-address", &self.address]).args(&self.arguments).spawn();
        *self.child.lock() = Some(child.expect("the test server cannot be started: `scripts/brokers fetch pubsub` builds it"));
        let end = Instant::now() + Duration::from_secs(60);
        while !Self::program().args(["-address", &self.address, "-ask"]).status().is_ok_and(|status| status.success()) {
            assert!(Instant::now() < end, "the test server does not answer at {}", self.address);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL, then started again: it has forgotten everything.
    pub(crate) async fn restart(&self) {
        self.kill();
        self.begin().await;
    }

    fn kill(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.lock().as_ref().and_then(|child| Pid::from_raw(child.id().try_into().expect("a pid"))).expect("it runs");
        kill_process(pid, signal).expect("a signal");
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.kill();
    }
}
