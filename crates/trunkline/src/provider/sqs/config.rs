//! The config of AWS SQS.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, Secret, invalid, with_common};
use crate::error::Result;

/// How to reach AWS SQS. Without keys the usual AWS chain is asked: environment, profile, role.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SqsConfig {
    /// The region, `us-east-1`. Required.
    pub region: String,
    /// The access key's id.
    pub access_key_id: Option<String>,
    /// The access key.
    pub secret_access_key: Option<Secret>,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Whether queues are FIFO (default: where the topic is ordered).
    pub fifo: Option<bool>,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("region", Kind::Text).required(),
    Field::new("accessKeyId", Kind::Text),
    Field::new("secretAccessKey", Kind::Secret),
    Field::new("sessionToken", Kind::Secret),
    Field::new("fifo", Kind::Bool),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    let has = |name| config.contains_key(name);
    if has("accessKeyId") != has("secretAccessKey") {
        let missing = if has("accessKeyId") { "secretAccessKey" } else { "accessKeyId" };
        return Err(invalid(missing, "`accessKeyId` and `secretAccessKey` go together"));
    }
    if has("sessionToken") && !has("accessKeyId") {
        return Err(invalid("accessKeyId", "`sessionToken` needs `accessKeyId` and `secretAccessKey`"));
    }
    Ok(())
}
