//! Brokers: a named connection with one provider and one config per env.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Catalog;
use super::input::{BrokerInput, EnvInput};
use super::product::{first, removal};
use super::record::{BrokerDoc, BrokerView, EnvDoc, EnvView, Leaving, LeavingView, TopicDoc};
use super::route::{RouteEntry, work_out};
use super::seal::{masked_config, open_config, seal_config};
use super::snapshot::{BrokerNode, Snapshot, TopicNode, broker_path, put, topic_path};
use super::topic::{by_age, check_partitions, check_taken, name_in};
use crate::access::Call;
use crate::config::ProviderKind;
use crate::config::server::{same_server, server};
use crate::error::{Code, Error, Result};
use crate::event::{Event, check_tag};
use crate::store::{DocChange, DocKind, Scope};

/// The outcome of an update of a broker.
#[derive(Debug, Clone, Serialize)]
pub struct BrokerUpdate {
    /// The broker as it is now.
    #[serde(flatten)]
    pub broker: BrokerView,
    /// What still waits on the server that an env led to before; filled in by [`Trunkline::update_broker`], which can ask it.
    ///
    /// [`Trunkline::update_broker`]: crate::Trunkline::update_broker
    #[serde(rename = "leftBehind")]
    pub left_behind: Vec<LeftBehind>,
    /// The envs that now lead to another provider or server.
    #[serde(skip)]
    pub moved: Vec<EnvMove>,
    /// How far it is known who still produces to the old server, where old and new run side by side: on a store of one host
    /// the producers of other hosts are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Whether the caller does not want old and new to run side by side.
    #[serde(skip)]
    pub cut: bool,
    /// Whether anything changed.
    #[serde(skip)]
    pub changed: bool,
}

/// What waits for a group where an env led to before.
#[derive(Debug, Clone, Serialize)]
pub struct LeftBehind {
    /// Broker and topic.
    pub topic: Event,
    /// The env.
    pub env: String,
    /// The group.
    pub group: String,
    /// Messages that are not settled; `None` if the old server could not be asked.
    pub depth: Option<u64>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// An env whose messages now go elsewhere.
#[derive(Debug, Clone)]
pub struct EnvMove {
    /// The env's slug.
    pub env: String,
    /// The provider before.
    pub from: ProviderKind,
    /// The provider now.
    pub to: ProviderKind,
    /// The epoch now.
    pub epoch: u64,
    /// The routes of its topics before, oldest first: where something may still wait.
    pub left: Vec<RouteEntry>,
}

impl Catalog {
    /// Makes a broker of `{ product?, name, tag, description?, envs: [{ slug, type, config }] }`, and its product if it is the
    /// first thing in it. `product` may be given as argument or in the input.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `CONFIG_INVALID`, `BROKER_EXISTS`, `STORE_FAILED`.
    pub async fn create_broker(&self, product: Option<&str>, input: Value) -> Result<BrokerView> {
        let input = BrokerInput::create(product, &input)?;
        let product = match &input.product {
            Some(product) => product.clone(),
            None => self.product_or_only(None)?,
        };
        let tag = input.tag.clone().unwrap_or_default();
        let now = self.docs.now();
        let doc = self
            .change(Call::BrokerCreate, &broker_path(&product, &tag), |snapshot| {
                if snapshot.broker(&product, &tag).is_ok() {
                    return Err(Error::new(Code::BrokerExists, format!("broker '{tag}' exists already in product '{product}'"))
                        .field("tag")
                        .next(format!("change it with `trunkline brokers update {tag} --product {product}`")));
                }
                let mut changes = first(snapshot, &product, now)?;
                let envs = input.envs.iter().flatten();
                let envs = envs.map(|env| self.env_doc(snapshot, &product, &tag, env, None)).collect::<Result<_>>()?;
                let doc = BrokerDoc {
                    tag: tag.clone(),
                    name: input.name.clone().unwrap_or_else(|| tag.clone()),
                    description: input.description.clone(),
                    product: product.clone(),
                    envs,
                    created_at: now,
                    updated_at: now,
                };
                changes.push(put(DocKind::Broker, broker_path(&product, &tag), &doc)?);
                Ok((doc, changes))
            })
            .await?;
        Ok(self.view(&doc, Vec::new()))
    }

    /// Changes a broker: `{ name?, description?, envs?, cut? }`. Given envs replace those of their slug and keep the others;
    /// a credential given as `***` keeps its value. A server that an env leaves is consumed from until nothing is left there;
    /// with `cut` no longer, and servers that were being left are given up as well.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `CONFIG_INVALID`, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `STORE_FAILED`.
    pub async fn update_broker(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<BrokerUpdate> {
        self.patch_broker(product, tag, &patch, None).await
    }

    /// As `update_broker`; with `keep`, envs of other slugs are removed.
    pub(crate) async fn patch_broker(
        &self,
        product: Option<&str>,
        tag: &str,
        patch: &Value,
        keep: Option<&[String]>,
    ) -> Result<BrokerUpdate> {
        check_tag("tag", tag)?;
        let patch = BrokerInput::update(product, patch)?;
        if patch.tag.as_deref().is_some_and(|given| given != tag) {
            return Err(Error::input("tag", "a broker's tag is fixed"));
        }
        let product = self.product_or_only(patch.product.as_deref())?;
        let now = self.docs.now();
        let (doc, topics, moved, changed) = self
            .change(Call::BrokerUpdate, &broker_path(&product, tag), |snapshot| {
                let node = snapshot.broker(&product, tag)?;
                let mut doc = BrokerDoc::clone(&node.doc);
                doc.name = patch.name.clone().unwrap_or(doc.name);
                doc.description = patch.description.clone().or(doc.description);
                doc.envs.retain(|env| keep.is_none_or(|keep| keep.contains(&env.slug)));
                let mut moved = Vec::new();
                for env in patch.envs.iter().flatten() {
                    let old = node.doc.env(&env.slug);
                    let mut next = self.env_doc(snapshot, &product, tag, env, old)?;
                    if let Some(old) = old.filter(|old| old.epoch != next.epoch) {
                        moved.push(self.left_behind(&product, node, old, &next)?);
                        next.leaving = leaving(node, old, &next);
                    }
                    match doc.envs.iter_mut().find(|other| other.slug == next.slug) {
                        Some(slot) => *slot = next,
                        None => doc.envs.push(next),
                    }
                }
                if patch.cut {
                    doc.envs.iter_mut().for_each(|env| env.leaving.clear());
                }
                if doc == *node.doc {
                    return Ok(((doc, by_age(node), moved, false), Vec::new()));
                }
                doc.updated_at = now;
                let (topics, mut changes) = rename(snapshot, node, &doc)?;
                changes.insert(0, put(DocKind::Broker, broker_path(&product, tag), &doc)?);
                Ok(((doc, topics, moved, true), changes))
            })
            .await?;
        Ok(BrokerUpdate { broker: self.view(&doc, topics), left_behind: Vec::new(), scope: None, moved, cut: patch.cut, changed })
    }

    /// One broker with its topics, or `None`; credentials read `***`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`.
    pub fn fetch_broker(&self, product: &str, tag: &str) -> Result<Option<BrokerView>> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        let snapshot = self.snapshot();
        let node = snapshot.product(product)?;
        Ok(node.brokers.get(tag).map(|node| self.view(&node.doc, by_age(node))))
    }

    /// A broker as it is stored.
    pub(crate) fn broker_doc(&self, product: &str, tag: &str) -> Result<Arc<BrokerDoc>> {
        Ok(self.snapshot().broker(product, tag)?.doc.clone())
    }

    /// All brokers of a product, by tag; credentials read `***`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`.
    pub fn list_brokers(&self, product: &str) -> Result<Vec<BrokerView>> {
        check_tag("product", product)?;
        let snapshot = self.snapshot();
        Ok(snapshot.product(product)?.brokers.values().map(|node| self.view(&node.doc, by_age(node))).collect())
    }

    /// Removes a broker with its topics and groups from the catalogue; nothing on the broker itself.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_broker(&self, product: &str, tag: &str) -> Result<BrokerView> {
        check_tag("product", product)?;
        check_tag("tag", tag)?;
        let node = self
            .change(Call::BrokerDelete, &broker_path(product, tag), |snapshot| {
                let node = snapshot.broker(product, tag)?;
                Ok((node.clone(), removal(product, node)))
            })
            .await?;
        Ok(self.view(&node.doc, by_age(&node)))
    }

    /// Notes that nothing is left for these groups, by the short tag of their topic, on a server that an env has left; with
    /// `all` for none of any topic, and the server is forgotten.
    pub(crate) async fn note_through(
        &self,
        (product, tag, env): (&str, &str, &str),
        epoch: u64,
        groups: &[(String, String)],
        all: bool,
    ) -> Result<()> {
        self.note(|snapshot| {
            let node = snapshot.broker(product, tag)?;
            let mut doc = BrokerDoc::clone(&node.doc);
            for env in doc.envs.iter_mut().filter(|other| other.slug == env) {
                if all {
                    env.leaving.retain(|of| of.epoch != epoch);
                }
                for of in env.leaving.iter_mut().filter(|of| of.epoch == epoch) {
                    for (topic, group) in groups {
                        of.through.entry(topic.clone()).or_default().insert(group.clone());
                    }
                }
            }
            let changes = if doc == *node.doc { Vec::new() } else { vec![put(DocKind::Broker, broker_path(product, tag), &doc)?] };
            Ok(((), changes))
        })
        .await
    }

    /// Provider and config of one env, with its credentials; references in it are not resolved.
    ///
    /// # Errors
    /// `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `BROKER_ENV_NOT_FOUND`; `STORE_FAILED` if a credential does not open.
    pub fn env_config(&self, product: &str, env: &str, broker: &str) -> Result<(ProviderKind, Value)> {
        check_tag("product", product)?;
        check_tag("env", env)?;
        check_tag("brokerTag", broker)?;
        let snapshot = self.snapshot();
        let node = snapshot.broker(product, broker)?;
        let found = super::snapshot::env_of(&node.doc, env)?;
        let record = record(product, broker, env);
        Ok((found.kind, open_config(self.seal.as_ref(), &record, found.kind, &found.config)?))
    }

    /// An env as it is to be stored. It keeps its epoch unless provider or server change.
    fn env_doc(&self, snapshot: &Snapshot, product: &str, broker: &str, env: &EnvInput, old: Option<&EnvDoc>) -> Result<EnvDoc> {
        let record = record(product, broker, &env.slug);
        let alike = old.filter(|old| old.kind == env.kind);
        let seal = self.seal.as_ref();
        let named = |error: Error| error.context(&format!("env '{}'", env.slug)).detail("env", env.slug.as_str());
        let config = seal_config(seal, &record, env.kind, &env.config, alike.map(|old| &old.config)).map_err(named)?;
        let server = server(env.kind, &open_config(seal, &record, env.kind, &config)?);
        let epoch = match alike {
            Some(old) if same_server(&old.server, &server) => old.epoch,
            // versions only grow, so that an env that comes back is never taken for the one that left
            _ => snapshot.version() + 1,
        };
        let leaving = old.map_or_else(Vec::new, |old| old.leaving.clone());
        Ok(EnvDoc { slug: env.slug.clone(), kind: env.kind, config, server, epoch, leaving })
    }

    fn left_behind(&self, product: &str, node: &BrokerNode, old: &EnvDoc, next: &EnvDoc) -> Result<EnvMove> {
        let product: Arc<str> = product.into();
        let mut topics: Vec<_> = node.topics.values().collect();
        topics.sort_by_key(|topic| topic.doc.created_at);
        let routes = topics.into_iter().map(|topic| work_out(self.seal.as_ref(), &product, &node.doc, &old.slug, topic));
        Ok(EnvMove { env: old.slug.clone(), from: old.kind, to: next.kind, epoch: next.epoch, left: routes.collect::<Result<_>>()? })
    }

    fn view(&self, doc: &BrokerDoc, topics: Vec<Arc<TopicDoc>>) -> BrokerView {
        let left = |of: &Leaving| LeavingView { kind: of.kind, server: of.server.clone(), through: of.through.clone() };
        let env = |env: &EnvDoc| EnvView {
            leaving: env.leaving.iter().map(left).collect(),
            slug: env.slug.clone(),
            kind: env.kind,
            config: masked_config(self.seal.as_ref(), &record(&doc.product, &doc.tag, &env.slug), env.kind, &env.config),
        };
        BrokerView {
            tag: doc.tag.clone(),
            name: doc.name.clone(),
            description: doc.description.clone(),
            product: doc.product.clone(),
            envs: doc.envs.iter().map(env).collect(),
            topics,
            created_at: doc.created_at,
            updated_at: doc.updated_at,
        }
    }
}

/// The servers that an env leaves when it moves: where it led to, and what it had not yet left for good. A server that it
/// comes back to is left no longer.
fn leaving(node: &BrokerNode, old: &EnvDoc, next: &EnvDoc) -> Vec<Leaving> {
    let name = |(tag, topic): (&Arc<str>, &Arc<TopicNode>)| Some((tag.to_string(), topic.doc.physical.get(&old.slug)?.clone()));
    let last = Leaving {
        kind: old.kind,
        config: old.config.clone(),
        server: old.server.clone(),
        epoch: old.epoch,
        physical: node.topics.iter().filter_map(name).collect(),
        through: BTreeMap::new(),
    };
    let stays = |of: &Leaving| !(of.kind == next.kind && same_server(&of.server, &next.server));
    old.leaving.iter().cloned().chain([last]).filter(stays).collect()
}

fn record(product: &str, broker: &str, env: &str) -> String {
    format!("{}/{env}", broker_path(product, broker))
}

/// Gives the topics of a changed broker a name in each env that is new or has another provider; the rest keep theirs.
fn rename(snapshot: &Snapshot, node: &BrokerNode, broker: &BrokerDoc) -> Result<(Vec<Arc<TopicDoc>>, Vec<DocChange>)> {
    let mut topics = by_age(node);
    let mut changes = Vec::new();
    let kept = |env: &EnvDoc| node.doc.env(&env.slug).is_some_and(|old| old.kind == env.kind);
    for (age, topic) in topics.iter_mut().enumerate() {
        let mut next = TopicDoc::clone(topic);
        next.physical.retain(|slug, _| broker.env(slug).is_some());
        for env in &broker.envs {
            check_partitions(env, &next)?;
            if !kept(env) || !next.physical.contains_key(&env.slug) {
                next.physical.insert(env.slug.clone(), name_in(broker, env, &next, age == 0)?);
            }
        }
        if next != **topic {
            changes.push(put(DocKind::Topic, topic_path(&broker.product, &next.tag), &next)?);
            *topic = Arc::new(next);
        }
    }
    let moved = |env: &&EnvDoc| node.doc.env(&env.slug).is_none_or(|old| old.epoch != env.epoch);
    for env in broker.envs.iter().filter(moved) {
        for topic in &topics {
            let groups: Vec<&str> =
                node.topics.get(topic.topic_tag.as_str()).map(|t| t.groups.keys().map(AsRef::as_ref).collect()).unwrap_or_default();
            check_taken(snapshot, broker, env, topic, &groups, &topics)?;
        }
    }
    Ok((topics, changes))
}
