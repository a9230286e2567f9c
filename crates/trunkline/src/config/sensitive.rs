//! What of a config nobody may see, and how it shows instead.

use serde_json::Value;

use super::ProviderKind;
use super::fields::{Field, Kind, is_secret_option, join};
use super::shape::is_reference;
use crate::error::Result;

/// What a hidden value reads as.
pub(crate) const MASK: &str = "***";

/// How much of a sensitive value is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hide {
    /// All of it.
    Whole,
    /// The password in a URL.
    Url,
}

/// A config as it may be shown: credentials read `***`, a bare reference as it is written.
#[must_use]
pub fn mask(kind: ProviderKind, config: &Value) -> Value {
    let mut shown = config.clone();
    let infallible = visit(kind, &mut shown, &mut |_, hide, value| {
        if let Some(hidden) = hidden(hide, value) {
            *value = hidden;
        }
        Ok(())
    });
    if infallible.is_ok() { shown } else { Value::Null }
}

/// The form a value is shown in, or `None` if it holds nothing to hide.
pub(crate) fn hidden(hide: Hide, value: &Value) -> Option<Value> {
    match (hide, value) {
        (_, Value::Null) => None,
        (Hide::Whole, Value::String(text)) if is_reference(text) => None,
        (Hide::Whole, _) => Some(MASK.into()),
        (Hide::Url, Value::String(text)) => Some(mask_url(text)).filter(|masked| masked != text).map(Value::String),
        (Hide::Url, _) => None,
    }
}

/// Calls `see` with path and value of every sensitive value of a config.
pub(crate) fn visit(kind: ProviderKind, config: &mut Value, see: &mut dyn FnMut(&str, Hide, &mut Value) -> Result<()>) -> Result<()> {
    fields("", kind.fields(), config, see)
}

type See<'a> = &'a mut dyn FnMut(&str, Hide, &mut Value) -> Result<()>;

fn fields(path: &str, declared: &[Field], object: &mut Value, see: See<'_>) -> Result<()> {
    let Value::Object(map) = object else { return Ok(()) };
    for (name, value) in map {
        if let Some(field) = declared.iter().find(|field| field.name == name) {
            one(&join(path, name), field.kind, value, see)?;
        }
    }
    Ok(())
}

fn one(path: &str, kind: Kind, value: &mut Value, see: See<'_>) -> Result<()> {
    match (kind, value) {
        (Kind::Secret | Kind::SecretAny, value) => see(path, Hide::Whole, value),
        (Kind::Urls, Value::Array(items)) => {
            items.iter_mut().enumerate().try_for_each(|(i, item)| see(&format!("{path}[{i}]"), Hide::Url, item))
        }
        (Kind::Url | Kind::Urls, value) => see(path, Hide::Url, value),
        (Kind::Object(declared), value) => fields(path, declared, value, see),
        (Kind::Options, Value::Object(map)) => map
            .iter_mut()
            .filter(|(name, _)| is_secret_option(name))
            .try_for_each(|(name, value)| see(&join(path, name), Hide::Whole, value)),
        _ => Ok(()),
    }
}

/// Hides the password, or a lone token, before the `@` of a URL or of each in a list, and secrets in its query.
fn mask_url(text: &str) -> String {
    text.split(',').map(mask_one_url).collect::<Vec<_>>().join(",")
}

fn mask_one_url(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    // The last '@': what stands before it may hold anything that was not escaped.
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, password)) if !password.is_empty() && !is_reference(password) => format!("{user}:{MASK}@{host}"),
            None if !is_reference(user) => format!("{MASK}@{host}"),
            _ => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let query = query.map(|query| query.split('&').map(mask_parameter).collect::<Vec<_>>().join("&"));
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    scheme + &rest + &query.map(|query| format!("?{query}")).unwrap_or_default()
}

fn mask_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, value)) if is_secret_option(name) && !is_reference(value) => format!("{name}={MASK}"),
        _ => parameter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn urls() {
        for (given, shown) in [
            ("amqps://user:pw@host:5671/vhost", "amqps://user:***@host:5671/vhost"),
            ("amqp://user:p@/w@host/vhost", "amqp://user:***@host/vhost"),
            ("nats://token@host", "nats://***@host"),
            ("user:pw@host", "user:***@host"),
            ("redis://:pw@h:1/0?token=x&a=b", "redis://:***@h:1/0?token=***&a=b"),
            ("nats://a:pw@h1,nats://b:pw@h2", "nats://a:***@h1,nats://b:***@h2"),
            ("redis://:$Secret{PW}@h", "redis://:$Secret{PW}@h"),
            ("redis://h:6379", "redis://h:6379"),
            ("$Secret{URL}", "$Secret{URL}"),
        ] {
            assert_eq!(mask_url(given), shown);
        }
    }

    #[test]
    fn every_kind_of_secret_is_hidden() {
        for (kind, config, shown) in [
            (
                ProviderKind::Kafka,
                json!({"brokers": ["h:1"], "sasl": {"mechanism": "plain", "username": "u", "password": "pw"}, "options": {"ssl.key.password": "pw", "acks": 1}}),
                json!({"brokers": ["h:1"], "sasl": {"mechanism": "plain", "username": "u", "password": "***"}, "options": {"ssl.key.password": "***", "acks": 1}}),
            ),
            (
                ProviderKind::GooglePubSub,
                json!({"projectId": "p", "credentials": {"private_key": "pw"}}),
                json!({"projectId": "p", "credentials": "***"}),
            ),
            (
                ProviderKind::AwsSqs,
                json!({"region": "r", "accessKeyId": "id", "secretAccessKey": "pw", "sessionToken": "$Secret{T}"}),
                json!({"region": "r", "accessKeyId": "id", "secretAccessKey": "***", "sessionToken": "$Secret{T}"}),
            ),
            (
                ProviderKind::Nats,
                json!({"servers": ["nats://a:pw@h"], "creds": "pw", "tls": {"key": "pw", "ca": "c"}}),
                json!({"servers": ["nats://a:***@h"], "creds": "***", "tls": {"key": "***", "ca": "c"}}),
            ),
        ] {
            assert_eq!(mask(kind, &config), shown);
        }
    }
}
