//! What every store promises, mostly with two opened on the same place: they share nothing but that place.
//!
//! One list for all of them: `store_sqlite` and `store_postgres` run it, each with a bed of its own.

pub mod access;
pub mod audit;
pub mod caches;
pub mod idempotency;
pub mod lot;
pub mod rest;
pub mod schedules;
pub mod sessions;
pub mod transfer;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use trunkline::delivery::Position;
use trunkline::message::Millis;
use trunkline::store::*;
use trunkline::{Code, Headers, MessageId};

/// A place for stores, and a time that moves only when told.
#[async_trait]
pub trait Bed: Send + Sync {
    /// Opens the store there, once more.
    async fn open(&self) -> Arc<dyn Store>;
    /// Lets so many ms pass.
    fn pass(&self, ms: u64);
}

/// When a bed's time begins.
pub const START: Millis = 1_800_000_000_000;
/// How long claims and leases of the tests hold.
pub const LEASE: Duration = Duration::from_secs(30);

/// The tests, one line each; `$bed` makes a new bed.
macro_rules! store_tests {
    ($bed:expr) => {
        crate::stores::store_tests!($bed, idempotency:
            of_racing_claims_each_key_is_given_once
            the_life_of_a_key
            a_claim_is_given_back_by_its_owner_only
            a_key_twice_in_one_call_is_given_once
            handled_ids_are_known_for_their_window);
        crate::stores::store_tests!($bed, lot:
            entries_come_back_as_they_were_put_and_only_once
            claims_of_two_stores_never_overlap
            settling_waits_buries_and_gives_back
            only_the_head_of_a_chain_is_handed_out
            a_revived_head_waits_for_the_one_in_hand
            chains_keep_their_order_while_all_of_them_move
            delayed_publishes_are_claimed_by_time_over_all_topics
            filters_find_what_they_say_however_many_topics_there_are
            the_dead_are_grouped_by_the_first_line_of_their_error
            dead_letters_are_edited_and_discarded_others_are_not
            a_revive_that_is_interrupted_goes_on_where_it_stopped
            claims_that_end_without_an_outcome_are_counted
            hand_overs_of_a_lot_on_the_broker_are_counted
            the_index_follows_the_dead_topic
            an_entry_settled_twice_is_settled_once);
        crate::stores::store_tests!($bed, rest:
            the_catalogue_is_written_by_whoever_saw_the_last_version
            a_lease_has_one_owner_and_its_epoch_never_comes_again
            members_age_and_leave
            a_job_put_with_an_old_ledger_keeps_the_newer_one
            a_closed_store_says_so_and_finishes_what_it_was_given);
        crate::stores::store_tests!($bed, transfer:
            a_backup_brings_everything_back
            half_a_backup_and_a_full_store_are_refused
            what_is_sealed_signed_and_due_comes_back_as_it_was
            a_file_of_the_version_before_restores_and_one_of_the_next_does_not);
        crate::stores::store_tests!($bed, access:
            secrets_and_documents_change_together_or_not_at_all
            a_key_is_written_once_and_then_only_revoked
            one_version_covers_documents_secrets_and_keys);
        crate::stores::store_tests!($bed, audit:
            rows_of_racing_stores_make_one_chain
            rows_are_found_by_what_they_say);
        crate::stores::store_tests!($bed, caches:
            the_life_of_a_value
            of_racing_claims_one_produces
            a_claim_is_given_back_by_its_owner_only);
        crate::stores::store_tests!($bed, schedules:
            a_due_schedule_is_claimed_by_one
            what_a_dead_owner_was_firing_is_fired_again
            a_failed_firing_waits_and_is_shown
            a_change_of_state_ends_the_claim);
        crate::stores::store_tests!($bed, sessions:
            of_racing_keys_one_is_kept_and_a_retired_one_verifies_for_its_time
            of_racing_subjects_one_is_kept
            a_refresh_token_is_good_once_whoever_comes_first
            sessions_are_ended_by_one_by_subject_and_all_together
            pages_show_what_is_good_now
            an_erased_subject_is_gone_and_starts_no_session
            what_is_over_is_swept);
    };
    ($bed:expr, $part:ident: $($name:ident)*) => {
        mod $part {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bed = $bed.await;
                crate::stores::$part::$name(&bed).await;
                bed.end().await;
            })*
        }
    };
}
pub(crate) use store_tests;

pub fn address(topic: &str) -> Address {
    Address { product: "shop".into(), env: "dev".into(), event: format!("orders:{topic}").parse().unwrap() }
}

pub fn entry(state: LotState, n: u64) -> LotEntry {
    LotEntry {
        seq: 0,
        state,
        address: address("created"),
        group: if state == LotState::Publish { "" } else { "billing" }.into(),
        chain: None,
        due_at: START,
        attempts: 3,
        reason: (state == LotState::Dead).then(|| "attempts_exhausted".to_owned()),
        error: Some(format!("no connection {}\nat line 1", n % 3)),
        died_at: None,
        job: None,
        deliveries: 0,
        message: LotMessage {
            id: MessageId::derived(START + n / 50, &[&n.to_le_bytes()]),
            key: Some(Bytes::from(format!("key-{n}"))),
            headers: Headers::from_iter([("tenant", Bytes::from_static(b"a"))]),
            payload: Bytes::from(format!("{{\"n\":{n}}}")),
            produced_at: START - 5,
            position: Position { shard: 0, offset: u64::MAX - n },
        },
    }
}

pub fn job(id: &str) -> Job {
    Job {
        id: id.to_owned(),
        kind: "reprocess".to_owned(),
        product: "shop".to_owned(),
        state: "running".to_owned(),
        spec: json!({ "all": true }),
        cursor: 0,
        matched: 0,
        done: 0,
        failed: 0,
        skipped: 0,
        results: Vec::new(),
        created_at: START,
        updated_at: START,
    }
}
