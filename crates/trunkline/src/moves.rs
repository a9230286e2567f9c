//! Envs that move to another server: old and new are consumed side by side until nothing is left on the old one.
//!
//! The catalogue knows which servers an env is leaving, so that a process which starts in the middle goes on with it. One
//! process at a time looks whether a group is through: nobody produces to the old server any more, and nothing has waited
//! for the group there for a while. Then it is noted, and every consumer of the group leaves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::RouteEntry;
use crate::error::{Code, Result};
use crate::inner::Inner;
use crate::policy::LotPlace;
use crate::provider::Provider;
use crate::route::Route;
use crate::store::MemberRole;

/// Nothing must have waited for so long.
const QUIET: Duration = Duration::from_secs(10);
/// A producer that has not reported for so long is gone.
const SILENT: Duration = Duration::from_secs(10);
/// How long an old server is given to say what waits there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who looks is the only one for so long.
const LEASE: Duration = Duration::from_secs(10);

impl Inner {
    /// Opens anew what this process produces to, where the catalogue says that it has moved, or where its config or a secret
    /// in it changed: then the others see that nothing comes to the old server from here.
    pub(crate) async fn follow_moves(self: &Arc<Self>) {
        for route in self.open_routes() {
            let address = &route.filed.address;
            let now = self.catalog.route(&address.product, &address.env, &address.event);
            let stays = |entry: &RouteEntry| entry.epoch == route.epoch && self.connection_of(entry).is_ok_and(|of| of == route.connection);
            let moved = now.is_ok_and(|entry| !stays(&entry));
            if moved && let Err(error) = self.route(&address.product, &address.env, address.event.as_str()).await {
                tracing::warn!(%error, %address, "the server that the env leads to now cannot be opened");
            }
        }
    }

    /// Looks what is left on servers that envs are leaving, and lets go of those that are left for good.
    pub(crate) async fn tend_moves(self: &Arc<Self>) -> Result<()> {
        self.forget_left().await;
        let leaving = self.leaving();
        if leaving.is_empty() {
            self.quiet.lock().clear();
            return Ok(());
        }
        if self.store.lease_take("moves", &self.process, LEASE).await?.is_none() {
            return Ok(());
        }
        // By broker, env and epoch: a server is forgotten as a whole.
        type Server = (Arc<str>, String, Arc<str>, u64);
        let mut servers: HashMap<Server, Vec<Arc<RouteEntry>>> = HashMap::new();
        for (env_epoch, entry) in leaving {
            let address = &entry.address;
            let key = (address.product.clone(), address.event.broker().to_owned(), address.env.clone(), env_epoch);
            servers.entry(key).or_default().push(entry);
        }
        for ((product, broker, env, epoch), entries) in servers {
            let (mut through, mut all) = (Vec::new(), true);
            for entry in &entries {
                let idle = self.nobody_produces(entry).await?;
                for group in self.groups_left(entry) {
                    if entry.through.contains(&*group) {
                        continue;
                    }
                    if idle && self.is_quiet(entry, &group).await {
                        through.push((entry.topic.topic_tag.clone(), group.to_string()));
                    } else {
                        all = false;
                    }
                }
            }
            if all || !through.is_empty() {
                tracing::info!(%product, broker, %env, epoch, ?through, all, "nothing is left on the old server");
                self.catalog.note_through((&product, &broker, &env), epoch, &through, all).await?;
            }
        }
        Ok(())
    }

    /// The topics on servers that envs are leaving, with the epoch of the env there.
    fn leaving(&self) -> Vec<(u64, Arc<RouteEntry>)> {
        let mut all = Vec::new();
        for product in self.catalog.list_products() {
            for broker in self.catalog.list_brokers(&product.tag).unwrap_or_default() {
                let Ok(doc) = self.catalog.broker_doc(&product.tag, &broker.tag) else { continue };
                for env in doc.envs.iter().filter(|env| !env.leaving.is_empty()) {
                    for topic in &broker.topics {
                        let Ok(entry) = self.catalog.route(&product.tag, &env.slug, &topic.tag) else { continue };
                        // Both are in the order of time; a topic that is younger than a move has no side there.
                        let named = env.leaving.iter().filter(|of| of.physical.contains_key(&topic.topic_tag));
                        all.extend(named.map(|of| of.epoch).zip(entry.leaving.iter().cloned()));
                    }
                }
            }
        }
        all
    }

    /// The groups of which something may wait there; delayed publishes that wait on the broker have the empty name.
    fn groups_left(&self, entry: &RouteEntry) -> Vec<Arc<str>> {
        let mut groups: Vec<Arc<str>> = entry.groups.iter().map(|group| group.name.clone()).collect();
        if self.lot_place(entry.kind) == LotPlace::Topics {
            groups.push("".into());
        }
        groups
    }

    /// Whether every producer that is known works with a later epoch.
    async fn nobody_produces(&self, entry: &RouteEntry) -> Result<bool> {
        let members = self.store.members(Some(&entry.address), SILENT).await?;
        Ok(!members.iter().any(|member| member.role == MemberRole::Producer && member.route_epoch <= entry.epoch))
    }

    /// Whether nothing has waited for the group there for long enough.
    async fn is_quiet(self: &Arc<Self>, entry: &RouteEntry, group: &Arc<str>) -> bool {
        let key = (entry.address.clone(), entry.epoch, group.clone());
        let asked = async {
            let route = self.route_left(entry).await?;
            self.left_for(&route, entry, group).await
        };
        let left = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(left)) => left,
            Ok(Err(error)) => {
                tracing::warn!(%error, address = %entry.address, %group, "what is left on the old server cannot be asked");
                1
            }
            Err(_) => 1,
        };
        let mut quiet = self.quiet.lock();
        if left > 0 {
            quiet.remove(&key);
            return false;
        }
        quiet.entry(key).or_insert_with(Instant::now).elapsed() >= QUIET
    }

    /// What waits for a group on the old server, its waits among them if they lie there.
    async fn left_for(&self, route: &Route, entry: &RouteEntry, group: &Arc<str>) -> Result<u64> {
        let mut left = 0;
        if !group.is_empty() {
            left += depth(&route.provider, &route.topic, &entry.group_name(group)).await?;
        }
        if let Some(lot) = route.lot_of(group) {
            for (topic, subscriber) in lot.waiting_in() {
                left += depth(&route.provider, topic, subscriber).await?;
            }
        }
        Ok(left)
    }
}

async fn depth(provider: &Arc<dyn Provider>, topic: &crate::provider::TopicSpec, group: &str) -> Result<u64> {
    match provider.depth(topic, group).await {
        Ok(depth) => Ok(depth.ready + depth.in_flight),
        // Nothing was ever sent there.
        Err(error) if matches!(error.code(), Code::TopicNotFound | Code::GroupNotFound) => Ok(0),
        Err(error) => Err(error),
    }
}
