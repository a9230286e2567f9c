//! Which queue is which: a topic has one for each of its groups, and the default group's carries the topic's own name.
//!
//! Names come from [`crate::names`]; a group's is whole already (`orders-billing`) unless a caller that knows nothing of
//! queues gives a plain word, which is then added to the topic's.

use std::borrow::Cow;

use crate::config::ProviderKind;
use crate::names;
use crate::provider::TopicSpec;

const FIFO: &str = ".fifo";
/// Names that grew too long end in `-` and a hash of 16 digits.
const CUT: usize = 17;
/// The longest name SQS takes.
const LONGEST: usize = 80;

/// The name of a queue, without the rest of its URL.
pub(super) fn tail(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Whether it is its URL that names a queue.
pub(super) fn is_url(name: &str) -> bool {
    name.starts_with("https://") || name.starts_with("http://")
}

/// Whether it is a FIFO queue: SQS knows them by their name.
pub(super) fn is_fifo(name: &str) -> bool {
    name.ends_with(FIFO)
}

/// The topic under the name its queue can have: the lot's topics come as `orders.billing.retry.10s`. Their queues are never
/// FIFO: what is filed again within five minutes would be dropped there as a duplicate.
pub(super) fn own(topic: &TopicSpec) -> Cow<'_, TopicSpec> {
    let name = tail(&topic.name);
    let Some((base, rest)) = name.split_once('.').filter(|(_, rest)| *rest != &FIFO[1..]) else { return Cow::Borrowed(topic) };
    let (base, rest) = match rest.strip_prefix("fifo.") {
        // No part holds a `_` of its own.
        Some(rest) => (format!("{base}_f"), rest),
        None => (base.to_owned(), rest),
    };
    let mut words: Vec<&str> = rest.rsplitn(3, '.').collect();
    words.reverse();
    let parts = match words[..] {
        [.., "dead"] => rest.rsplitn(2, '.').collect::<Vec<_>>().into_iter().rev().collect(),
        [_, "retry", _] | ["delay", _] => words,
        _ => vec![rest],
    };
    let head = &topic.name[..topic.name.len() - name.len()];
    let name = names::extend(ProviderKind::AwsSqs, &format!("{head}{base}"), &parts);
    Cow::Owned(TopicSpec { name: name.into(), ..topic.clone() })
}

/// The queue of a group.
pub(super) fn of_group(topic: &str, group: &str) -> String {
    if group == topic || is_of(topic, group) { group.to_owned() } else { names::extend(ProviderKind::AwsSqs, topic, &[group]) }
}

/// Whether a queue has the name of a group of this topic.
pub(super) fn is_of(topic: &str, queue: &str) -> bool {
    let (topic, queue) = (tail(topic), tail(queue));
    if is_fifo(topic) != is_fifo(queue) {
        return false;
    }
    let (stem, name) = (topic.strip_suffix(FIFO).unwrap_or(topic), queue.strip_suffix(FIFO).unwrap_or(queue));
    // A part starts with a letter or digit: `orders--eu` is another topic, `orders-eu` a group.
    let whole = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-'));
    if whole.is_some_and(|group| group.starts_with(|c: char| c.is_ascii_alphanumeric())) {
        return true;
    }
    // Cut, with a hash behind.
    let (cut, start) = (longest_start(topic), format!("{stem}-"));
    let hash = name.get(cut..).and_then(|rest| rest.strip_prefix('-'));
    let hashed = hash.is_some_and(|hash| hash.len() + 1 == CUT && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    hashed && name.starts_with(&start[..cut.min(start.len())])
}

/// What the names of all queues of a topic begin with.
pub(super) fn prefix(topic: &str) -> &str {
    let name = tail(topic);
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    stem.get(..longest_start(name)).unwrap_or(stem)
}

/// How much of a name that is cut is left in front of its hash.
fn longest_start(name: &str) -> usize {
    LONGEST - CUT - if is_fifo(name) { FIFO.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_queue_of_its_own() {
        for (topic, group, queue) in [
            ("orders", "orders", "orders"),
            ("orders", "orders-billing", "orders-billing"),
            ("orders", "billing", "orders-billing"),
            ("orders", "a.b", "orders-a_db"),
            ("orders.fifo", "orders.fifo", "orders.fifo"),
            ("orders.fifo", "orders-billing.fifo", "orders-billing.fifo"),
            ("orders.fifo", "billing", "orders-billing.fifo"),
            ("https://sqs/1/orders", "https://sqs/1/orders", "https://sqs/1/orders"),
            ("https://sqs/1/orders", "https://sqs/1/orders-billing", "https://sqs/1/orders-billing"),
            ("https://sqs/1/orders", "billing", "https://sqs/1/orders-billing"),
        ] {
            assert_eq!(of_group(topic, group), queue);
            assert!(queue == topic || is_of(topic, queue), "{queue} of {topic}");
        }
    }

    #[test]
    fn the_lot_has_queues_that_sqs_takes() {
        for (name, queue) in [
            ("orders", "orders"),
            ("orders.fifo", "orders.fifo"),
            ("https://sqs.eu/1/orders.fifo", "https://sqs.eu/1/orders.fifo"),
            ("orders.billing.retry.10s", "orders-billing-retry-10s"),
            ("orders.a.b.retry.10s", "orders-a_db-retry-10s"),
            ("orders.a.b.dead", "orders-a_db-dead"),
            ("orders.delay.1m", "orders-delay-1m"),
            ("orders.dead", "orders-dead"),
            ("orders.fifo.billing.retry.10s", "orders_f-billing-retry-10s"),
            ("https://sqs.eu/1/orders.billing.dead", "https://sqs.eu/1/orders-billing-dead"),
        ] {
            let topic = TopicSpec::new(name, 1, false);
            assert_eq!(&*own(&topic).name, queue);
        }
    }

    #[test]
    fn names_that_were_cut_are_known() {
        for topic in ["x".repeat(62), "x".repeat(63), "x".repeat(70), format!("{}.fifo", "x".repeat(66)), "x".repeat(80)] {
            let queue = names::extend(ProviderKind::AwsSqs, &topic, &["billing-and-more"]);
            assert_eq!(queue.len(), 80);
            assert!(is_of(&topic, &queue), "{queue}");
            assert_eq!(of_group(&topic, &queue), queue);
            assert!(queue.starts_with(prefix(&topic)) && topic.starts_with(prefix(&topic)));
        }
    }

    #[test]
    fn other_topics_are_not_groups() {
        for other in ["orders--eu", "orders2", "order", "orders-eu.fifo", "orders-", "orders-_f"] {
            assert!(!is_of("orders", other), "{other}");
        }
    }
}
