//! Where a store takes the time from.

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::clock::{boot_id, uptime_ms};
use crate::message::{Millis, now_ms};

pub(in crate::store) type Source = Arc<dyn Fn() -> Millis + Send + Sync>;

/// Where a store takes the time from.
#[derive(Clone)]
pub struct Clock {
    pub(in crate::store) wall: Source,
    /// The machine's uptime and the number of its start; `None` if nobody ever sets the wall clock.
    pub(in crate::store) uptime: Option<(Source, u128)>,
}

impl Clock {
    /// A clock that nobody sets, for tests.
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Clock { wall: Arc::new(now), uptime: None }
    }

    /// A wall clock that may be set, the machine's uptime, and a number that is another one after each start of it.
    pub fn with_uptime(
        wall: impl Fn() -> Millis + Send + Sync + 'static,
        uptime: impl Fn() -> Millis + Send + Sync + 'static,
        boot: u128,
    ) -> Self {
        Clock { wall: Arc::new(wall), uptime: Some((Arc::new(uptime), boot)) }
    }
}

impl Default for Clock {
    /// The clocks of this host.
    fn default() -> Self {
        Clock::with_uptime(now_ms, uptime_ms, boot_id())
    }
}

impl Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
