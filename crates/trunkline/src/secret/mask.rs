//! Configs for people to read: credentials stand as `***`, references as they were written.

use serde_json::Value;

use super::MASKED;
use super::resolve::{Piece, pieces};

/// Names of fields that hold a credential in the configs of all providers. `keyFilename` is a path, and not among them.
pub const SENSITIVE: &[&str] = &[
    "password",
    "secretAccessKey",
    "sessionToken",
    "token",
    "pass",
    "creds",
    "credentials",
    "key",
    "privateKey",
    "nkey",
    "seed",
    "secret",
];

/// A copy of the value in which the texts and numbers under fields of these names, and the passwords in URLs anywhere,
/// are `***`. References (`$Secret{X}`, `${X}`) stay readable: they name a secret and are none.
#[must_use]
pub fn mask(value: &Value, sensitive_fields: &[&str]) -> Value {
    walk(value, sensitive_fields, false)
}

fn walk(value: &Value, names: &[&str], hide: bool) -> Value {
    match value {
        Value::String(text) if hide => Value::String(hide_text(text)),
        Value::String(text) => Value::String(hide_urls(text, names)),
        Value::Number(_) if hide => Value::String(MASKED.to_owned()),
        Value::Array(items) => Value::Array(items.iter().map(|item| walk(item, names, hide)).collect()),
        Value::Object(fields) => {
            let is_sensitive = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
            Value::Object(fields.iter().map(|(name, item)| (name.clone(), walk(item, names, hide || is_sensitive(name)))).collect())
        }
        other => other.clone(),
    }
}

/// `***` for all of a text but its references.
fn hide_text(text: &str) -> String {
    let mut out = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Secret(_, whole) | Piece::Env(_, whole) => out.push_str(whole),
            _ if !out.ends_with(MASKED) => out.push_str(MASKED),
            _ => {}
        }
    }
    out
}

/// The text with the passwords of all URLs in it hidden. Cuts too much rather than too little: a password with an
/// unescaped `/` or `@` must not slip through.
fn hide_urls(text: &str, names: &[&str]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find("://").unwrap_or(tail.len());
        let end = tail[..end].find(char::is_whitespace).unwrap_or(end);
        let after = tail[..end].rfind('@').unwrap_or(0);
        if after > 0 {
            match tail[..after].split_once(':') {
                Some((user, password)) => out.push_str(&format!("{user}:{}", hide_text(password))),
                // Without a password what stands there is a token.
                None => out.push_str(&hide_text(&tail[..after])),
            }
        }
        out.push_str(&hide_query(&tail[after..end], names));
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Hides `password=…` and the like after a `?`.
fn hide_query(text: &str, names: &[&str]) -> String {
    let Some((path, query)) = text.split_once('?') else { return text.to_owned() };
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((name, value)) if names.iter().any(|known| known.eq_ignore_ascii_case(name)) => format!("{name}={}", hide_text(value)),
        _ => part.to_owned(),
    });
    format!("{path}?{}", parts.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_are_hidden_and_references_are_not() {
        let value = json!({
            "brokers": ["a:9092"],
            "sasl": { "username": "me", "password": "hunter2", "PASSWORD": "hunter2" },
            "secretAccessKey": "$Secret{AWS}", "sessionToken": "x$Secret{AWS}hunter2", "token": 7, "pass": "", "key": null,
            "credentials": { "type": "service_account", "private_key": "hunter2", "list": ["hunter2"] },
            "keyFilename": "/etc/key.json",
            "tls": true,
        });
        let masked = mask(&value, SENSITIVE);
        assert!(!masked.to_string().contains("hunter2"), "{masked}");
        assert_eq!(masked["sasl"]["username"], "me");
        assert_eq!(masked["secretAccessKey"], "$Secret{AWS}");
        assert_eq!(masked["sessionToken"], "***$Secret{AWS}***");
        assert_eq!((&masked["token"], &masked["pass"], &masked["key"]), (&json!("***"), &json!(""), &json!(null)));
        assert_eq!(
            (&masked["keyFilename"], &masked["tls"], &masked["brokers"][0]),
            (&json!("/etc/key.json"), &json!(true), &json!("a:9092"))
        );
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        for (url, wanted) in [
            ("amqp://user:hunter2@host:5672/v", "amqp://user:***@host:5672/v"),
            ("amqp://user:hu@nt/er2@host", "amqp://user:***@host"),
            ("redis://:hunter2@host", "redis://:***@host"),
            ("nats://hunter2@host", "nats://***@host"),
            ("amqp://u:$Secret{P}@h", "amqp://u:$Secret{P}@h"),
            ("${SCHEME}://u:${P}@h", "${SCHEME}://u:${P}@h"),
            ("nats://u:p1@a:4222,nats://u:p2@b:4222", "nats://u:***@a:4222,nats://u:***@b:4222"),
            ("see http://x and redis://u:p@h", "see http://x and redis://u:***@h"),
            ("https://host:443/path?token=abc&x=1", "https://host:443/path?token=***&x=1"),
            ("host:9092", "host:9092"),
        ] {
            assert_eq!(mask(&json!(url), SENSITIVE), json!(wanted));
        }
    }
}
