//! What topics and groups are on the server: streams, subjects, consumers.

use std::sync::Arc;

use async_nats::Subject;

use crate::config::NatsConfig;
use crate::names::nats_stream;
use crate::provider::TopicSpec;

/// No part of a derived name starts with `_`, so this stays apart from every topic.
const SHARD: &str = "._shard.";
/// The priority group that the members of a group pull in: one of them is pinned.
pub(super) const PIN_GROUP: &str = "owner";
/// Holds who owns which shard, for all ordered topics of an account, and the topics of streams that topics share.
pub(super) const OWNERS: &str = "trunkline-owners";
/// The subjects of [`OWNERS`].
pub(super) const OWNERS_SUBJECTS: &str = "_trunkline.owners.>";

/// Where a topic lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) topic: Arc<str>,
    pub(super) stream: String,
    /// Whether the stream may hold other topics as well.
    pub(super) shared: bool,
    pub(super) ordered: bool,
    pub(super) shards: u32,
}

impl Place {
    pub(super) fn of(config: &NatsConfig, topic: &TopicSpec) -> Place {
        Place {
            stream: config.stream.clone().unwrap_or_else(|| nats_stream(&topic.name)),
            shared: config.stream.is_some(),
            topic: topic.name.clone(),
            ordered: topic.ordered,
            // An unordered topic is one subject, and its members compete: shards would only be names.
            shards: if topic.ordered { topic.shards.max(1) } else { 1 },
        }
    }

    /// What the stream listens to for this topic.
    pub(super) fn pattern(&self) -> String {
        if self.ordered { format!("{}{SHARD}*", self.topic) } else { self.topic.to_string() }
    }

    /// Where the messages of a shard are published to.
    pub(super) fn subject(&self, shard: u32) -> Subject {
        if self.ordered { format!("{}{SHARD}{shard}", self.topic).into() } else { self.topic.to_string().into() }
    }

    /// The durable consumer of a group on a shard.
    pub(super) fn consumer(&self, group: &str, shard: u32) -> String {
        let base = if self.shared { nats_stream(&format!("{group}/{}", self.topic)) } else { group.to_owned() };
        if self.ordered { format!("{base}={shard}") } else { base }
    }

    /// The key of the stream's metadata that says how many shards the topic has.
    pub(super) fn shards_key(&self) -> String {
        if self.shared { shards_key(&self.topic) } else { "trunkline.shards".into() }
    }

    /// Where the topics of a shared stream are listed.
    pub(super) fn topics(&self) -> Subject {
        format!("_trunkline.owners.{}", self.stream).into()
    }

    /// Where the owners of a group's shards are kept.
    pub(super) fn owners(&self, group: &str) -> Subject {
        let consumer = if self.shared { nats_stream(&format!("{group}/{}", self.topic)) } else { group.to_owned() };
        format!("_trunkline.owners.{}.{consumer}", self.stream).into()
    }
}

/// The key of a shared stream's metadata that says how many shards a topic has.
pub(super) fn shards_key(topic: &str) -> String {
    format!("trunkline.shards.{topic}")
}

/// Whether a subject lies under a pattern with `*` and `>`, both as NATS writes them.
pub(super) fn covers(pattern: &str, subject: &str) -> bool {
    let mut pattern = pattern.split('.');
    let mut subject = subject.split('.');
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            // A wildcard of the subject is only covered by a wildcard.
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(token), Some(other)) if token == other && token != "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(shared: bool, ordered: bool) -> Place {
        let stream = if shared { "ALL".into() } else { nats_stream("p.e.b.t") };
        Place { topic: "p.e.b.t".into(), stream, shared, ordered, shards: 4 }
    }

    #[test]
    fn names() {
        let own = place(false, false);
        assert_eq!((own.stream.as_str(), own.pattern().as_str(), own.subject(0).as_str()), ("p~e~b~t", "p.e.b.t", "p.e.b.t"));
        assert_eq!(own.consumer("billing", 0), "billing");
        let ordered = place(false, true);
        assert_eq!((ordered.pattern().as_str(), ordered.subject(3).as_str()), ("p.e.b.t._shard.*", "p.e.b.t._shard.3"));
        assert_eq!(ordered.consumer("billing", 3), "billing=3");
        assert_eq!(ordered.owners("billing").as_str(), "_trunkline.owners.p~e~b~t.billing");
        let shared = place(true, true);
        assert_eq!((shared.stream.as_str(), shared.consumer("billing", 3).as_str()), ("ALL", "billing=2f=p~e~b~t=3"));
        assert_ne!(shared.shards_key(), ordered.shards_key());
    }

    #[test]
    fn patterns_cover_subjects() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*", "a.b.c", false),
            ("a.*", "a.*", true),
            ("a.>", "a.*", true),
            ("a.b", "a.*", false),
            ("*.b", "a.b", true),
            (">", "a", true),
            ("a.*", "a.>", false),
        ] {
            assert_eq!(covers(pattern, subject), expected, "{pattern} {subject}");
        }
    }
}
