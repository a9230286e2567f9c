//! A payload given on the command line, or written in an editor.

use std::process::Stdio;

use bytes::Bytes;
use serde::de::IgnoredAny;
use trunkline::{Code, Error, Result};

use crate::values;

/// The payload of `--payload`: JSON as it stands, `@FILE`, or `-` for standard input.
///
/// # Errors
/// `PAYLOAD_INVALID` if it is not JSON.
pub fn given(text: &str) -> Result<Bytes> {
    let bytes = match text.strip_prefix('@') {
        Some(file) => values::input("payload", file)?,
        None if text == "-" => values::input("payload", "-")?,
        None => text.as_bytes().to_vec(),
    };
    must_be_json(&bytes)?;
    Ok(bytes.into())
}

/// Refuses what is not JSON.
///
/// # Errors
/// `PAYLOAD_INVALID`, saying where.
pub fn must_be_json(bytes: &[u8]) -> Result<()> {
    serde_json::from_slice::<IgnoredAny>(bytes).map(drop).map_err(|error| {
        Error::new(Code::PayloadInvalid, format!("the payload is not JSON: {error}"))
            .field("payload")
            .next("quote it for your shell, or read it from a file with @FILE")
    })
}

/// Opens the user's editor (`VISUAL`, `EDITOR`, else `vi`) on a text; what was saved.
///
/// # Errors
/// `INPUT_INVALID` if there is no editor, or it ended with a failure: then nothing shall change.
pub async fn edited(text: &str) -> Result<String> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".into());
    let failed = |what: String| Error::input("payload", what).next("set EDITOR, or give the payload with `--payload @FILE`");
    let file = tempfile::Builder::new().prefix("trunkline-").suffix(".json").tempfile();
    let file = file.map_err(|error| failed(format!("no temporary file can be made: {error}")))?;
    std::fs::write(file.path(), text).map_err(|error| failed(format!("the temporary file cannot be written: {error}")))?;
    // Through a shell, because EDITOR may carry arguments ("code --wait").
    let status = tokio::process::Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file.path())
        .stdin(Stdio::inherit())
        .status()
        .await
        .map_err(|error| failed(format!("the editor cannot be started: {error}")))?;
    if !status.success() {
        return Err(failed(format!("the editor `{editor}` ended with {status}; nothing was changed")));
    }
    std::fs::read_to_string(file.path()).map_err(|error| failed(format!("what the editor saved cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_json() {
        assert_eq!(&given("{\"a\": 1}").expect("json")[..], b"{\"a\": 1}");
        assert_eq!(given("{a:1}").expect_err("not json").code(), Code::PayloadInvalid);
        assert_eq!(given("@/does/not/exist").expect_err("no file").code(), Code::InputInvalid);
    }
}
