//! One suspect at a time in the hands of this process.
//!
//! After two owners of a shard died in a row, what they had in hand is under suspicion of having killed them. Whoever
//! dies with several messages in hand cannot say which one it was, in whichever shard, topic or group of the process they
//! lay; so all that are under suspicion take turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Whoever lives for so long with a suspect in hand does not die of it at once; then the others go on beside it.
const TURN: Duration = Duration::from_secs(10);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Alone(Mutex<Turn>);

#[derive(Debug, Default)]
struct Turn {
    serial: u64,
    /// Who has a suspect in hand, and until when it is alone.
    holder: Option<(u64, Instant)>,
    waiting: Vec<Arc<Notify>>,
}

impl Alone {
    /// A number for one ownership of a shard.
    pub(super) fn serial(&self) -> u64 {
        let mut turn = self.0.lock();
        turn.serial += 1;
        turn.serial
    }

    /// Takes the turn, or says when to ask again; the bell rings earlier if the turn becomes free.
    pub(super) fn take(&self, serial: u64, bell: &Arc<Notify>) -> Result<(), Instant> {
        let mut turn = self.0.lock();
        let now = Instant::now();
        match turn.holder {
            Some((holder, until)) if holder != serial && until > now => {
                if !turn.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, bell)) {
                    turn.waiting.push(Arc::clone(bell));
                }
                Err(until)
            }
            _ => {
                turn.holder = Some((serial, now + TURN));
                Ok(())
            }
        }
    }

    /// Gives the turn to others, if it is this one's.
    pub(super) fn leave(&self, serial: u64) {
        let mut turn = self.0.lock();
        if turn.holder.is_some_and(|(holder, _)| holder == serial) {
            turn.holder = None;
            turn.waiting.drain(..).for_each(|bell| bell.notify_one());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_turn_and_the_others_are_told_when_it_is_free() {
        let (alone, bell) = (Alone::default(), Arc::new(Notify::new()));
        let (a, b) = (alone.serial(), alone.serial());
        assert!(alone.take(a, &bell).is_ok() && alone.take(a, &bell).is_ok());
        assert!(alone.take(b, &bell).is_err_and(|at| at > Instant::now()));
        alone.leave(b);
        assert!(alone.take(b, &bell).is_err(), "only who has it can give it up");
        alone.leave(a);
        assert!(alone.take(b, &bell).is_ok());
    }
}
