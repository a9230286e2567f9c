//! What the demo sends: webhook deliveries, one JSON object a line.

use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use trunkline::{Code, Error, Result};

/// Real deliveries of 58 kinds; `data/README.md` says whose they are.
const BUILT_IN: &str = include_str!("data/github-webhooks.ndjson");

/// One delivery, ready to be produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Webhook {
    /// The kind of event, as GitHub's `X-GitHub-Event` names it.
    pub(crate) kind: String,
    /// Repository and kind: by the repository alone nearly everything would be one key.
    pub(crate) key: String,
    /// The body, byte for byte.
    pub(crate) body: Bytes,
}

#[derive(Deserialize)]
struct Line<'a> {
    event: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The deliveries of a file, or the built-in ones.
///
/// # Errors
/// `INPUT_INVALID` naming the line that is not `{"event": …, "payload": …}`.
pub(crate) fn load(file: Option<&Path>) -> Result<Vec<Webhook>> {
    match file {
        None => parse(BUILT_IN),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::input("input", format!("{} cannot be read: {error}", path.display())))?;
            parse(&text)
        }
    }
}

fn parse(text: &str) -> Result<Vec<Webhook>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let webhooks = lines
        .map(|(at, line)| {
            let Line { event, payload } = serde_json::from_str(line).map_err(|error| {
                Error::input("input", format!("line {}: {error}", at + 1))
                    .next("each line is one JSON object: {\"event\": \"push\", \"payload\": {…}}")
            })?;
            let owner = owner(payload)?;
            Ok(Webhook { key: format!("{owner}/{event}"), kind: event, body: Bytes::copy_from_slice(payload.get().as_bytes()) })
        })
        .collect::<Result<Vec<_>>>()?;
    if webhooks.is_empty() {
        return Err(Error::input("input", "the input has no line"));
    }
    Ok(webhooks)
}

/// Whom a delivery is about: the repository, else the organization or the account.
fn owner(payload: &RawValue) -> Result<String> {
    let body: Value = serde_json::from_str(payload.get())
        .map_err(|error| Error::new(Code::PayloadInvalid, format!("the payload is not JSON: {error}")).field("payload"))?;
    let named = ["/repository/full_name", "/organization/login", "/installation/account/login", "/sender/login"];
    Ok(named.iter().find_map(|at| body.pointer(at).and_then(Value::as_str)).unwrap_or("github").to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_built_in_input_is_varied() {
        let webhooks = load(None).expect("built in");
        let kinds: HashSet<_> = webhooks.iter().map(|webhook| &webhook.kind).collect();
        let keys: HashSet<_> = webhooks.iter().map(|webhook| &webhook.key).collect();
        assert_eq!((webhooks.len(), kinds.len()), (60, 58));
        assert!(keys.len() >= 58, "{}", keys.len());
        assert!(webhooks.iter().all(|webhook| serde_json::from_slice::<Value>(&webhook.body).is_ok()));
    }

    #[test]
    fn a_body_keeps_its_bytes_and_names_its_owner() {
        let webhooks = parse("{\"event\":\"push\",\"payload\":{ \"b\": 1.0, \"repository\": {\"full_name\":\"a/b\"} }}\n\n").expect("one");
        assert_eq!(webhooks[0].key, "a/b/push");
        assert_eq!(&webhooks[0].body[..], br#"{ "b": 1.0, "repository": {"full_name":"a/b"} }"#);
        assert_eq!(parse(r#"{"event":"x","payload":{}}"#).expect("one")[0].key, "github/x");
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = parse("{\"event\":\"push\",\"payload\":{}}\nnonsense\n").expect_err("line 2");
        assert!(error.message().starts_with("line 2"), "{error}");
        assert_eq!(parse("\n").expect_err("empty").code(), Code::InputInvalid);
    }
}
