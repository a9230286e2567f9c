//! Producing under a cache: a message that equals one of the last while is answered with the first result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{Ready, Receipt, canonical, hand_over, is_unsent};
use crate::error::{Code, Error, Result};
use crate::route::Route;
use crate::store::Store;
use crate::store::cache::{CacheClaim, CacheClaimed, CacheKey};

/// Produces what is ready, unless an equal message was produced under this cache within its expiry. `fixed`: the id of what
/// is ready may not be changed to that of an earlier try.
pub(super) async fn cached(route: &Arc<Route>, tag: &str, fixed: bool, mut ready: Ready) -> Result<Receipt> {
    let cache = route.cache(tag).map_err(|error| error.detail("ambiguous", false))?;
    let (store, address) = (&route.store, &route.filed.address);
    let claim = CacheClaim {
        key: CacheKey { scope: cache.scope(), hash: hash(route, &ready) },
        env: address.env.to_string(),
        event: address.event.clone(),
        id: ready.outgoing.id,
        owner: route.process.to_string(),
        lease: ready.times.deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(5),
        expiry: cache.expires_after(),
    };
    let key = claim.key.clone();
    match claim_value(store.as_ref(), claim, ready.times.deadline).await {
        Ok(CacheClaimed::Hit { id }) => return Ok(Receipt { cached: Some(true), ..Receipt::of(id) }),
        Ok(CacheClaimed::Ours(id)) if !fixed => ready.outgoing.id = id,
        Ok(CacheClaimed::Ours(_)) => {}
        Ok(CacheClaimed::InProgress { until }) => {
            return Err(Error::new(Code::Timeout, format!("an equal message is still being produced under cache '{tag}'"))
                .detail("until", until)
                .detail("ambiguous", false)
                .next("try again: its result is returned then"));
        }
        // A cache saves work; it does not keep anybody from working.
        Err(error) => {
            tracing::warn!(%error, cache = tag, "the cache cannot be asked; the message is sent");
            return hand_over(route, ready).await.map(|receipt| Receipt { cached: Some(false), ..receipt });
        }
    }
    let sent = hand_over(route, ready).await;
    let noted = match &sent {
        // If this is lost, the claim runs out and an equal message is sent again, with the same id.
        Ok(receipt) => store.cache_sent(&key, receipt.process_id, &route.process).await,
        Err(error) if is_unsent(error) => store.cache_abandon(&key, &route.process).await,
        // The broker may have it: the claim holds until nobody can be sending it any more.
        Err(_) => Ok(()),
    };
    if let Err(error) = noted {
        tracing::warn!(%error, cache = tag, "the result of a produce could not be noted in the cache");
    }
    sent.map(|receipt| Receipt { cached: Some(false), ..receipt })
}

/// What makes two messages equal: env, event, key and payload. Headers do not count: those of tracing differ each time.
fn hash(route: &Route, ready: &Ready) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(route.filed.address.env.as_bytes());
    part(route.filed.address.event.as_str().as_bytes());
    match &ready.outgoing.key {
        Some(key) => [&[1][..], key].into_iter().for_each(&mut part),
        None => part(&[0]),
    }
    part(&canonical(&ready.outgoing.payload));
    hash.finalize().into()
}

/// Claims the message; waits for an equal one that is under way, up to the deadline.
async fn claim_value(store: &dyn Store, claim: CacheClaim, deadline: Instant) -> Result<CacheClaimed> {
    let mut pause = Duration::from_millis(5);
    loop {
        let claimed = store.cache_claim(claim.clone()).await?;
        if !matches!(claimed, CacheClaimed::InProgress { .. }) || Instant::now() + pause > deadline {
            return Ok(claimed);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
