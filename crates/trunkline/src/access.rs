//! Access: which call needs which permission, which role has it, and who is calling.
//!
//! A workspace without access keys lets everybody in. From the first key on, only a key that holds opens it, and each call
//! needs a permission that the key's role has. All of that is asked here, from one table, and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::audit::AuditEntry;
use crate::error::{Code, Error, Result};
use crate::keys::Presented;
use crate::secret::Secret;
use crate::store::Store;
use crate::store::keys::KeyRow;

/// The environment variable with the access key that opens the workspace.
pub const ACCESS_KEY_ENV: &str = "TRUNKLINE_ACCESS_KEY";

/// What a call may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Permission {
    /// Know products, brokers, topics and groups.
    Catalogue,
    /// Produce messages, now or at a time.
    Produce,
    /// Consume messages.
    Consume,
    /// Start, refresh and verify sessions.
    Sessions,
    /// See what happened: records without payloads, figures, members, jobs.
    Look,
    /// See payloads.
    ReadPayloads,
    /// Act on what happened: dead letters, replays, groups, jobs.
    Operate,
    /// Change products, brokers, topics and other definitions.
    Configure,
    /// Secrets, access keys, the audit.
    Administer,
}

use Permission::{Administer, Catalogue, Configure, Look, Operate, ReadPayloads};

/// What an access key may be used for.
///
/// ```
/// use trunkline::access::{Call, Role};
/// assert!(Role::Producer.may(Call::Produce) && !Role::Producer.may(Call::Consume));
/// assert_eq!("viewer-without-payloads".parse::<Role>()?, Role::ViewerWithoutPayloads);
/// # Ok::<_, trunkline::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees what happened, but no payloads.
    ViewerWithoutPayloads,
    /// Sees what happened.
    Viewer,
    /// Sees what happened, and acts on dead letters, replays, groups and jobs.
    Operator,
    /// Produces.
    Producer,
    /// Consumes.
    Consumer,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role there is.
    pub const ALL: &[Role] = &[Role::ViewerWithoutPayloads, Role::Viewer, Role::Operator, Role::Producer, Role::Consumer, Role::Admin];

    /// The role's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::ViewerWithoutPayloads => "viewer-without-payloads",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Producer => "producer",
            Role::Consumer => "consumer",
            Role::Admin => "admin",
        }
    }

    /// Whether it may make this call.
    #[must_use]
    pub fn may(self, call: Call) -> bool {
        self.mask() & bit(call.permission()) != 0
    }

    /// The one table of what a role has.
    const fn permissions(self) -> &'static [Permission] {
        match self {
            Role::ViewerWithoutPayloads => &[Catalogue, Look],
            Role::Viewer => &[Catalogue, Look, ReadPayloads],
            Role::Operator => &[Catalogue, Look, ReadPayloads, Operate],
            Role::Producer => &[Catalogue, Permission::Produce, Permission::Sessions],
            Role::Consumer => &[Catalogue, Permission::Consume, Permission::Sessions],
            Role::Admin => &[
                Catalogue,
                Permission::Produce,
                Permission::Consume,
                Permission::Sessions,
                Look,
                ReadPayloads,
                Operate,
                Configure,
                Administer,
            ],
        }
    }

    fn mask(self) -> u32 {
        self.permissions().iter().fold(0, |mask, permission| mask | bit(*permission))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Role::ALL.iter().copied().find(|role| role.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Role::ALL.iter().map(|role| role.as_str()).collect();
            let near = crate::config::shape::did_you_mean(text, known.iter().copied());
            Error::input("role", format!("`role` must be one of {}{near}", known.join(", ")))
        })
    }
}

const fn bit(permission: Permission) -> u32 {
    1 << permission as u8
}

macro_rules! calls {
    ($($variant:ident = $text:literal, $permission:expr, $audited:literal;)*) => {
        /// What can be called. The texts stand in the audit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "each stands with its text in the table below")]
        pub enum Call { $($variant,)* }

        impl Call {
            /// Every call there is, in the order of the table.
            pub const ALL: &[Call] = &[$(Call::$variant,)*];

            /// The call as text, for example `topics.create`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Call::$variant => $text,)* }
            }

            /// What it needs.
            #[must_use]
            pub const fn permission(self) -> Permission {
                match self { $(Call::$variant => $permission,)* }
            }

            /// Whether it leaves a row in the audit: all that changes something, and all that shows payloads, but not each
            /// message and not each login.
            #[must_use]
            pub const fn is_audited(self) -> bool {
                match self { $(Call::$variant => $audited,)* }
            }
        }
    };
}

// Call, its text, the permission it needs, whether it is audited.
calls! {
    Produce = "messages.produce", Permission::Produce, false;
    Consume = "messages.consume", Permission::Consume, false;
    IdempotencyRead = "messages.checkIdempotency", Permission::Produce, false;

    CatalogRead = "catalog.read", Catalogue, false;
    ProductCreate = "products.create", Configure, true;
    ProductUpdate = "products.update", Configure, true;
    ProductDelete = "products.delete", Configure, true;
    BrokerCreate = "brokers.create", Configure, true;
    BrokerUpdate = "brokers.update", Configure, true;
    BrokerDelete = "brokers.delete", Configure, true;
    ConnectionTest = "brokers.test", Operate, false;
    TopicCreate = "topics.create", Configure, true;
    TopicUpdate = "topics.update", Configure, true;
    TopicDelete = "topics.delete", Configure, true;
    GroupRead = "groups.read", Look, false;
    GroupCreate = "groups.create", Operate, true;
    GroupDelete = "groups.delete", Operate, true;
    GroupPause = "groups.pause", Operate, true;
    GroupSeek = "groups.seek", Operate, true;

    MessageRead = "messages.read", Look, false;
    PayloadRead = "messages.readPayload", ReadPayloads, true;
    StatsRead = "stats.read", Look, false;
    MemberRead = "members.read", Look, false;
    Replay = "messages.replay", Operate, true;

    DeadLetterRead = "deadLetters.read", Look, false;
    DeadLetterEdit = "deadLetters.edit", Operate, true;
    DeadLetterDiscard = "deadLetters.discard", Operate, true;
    DeadLetterReprocess = "deadLetters.reprocess", Operate, true;
    JobRead = "jobs.read", Look, false;
    JobCancel = "jobs.cancel", Operate, true;

    SessionDefine = "sessions.define", Configure, true;
    SessionStart = "sessions.start", Permission::Sessions, false;
    SessionRefresh = "sessions.refresh", Permission::Sessions, false;
    SessionVerify = "sessions.verify", Permission::Sessions, false;
    SessionRead = "sessions.read", Look, false;
    SessionRevoke = "sessions.revoke", Operate, true;
    SessionErase = "sessions.erase", Administer, true;
    SessionKeysRotate = "sessions.rotateKeys", Administer, true;
    CacheDefine = "caches.define", Configure, true;
    CacheRead = "caches.read", Look, false;
    CacheClear = "caches.clear", Operate, true;
    ScheduleCreate = "schedules.create", Permission::Produce, true;
    ScheduleRead = "schedules.read", Look, false;
    ScheduleChange = "schedules.change", Operate, true;

    SecretRead = "secrets.list", Administer, false;
    SecretCreate = "secrets.create", Administer, true;
    SecretRotate = "secrets.rotate", Administer, true;
    SecretDelete = "secrets.delete", Administer, true;
    SecretRekey = "secrets.rekey", Administer, true;
    KeyRead = "keys.list", Administer, false;
    KeyCreate = "keys.create", Administer, true;
    KeyRevoke = "keys.revoke", Administer, true;
    AuditRead = "audit.list", Administer, false;
    AuditVerify = "audit.verify", Administer, false;
}

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
    use super::*;

    #[test]
    fn every_call_has_a_word_of_its_own_and_somebody_who_may() {
        let mut words: Vec<&str> = Call::ALL.iter().map(|call| call.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Call::ALL.len());
        for call in Call::ALL {
            assert!(Role::Admin.may(*call), "{}", call.as_str());
        }
        // Reads of the catalogue are answered from memory without asking: so every role must have them.
        assert!(Role::ALL.iter().all(|role| role.may(Call::CatalogRead)));
    }

    #[test]
    fn roles_have_what_their_names_say() {
        use Role::{Admin, Consumer, Operator, Producer, Viewer, ViewerWithoutPayloads};
        for (call, roles) in [
            (Call::Produce, &[Producer, Admin][..]),
            (Call::Consume, &[Consumer, Admin]),
            (Call::MessageRead, &[ViewerWithoutPayloads, Viewer, Operator, Admin]),
            (Call::PayloadRead, &[Viewer, Operator, Admin]),
            (Call::DeadLetterReprocess, &[Operator, Admin]),
            (Call::TopicCreate, &[Admin]),
            (Call::SecretRead, &[Admin]),
            (Call::KeyCreate, &[Admin]),
            (Call::AuditRead, &[Admin]),
            (Call::SessionStart, &[Producer, Consumer, Admin]),
        ] {
            let have: Vec<Role> = Role::ALL.iter().copied().filter(|role| role.may(call)).collect();
            assert_eq!(have, roles, "{}", call.as_str());
        }
    }

    #[test]
    fn what_changes_something_is_audited() {
        for call in Call::ALL {
            let changes = ["create", "update", "delete", "edit", "discard", "rotate", "revoke", "rekey", "define", "erase", "clear"];
            let verb = call.as_str().split('.').nth(1).unwrap_or_default();
            assert!(!changes.contains(&verb) || call.is_audited(), "{}", call.as_str());
        }
    }

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
        ];
        let mut missing = Vec::new();
        for file in files {
            let text = source(file);
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for part in text.split("    pub async fn ").skip(1) {
                let name = part.split(['(', '<']).next().unwrap_or_default();
                let body = part.split("\n    }\n").next().unwrap_or_default();
                if !body.contains("Call::") && !body.contains("self.catalog().") && !EXEMPT.contains(&name) {
                    missing.push(format!("{file}: {name}"));
                }
            }
        }
        assert!(missing.is_empty(), "no permission is asked for in {missing:?}");
    }
}
