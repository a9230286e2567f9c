//! The config of the embedded broker.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{Common, Field, Kind, not_beside, with_common};
use crate::error::Result;
use crate::policy_config::Retention;

/// Where the embedded broker keeps its log.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// The directory (default `log/` in the data directory).
    pub path: Option<String>,
    /// Keeps messages in memory only (default false).
    #[serde(default)]
    pub memory: bool,
    /// The largest payload plus headers, in bytes (default 1 MiB).
    #[serde(default = "one_mebibyte")]
    pub max_payload: usize,
    /// When a confirmed message is on disk (default `always`: before it is confirmed).
    #[serde(default)]
    pub fsync: Fsync,
    /// How much the log keeps (default: no bound on age, as much as the disk allows).
    #[serde(default)]
    pub retention: Retention,
    /// What every provider takes.
    #[serde(skip)]
    pub common: Common,
}

/// When the embedded log is synced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before a message is confirmed.
    #[default]
    Always,
    /// Now and then: a power cut may lose what was confirmed last.
    Interval,
}

fn one_mebibyte() -> usize {
    1 << 20
}

pub(crate) const FIELDS: &[Field] = with_common![
    Field::new("path", Kind::Text),
    Field::new("memory", Kind::Bool),
    Field::new("maxPayload", Kind::Int(1, 1 << 30)),
    Field::new("fsync", Kind::Word(&["always", "interval"])),
    Field::new("retention", Kind::By(|path, value| Retention::read(path, value).map(drop))),
];

pub(crate) fn rules(config: &Map<String, Value>) -> Result<()> {
    if config.get("memory") == Some(&Value::Bool(true)) { not_beside(config, "memory", &["path", "fsync"]) } else { Ok(()) }
}
