//! Access: which call needs which permission, which role has it, and who is calling.
//!
//! A workspace without access keys lets everybody in. From the first key on, only a key that holds opens it, and each call
//! needs a permission that the key's role has. All of that is asked here, from one table, and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

mod table;

pub use table::{Call, Permission, Role};

use crate::audit::AuditEntry;
use crate::error::{Code, Error, Result};
use crate::keys::Presented;
use crate::secret::Secret;
use crate::store::Store;
use crate::store::keys::KeyRow;
use table::bit;

/// The environment variable with the access key that opens the workspace.
pub const ACCESS_KEY_ENV: &str = "TRUNKLINE_ACCESS_KEY";

/// Who is calling, as of the last look at the keys.
#[derive(Debug)]
struct Standing {
    actor: Arc<str>,
    /// `None` where no key was asked for.
    role: Option<Role>,
    /// Why the key no longer holds.
    over: Option<&'static str>,
}

/// Decides for one open instance, and writes its audit.
pub(crate) struct Access {
    /// None for a catalogue that only tries things out.
    store: Option<Arc<dyn Store>>,
    key: Option<Presented>,
    /// A bit for each permission: all that the path of a message looks at.
    allowed: AtomicU32,
    standing: ArcSwap<Standing>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({})", self.standing.load().actor)
    }
}

impl Access {
    /// Allows everything and writes nothing: for what is only tried out.
    pub(crate) fn unguarded() -> Self {
        Access::new(None, None, Standing { actor: "nobody".into(), role: None, over: None }, u32::MAX)
    }

    /// Opens the workspace with this key.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, with `details.reason`: `key_missing`, `key_invalid`, `key_revoked` or `key_expired`; `STORE_FAILED`.
    pub(crate) async fn open(store: Arc<dyn Store>, key: Option<&Secret>, host: &str) -> Result<Self> {
        let (_, rows) = store.keys().await?;
        if rows.iter().all(|row| row.revoked_at.is_some()) {
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::info!("this workspace has no access keys: it accepts any"));
            let actor = format!("local:{}@{host}", user()).into();
            return Ok(Access::new(Some(store), None, Standing { actor, role: None, over: None }, u32::MAX));
        }
        let Some(key) = key else { return Err(closed("key_missing")) };
        let key = Presented::parse(key).ok_or_else(|| closed("key_invalid"))?;
        let role = judge(&key, &rows, store.now()).map_err(closed)?;
        let actor = format!("key:{}", key.id()).into();
        Ok(Access::new(Some(store), Some(key), Standing { actor, role: Some(role), over: None }, role.mask()))
    }

    fn new(store: Option<Arc<dyn Store>>, key: Option<Presented>, standing: Standing, allowed: u32) -> Self {
        Access { store, key, allowed: AtomicU32::new(allowed), standing: ArcSwap::from_pointee(standing) }
    }

    /// Looks at the keys again. An instance that was opened while there were none stays open.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let (Some(store), Some(key)) = (&self.store, &self.key) else { return Ok(()) };
        let judged = judge(key, &store.keys().await?.1, store.now());
        let (over, allowed) = match judged {
            Ok(role) => (None, role.mask()),
            Err(over) => (Some(over), 0),
        };
        let before = self.standing.load_full();
        if before.over != over {
            tracing::warn!(actor = %before.actor, ?over, "the access key of this process changed its standing");
            self.standing.store(Arc::new(Standing { actor: before.actor.clone(), role: before.role, over }));
            self.allowed.store(allowed, Ordering::Release);
        }
        Ok(())
    }

    /// Whether this call is allowed.
    pub(crate) fn may(&self, call: Call) -> bool {
        self.allowed.load(Ordering::Acquire) & bit(call.permission()) != 0
    }

    /// An error unless this call is allowed.
    ///
    /// # Errors
    /// `ACCESS_DENIED`.
    pub(crate) fn allow(&self, call: Call) -> Result<()> {
        if self.may(call) { Ok(()) } else { Err(self.denied(call)) }
    }

    fn denied(&self, call: Call) -> Error {
        let standing = self.standing.load();
        if let Some(over) = standing.over {
            return closed(over);
        }
        let role = standing.role.map_or("", Role::as_str);
        let others: Vec<&str> = Role::ALL.iter().filter(|role| role.may(call)).map(|role| role.as_str()).collect();
        Error::new(Code::AccessDenied, format!("{} may not call {}: its role is {role}", standing.actor, call.as_str()))
            .reason("permission")
            .detail("call", call.as_str())
            .next(format!("use an access key with the role {}", others.join(" or ")))
    }

    /// Does what is audited, if it is allowed, and writes down what came of it.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, and those of `work`; `STORE_FAILED` with `details.done: true` if it was done but could not be written
    /// down.
    pub(crate) async fn audited<T>(&self, call: Call, target: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = match self.allow(call) {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        let noted = self.note(call, target, result.as_ref().err()).await;
        match (result, noted) {
            (Ok(_), Err(error)) => Err(error.context("it was done, but could not be written into the audit").detail("done", true)),
            (result, _) => result,
        }
    }

    /// Writes a row of the audit.
    pub(crate) async fn note(&self, call: Call, target: &str, error: Option<&Error>) -> Result<()> {
        let Some(store) = self.store.as_ref().filter(|_| call.is_audited()) else { return Ok(()) };
        let entry = AuditEntry {
            actor: self.standing.load().actor.to_string(),
            call: call.as_str().to_owned(),
            target: target.to_owned(),
            outcome: error.map_or("ok", |error| error.code().as_str()).to_owned(),
        };
        store.audit_append(vec![entry]).await
    }
}

/// The role of a key that holds, or why it does not.
fn judge(key: &Presented, rows: &[KeyRow], now: u64) -> Result<Role, &'static str> {
    // Nothing is told of a key whose secret is not known.
    let row = rows.iter().find(|row| row.id == key.id()).filter(|row| key.opens(&row.hash)).ok_or("key_invalid")?;
    if row.revoked_at.is_some() {
        return Err("key_revoked");
    }
    if row.expires_at.is_some_and(|at| at <= now) {
        return Err("key_expired");
    }
    row.role.parse().map_err(|_| "key_invalid")
}

fn closed(reason: &'static str) -> Error {
    let text = match reason {
        "key_missing" => "this workspace is opened with an access key, and none was given",
        "key_revoked" => "the access key was revoked",
        "key_expired" => "the access key has expired",
        _ => "the access key does not open this workspace",
    };
    let next = match reason {
        "key_missing" => format!("put the key into the environment variable {ACCESS_KEY_ENV}"),
        _ => "ask an admin for another one: `trunkline keys create --role ROLE`".to_owned(),
    };
    Error::new(Code::AccessDenied, text).reason(reason).next(next)
}

/// The name of the user this process runs as, else its number.
fn user() -> String {
    let id = rustix::process::getuid().as_raw();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    /// The bodies of public async functions that reach the store or a broker, by file. One that asks for no permission is
    /// either in this list with its reason, or a mistake.
    #[test]
    fn every_public_call_asks_the_table() {
        const EXEMPT: &[&str] = &[
            "open",        // asks for the key itself
            "close",       // ends the caller's own work
            "flush",       // writes the history of the caller's own work
            "attend",      // does the store's work, on nobody's behalf
            "next",        // of a stream that was opened by an allowed consume
            "stream",      // a consume
            "group",       // asks through `groups`
            "event",       // asks through `message`
            "events",      // asks through `messages`
            "event_stats", // asks through `stats`
        ];
        let source = |name: &str| {
            let path = format!("{}/src/{name}.rs", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let files = [
            "trunkline",
            "audit",
            "keys",
            "secret/manage",
            "secret/rekey",
            "messages",
            "events",
            "stats",
            "dashboard",
            "dead_letter",
            "groups",
            "connection",
            "replay",
            "removal",
            "members",
            "jobs",
            "consumer",
            "cache",
            "schedules",
            "sessions/life",
            "sessions/erase",
        ];
        // What asks, or calls what asks.
        let asks = ["Call::", "self.catalog().", "self.take_back(", ".turn("];
        let mut missing = Vec::new();
        for file in files {
            let text = source(file);
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for part in text.split("    pub async fn ").skip(1) {
                let name = part.split(['(', '<']).next().unwrap_or_default();
                let body = part.split("\n    }\n").next().unwrap_or_default();
                if !asks.iter().any(|word| body.contains(word)) && !EXEMPT.contains(&name) {
                    missing.push(format!("{file}: {name}"));
                }
            }
        }
        assert!(missing.is_empty(), "no permission is asked for in {missing:?}");
    }
}
