//! The documents of the catalogue, as they are stored, and as `fetch` shows them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capability::Durability;
use crate::config::ProviderKind;
use crate::event::Event;
use crate::history::Capture;
use crate::message::Millis;
use crate::names::Physical;
use crate::policy_config::{Defaults, Retention};
use crate::provider::Start;
use crate::schema::{Validate, infer};

/// A named owner of brokers and topics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProductDoc {
    /// Its tag.
    pub tag: String,
    /// Its display name (default: the tag).
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// A broker as it is stored: credentials in its configs are sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerDoc {
    /// Its tag.
    pub tag: String,
    /// Its display name.
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The product it belongs to.
    pub product: String,
    /// Its envs, in the order given.
    pub envs: Vec<EnvDoc>,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

impl BrokerDoc {
    /// The env of this slug.
    #[must_use]
    pub fn env(&self, slug: &str) -> Option<&EnvDoc> {
        self.envs.iter().find(|env| env.slug == slug)
    }
}

/// One env of a broker as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvDoc {
    /// Its slug.
    pub slug: String,
    /// Its provider.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Its config, sealed where it is sensitive.
    pub config: Value,
    /// The server it leads to, without credentials.
    pub server: String,
    /// Raised whenever provider or server change.
    pub epoch: u64,
    /// The servers it led to before, for as long as something may wait there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Leaving>,
}

/// A server that an env has left and that is still consumed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// Its provider.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Its config, sealed where it is sensitive.
    pub config: Value,
    /// The server, without credentials.
    pub server: String,
    /// The epoch of the env when it led there.
    pub epoch: u64,
    /// The names of the topics there, by short tag.
    pub physical: BTreeMap<String, Physical>,
    /// The groups for which nothing is left there, by the short tag of their topic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub through: BTreeMap<String, BTreeSet<String>>,
}

/// A broker as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerView {
    /// Its tag.
    pub tag: String,
    /// Its display name.
    pub name: String,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The product it belongs to.
    pub product: String,
    /// Its envs; credentials read `***`.
    pub envs: Vec<EnvView>,
    /// Its topics, oldest first.
    pub topics: Vec<std::sync::Arc<TopicDoc>>,
    /// When it was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// One env of a broker as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnvView {
    /// Its slug.
    pub slug: String,
    /// Its provider.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Its config; credentials read `***`.
    pub config: Value,
    /// The servers it has left and that are still consumed from, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<LeavingView>,
}

/// A server that an env has left, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeavingView {
    /// Its provider.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// The server, without credentials.
    pub server: String,
    /// The groups for which nothing is left there, by the short tag of their topic.
    pub through: BTreeMap<String, BTreeSet<String>>,
}

/// Whether messages of one key are handled in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// No order is promised.
    #[default]
    None,
    /// The messages of one key one after the other.
    Key,
}

/// The URL of a topic's SQS queue in one env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueUrl {
    /// The env.
    #[serde(rename = "env_slug")]
    pub slug: String,
    /// The queue.
    pub url: String,
}

/// A topic's own name on the broker of one env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnName {
    /// The env.
    pub slug: String,
    /// The name.
    pub name: String,
}

/// A topic: stored and shown alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicDoc {
    /// Its tag in full, `brokerTag:topicTag`.
    pub tag: Event,
    /// The broker's tag.
    pub broker_tag: String,
    /// Its short tag.
    pub topic_tag: String,
    /// The product it belongs to.
    pub product: String,
    /// Its display name.
    pub name: String,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An example payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Value>,
    /// A JSON Schema of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// The JSON Schema that the sample yields, as it was worked out when the sample was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inferred_schema: Option<Value>,
    /// What is done about a payload that does not fit (default: warn).
    #[serde(default)]
    pub validate: Validate,
    /// Whether messages of one key are handled in order. Fixed.
    pub ordering: Ordering,
    /// The shards asked for; what each env has stands in `physical`. Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// What a confirmed message must at least survive (default: any).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// How much of each message the history keeps.
    #[serde(default)]
    pub capture: Capture,
    /// How long the history keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Queue URLs, used by the envs that are `AWS_SQS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue_urls: Vec<QueueUrl>,
    /// Own names on the brokers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<OwnName>,
    /// What its consumers do where they say nothing themselves.
    #[serde(default, skip_serializing_if = "Defaults::is_empty")]
    pub defaults: Defaults,
    /// Its names by env, chosen when topic and env first met.
    #[serde(default)]
    pub physical: BTreeMap<String, Physical>,
    /// When it was made; no two topics of a broker share it, so that the oldest is known.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

impl TopicDoc {
    /// The JSON Schema of its payloads: the one it was given, else the one its sample yields.
    #[must_use]
    pub fn payload_schema(&self) -> Option<Cow<'_, Value>> {
        let kept = self.schema.as_ref().or(self.inferred_schema.as_ref()).map(Cow::Borrowed);
        kept.or_else(|| self.sample.as_ref().map(|sample| Cow::Owned(infer(sample))))
    }

    /// Its own name on the broker of an env, if it was given one.
    #[must_use]
    pub fn own_name(&self, slug: &str, kind: ProviderKind) -> Option<&str> {
        let name = self.names.iter().find(|own| own.slug == slug).map(|own| own.name.as_str());
        let url = || self.queue_urls.iter().find(|queue| queue.slug == slug).map(|queue| queue.url.as_str());
        name.or_else(|| if kind == ProviderKind::AwsSqs { url() } else { None })
    }
}

/// A declared or known group of a topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupDoc {
    /// Its name.
    pub name: String,
    /// Its topic.
    pub event: Event,
    /// The product it belongs to.
    pub product: String,
    /// Where it starts on a topic it is new to (default: as the provider can).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Start>,
    /// Created by hand, not by a first consume.
    #[serde(default)]
    pub declared: bool,
    /// The default group, deleted: it stays so until a consume names it.
    #[serde(default)]
    pub deleted_default: bool,
    /// Consumers of it do not receive.
    #[serde(default)]
    pub paused: bool,
    /// When it became known.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}
