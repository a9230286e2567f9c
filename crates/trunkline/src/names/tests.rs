//! Names are kept apart, fit, and read as documented.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use ProviderKind::{AwsSqs, Embedded, GooglePubSub, Kafka, Nats, RabbitMq, Redis};

fn wish<'a>(topic: &'a str, oldest: bool) -> Wish<'a> {
    Wish { product: "shop", env: "prd", broker: "order-events", topic, own: None, oldest, ordered: false, shards: None }
}

#[test]
fn names_are_chosen_as_documented() {
    for (kind, config, oldest, expected) in [
        (Kafka, json!({}), true, "shop.prd.order-events.new_orders..eu"),
        (Kafka, json!({"topic": "orders"}), true, "orders"),
        (Kafka, json!({"topic": "orders"}), false, "orders.new_orders..eu"),
        (Kafka, json!({"prefix": "acme.x"}), true, "acme.x.order-events.new_orders..eu"),
        (RabbitMq, json!({"queue": "q"}), true, "q"),
        (RabbitMq, json!({"queue": "q", "routingKey": "r"}), false, "r.new_orders~eu"),
        (Redis, json!({"channel": "c"}), true, "c"),
        (Redis, json!({}), true, "shop.prd.order-events.new_orders~eu"),
        (GooglePubSub, json!({"topicName": "t"}), false, "t.new_orders~eu"),
        (Nats, json!({}), true, "shop.prd.order-events.new_orders~eu"),
        (Embedded, json!({}), false, "shop.prd.order-events.new_orders~eu"),
        (AwsSqs, json!({}), true, "shop-prd-order--events-new__orders_deu"),
        (AwsSqs, json!({"fifo": true}), true, "shop-prd-order--events-new__orders_deu.fifo"),
    ] {
        assert_eq!(choose(kind, &config, &wish("new_orders.eu", oldest)).name, expected, "{kind} {config}");
    }
    let own = Wish { own: Some("https://sqs/1/q"), ..wish("t", false) };
    assert_eq!(choose(AwsSqs, &json!({}), &own).name, "https://sqs/1/q");
}

#[test]
fn groups_are_named_as_documented() {
    let topic = |kind, config: Value, oldest| choose(kind, &config, &wish("t", oldest));
    for (kind, config, oldest, name, expected) in [
        (Kafka, json!({"topic": "orders", "groupId": "g"}), false, "g", "g"),
        (Redis, json!({}), true, "my group", "my group"),
        (RabbitMq, json!({"queue": "q"}), true, "q", "q"),
        (RabbitMq, json!({"queue": "q"}), false, "q", "q.t"),
        (RabbitMq, json!({"queue": "q"}), true, "billing", "q.billing"),
        (RabbitMq, json!({}), true, "shop", "shop.prd.order-events.t"),
        (GooglePubSub, json!({"subscriptionName": "s"}), true, "s", "s"),
        (GooglePubSub, json!({"subscriptionName": "s"}), false, "s", "s.t"),
        (GooglePubSub, json!({"topicName": "x"}), true, "shop", "x.shop"),
        (GooglePubSub, json!({"topicName": "x", "subscriptionName": "s"}), true, "billing", "x.billing"),
        (AwsSqs, json!({}), true, "shop", "shop-prd-order--events-t"),
        (AwsSqs, json!({"fifo": true}), true, "billing", "shop-prd-order--events-t-billing.fifo"),
        (Nats, json!({}), true, "a.b", "a~b"),
    ] {
        let default = default_group(kind, &config, "shop");
        assert_eq!(group(kind, &topic(kind, config.clone(), oldest), name, &default), expected, "{kind} {config} {name}");
    }
    let by_url = Wish { own: Some("https://sqs.eu/123/orders.fifo"), ..wish("t", true) };
    let by_url = choose(AwsSqs, &json!({}), &by_url);
    assert_eq!(group(AwsSqs, &by_url, "billing", "shop"), "https://sqs.eu/123/orders-billing.fifo");
}

#[test]
fn shards_default_by_provider() {
    for (kind, config, ordered, shards, expected) in [
        (Kafka, json!({}), false, None, 8),
        (Kafka, json!({"partitions": 3}), false, None, 3),
        (Kafka, json!({"partitions": 3}), true, None, 8),
        (Redis, json!({}), false, None, 1),
        (Redis, json!({}), true, None, 8),
        (Embedded, json!({}), false, None, 8),
        (AwsSqs, json!({}), false, Some(4), 4),
    ] {
        assert_eq!(choose(kind, &config, &Wish { ordered, shards, ..wish("t", true) }).shards, expected, "{kind}");
    }
}

#[test]
fn given_names_are_checked() {
    for (kind, good, bad) in [
        (Kafka, "a.b_c-D", "a b"),
        (RabbitMq, "any thing/ü", "amq.x"),
        (AwsSqs, "orders.fifo", "orders.eu"),
        (AwsSqs, "https://sqs.eu/123/orders", "http://"),
        (GooglePubSub, "abc", "google"),
        (Nats, "a.b.c", "a..b"),
        (Redis, "any thing", "a\nb"),
        (Embedded, "a.b~c", "../x"),
        (Kafka, "${TOPIC}", ""),
    ] {
        check(kind, "names[0].name", good).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(check(kind, "names[0].name", bad).expect_err("bad").detail_str("field"), Some("names[0].name"), "{kind} {bad}");
    }
}

#[test]
fn pubsub_names_start_with_a_letter_that_is_not_googs() {
    for product in ["9lives", "goog-x", "Google"] {
        let name = choose(GooglePubSub, &json!({}), &Wish { product, ..wish("t", true) }).name;
        check(GooglePubSub, "name", &name).expect("valid");
    }
}

/// Short tags that are mostly separators: where collisions would be.
fn tag() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[ab1][ab_.-]{0,4}", 1 => "[a-z][a-z0-9_.-]{60,63}"]
}

fn all() -> impl Strategy<Value = [String; 4]> {
    [tag(), tag(), tag(), tag()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn derived_names_are_injective_and_valid(a in all(), b in all()) {
        for kind in ProviderKind::ALL.iter().copied() {
            let name = |tags: &[String; 4], ordered| {
                let [product, env, broker, topic] = tags.each_ref().map(String::as_str);
                choose(kind, &json!({}), &Wish { product, env, broker, topic, own: None, oldest: true, ordered, shards: None }).name
            };
            check(kind, "name", &name(&a, true)).expect("valid");
            if a != b {
                prop_assert_ne!(name(&a, true), name(&b, true), "{}", kind);
            }
        }
    }

    #[test]
    fn a_tag_split_elsewhere_is_another_name(parts in proptest::collection::vec("[ab]|\\.|-|_", 5..9)) {
        // every way to cut one text into four tags
        let text: String = parts.concat();
        let mut seen: HashMap<(ProviderKind, String), Vec<String>> = HashMap::new();
        let n = text.len();
        for i in 1..n { for j in i + 1..n { for k in j + 1..n {
            let cut = [text[..i].to_owned(), text[i..j].to_owned(), text[j..k].to_owned(), text[k..].to_owned()];
            let trimmed: Vec<String> = cut.iter().map(|part| part.strip_prefix(['.', '-', '_']).unwrap_or(part).to_owned()).collect();
            if !trimmed.iter().all(|part| crate::event::is_tag(part)) { continue; }
            for kind in ProviderKind::ALL.iter().copied() {
                let [product, env, broker, topic] = [&trimmed[0], &trimmed[1], &trimmed[2], &trimmed[3]].map(String::as_str);
                let name = choose(kind, &json!({}), &Wish { product, env, broker, topic, own: None, oldest: true, ordered: false, shards: None }).name;
                if let Some(other) = seen.insert((kind, name), trimmed.clone()) {
                    prop_assert_eq!(other, trimmed.clone(), "{}", kind);
                }
            }
        } } }
    }

    #[test]
    fn groups_of_any_text_are_kept_apart(a in "\\PC{1,80}", b in "\\PC{1,80}") {
        prop_assume!(a != b);
        for kind in ProviderKind::ALL.iter().copied() {
            let topic = choose(kind, &json!({}), &wish("t", true));
            let [a, b] = [&a, &b].map(|name| group(kind, &topic, name, "the default"));
            prop_assert_ne!(&a, &b, "{}", kind);
            prop_assert!(kind == Kafka || kind == Redis || a.len() <= limit(kind), "{} {}", kind, a);
        }
    }

    #[test]
    fn streams_are_injective_and_hold_no_forbidden_character(a in "[a~=._ -]{1,12}", b in "[a~=._ -]{1,12}") {
        prop_assert!(!nats_stream(&a).contains(|c: char| c.is_whitespace() || matches!(c, '.' | '*' | '>' | '/' | '\\')));
        prop_assert!(a == b || nats_stream(&a) != nats_stream(&b));
    }
}
