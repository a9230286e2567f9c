//! Exit codes: one table from every error code to what a script sees.

use trunkline::Code;

/// Failed in a way that no other code names.
pub const FAILED: u8 = 1;
/// The command line, a file or a payload is wrong.
pub const USAGE: u8 = 2;
/// There is no such thing.
pub const NOT_FOUND: u8 = 3;
/// It is there already, in use, or contradicts what is there.
pub const CONFLICT: u8 = 4;
/// The data directory cannot be used.
pub const STORE: u8 = 5;
/// The broker cannot be reached or did not confirm in time.
pub const BROKER: u8 = 6;
/// The provider cannot keep what was asked for.
pub const UNSUPPORTED: u8 = 7;
/// Ended by Ctrl-C before it was done.
pub const INTERRUPTED: u8 = 130;

/// As `trunkline --help` shows it.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong usage, input, config or payload
    3  not found
    4  exists already, in use, or in conflict with what is there
    5  the data directory cannot be used
    6  the broker cannot be reached, or did not confirm in time
    7  the provider does not support it
  130  interrupted (a consumer that drained after Ctrl-C ends with 0)";

const TABLE: &[(Code, u8)] = &[
    (Code::InputInvalid, USAGE),
    (Code::AccessDenied, FAILED),
    (Code::ProductNotFound, NOT_FOUND),
    (Code::EventInvalid, USAGE),
    (Code::BrokerNotFound, NOT_FOUND),
    (Code::BrokerEnvNotFound, NOT_FOUND),
    (Code::BrokerExists, CONFLICT),
    (Code::TopicNotFound, NOT_FOUND),
    (Code::TopicExists, CONFLICT),
    (Code::GroupNotFound, NOT_FOUND),
    (Code::AlreadyExists, CONFLICT),
    (Code::InUse, CONFLICT),
    (Code::ConfigInvalid, USAGE),
    (Code::SessionInvalid, FAILED),
    (Code::SessionNotFound, NOT_FOUND),
    (Code::SecretNotFound, NOT_FOUND),
    (Code::CacheNotFound, NOT_FOUND),
    (Code::ScheduleNotFound, NOT_FOUND),
    (Code::JobNotFound, NOT_FOUND),
    (Code::MessageNotFound, NOT_FOUND),
    (Code::AlreadyReplayed, CONFLICT),
    (Code::PayloadInvalid, USAGE),
    (Code::PayloadTooLarge, USAGE),
    (Code::IdempotencyConflict, CONFLICT),
    (Code::IdempotencyInProgress, CONFLICT),
    (Code::CapabilityUnsupported, UNSUPPORTED),
    (Code::ConnectionFailed, BROKER),
    (Code::AuthenticationFailed, BROKER),
    (Code::PublishFailed, BROKER),
    (Code::SubscribeFailed, BROKER),
    (Code::StoreFailed, STORE),
    (Code::Timeout, BROKER),
    (Code::Closed, FAILED),
];

/// The exit code of an error code.
pub fn status(code: Code) -> u8 {
    TABLE.iter().find(|(of, _)| *of == code).map_or(FAILED, |(_, status)| *status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_the_table_once() {
        for code in Code::ALL {
            assert_eq!(TABLE.iter().filter(|(of, _)| of == code).count(), 1, "{code}");
        }
        assert_eq!(TABLE.len(), Code::ALL.len());
    }

    #[test]
    fn the_help_names_every_status() {
        for status in TABLE.iter().map(|(_, status)| *status).chain([0, FAILED, INTERRUPTED]) {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{status} "))), "{status}");
        }
    }
}
