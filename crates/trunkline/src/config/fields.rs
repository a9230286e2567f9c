//! The declared fields of a config or of a call's options, and the one walk that checks a value against them.
//!
//! Sensitivity is a property of the kind, so what is masked, what is sealed and what is checked cannot drift apart.

use serde_json::{Map, Value};

use super::shape::{did_you_mean, field_name, has_reference, shape};
use crate::error::{Code, Error, Result};
use crate::event::check_tag;
use crate::policy_config::duration;

/// One field of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// Other spellings of the same field.
    pub aliases: &'static [&'static str],
}

impl Field {
    pub(crate) const fn new(name: &'static str, kind: Kind) -> Self {
        Field { name, kind, required: false, aliases: &[] }
    }

    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(crate) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }
}

/// What a field takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A string.
    Text,
    /// A tag or env slug.
    Tag,
    /// A string nobody may see.
    Secret,
    /// A string or an object nobody may see.
    SecretAny,
    /// A URL; a password in it is a secret.
    Url,
    /// A URL or a list of them; passwords in them are secrets.
    Urls,
    /// `true` or `false`.
    Bool,
    /// A whole number in this range.
    Int(i64, i64),
    /// A number from 0 to 1.
    Ratio,
    /// Milliseconds, or a text like `30s`.
    Duration,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of strings, at least one.
    Texts,
    /// An object of these fields.
    Object(&'static [Field]),
    /// A list of objects of these fields.
    Objects(&'static [Field]),
    /// Free names with scalar values; those whose name speaks of a secret are secrets.
    Options,
    /// Any JSON.
    Any,
    /// Checked by a function of its own, given the path.
    By(fn(&str, &Value) -> Result<()>),
}

/// How strictly scalars are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As given to a call.
    Plain,
    /// A config as it is written: references stand for any scalar.
    Written,
    /// A config whose references are resolved: texts may stand for numbers, booleans and lists.
    Resolved,
}

/// The walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) code: Code,
    pub(crate) mode: Mode,
}

/// The walk over a call's options.
pub(crate) const INPUT: Check = Check { code: Code::InputInvalid, mode: Mode::Plain };

/// `a.b`, or `b` at the top.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether a value means that nothing was given: `null`, `''`, `{}`.
pub(crate) fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether an option of this name holds a secret.
pub(crate) fn is_secret_option(name: &str) -> bool {
    let name = name.to_lowercase();
    ["password", "secret", "token", "private", "key.pem", "oauthbearer.config", "passphrase", "credential"].iter().any(|w| name.contains(w))
}

impl Check {
    /// Checks an object and returns it with canonical names and without what is absent.
    pub(crate) fn object(&self, path: &str, fields: &'static [Field], value: &Value) -> Result<Map<String, Value>> {
        let Value::Object(given) = value else { return Err(self.wrong(path, "an object", value)) };
        let mut found = Map::new();
        for (name, value) in given {
            let Some(field) = fields.iter().find(|field| field.name == name || field.aliases.contains(&name.as_str())) else {
                return Err(self.unknown(path, name, fields));
            };
            // An empty `tls` asks for TLS as the system trusts: taken as nothing it would mean plain text.
            if is_absent(value) && !(field.name == "tls" && value.is_object()) {
                continue;
            }
            let path = join(path, field.name);
            let value = self.value(&path, field.kind, value)?;
            if let Some(other) = found.insert(field.name.to_owned(), value.clone())
                && other != value
            {
                return Err(self.error(&path, format!("`{path}` is given twice, as {}, and differs", spellings(field))));
            }
        }
        match fields.iter().find(|field| field.required && !found.contains_key(field.name)) {
            Some(field) => {
                let path = join(path, field.name);
                Err(self.error(&path, format!("`{path}` is required")))
            }
            None => Ok(found),
        }
    }

    fn value(&self, path: &str, kind: Kind, value: &Value) -> Result<Value> {
        let text = value.as_str();
        if self.mode == Mode::Written && !matches!(kind, Kind::Object(_) | Kind::Objects(_)) && text.is_some_and(has_reference) {
            return Ok(value.clone());
        }
        let coerced = self.coerced(kind, value);
        let value = coerced.as_ref().unwrap_or(value);
        match kind {
            Kind::Text | Kind::Secret | Kind::Url if value.is_string() => {}
            Kind::Text | Kind::Secret | Kind::Url => return Err(self.wrong(path, "a string", value)),
            Kind::Tag => match value.as_str() {
                Some(tag) => check_tag(path, tag)?,
                None => return Err(self.wrong(path, "a string", value)),
            },
            Kind::SecretAny if value.is_string() || value.is_object() => {}
            Kind::SecretAny => return Err(self.wrong(path, "a string or an object", value)),
            Kind::Urls if value.is_string() => {}
            Kind::Urls | Kind::Texts => return self.texts(path, kind, value),
            Kind::Bool if value.is_boolean() => {}
            Kind::Bool => return Err(self.wrong(path, "true or false", value)),
            Kind::Int(min, max) => match value.as_i64() {
                Some(n) if (min..=max).contains(&n) => {}
                Some(_) => return Err(self.error(path, format!("`{path}` must be {}", range(min, max)))),
                None => return Err(self.wrong(path, &range(min, max), value)),
            },
            Kind::Ratio => match value.as_f64() {
                Some(n) if (0.0..=1.0).contains(&n) => {}
                _ => return Err(self.wrong(path, "a number from 0 to 1", value)),
            },
            Kind::Duration => drop(duration(path, value).map_err(|error| self.recoded(path, &error))?),
            Kind::Word(words) => match value.as_str() {
                Some(word) if words.contains(&word) => {}
                Some(word) => {
                    let near = did_you_mean(word, words.iter().copied());
                    return Err(self.error(path, format!("`{path}` must be one of {}; got {}{near}", words.join(", "), shape(value))));
                }
                None => return Err(self.wrong(path, &format!("one of {}", words.join(", ")), value)),
            },
            Kind::Object(fields) => return self.object(path, fields, value).map(Value::Object),
            Kind::Objects(fields) => return self.objects(path, fields, value),
            Kind::Options => self.options(path, value)?,
            Kind::Any => {}
            Kind::By(check) => check(path, value).map_err(|error| self.recoded(path, &error))?,
        }
        Ok(value.clone())
    }

    /// What a text stands for once its references are resolved.
    fn coerced(&self, kind: Kind, value: &Value) -> Option<Value> {
        if self.mode != Mode::Resolved {
            return None;
        }
        let text = value.as_str()?.trim();
        match kind {
            Kind::Int(..) => text.parse::<i64>().ok().map(Value::from),
            Kind::Duration => text.parse::<u64>().ok().map(Value::from),
            Kind::Ratio => text.parse::<f64>().ok().map(Value::from),
            Kind::Bool => match text {
                "true" | "1" => Some(Value::Bool(true)),
                "false" | "0" => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::Texts => Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
            _ => None,
        }
    }

    fn texts(&self, path: &str, kind: Kind, value: &Value) -> Result<Value> {
        let expected = if matches!(kind, Kind::Urls) { "a string or a list of strings" } else { "a list of strings" };
        let Value::Array(items) = value else { return Err(self.wrong(path, expected, value)) };
        if items.is_empty() {
            return Err(self.error(path, format!("`{path}` must have at least one entry")));
        }
        match items.iter().enumerate().find(|(_, item)| item.as_str().is_none_or(str::is_empty)) {
            Some((i, item)) => Err(self.wrong(&format!("{path}[{i}]"), "a string that is not empty", item)),
            None => Ok(value.clone()),
        }
    }

    fn objects(&self, path: &str, fields: &'static [Field], value: &Value) -> Result<Value> {
        let Value::Array(items) = value else { return Err(self.wrong(path, "a list of objects", value)) };
        items.iter().enumerate().map(|(i, item)| self.object(&format!("{path}[{i}]"), fields, item).map(Value::Object)).collect()
    }

    fn options(&self, path: &str, value: &Value) -> Result<()> {
        let Value::Object(map) = value else { return Err(self.wrong(path, "an object", value)) };
        match map.iter().find(|(_, value)| !(value.is_string() || value.is_number() || value.is_boolean())) {
            Some((name, value)) => Err(self.wrong(&join(path, &field_name(name)), "a string, a number or a boolean", value)),
            None => Ok(()),
        }
    }

    pub(crate) fn error(&self, path: &str, message: impl Into<String>) -> Error {
        Error::new(self.code, message).field(path)
    }

    pub(crate) fn wrong(&self, path: &str, expected: &str, value: &Value) -> Error {
        let what = if path.is_empty() { "this".to_owned() } else { format!("`{path}`") };
        self.error(path, format!("{what} must be {expected}; got {}", shape(value)))
    }

    fn recoded(&self, path: &str, error: &Error) -> Error {
        self.error(error.detail_str("field").unwrap_or(path), error.message())
    }

    fn unknown(&self, path: &str, name: &str, fields: &[Field]) -> Error {
        let near = did_you_mean(name, fields.iter().flat_map(|field| std::iter::once(field.name).chain(field.aliases.iter().copied())));
        let path = join(path, &field_name(name));
        let error = self.error(&path, format!("unknown field `{path}`{near}"));
        let known: Vec<&str> = fields.iter().map(|field| field.name).collect();
        error.detail("known", known)
    }
}

fn spellings(field: &Field) -> String {
    std::iter::once(field.name).chain(field.aliases.iter().copied()).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

fn range(min: i64, max: i64) -> String {
    match (min, max) {
        (min, i64::MAX) => format!("a whole number, at least {min}"),
        (min, max) => format!("a whole number from {min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FIELDS: &[Field] = &[
        Field::new("tag", Kind::Tag).required(),
        Field::new("port", Kind::Int(1, 65_535)),
        Field::new("slug", Kind::Text).aliases(&["env", "env_slug"]),
        Field::new("mode", Kind::Word(&["stream", "pubsub"])),
        Field::new("hosts", Kind::Texts),
        Field::new("wait", Kind::Duration),
        Field::new("nested", Kind::Object(&[Field::new("on", Kind::Bool)])),
        Field::new("options", Kind::Options),
    ];

    #[test]
    fn refused_with_the_field_named() {
        for (given, field, part) in [
            (json!([]), "", "an object; got a list of 0 items"),
            (json!({}), "tag", "required"),
            (json!({"tag": ""}), "tag", "required"),
            (json!({"tag": "a b"}), "tag", "letters"),
            (json!({"tag": "a", "prot": 1}), "prot", "did you mean 'port'?"),
            (json!({"tag": "a", "port": 0}), "port", "from 1 to 65535"),
            (json!({"tag": "a", "port": "1"}), "port", "got a string of 1 character"),
            (json!({"tag": "a", "mode": "streem"}), "mode", "did you mean 'stream'?"),
            (json!({"tag": "a", "hosts": []}), "hosts", "at least one"),
            (json!({"tag": "a", "hosts": ["x", 1]}), "hosts[1]", "got a number"),
            (json!({"tag": "a", "slug": "x", "env": "y"}), "slug", "differs"),
            (json!({"tag": "a", "nested": {"on": 1}}), "nested.on", "true or false"),
            (json!({"tag": "a", "nested": {"no": 1}}), "nested.no", "did you mean 'on'?"),
            (json!({"tag": "a", "wait": "soon"}), "wait", "got a string of 4 characters"),
            (json!({"tag": "a", "options": {"x": []}}), "options.x", "got a list"),
        ] {
            let error = INPUT.object("", FIELDS, &given).expect_err(&given.to_string());
            assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some(field)), "{given}: {error:?}");
            assert!(error.message().contains(part), "{given}: {error}");
        }
    }

    #[test]
    fn absent_values_and_spellings_are_normalised() {
        let given = json!({"tag": "a", "port": null, "mode": "", "nested": {}, "env": "x", "env_slug": "x"});
        let found = INPUT.object("", FIELDS, &given).expect("valid");
        assert_eq!(Value::Object(found), json!({"tag": "a", "slug": "x"}));
    }

    #[test]
    fn references_stand_for_scalars_only_where_written() {
        let written = Check { code: Code::ConfigInvalid, mode: Mode::Written };
        let given = json!({"tag": "a", "port": "${PORT}", "hosts": "$Secret{HOSTS}", "nested": {"on": "${ON}"}});
        written.object("", FIELDS, &given).expect("references");
        assert!(INPUT.object("", FIELDS, &given).is_err());
        assert!(written.object("", FIELDS, &json!({"tag": "a", "nested": "${ALL}"})).is_err());
    }

    #[test]
    fn resolved_texts_are_read_as_what_they_stand_for() {
        let resolved = Check { code: Code::ConfigInvalid, mode: Mode::Resolved };
        let given = json!({"tag": "a", "port": "6379", "hosts": "a:1, b:2", "nested": {"on": "true"}, "wait": "250"});
        let found = resolved.object("", FIELDS, &given).expect("valid");
        assert_eq!(Value::Object(found), json!({"tag": "a", "port": 6379, "hosts": ["a:1", "b:2"], "nested": {"on": true}, "wait": 250}));
        let error = resolved.object("", FIELDS, &json!({"tag": "a", "port": "hunter2"})).expect_err("not a number");
        assert!(!error.message().contains("hunter2"), "{error}");
    }
}
