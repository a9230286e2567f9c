//! Which server a config leads to: what decides whether two envs share names, and whether an update moved an env.

use serde_json::Value;

use super::ProviderKind;

/// The server of a config, without any credential: its addresses, and what else keeps names apart on it.
///
/// Addresses are sorted and separated by commas; one in common makes it the same server.
#[must_use]
pub(crate) fn server(kind: ProviderKind, config: &Value) -> String {
    let text =
        |name: &str| config.get(name).and_then(|value| value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string())));
    let endpoint = text("endpoint").map(|url| address(&url, 0).0);
    match kind {
        ProviderKind::Kafka => joined(texts(config, "brokers").iter().map(|host| address(host, 9092).0)),
        ProviderKind::RabbitMq => {
            let (host, path) = host_of(&text, if config.get("tls").is_some() { 5671 } else { 5672 });
            let vhost = text("vhost").or_else(|| path.filter(|path| !path.is_empty())).unwrap_or_else(|| "/".into());
            format!("{host}/{}", vhost.replace("%2F", "/").replace("%2f", "/"))
        }
        ProviderKind::Redis => {
            let (host, path) = host_of(&text, 6379);
            let db = text("db").or_else(|| path.filter(|path| !path.is_empty())).unwrap_or_else(|| "0".into());
            let pubsub = text("mode").map_or(config.get("channel").is_some(), |mode| mode == "pubsub");
            if pubsub { format!("{host}/pubsub") } else { format!("{host}/{db}") }
        }
        ProviderKind::AwsSqs => format!("{}/{}", endpoint.unwrap_or_else(|| "aws".into()), text("region").unwrap_or_default()),
        ProviderKind::GooglePubSub => format!("{}/{}", endpoint.unwrap_or_else(|| "google".into()), text("projectId").unwrap_or_default()),
        ProviderKind::Nats => {
            let mode = text("mode").unwrap_or_else(|| "jetstream".into());
            joined(texts(config, "servers").iter().map(|host| format!("{}/{mode}", address(host, 4222).0)))
        }
        ProviderKind::Embedded if config.get("memory") == Some(&Value::Bool(true)) => "memory".into(),
        ProviderKind::Embedded => format!("path:{}", text("path").unwrap_or_default()),
    }
}

/// Whether two servers of one kind have an address in common.
#[must_use]
pub(crate) fn same_server(a: &str, b: &str) -> bool {
    a == b || a.split(',').any(|a| b.split(',').any(|b| a == b))
}

fn host_of(text: &dyn Fn(&str) -> Option<String>, port: u16) -> (String, Option<String>) {
    match text("url") {
        Some(url) => {
            let port = if url.starts_with("amqps:") { 5671 } else { port };
            let (host, path) = address(&url, port);
            (host, Some(path))
        }
        None => {
            let port = text("port").unwrap_or_else(|| port.to_string());
            (format!("{}:{port}", text("host").unwrap_or_default().to_lowercase()), None)
        }
    }
}

fn texts(config: &Value, name: &str) -> Vec<String> {
    match config.get(name) {
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        Some(Value::String(text)) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        _ => Vec::new(),
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.sort_unstable();
    parts.dedup();
    parts.join(",")
}

/// `host:port` and path of a URL or of a bare address, without scheme and user.
fn address(url: &str, port: u16) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_lowercase();
    let bare = !host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    (if bare && port != 0 { format!("{host}:{port}") } else { host }, path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_tell_no_credentials() {
        use ProviderKind::{AwsSqs, Embedded, GooglePubSub, Kafka, Nats, RabbitMq, Redis};
        for (kind, config, expected) in [
            (Kafka, json!({"brokers": ["B:9092", "a"]}), "a:9092,b:9092"),
            (RabbitMq, json!({"url": "amqps://u:p@ss@Host/v%2F1"}), "host:5671/v/1"),
            (RabbitMq, json!({"host": "h", "vhost": "v"}), "h:5672/v"),
            (RabbitMq, json!({"url": "amqp://h"}), "h:5672//"),
            (Redis, json!({"url": "redis://:pw@h:1/3"}), "h:1/3"),
            (Redis, json!({"host": "h", "channel": "c"}), "h:6379/pubsub"),
            (AwsSqs, json!({"region": "r", "endpoint": "http://l:9324"}), "l:9324/r"),
            (GooglePubSub, json!({"projectId": "p"}), "google/p"),
            (Nats, json!({"servers": "nats://u:p@h, g:1"}), "g:1/jetstream,h:4222/jetstream"),
            (Embedded, json!({}), "path:"),
            (Embedded, json!({"memory": true}), "memory"),
        ] {
            assert_eq!(server(kind, &config), expected, "{config}");
        }
    }

    #[test]
    fn one_address_in_common_is_the_same_server() {
        assert!(same_server("a:1,b:1", "b:1,c:1") && !same_server("a:1", "b:1"));
    }
}
