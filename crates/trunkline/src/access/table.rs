//! The one table: which call needs which permission, and which role has it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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

    pub(super) fn mask(self) -> u32 {
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

pub(super) const fn bit(permission: Permission) -> u32 {
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
}
