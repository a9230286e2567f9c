//! The config of Kafka.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, with_common};
use crate::error::Result;

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaConfig {
    /// Bootstrap servers, each `host:port`. Required.
    pub brokers: Vec<String>,
    /// How this client calls itself in the broker's logs (default `trunkline`).
    pub client_id: Option<String>,
    /// The default consumer group (default: the product's tag).
    pub group_id: Option<String>,
    /// The name of the broker's oldest topic; later ones add `.topicTag`.
    pub topic: Option<String>,
    /// Whether the connection is encrypted (default: only if `tls` is given).
    pub ssl: Option<bool>,
    /// Authentication.
    pub sasl: Option<Sasl>,
    /// Partitions of an unordered topic that says no `shards` (default 8).
    pub partitions: Option<u32>,
    /// Replicas of topics that are created (default: the broker's own).
    pub replication: Option<u32>,
    /// Properties of librdkafka, applied last.
    #[serde(default)]
    pub options: KafkaOptions,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

/// SASL authentication.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sasl {
    /// How the password is proven.
    pub mechanism: SaslMechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// How the password is proven to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SaslMechanism {
    /// Sent as it is: only over TLS.
    #[serde(rename = "plain")]
    Plain,
    /// Challenge and response with SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Challenge and response with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

/// Properties of librdkafka; shown by name only, since some hold credentials.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(from = "BTreeMap<String, Value>")]
pub struct KafkaOptions(pub BTreeMap<String, String>);

impl From<BTreeMap<String, Value>> for KafkaOptions {
    fn from(map: BTreeMap<String, Value>) -> Self {
        let text = |value: Value| if let Value::String(text) = value { text } else { value.to_string() };
        KafkaOptions(map.into_iter().map(|(name, value)| (name, text(value))).collect())
    }
}

impl fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

const SASL: &[Field] = &[
    Field::new("mechanism", Kind::Word(&["plain", "scram-sha-256", "scram-sha-512"])).required(),
    Field::new("username", Kind::Text).required(),
    Field::new("password", Kind::Secret).required(),
];

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("brokers", Kind::Texts).required(),
    Field::new("clientId", Kind::Text),
    Field::new("groupId", Kind::Text),
    Field::new("topic", Kind::Text),
    Field::new("ssl", Kind::Bool),
    Field::new("sasl", Kind::Object(SASL)),
    Field::new("partitions", Kind::Int(1, 10_000)),
    Field::new("replication", Kind::Int(1, 100)),
    Field::new("options", Kind::Options),
];

pub(crate) fn rules(_config: &Map<String, Value>) -> Result<()> {
    Ok(())
}
