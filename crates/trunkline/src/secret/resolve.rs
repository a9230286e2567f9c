//! References in configs: `$Secret{NAME}` and `${ENV}`, anywhere inside a text.

use serde_json::Value;

use super::Secret;
use crate::error::{Code, Error, Result};

/// What `$Secret{NAME}` reads where the store has none of that name is the environment variable of this prefix and the name.
const SECRET_ENV_PREFIX: &str = "TRUNKLINE_SECRET_";

/// One piece of a text with references.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// As it stands.
    Text(&'a str),
    /// `$Secret{NAME}`: the name, and the whole as written.
    Secret(&'a str, &'a str),
    /// `${ENV}`: the name, and the whole as written.
    Env(&'a str, &'a str),
    /// `$${` or `$$Secret{`: what stands after the first `$` is meant literally.
    Literal(&'a str),
    /// The start of a reference without an end, or with a name that is none.
    Broken(&'a str),
}

/// The pieces of a text, in order.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(found) = text[at..].find('$') {
        at += found;
        let rest = &text[at..];
        let piece = if let Some(literal) = ["$${", "$$Secret{"].into_iter().find(|mark| rest.starts_with(mark)) {
            Piece::Literal(&rest[1..literal.len()])
        } else if rest.starts_with("$Secret{") || rest.starts_with("${") {
            reference(rest)
        } else {
            at += 1;
            continue;
        };
        if start < at {
            out.push(Piece::Text(&text[start..at]));
        }
        at += match &piece {
            Piece::Secret(_, whole) | Piece::Env(_, whole) | Piece::Text(whole) | Piece::Broken(whole) => whole.len(),
            Piece::Literal(literal) => literal.len() + 1,
        };
        start = at;
        out.push(piece);
    }
    if start < text.len() {
        out.push(Piece::Text(&text[start..]));
    }
    out
}

/// The reference that `rest` starts with.
fn reference(rest: &str) -> Piece<'_> {
    let open = rest.find('{').unwrap_or(0);
    let Some(name) = rest[open + 1..].split_once('}').map(|(name, _)| name) else { return Piece::Broken(&rest[..=open]) };
    let whole = &rest[..open + 1 + name.len() + 1];
    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    match (valid, open) {
        (false, _) => Piece::Broken(&rest[..=open]),
        (true, 1) => Piece::Env(name, whole),
        (true, _) => Piece::Secret(name, whole),
    }
}

/// The value with all references replaced by what they name. Call it when a connection is opened; never store the result.
///
/// `$Secret{NAME}` reads the environment variable `TRUNKLINE_SECRET_NAME` (a `-` or `.` of the name becomes `_`); an open
/// instance asks its store first, see [`Secrets`](super::Secrets).
/// `${NAME}` the variable `NAME`. What a reference gives is not looked through for further references. `$${` stands for
/// a literal `${`, and `$$Secret{` for a literal `$Secret{`.
///
/// # Errors
/// `SECRET_NOT_FOUND` naming the secret; `CONFIG_INVALID` naming field and variable, or the field of a reference that
/// has no end.
pub fn resolve(value: &Value) -> Result<Value> {
    resolve_in(value, &|_| Ok(None))
}

/// The same, where `stored` is asked for a secret before the environment is.
pub(super) fn resolve_in(value: &Value, stored: Stored<'_>) -> Result<Value> {
    resolve_with(value, &|name| std::env::var(name).ok(), stored)
}

/// A secret of the store, by its name.
pub(super) type Stored<'a> = &'a dyn Fn(&str) -> Result<Option<Secret>>;
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

fn resolve_with(value: &Value, env: Variables<'_>, stored: Stored<'_>) -> Result<Value> {
    walk(value, &mut String::new(), env, stored)
}

fn walk(value: &Value, path: &mut String, env: Variables<'_>, stored: Stored<'_>) -> Result<Value> {
    let length = path.len();
    Ok(match value {
        Value::String(text) => Value::String(resolve_text(text, path, env, stored)?),
        Value::Array(items) => {
            let mut out = Vec::with_capacity(items.len());
            for (at, item) in items.iter().enumerate() {
                path.push_str(&format!("[{at}]"));
                out.push(walk(item, path, env, stored)?);
                path.truncate(length);
            }
            Value::Array(out)
        }
        Value::Object(fields) => {
            let mut out = serde_json::Map::with_capacity(fields.len());
            for (name, item) in fields {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                out.insert(name.clone(), walk(item, path, env, stored)?);
                path.truncate(length);
            }
            Value::Object(out)
        }
        other => other.clone(),
    })
}

fn resolve_text(text: &str, path: &str, env: Variables<'_>, stored: Stored<'_>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) | Piece::Literal(text) => out.push_str(text),
            Piece::Secret(name, _) => {
                if let Some(secret) = stored(name)? {
                    out.push_str(secret.expose());
                    continue;
                }
                let variable = format!("{SECRET_ENV_PREFIX}{}", name.replace(['-', '.'], "_"));
                out.push_str(&env(&variable).ok_or_else(|| {
                    Error::new(Code::SecretNotFound, format!("secret '{name}', which `{path}` refers to, is not defined"))
                        .field(path)
                        .detail("secret", name)
                        .next(format!("make it with `trunkline secrets create {name}`, or set the environment variable {variable}"))
                })?);
            }
            Piece::Env(name, _) => out.push_str(&env(name).ok_or_else(|| {
                Error::new(Code::ConfigInvalid, format!("`{path}` refers to the environment variable {name}, which is not set"))
                    .field(path)
                    .detail("variable", name)
                    .next(format!("set the environment variable {name}"))
            })?),
            // The text around it may be a password, so it is not shown.
            Piece::Broken(_) => {
                return Err(Error::new(Code::ConfigInvalid, format!("`{path}` holds a reference without an end or with an invalid name"))
                    .field(path)
                    .next("write $Secret{NAME} or ${NAME}; a literal ${ is written $${"));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "TRUNKLINE_SECRET_DB_PASS" => Some("p${HOST}w".to_owned()),
            "HOST" => Some("h1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn none(_: &str) -> Result<Option<Secret>> {
        Ok(None)
    }

    #[test]
    fn the_store_comes_before_the_environment() {
        let stored = |name: &str| Ok((name == "DB_PASS").then(|| Secret::new("from the store ${HOST}")));
        assert_eq!(resolve_with(&json!("x$Secret{DB_PASS}"), &env, &stored).unwrap(), json!("xfrom the store ${HOST}"));
        let down = |_: &str| Err(Error::store("down"));
        assert_eq!(resolve_with(&json!("$Secret{DB_PASS}"), &env, &down).unwrap_err().code(), Code::StoreFailed);
    }

    #[test]
    fn references_are_replaced_once_and_anywhere() {
        let value = json!({ "url": "amqp://u:$Secret{DB_PASS}@${HOST}:5672", "list": ["${EMPTY}", 7, { "x": "$Secret{DB-PASS}" }] });
        let wanted = json!({ "url": "amqp://u:p${HOST}w@h1:5672", "list": ["", 7, { "x": "p${HOST}w" }] });
        assert_eq!(resolve_with(&value, &env, &none).unwrap(), wanted);
    }

    #[test]
    fn other_dollars_stay() {
        for text in ["$", "a$b", "$Secret", "$ {HOST}", "ü$ü", "$$", "{HOST}"] {
            assert_eq!(resolve_with(&json!(text), &env, &none).unwrap(), json!(text));
        }
        assert_eq!(resolve_with(&json!("$${HOST} $$Secret{X} $$$"), &env, &none).unwrap(), json!("${HOST} $Secret{X} $$$"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = resolve_with(&json!({ "a": [{ "b": "x$Secret{NONE}" }] }), &env, &none).unwrap_err();
        assert_eq!((error.code(), error.detail_str("field")), (Code::SecretNotFound, Some("a[0].b")));
        assert!(error.message().contains("NONE") && error.detail_str("next").unwrap().contains("TRUNKLINE_SECRET_NONE"));
        let error = resolve_with(&json!({ "a": { "b": "${NONE}" } }), &env, &none).unwrap_err();
        assert_eq!(
            (error.code(), error.detail_str("field"), error.detail_str("variable")),
            (Code::ConfigInvalid, Some("a.b"), Some("NONE"))
        );
        for broken in ["hush${HOST", "hush$Secret{", "hush${}", "hush${a b}"] {
            let error = resolve_with(&json!({ "p": broken }), &env, &none).unwrap_err();
            assert_eq!(error.code(), Code::ConfigInvalid);
            assert!(!format!("{error:?}").contains("hush"));
        }
    }
}
