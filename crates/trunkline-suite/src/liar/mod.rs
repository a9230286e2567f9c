//! A provider that breaks one duty at a time, on top of one that keeps all of them.
//!
//! A scenario that no lie can fail proves nothing. So each [`Lie`] names the scenario that must catch it.

mod connection;
mod subscription;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use trunkline::Result;
use trunkline::provider::{Provider, Signal};

use self::connection::LyingConnection;
use crate::{Broker, Pace};

macro_rules! lies {
    ($($(#[doc = $doc:literal])+ $lie:ident = $caught_by:literal,)*) => {
        /// A duty that is not done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Lie { $($(#[doc = $doc])+ $lie,)* }

        impl Lie {
            /// All lies there are.
            pub const ALL: &[Lie] = &[$(Lie::$lie,)*];

            /// The scenario that must catch it.
            #[must_use]
            pub fn caught_by(self) -> &'static str {
                match self { $(Lie::$lie => $caught_by,)* }
            }
        }
    };
}

lies! {
    /// Hands out the messages of a shard in another order.
    Shuffles = "order/a_shard_keeps_its_order",
    /// Writes the messages of a batch in another order.
    ReordersBatches = "send/positions_grow",
    /// Confirms messages it throws away.
    ConfirmsAndDrops = "groups/every_confirmed_message_comes",
    /// Sends again what was confirmed.
    SendsTwice = "groups/every_confirmed_message_comes",
    /// Settles some messages without handing them out.
    DropsDeliveries = "groups/each_group_gets_everything",
    /// Says that a settle holds, and forgets it.
    LosesAcks = "settle/done_never_comes_back",
    /// Settles on handing out.
    AcksEarly = "members/unsettled_comes_back_after_a_death",
    /// Settles everything before, too.
    AcksUpTo = "settle/done_out_of_order_holds_each",
    /// Hands the same message to two members.
    HandsToTwo = "members/members_compete",
    /// Gives a shard to two members.
    TwoOwners = "order/a_shard_has_one_owner",
    /// Takes a shard away while it says that it waits.
    TakesBeforeItIsYielded = "revoke/a_shard_waits_to_be_yielded",
    /// Takes a shard away and does not say so.
    HidesLoss = "revoke/a_shard_that_is_not_yielded_is_lost",
    /// Does not say which shards are owned.
    HidesAssignments = "order/a_shard_keeps_its_order",
    /// Gives every ownership the same number.
    EpochsStand = "order/epochs_rise",
    /// Forgets the lease of what is held, and hands it out again.
    ForgetsLeases = "members/held_messages_go_to_nobody_else",
    /// Says that everything is held.
    HoldsEverything = "settle/extend_says_what_is_held",
    /// Lets a stale token settle another message.
    StaleSettlesAnother = "settle/a_stale_token_settles_nothing_else",
    /// Says that a stale settle holds.
    StaleIsSettled = "settle/a_stale_token_is_stale",
    /// Always counts one.
    CountStands = "settle/the_count_rises",
    /// Counts what was given back.
    CountsReleases = "release/release_is_not_counted",
    /// Hands out again at once what was to wait.
    RetriesAtOnce = "release/retry_comes_when_it_is_due",
    /// Says that a delay holds that it cannot keep.
    TakesAnyDelay = "refuse/delays_beyond_the_declared",
    /// Settles what is held when its member leaves.
    CloseSettles = "release/close_releases",
    /// Goes on delivering after the end.
    CloseKeepsDelivering = "flow/a_closed_subscription_ends",
    /// A closed connection goes on.
    CloseDoesNothing = "setup/close_ends_the_connection",
    /// Loses what it was about to hand out when nobody waits any more.
    DroppedNextLoses = "flow/a_dropped_next_loses_nothing",
    /// Fetches everything at once.
    FetchesWithoutBound = "flow/prefetch_is_bounded_by_count",
    /// Hands out more messages than asked for.
    PassesMaximum = "flow/next_keeps_its_maximum",
    /// Hands out more bytes than asked for.
    PassesBytes = "flow/next_keeps_its_bytes",
    /// Does not stop.
    IgnoresPause = "flow/pause_stops_and_resume_starts",
    /// Looks only now and then.
    WakesLate = "flow/next_returns_as_soon_as_there_is_something",
    /// Does not wait.
    Spins = "flow/next_is_empty_after_its_wait",
    /// Says that everything is of the first route.
    MixesRoutes = "groups/many_routes_in_one_subscription",
    /// Puts messages into another shard than asked for.
    MixesShards = "order/a_message_lies_in_its_shard",
    /// Gives a message its neighbour's key.
    MixesKeys = "content/keys_stay_with_their_messages",
    /// Keeps one header of each name.
    LosesHeaders = "content/headers_survive",
    /// Cuts large payloads.
    CutsPayloads = "content/large_payloads_survive",
    /// Writes JSON its own way.
    TidiesJson = "content/a_json_payload_is_not_touched",
    /// Gives its own ids.
    NewIds = "content/ids_and_times_survive",
    /// Confirms what is too large.
    ConfirmsTooLarge = "send/too_large_is_refused_alone",
    /// Refuses the whole batch for one message.
    RefusesNeighbours = "send/too_large_is_refused_alone",
    /// Gives the results in another order.
    SwapsResults = "send/results_are_of_their_messages",
    /// Counts one message too few.
    WrongDepth = "depth/depth_counts",
    /// Counts for all groups together.
    OneDepthForAll = "depth/depth_is_of_its_group",
    /// Consumes what it reads.
    ReadConsumes = "read/read_does_not_consume",
    /// Reads more than asked for.
    ReadsTooMuch = "read/read_starts_where_asked",
    /// Does not seek.
    IgnoresSeek = "seek/seek_to_the_oldest",
    /// Moves every group.
    SeeksAllGroups = "seek/seek_moves_one_group",
    /// Moves a group that exists.
    EnsureMovesGroups = "setup/ensure_leaves_a_group_where_it_is",
    /// Starts every new group with the latest.
    StartsLate = "groups/a_new_group_starts_with_the_oldest",
    /// Sees no drift.
    HidesDrift = "setup/ensure_reports_drift_and_changes_nothing",
    /// Removes nothing.
    RemovesNothing = "setup/remove_topic_forgets_everything",
    /// Answers a read it cannot do with nothing.
    ReadsNothing = "refuse/read_where_nothing_is_kept",
    /// Answers a seek it cannot do with `Ok`.
    SeeksNothing = "refuse/seek_where_nothing_is_kept",
    /// Takes ordered topics and keeps no order.
    TakesAnyOrder = "refuse/order_where_none_is_declared",
    /// Declares another thing on each connection.
    DeclaresAtWill = "setup/capabilities_agree",
    /// Tests nothing.
    ProbesNothing = "setup/probe_passes_in_stages",
}

/// A broker that lies in one way, or not at all.
#[derive(Debug)]
pub struct Liar {
    inner: Arc<dyn Broker>,
    lie: Option<Lie>,
    shared: Arc<Shared>,
}

impl Liar {
    /// Lies on top of an honest broker. Without a lie it is as honest as that: the scenarios do not fail on the wrapping.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, lie: Option<Lie>) -> Self {
        Liar { inner, lie, shared: Arc::default() }
    }
}

#[async_trait]
impl Broker for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    /// Not patient: here most of what is waited for never comes.
    fn pace(&self) -> Pace {
        let honest = self.inner.pace();
        if self.lie.is_some() { Pace { patience: honest.patience.min(Duration::from_secs(3)), ..honest } } else { honest }
    }

    async fn open(&self) -> Result<Arc<dyn Provider>> {
        let inner = self.inner.open().await?;
        Ok(Arc::new(LyingConnection { inner, lie: self.lie, shared: Arc::clone(&self.shared) }))
    }

    async fn restart(&self) -> Result<bool> {
        self.inner.restart().await
    }

    fn leaves_out(&self) -> &[(&'static str, &'static str)] {
        self.inner.leaves_out()
    }
}

/// What the liar needs to know across connections.
#[derive(Debug, Default)]
struct Shared {
    /// The groups ensured on each topic.
    groups: Mutex<HashMap<Arc<str>, Vec<Arc<str>>>>,
    /// What members of a group shall be given a second time.
    copies: Mutex<HashMap<Arc<str>, Copies>>,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct Copies {
    members: Vec<u64>,
    waiting: VecDeque<(u64, Signal)>,
}
