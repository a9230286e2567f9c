//! What a provider must do: one file per subject, and the one list of all scenarios.
//!
//! A scenario says which kind of topic it uses and what must be declared for it. What is not declared has a scenario of
//! its own that sees it refused. Add one by writing an `async fn(Bed) -> Verdict` and a line below.

mod content;
mod depth;
mod flow;
mod groups;
mod keys;
mod members;
mod order;
mod read;
mod refuse;
mod release;
mod revoke;
mod seek;
mod send;
mod settle;
mod setup;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use trunkline::capability::{Capabilities, DeliveryCount};

use crate::{Bed, Broker, Failure, Verdict};

/// Whether a scenario applies to what a provider declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// It does.
    Run,
    /// It does not; the words say why.
    Skip(&'static str),
}

/// The kind of topic a scenario uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without order.
    Plain,
    /// With ordered shards.
    Ordered,
}

type Run = fn(Bed) -> Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// One thing a provider must do.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// `subject/what it sees`.
    pub name: &'static str,
    /// The kind of topic it uses.
    pub kind: Kind,
    /// Whether it applies, by what is declared for such a topic.
    pub needs: fn(&Capabilities) -> Pick,
    run: Run,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What came of a scenario on a broker.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The provider did its duty.
    Passed,
    /// It does not apply; the words say why.
    Skipped(String),
    /// The provider did not.
    Failed(Failure),
}

impl Scenario {
    /// The scenario of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Scenario> {
        scenarios().iter().find(|scenario| scenario.name == name)
    }

    /// Runs it on a broker, on a connection and names of its own.
    pub async fn run(&self, broker: Arc<dyn Broker>) -> Outcome {
        if let Some((_, why)) = broker.leaves_out().iter().find(|(name, _)| *name == self.name) {
            return Outcome::Skipped((*why).to_owned());
        }
        // No scenario waits in vain more than a few times before it fails by itself.
        let limit = broker.pace().patience * 6;
        let all = async {
            let bed = Bed::new(broker, self.kind == Kind::Ordered).await?;
            let topic = bed.topic_spec(1);
            let capabilities = bed.capabilities(&topic);
            if let Pick::Skip(why) = (self.needs)(&capabilities) {
                return Ok(Outcome::Skipped(why.to_owned()));
            }
            let limit = limit + bed.takeover(&topic) * 4;
            let verdict = tokio::time::timeout(limit, (self.run)(bed)).await;
            verdict.unwrap_or_else(|_| Err(Failure::new(format!("not over after {limit:?}")))).map(|()| Outcome::Passed)
        };
        let outcome: Verdict<Outcome> = all.await;
        outcome.unwrap_or_else(|failure| Outcome::Failed(failure.context(self.name)))
    }
}

fn any(_: &Capabilities) -> Pick {
    Pick::Run
}

fn when(declared: bool, why: &'static str) -> Pick {
    if declared { Pick::Run } else { Pick::Skip(why) }
}

/// Messages wait for members that are not there.
fn settles(c: &Capabilities) -> Pick {
    when(!c.lossy, "nothing is kept for who does not listen")
}

fn keeps(c: &Capabilities) -> Pick {
    when(c.keeps_messages, "messages are gone once settled")
}

fn keeps_not(c: &Capabilities) -> Pick {
    when(!c.keeps_messages, "messages are kept")
}

fn ordered(c: &Capabilities) -> Pick {
    when(c.ordered_shards, "no order is declared")
}

/// Shards have owners.
fn owned(c: &Capabilities) -> Pick {
    when(c.ordered_shards && !c.broker_orders_keys, "no order is declared, or no shard has an owner")
}

fn keyed(c: &Capabilities) -> Pick {
    when(c.broker_orders_keys, "shards have owners, or no order is declared")
}

fn ordered_not(c: &Capabilities) -> Pick {
    when(!c.ordered_shards, "order is declared")
}

fn delays(c: &Capabilities) -> Pick {
    when(c.native_delay_max_ms >= 500 && !c.lossy, "no native delay is declared")
}

fn delays_not_for_ever(c: &Capabilities) -> Pick {
    when(c.native_delay_max_ms < u64::from(u32::MAX) && !c.lossy, "every delay is declared")
}

fn counts(c: &Capabilities) -> Pick {
    when(c.delivery_count != DeliveryCount::Unknown && !c.lossy, "deliveries are not counted")
}

fn counts_not(c: &Capabilities) -> Pick {
    when(c.delivery_count == DeliveryCount::Unknown && !c.lossy, "deliveries are counted")
}

fn releases(c: &Capabilities) -> Pick {
    when(
        c.release_uncounted && c.delivery_count != DeliveryCount::Unknown && !c.lossy,
        "a release that is not counted is not declared, or nothing is counted",
    )
}

fn keeps_leases(c: &Capabilities) -> Pick {
    when(c.extends_leases && !c.lossy, "leases cannot be kept")
}

/// The list: subject, name, kind of topic, what it needs. Calls `$with` with it.
#[macro_export]
#[doc(hidden)]
macro_rules! for_each_scenario {
    ($($with:tt)::+ $(, $arg:tt)?) => {
        $($with)::+! {
            $($arg)?
            setup {
                ensure_is_idempotent Plain any,
                ensure_at_once_from_many Plain any,
                ensure_leaves_a_group_where_it_is Plain settles,
                ensure_reports_drift_and_changes_nothing Ordered ordered,
                ensure_adds_a_group_later Plain settles,
                remove_group_forgets_it Plain settles,
                remove_topic_forgets_everything Plain settles,
                remove_what_is_not_there Plain any,
                probe_passes_in_stages Plain any,
                probe_keeps_its_deadline Plain any,
                close_ends_the_connection Plain any,
                capabilities_agree Plain any,
            }
            send {
                results_come_in_order Plain any,
                positions_grow Ordered ordered,
                results_are_of_their_messages Plain keeps,
                too_large_is_refused_alone Plain any,
                just_fits Plain settles,
                nothing_to_send Plain any,
                ten_thousand_at_once Plain settles,
                eight_senders_at_once Ordered ordered,
                eight_plain_senders_at_once Plain settles,
                to_a_missing_topic_is_not_confirmed Plain any,
            }
            content {
                payloads_survive Plain settles,
                keys_survive Plain settles,
                headers_survive Plain settles,
                large_payloads_survive Plain settles,
                a_json_payload_is_not_touched Plain settles,
                ids_and_times_survive Plain settles,
                keys_stay_with_their_messages Plain settles,
            }
            groups {
                every_confirmed_message_comes Plain settles,
                each_group_gets_everything Plain settles,
                groups_settle_on_their_own Plain settles,
                nobody_needs_to_listen Plain settles,
                a_new_group_starts_with_the_oldest Plain keeps,
                a_new_group_starts_with_the_latest Plain settles,
                a_new_group_starts_at_a_time Plain keeps,
                many_routes_in_one_subscription Plain settles,
                routes_of_one_subscription_settle_apart Plain settles,
            }
            members {
                members_compete Plain settles,
                members_come_and_go Plain settles,
                unsettled_comes_back_after_a_death Plain settles,
                a_death_does_not_bring_back_what_was_done Plain settles,
                a_dead_connection_frees_its_messages Plain settles,
                held_messages_go_to_nobody_else Plain keeps_leases,
                calls_of_one_member_at_once Plain settles,
            }
            settle {
                done_never_comes_back Plain settles,
                done_out_of_order_holds_each Plain settles,
                answers_come_in_order Plain settles,
                a_stale_token_is_stale Plain settles,
                a_stale_token_settles_nothing_else Plain settles,
                an_unknown_token_is_stale Plain settles,
                extend_says_what_is_held Plain keeps_leases,
                the_count_rises Plain counts,
                the_count_is_not_made_up Plain counts_not,
            }
            release {
                release_comes_again Plain settles,
                release_is_not_counted Plain releases,
                close_releases Plain settles,
                close_is_not_counted Plain releases,
                retry_comes_when_it_is_due Plain delays,
                retry_does_not_hold_up_others Plain delays,
                retry_survives_its_member Plain delays,
            }
            flow {
                next_is_empty_after_its_wait Plain any,
                next_returns_as_soon_as_there_is_something Plain settles,
                next_keeps_its_maximum Plain settles,
                next_keeps_its_bytes Plain settles,
                a_dropped_next_loses_nothing Plain settles,
                prefetch_is_bounded_by_count Plain settles,
                prefetch_is_bounded_by_bytes Plain settles,
                pause_stops_and_resume_starts Plain settles,
                paused_members_settle Plain settles,
                a_closed_subscription_ends Plain any,
            }
            order {
                a_shard_keeps_its_order Ordered owned,
                a_message_lies_in_its_shard Ordered ordered,
                a_shard_has_one_owner Ordered owned,
                epochs_rise Ordered owned,
                a_new_owner_goes_on_in_order Ordered owned,
                order_holds_while_members_change Ordered owned,
                what_comes_again_comes_before_what_follows Ordered owned,
            }
            revoke {
                a_yielded_shard_moves Ordered owned,
                a_shard_waits_to_be_yielded Ordered owned,
                a_shard_that_is_not_yielded_is_lost Ordered owned,
                the_last_member_gets_all_shards Ordered owned,
            }
            keys {
                a_key_keeps_its_order Ordered keyed,
                a_key_in_hand_is_nobody_elses Ordered keyed,
                what_waits_holds_its_key Ordered keyed,
                what_is_released_comes_before_what_follows Ordered keyed,
                order_of_keys_holds_while_members_change Ordered keyed,
            }
            depth {
                depth_counts Plain settles,
                depth_is_of_its_group Plain settles,
                depth_knows_the_oldest Plain settles,
                depth_survives_a_new_connection Plain settles,
            }
            read {
                read_gives_what_was_sent Plain keeps,
                read_does_not_consume Plain keeps,
                read_starts_where_asked Plain keeps,
                read_starts_at_a_time Plain keeps,
                settled_messages_stay_readable Plain keeps,
            }
            seek {
                seek_to_the_oldest Plain keeps,
                seek_to_the_latest Plain keeps,
                seek_to_a_time Plain keeps,
                seek_to_a_position_moves_one_shard Ordered ordered_and_kept,
                seek_while_messages_are_held Plain keeps,
                seek_moves_one_group Plain keeps,
            }
            refuse {
                read_where_nothing_is_kept Plain keeps_not,
                seek_where_nothing_is_kept Plain keeps_not,
                order_where_none_is_declared Ordered ordered_not,
                delays_beyond_the_declared Plain delays_not_for_ever,
                a_group_that_was_not_ensured Plain settles,
            }
        }
    };
}

fn ordered_and_kept(c: &Capabilities) -> Pick {
    when(c.ordered_shards && c.keeps_messages, "order or keeping is not declared")
}

macro_rules! list {
    ($($subject:ident { $($name:ident $kind:ident $needs:ident,)* })*) => {
        const LIST: &[Scenario] = &[$($(Scenario {
            name: concat!(stringify!($subject), "/", stringify!($name)),
            kind: Kind::$kind,
            needs: $needs,
            run: |bed| Box::pin($subject::$name(bed)),
        },)*)*];
    };
}
for_each_scenario!(list);

/// All scenarios there are.
#[must_use]
pub fn scenarios() -> &'static [Scenario] {
    LIST
}

/// Runs one scenario on a runtime of its own and panics if the provider fails it. What [`conformance_tests!`] calls.
///
/// # Panics
/// If the scenario fails, with what the provider did.
pub fn run_as_test<F: Future<Output = Arc<dyn Broker>>>(name: &str, broker: impl FnOnce() -> F) {
    let scenario = Scenario::named(name).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (broker, outcome) = runtime.block_on(async {
        let broker = broker().await;
        let outcome = scenario.run(Arc::clone(&broker)).await;
        (broker.name().to_owned(), outcome)
    });
    match outcome {
        Outcome::Passed => {}
        Outcome::Skipped(why) => println!("{name} on {broker} left out: {why}"),
        Outcome::Failed(failure) => panic!("{broker}: {failure}"),
    }
}

/// Makes one `#[test]` of each scenario, in a module per subject. Takes the path, from the root of the crate, of an
/// `async fn() -> Arc<dyn Broker>` that starts an empty broker or names one.
#[macro_export]
macro_rules! conformance_tests {
    ($broker:path) => {
        $crate::for_each_scenario!($crate::scenario_tests, [$broker]);
    };
}

#[macro_export]
#[doc(hidden)]
macro_rules! scenario_tests {
    ([$broker:path] $($subject:ident { $($name:ident $kind:ident $needs:ident,)* })*) => {
        $(mod $subject {
            $(#[test]
            fn $name() {
                $crate::conformance::run_as_test(concat!(stringify!($subject), "/", stringify!($name)), $broker);
            })*
        })*
    };
}
