//! What this server keeps of what it confirms: asked when a connection is opened, computed from its own settings.

use std::collections::HashMap;

use redis::Value;

use super::envelope::bytes;
use super::link::Link;
use super::target::pairs;
use crate::capability::Durability;
use crate::error::Result;

/// The largest message, unless the server takes less. Redis itself would take 512 MB, and hold up everybody meanwhile.
const MAX_MESSAGE: usize = 16 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) durability: Durability,
    pub(super) max_message_bytes: usize,
    /// What of the settings endangers messages, in words.
    pub(super) warnings: Vec<String>,
}

const SETTINGS: [&str; 6] =
    ["appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy", "proto-max-bulk-len"];

impl Facts {
    /// Asks the server. What the user may not ask is taken at its weakest.
    ///
    /// # Errors
    /// As the connection's.
    pub(super) async fn ask(link: &Link) -> Result<Self> {
        let version = link.wire().await?.hello.version.clone();
        let mut pipeline = redis::pipe();
        pipeline.cmd("CONFIG").arg("GET").arg(&SETTINGS);
        pipeline.cmd("INFO").arg("persistence");
        let mut answers = link.pipe(&pipeline).await?.into_iter();
        let settings = answers.next().filter(|answer| !matches!(answer, Value::ServerError(_)));
        let settings = settings.map(|answer| {
            let text = |value| String::from_utf8_lossy(&bytes(value)).into_owned();
            pairs(answer).into_iter().map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), text(value))).collect()
        });
        let info = answers.next().and_then(|answer| String::from_utf8(bytes(answer)).ok()).unwrap_or_default();
        Ok(Self::compute(version, settings.as_ref(), &info))
    }

    fn compute(version: String, settings: Option<&HashMap<String, String>>, info: &str) -> Self {
        let Some(settings) = settings else {
            // `INFO` says whether there is an append-only file, not when it is synced.
            let warning = "the user may not read the server's settings (`CONFIG GET`): durability counts as `memory`";
            let aof = info.lines().any(|line| line.trim() == "aof_enabled:1");
            let warnings = if aof { vec![warning.to_owned()] } else { vec![warning.to_owned(), no_aof()] };
            return Facts { version, durability: Durability::Memory, max_message_bytes: MAX_MESSAGE, warnings };
        };
        let is = |name: &str, value: &str| settings.get(name).is_some_and(|set| set == value);
        let number = |name: &str| settings.get(name).and_then(|set| set.parse::<u64>().ok());
        let mut warnings = Vec::new();
        let mut durability = match settings.get("appendfsync").map(String::as_str) {
            _ if !is("appendonly", "yes") => {
                warnings.push(no_aof());
                Durability::Memory
            }
            Some("always") if is("no-appendfsync-on-rewrite", "yes") => Durability::Written,
            Some("always") => Durability::Fsynced,
            Some("no") => Durability::Written,
            // Redis answers before it writes while an earlier sync is still under way, for up to two seconds.
            _ => Durability::Memory,
        };
        let policy = settings.get("maxmemory-policy").map_or("", String::as_str);
        if policy.starts_with("allkeys") && number("maxmemory").is_none_or(|limit| limit > 0) {
            warnings.push(format!(
                "`maxmemory-policy` is {policy}: when memory is full Redis drops whole topics, settled or not; use `noeviction`"
            ));
            durability = Durability::Memory;
        }
        let limit = number("proto-max-bulk-len").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_MESSAGE);
        Facts { version, durability, max_message_bytes: limit.min(MAX_MESSAGE), warnings }
    }
}

fn no_aof() -> String {
    "`appendonly` is off: what is confirmed is gone when this Redis dies".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(settings: &[(&str, &str)]) -> Facts {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Facts::compute("7.0.15".into(), Some(&settings), "")
    }

    #[test]
    fn durability_is_what_the_settings_keep() {
        use Durability::{Fsynced, Memory, Written};
        for (fsync, rewrite, durability) in
            [("always", "no", Fsynced), ("always", "yes", Written), ("no", "no", Written), ("everysec", "no", Memory)]
        {
            let facts = facts(&[("appendonly", "yes"), ("appendfsync", fsync), ("no-appendfsync-on-rewrite", rewrite)]);
            assert_eq!((facts.durability, facts.warnings.len()), (durability, 0), "{fsync} {rewrite}");
        }
        let off = facts(&[("appendonly", "no"), ("appendfsync", "always")]);
        assert_eq!((off.durability, off.warnings.len()), (Memory, 1));
    }

    #[test]
    fn eviction_takes_durability_away() {
        let base = [("appendonly", "yes"), ("appendfsync", "always")];
        for (limit, policy, durability) in [
            ("1000", "noeviction", Durability::Fsynced),
            ("0", "allkeys-lru", Durability::Fsynced),
            ("1000", "volatile-lru", Durability::Fsynced),
            ("1000", "allkeys-lru", Durability::Memory),
        ] {
            let facts = facts(&[&base[..], &[("maxmemory", limit), ("maxmemory-policy", policy)]].concat());
            assert_eq!((facts.durability, facts.warnings.is_empty()), (durability, durability != Durability::Memory), "{limit} {policy}");
        }
    }

    #[test]
    fn what_may_not_be_asked_counts_as_weakest() {
        let facts = Facts::compute("7.2.4".into(), None, "loading:0\r\naof_enabled:1\r\n");
        assert_eq!((facts.durability, facts.max_message_bytes, facts.warnings.len()), (Durability::Memory, MAX_MESSAGE, 1));
        assert_eq!(Facts::compute("7.2.4".into(), None, "").warnings.len(), 2);
    }

    #[test]
    fn the_servers_own_limit_counts() {
        assert_eq!(facts(&[("proto-max-bulk-len", "1048576")]).max_message_bytes, 1 << 20);
        assert_eq!(facts(&[("proto-max-bulk-len", "536870912")]).max_message_bytes, MAX_MESSAGE);
    }
}
