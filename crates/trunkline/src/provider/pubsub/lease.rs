//! What was received and is not settled: its lease, which is renewed from the moment of receipt until the settle, whether the
//! message waits here or is being handled; acks, and giving back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use googleapis_tonic_google_pubsub_v1::google::pubsub::v1::{AcknowledgeRequest, ModifyAckDeadlineRequest};

use super::error::{Failure, Kind};
use super::subscription::Shared;
use crate::delivery::{Settled, Token};

/// Ack ids of one call: below Pub/Sub's 512 KiB a request.
const CALL: usize = 2000;
/// The pauses before a call that did not get through is made again: doing it twice is doing it once.
const AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// The longest lease there is.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// A message that this member holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) route: usize,
    pub(super) shard: u32,
    /// What came later is given back later.
    pub(super) place: u64,
    pub(super) ack: Arc<str>,
    pub(super) lease_end: Instant,
}

/// What to do with ack ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Ack,
    /// A lease of so many seconds from now on; 0 gives it back.
    Lease(u32),
}

impl Shared {
    /// Does it to each; an answer for each, in order.
    pub(super) async fn change(&self, route: usize, what: What, acks: &[Arc<str>]) -> Vec<Settled> {
        let calls = acks.chunks(CALL).map(async |acks| {
            let mut answers = vec![Settled::Unknown; acks.len()];
            let mut left: Vec<usize> = (0..acks.len()).collect();
            for pause in AGAIN.iter().map(Some).chain([None]) {
                let ids = left.iter().map(|at| acks[*at].as_ref().to_owned()).collect();
                let (again, passes) = match self.call(route, what, ids).await {
                    Ok(()) => {
                        left.iter().for_each(|at| answers[*at] = Settled::Settled);
                        break;
                    }
                    // Single ids were refused; the others were taken.
                    Err(failed) if !failed.refused.is_empty() => {
                        let mut again = Vec::new();
                        for at in left {
                            match failed.refused.get(acks[at].as_ref()) {
                                None => answers[at] = Settled::Settled,
                                Some(true) => answers[at] = Settled::Stale,
                                Some(false) => again.push(at),
                            }
                        }
                        (again, true)
                    }
                    Err(failed) => {
                        tracing::debug!(error = %failed.error, ?what, "a call for leases did not get through");
                        // Without its subscription nothing of it is anybody's any more.
                        if failed.kind == Kind::Missing {
                            left.iter().for_each(|at| answers[*at] = Settled::Stale);
                        }
                        let passes = failed.passes();
                        (left, passes)
                    }
                };
                left = again;
                let Some(pause) = pause.filter(|_| passes && !left.is_empty()) else { break };
                tokio::select! {
                    () = tokio::time::sleep(*pause) => {}
                    () = self.end.cancelled() => break,
                }
            }
            answers
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    async fn call(&self, route: usize, what: What, ack_ids: Vec<String>) -> Result<(), Failure> {
        let subscription = self.routes[route].path.clone();
        let about = format!("subscription={subscription}");
        match what {
            What::Ack => {
                let request = AcknowledgeRequest { subscription, ack_ids };
                self.link.subscribe("acking", &about, request, async |mut client, request| client.acknowledge(request).await).await
            }
            What::Lease(seconds) => {
                let ack_deadline_seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
                let request = ModifyAckDeadlineRequest { subscription, ack_ids, ack_deadline_seconds };
                let call = self
                    .link
                    .subscribe("keeping a lease", &about, request, async |mut client, request| client.modify_ack_deadline(request).await);
                call.await
            }
        }
    }

    /// Gives messages back: handed out again at once, in the order they came in.
    pub(super) async fn release(&self, mut held: Vec<Held>) {
        if held.is_empty() {
            return;
        }
        drop(self.renewing.lock().await);
        held.sort_unstable_by_key(|held| held.place);
        let by_route = (0..self.routes.len()).map(async |route| {
            let acks: Vec<_> = held.iter().filter(|held| held.route == route).map(|held| held.ack.clone()).collect();
            // What does not get through comes again when its lease ends.
            self.change(route, What::Lease(0), &acks).await;
        });
        join_all(by_route).await;
    }

    /// Renews leases that are half used up, as often as needed, until the end.
    pub(super) async fn keep_leases(self: Arc<Self>) {
        let lease = self.link.options().lease;
        loop {
            tokio::select! {
                () = self.let_go.cancelled() => return,
                () = tokio::time::sleep(lease / 6) => {}
            }
            let soon = Instant::now() + lease / 2;
            let due: Vec<Token> =
                self.state.lock().held.iter().filter(|(_, held)| held.lease_end <= soon).map(|(token, _)| token).collect();
            if !due.is_empty() {
                self.renew(&due).await;
            }
        }
    }

    /// Renews these leases; whether each is kept.
    pub(super) async fn renew(&self, tokens: &[Token]) -> Vec<bool> {
        let _one = self.renewing.lock().await;
        let (asked, lease) = (Instant::now(), self.link.options().lease);
        let mut by_route: HashMap<usize, Vec<(usize, Token, Held)>> = HashMap::new();
        {
            let state = self.state.lock();
            for (at, token) in tokens.iter().enumerate() {
                if let Some(held) = state.held.get(*token) {
                    by_route.entry(held.route).or_default().push((at, *token, held.clone()));
                }
            }
        }
        let calls = by_route.into_iter().map(async |(route, items)| {
            let acks: Vec<_> = items.iter().map(|(.., held)| held.ack.clone()).collect();
            let answers = self.change(route, What::Lease(u32::try_from(lease.as_secs()).unwrap_or(600)), &acks).await;
            items.into_iter().zip(answers).collect::<Vec<_>>()
        });
        let mut kept = vec![false; tokens.len()];
        let mut lost = Vec::new();
        for ((at, token, before), answer) in join_all(calls).await.into_iter().flatten() {
            match answer {
                // Pub/Sub also says yes to leases that ended, so we count ourselves.
                Settled::Settled if before.lease_end > asked => {
                    kept[at] = true;
                    if let Some(held) = self.state.lock().held.get_mut(token) {
                        held.lease_end = held.lease_end.max(asked + lease);
                    }
                }
                // Not known: the lease it had is still good.
                Settled::Unknown if before.lease_end > Instant::now() => kept[at] = true,
                _ => lost.push(token),
            }
        }
        if !lost.is_empty() {
            tracing::debug!(count = lost.len(), "leases were lost");
            self.lose(&lost);
        }
        kept
    }
}
