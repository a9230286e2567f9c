//! `trunkline.yaml`: a workspace's brokers, topics, sessions and caches as a file, in the words and types of the calls.
//!
//! A plan is the file applied to a copy of the catalogue in memory, so that a plan finds every error an apply would.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::catalog::{BrokerDoc, BrokerView, Catalog, check_broker, check_cache, check_session, check_topic};
use crate::config::fields::{Field, INPUT, Kind, is_absent};
use crate::config::sensitive::{MASK, visit};
use crate::error::{Error, Result};
use crate::event::Event;

/// A parsed and checked `trunkline.yaml`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// The product of everything in it, and the default of commands.
    pub product: Option<String>,
    /// The default env of commands.
    pub env: Option<String>,
    /// Which store.
    pub store: StoreSettings,
    /// The brokers, in the order of the file.
    brokers: Vec<FileBroker>,
    /// The session definitions: tag, and what `create_session` takes.
    sessions: Vec<(String, Value)>,
    /// The caches as `create_cache` takes them, with the tag each.
    caches: Vec<(String, Value)>,
}

/// Which store a workspace uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreSettings {
    /// `sqlite:…` or `postgres:…` (default: `TRUNKLINE_URL`, else the nearest `.trunkline`).
    pub url: Option<String>,
    /// Says that this host is all there is, so that a store on it may keep what waits (default false).
    pub single_host: bool,
}

#[derive(Clone, PartialEq)]
struct FileBroker {
    tag: String,
    /// As `create_broker` takes it; its configs may hold credentials.
    input: Value,
    /// As `create_topic` takes them, with the event each.
    topics: Vec<(Event, Value)>,
}

impl std::fmt::Debug for FileBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let topics: Vec<&Event> = self.topics.iter().map(|(event, _)| event).collect();
        f.debug_struct("FileBroker").field("tag", &self.tag).field("topics", &topics).finish_non_exhaustive()
    }
}

/// What happens to one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Create,
    /// It differs.
    Update,
    /// It is as the file says.
    Unchanged,
    /// It is not in the file, and `prune` was asked for.
    Delete,
}

/// One thing of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// `broker`, `topic`, `session` or `cache`.
    pub kind: &'static str,
    /// Its tag; a topic's in full.
    pub tag: String,
    /// What happens to it.
    pub action: Action,
    /// As it was; credentials read `***`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// As it is then; a credential that differs reads `*** (changed)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

const STORE: &[Field] = &[Field::new("url", Kind::Text), Field::new("singleHost", Kind::Bool)];
const FILE: &[Field] = &[
    Field::new("product", Kind::Tag).aliases(&["product_tag"]),
    Field::new("env", Kind::Tag),
    Field::new("store", Kind::Object(STORE)),
    Field::new("brokers", Kind::Any),
    Field::new("sessions", Kind::Any),
    Field::new("caches", Kind::Any),
];

impl File {
    /// Reads a file's text and checks all that can be checked without a catalogue.
    ///
    /// # Errors
    /// `INPUT_INVALID`, with `details.line` where the YAML itself is broken; `CONFIG_INVALID`.
    pub fn parse(text: &str) -> Result<Self> {
        let yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(|error| broken(&error))?;
        let value = serde_json::to_value(yaml).map_err(|_| Error::input("", "trunkline.yaml has a key that is not a text"))?;
        let value = if value.is_null() { json!({}) } else { value };
        File::read(&value).map_err(|error| error.context("trunkline.yaml"))
    }

    fn read(value: &Value) -> Result<Self> {
        let map = INPUT.object("", FILE, value)?;
        let text = |map: &Map<String, Value>, name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
        let store = map.get("store").and_then(Value::as_object);
        let mut file = File {
            product: text(&map, "product"),
            env: text(&map, "env"),
            store: StoreSettings {
                url: store.and_then(|store| text(store, "url")),
                single_host: store.and_then(|store| store.get("singleHost")).and_then(Value::as_bool).unwrap_or(false),
            },
            brokers: Vec::new(),
            sessions: sessions(map.get("sessions"), map.get("product").and_then(Value::as_str))?,
            caches: Vec::new(),
        };
        for (i, cache) in list("caches", map.get("caches"))?.into_iter().enumerate() {
            let tag = check_cache(file.product.as_deref(), &cache).map_err(|error| error.detail("at", format!("caches[{i}]")))?;
            if file.caches.iter().any(|(other, _)| *other == tag) {
                return Err(Error::input(&format!("caches[{i}].tag"), format!("cache '{tag}' is given twice")));
            }
            file.caches.push((tag, cache));
        }
        for (i, broker) in list("brokers", map.get("brokers"))?.iter().enumerate() {
            let broker = FileBroker::read(broker, file.product.as_deref()).map_err(|error| error.detail("at", format!("brokers[{i}]")))?;
            if file.brokers.iter().any(|other| other.tag == broker.tag) {
                return Err(Error::input(&format!("brokers[{i}].tag"), format!("broker '{}' is given twice", broker.tag)));
            }
            file.brokers.push(broker);
        }
        Ok(file)
    }

    /// What an apply would do, in order. Nothing is written.
    ///
    /// # Errors
    /// Those of the calls it stands for.
    pub async fn plan(&self, catalog: &Catalog, product: Option<&str>, prune: bool) -> Result<Vec<Change>> {
        catalog.refresh().await?;
        self.run(&catalog.scratch().await?, product, prune).await
    }

    /// Creates and updates what differs, and with `prune` removes from the product what is not in the file. Groups stay.
    ///
    /// # Errors
    /// Those of the calls it stands for; what the plan refuses is refused before anything is written.
    pub async fn apply(&self, catalog: &Catalog, product: Option<&str>, prune: bool) -> Result<Vec<Change>> {
        self.plan(catalog, product, prune).await?;
        self.run(catalog, product, prune).await
    }

    async fn run(&self, catalog: &Catalog, product: Option<&str>, prune: bool) -> Result<Vec<Change>> {
        let product = catalog.product_or_only(product.or(self.product.as_deref()))?;
        let mut changes = Vec::new();
        // Removing comes first: a name that is given up may be taken by something new.
        if prune && catalog.fetch_product(&product)?.is_some() {
            self.prune(catalog, &product, &mut changes).await?;
        }
        for (tag, cache) in &self.caches {
            changes.push(put_cache(catalog, &product, tag, cache).await?);
        }
        for broker in &self.brokers {
            changes.push(broker.put(catalog, &product, prune).await?);
            for (event, topic) in &broker.topics {
                changes.push(put_topic(catalog, &product, event, topic).await?);
            }
        }
        for (tag, session) in &self.sessions {
            changes.push(put_session(catalog, &product, tag, session).await?);
        }
        Ok(changes)
    }

    async fn prune(&self, catalog: &Catalog, product: &str, changes: &mut Vec<Change>) -> Result<()> {
        let wanted: BTreeSet<&str> = self
            .brokers
            .iter()
            .flat_map(|broker| broker.topics.iter().map(|(event, _)| event.as_str()).chain([broker.tag.as_str()]))
            .collect();
        for broker in catalog.list_brokers(product)? {
            for topic in broker.topics.iter().filter(|topic| !wanted.contains(topic.tag.as_str())) {
                let gone = catalog.delete_topic(product, topic.tag.as_str()).await?;
                changes.push(Change::of("topic", topic.tag.as_str(), Action::Delete, Some(shown(&*gone)), None));
            }
            if !wanted.contains(broker.tag.as_str()) {
                let gone = catalog.delete_broker(product, &broker.tag).await?;
                changes.push(Change::of("broker", &broker.tag, Action::Delete, Some(shown(&gone)), None));
            }
        }
        for session in catalog.list_sessions(product)? {
            if !self.sessions.iter().any(|(tag, _)| *tag == session.tag) {
                let gone = catalog.delete_session(product, &session.tag).await?;
                changes.push(Change::of("session", &session.tag, Action::Delete, Some(shown(&*gone)), None));
            }
        }
        for cache in catalog.list_caches(product)? {
            if !self.caches.iter().any(|(tag, _)| *tag == cache.tag) {
                let gone = catalog.delete_cache(product, &cache.tag).await?;
                changes.push(Change::of("cache", &cache.tag, Action::Delete, Some(shown(&*gone)), None));
            }
        }
        Ok(())
    }
}

impl FileBroker {
    fn read(broker: &Value, product: Option<&str>) -> Result<Self> {
        let Value::Object(fields) = broker else { return Err(INPUT.wrong("brokers", "a list of objects", broker)) };
        let mut fields = fields.clone();
        let topics = list("topics", fields.remove("topics").as_ref())?;
        if let (None, Some(tag)) = (fields.get("name").filter(|name| !is_absent(name)), fields.get("tag").cloned()) {
            fields.insert("name".into(), tag);
        }
        let input = Value::Object(fields);
        let tag = check_broker(product, &input)?;
        let mut read = FileBroker { tag, input, topics: Vec::new() };
        for (i, topic) in topics.iter().enumerate() {
            let (event, topic) = read.topic(topic, product).map_err(|error| error.detail("topic", format!("topics[{i}]")))?;
            if read.topics.iter().any(|(other, _)| *other == event) {
                return Err(Error::input(&format!("topics[{i}].tag"), format!("topic '{event}' is given twice")));
            }
            read.topics.push((event, topic));
        }
        Ok(read)
    }

    fn topic(&self, topic: &Value, product: Option<&str>) -> Result<(Event, Value)> {
        let Value::Object(fields) = topic else { return Err(INPUT.wrong("topics", "a list of objects", topic)) };
        let mut fields = fields.clone();
        if !fields.contains_key("messageBrokerTag") && !fields.contains_key("brokerTag") {
            fields.insert("messageBrokerTag".into(), self.tag.as_str().into());
        }
        let input = Value::Object(fields);
        let event = check_topic(product, &input)?;
        if event.broker() != self.tag {
            return Err(Error::input("tag", format!("topic '{event}' stands under broker '{}'", self.tag)));
        }
        Ok((event, input))
    }

    async fn put(&self, catalog: &Catalog, product: &str, prune: bool) -> Result<Change> {
        let there = catalog.fetch_product(product)?.is_some();
        let Some(before) = (if there { catalog.fetch_broker(product, &self.tag)? } else { None }) else {
            let after = catalog.create_broker(Some(product), self.input.clone()).await?;
            return Ok(Change::of("broker", &self.tag, Action::Create, None, Some(shown(&after))));
        };
        let old = catalog.broker_doc(product, &self.tag)?;
        let slugs: Vec<String> = check_envs(&self.input);
        let update = catalog.patch_broker(Some(product), &self.tag, &self.input, prune.then_some(slugs.as_slice())).await?;
        if !update.changed {
            return Ok(Change::of("broker", &self.tag, Action::Unchanged, None, None));
        }
        let new = catalog.broker_doc(product, &self.tag)?;
        let mut after = update.broker;
        mark_changed(&old, &new, &mut after);
        Ok(Change::of("broker", &self.tag, Action::Update, Some(shown(&before)), Some(shown(&after))))
    }
}

async fn put_topic(catalog: &Catalog, product: &str, event: &Event, input: &Value) -> Result<Change> {
    let Some(before) = catalog.fetch_topic(product, event.as_str())? else {
        let mut input = input.clone();
        if input.get("name").is_none_or(is_absent) {
            input["name"] = event.topic().into();
        }
        let after = catalog.create_topic(Some(product), input).await?;
        return Ok(Change::of("topic", event.as_str(), Action::Create, None, Some(shown(&*after))));
    };
    let update = catalog.update_topic(Some(product), event.as_str(), input.clone()).await?;
    Ok(if update.changed {
        Change::of("topic", event.as_str(), Action::Update, Some(shown(&*before)), Some(shown(&*update.topic)))
    } else {
        Change::of("topic", event.as_str(), Action::Unchanged, None, None)
    })
}

/// The session definitions of a file, each checked; the name is the tag where none is given.
fn sessions(given: Option<&Value>, product: Option<&str>) -> Result<Vec<(String, Value)>> {
    let mut sessions: Vec<(String, Value)> = Vec::new();
    for (i, session) in list("sessions", given)?.iter().enumerate() {
        let Value::Object(fields) = session else { return Err(INPUT.wrong("sessions", "a list of objects", session)) };
        let mut input = Value::Object(fields.clone());
        if let (None, Some(tag)) = (fields.get("name").filter(|name| !is_absent(name)), fields.get("tag").cloned()) {
            input["name"] = tag;
        }
        let tag = check_session(product, &input).map_err(|error| error.detail("at", format!("sessions[{i}]")))?;
        if sessions.iter().any(|(other, _)| *other == tag) {
            return Err(Error::input(&format!("sessions[{i}].tag"), format!("session '{tag}' is given twice")));
        }
        sessions.push((tag, input));
    }
    Ok(sessions)
}

async fn put_session(catalog: &Catalog, product: &str, tag: &str, input: &Value) -> Result<Change> {
    let there = catalog.fetch_product(product)?.is_some();
    let Some(before) = (if there { catalog.fetch_session(product, tag)? } else { None }) else {
        let after = catalog.create_session(Some(product), input.clone()).await?;
        return Ok(Change::of("session", tag, Action::Create, None, Some(shown(&*after))));
    };
    let update = catalog.update_session(Some(product), tag, input.clone()).await?;
    Ok(if update.changed {
        Change::of("session", tag, Action::Update, Some(shown(&*before)), Some(shown(&*update.session)))
    } else {
        Change::of("session", tag, Action::Unchanged, None, None)
    })
}

async fn put_cache(catalog: &Catalog, product: &str, tag: &str, input: &Value) -> Result<Change> {
    let there = catalog.fetch_product(product)?.is_some();
    let Some(before) = (if there { catalog.fetch_cache(product, tag)? } else { None }) else {
        let after = catalog.create_cache(Some(product), input.clone()).await?;
        return Ok(Change::of("cache", tag, Action::Create, None, Some(shown(&*after))));
    };
    let update = catalog.update_cache(Some(product), tag, input.clone()).await?;
    Ok(if update.changed {
        Change::of("cache", tag, Action::Update, Some(shown(&*before)), Some(shown(&*update.cache)))
    } else {
        Change::of("cache", tag, Action::Unchanged, None, None)
    })
}

impl Change {
    fn of(kind: &'static str, tag: &str, action: Action, before: Option<Value>, after: Option<Value>) -> Self {
        Change { kind, tag: tag.to_owned(), action, before, after }
    }
}

/// A thing as a diff shows it: without its times, and a broker without its topics.
fn shown(thing: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(thing).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        for name in ["createdAt", "updatedAt", "topics", "product"] {
            map.remove(name);
        }
    }
    value
}

/// Two credentials that differ look alike masked; the diff has to tell them apart.
fn mark_changed(old: &BrokerDoc, new: &BrokerDoc, after: &mut BrokerView) {
    for env in &mut after.envs {
        let (Some(old), Some(new)) = (old.env(&env.slug), new.env(&env.slug)) else { continue };
        let raw = |config: &Value| {
            let mut found = std::collections::HashMap::new();
            let seen = visit(env.kind, &mut config.clone(), &mut |path, _, value| {
                found.insert(path.to_owned(), value.clone());
                Ok(())
            });
            seen.map_or_else(|_| std::collections::HashMap::new(), |()| found)
        };
        let (old, new) = (raw(&old.config), raw(&new.config));
        let marked = visit(env.kind, &mut env.config, &mut |path, _, value| {
            let masked = value.as_str().filter(|text| text.contains(MASK)).map(|text| format!("{text} (changed)"));
            if let Some(text) = masked.filter(|_| old.contains_key(path) && old.get(path) != new.get(path)) {
                *value = text.into();
            }
            Ok(())
        });
        drop(marked);
    }
}

fn check_envs(input: &Value) -> Vec<String> {
    let slug = |env: &Value| {
        ["slug", "env", "env_slug", "env_type"].iter().find_map(|name| env.get(*name)).and_then(Value::as_str).map(str::to_owned)
    };
    input["envs"].as_array().map(|envs| envs.iter().filter_map(slug).collect()).unwrap_or_default()
}

fn list(field: &str, value: Option<&Value>) -> Result<Vec<Value>> {
    match value {
        Some(Value::Array(items)) => Ok(items.clone()),
        None => Ok(Vec::new()),
        Some(value) if is_absent(value) => Ok(Vec::new()),
        Some(value) => Err(INPUT.wrong(field, "a list", value)),
    }
}

/// What the YAML reader says, unless it could quote a value.
fn broken(error: &serde_yaml_ng::Error) -> Error {
    let text = error.to_string();
    let text = if text.contains("invalid type") || text.contains("invalid value") { "a value cannot be read".to_owned() } else { text };
    let read = Error::input("", format!("trunkline.yaml cannot be read: {text}"));
    match error.location() {
        Some(at) => read.detail("line", at.line()).detail("column", at.column()),
        None => read,
    }
}

#[cfg(test)]
mod tests;
