//! The catalogue at one version: immutable, indexed by tag. A change makes a new one that shares what stayed.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cache::CacheDoc;
use super::record::{BrokerDoc, EnvDoc, GroupDoc, ProductDoc, TopicDoc};
use super::route::RouteEntry;
use super::session::SessionDoc;
use crate::config::shape::{did_you_mean, nearest};
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::names;
use crate::store::{Doc, DocChange, DocKind};

/// Everything there is in the workspace, at one version.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: u64,
    products: BTreeMap<Arc<str>, Arc<ProductNode>>,
}

/// A product with its brokers, session definitions and caches.
#[derive(Debug, Clone)]
pub(crate) struct ProductNode {
    pub(crate) tag: Arc<str>,
    pub(crate) doc: Arc<ProductDoc>,
    pub(crate) brokers: BTreeMap<Arc<str>, Arc<BrokerNode>>,
    pub(crate) sessions: BTreeMap<Arc<str>, Arc<SessionDoc>>,
    pub(crate) caches: BTreeMap<Arc<str>, Arc<CacheDoc>>,
}

/// A broker with its topics by short tag.
#[derive(Debug, Clone)]
pub(crate) struct BrokerNode {
    pub(crate) doc: Arc<BrokerDoc>,
    pub(crate) topics: BTreeMap<Arc<str>, Arc<TopicNode>>,
}

/// A topic with its groups, and what was worked out for it from this state of its broker.
#[derive(Debug)]
pub(crate) struct TopicNode {
    pub(crate) doc: Arc<TopicDoc>,
    pub(crate) groups: BTreeMap<Arc<str>, Arc<GroupDoc>>,
    pub(crate) routes: BTreeMap<Arc<str>, OnceLock<Arc<RouteEntry>>>,
    occupied: OnceLock<BTreeMap<String, Vec<String>>>,
}

impl TopicNode {
    fn new(broker: &BrokerDoc, doc: Arc<TopicDoc>, groups: BTreeMap<Arc<str>, Arc<GroupDoc>>) -> Self {
        let routes = broker.envs.iter().map(|env| (env.slug.as_str().into(), OnceLock::new())).collect();
        TopicNode { doc, groups, routes, occupied: OnceLock::new() }
    }

    /// The names it takes up on the broker of an env.
    pub(crate) fn occupied(&self, broker: &BrokerDoc, slug: &str) -> &[String] {
        let all = self.occupied.get_or_init(|| {
            let groups: Vec<&str> = self.groups.keys().map(AsRef::as_ref).collect();
            broker.envs.iter().map(|env| (env.slug.clone(), occupied(broker, env, &self.doc, &groups))).collect()
        });
        all.get(slug).map_or(&[], Vec::as_slice)
    }
}

/// The names a topic takes up in an env.
pub(crate) fn occupied(broker: &BrokerDoc, env: &EnvDoc, topic: &TopicDoc, groups: &[&str]) -> Vec<String> {
    let default = names::default_group(env.kind, &env.config, &broker.product);
    topic.physical.get(&env.slug).map_or_else(Vec::new, |physical| names::occupied(env.kind, physical, &default, groups))
}

impl Snapshot {
    /// The whole catalogue of a store.
    pub(crate) fn build(version: u64, mut docs: Vec<Doc>) -> Result<Self> {
        docs.sort_by_key(|doc| doc.kind);
        Snapshot::default().with(version, &docs.into_iter().map(DocChange::Put).collect::<Vec<_>>())
    }

    /// This catalogue with changes applied.
    pub(crate) fn with(&self, version: u64, changes: &[DocChange]) -> Result<Self> {
        let mut next = self.clone();
        next.version = version;
        for change in changes {
            match change {
                DocChange::Put(doc) => next.put(doc)?,
                DocChange::Remove(kind, path) => next.remove(*kind, path),
            }
        }
        Ok(next)
    }

    fn put(&mut self, doc: &Doc) -> Result<()> {
        match doc.kind {
            DocKind::Product => {
                let read: Arc<ProductDoc> = Arc::new(read(doc)?);
                let tag: Arc<str> = read.tag.as_str().into();
                let there = self.products.get(&tag);
                let brokers = there.map(|node| node.brokers.clone()).unwrap_or_default();
                let sessions = there.map(|node| node.sessions.clone()).unwrap_or_default();
                let caches = there.map(|node| node.caches.clone()).unwrap_or_default();
                self.products.insert(tag.clone(), Arc::new(ProductNode { tag, doc: read, brokers, sessions, caches }));
            }
            DocKind::Broker => {
                let read: Arc<BrokerDoc> = Arc::new(read(doc)?);
                let Some(product) = self.product_mut(&read.product) else { return orphan(doc) };
                // what was worked out for its topics came from the old broker
                let fresh = |(tag, node): (&Arc<str>, &Arc<TopicNode>)| {
                    (tag.clone(), Arc::new(TopicNode::new(&read, node.doc.clone(), node.groups.clone())))
                };
                let topics = product.brokers.get(read.tag.as_str()).map(|node| node.topics.iter().map(fresh).collect()).unwrap_or_default();
                product.brokers.insert(read.tag.as_str().into(), Arc::new(BrokerNode { doc: read, topics }));
            }
            DocKind::Topic => {
                let read: Arc<TopicDoc> = Arc::new(read(doc)?);
                let Some(broker) = self.broker_mut(&read.product, &read.broker_tag) else { return orphan(doc) };
                let groups = broker.topics.get(read.topic_tag.as_str()).map(|node| node.groups.clone()).unwrap_or_default();
                let tag = read.topic_tag.as_str().into();
                let node = TopicNode::new(&broker.doc, read, groups);
                broker.topics.insert(tag, Arc::new(node));
            }
            DocKind::Group => {
                let read: Arc<GroupDoc> = Arc::new(read(doc)?);
                let Some(broker) = self.broker_mut(&read.product, read.event.broker()) else { return orphan(doc) };
                let Some(topic) = broker.topics.get(read.event.topic()) else { return orphan(doc) };
                let mut groups = topic.groups.clone();
                groups.insert(read.name.as_str().into(), read.clone());
                let node = TopicNode::new(&broker.doc, topic.doc.clone(), groups);
                broker.topics.insert(read.event.topic().into(), Arc::new(node));
            }
            DocKind::Session => {
                let read: Arc<SessionDoc> = Arc::new(read(doc)?);
                let Some(product) = self.product_mut(&read.product) else { return orphan(doc) };
                product.sessions.insert(read.tag.as_str().into(), read);
            }
            DocKind::Cache => {
                let read: Arc<CacheDoc> = Arc::new(read(doc)?);
                let Some(product) = self.product_mut(&read.product) else { return orphan(doc) };
                product.caches.insert(read.tag.as_str().into(), read);
            }
        }
        Ok(())
    }

    fn remove(&mut self, kind: DocKind, path: &str) {
        let mut parts = path.splitn(3, '/');
        let product = parts.next().unwrap_or_default();
        let broker_or_event = parts.next().unwrap_or_default();
        let (broker, topic) = broker_or_event.split_once(':').unwrap_or((broker_or_event, ""));
        match kind {
            DocKind::Product => drop(self.products.remove(product)),
            DocKind::Broker => drop(self.product_mut(product).map(|node| node.brokers.remove(broker))),
            DocKind::Session => drop(self.product_mut(product).map(|node| node.sessions.remove(broker_or_event))),
            DocKind::Topic => drop(self.broker_mut(product, broker).map(|node| node.topics.remove(topic))),
            DocKind::Group => {
                let group = parts.next().unwrap_or_default();
                let Some(node) = self.broker_mut(product, broker) else { return };
                let Some(old) = node.topics.get(topic) else { return };
                let mut groups = old.groups.clone();
                groups.remove(group);
                let fresh = TopicNode::new(&node.doc, old.doc.clone(), groups);
                node.topics.insert(topic.into(), Arc::new(fresh));
            }
            DocKind::Cache => drop(self.product_mut(product).map(|node| node.caches.remove(broker_or_event))),
        }
    }

    fn product_mut(&mut self, tag: &str) -> Option<&mut ProductNode> {
        self.products.get_mut(tag).map(Arc::make_mut)
    }

    fn broker_mut(&mut self, product: &str, tag: &str) -> Option<&mut BrokerNode> {
        self.product_mut(product)?.brokers.get_mut(tag).map(Arc::make_mut)
    }

    /// Every document, as the store has it.
    pub(crate) fn docs(&self) -> Result<Vec<Doc>> {
        let mut docs = Vec::new();
        for product in self.products.values() {
            docs.push(doc(DocKind::Product, product_path(&product.tag), &product.doc)?);
            for cache in product.caches.values() {
                docs.push(doc(DocKind::Cache, cache_path(&product.tag, &cache.tag), cache)?);
            }
            for broker in product.brokers.values() {
                docs.push(doc(DocKind::Broker, broker_path(&product.tag, &broker.doc.tag), &broker.doc)?);
                for topic in broker.topics.values() {
                    docs.push(doc(DocKind::Topic, topic_path(&product.tag, &topic.doc.tag), &topic.doc)?);
                    for group in topic.groups.values() {
                        docs.push(doc(DocKind::Group, group_path(&product.tag, &group.event, &group.name), group)?);
                    }
                }
            }
            for session in product.sessions.values() {
                docs.push(doc(DocKind::Session, session_path(&product.tag, &session.tag), session)?);
            }
        }
        Ok(docs)
    }

    /// Its version in the store.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn products(&self) -> impl Iterator<Item = &Arc<ProductNode>> {
        self.products.values()
    }

    pub(crate) fn product(&self, tag: &str) -> Result<&Arc<ProductNode>> {
        self.products.get(tag).ok_or_else(|| {
            let known = || self.products.keys().map(AsRef::as_ref);
            missing(Code::ProductNotFound, &format!("product '{tag}' does not exist"), tag, known())
                .next(format!("the first `trunkline brokers create … --product {tag}` makes it"))
        })
    }

    pub(crate) fn broker(&self, product: &str, tag: &str) -> Result<&Arc<BrokerNode>> {
        let node = self.product(product)?;
        node.brokers.get(tag).ok_or_else(|| {
            let known = node.brokers.keys().map(AsRef::as_ref);
            missing(Code::BrokerNotFound, &format!("broker '{tag}' does not exist in product '{product}'"), tag, known)
                .next(format!("create it with `trunkline brokers create {tag} --product {product}`"))
        })
    }

    pub(crate) fn topic(&self, product: &str, event: &Event) -> Result<&Arc<TopicNode>> {
        topic_of(self.broker(product, event.broker())?, product, event)
    }
}

pub(crate) fn env_of<'a>(broker: &'a BrokerDoc, slug: &str) -> Result<&'a EnvDoc> {
    broker.env(slug).ok_or_else(|| {
        let known = broker.envs.iter().map(|env| env.slug.as_str());
        let message = format!("broker '{}' of product '{}' has no env '{slug}'", broker.tag, broker.product);
        missing(Code::BrokerEnvNotFound, &message, slug, known)
            .next(format!("add it with `trunkline brokers update {} --product {} --env {slug}`", broker.tag, broker.product))
    })
}

pub(crate) fn topic_of<'a>(broker: &'a BrokerNode, product: &str, event: &Event) -> Result<&'a Arc<TopicNode>> {
    broker.topics.get(event.topic()).ok_or_else(|| {
        let full = |tag: &str| format!("{}:{tag}", event.broker());
        let near = nearest(event.topic(), broker.topics.keys().map(AsRef::as_ref)).map(full);
        let hint = near.as_ref().map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
        let error = Error::new(Code::TopicNotFound, format!("topic '{event}' does not exist in product '{product}'{hint}"))
            .next(format!("create it with `trunkline topics create {event} --product {product}`"));
        near.into_iter().fold(error, |error, near| error.detail("didYouMean", near))
    })
}

pub(crate) fn missing<'a>(code: Code, message: &str, tag: &str, known: impl Iterator<Item = &'a str> + Clone) -> Error {
    let error = Error::new(code, format!("{message}{}", did_you_mean(tag, known.clone())));
    nearest(tag, known).into_iter().fold(error, |error, near| error.detail("didYouMean", near))
}

pub(crate) fn product_path(product: &str) -> String {
    product.to_owned()
}

pub(crate) fn broker_path(product: &str, broker: &str) -> String {
    format!("{product}/{broker}")
}

pub(crate) fn cache_path(product: &str, cache: &str) -> String {
    format!("{product}/{cache}")
}

pub(crate) fn topic_path(product: &str, event: &Event) -> String {
    format!("{product}/{event}")
}

pub(crate) fn group_path(product: &str, event: &Event, group: &str) -> String {
    format!("{product}/{event}/{group}")
}

pub(crate) fn session_path(product: &str, tag: &str) -> String {
    format!("{product}/{tag}")
}

/// A document for the store.
pub(crate) fn doc(kind: DocKind, path: String, body: &impl Serialize) -> Result<Doc> {
    let body = serde_json::to_value(body).map_err(|_| Error::store(format!("the catalogue's '{path}' cannot be written as JSON")))?;
    Ok(Doc { kind, path, body })
}

pub(crate) fn put(kind: DocKind, path: String, body: &impl Serialize) -> Result<DocChange> {
    doc(kind, path, body).map(DocChange::Put)
}

fn read<T: DeserializeOwned>(doc: &Doc) -> Result<T> {
    // serde's own text may quote a value
    T::deserialize(&doc.body).map_err(|_| {
        let what = shape_of(&doc.body);
        Error::store(format!("the catalogue's '{}' cannot be read ({what}): it is damaged, or of a newer version", doc.path))
    })
}

fn shape_of(body: &Value) -> String {
    crate::config::shape::shape(body)
}

/// A document whose parent is gone: it cannot be reached by any tag, so it does not stop the rest.
#[expect(clippy::unnecessary_wraps, reason = "it ends a function that can fail")]
fn orphan(doc: &Doc) -> Result<()> {
    tracing::warn!(path = %doc.path, "the catalogue has a document whose parent is missing; it is ignored");
    Ok(())
}
