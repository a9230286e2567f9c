//! From an event to a topic on a server.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::Catalog;
use super::record::{BrokerDoc, Leaving, TopicDoc};
use super::seal::{Seal, open_config};
use super::snapshot::{TopicNode, broker_path, env_of, topic_of};
use crate::config::ProviderKind;
use crate::error::{Error, Result};
use crate::event::{Event, check_tag};
use crate::names::{self, Physical};
use crate::provider::{GroupSpec, Start, TopicSpec};
use crate::store::Address;

/// Where an event leads in one env. It stays true for one state of the catalogue: ask again when that changes, and open
/// anew when `epoch` did.
#[derive(Clone)]
pub struct RouteEntry {
    /// Topic and env.
    pub address: Address,
    /// The provider.
    pub kind: ProviderKind,
    /// Its config, with credentials; references in it are not resolved.
    pub config: Value,
    /// The topic.
    pub topic: Arc<TopicDoc>,
    /// Its names on the broker; references in them are not resolved.
    pub physical: Physical,
    /// The group of a consume that names none.
    pub default_group: Arc<str>,
    /// The default group, unless it was deleted, and every group the catalogue knows.
    pub groups: Vec<KnownGroup>,
    /// Raised whenever provider, server or name change.
    pub epoch: u64,
    /// Where the env led to before, oldest first, for as long as something may wait there.
    pub leaving: Vec<Arc<RouteEntry>>,
    /// Of a server that the env has left: the groups for which nothing is left there.
    pub through: BTreeSet<String>,
}

/// A group of a topic in one env.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownGroup {
    /// Its name.
    pub name: Arc<str>,
    /// Its name on the broker.
    pub physical: Arc<str>,
    /// Where it starts on a topic it is new to (`None`: as the provider can).
    pub from: Option<Start>,
    /// Consumers of it do not receive.
    pub paused: bool,
    /// Whether it is the group of a consume that names none.
    pub is_default: bool,
}

impl RouteEntry {
    /// The topic as its provider sees it.
    #[must_use]
    pub fn topic_spec(&self) -> TopicSpec {
        let ordered = self.topic.ordering == super::Ordering::Key;
        TopicSpec {
            exchange: self.physical.exchange.as_deref().map(Arc::from),
            queue: self.physical.queue.as_deref().map(Arc::from),
            ..TopicSpec::new(self.physical.name.as_str(), self.physical.shards, ordered)
        }
    }

    /// A group as its provider sees it; `fallback` is where it starts if nothing was said.
    #[must_use]
    pub fn group_spec(&self, group: &str, fallback: &Start) -> GroupSpec {
        let from = self.groups.iter().find(|known| known.name.as_ref() == group).and_then(|known| known.from.clone());
        GroupSpec { name: self.group_name(group).into(), start: from.unwrap_or_else(|| fallback.clone()) }
    }

    /// What a group of this topic is called on the broker.
    #[must_use]
    pub fn group_name(&self, group: &str) -> String {
        names::group(self.kind, &self.physical, group, &self.default_group)
    }
}

impl fmt::Debug for RouteEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteEntry")
            .field("address", &self.address)
            .field("kind", &self.kind)
            .field("physical", &self.physical)
            .field("groups", &self.groups)
            .field("epoch", &self.epoch)
            .field("leaving", &self.leaving)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// Finds the route of an event: product, then broker, then env, then topic. Worked out once per state of the catalogue.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed product or env, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `BROKER_ENV_NOT_FOUND`,
    /// `TOPIC_NOT_FOUND`, each with `details.next`; `STORE_FAILED` if a credential does not open.
    pub fn route(&self, product: &str, env: &str, event: &Event) -> Result<Arc<RouteEntry>> {
        check_tag("product", product)?;
        check_tag("env", env)?;
        let snapshot = self.snapshot();
        let node = snapshot.product(product)?;
        let broker = snapshot.broker(product, event.broker())?;
        env_of(&broker.doc, env)?;
        let topic = topic_of(broker, product, event)?;
        let kept = topic.routes.get(env);
        if let Some(route) = kept.and_then(|kept| kept.get()) {
            return Ok(route.clone());
        }
        let route = Arc::new(work_out(self.seal.as_ref(), &node.tag, &broker.doc, env, topic)?);
        Ok(kept.map_or_else(|| route.clone(), |kept| kept.get_or_init(|| route.clone()).clone()))
    }
}

pub(crate) fn work_out(seal: &dyn Seal, product: &Arc<str>, broker: &BrokerDoc, slug: &str, topic: &TopicNode) -> Result<RouteEntry> {
    let env = env_of(broker, slug)?;
    let Some(physical) = topic.doc.physical.get(slug).cloned() else {
        return Err(Error::store(format!("topic '{}' has no name in env '{slug}': the catalogue is damaged", topic.doc.tag)));
    };
    let short = topic.doc.topic_tag.as_str();
    let side = |kind, config: &Value, physical: Physical, epoch, leaving, through| -> Result<RouteEntry> {
        let record = format!("{}/{slug}", broker_path(product, &broker.tag));
        let default_group: Arc<str> = names::default_group(kind, config, product).into();
        let known = |name: &Arc<str>, from: Option<Start>, paused: bool| KnownGroup {
            physical: names::group(kind, &physical, name, &default_group).into(),
            is_default: *name == default_group,
            name: name.clone(),
            from,
            paused,
        };
        let mut groups = Vec::with_capacity(topic.groups.len() + 1);
        if !topic.groups.contains_key(&default_group) {
            groups.push(known(&default_group, None, false));
        }
        let declared = topic.groups.iter().filter(|(_, doc)| !doc.deleted_default);
        groups.extend(declared.map(|(name, doc)| known(name, doc.from.clone(), doc.paused)));
        let address = Address { product: product.clone(), env: slug.into(), event: topic.doc.tag.clone() };
        let (config, topic) = (open_config(seal, &record, kind, config)?, topic.doc.clone());
        Ok(RouteEntry { address, kind, config, topic, physical, default_group, groups, epoch, leaving, through })
    };
    let left = |of: &Leaving| {
        let (physical, through) = (of.physical.get(short)?.clone(), of.through.get(short).cloned().unwrap_or_default());
        let epoch = of.epoch.max(physical.epoch);
        Some(side(of.kind, &of.config, physical, epoch, Vec::new(), through).map(Arc::new))
    };
    let leaving = env.leaving.iter().filter_map(left).collect::<Result<Vec<_>>>()?;
    let epoch = env.epoch.max(physical.epoch);
    side(env.kind, &env.config, physical, epoch, leaving, BTreeSet::new())
}
