//! How a connection works, where the config says nothing.

use std::time::Duration;

/// See the module. The defaults are for AWS.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a message that was received stays hidden from others if its member dies: in whole seconds, 30 by default.
    /// It is renewed as long as the member lives.
    pub lease: Duration,
    /// How long an empty receive waits at the server: in whole seconds, 20 by default, which is also the most.
    pub wait: Duration,
    /// How often queues of groups that others made are looked for: 1 minute by default.
    pub look: Duration,
    /// Deletes and receives that would carry few messages wait this long for more: 20 ms by default.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(20),
            look: Duration::from_secs(60),
            linger: Duration::from_millis(20),
        }
    }
}

impl Options {
    /// As SQS takes them: whole seconds, within its limits.
    pub(super) fn fitted(self) -> Self {
        let whole = |time: Duration, most: u64| Duration::from_secs((time.as_secs() + u64::from(time.subsec_nanos() > 0)).clamp(1, most));
        Options { lease: whole(self.lease, 600), wait: whole(self.wait, 20), ..self }
    }
}
