//! The two threads of an open handle: the pulse keeps leases and hears other processes, the keeper does what may wait
//! for the disk. Neither holds the handle open.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Handle;
use super::disk::wait;
use super::options::Fsync;

/// How often the keeper comes round.
const ROUND: Duration = Duration::from_secs(1);

impl Handle {
    /// Starts both threads.
    pub(super) fn start(self: &Arc<Self>, ended: watch::Sender<()>) -> std::io::Result<()> {
        let (pulse, keeper) = (Arc::downgrade(self), Arc::downgrade(self));
        let (bell, beat) = (Arc::clone(&self.host.bell), self.host.options.heartbeat());
        let pulse_ended = ended.clone();
        std::thread::Builder::new().name("trunkline-pulse".into()).spawn(move || {
            let _ended = pulse_ended;
            let mut next = Instant::now();
            loop {
                let seen = bell.bells()[0].load(SeqCst);
                if !turn(&pulse, &mut next, beat) {
                    break;
                }
                wait(&bell.bells()[0], seen, next.saturating_duration_since(Instant::now()));
            }
        })?;
        std::thread::Builder::new().name("trunkline-keeper".into()).spawn(move || {
            let _ended = ended;
            keep(&keeper);
        })?;
        Ok(())
    }

    /// Removes what is left of topics whose removal was cut off.
    fn sweep(&self) {
        let (disk, dir) = (&self.host.disk, self.host.options.dir.join("topics"));
        for name in disk.list(&dir).unwrap_or_default() {
            if name.starts_with(super::REMOVED) {
                // Another process may be at it; then there is nothing left to do.
                let _ = disk.remove_dir(&dir.join(name));
            }
        }
    }

    /// What the keeper does in a round.
    pub(super) fn tidy(&self) {
        for live in self.lives() {
            for todo in live.tidy() {
                if let Err(error) = todo.run() {
                    tracing::warn!(%error, "acks could not be synced");
                }
            }
        }
        for topic in self.open_topics() {
            if topic.removed() {
                continue;
            }
            let (durable, end) = (topic.page.durable().load(SeqCst), topic.page.write_end().load(SeqCst));
            // Written a round ago and still not synced: whoever wrote it is gone.
            let orphaned = topic.orphan.swap(if durable < end { end } else { 0 }, SeqCst) == end && durable < end;
            if topic.unsynced.swap(false, SeqCst) || orphaned {
                topic.settle_tail();
            }
            if let Err(error) = topic.retain() {
                tracing::warn!(topic = %topic.name, %error, "old messages could not be removed");
            }
        }
    }
}

/// One turn of the pulse; `false` when the handle is gone.
fn turn(handle: &Weak<Handle>, next: &mut Instant, beat: Duration) -> bool {
    let Some(handle) = handle.upgrade().filter(|handle| !handle.closed()) else { return false };
    let due = Instant::now() >= *next;
    if due {
        *next = Instant::now() + beat;
    }
    for live in handle.lives() {
        live.beat(due);
    }
    for topic in handle.open_topics() {
        topic.notice();
    }
    true
}

fn keep(handle: &Weak<Handle>) {
    let round = {
        let Some(handle) = handle.upgrade() else { return };
        handle.sweep();
        match handle.host.options.fsync {
            Fsync::Always => ROUND,
            Fsync::Interval(every) => every.clamp(Duration::from_millis(1), ROUND),
        }
    };
    loop {
        {
            let Some(handle) = handle.upgrade() else { return };
            handle.tidy();
            if handle.closed() {
                return;
            }
        }
        // The pulse's bell rings too often for this; closing wakes it by the condition.
        let Some(stop) = handle.upgrade().map(|handle| Arc::clone(&handle.stop)) else { return };
        let mut stopped = stop.0.lock();
        if !*stopped {
            stop.1.wait_for(&mut stopped, round);
        }
    }
}
