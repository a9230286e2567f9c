//! Credentials at rest: XChaCha20-Poly1305 under the master key.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Secret;
use crate::error::{Error, Result};

/// The environment variable that holds the master key: 32 bytes as base64 or hex. It wins over the file.
pub const MASTER_KEY_ENV: &str = "TRUNKLINE_MASTER_KEY";
/// How every sealed text starts: the format and its version.
pub const SEALED_PREFIX: &str = "sealed:v1:";

const NONCE: usize = 24;

/// The key that seals all others' secrets. Keep a copy of it apart from backups of the data directory.
#[derive(Clone)]
pub struct MasterKey {
    key: Zeroizing<[u8; 32]>,
    id: String,
}

impl MasterKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// `STORE_FAILED` if the system has none.
    pub fn random() -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut key[..])?;
        Ok(Self::of(key))
    }

    /// The key of 32 bytes written as base64 or hex.
    ///
    /// # Errors
    /// `STORE_FAILED` with reason `master_key` if they are not that.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let bytes = if text.len() == 64 { hex(text) } else { None };
        let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD];
        let bytes = bytes.or_else(|| engines.into_iter().find_map(|engine| engine.decode(text).ok())).map(Zeroizing::new);
        let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok()).ok_or_else(|| {
            unusable(format!("the master key must be 32 bytes as base64 or hex; got {} characters", text.chars().count()))
                .next("make one with `openssl rand -base64 32`")
        })?;
        Ok(Self::of(Zeroizing::new(key)))
    }

    fn of(key: Zeroizing<[u8; 32]>) -> Self {
        let digest = Sha256::new().chain_update(b"trunkline master key id\0").chain_update(&key[..]).finalize();
        let id = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        MasterKey { key, id }
    }

    /// The key of this process: from `TRUNKLINE_MASTER_KEY`, else from `file`.
    ///
    /// # Errors
    /// `STORE_FAILED` with reason `master_key`: neither is there, it is not a key, or others may read the file.
    pub fn load(file: &Path) -> Result<Self> {
        Self::load_with(file, std::env::var(MASTER_KEY_ENV).ok().map(Zeroizing::new).as_deref().map(String::as_str))
    }

    pub(crate) fn load_with(file: &Path, env: Option<&str>) -> Result<Self> {
        if let Some(text) = env {
            return Self::parse(text).map_err(|error| error.context(MASTER_KEY_ENV));
        }
        let shown = file.display();
        let read = || -> std::io::Result<(u32, Zeroizing<String>)> {
            Ok((std::fs::metadata(file)?.mode(), Zeroizing::new(std::fs::read_to_string(file)?)))
        };
        let (mode, text) = read().map_err(|error| {
            unusable(format!("the master key {shown} cannot be read: {error}"))
                .next(format!("put the file back from its backup, or set {MASTER_KEY_ENV}"))
        })?;
        if mode & 0o077 != 0 {
            return Err(unusable(format!("the master key {shown} can be read by others (mode {:o})", mode & 0o777))
                .next(format!("run `chmod 600 {shown}`, and change the credentials if others had access")));
        }
        Self::parse(&text).map_err(|error| error.context(&shown.to_string()))
    }

    /// Writes the key to a new file that only its owner reads. `false` if a file is there already.
    ///
    /// # Errors
    /// `STORE_FAILED` if it cannot be written.
    pub fn create(&self, file: &Path) -> Result<bool> {
        let text = Zeroizing::new(STANDARD.encode(&self.key[..]) + "\n");
        crate::store::datadir::create_new(file, text.as_bytes())
    }

    /// Puts the key into the file, in place of what is there; readers see the one or the other.
    ///
    /// # Errors
    /// `STORE_FAILED` if it cannot be written.
    pub(super) fn replace(&self, file: &Path) -> Result<()> {
        let text = Zeroizing::new(STANDARD.encode(&self.key[..]) + "\n");
        crate::store::datadir::replace(file, text.as_bytes())
    }

    /// Names the key without telling anything of it: 8 hex digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn unusable(what: String) -> Error {
    Error::store(what).reason("master_key")
}

fn random(bytes: &mut [u8]) -> Result<()> {
    rand::rngs::OsRng.try_fill_bytes(bytes).map_err(|_| Error::store("the system gives no random numbers").reason("random"))
}

/// Seals and opens secrets for storage.
///
/// A sealed text reads `sealed:v1:<key id>:<base64>` and opens only for the record it was sealed for, so that nobody who
/// can write the store can move a credential from one broker to another.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    id: String,
}

impl Sealer {
    /// A sealer under this key.
    #[must_use]
    pub fn new(key: &MasterKey) -> Self {
        Sealer { cipher: XChaCha20Poly1305::new((&*key.key).into()), id: key.id.clone() }
    }

    /// Names its key.
    pub(super) fn key_id(&self) -> &str {
        &self.id
    }

    /// Names the key that sealed a text.
    pub(super) fn sealed_with(sealed: &str) -> Option<&str> {
        sealed.strip_prefix(SEALED_PREFIX)?.split_once(':').map(|(id, _)| id)
    }

    /// Whether the text is a sealed one.
    #[must_use]
    pub fn is_sealed(text: &str) -> bool {
        text.starts_with(SEALED_PREFIX)
    }

    /// Seals a secret for the record of this id.
    ///
    /// # Errors
    /// `STORE_FAILED` if the system gives no random numbers.
    pub fn seal(&self, record: &str, secret: &str) -> Result<String> {
        let mut bytes = vec![0; NONCE];
        random(&mut bytes)?;
        let aad = self.aad(record);
        let payload = Payload { msg: secret.as_bytes(), aad: aad.as_bytes() };
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&bytes), payload)
            .map_err(|_| Error::store("the secret cannot be sealed").reason("internal"))?;
        bytes.extend_from_slice(&sealed);
        Ok(format!("{SEALED_PREFIX}{}:{}", self.id, STANDARD_NO_PAD.encode(bytes)))
    }

    /// Opens a text that was sealed for the record of this id.
    ///
    /// # Errors
    /// `STORE_FAILED`: with reason `master_key` if another key sealed it, `damaged` if it was changed, belongs to another
    /// record or is no sealed text.
    pub fn open(&self, record: &str, sealed: &str) -> Result<Secret> {
        let damaged = || {
            Error::store(format!("the sealed credential of '{record}' was changed, or belongs to another record"))
                .reason("damaged")
                .next("set the credential again")
        };
        let (id, text) = sealed.strip_prefix(SEALED_PREFIX).and_then(|rest| rest.split_once(':')).ok_or_else(damaged)?;
        if id != self.id {
            return Err(unusable(format!("the credential of '{record}' was sealed with another master key"))
                .detail("keyId", self.id.clone())
                .next("use the master key that this data directory was made with, or set the credential again"));
        }
        let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| damaged())?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or_else(damaged)?;
        let aad = self.aad(record);
        let plain = self.cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: aad.as_bytes() }).map_err(|_| damaged())?;
        String::from_utf8(plain).map(Secret::new).map_err(|_| damaged())
    }

    /// What is authenticated but not hidden: format, key and record.
    fn aad(&self, record: &str) -> String {
        format!("{SEALED_PREFIX}{}:{record}", self.id)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.id)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_changed_does_not_open() {
        let sealer = Sealer::new(&MasterKey::random().unwrap());
        let sealed = sealer.seal("shop/orders", "hunter2").unwrap();
        assert!(Sealer::is_sealed(&sealed) && sealed != sealer.seal("shop/orders", "hunter2").unwrap());
        assert_eq!(sealer.open("shop/orders", &sealed).unwrap().expose(), "hunter2");
        assert_eq!(sealer.open("shop/other", &sealed).unwrap_err().detail_str("reason"), Some("damaged"));
        for at in 0..sealed.len() {
            for bit in 0..7 {
                let mut bytes = sealed.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let changed = String::from_utf8(bytes).unwrap();
                let error = sealer.open("shop/orders", &changed).expect_err("a flipped bit");
                assert!(matches!(error.detail_str("reason"), Some("damaged" | "master_key")));
            }
            assert!(sealer.open("shop/orders", &sealed[..at]).is_err());
        }
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (a, b) = (MasterKey::random().unwrap(), MasterKey::random().unwrap());
        let sealed = Sealer::new(&a).seal("r", "hunter2").unwrap();
        let error = Sealer::new(&b).open("r", &sealed).unwrap_err();
        assert_eq!((error.code().as_str(), error.detail_str("reason")), ("STORE_FAILED", Some("master_key")));
    }

    #[test]
    fn keys_are_read_in_their_forms_and_never_shown() {
        let bytes = [0xfb; 32];
        let key = MasterKey::parse(&STANDARD.encode(bytes)).unwrap();
        let forms = [URL_SAFE_NO_PAD.encode(bytes), "fb".repeat(32), "FB".repeat(32), format!(" {}\n", STANDARD.encode(bytes))];
        assert!(forms.iter().all(|form| MasterKey::parse(form).unwrap().id() == key.id()));
        assert_eq!(format!("{key:?} {:?}", Sealer::new(&key)), format!("MasterKey({0}) Sealer({0})", key.id()));
        for bad in ["", "short", &"fb".repeat(31), &"zz".repeat(32), &"ü".repeat(32)] {
            let error = MasterKey::parse(bad).unwrap_err();
            assert_eq!(error.detail_str("reason"), Some("master_key"));
            assert!(bad.is_empty() || !format!("{error:?}").contains(bad));
        }
    }

    #[test]
    fn a_key_file_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("master.key");
        let key = MasterKey::random().unwrap();
        assert!(MasterKey::load_with(&file, None).is_err());
        assert!(key.create(&file).unwrap());
        assert!(!MasterKey::random().unwrap().create(&file).unwrap(), "never replaced");
        assert_eq!(MasterKey::load_with(&file, None).unwrap().id(), key.id());
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = MasterKey::load_with(&file, None).unwrap_err();
            assert!(error.detail_str("next").unwrap().contains("chmod 600"));
        }
        let other = "fb".repeat(32);
        assert_ne!(MasterKey::load_with(&file, Some(&other)).unwrap().id(), key.id(), "the environment wins");
    }
}
