//! Schemas of payloads: what a sample says about them, and whether a payload fits.
//!
//! A topic's schema is the one it was given, else the one that its sample yields. What is done about a payload that does not
//! fit is the topic's [`Validate`].

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Code, Error, Result};
use crate::event::Event;

/// So many places of a payload that do not fit are named.
const NAMED: usize = 10;

/// What is done about a payload that does not fit the topic's schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validate {
    /// Nothing is looked at.
    Off,
    /// It is counted, and logged at most once a minute.
    #[default]
    Warn,
    /// A produce is refused with `PAYLOAD_INVALID`; what comes to a consumer all the same is buried as `payload_invalid`.
    Reject,
}

/// One place of a payload that does not fit. The payload's own values are never quoted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, as a JSON pointer (RFC 6901); empty: the payload itself.
    pub pointer: String,
    /// What is the matter.
    pub message: String,
}

/// The JSON Schema (draft 2020-12) that a sample yields: the type of each value, and that each field which is not `null` must
/// be there. Further fields are allowed. A `null` may be anything, or not there at all; a number may be any number; items of
/// a list may be as any of the sample's items.
///
/// ```
/// use serde_json::json;
/// use trunkline::schema::infer;
/// assert_eq!(infer(&json!({ "orderId": "123", "note": null })), json!({
///     "type": "object", "properties": { "orderId": { "type": "string" }, "note": {} }, "required": ["orderId"]
/// }));
/// ```
#[must_use]
pub fn infer(sample: &Value) -> Value {
    match sample {
        Value::Null => json!({}),
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::Number(_) => json!({ "type": "number" }),
        Value::String(_) => json!({ "type": "string" }),
        Value::Array(items) => match items.iter().map(infer).reduce(|a, b| merge(&a, &b)) {
            Some(items) if items != json!({}) => json!({ "type": "array", "items": items }),
            _ => json!({ "type": "array" }),
        },
        Value::Object(fields) => object(fields),
    }
}

fn object(fields: &Map<String, Value>) -> Value {
    let properties: Map<String, Value> = fields.iter().map(|(name, value)| (name.clone(), infer(value))).collect();
    let mut required: Vec<&String> = fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect();
    // The same schema comes out in whatever order the fields of the sample stand.
    required.sort();
    json!({ "type": "object", "properties": properties, "required": required })
}

/// What takes all that either takes, for two inferred schemas.
fn merge(a: &Value, b: &Value) -> Value {
    let is_object = |schema: &Value| schema["type"] == "object";
    if a == b {
        return a.clone();
    }
    if is_object(a) && is_object(b) {
        let (of_a, of_b) = (a["properties"].as_object(), b["properties"].as_object());
        let mut properties = of_a.cloned().unwrap_or_default();
        for (name, schema) in of_b.into_iter().flatten() {
            let both = properties.get(name).map(|there| merge(there, schema));
            properties.insert(name.clone(), both.unwrap_or_else(|| schema.clone()));
        }
        let in_b = |name: &&Value| b["required"].as_array().is_some_and(|names| names.contains(name));
        let required: Vec<&Value> = a["required"].as_array().into_iter().flatten().filter(in_b).collect();
        return json!({ "type": "object", "properties": properties, "required": required });
    }
    // Of two kinds of items no more can be said than which types they have.
    let types = |schema: &Value| match &schema["type"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let (mut all, of_b) = (types(a), types(b));
    if all.is_empty() || of_b.is_empty() {
        return json!({});
    }
    all.extend(of_b);
    all.sort();
    all.dedup();
    if all.len() == 1 { json!({ "type": all[0] }) } else { json!({ "type": all }) }
}

/// Checks that a value is a JSON Schema. References to other documents are refused: nothing is fetched.
pub(crate) fn check(path: &str, schema: &Value) -> Result<()> {
    compile(schema).map(drop).map_err(|problem| {
        let at = if problem.pointer.is_empty() { String::new() } else { format!(" at '{}'", problem.pointer) };
        Error::input(path, format!("`{path}` is no JSON Schema that can be used{at}: {}", problem.message))
            .detail("pointer", problem.pointer)
            .next("references may only point into the schema itself")
    })
}

fn compile(schema: &Value) -> Result<jsonschema::Validator, Problem> {
    let built = jsonschema::options().offline().build(schema);
    built.map_err(|error| Problem { pointer: error.instance_path().to_string(), message: error.masked().to_string() })
}

/// A schema, compiled.
pub(crate) struct Schema(jsonschema::Validator);

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

impl Schema {
    /// `None` if it cannot be used, which is logged: it was checked when it was given.
    pub(crate) fn of(event: &Event, schema: &Value) -> Option<Schema> {
        match compile(schema) {
            Ok(validator) => Some(Schema(validator)),
            Err(problem) => {
                tracing::warn!(%event, problem = problem.message, "the topic's schema cannot be used; payloads are not checked");
                None
            }
        }
    }

    /// Where a payload does not fit; at most ten places.
    pub(crate) fn problems(&self, payload: &[u8]) -> Vec<Problem> {
        let value: Value = match serde_json::from_slice(payload) {
            Ok(value) => value,
            // The reader's own text says where, and quotes nothing.
            Err(error) => return vec![Problem { pointer: String::new(), message: format!("it is not JSON: {error}") }],
        };
        if self.0.is_valid(&value) {
            return Vec::new();
        }
        let problem = |error: jsonschema::ValidationError<'_>| Problem {
            pointer: error.instance_path().to_string(),
            message: error.masked().to_string(),
        };
        self.0.iter_errors(&value).take(NAMED).map(problem).collect()
    }
}

/// The refusal of a payload.
pub(crate) fn refusal(event: &Event, problems: &[Problem]) -> Error {
    let (pointer, message) = problems.first().map(|first| (first.pointer.as_str(), first.message.as_str())).unwrap_or_default();
    let at = if pointer.is_empty() { String::new() } else { format!(" at '{pointer}'") };
    Error::new(Code::PayloadInvalid, format!("the payload does not fit the schema of topic '{event}'{at}: {message}"))
        .field("message")
        .detail("pointer", pointer)
        .detail("problems", json!(problems))
        .detail("ambiguous", false)
        .next(format!(
            "see the schema with `trunkline topics show {event}`, or let it pass with `trunkline topics update {event} --validate warn`"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_yields_a_schema_that_takes_it() {
        for sample in [
            json!({ "orderId": "123", "amount": 99.99, "paid": true, "note": null, "lines": [{ "sku": "a", "n": 1 }, { "sku": "b" }] }),
            json!([1, "a", null]),
            json!([]),
            json!("text"),
            json!(null),
        ] {
            let schema = infer(&sample);
            check("schema", &schema).expect("a schema");
            let compiled = Schema::of(&Event::new("b", "t").expect("event"), &schema).expect("compiled");
            assert_eq!(compiled.problems(sample.to_string().as_bytes()), [], "{schema}");
        }
        let lines = infer(&json!([{ "sku": "a", "n": 1 }, { "sku": "b", "n": "1" }, { "sku": "c" }]));
        assert_eq!(lines["items"]["required"], json!(["sku"]));
        assert_eq!(lines["items"]["properties"]["n"], json!({ "type": ["number", "string"] }));
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_place_and_not_quoted() {
        let schema = infer(&json!({ "customer": { "id": "1" }, "lines": [{ "n": 1 }] }));
        let schema = Schema::of(&Event::new("b", "t").expect("event"), &schema).expect("compiled");
        let problems = schema.problems(br#"{ "customer": { "id": 424242 }, "lines": [{ "n": "hunter2" }] }"#);
        let pointers: Vec<&str> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
        assert_eq!(pointers, ["/customer/id", "/lines/0/n"]);
        let said = format!("{problems:?}");
        assert!(!said.contains("hunter2") && !said.contains("424242"), "{said}");
        assert_eq!(schema.problems(b"{").len(), 1);
        assert_eq!(schema.problems(br#"{ "lines": [] }"#)[0].message, "\"customer\" is a required property");
    }

    #[test]
    fn a_schema_is_checked_and_nothing_is_fetched() {
        for schema in
            [json!({ "type": "objekt" }), json!({ "$ref": "http://127.0.0.1:1/schema.json" }), json!({ "$ref": "file:///etc/passwd" })]
        {
            let error = check("schema", &schema).expect_err("refused");
            assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some("schema")), "{schema}");
        }
        check("schema", &json!({ "$defs": { "id": { "type": "string" } }, "properties": { "id": { "$ref": "#/$defs/id" } } }))
            .expect("its own");
    }
}
