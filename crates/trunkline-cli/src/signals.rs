//! Ctrl-C and SIGTERM: the first one asks a command that can drain to do so, the second one quits at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Told when the user wants the command to end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: CancellationToken,
    drains: Arc<AtomicBool>,
}

impl Stop {
    /// Listens from now on. A command that never calls [`Stop::drains`] ends at the first signal.
    pub fn listen() -> std::io::Result<Self> {
        let stop = Stop::default();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let told = stop.clone();
        tokio::spawn(async move {
            loop {
                let number = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                    _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                };
                if told.asked.is_cancelled() || !told.drains.load(Ordering::Acquire) {
                    crate::children::kill_all();
                    std::process::exit(128 + number);
                }
                told.asked.cancel();
                anstream::eprintln!("stopping: what is in hand is finished first; Ctrl-C again quits at once");
            }
        });
        Ok(stop)
    }

    /// From now on the first signal only cancels the token that is returned; the command ends by itself.
    pub fn drains(&self) -> CancellationToken {
        self.drains.store(true, Ordering::Release);
        self.asked.clone()
    }
}
