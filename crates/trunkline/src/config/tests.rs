//! The rules of each provider's config, one row each.

use serde_json::json;

use super::*;

const SECRET: &str = "hunter2-hunter2";

#[test]
fn what_the_documents_write_is_valid() {
    for (kind, config) in valid() {
        validate(kind, &config).unwrap_or_else(|error| panic!("{kind} {config}: {error}"));
        let parsed = ProviderConfig::parse(kind, &config).unwrap_or_else(|error| panic!("{kind} {config}: {error}"));
        assert_eq!(parsed.kind(), kind);
        assert!(parsed.common().create);
        assert!(!format!("{parsed:?}").contains(SECRET), "{kind} shows a secret");
    }
}

fn valid() -> Vec<(ProviderKind, Value)> {
    vec![
        (
            ProviderKind::Kafka,
            json!({"brokers": ["kafka-prod.example.com:9092"], "clientId": "order-service", "groupId": "order-consumers", "topic": "orders",
                "ssl": true, "sasl": {"mechanism": "scram-sha-256", "username": "prod-user", "password": SECRET},
                "options": {"linger.ms": 5, "ssl.key.password": SECRET}, "tls": {"key": SECRET, "serverName": "x"}}),
        ),
        (ProviderKind::RabbitMq, json!({"url": format!("amqps://user:{SECRET}@host/vhost")})),
        (
            ProviderKind::RabbitMq,
            json!({"host": "h", "port": 5672, "username": "u", "password": SECRET, "queue": "q", "routingKey": "r", "exchange": "x", "vhost": "v"}),
        ),
        (ProviderKind::Redis, json!({"host": "localhost", "port": 6379, "password": SECRET, "db": 0})),
        (ProviderKind::Redis, json!({"url": format!("redis://:{SECRET}@h"), "channel": "c"})),
        (ProviderKind::AwsSqs, json!({"region": "us-east-1", "accessKeyId": "id", "secretAccessKey": SECRET, "sessionToken": SECRET})),
        (ProviderKind::AwsSqs, json!({"region": "us-east-1", "fifo": true, "endpoint": "http://localhost:9324"})),
        (ProviderKind::GooglePubSub, json!({"projectId": "p", "topicName": "t", "subscriptionName": "s", "keyFilename": "k.json"})),
        (ProviderKind::GooglePubSub, json!({"projectId": "p", "credentials": {"private_key": SECRET}})),
        (ProviderKind::Nats, json!({"servers": "nats://localhost:4222", "user": "u", "pass": SECRET, "reconnectTimeWait": 2000})),
        (
            ProviderKind::Nats,
            json!({"servers": [format!("nats://u:{SECRET}@h")], "token": SECRET, "maxReconnectAttempts": -1, "name": "n"}),
        ),
        (ProviderKind::Embedded, json!({})),
        (ProviderKind::Embedded, json!(null)),
        (
            ProviderKind::Embedded,
            json!({"path": "x", "fsync": "interval", "maxPayload": 1024, "retention": {"age": "7days", "bytes": 1000000}}),
        ),
    ]
}

#[test]
fn what_is_wrong_is_refused_with_the_field_named() {
    use ProviderKind::{AwsSqs, Embedded, GooglePubSub, Kafka, Nats, RabbitMq, Redis};
    for (kind, config, field) in [
        (Kafka, json!({}), "brokers"),
        (Kafka, json!({"brokers": SECRET}), "brokers"),
        (Kafka, json!({"brokers": []}), "brokers"),
        (Kafka, json!({"brokers": ["h"], "sasl": {"mechanism": SECRET, "username": "u", "password": "p"}}), "sasl.mechanism"),
        (Kafka, json!({"brokers": ["h"], "sasl": {"mechanism": "plain", "username": "u"}}), "sasl.password"),
        (Kafka, json!({"brokers": ["h"], "sasl": {"mechanism": "plain", "username": "u", "pasword": SECRET}}), "sasl.pasword"),
        (Kafka, json!({"brokers": ["h"], "partitions": 0}), "partitions"),
        (Kafka, json!({"brokers": ["h"], "tls": {"insecure": SECRET}}), "tls.insecure"),
        (RabbitMq, json!({"queue": "q"}), "url"),
        (RabbitMq, json!({"url": SECRET, "host": "h"}), "host"),
        (RabbitMq, json!({"url": "amqp://h", "password": SECRET}), "password"),
        (RabbitMq, json!({"host": "h", "port": 70000}), "port"),
        (Redis, json!({"port": 1}), "host"),
        (Redis, json!({"host": "h", "db": -1}), "db"),
        (Redis, json!({"host": "h", "mode": "stream", "channel": "c"}), "mode"),
        (Redis, json!({"host": "h", "password": {"x": SECRET}}), "password"),
        (AwsSqs, json!({}), "region"),
        (AwsSqs, json!({"region": "r", "secretAccessKey": SECRET}), "accessKeyId"),
        (AwsSqs, json!({"region": "r", "sessionToken": SECRET}), "accessKeyId"),
        (GooglePubSub, json!({"topicName": "t"}), "projectId"),
        (GooglePubSub, json!({"projectId": "p", "keyFilename": "k", "credentials": SECRET}), "keyFilename"),
        (Nats, json!({}), "servers"),
        (Nats, json!({"servers": "h", "token": SECRET, "pass": SECRET, "user": "u"}), "user"),
        (Nats, json!({"servers": "h", "pass": SECRET}), "user"),
        (Nats, json!({"servers": "h", "mode": "core", "stream": "s"}), "stream"),
        (Nats, json!({"servers": "h", "reconnectTimeWait": SECRET}), "reconnectTimeWait"),
        (Embedded, json!({"memory": true, "path": "p"}), "path"),
        (Embedded, json!({"retention": {"age": SECRET}}), "retention.age"),
        (Embedded, json!(SECRET), ""),
    ] {
        for error in [validate(kind, &config).err(), ProviderConfig::parse(kind, &config).err()].into_iter().flatten() {
            assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some(field)), "{kind} {config}: {error:?}");
            assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
        }
        assert!(validate(kind, &config).is_err(), "{kind} {config}");
    }
}

#[test]
fn references_are_written_and_resolved_texts_read() {
    let config = json!({"host": "${HOST}", "port": "${PORT}", "password": "$Secret{PW}", "db": "${DB}"});
    assert_eq!(validate(ProviderKind::Redis, &config).expect("references"), config);
    let resolved = json!({"host": "h", "port": "6380", "password": "pw", "db": "2"});
    let ProviderConfig::Redis(redis) = ProviderConfig::parse(ProviderKind::Redis, &resolved).expect("resolved") else {
        panic!("not redis")
    };
    assert_eq!((redis.port, redis.db, redis.mode()), (Some(6380), Some(2), RedisMode::Stream));
    let error = ProviderConfig::parse(ProviderKind::Redis, &json!({"host": "h", "port": SECRET})).expect_err("not a port");
    assert!(error.message().contains("got a string of 15 characters"), "{error}");
}

#[test]
fn defaults_are_filled_in() {
    let ProviderConfig::Nats(nats) = ProviderConfig::parse(ProviderKind::Nats, &json!({"servers": "a, b"})).expect("valid") else {
        panic!()
    };
    assert_eq!((nats.servers.len(), nats.max_reconnect_attempts, nats.mode), (2, -1, NatsMode::Jetstream));
    let given = json!({"create": false, "prefix": "acme", "endpoint": "http://x"});
    let ProviderConfig::Embedded(own) = ProviderConfig::parse(ProviderKind::Embedded, &given).expect("valid") else { panic!() };
    assert_eq!((own.max_payload, own.fsync, own.common.create), (1 << 20, Fsync::Always, false));
    assert_eq!(own.common.prefix.as_deref(), Some("acme"));
}

/// Each declared field must be known to its struct: a table that has more or other names fails here.
#[test]
fn tables_and_structs_agree() {
    fn sample(kind: Kind) -> Value {
        match kind {
            Kind::Bool => json!(true),
            Kind::Int(min, _) => json!(min.max(1)),
            Kind::Duration => json!("1s"),
            Kind::Word(words) => json!(words[0]),
            Kind::Texts => json!(["x"]),
            Kind::Object(fields) => fields.iter().map(|field| (field.name.to_owned(), sample(field.kind))).collect(),
            Kind::Options => json!({"a": 1}),
            Kind::By(_) => json!({"bytes": 1}),
            _ => json!("x"),
        }
    }
    for kind in ProviderKind::ALL.iter().copied() {
        let all = |keep: &dyn Fn(&Field) -> bool| -> Map<String, Value> {
            kind.fields().iter().filter(|field| keep(field)).map(|field| (field.name.to_owned(), sample(field.kind))).collect()
        };
        let own = all(&|field| !COMMON.contains(&field.name));
        let read = match kind {
            ProviderKind::Kafka => typed::<KafkaConfig>(kind, own).map(drop),
            ProviderKind::RabbitMq => typed::<RabbitmqConfig>(kind, own).map(drop),
            ProviderKind::Redis => typed::<RedisConfig>(kind, own).map(drop),
            ProviderKind::AwsSqs => typed::<SqsConfig>(kind, own).map(drop),
            ProviderKind::GooglePubSub => typed::<PubsubConfig>(kind, own).map(drop),
            ProviderKind::Nats => typed::<NatsConfig>(kind, own).map(drop),
            ProviderKind::Embedded => typed::<EmbeddedConfig>(kind, own).map(drop),
        };
        read.unwrap_or_else(|error| panic!("{kind}: {error}"));
        typed::<Common>(kind, all(&|field| COMMON.contains(&field.name))).expect("common");
    }
}

#[test]
fn kinds_are_spelt_as_documented() {
    for kind in ProviderKind::ALL {
        assert_eq!(serde_json::to_value(kind).expect("json"), kind.as_str());
        assert_eq!(kind.as_str().parse::<ProviderKind>().expect("known"), *kind);
    }
    let error = "KAFAK".parse::<ProviderKind>().expect_err("unknown");
    assert!(error.message().contains("did you mean 'KAFKA'"), "{error}");
}

#[test]
fn what_is_not_compiled_in_says_which_feature() {
    for kind in ProviderKind::ALL.iter().filter(|kind| !kind.is_compiled_in()) {
        let error = kind.require_compiled_in().expect_err("no client");
        assert_eq!((error.code(), error.detail_str("feature")), (Code::CapabilityUnsupported, Some(kind.feature())));
    }
    assert_eq!(ProviderKind::Embedded.is_compiled_in(), cfg!(feature = "embedded"));
}
