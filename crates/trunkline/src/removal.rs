//! What concerns the catalogue and the servers both: removing topics and brokers, moving an env to another server, and whom a
//! narrower schema concerns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::access::Call;
use crate::catalog::{BrokerUpdate, BrokerView, LeftBehind, RouteEntry, TopicDoc, TopicUpdate};
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::lot::topics::TopicLot;
use crate::members::SILENT;
use crate::policy::LotPlace;
use crate::provider::{Provider, Remove};
use crate::store::{Member, MemberRole};
use crate::trunkline::Trunkline;

/// How long a server that an env leaves is given to say what waits on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a topic or broker is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removal {
    /// Also removes what lies on the broker: messages, groups, and the lot's topics. History and dead letters in the store
    /// stay.
    pub purge: bool,
    /// Even while consumers are live.
    pub force: bool,
}

impl Trunkline {
    /// Removes a topic.
    ///
    /// # Errors
    /// `TOPIC_NOT_FOUND`; `IN_USE` while consumers are live, unless `force`; with `purge` also what the providers answer,
    /// before anything was removed from the catalogue.
    pub async fn delete_topic(&self, product: &str, event: &Event, how: Removal) -> Result<Arc<TopicDoc>> {
        if self.catalog().fetch_topic(product, event.as_str())?.is_none() {
            return self.catalog().delete_topic(product, event.as_str()).await;
        }
        self.0.access.allow(Call::TopicDelete)?;
        self.remove_first(product, how, |of| of == event).await?;
        let topic = self.catalog().delete_topic(product, event.as_str()).await?;
        self.forget_routes(product, |of| of == event).await;
        Ok(topic)
    }

    /// Changes a topic, see [`Catalog::update_topic`](crate::Catalog::update_topic); where its schema became narrower, the
    /// result names the live consumers it concerns.
    ///
    /// # Errors
    /// As there.
    pub async fn update_topic(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<TopicUpdate> {
        let update = self.catalog().update_topic(product, tag, patch).await?;
        self.with_affected(update).await
    }

    /// What [`Trunkline::update_topic`] would come to; nothing is written.
    ///
    /// # Errors
    /// As there.
    pub async fn plan_topic(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<TopicUpdate> {
        let update = self.catalog().scratch().await?.update_topic(product, tag, patch).await?;
        self.with_affected(update).await
    }

    async fn with_affected(&self, mut update: TopicUpdate) -> Result<TopicUpdate> {
        if !update.breaking.is_empty() {
            let topic = &update.topic;
            let concerned = |of: &Member| *of.address.product == *topic.product && of.address.event == topic.tag;
            update.affected = self.members(Some(MemberRole::Consumer)).await?.into_iter().filter(concerned).collect();
        }
        Ok(update)
    }

    /// Removes a broker with its topics.
    ///
    /// # Errors
    /// `BROKER_NOT_FOUND`; the rest as [`Trunkline::delete_topic`].
    pub async fn delete_broker(&self, product: &str, tag: &str, how: Removal) -> Result<BrokerView> {
        if self.catalog().fetch_broker(product, tag)?.is_none() {
            return self.catalog().delete_broker(product, tag).await;
        }
        self.0.access.allow(Call::BrokerDelete)?;
        self.remove_first(product, how, |of| of.broker() == tag).await?;
        let broker = self.catalog().delete_broker(product, tag).await?;
        self.forget_routes(product, |of| of.broker() == tag).await;
        Ok(broker)
    }

    /// Changes a broker, see [`Catalog::update_broker`](crate::Catalog::update_broker), and says what still waits where its envs
    /// led to before.
    ///
    /// # Errors
    /// As there. An old server that cannot be asked is no error: its groups stand in the result without a depth.
    pub async fn update_broker(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<BrokerUpdate> {
        let mut update = self.catalog().update_broker(product, tag, patch).await?;
        update.scope = (!update.moved.is_empty() && !update.cut).then(|| self.0.store.scope());
        for moved in &update.moved {
            for entry in &moved.left {
                for group in &entry.groups {
                    let (depth, error) = match self.depth_of(entry, &group.physical).await {
                        Ok(0) => continue,
                        Ok(depth) => (Some(depth), None),
                        Err(error) => (None, Some(error)),
                    };
                    let (topic, env, group) = (entry.address.event.clone(), moved.env.clone(), group.name.to_string());
                    update.left_behind.push(LeftBehind { topic, env, group, depth, error });
                }
            }
        }
        Ok(update)
    }

    /// What waits for a group on the server of a route, which may be one of the past.
    async fn depth_of(&self, entry: &RouteEntry, group: &str) -> Result<u64> {
        let asked = async {
            let provider = self.0.provider((&entry.address.product, &entry.address.env), entry.kind, &entry.config).await?;
            provider.depth(&entry.topic_spec(), group).await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(depth)) => Ok(depth.ready + depth.in_flight),
            // Nothing was ever sent there.
            Ok(Err(error)) if matches!(error.code(), Code::TopicNotFound | Code::GroupNotFound) => Ok(0),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(Code::Timeout, "the old server did not answer in time")),
        }
    }

    /// Refuses what is in use, and purges what is asked for.
    async fn remove_first(&self, product: &str, how: Removal, concerns: impl Fn(&Event) -> bool) -> Result<()> {
        if !how.force {
            let members = self.0.store.members(None, SILENT).await?;
            let consumers = members.iter().filter(|member| member.role == MemberRole::Consumer);
            let live = consumers.filter(|member| &*member.address.product == product && concerns(&member.address.event)).count();
            if live > 0 {
                return Err(Error::new(Code::InUse, format!("{live} live consumers use it"))
                    .next("stop them first (`trunkline groups list EVENT` shows them), or pass --force"));
            }
        }
        if how.purge {
            // Every connection is opened first, so that a provider that cannot be reached leaves everything as it was.
            let mut opened = Vec::new();
            for entry in self.entries(product, concerns)? {
                let provider = self.0.provider((&entry.address.product, &entry.address.env), entry.kind, &entry.config).await?;
                opened.push((provider, entry));
            }
            for (provider, entry) in opened {
                self.purge(&provider, &entry).await?;
            }
        }
        Ok(())
    }

    /// The routes of all topics concerned, in every env.
    fn entries(&self, product: &str, concerns: impl Fn(&Event) -> bool) -> Result<Vec<Arc<RouteEntry>>> {
        let mut entries = Vec::new();
        for broker in self.catalog().list_brokers(product)? {
            for topic in broker.topics.iter().filter(|topic| concerns(&topic.tag)) {
                for env in &broker.envs {
                    entries.push(self.catalog().route(product, &env.slug, &topic.tag)?);
                }
            }
        }
        Ok(entries)
    }

    async fn purge(&self, provider: &Arc<dyn Provider>, entry: &RouteEntry) -> Result<()> {
        let topic = entry.topic_spec();
        if self.0.lot_place(entry.kind) == LotPlace::Topics {
            let lot = |group| TopicLot::of_group(provider.clone(), &topic, entry.address.clone(), group, self.0.store.clone());
            for group in &entry.groups {
                lot(group.name.clone()).remove().await?;
            }
            TopicLot::of_delays(provider.clone(), &topic, entry.address.clone(), self.0.store.clone()).remove().await?;
        }
        // A provider may know the groups of others only by their names.
        for group in &entry.groups {
            provider.remove(Remove::Group(&topic, &group.physical)).await?;
        }
        provider.remove(Remove::Topic(&topic)).await
    }

    async fn forget_routes(&self, product: &str, concerns: impl Fn(&Event) -> bool) {
        for route in self.0.take_routes(|address| &*address.product == product && concerns(&address.event)) {
            route.sender.close(Instant::now() + Duration::from_secs(1)).await;
        }
    }
}
