//! Time: the wall clock, which somebody may set at any moment, and the time since the machine was started, which nobody
//! sets.
//!
//! What is written down for people is wall time. What decides who may do what and when (leases, claims, waits, windows) is
//! counted by a clock that only goes forward: the uptime here and in the embedded broker, the store's clock in the store.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far the suite has set this process's wall clock, in milliseconds.
static SET: AtomicI64 = AtomicI64::new(0);

/// The wall clock: the time since 1970.
pub(crate) fn wall() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match SET.load(Ordering::Relaxed) {
        0 => now,
        by if by < 0 => now.saturating_sub(Duration::from_millis(by.unsigned_abs())),
        by => now + Duration::from_millis(by.unsigned_abs()),
    }
}

/// For tests only: sets the wall clock of this process, for all that Trunkline asks it for, so many milliseconds off the
/// host's. It stands for somebody who sets the clock of the host.
#[doc(hidden)]
pub fn set(by: i64) {
    SET.store(by, Ordering::Relaxed);
}

/// Milliseconds since the machine was started, sleep included.
#[must_use]
pub(crate) fn uptime_ms() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Another number each time the machine is started.
#[must_use]
pub(crate) fn boot_id() -> u128 {
    // Where the system does not say, one id for all: what is remembered of a boot is then trusted across restarts of the
    // machine only as far as its own checks go, which is why only Linux is a supported host.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
        .map_or(1, |uuid| uuid.as_u128())
}
