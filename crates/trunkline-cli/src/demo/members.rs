//! The members of the groups: consumers that handle, fail as the script says, and write down what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use trunkline::{Consumer, Context, Env, Raw, Result, Schedule, Trunkline};

use crate::demo::evidence::{Clock, Ended, Run};
use crate::demo::script::Script;
use crate::demo::stage::{self, EVENT};

/// A group of the demo.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: &'static str,
    /// How many members it has.
    pub(crate) members: usize,
    /// Whether its handler fails as the script says.
    pub(crate) fails: bool,
}

/// The groups: one that has trouble, and one that has none and must not notice.
pub(crate) const GROUPS: [Group; 2] =
    [Group { name: "billing", members: 4, fails: true }, Group { name: "audit", members: 3, fails: false }];

/// The header that names the kind of a delivery, as GitHub calls it.
pub(crate) const KIND: &str = "x-github-event";

/// Few slots a member, so that of several failing keys some wait in the lot instead of in flight.
const CONCURRENCY: usize = 4;
/// What a handler does beside reading the body: as long as a small write elsewhere.
const WORK: Duration = Duration::from_millis(1);

/// When a failed message is tried again: short, so that the demo is.
fn schedule() -> Schedule {
    Schedule { delays: [20, 60].map(Duration::from_millis).to_vec(), jitter: 0.2 }
}

/// What the handlers saw so far.
#[derive(Debug, Default)]
pub(crate) struct Notebook {
    clock: Clock,
    runs: Mutex<Vec<Run>>,
    done: [AtomicU64; GROUPS.len()],
    failed: [AtomicU64; GROUPS.len()],
}

impl Notebook {
    /// Messages that the group handled.
    pub(crate) fn done(&self, group: usize) -> u64 {
        self.done[group].load(Ordering::Relaxed)
    }

    /// Runs of the group that failed.
    pub(crate) fn failed(&self, group: usize) -> u64 {
        self.failed[group].load(Ordering::Relaxed)
    }

    /// All runs; the book is empty afterwards.
    pub(crate) fn take(&self) -> Vec<Run> {
        std::mem::take(&mut self.runs.lock())
    }
}

/// The members at work.
#[derive(Debug)]
pub(crate) struct Members {
    consumers: Vec<Consumer>,
}

impl Members {
    /// Starts all members, turn by turn on these instances; live when it returns.
    pub(crate) async fn start(homes: &[Trunkline], script: &Arc<Script>, book: &Arc<Notebook>) -> Result<Self> {
        let mut envs = homes.iter().map(stage::env).cycle();
        let mut consumers = Vec::new();
        for (at, group) in GROUPS.iter().enumerate() {
            for member in 0..group.members {
                let Some(env) = envs.next() else { break };
                consumers.push(member_of(&env, at, member, script.clone(), book.clone()).await?);
            }
        }
        Ok(Members { consumers })
    }

    /// Lets every member finish what it has in hand, and leave.
    pub(crate) async fn close(self, within: Duration) {
        futures_util::future::join_all(self.consumers.iter().map(|consumer| consumer.close(within))).await;
    }
}

async fn member_of(env: &Env, group: usize, member: usize, script: Arc<Script>, book: Arc<Notebook>) -> Result<Consumer> {
    let Group { name, fails, .. } = GROUPS[group];
    env.consume(EVENT, move |body: Raw, context: Context| {
        let (script, book) = (script.clone(), book.clone());
        async move {
            let began = book.clock.tick();
            let kind = context.headers.get_str(KIND).unwrap_or_default();
            let said = handle(&body, if fails { Some((script.as_ref(), kind, context.attempt)) } else { None }).await;
            let how = if said.is_ok() { Ended::Done } else { Ended::Failed };
            let run = Run { group: name, member, id: context.process_id, began, ended: book.clock.tick(), fence: context.fence, how };
            book.runs.lock().push(run);
            let counter = if said.is_ok() { &book.done } else { &book.failed };
            counter[group].fetch_add(1, Ordering::Relaxed);
            said
        }
    })
    .group(name)
    .concurrency(CONCURRENCY)
    .retry(schedule())
    // The last messages to end are those that never succeed: the breaker would rightly take that for an outage.
    .breaker(false)
    .await
}

/// Reads the body, works a little, and fails where the script says so.
async fn handle(body: &Raw, part: Option<(&Script, &str, u32)>) -> Result<(), String> {
    serde_json::from_slice::<serde_json::Value>(&body.0).map_err(|error| format!("the body is not JSON: {error}"))?;
    tokio::time::sleep(WORK).await;
    part.map_or(Ok(()), |(script, kind, attempt)| script.play(kind, attempt))
}
