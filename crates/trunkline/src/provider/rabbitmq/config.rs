//! The config of RabbitMQ.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, exactly_one, not_beside, with_common};
use crate::error::Result;

/// How to reach RabbitMQ: by `url`, or by `host` and what goes with it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RabbitmqConfig {
    /// `amqp://user:pass@host:5672/vhost`, or `amqps://…`. Exactly one of this and `host`.
    pub url: Option<Secret>,
    /// The host.
    pub host: Option<String>,
    /// The port (default 5672, with `tls` 5671).
    pub port: Option<u16>,
    /// The user (default `guest`).
    pub username: Option<String>,
    /// The password (default `guest`).
    pub password: Option<Secret>,
    /// The virtual host (default `/`).
    pub vhost: Option<String>,
    /// The topic exchange (default: each topic's derived name).
    pub exchange: Option<String>,
    /// The queue of the default group; later topics add `.topicTag`, other groups `.group`.
    pub queue: Option<String>,
    /// What is published with, and what queues bind to; later topics add `.topicTag`.
    pub routing_key: Option<String>,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("url", Kind::Url),
    Field::new("host", Kind::Text),
    Field::new("port", Kind::Int(1, 65_535)),
    Field::new("username", Kind::Text),
    Field::new("password", Kind::Secret),
    Field::new("vhost", Kind::Text),
    Field::new("exchange", Kind::Text),
    Field::new("queue", Kind::Text),
    Field::new("routingKey", Kind::Text),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    exactly_one(config, &["url", "host"])?;
    not_beside(config, "url", &["port", "username", "password", "vhost"])
}
