//! Secrets: how they are kept out of sight, sealed at rest, and referred to in configs.
//!
//! A config may hold a credential itself, which is sealed before it is stored, or a reference, which is stored as it
//! stands and resolved when a connection is opened: `$Secret{NAME}` and `${ENV}`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

mod keyring;
mod manage;
mod rekey;
mod resolve;
mod scope;
mod seal;

pub use keyring::Keyring;
pub use manage::{SecretInput, SecretView, Secrets};
pub use rekey::{NewMasterKey, Rekeyed};
pub use resolve::resolve;
pub(crate) use scope::Vault;
pub use seal::{MASTER_KEY_ENV, MasterKey, SEALED_PREFIX, Sealer};

/// What stands in the place of a secret wherever it would be seen.
pub const MASKED: &str = "***";

/// A text that is never shown: `Debug`, `Display` and JSON say `***`. Its memory is overwritten when it is dropped.
///
/// ```
/// use trunkline::secret::Secret;
/// let secret = Secret::new("hunter2");
/// assert_eq!(format!("{secret} {secret:?}"), "*** ***");
/// assert_eq!(secret.expose(), "hunter2");
/// ```
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text as a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(Zeroizing::new(text.into()))
    }

    /// The text itself. Call it where it is handed to a client library, and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    /// Takes as long for a near miss as for any other.
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b))) == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASKED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASKED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASKED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret::new(text)
    }
}

impl crate::catalog::Seal for Sealer {
    fn seal(&self, record: &str, plain: &str) -> crate::Result<String> {
        Sealer::seal(self, record, plain)
    }

    fn open(&self, record: &str, sealed: &str) -> crate::Result<String> {
        Sealer::open(self, record, sealed).map(|secret| secret.expose().to_owned())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        #[derive(Debug, Serialize, Deserialize, PartialEq)]
        struct Config {
            password: Secret,
        }
        let config: Config = serde_json::from_str(r#"{"password":"hunter2"}"#).unwrap();
        assert_eq!(config.password.expose(), "hunter2");
        for shown in [format!("{config:?} {:#?} {}", config, config.password), serde_json::to_string(&config).unwrap()] {
            assert!(!shown.contains("hunter2") && shown.contains(MASKED), "{shown}");
        }
        assert!(config.password == Secret::new("hunter2") && config.password != Secret::new("hunter3"));
    }
}
