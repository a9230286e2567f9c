//! Commands that run for messages, so that an end that does not wait for them takes them along.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

/// The process groups at work.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The process group of a command that runs: killed when this is dropped, so that nothing outlives a run that was cut short.
#[derive(Debug)]
pub struct Group(Option<i32>);

impl Group {
    /// The group whose leader has this process id.
    pub fn of(id: Option<u32>) -> Self {
        let id = id.and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id {
            running(|all| all.insert(id));
        }
        Group(id)
    }

    /// The command ended by itself: its number may belong to somebody else from now on.
    pub fn ended(mut self) {
        if let Some(id) = self.0.take() {
            running(|all| all.remove(&id));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            running(|all| all.remove(&id));
            kill(id);
        }
    }
}

/// Ends all of them, before this process ends at once.
pub fn kill_all() {
    running(|all| all.iter().for_each(|id| kill(*id)));
}

fn running<T>(work: impl FnOnce(&mut BTreeSet<i32>) -> T) -> T {
    work(&mut RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn kill(id: i32) {
    if let Some(pid) = Pid::from_raw(id) {
        // It may have ended a moment ago.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}
