//! A connection that lies.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use trunkline::capability::Capabilities;
use trunkline::delivery::Position;
use trunkline::message::MessageId;
use trunkline::provider::{
    Depth, Ensured, GroupSpec, Outgoing, Provider, ReadFrom, Remove, SendError, Stage, Start, Stored, SubscribeOptions, Subscription,
    TopicSpec,
};
use trunkline::{Code, Headers, Result};

use super::subscription::LyingSubscription;
use super::{Lie, Shared};

#[derive(Debug)]
pub(super) struct LyingConnection {
    pub(super) inner: Arc<dyn Provider>,
    pub(super) lie: Option<Lie>,
    pub(super) shared: Arc<Shared>,
}

impl LyingConnection {
    fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }

    fn groups(&self, topic: &TopicSpec) -> Vec<Arc<str>> {
        self.shared.groups.lock().get(&topic.name).cloned().unwrap_or_default()
    }

    async fn seek_all(&self, topic: &TopicSpec, to: &Start) -> Result<()> {
        for group in self.groups(topic) {
            self.inner.seek(topic, &group, to).await?;
        }
        Ok(())
    }

    /// What the messages become before they are sent.
    fn corrupt(&self, topic: &TopicSpec, batch: &mut [Outgoing]) {
        for message in &mut *batch {
            match self.lie {
                Some(Lie::LosesHeaders) => message.headers = one_of_each(&message.headers),
                Some(Lie::CutsPayloads) => message.payload.truncate(60_000),
                Some(Lie::TidiesJson) => message.payload = tidy(&message.payload),
                Some(Lie::NewIds) => message.id = MessageId::now(),
                Some(Lie::MixesShards) => message.shard = message.shard.map(|shard| (shard + 1) % topic.shards),
                _ => {}
            }
        }
        if self.lies(Lie::MixesKeys) {
            for pair in batch.chunks_exact_mut(2) {
                let (left, right) = pair.split_at_mut(1);
                std::mem::swap(&mut left[0].key, &mut right[0].key);
            }
        }
    }
}

fn one_of_each(headers: &Headers) -> Headers {
    let mut seen = HashSet::new();
    headers.iter().filter(|(name, _)| seen.insert(*name)).map(|(name, value)| (name, value.clone())).collect()
}

fn tidy(payload: &Bytes) -> Bytes {
    match serde_json::from_slice::<serde_json::Value>(payload) {
        Ok(value) => value.to_string().into(),
        Err(_) => payload.clone(),
    }
}

#[async_trait]
impl Provider for LyingConnection {
    fn capabilities(&self, topic: &TopicSpec) -> Capabilities {
        let mut capabilities = self.inner.capabilities(topic);
        if self.lies(Lie::DeclaresAtWill) {
            capabilities.takeover_ms += self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        }
        capabilities
    }

    async fn ensure(&self, topic: &TopicSpec, groups: &[GroupSpec]) -> Result<Ensured> {
        let mut wish = topic.clone();
        wish.ordered &= !self.lies(Lie::TakesAnyOrder);
        let mut specs = groups.to_vec();
        for group in &mut specs {
            if self.lies(Lie::StartsLate) {
                group.start = Start::Latest;
            }
        }
        let mut ensured = self.inner.ensure(&wish, &specs).await?;
        if self.lies(Lie::HidesDrift) {
            ensured.drift.clear();
        }
        for group in groups {
            let known = self.groups(topic).contains(&group.name);
            if !known {
                self.shared.groups.lock().entry(Arc::clone(&topic.name)).or_default().push(Arc::clone(&group.name));
            } else if self.lies(Lie::EnsureMovesGroups) {
                self.inner.seek(topic, &group.name, &group.start).await?;
            }
        }
        Ok(ensured)
    }

    async fn remove(&self, what: Remove<'_>) -> Result<()> {
        if self.lies(Lie::RemovesNothing) { Ok(()) } else { self.inner.remove(what).await }
    }

    async fn send(&self, topic: &TopicSpec, batch: Arc<Vec<Outgoing>>) -> Vec<Result<Position, SendError>> {
        let mut batch = Arc::unwrap_or_clone(batch);
        let shards: Vec<_> = batch.iter().map(|message| message.shard).collect();
        self.corrupt(topic, &mut batch);
        if self.lies(Lie::ReordersBatches) {
            batch.reverse();
        }
        if self.lies(Lie::SendsTwice) {
            self.inner.send(topic, Arc::new(batch.clone())).await;
        }
        let mut dropped = Vec::new();
        if self.lies(Lie::ConfirmsAndDrops) {
            dropped = batch.iter().enumerate().filter(|(at, _)| at % 3 == 2).map(|(at, _)| at).collect();
            batch = batch.into_iter().enumerate().filter(|(at, _)| at % 3 != 2).map(|(_, message)| message).collect();
        }
        let mut results = self.inner.send(topic, Arc::new(batch)).await;
        for at in dropped {
            let before = results[at - 1].as_ref().map_or(Position::default(), |position| *position);
            results.insert(at, Ok(Position { offset: before.offset + 1, ..before }));
        }
        for (at, result) in results.iter_mut().enumerate() {
            let too_large = result.as_ref().is_err_and(|error| error.error.code() == Code::PayloadTooLarge);
            if too_large && self.lies(Lie::ConfirmsTooLarge) {
                *result = Ok(Position::default());
            }
            if let (Ok(position), Some(shard), true) = (result, shards.get(at).copied().flatten(), self.lies(Lie::MixesShards)) {
                position.shard = shard;
            }
        }
        if self.lies(Lie::ReordersBatches) || self.lies(Lie::SwapsResults) {
            results.reverse();
        }
        let refusal = results.iter().find_map(|result| result.as_ref().err().cloned());
        if let (Some(refusal), true) = (refusal, self.lies(Lie::RefusesNeighbours)) {
            results.fill_with(|| Err(refusal.clone()));
        }
        results
    }

    async fn subscribe(&self, routes: &[TopicSpec], group: &GroupSpec, mut options: SubscribeOptions) -> Result<Arc<dyn Subscription>> {
        if self.lies(Lie::FetchesWithoutBound) {
            options.prefetch.count = 100_000;
        }
        let inner = self.inner.subscribe(routes, group, options).await?;
        Ok(Arc::new(LyingSubscription::new(inner, self.lie, Arc::clone(&self.shared), &group.name)))
    }

    async fn depth(&self, topic: &TopicSpec, group: &str) -> Result<Depth> {
        let mut depth = self.inner.depth(topic, group).await?;
        if self.lies(Lie::OneDepthForAll) {
            for other in self.groups(topic).iter().filter(|other| &***other != group) {
                depth.ready += self.inner.depth(topic, other).await?.ready;
            }
        }
        if self.lies(Lie::WrongDepth) {
            depth.ready = depth.ready.saturating_sub(1);
        }
        Ok(depth)
    }

    async fn read(&self, topic: &TopicSpec, from: ReadFrom, max: usize) -> Result<Vec<Stored>> {
        let more = if self.lies(Lie::ReadsTooMuch) { max + 1 } else { max };
        let stored = self.inner.read(topic, from, more).await;
        if self.lies(Lie::ReadConsumes) {
            self.seek_all(topic, &Start::Latest).await?;
        }
        if self.lies(Lie::ReadsNothing) { stored.or_else(|_| Ok(Vec::new())) } else { stored }
    }

    async fn seek(&self, topic: &TopicSpec, group: &str, to: &Start) -> Result<()> {
        match self.lie {
            Some(Lie::IgnoresSeek | Lie::SeeksNothing) => Ok(()),
            Some(Lie::SeeksAllGroups) => self.seek_all(topic, to).await,
            _ => self.inner.seek(topic, group, to).await,
        }
    }

    async fn probe(&self, deadline: Instant) -> Vec<Stage> {
        if self.lies(Lie::ProbesNothing) { Vec::new() } else { self.inner.probe(deadline).await }
    }

    async fn close(&self, deadline: Instant) {
        if !self.lies(Lie::CloseDoesNothing) {
            self.inner.close(deadline).await;
        }
    }
}
