//! What is to become of a delivery: pure functions of a policy, what is known of the message, and what happened.

use std::time::Duration;

use crate::capability::Capabilities;
use crate::delivery::Deliveries;
use crate::error::{Code, Error, Result};
use crate::store::Scope;

/// A retry of nominally at most this long stays in flight; a longer one waits in the lot.
pub const HOLD_MAX: Duration = Duration::from_secs(5);

/// When a failed delivery is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The nominal wait after each failure; one run more than there are waits.
    pub delays: Vec<Duration>,
    /// Each wait is moved by up to this share, up or down (0 to 1).
    pub jitter: f64,
}

impl Default for Schedule {
    /// 1 s, 5 s, 30 s, 2 m, 10 m, 30 m, 2 h, 6 h, each ± 20 %.
    fn default() -> Self {
        let delays = [1, 5, 30, 120, 600, 1_800, 7_200, 21_600].map(Duration::from_secs).to_vec();
        Schedule { delays, jitter: 0.2 }
    }
}

impl From<crate::policy_config::Retry> for Schedule {
    fn from(retry: crate::policy_config::Retry) -> Self {
        Schedule { delays: retry.delays, jitter: retry.jitter }
    }
}

impl Schedule {
    /// No second attempt.
    #[must_use]
    pub fn never() -> Self {
        Schedule { delays: Vec::new(), jitter: 0.0 }
    }

    /// The wait after the failure number `attempts` (from 1), nominal and with jitter; `roll` is in 0..1.
    #[must_use]
    pub fn after(&self, attempts: u32, roll: f64) -> Option<(Duration, Duration)> {
        let nominal = *self.delays.get(attempts.checked_sub(1)? as usize)?;
        Some((nominal, nominal.mul_f64(1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * roll - 1.0))))
    }

    /// How many runs a message gets.
    #[must_use]
    pub fn runs(&self) -> u32 {
        u32::try_from(self.delays.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The deliveries at which a message that never gives an outcome is buried as a crash loop.
    #[must_use]
    pub fn crash_loop_at(&self) -> u32 {
        self.runs().saturating_mul(4).max(20)
    }
}

/// What is known of a delivery before its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Recorded failures so far.
    pub attempts: u32,
    /// The broker's own count.
    pub deliveries: Deliveries,
    /// `false` while the breaker is open: a failure is then not counted.
    pub counted: bool,
    /// Whether a slot for a held retry is free.
    pub may_hold: bool,
    /// Whether the broker hands out the key's next message as soon as this one is acked: then it is held, however long.
    pub never_wait: bool,
}

/// What happened to a delivery.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The handler succeeded.
    Ok,
    /// The handler failed, panicked, passed its timeout, or the payload did not fit its type.
    Failed,
    /// The handler's word: again after this long. Not a failure.
    RetryAfter(Duration),
    /// The handler's word: bury it now.
    Bury(String),
    /// The handler's word: ack without success.
    Drop,
    /// It had expired before it was handled.
    Expired,
    /// Its envelope cannot be read.
    Broken,
    /// The consumer is closing or lost the shard: not a failure.
    Cancelled,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Ack.
    Done,
    /// Keep it in flight and run it again after this long.
    Hold {
        /// With jitter.
        after: Duration,
        /// Recorded failures from now on.
        attempts: u32,
    },
    /// Write it to the lot, then ack.
    Wait {
        /// With jitter.
        after: Duration,
        /// Recorded failures from now on.
        attempts: u32,
    },
    /// Write it among the dead, then ack.
    Bury {
        /// A fixed word, or the handler's own.
        reason: String,
        /// Recorded failures.
        attempts: u32,
    },
    /// Give it back uncounted.
    Release,
}

/// Decides. `roll` (0..1) is the only chance in it, given from outside.
#[must_use]
pub fn decide(schedule: &Schedule, standing: Standing, outcome: &Outcome, roll: f64) -> Decision {
    let Standing { attempts, counted, may_hold, never_wait, .. } = standing;
    let later = |nominal: Duration, after: Duration, attempts: u32| {
        if never_wait || (nominal <= HOLD_MAX && may_hold) {
            Decision::Hold { after, attempts }
        } else {
            Decision::Wait { after, attempts }
        }
    };
    match outcome {
        Outcome::Ok | Outcome::Drop => Decision::Done,
        Outcome::Cancelled => Decision::Release,
        Outcome::RetryAfter(after) => later(*after, *after, attempts),
        Outcome::Bury(reason) => Decision::Bury { reason: reason.clone(), attempts },
        Outcome::Expired => Decision::Bury { reason: "expired".into(), attempts },
        Outcome::Broken => Decision::Bury { reason: "broken_envelope".into(), attempts },
        // The breaker is open: the message goes back to the end of the line as if it had not been tried.
        Outcome::Failed if !counted => Decision::Hold { after: Duration::ZERO, attempts },
        Outcome::Failed => {
            let attempts = attempts + 1;
            match schedule.after(attempts, roll) {
                Some((nominal, after)) => later(nominal, after, attempts),
                None => Decision::Bury { reason: "attempts_exhausted".into(), attempts },
            }
        }
    }
}

/// Whether a delivery that never came to an outcome has been handed out so often that it must be what kills its handlers.
#[must_use]
pub fn is_crash_loop(schedule: &Schedule, deliveries: Deliveries) -> bool {
    deliveries.count() >= schedule.crash_loop_at()
}

/// Where deliveries wait and the dead lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LotPlace {
    /// In the store.
    Store,
    /// In topics on the broker.
    Topics,
}

/// What a consumer or producer asks of a route.
#[derive(Debug, Clone)]
pub struct Wishes<'a> {
    /// The provider's name, for errors.
    pub provider: &'static str,
    /// Handle the messages of a key one after the other.
    pub ordered: bool,
    /// The retry schedule.
    pub schedule: &'a Schedule,
    /// What a confirmed message must survive.
    pub durability: Option<crate::capability::Durability>,
    /// How far the store reaches.
    pub scope: Scope,
    /// Whether the broker itself is on this host only (embedded), or the user says that this host is all there is.
    pub single_host: bool,
}

/// Checks wishes against what the provider can do, and chooses the lot.
///
/// # Errors
/// `CAPABILITY_UNSUPPORTED` naming provider, wish and the nearest alternative.
pub fn plan(wishes: &Wishes<'_>, can: &Capabilities) -> Result<LotPlace> {
    let unsupported = |wish: &str, alternative: &str| {
        Error::new(Code::CapabilityUnsupported, format!("{} cannot keep: {wish}", wishes.provider))
            .detail("provider", wishes.provider)
            .detail("wish", wish)
            .next(alternative)
    };
    if let Some(wished) = wishes.durability.filter(|wished| *wished > can.durability) {
        let name = |d| serde_json::to_value(d).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        return Err(unsupported(
            &format!("durability {} (this server confirms at {})", name(wished), name(can.durability)),
            "lower the topic's `durability`, or change the server's settings",
        ));
    }
    if wishes.ordered && !can.ordered_shards {
        return Err(unsupported("order per key", "create the topic with `ordering: none`, or use a provider with ordered shards"));
    }
    let total: u64 = wishes.schedule.delays.iter().map(|d| crate::message::millis(*d)).sum();
    if total > can.max_wait_ms {
        return Err(unsupported("a retry schedule this long", "shorten `retry.delays`"));
    }
    let place = if wishes.scope == Scope::Shared || wishes.single_host { LotPlace::Store } else { LotPlace::Topics };
    let beyond_hold = wishes.schedule.delays.iter().any(|d| *d > HOLD_MAX);
    if wishes.ordered && beyond_hold && place == LotPlace::Topics && !can.broker_orders_keys {
        return Err(unsupported(
            "order per key with waits beyond 5 s while the store is of this host only",
            "set `store: { singleHost: true }`, use a shared store, or keep every retry delay at 5 s or less",
        ));
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{DeliveryCount, Durability};

    const OPEN: Standing = Standing { attempts: 0, deliveries: Deliveries::Exact(1), counted: true, may_hold: true, never_wait: false };

    fn can() -> Capabilities {
        Capabilities {
            durability: Durability::Fsynced,
            ordered_shards: true,
            broker_orders_keys: false,
            keeps_messages: true,
            native_delay_max_ms: 0,
            delivery_count: DeliveryCount::UpperBound,
            release_uncounted: true,
            extends_leases: true,
            lossy: false,
            max_message_bytes: 1 << 20,
            dedup_window_ms: 0,
            max_wait_ms: u64::MAX,
            takeover_ms: 5_000,
        }
    }

    #[test]
    fn the_default_schedule_gives_nine_runs() {
        let schedule = Schedule::default();
        assert_eq!((schedule.runs(), schedule.crash_loop_at()), (9, 36));
        let mut attempts = 0;
        let mut decisions = Vec::new();
        loop {
            match decide(&schedule, Standing { attempts, ..OPEN }, &Outcome::Failed, 0.5) {
                Decision::Hold { attempts: n, .. } => {
                    decisions.push('h');
                    attempts = n;
                }
                Decision::Wait { attempts: n, .. } => {
                    decisions.push('w');
                    attempts = n;
                }
                other => {
                    assert_eq!(other, Decision::Bury { reason: "attempts_exhausted".into(), attempts: 9 });
                    break;
                }
            }
        }
        assert_eq!(decisions.iter().collect::<String>(), "hhwwwwww");
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let schedule = Schedule { delays: vec![Duration::from_secs(10)], jitter: 0.2 };
        assert_eq!(schedule.after(1, 0.0).expect("first").1, Duration::from_secs(8));
        assert!(schedule.after(1, 0.999_999).expect("first").1 <= Duration::from_secs(12));
        assert_eq!(schedule.after(2, 0.0), None);
    }

    #[test]
    fn a_full_hold_goes_to_the_lot() {
        let decision = decide(&Schedule::default(), Standing { may_hold: false, ..OPEN }, &Outcome::Failed, 0.5);
        assert_eq!(decision, Decision::Wait { after: Duration::from_secs(1), attempts: 1 });
    }

    #[test]
    fn where_the_broker_orders_keys_nothing_is_acked_to_wait() {
        let standing = Standing { attempts: 3, may_hold: false, never_wait: true, ..OPEN };
        let after = |decision| matches!(decision, Decision::Hold { after, .. } if after > HOLD_MAX);
        assert!(after(decide(&Schedule::default(), standing, &Outcome::Failed, 0.5)));
        assert!(after(decide(&Schedule::default(), standing, &Outcome::RetryAfter(Duration::from_secs(60)), 0.5)));
        let last = Standing { attempts: 8, ..standing };
        assert!(matches!(decide(&Schedule::default(), last, &Outcome::Failed, 0.5), Decision::Bury { attempts: 9, .. }));
        let wishes = Wishes {
            provider: "TEST",
            ordered: true,
            schedule: &Schedule::default(),
            durability: None,
            scope: Scope::Host,
            single_host: false,
        };
        assert_eq!(plan(&wishes, &Capabilities { broker_orders_keys: true, ..can() }).expect("no chains are needed"), LotPlace::Topics);
    }

    #[test]
    fn verdicts_are_not_failures() {
        let at = |outcome| decide(&Schedule::default(), Standing { attempts: 3, ..OPEN }, &outcome, 0.5);
        assert_eq!(at(Outcome::RetryAfter(Duration::from_secs(60))), Decision::Wait { after: Duration::from_secs(60), attempts: 3 });
        assert_eq!(at(Outcome::Bury("no".into())), Decision::Bury { reason: "no".into(), attempts: 3 });
        assert_eq!(at(Outcome::Drop), Decision::Done);
        assert_eq!(at(Outcome::Cancelled), Decision::Release);
        assert_eq!(
            decide(&Schedule::default(), Standing { attempts: 3, counted: false, ..OPEN }, &Outcome::Failed, 0.5),
            Decision::Hold { after: Duration::ZERO, attempts: 3 }
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let schedule = Schedule::default();
        let wishes =
            Wishes { provider: "TEST", ordered: true, schedule: &schedule, durability: None, scope: Scope::Host, single_host: false };
        assert_eq!(plan(&wishes, &can()).expect_err("order needs one view").code(), Code::CapabilityUnsupported);
        assert_eq!(plan(&Wishes { single_host: true, ..wishes.clone() }, &can()).expect("single"), LotPlace::Store);
        assert_eq!(plan(&Wishes { scope: Scope::Shared, ..wishes.clone() }, &can()).expect("shared"), LotPlace::Store);
        assert_eq!(plan(&Wishes { ordered: false, ..wishes.clone() }, &can()).expect("unordered"), LotPlace::Topics);
        let none = Capabilities { ordered_shards: false, ..can() };
        assert!(plan(&Wishes { single_host: true, ..wishes.clone() }, &none).is_err());
        let durable = Wishes { ordered: false, durability: Some(Durability::Replicated), ..wishes };
        assert!(plan(&durable, &can()).expect_err("durability").message().contains("fsynced"));
    }
}
