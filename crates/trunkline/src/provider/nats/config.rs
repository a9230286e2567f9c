//! The config of NATS.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, invalid, not_beside, with_common};
use crate::error::Result;

/// How to reach NATS.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NatsConfig {
    /// `nats://host:4222`, one or several. Required.
    #[serde(deserialize_with = "one_or_many")]
    pub servers: Vec<Secret>,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub pass: Option<Secret>,
    /// A token, instead of user and password.
    pub token: Option<Secret>,
    /// A credentials file: its path, or its text.
    pub creds: Option<Secret>,
    /// How this client calls itself in the server's logs (default `trunkline`).
    pub name: Option<String>,
    /// Attempts to connect again before the consumer is `closed` (default −1: unlimited).
    #[serde(default = "unlimited")]
    pub max_reconnect_attempts: i64,
    /// The longest wait between two attempts to connect again (ms, or `2s`; default 2 s).
    #[serde(default, deserialize_with = "crate::policy_config::maybe_duration")]
    pub reconnect_time_wait: Option<Duration>,
    /// The stream that holds the topics' subjects (default: one stream per topic).
    pub stream: Option<String>,
    /// Replicas of streams that are created (default 1).
    pub replicas: Option<u32>,
    /// Durable JetStream, or core NATS that keeps nothing (default `jetstream`).
    #[serde(default)]
    pub mode: NatsMode,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

/// What a topic is on NATS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NatsMode {
    /// A stream with durable consumers.
    #[default]
    Jetstream,
    /// A subject: handed to whoever listens now.
    Core,
}

fn unlimited() -> i64 {
    -1
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Servers {
        One(String),
        Many(Vec<Secret>),
    }
    Ok(match Servers::deserialize(deserializer)? {
        Servers::One(text) => text.split(',').map(|server| Secret::from(server.trim().to_owned())).collect(),
        Servers::Many(servers) => servers,
    })
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("servers", Kind::Urls).required(),
    Field::new("user", Kind::Text),
    Field::new("pass", Kind::Secret),
    Field::new("token", Kind::Secret),
    Field::new("creds", Kind::Secret),
    Field::new("name", Kind::Text),
    Field::new("maxReconnectAttempts", Kind::Int(-1, u32::MAX as i64)),
    Field::new("reconnectTimeWait", Kind::Duration),
    Field::new("stream", Kind::Text),
    Field::new("replicas", Kind::Int(1, 5)),
    Field::new("mode", Kind::Word(&["jetstream", "core"])),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    not_beside(config, "token", &["user", "pass", "creds"])?;
    not_beside(config, "creds", &["user", "pass"])?;
    if config.contains_key("pass") && !config.contains_key("user") {
        return Err(invalid("user", "`pass` needs `user`"));
    }
    let core = config.get("mode").is_some_and(|mode| mode == "core");
    match ["stream", "replicas"].into_iter().find(|name| core && config.contains_key(*name)) {
        Some(name) => Err(invalid(name, format!("`mode: core` has no stream; leave `{name}` out"))),
        None => Ok(()),
    }
}
