//! The group breaker: a handler that fails for everything stops the group instead of burying a topic.
//!
//! At least 20 outcomes in 10 s of which at least half failed open it. While it is open one message at a time probes,
//! with growing pauses, each time another one, and no attempt is counted. The first success closes it. The consumers of a
//! group in one process share one breaker, and one of them probes for all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(10);
const BUCKET: Duration = Duration::from_millis(500);
const LEAST: u64 = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Counts the outcomes of one group in one process.
#[derive(Debug)]
pub(crate) struct Breaker {
    buckets: VecDeque<(Instant, u64, u64)>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    pause: Duration,
    probe_at: Instant,
    /// Whose probe is running.
    probing: Option<u64>,
}

/// Whether a message may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Closed breaker: go.
    Go,
    /// Open breaker: this one is the probe.
    Probe,
    /// Open breaker: not before then.
    Until(Instant),
    /// Open breaker, a probe is running.
    Wait,
}

impl Breaker {
    /// A closed one.
    #[must_use]
    pub(crate) fn new() -> Self {
        Breaker { buckets: VecDeque::new(), open: None }
    }

    /// Whether it is open: failures are not counted.
    #[must_use]
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a message of this consumer may start; taking [`Gate::Probe`] marks its probe as running.
    pub(crate) fn gate(&mut self, now: Instant, who: u64) -> Gate {
        match &mut self.open {
            None => Gate::Go,
            Some(open) if open.probing.is_some() => Gate::Wait,
            Some(open) if now < open.probe_at => Gate::Until(open.probe_at),
            Some(open) => {
                open.probing = Some(who);
                Gate::Probe
            }
        }
    }

    /// A handler's success or failure. `true` if the breaker opened or closed by it.
    pub(crate) fn outcome(&mut self, now: Instant, ok: bool, probe: bool) -> bool {
        if let Some(open) = &mut self.open {
            if ok {
                self.open = None;
                self.buckets.clear();
                return true;
            }
            if probe {
                open.pause = (open.pause * 2).min(LONGEST_PAUSE);
                open.probe_at = now + open.pause;
                open.probing = None;
            }
            return false;
        }
        while self.buckets.front().is_some_and(|(at, ..)| now.duration_since(*at) > WINDOW) {
            self.buckets.pop_front();
        }
        match self.buckets.back_mut() {
            Some((at, all, failed)) if now.duration_since(*at) < BUCKET => {
                *all += 1;
                *failed += u64::from(!ok);
            }
            _ => self.buckets.push_back((now, 1, u64::from(!ok))),
        }
        if ok {
            return false;
        }
        let (all, failed) = self.buckets.iter().fold((0, 0), |sum, (_, all, failed)| (sum.0 + all, sum.1 + failed));
        if all >= LEAST && failed * 2 >= all {
            self.open = Some(Open { pause: FIRST_PAUSE, probe_at: now + FIRST_PAUSE, probing: None });
            return true;
        }
        false
    }

    /// The consumer's probe ended without an outcome that counts (a verdict, a cancel, its close): the next message may probe
    /// at once. `false` if none of its own was running.
    pub(crate) fn probe_ended(&mut self, who: u64) -> bool {
        match &mut self.open {
            Some(open) if open.probing == Some(who) => {
                open.probing = None;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_at_half_of_twenty_and_closes_at_the_first_success() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        for n in 0..19 {
            assert!(!breaker.outcome(start, n % 2 == 0, false));
        }
        assert!(breaker.outcome(start, false, false) && breaker.is_open());
        assert_eq!(breaker.gate(start, 0), Gate::Until(start + FIRST_PAUSE));
        let later = start + FIRST_PAUSE;
        assert_eq!((breaker.gate(later, 0), breaker.gate(later, 0)), (Gate::Probe, Gate::Wait));
        breaker.outcome(later, false, true);
        assert_eq!(breaker.gate(later, 0), Gate::Until(later + FIRST_PAUSE * 2));
        assert_eq!(breaker.gate(later + FIRST_PAUSE * 2, 0), Gate::Probe);
        assert!(breaker.outcome(later, true, true));
        assert_eq!(breaker.gate(later, 0), Gate::Go);
    }

    #[test]
    fn old_outcomes_are_forgotten() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..19 {
            breaker.outcome(start, false, false);
        }
        assert!(!breaker.outcome(start + WINDOW + BUCKET, false, false));
    }
}
