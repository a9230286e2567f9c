//! Topics: named streams of a broker, and the names they get on each env's server.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Catalog;
use super::breaking::{Breaking, breaking};
use super::input::{TopicInput, event_of};
use super::record::{BrokerDoc, EnvDoc, Ordering, TopicDoc};
use super::snapshot::{BrokerNode, Snapshot, group_path, occupied, put, topic_path};
use crate::access::Call;
use crate::config::fields::INPUT;
use crate::config::server::same_server;
use crate::config::{ProviderKind, invalid};
use crate::error::{Code, Error, Result};
use crate::event::{Event, check_tag};
use crate::names::{self, Physical, SHARDS_DEFAULT, Wish};
use crate::schema::infer;
use crate::store::{DocChange, DocKind, Member};

/// The outcome of an update of a topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopicUpdate {
    /// The topic as it is now.
    #[serde(flatten)]
    pub topic: Arc<TopicDoc>,
    /// The envs in which it now has another name on the broker.
    #[serde(skip)]
    pub renamed: Vec<String>,
    /// Where the schema refuses now what it took before.
    pub breaking: Vec<Breaking>,
    /// Where something breaks: the live consumers of the topic, in all envs. Filled in by [`Trunkline::update_topic`], which can
    /// ask the registry.
    ///
    /// [`Trunkline::update_topic`]: crate::Trunkline::update_topic
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub affected: Vec<Member>,
    /// Whether anything changed.
    #[serde(skip)]
    pub changed: bool,
}

impl Catalog {
    /// Makes a topic of `{ name, tag, description?, sample?, schema?, validate?, ordering?, shards?, durability?, capture?, retention?,
    /// queueUrls?, names?, defaults? }`; `tag` is `brokerTag:topicTag`, or short beside `messageBrokerTag`.
    ///
    /// # Errors
    /// `INPUT_INVALID`, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `TOPIC_EXISTS`, `CONFIG_INVALID` (`partitions`),
    /// `STORE_FAILED`. Two topics that would share a name on one server are `INPUT_INVALID` with `details.reason: name_taken`.
    pub async fn create_topic(&self, product: Option<&str>, input: Value) -> Result<Arc<TopicDoc>> {
        let input = TopicInput::create(product, &input)?;
        let product = self.product_or_only(input.product.as_deref())?;
        let Some(event) = &input.event else { return Err(Error::input("tag", "`tag` is required")) };
        let now = self.docs.now();
        self.change(Call::TopicCreate, &topic_path(&product, event), |snapshot| {
            let node = snapshot.broker(&product, event.broker())?;
            if node.topics.contains_key(event.topic()) {
                return Err(Error::new(Code::TopicExists, format!("topic '{event}' exists already in product '{product}'"))
                    .field("tag")
                    .next(format!("change it with `trunkline topics update {event} --product {product}`")));
            }
            let newest = node.topics.values().map(|topic| topic.doc.created_at).max();
            let made = newest.map_or(now, |newest| now.max(newest + 1));
            let mut doc = TopicDoc {
                tag: event.clone(),
                broker_tag: event.broker().to_owned(),
                topic_tag: event.topic().to_owned(),
                product: product.clone(),
                name: String::new(),
                description: None,
                sample: None,
                schema: None,
                inferred_schema: None,
                validate: input.validate.unwrap_or_default(),
                ordering: input.ordering.unwrap_or_default(),
                shards: input.shards,
                durability: None,
                capture: input.capture.unwrap_or_default(),
                retention: None,
                queue_urls: Vec::new(),
                names: Vec::new(),
                defaults: input.defaults.clone().unwrap_or_default(),
                physical: BTreeMap::new(),
                created_at: made,
                updated_at: made,
            };
            fill(&mut doc, &input, &node.doc)?;
            for env in &node.doc.envs {
                check_partitions(env, &doc)?;
                let named = name_in(&node.doc, env, &doc, node.topics.is_empty())?;
                doc.physical.insert(env.slug.clone(), named);
            }
            let doc = Arc::new(doc);
            for env in &node.doc.envs {
                check_taken(snapshot, &node.doc, env, &doc, &[], std::slice::from_ref(&doc))?;
            }
            let change = put(DocKind::Topic, topic_path(&product, event), &doc)?;
            Ok((doc, vec![change]))
        })
        .await
    }

    /// Changes a topic. A given `sample` replaces the old one whole; `ordering` and `shards` are fixed. A name or queue URL
    /// given for an env moves the topic there, which raises its route's epoch. A schema may become narrower: where it did so is in
    /// the result.
    ///
    /// # Errors
    /// As [`Catalog::create_topic`], and `TOPIC_NOT_FOUND`.
    pub async fn update_topic(&self, product: Option<&str>, tag: &str, patch: Value) -> Result<TopicUpdate> {
        let broker = ["messageBrokerTag", "brokerTag"].into_iter().find_map(|name| patch.get(name)).and_then(Value::as_str);
        let event = event_of("tag", tag, broker)?;
        let mut patch = patch.clone();
        // the short tag beside the full one of the call says the same
        if patch.get("tag").and_then(Value::as_str) == Some(event.topic()) {
            patch["tag"] = event.as_str().into();
        }
        let patch = TopicInput::update(product, &patch)?;
        if patch.event.as_ref().is_some_and(|given| *given != event) {
            return Err(Error::input("tag", "a topic's tag is fixed"));
        }
        let product = self.product_or_only(patch.product.as_deref())?;
        let now = self.docs.now();
        self.change(Call::TopicUpdate, &topic_path(&product, &event), |snapshot| {
            let node = snapshot.broker(&product, event.broker())?;
            let topic = snapshot.topic(&product, &event)?;
            let old = &topic.doc;
            for (field, differs) in [
                ("ordering", patch.ordering.is_some_and(|ordering| ordering != old.ordering)),
                ("shards", patch.shards.is_some_and(|shards| old.physical.values().any(|env| env.shards != shards))),
            ] {
                if differs {
                    return Err(Error::input(field, format!("`{field}` is fixed when the topic is created"))
                        .next("create another topic and replay into it"));
                }
            }
            let mut doc = TopicDoc::clone(old);
            fill(&mut doc, &patch, &node.doc)?;
            let oldest = by_age(node).first().is_some_and(|first| first.tag == event);
            let mut renamed = Vec::new();
            for env in &node.doc.envs {
                let own = doc.own_name(&env.slug, env.kind);
                if own == old.own_name(&env.slug, env.kind) {
                    continue;
                }
                let Some(kept) = doc.physical.get(&env.slug) else { continue };
                let named = name_in(&node.doc, env, &doc, oldest)?;
                if kept.name != named.name {
                    // the shards are fixed, and the version says that the route is another now
                    let named = Physical { epoch: snapshot.version() + 1, shards: kept.shards, ..named };
                    doc.physical.insert(env.slug.clone(), named);
                    renamed.push(env.slug.clone());
                }
            }
            if doc == **old {
                return Ok((
                    TopicUpdate { topic: old.clone(), renamed, breaking: Vec::new(), affected: Vec::new(), changed: false },
                    Vec::new(),
                ));
            }
            doc.updated_at = now;
            let doc = Arc::new(doc);
            let groups: Vec<&str> = topic.groups.keys().map(AsRef::as_ref).collect();
            for env in node.doc.envs.iter().filter(|env| renamed.contains(&env.slug)) {
                check_taken(snapshot, &node.doc, env, &doc, &groups, std::slice::from_ref(&doc))?;
            }
            let change = put(DocKind::Topic, topic_path(&product, &event), &doc)?;
            let breaking = breaking(old.payload_schema().as_deref(), doc.payload_schema().as_deref());
            Ok((TopicUpdate { topic: doc, renamed, breaking, affected: Vec::new(), changed: true }, vec![change]))
        })
        .await
    }

    /// One topic by its full tag, or `None`.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`.
    pub fn fetch_topic(&self, product: &str, tag: &str) -> Result<Option<Arc<TopicDoc>>> {
        check_tag("product", product)?;
        let event = event_of("tag", tag, None)?;
        let snapshot = self.snapshot();
        let broker = snapshot.product(product)?.brokers.get(event.broker());
        Ok(broker.and_then(|broker| broker.topics.get(event.topic())).map(|topic| topic.doc.clone()))
    }

    /// The topics of a broker, oldest first.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`.
    pub fn list_topics(&self, product: &str, broker: &str) -> Result<Vec<Arc<TopicDoc>>> {
        check_tag("product", product)?;
        check_tag("brokerTag", broker)?;
        Ok(by_age(self.snapshot().broker(product, broker)?))
    }

    /// Removes a topic with its groups from the catalogue; nothing on the broker.
    ///
    /// # Errors
    /// `INPUT_INVALID` for a malformed tag, `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `TOPIC_NOT_FOUND`, `STORE_FAILED`.
    pub async fn delete_topic(&self, product: &str, tag: &str) -> Result<Arc<TopicDoc>> {
        check_tag("product", product)?;
        let event = event_of("tag", tag, None)?;
        self.change(Call::TopicDelete, &topic_path(product, &event), |snapshot| {
            let topic = snapshot.topic(product, &event)?;
            let groups = topic.groups.keys().map(|group| DocChange::Remove(DocKind::Group, group_path(product, &event, group)));
            let changes = groups.chain([DocChange::Remove(DocKind::Topic, topic_path(product, &event))]).collect();
            Ok((topic.doc.clone(), changes))
        })
        .await
    }

    /// A topic's event, of a full tag, or of a short one and its broker's.
    ///
    /// # Errors
    /// `INPUT_INVALID` if they contradict each other or are malformed.
    pub fn event(topic_tag: &str, broker_tag: Option<&str>) -> Result<Event> {
        event_of("topicTag", topic_tag, broker_tag)
    }
}

/// The topics of a broker, oldest first.
pub(crate) fn by_age(node: &BrokerNode) -> Vec<Arc<TopicDoc>> {
    let mut topics: Vec<_> = node.topics.values().map(|topic| topic.doc.clone()).collect();
    topics.sort_by_key(|topic| topic.created_at);
    topics
}

/// Writes what the input says, and nothing else, into a topic.
fn fill(doc: &mut TopicDoc, input: &TopicInput, broker: &BrokerDoc) -> Result<()> {
    doc.name = input.name.clone().unwrap_or_else(|| doc.name.clone());
    doc.description = input.description.clone().or_else(|| doc.description.take());
    if let Some(sample) = &input.sample
        && (doc.sample.as_ref() != Some(sample) || doc.inferred_schema.is_none())
    {
        doc.sample = Some(sample.clone());
        doc.inferred_schema = Some(infer(sample));
    }
    doc.schema = input.schema.clone().or_else(|| doc.schema.take());
    doc.validate = input.validate.unwrap_or(doc.validate);
    doc.durability = input.durability.or(doc.durability);
    doc.capture = input.capture.unwrap_or(doc.capture);
    doc.retention = input.retention.or(doc.retention);
    doc.names = input.names.clone().unwrap_or_else(|| doc.names.clone());
    doc.defaults = input.defaults.clone().unwrap_or_else(|| doc.defaults.clone());
    let envs: Vec<&str> = broker.envs.iter().map(|env| env.slug.as_str()).collect();
    doc.queue_urls = input.queue_urls(&envs)?.unwrap_or_else(|| std::mem::take(&mut doc.queue_urls));
    if let Some(own) = input.names.iter().flatten().find(|own| !envs.contains(&own.slug.as_str())) {
        let near = crate::config::shape::did_you_mean(&own.slug, envs.iter().copied());
        return Err(Error::input("names", format!("`names`: broker '{}' has no env '{}'{near}", broker.tag, own.slug)));
    }
    Ok(())
}

/// The name of a topic in an env.
pub(crate) fn name_in(broker: &BrokerDoc, env: &EnvDoc, topic: &TopicDoc, oldest: bool) -> Result<Physical> {
    let own = topic.own_name(&env.slug, env.kind);
    let queue = topic.queue_urls.iter().find(|queue| queue.slug == env.slug && env.kind == ProviderKind::AwsSqs);
    if let Some(own) = own {
        let field = if queue.is_some_and(|queue| queue.url == own) { "queueUrls" } else { "names" };
        names::check(env.kind, field, own)?;
        if queue.is_some_and(|queue| queue.url != own) {
            return Err(Error::input("names", format!("`names` and `queueUrls` both name the queue of env '{}', and differ", env.slug)));
        }
    }
    let wish = Wish {
        product: &broker.product,
        env: &env.slug,
        broker: &broker.tag,
        topic: &topic.topic_tag,
        own,
        oldest,
        ordered: topic.ordering == Ordering::Key,
        shards: topic.shards,
    };
    let physical = names::choose(env.kind, &env.config, &wish);
    if own.is_none() {
        // what the env's config gives is checked here, where it becomes a name
        names::check(env.kind, "config", &physical.name)
            .map_err(|error| invalid("config", error.message()).detail("env", env.slug.as_str()))?;
    }
    Ok(physical)
}

/// `partitions` is for unordered topics without `shards`; beside them it may only say the same.
pub(crate) fn check_partitions(env: &EnvDoc, topic: &TopicDoc) -> Result<()> {
    let Some(partitions) = env.config.get("partitions").and_then(Value::as_u64) else { return Ok(()) };
    let ordered = (topic.ordering == Ordering::Key).then_some(SHARDS_DEFAULT);
    match topic.shards.or(ordered) {
        Some(shards) if u64::from(shards) != partitions => Err(invalid(
            "partitions",
            format!("`partitions` of env '{}' is {partitions}, but topic '{}' has {shards} shards", env.slug, topic.tag),
        )
        .detail("env", env.slug.as_str())),
        _ => Ok(()),
    }
}

/// Refuses a topic whose names in an env are taken on that server. `fresh` are topics of the same broker that replace
/// those of the snapshot.
pub(crate) fn check_taken(
    snapshot: &Snapshot,
    broker: &BrokerDoc,
    env: &EnvDoc,
    topic: &TopicDoc,
    groups: &[&str],
    fresh: &[Arc<TopicDoc>],
) -> Result<()> {
    let wanted = occupied(broker, env, topic, groups);
    let refuse = |other: &TopicDoc, slug: &str, taken: &[String]| match wanted.iter().find(|name| taken.contains(name)) {
        Some(name) => Err(Error::input(
            "names",
            format!(
                "topic '{}' (product '{}', env '{}') and topic '{}' (product '{}', env '{slug}') would share the {name} on one server",
                topic.tag, topic.product, env.slug, other.tag, other.product
            ),
        )
        .reason("name_taken")
        .next("give one of them a name of its own in `names`")),
        None => Ok(()),
    };
    let on_server = |other: &&EnvDoc| other.kind == env.kind && same_server(&other.server, &env.server);
    let is_self = |other: &TopicDoc| other.tag == topic.tag && other.product == topic.product;
    for product in snapshot.products() {
        for node in product.brokers.values() {
            let same_broker = node.doc.product == broker.product && node.doc.tag == broker.tag;
            if same_broker {
                continue;
            }
            for slug in node.doc.envs.iter().filter(on_server) {
                for other in node.topics.values() {
                    refuse(&other.doc, &slug.slug, other.occupied(&node.doc, &slug.slug))?;
                }
            }
        }
    }
    // the same broker: as it is to be, worked out anew only if it changes
    let node = snapshot.broker(&broker.product, &broker.tag).ok();
    let unchanged = node.is_some_and(|node| std::ptr::eq(&raw const *node.doc, broker));
    let replaced: HashSet<&str> = fresh.iter().map(|topic| topic.topic_tag.as_str()).collect();
    for slug in broker.envs.iter().filter(on_server) {
        for (tag, other) in node.iter().flat_map(|node| &node.topics) {
            if replaced.contains(tag.as_ref()) {
                continue;
            }
            if unchanged {
                refuse(&other.doc, &slug.slug, other.occupied(broker, &slug.slug))?;
            } else {
                let keys: Vec<&str> = other.groups.keys().map(AsRef::as_ref).collect();
                refuse(&other.doc, &slug.slug, &occupied(broker, slug, &other.doc, &keys))?;
            }
        }
        for other in fresh.iter().filter(|other| !is_self(other) || slug.slug != env.slug) {
            let known = node.and_then(|node| node.topics.get(other.topic_tag.as_str()));
            let keys: Vec<&str> = known.iter().flat_map(|known| known.groups.keys().map(AsRef::as_ref)).collect();
            refuse(other, &slug.slug, &occupied(broker, slug, other, &keys))?;
        }
    }
    Ok(())
}

/// A group's name: 1 to 255 bytes without control characters, since it may be a queue's or a subscription's.
pub(crate) fn check_group(field: &str, name: &str) -> Result<()> {
    if !name.is_empty() && name.len() <= 255 && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(INPUT.error(field, format!("`{field}` must be 1 to 255 bytes without control characters")))
}
