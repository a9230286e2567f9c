//! What a new schema refuses that the old one took.
//!
//! The keywords of JSON Schema (draft 2020-12) that say what an object, a list, a number or a text must be are compared one
//! by one. A property that the old schema did not name may be described anew without being named here. What combines or
//! refers to other schemas (`$ref`, `allOf`, `anyOf`, `oneOf`, `not`, `if`) cannot be compared, so any change of it is named.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

/// One place where a schema became narrower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Breaking {
    /// The place in the payload, as a JSON pointer; `*` stands for any item or further property. Empty: the payload itself.
    pub path: String,
    /// `schema_added`, `type_narrowed`, `required_added`, `property_removed`, `properties_closed`, `values_narrowed`,
    /// `bound_tightened`, `form_changed` or `not_comparable`.
    pub change: &'static str,
    /// In words.
    pub message: String,
}

/// The keywords with a bound that must not rise, and those with one that must not fall.
const LOWER: [&str; 6] = ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains"];
const UPPER: [&str; 6] = ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains"];
const FORMS: [&str; 4] = ["pattern", "format", "multipleOf", "uniqueItems"];
const OPAQUE: [&str; 12] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
];

/// Where the new schema is narrower than the old one.
pub(crate) fn breaking(old: Option<&Value>, new: Option<&Value>) -> Vec<Breaking> {
    let mut found = Vec::new();
    match (old, new) {
        (Some(old), Some(new)) => compare(old, new, "", &mut found),
        (None, Some(new)) if !takes_all(new) => note(&mut found, "", "schema_added", "any payload was taken before".into()),
        _ => {}
    }
    found
}

fn note(found: &mut Vec<Breaking>, path: &str, change: &'static str, message: String) {
    found.push(Breaking { path: path.to_owned(), change, message });
}

fn takes_all(schema: &Value) -> bool {
    *schema == Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}

fn compare(old: &Value, new: &Value, path: &str, found: &mut Vec<Breaking>) {
    if old == new || takes_all(new) || *old == Value::Bool(false) {
        return;
    }
    let empty = Map::new();
    let (old, new) = match (old, new) {
        (_, Value::Bool(false)) => return note(found, path, "type_narrowed", "nothing is taken any more".into()),
        (old, Value::Object(new)) => (old.as_object().unwrap_or(&empty), new),
        _ => return note(found, path, "not_comparable", "this is no schema".into()),
    };
    types(old, new, path, found);
    values(old, new, path, found);
    bounds(old, new, path, found);
    properties(old, new, path, found);
    if let Some(items) = new.get("items") {
        compare(old.get("items").unwrap_or(&Value::Bool(true)), items, &format!("{path}/*"), found);
    }
    for word in OPAQUE.iter().filter(|word| new.contains_key(**word) && old.get(**word) != new.get(**word)) {
        note(found, path, "not_comparable", format!("`{word}` changed"));
    }
}

/// The types that a schema takes; an integer is a number too.
fn types_of(schema: &Map<String, Value>) -> Option<BTreeSet<&str>> {
    let mut types: BTreeSet<&str> = match schema.get("type")? {
        Value::String(one) => BTreeSet::from([one.as_str()]),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    if types.contains("number") {
        types.insert("integer");
    }
    Some(types)
}

fn types(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Vec<Breaking>) {
    let Some(now) = types_of(new) else { return };
    let list = |types: &BTreeSet<&str>| types.iter().copied().collect::<Vec<_>>().join(", ");
    match types_of(old) {
        None => note(found, path, "type_narrowed", format!("any type was taken, now {}", list(&now))),
        Some(before) => {
            let gone: BTreeSet<&str> = before.difference(&now).copied().collect();
            if !gone.is_empty() {
                note(found, path, "type_narrowed", format!("{} is not taken any more", list(&gone)));
            }
        }
    }
}

/// The values that a schema names, if it names them all.
fn values_of(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    let list = schema.get("enum").and_then(Value::as_array).map(|list| list.iter().collect());
    list.or_else(|| schema.get("const").map(|one| vec![one]))
}

fn values(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Vec<Breaking>) {
    let Some(now) = values_of(new) else { return };
    match values_of(old) {
        None => note(found, path, "values_narrowed", "only some values are taken now".into()),
        Some(before) => {
            let gone = before.iter().filter(|value| !now.contains(value)).count();
            if gone > 0 {
                note(found, path, "values_narrowed", format!("{gone} of {} values are not taken any more", before.len()));
            }
        }
    }
}

fn bounds(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Vec<Breaking>) {
    let bound = |schema: &Map<String, Value>, word: &str| schema.get(word).and_then(Value::as_f64);
    for (words, tighter) in [(LOWER, f64::gt as fn(&f64, &f64) -> bool), (UPPER, f64::lt)] {
        for word in words {
            let Some(now) = bound(new, word) else { continue };
            if bound(old, word).is_none_or(|before| tighter(&now, &before)) {
                note(found, path, "bound_tightened", format!("`{word}` is {now} now"));
            }
        }
    }
    for word in FORMS.iter().filter(|word| new.get(**word).is_some_and(|now| *now != false && old.get(**word) != Some(now))) {
        note(found, path, "form_changed", format!("`{word}` is new or another one"));
    }
}

fn properties(old: &Map<String, Value>, new: &Map<String, Value>, path: &str, found: &mut Vec<Breaking>) {
    let required = |schema: &Map<String, Value>| -> BTreeSet<String> {
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for name in required(new).difference(&required(old)) {
        note(found, &below(path, name), "required_added", "it must be there now".into());
    }
    let named = |schema: &Map<String, Value>| schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, now) = (named(old), named(new));
    let any = Value::Bool(true);
    let rest = |schema: &Map<String, Value>| schema.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
    let (rest_before, rest_now) = (rest(old), rest(new));
    for (name, schema) in &before {
        match now.get(name) {
            Some(next) => compare(schema, next, &below(path, name), found),
            None if rest_now == Value::Bool(false) && *schema != Value::Bool(false) => {
                note(found, &below(path, name), "property_removed", "it must not be there any more".into());
            }
            None => compare(schema, &rest_now, &below(path, name), found),
        }
    }
    if rest_now == Value::Bool(false) && rest_before != Value::Bool(false) {
        note(found, path, "properties_closed", "properties that are not named are not taken any more".into());
    } else if rest_now != any {
        compare(&rest_before, &rest_now, &format!("{path}/*"), found);
    }
}

/// A property below a path, as a JSON pointer (RFC 6901).
fn below(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(old: &Value, new: &Value) -> Vec<(String, &'static str)> {
        breaking(Some(old), Some(new)).into_iter().map(|breaking| (breaking.path, breaking.change)).collect()
    }

    fn object(properties: &Value, required: &[&str]) -> Value {
        json!({ "type": "object", "properties": properties, "required": required })
    }

    #[test]
    fn what_takes_all_that_it_took_breaks_nothing() {
        let old = object(&json!({ "amount": { "type": "integer", "minimum": 1 }, "kind": { "enum": ["a"] } }), &["amount", "kind"]);
        assert_eq!(changes(&old, &old), []);
        let wider = object(
            &json!({ "amount": { "type": ["number", "null"], "minimum": 0 }, "kind": { "enum": ["a", "b"] }, "note": { "type": "string" } }),
            &["kind"],
        );
        assert_eq!(changes(&old, &wider), []);
        assert_eq!(changes(&old, &json!({})), []);
        assert_eq!(breaking(Some(&old), None), []);
        assert_eq!(breaking(None, Some(&json!(true))), []);
        // Backwards it is narrower in every one of these places.
        let back = changes(&wider, &old);
        let expected =
            [("/amount", "required_added"), ("/amount", "type_narrowed"), ("/amount", "bound_tightened"), ("/kind", "values_narrowed")];
        assert_eq!(back, expected.map(|(path, change)| (path.to_owned(), change)));
    }

    #[test]
    fn each_way_to_narrow_is_named_with_its_place() {
        let one = |old: Value, new: Value| match changes(&old, &new).as_slice() {
            [(path, change)] => (path.clone(), *change),
            other => panic!("{other:?}"),
        };
        let case = |old, new, path: &str, change| assert_eq!(one(old, new), (path.to_owned(), change));
        case(json!({}), json!({ "type": "string" }), "", "type_narrowed");
        case(json!({ "type": "number" }), json!({ "type": "integer" }), "", "type_narrowed");
        case(json!({ "type": "string" }), json!(false), "", "type_narrowed");
        case(json!({ "const": 1 }), json!({ "const": 2 }), "", "values_narrowed");
        case(json!({}), json!({ "maxLength": 5 }), "", "bound_tightened");
        case(json!({ "maximum": 5 }), json!({ "maximum": 4 }), "", "bound_tightened");
        case(json!({ "pattern": "a" }), json!({ "pattern": "b" }), "", "form_changed");
        case(json!({ "items": {} }), json!({ "items": { "minimum": 0 } }), "/*", "bound_tightened");
        case(json!({ "$ref": "#/a" }), json!({ "$ref": "#/b" }), "", "not_comparable");
        let named = json!({ "properties": { "a/b": {} }, "additionalProperties": false });
        case(named, json!({ "properties": {}, "additionalProperties": false }), "/a~1b", "property_removed");
        case(json!({}), json!({ "additionalProperties": false }), "", "properties_closed");
        case(json!({}), json!({ "additionalProperties": { "minimum": 0 } }), "/*", "bound_tightened");
        assert_eq!(breaking(None, Some(&json!({ "type": "object" })))[0].change, "schema_added");
    }
}
