//! The keys that seal and open: the master key, and for as long as it is being replaced also the one before it.
//!
//! A replaced key file is noticed before anything is sealed, and when something does not open. So every open process goes on
//! after a [rekey](super::Secrets::rekey); only one whose key stands in its environment has to be started anew.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use super::seal::{MASTER_KEY_ENV, MasterKey, Sealer};
use crate::catalog::Seal;
use crate::error::{Error, Result};
use crate::store::datadir;

/// See the module.
#[derive(Debug)]
pub struct Keyring {
    /// Where the key lies; `None` if it stands in the environment.
    file: Option<PathBuf>,
    held: RwLock<Held>,
}

#[derive(Debug)]
struct Held {
    key: MasterKey,
    current: Sealer,
    /// Opens what has not been sealed anew yet.
    previous: Option<Sealer>,
    /// Which file was read.
    stamp: Option<Stamp>,
}

/// Tells one file from another that took its place.
type Stamp = (u64, i64, i64);

impl Held {
    fn new(key: MasterKey, previous: Option<&MasterKey>, stamp: Option<Stamp>) -> Self {
        Held { current: Sealer::new(&key), previous: previous.map(Sealer::new), key, stamp }
    }

    fn read(file: &Path) -> Result<Self> {
        // Before the key: if it is replaced in between, the next look reads it again.
        let stamp = stamp(file);
        let key = MasterKey::load_with(file, None)?;
        let old = old_file(file);
        let previous = old.exists().then(|| MasterKey::load_with(&old, None)).transpose()?;
        Ok(Held::new(key, previous.as_ref(), stamp))
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    std::fs::metadata(file).ok().map(|found| (found.ino(), found.mtime(), found.mtime_nsec()))
}

/// Where the key before lies while it is needed.
fn old_file(file: &Path) -> PathBuf {
    file.with_extension("key.old")
}

impl Keyring {
    /// The key of `TRUNKLINE_MASTER_KEY`, else of `file`.
    ///
    /// # Errors
    /// As [`MasterKey::load`].
    pub fn open(file: &Path) -> Result<Self> {
        if std::env::var_os(MASTER_KEY_ENV).is_some() {
            let held = Held::new(MasterKey::load(file)?, None, None);
            return Ok(Keyring { file: None, held: RwLock::new(held) });
        }
        Ok(Keyring { file: Some(file.to_owned()), held: RwLock::new(Held::read(file)?) })
    }

    /// Names the key that seals now: 8 hex digits.
    #[must_use]
    pub fn key_id(&self) -> String {
        self.held.read().current.key_id().to_owned()
    }

    /// Whether the key lies in a file of the data directory.
    pub(super) fn is_in_file(&self) -> bool {
        self.file.is_some()
    }

    /// Whether an earlier change of the key was cut short: then some of what is sealed may still need the one before.
    pub(super) fn is_between(&self) -> bool {
        self.held.read().previous.is_some()
    }

    /// Reads the file again if it was replaced.
    fn look(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if stamp(file) != self.held.read().stamp {
            *self.held.write() = Held::read(file)?;
        }
        Ok(())
    }

    /// Seals with another key from now on; what the one before sealed still opens, here and in every process that reads the
    /// file, also after a crash.
    pub(super) fn change(&self, key: MasterKey) -> Result<()> {
        let mut held = self.held.write();
        let Some(file) = &self.file else {
            let before = held.key.clone();
            *held = Held::new(key, Some(&before), None);
            return Ok(());
        };
        // The old one first: there is no moment at which what is sealed has no key.
        held.key.replace(&old_file(file))?;
        key.replace(file)?;
        *held = Held::read(file)?;
        Ok(())
    }

    /// Forgets the key before: nothing is sealed with it any more.
    pub(super) fn settle(&self) -> Result<()> {
        let mut held = self.held.write();
        if let Some(file) = &self.file {
            datadir::remove(&old_file(file))?;
        }
        held.previous = None;
        Ok(())
    }
}

impl Seal for Keyring {
    fn seal(&self, record: &str, plain: &str) -> Result<String> {
        self.look()?;
        self.held.read().current.seal(record, plain)
    }

    fn open(&self, record: &str, sealed: &str) -> Result<String> {
        let known = |held: &Held| -> Option<Result<String>> {
            let id = Sealer::sealed_with(sealed)?;
            let sealer = [Some(&held.current), held.previous.as_ref()].into_iter().flatten().find(|sealer| sealer.key_id() == id)?;
            Some(sealer.open(record, sealed).map(|secret| secret.expose().to_owned()))
        };
        if let Some(opened) = known(&self.held.read()) {
            return opened;
        }
        self.look()?;
        let held = self.held.read();
        known(&held).unwrap_or_else(|| held.current.open(record, sealed).map(|secret| secret.expose().to_owned())).map_err(
            |error: Error| {
                let restart = self.file.is_none() && error.detail_str("reason") == Some("master_key");
                if restart {
                    error.next(format!("if the master key was changed, start this process anew with the new {MASTER_KEY_ENV}"))
                } else {
                    error
                }
            },
        )
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn ring(file: &Path) -> Keyring {
        Keyring { file: Some(file.to_owned()), held: RwLock::new(Held::read(file).unwrap()) }
    }

    #[test]
    fn every_process_follows_a_change_at_every_moment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("master.key");
        MasterKey::random().unwrap().create(&file).unwrap();
        let (a, b) = (ring(&file), ring(&file));
        let old = b.seal("r", "before").unwrap();
        a.change(MasterKey::random().unwrap()).unwrap();
        let new = b.seal("r", "after").unwrap();
        assert_eq!(Sealer::sealed_with(&new), Some(&*a.key_id()), "it noticed the file before it sealed");
        // One that starts in the middle, as after a crash, opens both.
        for ring in [&a, &b, &ring(&file)] {
            assert_eq!((ring.open("r", &old).unwrap(), ring.open("r", &new).unwrap()), ("before".into(), "after".into()));
        }
        assert!(ring(&file).is_between());
        a.settle().unwrap();
        assert!(!ring(&file).is_between() && a.open("r", &old).is_err() && a.open("r", &new).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the key");
    }
}
