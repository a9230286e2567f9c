//! The names topics and groups have on a broker.
//!
//! A derived name joins its parts with `.` and escapes a `.` inside a part, so that `a.b` + `c` and `a` + `b.c` never
//! meet. Each provider's alphabet decides how; what grows too long is cut and ends in a hash of the whole.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::ProviderKind;
use crate::config::shape::has_reference;
use crate::error::{Error, Result};

/// Shards of a topic that says none, where it is ordered or the provider has partitions.
pub const SHARDS_DEFAULT: u32 = 8;

/// What a topic is called on the broker of one env: chosen when it is created, and kept.
///
/// A name that the user gave with a reference in it (`${TOPIC}`) is kept so, and resolved with the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Physical {
    /// The topic, stream, channel, subject, queue (or its URL), or routing key.
    pub name: String,
    /// RabbitMQ: the exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// RabbitMQ and Pub/Sub: the queue or subscription of the default group, where the config names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// How many shards it has there.
    pub shards: u32,
    /// Raised when the name was changed by an update; part of the route's epoch.
    #[serde(default)]
    pub epoch: u64,
}

/// What a name is chosen from.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The product's tag.
    pub product: &'a str,
    /// The env's slug.
    pub env: &'a str,
    /// The broker's tag.
    pub broker: &'a str,
    /// The topic's short tag.
    pub topic: &'a str,
    /// The topic's own name for this env.
    pub own: Option<&'a str>,
    /// Whether it is the broker's oldest topic: the one that uses the config's name as it is.
    pub oldest: bool,
    /// Whether it is ordered by key.
    pub ordered: bool,
    /// The shards it asks for.
    pub shards: Option<u32>,
}

/// Chooses a topic's names on the provider of an env; `config` is without seals.
#[must_use]
pub fn choose(kind: ProviderKind, config: &Value, wish: &Wish<'_>) -> Physical {
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let given = |name: &str| text(name).map(|base| if wish.oldest { base.to_owned() } else { extend(kind, base, &[wish.topic]) });
    let derived = || {
        let name = derived(kind, text("prefix"), [wish.product, wish.env, wish.broker, wish.topic]);
        let fifo = kind == ProviderKind::AwsSqs && config.get("fifo").and_then(Value::as_bool).unwrap_or(wish.ordered);
        if fifo { fit(&name, limit(kind) - FIFO.len()) + FIFO } else { fit(&name, limit(kind)) }
    };
    let configured = match kind {
        ProviderKind::Kafka => given("topic"),
        ProviderKind::RabbitMq => given("routingKey").or_else(|| given("queue")),
        ProviderKind::Redis => given("channel"),
        ProviderKind::GooglePubSub => given("topicName"),
        ProviderKind::AwsSqs | ProviderKind::Nats | ProviderKind::Embedded => None,
    };
    let queue = match kind {
        ProviderKind::RabbitMq if wish.own.is_none() => given("queue"),
        ProviderKind::GooglePubSub => given("subscriptionName"),
        _ => None,
    };
    let exchange = (kind == ProviderKind::RabbitMq).then(|| text("exchange").map_or_else(derived, str::to_owned));
    let name = wish.own.map(str::to_owned).or(configured).unwrap_or_else(derived);
    Physical { name, exchange, queue, shards: shards(kind, config, wish), epoch: 0 }
}

fn shards(kind: ProviderKind, config: &Value, wish: &Wish<'_>) -> u32 {
    let partitions = config.get("partitions").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match (wish.shards, kind) {
        (Some(shards), _) => shards,
        (None, _) if wish.ordered => SHARDS_DEFAULT,
        (None, ProviderKind::Kafka) => partitions.unwrap_or(SHARDS_DEFAULT),
        (None, ProviderKind::Embedded) => SHARDS_DEFAULT,
        (None, _) => 1,
    }
}

/// The group of a consume that names none: the config's, else the product's tag.
#[must_use]
pub fn default_group(kind: ProviderKind, config: &Value, product: &str) -> String {
    let field = match kind {
        ProviderKind::Kafka => "groupId",
        ProviderKind::GooglePubSub => "subscriptionName",
        ProviderKind::RabbitMq => "queue",
        _ => return product.to_owned(),
    };
    config.get(field).and_then(Value::as_str).unwrap_or(product).to_owned()
}

/// What a group of a topic is called on the broker.
#[must_use]
pub fn group(kind: ProviderKind, topic: &Physical, group: &str, default_group: &str) -> String {
    let base = topic.queue.as_deref().unwrap_or(&topic.name);
    match kind {
        ProviderKind::Kafka | ProviderKind::Redis => group.to_owned(),
        ProviderKind::Nats | ProviderKind::Embedded => fit(&part(kind, group), limit(kind)),
        ProviderKind::RabbitMq | ProviderKind::AwsSqs if group == default_group => base.to_owned(),
        ProviderKind::GooglePubSub if group == default_group && topic.queue.is_some() => base.to_owned(),
        ProviderKind::RabbitMq | ProviderKind::AwsSqs => extend(kind, base, &[group]),
        ProviderKind::GooglePubSub => extend(kind, &topic.name, &[group]),
    }
}

/// A name made from another by adding parts: for later topics, groups, the lot's topics. An SQS queue's `.fifo` stays last,
/// and its URL stays a URL.
#[must_use]
pub fn extend(kind: ProviderKind, base: &str, parts: &[&str]) -> String {
    let (head, stem) = if kind == ProviderKind::AwsSqs { base.split_at(base.rfind('/').map_or(0, |at| at + 1)) } else { ("", base) };
    let (stem, tail) = match stem.strip_suffix(FIFO) {
        Some(stem) if kind == ProviderKind::AwsSqs => (stem, FIFO),
        _ => (stem, ""),
    };
    let mut name = stem.to_owned();
    for text in parts {
        name.push(separator(kind));
        name.push_str(&part(kind, text));
    }
    format!("{head}{}{tail}", fit(&name, limit(kind) - tail.len()))
}

/// A name on RabbitMQ beside another, for what belongs to it: `@` stands in no part of a derived name.
#[cfg(feature = "rabbitmq")]
pub(crate) fn beside(name: &str, what: &str) -> String {
    fit(&format!("{name}.@{what}"), limit(ProviderKind::RabbitMq))
}

/// The JetStream stream that holds a subject: stream names have no `.`, `*`, `>`, `/`, `\` and no white space.
#[must_use]
pub fn nats_stream(subject: &str) -> String {
    let mut name = String::with_capacity(subject.len());
    for c in subject.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => name.push(c),
            '.' => name.push('~'),
            c => name.push_str(&format!("={:x}=", c as u32)),
        }
    }
    fit(&name, limit(ProviderKind::Nats))
}

/// Checks a name that a user gave for a topic; what holds a reference is checked when it is resolved.
///
/// # Errors
/// `INPUT_INVALID` naming the field.
pub fn check(kind: ProviderKind, field: &str, name: &str) -> Result<()> {
    if has_reference(name) {
        return Ok(());
    }
    let plain = |extra: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || extra.as_bytes().contains(&b));
    let (valid, rule) = match kind {
        ProviderKind::Kafka => {
            (plain("._-") && name != "." && name != ".." && name.len() <= 249, "1 to 249 of letters, digits, '.', '_', '-'")
        }
        ProviderKind::RabbitMq => {
            let valid = name.len() <= 255 && !name.starts_with("amq.") && !name.chars().any(char::is_control);
            (valid, "at most 255 bytes without control characters, not starting with 'amq.'")
        }
        ProviderKind::AwsSqs => {
            let stem = name.strip_suffix(FIFO).unwrap_or(name);
            let queue = name.len() <= 80 && !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            (queue || is_url(name), "a queue URL, or 1 to 80 of letters, digits, '-', '_', perhaps ending in '.fifo'")
        }
        ProviderKind::GooglePubSub => {
            let start = name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.starts_with("goog");
            let valid = start && (3..=255).contains(&name.len()) && plain("-._~+%");
            (valid, "3 to 255 of letters, digits, '-', '.', '_', '~', '+', '%', starting with a letter and not with 'goog'")
        }
        ProviderKind::Nats => {
            let token =
                |token: &str| !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>'));
            (name.len() <= limit(kind) && name.split('.').all(token), "a subject: tokens joined by '.', without white space, '*' and '>'")
        }
        ProviderKind::Redis => (!name.chars().any(char::is_control), "without control characters"),
        ProviderKind::Embedded => {
            let start = name.starts_with(|c: char| c.is_ascii_alphanumeric());
            (
                start && plain("._~-") && name.len() <= limit(kind),
                "1 to 200 of letters, digits, '.', '_', '~', '-', starting with a letter or digit",
            )
        }
    };
    if valid && !name.is_empty() {
        Ok(())
    } else {
        Err(Error::input(field, format!("`{field}` is not a name {kind} takes: it must be {rule}")))
    }
}

/// The names a topic takes up on its server, each with what it names. Kafka refuses two topics that differ only in `.`
/// against `_`, so there those are one name.
pub(crate) fn occupied(kind: ProviderKind, topic: &Physical, default_group: &str, groups: &[&str]) -> Vec<String> {
    let groups = || groups.iter().copied().chain([default_group]).map(|name| group(kind, topic, name, default_group));
    match kind {
        ProviderKind::Kafka => vec![format!("topic {}", topic.name.replace('.', "_"))],
        ProviderKind::RabbitMq => {
            let route = format!("routing key {}/{}", topic.exchange.as_deref().unwrap_or_default(), topic.name);
            groups().map(|queue| format!("queue {queue}")).chain([route]).collect()
        }
        ProviderKind::AwsSqs => groups().map(|queue| format!("queue {queue}")).collect(),
        ProviderKind::GooglePubSub => {
            groups().map(|name| format!("subscription {name}")).chain([format!("topic {}", topic.name)]).collect()
        }
        ProviderKind::Redis | ProviderKind::Nats | ProviderKind::Embedded => vec![format!("topic {}", topic.name)],
    }
}

const FIFO: &str = ".fifo";

fn is_url(name: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| name.len() > scheme.len() && name.starts_with(scheme))
}

/// The derived name, before it is made to fit. A given prefix is used as it is, as far as the alphabet allows.
fn derived(kind: ProviderKind, prefix: Option<&str>, [product, env, broker, topic]: [&str; 4]) -> String {
    let separator = separator(kind).to_string();
    let join = |parts: &[&str]| parts.iter().map(|text| part(kind, text)).collect::<Vec<_>>().join(&separator);
    let name = match prefix {
        Some(prefix) => join(&prefix.split('.').filter(|text| !text.is_empty()).chain([broker, topic]).collect::<Vec<_>>()),
        None => join(&[product, env, broker, topic]),
    };
    // '+' comes from nowhere else, so the names that need it stay apart from those that do not.
    let starts_badly = !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.to_ascii_lowercase().starts_with("goog");
    if kind == ProviderKind::GooglePubSub && starts_badly { format!("t+{name}") } else { name }
}

const fn separator(kind: ProviderKind) -> char {
    match kind {
        ProviderKind::AwsSqs => '-',
        _ => '.',
    }
}

const fn limit(kind: ProviderKind) -> usize {
    match kind {
        ProviderKind::Kafka => 249,
        ProviderKind::AwsSqs => 80,
        ProviderKind::RabbitMq | ProviderKind::GooglePubSub => 255,
        // room for what is added to them: suffixes of files, streams and keys
        ProviderKind::Nats | ProviderKind::Embedded => 200,
        ProviderKind::Redis => 512,
    }
}

/// One part, escaped so that it holds no separator that could be read as one. Parts start with a letter or digit, so a run
/// of separators can only end a part: on Kafka and SQS, which have no character to spare, doubling is enough.
fn part(kind: ProviderKind, text: &str) -> String {
    if !is_tag_like(text) {
        // Not of our alphabet: the part keeps what can be read, and its hash keeps it apart.
        let readable: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
        return part(kind, &format!("x{readable}-{}", hash(text)));
    }
    match kind {
        ProviderKind::Kafka => text.replace('.', ".."),
        ProviderKind::AwsSqs => text.replace('_', "__").replace('.', "_d").replace('-', "--"),
        _ => text.replace('.', "~"),
    }
}

/// As a tag, of any length.
fn is_tag_like(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

const HASH_LEN: usize = 16;

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(HASH_LEN / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// Cuts a name to `limit` bytes and ends it in a hash of the whole.
fn fit(name: &str, limit: usize) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    let mut end = limit - HASH_LEN - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{}", &name[..end], hash(name))
}

#[cfg(test)]
mod tests;
