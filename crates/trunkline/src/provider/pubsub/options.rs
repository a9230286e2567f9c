//! How a connection works, where the config says nothing.

use std::time::Duration;

/// See the module. The defaults are for the service.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a message that was received stays with its member if that dies: in whole seconds, 30 by default, 10 to 600
    /// on the service; a test server may take less. It is renewed as long as the member lives.
    pub lease: Duration,
    /// How often the server is asked whether the connection still stands while it has nothing to say: 1 minute by default.
    pub ping: Duration,
    /// How long that, and the making of a connection, may go without an answer: 10 s by default.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { lease: Duration::from_secs(30), ping: Duration::from_secs(60), patience: Duration::from_secs(10) }
    }
}

impl Options {
    /// As Pub/Sub takes them.
    pub(super) fn fitted(self, service: bool) -> Self {
        let whole = self.lease.as_secs() + u64::from(self.lease.subsec_nanos() > 0);
        Options { lease: Duration::from_secs(whole.clamp(if service { 10 } else { 1 }, 600)), ..self }
    }
}
