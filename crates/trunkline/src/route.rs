//! A route: one topic in one env, opened. What a produce or a consume needs, found once and shared.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::capability::Capabilities;
use crate::catalog::CacheDoc;
use crate::error::{Code, Error, Result};
use crate::history::Filed;
use crate::inner::Inner;
use crate::lot::topics::TopicLot;
use crate::payloads::Payloads;
use crate::produce::sender::Sender;
use crate::provider::{Provider, TopicSpec};
use crate::sessions::Gate;
use crate::store::Store;

/// See the module.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) filed: Arc<Filed>,
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) topic: TopicSpec,
    pub(crate) capabilities: Capabilities,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sender: Sender,
    /// This process, in claims and leases.
    pub(crate) process: Arc<str>,
    /// Told when a delayed publish was put.
    pub(crate) delayed: Arc<Notify>,
    /// Where delayed publishes wait, if not in the store.
    pub(crate) delays: Option<Arc<TopicLot>>,
    /// The lots of groups, where they are not in the store.
    pub(crate) lots: Mutex<HashMap<Arc<str>, Arc<TopicLot>>>,
    /// For messages that carry a session already.
    pub(crate) sessions: Arc<Gate>,
    /// For the registry.
    pub(crate) pulse: crate::background::Pulse,
    /// The number of this configuration of the env.
    pub(crate) epoch: u64,
    /// Changes with the config, and with the secrets in it.
    pub(crate) connection: u64,
    /// Checks payloads against the topic's schema.
    pub(crate) payloads: Arc<Payloads>,
    /// The instance it belongs to, which knows the catalogue.
    pub(crate) instance: Weak<Inner>,
}

impl Route {
    /// A cache of the product, as the catalogue has it now.
    pub(crate) fn cache(&self, tag: &str) -> Result<Arc<CacheDoc>> {
        let instance = self.instance.upgrade().ok_or_else(|| Error::new(Code::Closed, "this instance is closed"))?;
        instance.catalog.cache(&self.filed.address.product, tag)
    }

    /// The lot of a group, if it is not in the store; that of delayed publishes has no group.
    pub(crate) fn lot_of(&self, group: &str) -> Option<Arc<TopicLot>> {
        let delays = self.delays.as_ref()?;
        if group.is_empty() {
            return Some(delays.clone());
        }
        let mut lots = self.lots.lock();
        if let Some(lot) = lots.get(group) {
            return Some(lot.clone());
        }
        let (provider, address) = (self.provider.clone(), self.filed.address.clone());
        let lot = Arc::new(TopicLot::of_group(provider, &self.topic, address, group.into(), self.store.clone()));
        lots.insert(group.into(), lot.clone());
        Some(lot)
    }

    /// Messages with a key go to the key's shard, the others are spread by the provider.
    pub(crate) fn shard_of(&self, key: Option<&Bytes>) -> Option<u32> {
        key.map(|key| shard_of(key, self.topic.shards))
    }
}

/// `murmur2(key) mod n` as Kafka's Java client computes it, so that every producer agrees on the shard of a key.
#[must_use]
pub fn shard_of(key: &[u8], shards: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % shards.max(1)
}

/// Murmur2 with the seed and the mixing of Kafka's `Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ (data.len() as u32);
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * at);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_agrees_with_kafka() {
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (text, expected) in vectors {
            assert_eq!(murmur2(text.as_bytes()) as i32, expected, "{text}");
        }
    }
}
