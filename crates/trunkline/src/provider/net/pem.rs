//! Certificates and keys of a config: the PEM itself, or the path of a PEM file.

use crate::error::{Error, Result};

/// The PEM of a `tls` field; a file is read now, so that a missing one is found when the broker is opened.
///
/// # Errors
/// `INPUT_INVALID` naming the field, never showing its value.
pub(crate) async fn load(field: &str, given: &str) -> Result<Vec<u8>> {
    if given.contains("-----BEGIN ") {
        return Ok(given.as_bytes().to_vec());
    }
    let read = tokio::task::spawn_blocking({
        let path = given.to_owned();
        move || std::fs::read(path)
    });
    let bytes = read.await.map_err(|e| Error::input(field, format!("`{field}` cannot be read: {e}")))?;
    let bytes = bytes.map_err(|e| {
        Error::input(field, format!("`{field}` is neither PEM nor the path of a file that can be read: {}", e.kind()))
            .next("give the PEM text, or the path of a PEM file this process may read")
    })?;
    if !bytes.windows(11).any(|part| part == b"-----BEGIN ") {
        return Err(Error::input(field, format!("the file of `{field}` ({} bytes) holds no PEM", bytes.len())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[tokio::test]
    async fn text_and_files_are_taken_and_nothing_else() {
        let text = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(load("tls.ca", text).await.expect("text"), text.as_bytes());
        let dir = tempfile::tempdir().expect("a directory");
        let (good, bad) = (dir.path().join("ca.pem"), dir.path().join("bad.pem"));
        std::fs::write(&good, text).expect("written");
        std::fs::write(&bad, "hunter2").expect("written");
        assert_eq!(load("tls.ca", &good.to_string_lossy()).await.expect("a file"), text.as_bytes());
        for path in [bad, dir.path().join("none.pem")] {
            let error = load("tls.key", &path.to_string_lossy()).await.expect_err("no PEM");
            assert_eq!(error.code(), Code::InputInvalid);
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
