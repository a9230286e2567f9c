//! The producers: every key in order, all keys at once, several rounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::{Env, Result};

use crate::demo::evidence::Confirmed;
use crate::demo::input::Webhook;
use crate::demo::members::KIND;
use crate::demo::stage::EVENT;

/// Produces the input `rounds` times; returns what was confirmed, with the kind's name for the story.
///
/// The messages of a key are sent one after the other, each after the confirm of the one before: that is what makes their
/// order certain. Keys go side by side, so that confirms are gathered.
///
/// # Errors
/// The first produce that was not confirmed.
pub(crate) async fn produce_all(env: &Env, webhooks: &[Webhook], rounds: usize, confirmed: &AtomicU64) -> Result<Vec<Confirmed>> {
    let mut keys: BTreeMap<&str, Vec<&Webhook>> = BTreeMap::new();
    for webhook in webhooks {
        keys.entry(&webhook.key).or_default().push(webhook);
    }
    let lines = keys.into_iter().map(|(key, line)| async move {
        let key: Arc<str> = key.into();
        let mut sent = Vec::with_capacity(line.len() * rounds);
        for (webhook, sequence) in (0..rounds).flat_map(|_| &line).zip(0..) {
            let receipt = env.produce_raw(EVENT, webhook.body.clone()).key(&*key).header(KIND, webhook.kind.clone()).await?;
            confirmed.fetch_add(1, Ordering::Relaxed);
            sent.push(Confirmed { id: receipt.process_id, key: key.clone(), sequence });
        }
        Ok(sent)
    });
    Ok(futures_util::future::try_join_all(lines).await?.into_iter().flatten().collect())
}
