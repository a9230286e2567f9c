//! A connection test, stage by stage, ended by its deadline.

use std::time::Instant;

use tokio::net::{TcpStream, lookup_host};

use crate::error::{Code, Error, Result};
use crate::provider::{Stage, stage};

/// The stages so far. After one has failed, no other is run.
#[derive(Debug)]
pub(crate) struct Probe {
    stages: Vec<Stage>,
    deadline: Instant,
    failed: bool,
}

impl Probe {
    pub(crate) fn new(deadline: Instant) -> Self {
        Probe { stages: Vec::new(), deadline, failed: false }
    }

    /// Runs the next stage; `None` if it, or one before it, failed. `fix` says what to do, by the error.
    pub(crate) async fn stage<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T>>,
        fix: impl FnOnce(&Error) -> String,
    ) -> Option<T> {
        if self.failed {
            return None;
        }
        let since = Instant::now();
        let done = tokio::time::timeout_at(self.deadline.into(), work).await;
        let done = done.unwrap_or_else(|_| Err(Error::new(Code::Timeout, format!("no answer in time while the test was at `{name}`"))));
        match done {
            Ok(value) => {
                self.stages.push(stage(name, since, Ok(())));
                Some(value)
            }
            Err(error) => {
                let fix = fix(&error);
                self.failed = true;
                self.stages.push(stage(name, since, Err((error, &fix))));
                None
            }
        }
    }

    /// `resolve` and `connect`: the name has an address, and something listens there.
    pub(crate) async fn reach(&mut self, host: &str, port: u16) -> Option<()> {
        let name = format!("{host}:{port}");
        let found = async {
            let found = lookup_host((host, port)).await.map_err(|e| unreachable(format!("'{host}' cannot be resolved: {e}")))?;
            let found: Vec<_> = found.collect();
            if found.is_empty() { Err(unreachable(format!("'{host}' has no address"))) } else { Ok(found) }
        };
        let addresses = self.stage("resolve", found, |_| format!("check the host name '{host}' and this machine's DNS")).await?;
        let connected = async {
            let connected = TcpStream::connect(&*addresses).await;
            connected.map(drop).map_err(|e| unreachable(format!("nothing answers at {name}: {e}")))
        };
        self.stage("connect", connected, |_| format!("check the port, that the broker runs, and that no firewall stands before {name}"))
            .await
    }

    /// What was seen.
    pub(crate) fn into_stages(self) -> Vec<Stage> {
        self.stages
    }
}

fn unreachable(message: String) -> Error {
    Error::new(Code::ConnectionFailed, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn stages_stop_at_the_first_failure_and_at_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its port").port();
        let mut probe = Probe::new(Instant::now() + Duration::from_millis(300));
        assert!(probe.reach("127.0.0.1", port).await.is_some());
        let never = std::future::pending::<Result<()>>();
        assert!(probe.stage("authenticate", never, |_| "wait".into()).await.is_none());
        assert!(probe.stage("permissions", async { Ok(()) }, |_| "nothing".into()).await.is_none());
        let stages: Vec<_> = probe.into_stages().into_iter().map(|stage| (stage.stage, stage.ok, stage.code)).collect();
        assert_eq!(stages, [("resolve", true, None), ("connect", true, None), ("authenticate", false, Some(Code::Timeout))]);
        drop(listener);
        let mut probe = Probe::new(Instant::now() + Duration::from_secs(5));
        assert!(probe.reach("127.0.0.1", port).await.is_none());
        let stages = probe.into_stages();
        assert_eq!(stages.last().map(|stage| (stage.stage, stage.ok)), Some(("connect", false)));
    }
}
