//! What may be said about a value that may be a secret: its shape, and what it could have been meant to be.

use serde_json::Value;

/// The shape of a value, for errors: `a string of 12 characters`. Never the value itself.
#[must_use]
pub(crate) fn shape(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(n) if n.is_f64() => "a number with a fraction".into(),
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => "a negative number".into(),
        Value::Number(_) => "a number".into(),
        Value::String(text) => counted("a string of", text.chars().count(), "character"),
        Value::Array(items) => counted("a list of", items.len(), "item"),
        Value::Object(map) => counted("an object of", map.len(), "field"),
    }
}

fn counted(what: &str, n: usize, unit: &str) -> String {
    format!("{what} {n} {unit}{}", if n == 1 { "" } else { "s" })
}

/// The candidate that `word` is most likely a misspelling of.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let wanted = plain(word);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean 'x'?`, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default()
}

/// A name of a field as it may stand in an error: short, and one line.
pub(crate) fn field_name(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// Whether the text holds a reference `$Secret{NAME}` or `${NAME}` that is resolved when the route is opened.
#[must_use]
pub(crate) fn has_reference(text: &str) -> bool {
    ["$Secret{", "${"].iter().any(|start| text.find(start).is_some_and(|at| text[at..].contains('}')))
}

/// Whether the text is nothing but one reference, and so tells no secret.
#[must_use]
pub(crate) fn is_reference(text: &str) -> bool {
    let inner = text.strip_prefix("$Secret{").or_else(|| text.strip_prefix("${")).and_then(|rest| rest.strip_suffix('}'));
    inner.is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_never_quote() {
        for (value, expected) in [
            (json!(null), "nothing"),
            (json!("hunter2"), "a string of 7 characters"),
            (json!(["x"]), "a list of 1 item"),
            (json!({"a": 1, "b": 2}), "an object of 2 fields"),
            (json!(-3), "a negative number"),
            (json!(1.5), "a number with a fraction"),
            (json!(true), "a boolean"),
        ] {
            assert_eq!(shape(&value), expected);
        }
    }

    #[test]
    fn nearest_is_near() {
        let fields = ["password", "username", "port", "env_slug"];
        for (word, expected) in [("pasword", Some("password")), ("user_name", Some("username")), ("Port", Some("port")), ("zzz", None)] {
            assert_eq!(nearest(word, fields), expected, "{word}");
        }
    }

    #[test]
    fn references() {
        for (text, has, is) in [
            ("$Secret{PW}", true, true),
            ("${PORT}", true, true),
            ("redis://:$Secret{PW}@h", true, false),
            ("$Secret{a}${b}", true, false),
            ("${}", true, false),
            ("plain", false, false),
            ("${open", false, false),
        ] {
            assert_eq!((has_reference(text), is_reference(text)), (has, is), "{text}");
        }
    }
}
