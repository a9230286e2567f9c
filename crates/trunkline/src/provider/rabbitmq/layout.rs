//! What a topic and its groups are called on the server.
//!
//! A topic is an exchange and a routing key, a group is a queue bound to it. An ordered topic has a routing key per shard,
//! and an ordered group a queue per shard: `name.@3`. `@` stands in no derived name, so these meet nothing else.

use crate::config::ProviderKind;
use crate::names;
use crate::provider::TopicSpec;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) exchange: String,
    /// The routing key of the topic; of an ordered one, what shards add to.
    pub(super) key: String,
    /// The queue of the default group; others add their name.
    base: String,
    /// The number of shards, if it is ordered.
    pub(super) shards: Option<u32>,
}

impl Layout {
    pub(super) fn of(topic: &TopicSpec) -> Layout {
        Layout {
            exchange: topic.exchange.as_deref().unwrap_or(&topic.name).to_owned(),
            key: topic.name.to_string(),
            base: topic.queue.as_deref().unwrap_or(&topic.name).to_owned(),
            shards: topic.ordered.then_some(topic.shards.max(1)),
        }
    }

    /// The queue of a group. A name that is already made from the topic's is used as it is; another is added to it, so
    /// that one group name on many topics means many queues.
    pub(super) fn queue(&self, group: &str) -> String {
        let made = group.strip_prefix(&self.base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if made { group.to_owned() } else { names::extend(ProviderKind::RabbitMq, &self.base, &[group]) }
    }

    /// The queue of the default group.
    pub(super) fn default_queue(&self) -> &str {
        &self.base
    }

    /// The queues of a group, each with the shard it holds.
    pub(super) fn queues(&self, group: &str) -> Vec<(u32, String)> {
        let queue = self.queue(group);
        match self.shards {
            None => vec![(0, queue)],
            Some(shards) => (0..shards).map(|shard| (shard, of_shard(&queue, shard))).collect(),
        }
    }

    /// What messages of a shard are published with.
    pub(super) fn routing_key(&self, shard: u32) -> String {
        if self.shards.is_some() { of_shard(&self.key, shard) } else { self.key.clone() }
    }
}

/// A queue or routing key of one shard.
pub(super) fn of_shard(name: &str, shard: u32) -> String {
    names::beside(name, &shard.to_string())
}

/// Where the number of a group's last hand-over lies.
pub(super) fn epochs(queue: &str) -> String {
    names::beside(queue, "epoch")
}

/// The exchange over which the members of an ordered group hear of each other.
pub(super) fn members(queue: &str) -> String {
    names::beside(queue, "members")
}

/// The queue of one member, for what the others say.
pub(super) fn member(queue: &str, member: &str) -> String {
    names::beside(queue, &format!("member.{member}"))
}

/// The queue whose exclusive owner owns the shard.
pub(super) fn owner(queue: &str, shard: u32) -> String {
    names::beside(queue, &format!("{shard}.owner"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(ordered: bool) -> TopicSpec {
        TopicSpec { name: "orders".into(), shards: 3, ordered, exchange: Some("shop".into()), queue: Some("mail".into()) }
    }

    #[test]
    fn a_group_is_a_queue_per_topic_and_shard() {
        let plain = Layout::of(&topic(false));
        assert_eq!((plain.exchange.as_str(), plain.routing_key(2).as_str()), ("shop", "orders"));
        assert_eq!(plain.queues("mail"), [(0, "mail".to_owned())]);
        assert_eq!(plain.queue("mail.audit"), "mail.audit");
        assert_eq!(plain.queue("audit"), "mail.audit");
        assert_eq!(plain.queue("mailer"), "mail.mailer");
        let ordered = Layout::of(&topic(true));
        assert_eq!(ordered.routing_key(2), "orders.@2");
        assert_eq!(ordered.queues("mail").last(), Some(&(2, "mail.@2".to_owned())));
        let derived = Layout::of(&TopicSpec { exchange: None, queue: None, ..topic(false) });
        assert_eq!((derived.exchange.as_str(), derived.queue("g").as_str()), ("orders", "orders.g"));
    }

    #[test]
    fn names_fit_the_protocol() {
        let long = "q".repeat(255);
        for name in [of_shard(&long, 7), epochs(&long), members(&long), owner(&long, 7), member(&long, &"m".repeat(36))] {
            assert!(name.len() <= 255, "{name}");
        }
        assert_ne!(of_shard(&long, 1), of_shard(&long, 2));
    }
}
