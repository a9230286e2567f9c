//! The config of Google Pub/Sub.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, not_beside, with_common};
use crate::error::Result;

/// How to reach Google Pub/Sub. Without a key, application default credentials are used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PubsubConfig {
    /// The project. Required.
    pub project_id: String,
    /// The name of the broker's oldest topic; later ones add `.topicTag`.
    pub topic_name: Option<String>,
    /// The subscription of the default group, and that group's name; later topics add `.topicTag`.
    pub subscription_name: Option<String>,
    /// The path of a service account's key. At most one of this and `credentials`.
    pub key_filename: Option<String>,
    /// A service account's key itself: the JSON object, or its text.
    pub credentials: Option<ServiceAccount>,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

/// A service account's key as JSON text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Value")]
pub struct ServiceAccount(pub Secret);

impl From<Value> for ServiceAccount {
    fn from(value: Value) -> Self {
        ServiceAccount(Secret::from(if let Value::String(text) = value { text } else { value.to_string() }))
    }
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("projectId", Kind::Text).required(),
    Field::new("topicName", Kind::Text),
    Field::new("subscriptionName", Kind::Text),
    Field::new("keyFilename", Kind::Text),
    Field::new("credentials", Kind::SecretAny),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    not_beside(config, "credentials", &["keyFilename"])
}
