//! The typed configs of all providers: what an env's `config` may hold, checked once for file, API, CLI and SDK.
//!
//! A config is checked twice: as it is written ([`validate`]), where references like `$Secret{NAME}` stand for any scalar,
//! and once those are resolved ([`ProviderConfig::parse`]), into the plain struct its provider opens with.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) mod fields;
pub(crate) mod sensitive;
pub(crate) mod server;
pub(crate) mod shape;

pub use crate::secret::Secret;
pub use fields::{Field, Kind};
pub use sensitive::mask;

pub use crate::provider::embedded::config::{EmbeddedConfig, Fsync};
pub use crate::provider::kafka::config::{KafkaConfig, KafkaOptions, Sasl, SaslMechanism};
pub use crate::provider::nats::config::{NatsConfig, NatsMode};
pub use crate::provider::pubsub::config::{PubsubConfig, ServiceAccount};
pub use crate::provider::rabbitmq::config::RabbitmqConfig;
pub use crate::provider::redis::config::{RedisConfig, RedisMode};
pub use crate::provider::sqs::config::SqsConfig;

use crate::error::{Code, Error, Result};
use crate::provider::{embedded, kafka, nats, pubsub, rabbitmq, redis, sqs};
use fields::{Check, Mode};
use shape::did_you_mean;

/// A technology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProviderKind {
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    #[serde(rename = "RABBITMQ")]
    RabbitMq,
    /// Redis.
    Redis,
    /// AWS SQS.
    AwsSqs,
    /// Google Pub/Sub.
    #[serde(rename = "GOOGLE_PUBSUB")]
    GooglePubSub,
    /// NATS.
    Nats,
    /// The broker in the library.
    Embedded,
}

impl ProviderKind {
    /// Every provider there is.
    pub const ALL: &[ProviderKind] = &[
        ProviderKind::Kafka,
        ProviderKind::RabbitMq,
        ProviderKind::Redis,
        ProviderKind::AwsSqs,
        ProviderKind::GooglePubSub,
        ProviderKind::Nats,
        ProviderKind::Embedded,
    ];

    /// As it is written: `AWS_SQS`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ProviderKind::Kafka => "KAFKA",
            ProviderKind::RabbitMq => "RABBITMQ",
            ProviderKind::Redis => "REDIS",
            ProviderKind::AwsSqs => "AWS_SQS",
            ProviderKind::GooglePubSub => "GOOGLE_PUBSUB",
            ProviderKind::Nats => "NATS",
            ProviderKind::Embedded => "EMBEDDED",
        }
    }

    /// The cargo feature it is compiled with.
    #[must_use]
    pub const fn feature(self) -> &'static str {
        match self {
            ProviderKind::Kafka => "kafka",
            ProviderKind::RabbitMq => "rabbitmq",
            ProviderKind::Redis => "redis",
            ProviderKind::AwsSqs => "sqs",
            ProviderKind::GooglePubSub => "pubsub",
            ProviderKind::Nats => "nats",
            ProviderKind::Embedded => "embedded",
        }
    }

    /// The fields of its config, the common ones included.
    #[must_use]
    pub const fn fields(self) -> &'static [Field] {
        match self {
            ProviderKind::Kafka => kafka::config::FIELDS,
            ProviderKind::RabbitMq => rabbitmq::config::FIELDS,
            ProviderKind::Redis => redis::config::FIELDS,
            ProviderKind::AwsSqs => sqs::config::FIELDS,
            ProviderKind::GooglePubSub => pubsub::config::FIELDS,
            ProviderKind::Nats => nats::config::FIELDS,
            ProviderKind::Embedded => embedded::config::FIELDS,
        }
    }

    /// Whether this build can open it.
    #[must_use]
    pub fn is_compiled_in(self) -> bool {
        compiled_in().contains(&self)
    }

    /// Refuses what this build cannot open.
    ///
    /// # Errors
    /// `CAPABILITY_UNSUPPORTED` naming the feature, and the providers there are.
    pub fn require_compiled_in(self) -> Result<()> {
        if self.is_compiled_in() {
            return Ok(());
        }
        let there: Vec<&str> = compiled_in().into_iter().map(ProviderKind::as_str).collect();
        let list = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(Error::new(Code::CapabilityUnsupported, format!("{self} is not compiled into this build, which has {list}"))
            .reason("not_compiled_in")
            .detail("provider", self.as_str())
            .detail("feature", self.feature())
            .detail("available", there)
            .next(format!("build with the cargo feature `{}`", self.feature())))
    }

    /// What is checked beyond the single fields.
    fn rules(self, config: &Map<String, Value>) -> Result<()> {
        match self {
            ProviderKind::Kafka => kafka::config::rules(config),
            ProviderKind::RabbitMq => rabbitmq::config::rules(config),
            ProviderKind::Redis => redis::config::rules(config),
            ProviderKind::AwsSqs => sqs::config::rules(config),
            ProviderKind::GooglePubSub => pubsub::config::rules(config),
            ProviderKind::Nats => nats::config::rules(config),
            ProviderKind::Embedded => embedded::config::rules(config),
        }
    }
}

/// The providers of this build.
#[must_use]
pub fn compiled_in() -> Vec<ProviderKind> {
    let clients = [
        (ProviderKind::Kafka, cfg!(feature = "kafka")),
        (ProviderKind::RabbitMq, cfg!(feature = "rabbitmq")),
        (ProviderKind::Redis, cfg!(feature = "redis")),
        (ProviderKind::GooglePubSub, cfg!(feature = "pubsub")),
        (ProviderKind::AwsSqs, cfg!(feature = "sqs")),
        (ProviderKind::Nats, cfg!(feature = "nats")),
        (ProviderKind::Embedded, cfg!(feature = "embedded")),
    ];
    clients.into_iter().filter(|(_, there)| *there).map(|(kind, _)| kind).collect()
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProviderKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        ProviderKind::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = ProviderKind::ALL.iter().map(|kind| kind.as_str()).collect();
            let near = did_you_mean(text, known.iter().copied());
            Error::input("type", format!("`type` must be one of {}{near}", known.join(", "))).detail("known", known)
        })
    }
}

/// What every provider takes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Common {
    /// The start of every derived name on the broker (default `product.env`).
    pub prefix: Option<String>,
    /// Another address for the service: an emulator, a private endpoint.
    pub endpoint: Option<String>,
    /// Whether missing topics, queues and groups are created (default true).
    pub create: bool,
    /// TLS, where the defaults do not do.
    pub tls: Option<Tls>,
}

impl Default for Common {
    fn default() -> Self {
        Common { prefix: None, endpoint: None, create: true, tls: None }
    }
}

/// TLS towards the broker. Certificates are PEM, or the path of a PEM file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    /// The authority that signed the server's certificate (default: the system's).
    pub ca: Option<String>,
    /// The client's certificate.
    pub cert: Option<String>,
    /// The client's private key.
    pub key: Option<Secret>,
    /// The name expected in the server's certificate (default: the host).
    pub server_name: Option<String>,
    /// Accepts any certificate (default false): for tests only.
    pub insecure: bool,
}

pub(crate) const TLS: &[Field] = &[
    Field::new("ca", Kind::Text),
    Field::new("cert", Kind::Text),
    Field::new("key", Kind::Secret),
    Field::new("serverName", Kind::Text),
    Field::new("insecure", Kind::Bool),
];

const COMMON: &[&str] = &["prefix", "endpoint", "create", "tls"];

/// A provider's own fields, then the ones every provider takes.
macro_rules! fields {
    ($($field:expr),* $(,)?) => {
        &[
            $($field,)*
            $crate::config::Field::new("prefix", $crate::config::Kind::Text),
            $crate::config::Field::new("endpoint", $crate::config::Kind::Url),
            $crate::config::Field::new("create", $crate::config::Kind::Bool),
            $crate::config::Field::new("tls", $crate::config::Kind::Object($crate::config::TLS)),
        ]
    };
}
pub(crate) use fields as with_common;

/// The config of one env, ready to open its provider with.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderConfig {
    /// `KAFKA`
    Kafka(KafkaConfig),
    /// `RABBITMQ`
    RabbitMq(RabbitmqConfig),
    /// `REDIS`
    Redis(RedisConfig),
    /// `AWS_SQS`
    AwsSqs(SqsConfig),
    /// `GOOGLE_PUBSUB`
    GooglePubSub(PubsubConfig),
    /// `NATS`
    Nats(NatsConfig),
    /// `EMBEDDED`
    Embedded(EmbeddedConfig),
}

impl ProviderConfig {
    /// Reads a config whose references are resolved; a text may stand for a number, a boolean or a list.
    ///
    /// # Errors
    /// `CONFIG_INVALID` naming the field.
    pub fn parse(kind: ProviderKind, config: &Value) -> Result<Self> {
        let mut own = checked(kind, config, Mode::Resolved)?;
        let common: Map<String, Value> = COMMON.iter().filter_map(|name| own.remove_entry(*name)).collect();
        let common: Common = typed(kind, common)?;
        Ok(match kind {
            ProviderKind::Kafka => ProviderConfig::Kafka(KafkaConfig { common, ..typed(kind, own)? }),
            ProviderKind::RabbitMq => ProviderConfig::RabbitMq(RabbitmqConfig { common, ..typed(kind, own)? }),
            ProviderKind::Redis => ProviderConfig::Redis(RedisConfig { common, ..typed(kind, own)? }),
            ProviderKind::AwsSqs => ProviderConfig::AwsSqs(SqsConfig { common, ..typed(kind, own)? }),
            ProviderKind::GooglePubSub => ProviderConfig::GooglePubSub(PubsubConfig { common, ..typed(kind, own)? }),
            ProviderKind::Nats => ProviderConfig::Nats(NatsConfig { common, ..typed(kind, own)? }),
            ProviderKind::Embedded => ProviderConfig::Embedded(EmbeddedConfig { common, ..typed(kind, own)? }),
        })
    }

    /// Its provider.
    #[must_use]
    pub fn kind(&self) -> ProviderKind {
        match self {
            ProviderConfig::Kafka(_) => ProviderKind::Kafka,
            ProviderConfig::RabbitMq(_) => ProviderKind::RabbitMq,
            ProviderConfig::Redis(_) => ProviderKind::Redis,
            ProviderConfig::AwsSqs(_) => ProviderKind::AwsSqs,
            ProviderConfig::GooglePubSub(_) => ProviderKind::GooglePubSub,
            ProviderConfig::Nats(_) => ProviderKind::Nats,
            ProviderConfig::Embedded(_) => ProviderKind::Embedded,
        }
    }

    /// What every provider takes.
    #[must_use]
    pub fn common(&self) -> &Common {
        match self {
            ProviderConfig::Kafka(config) => &config.common,
            ProviderConfig::RabbitMq(config) => &config.common,
            ProviderConfig::Redis(config) => &config.common,
            ProviderConfig::AwsSqs(config) => &config.common,
            ProviderConfig::GooglePubSub(config) => &config.common,
            ProviderConfig::Nats(config) => &config.common,
            ProviderConfig::Embedded(config) => &config.common,
        }
    }
}

/// Checks a config as it is written, and returns it without what is absent. References stand for any scalar.
///
/// # Errors
/// `CONFIG_INVALID` naming the field.
pub fn validate(kind: ProviderKind, config: &Value) -> Result<Value> {
    checked(kind, config, Mode::Written).map(Value::Object)
}

fn checked(kind: ProviderKind, config: &Value, mode: Mode) -> Result<Map<String, Value>> {
    let check = Check { code: Code::ConfigInvalid, mode };
    let empty = Value::Object(Map::new());
    let config = if config.is_null() { &empty } else { config };
    let own = check.object("", kind.fields(), config).and_then(|own| kind.rules(&own).map(|()| own));
    own.map_err(|error| error.context(&format!("config of {kind}")).detail("provider", kind.as_str()))
}

/// The walk has checked everything, so a failure here is a table that disagrees with its struct; serde's own text is
/// dropped because it quotes values.
fn typed<T: DeserializeOwned>(kind: ProviderKind, map: Map<String, Value>) -> Result<T> {
    serde_json::from_value(Value::Object(map))
        .map_err(|_| Error::new(Code::ConfigInvalid, format!("config of {kind}: a field has a value of the wrong type")))
}

/// Refuses a config that has none, or more than one, of these.
pub(crate) fn exactly_one(config: &Map<String, Value>, names: &[&str]) -> Result<()> {
    let given: Vec<&str> = names.iter().copied().filter(|name| config.contains_key(*name)).collect();
    let list = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    match given[..] {
        [_] => Ok(()),
        [] => Err(invalid(names[0], format!("{list} is required"))),
        _ => Err(invalid(given[1], format!("give only one of {list}"))),
    }
}

/// Refuses `names` beside `lead`, which says the same already.
pub(crate) fn not_beside(config: &Map<String, Value>, lead: &str, names: &[&str]) -> Result<()> {
    match names.iter().find(|name| config.contains_key(lead) && config.contains_key(**name)) {
        Some(name) => Err(invalid(name, format!("`{name}` cannot be given beside `{lead}`, which says it already"))),
        None => Ok(()),
    }
}

pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Error {
    Error::new(Code::ConfigInvalid, message).field(field)
}

#[cfg(test)]
mod tests;
