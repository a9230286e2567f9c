//! Which topic and which subscription is which.
//!
//! Names come from [`crate::names`]; a group's is whole already (`orders.billing`, or what `subscriptionName` says) unless a
//! caller that knows nothing of subscriptions gives a plain word, which is then added to the topic's.

use std::borrow::Cow;

use crate::config::{ProviderKind, PubsubConfig};
use crate::names;

/// The longest name Pub/Sub takes.
const LONGEST: usize = 255;
/// Names that grew too long end in `-` and a hash of 16 digits.
const CUT: usize = 17;
/// The subscription of a topic that has no group: without one nothing would be kept.
const KEPT: &str = "kept";

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Names {
    project: String,
    subscription: Option<String>,
}

impl Names {
    pub(super) fn of(config: &PubsubConfig) -> Names {
        Names { project: config.project_id.clone(), subscription: config.subscription_name.clone() }
    }

    /// `projects/p/topics/t`.
    pub(super) fn topic(&self, topic: &str) -> String {
        format!("projects/{}/topics/{}", self.project, fitted(topic))
    }

    /// `projects/p/subscriptions/s`.
    pub(super) fn subscription(&self, topic: &str, group: &str) -> String {
        format!("projects/{}/subscriptions/{}", self.project, self.short(&fitted(topic), group))
    }

    /// The subscription of a topic without groups.
    pub(super) fn kept(&self, topic: &str) -> String {
        self.subscription(topic, KEPT)
    }

    fn short(&self, topic: &str, group: &str) -> String {
        if self.is_of(topic, group) { group.to_owned() } else { names::extend(ProviderKind::GooglePubSub, topic, &[group]) }
    }

    /// Whether a subscription has the name of a group of this topic.
    pub(super) fn is_of(&self, topic: &str, name: &str) -> bool {
        let topic = fitted(topic);
        let given = self.subscription.as_deref().filter(|_| !is_lot(&topic));
        if given.is_some_and(|given| name.strip_prefix(given).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))) {
            return true;
        }
        let start = format!("{topic}.");
        let whole = name.len() > start.len() && name.starts_with(&start);
        let cut = || name.len() == LONGEST && start.as_bytes().starts_with(&name.as_bytes()[..(LONGEST - CUT).min(start.len())]);
        whole || (start.len() > LONGEST - CUT && cut())
    }
}

/// The name without what stands before it: `projects/p/topics/t` is `t`.
pub(super) fn tail(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn fitted(topic: &str) -> Cow<'_, str> {
    if topic.len() <= LONGEST { Cow::Borrowed(topic) } else { Cow::Owned(names::extend(ProviderKind::GooglePubSub, topic, &[])) }
}

/// The topics of the lot: `….retry.10s`, `….delay.10s`, `….dead`. The config's subscription is never theirs.
fn is_lot(topic: &str) -> bool {
    let mut words = topic.rsplit('.');
    let last = words.next();
    last == Some("dead") || matches!(words.next(), Some("retry" | "delay"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(subscription: Option<&str>) -> Names {
        Names { project: "p".into(), subscription: subscription.map(str::to_owned) }
    }

    #[test]
    fn a_group_is_a_subscription_of_its_own() {
        for (given, topic, group, subscription) in [
            (None, "orders", "billing", "orders.billing"),
            (None, "orders", "orders.billing", "orders.billing"),
            (None, "orders", "orders", "orders.orders"),
            (None, "orders", "a.b", "orders.a~b"),
            (Some("worker"), "orders", "worker", "worker"),
            (Some("worker"), "orders.paid", "worker.paid", "worker.paid"),
            (Some("worker"), "orders", "workers", "orders.workers"),
            // The lot's topics of the group that the config names.
            (Some("worker"), "orders.worker.retry.10s", "worker", "orders.worker.retry.10s.worker"),
            (Some("worker"), "orders.worker.dead", "worker", "orders.worker.dead.worker"),
        ] {
            let names = names(given);
            assert_eq!(names.subscription(topic, group), format!("projects/p/subscriptions/{subscription}"));
            assert!(names.is_of(topic, subscription), "{subscription} of {topic}");
        }
        assert!(!names(None).is_of("orders", "orders") && !names(None).is_of("orders", "orders."));
    }

    #[test]
    fn names_that_were_cut_are_known() {
        for len in [230, 237, 238, 250, 255, 300] {
            let topic = "x".repeat(len);
            let group = names::extend(ProviderKind::GooglePubSub, &topic, &["billing-and-more"]);
            let names = names(None);
            assert!(tail(&names.topic(&topic)).len() <= LONGEST);
            let subscription = names.subscription(&topic, "billing-and-more");
            assert!(tail(&subscription).len() <= LONGEST && names.is_of(&topic, tail(&subscription)), "{len}");
            if len <= LONGEST {
                assert_eq!(tail(&names.subscription(&topic, &group)), group);
            }
        }
    }
}
