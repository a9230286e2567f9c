//! The config of Redis.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, exactly_one, invalid, not_beside, with_common};
use crate::error::Result;

/// How to reach Redis: by `url`, or by `host` and what goes with it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://user:pass@host:6379/0`, or `rediss://…`. Exactly one of this and `host`.
    pub url: Option<Secret>,
    /// The host.
    pub host: Option<String>,
    /// The port (default 6379).
    pub port: Option<u16>,
    /// The user (default: Redis' own).
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The database (default 0).
    pub db: Option<u32>,
    /// Durable streams with groups, or Pub/Sub that keeps nothing (default `stream`, with `channel` `pubsub`).
    pub mode: Option<RedisMode>,
    /// The Pub/Sub channel of the broker's oldest topic; later ones add `.topicTag`.
    pub channel: Option<String>,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

/// What a topic is on Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    /// A stream with consumer groups.
    Stream,
    /// A channel: handed to whoever listens now.
    Pubsub,
}

impl RedisConfig {
    /// The mode in force.
    #[must_use]
    pub fn mode(&self) -> RedisMode {
        self.mode.unwrap_or(if self.channel.is_some() { RedisMode::Pubsub } else { RedisMode::Stream })
    }
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("url", Kind::Url),
    Field::new("host", Kind::Text),
    Field::new("port", Kind::Int(1, 65_535)),
    Field::new("username", Kind::Text),
    Field::new("password", Kind::Secret),
    Field::new("db", Kind::Int(0, u32::MAX as i64)),
    Field::new("mode", Kind::Word(&["stream", "pubsub"])),
    Field::new("channel", Kind::Text),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    exactly_one(config, &["host", "url"])?;
    not_beside(config, "url", &["port", "username", "password", "db"])?;
    if config.contains_key("channel") && config.get("mode").is_some_and(|mode| mode == "stream") {
        return Err(invalid("mode", "`channel` means `mode: pubsub`; a stream has no channel"));
    }
    Ok(())
}
