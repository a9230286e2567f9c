//! Exit codes: one table from every error code to what a script sees.

use trunkline::{Code, Error};

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
/// The demo found a promise that was not kept.
pub const DEMO: u8 = 8;
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
    8  `demo` found a promise that was not kept
  130  interrupted (a consumer that drained after Ctrl-C ends with 0)";

/// The reason of an error that says that the user ended the command.
pub const INTERRUPTED_REASON: &str = "interrupted";
/// The reason of an error that says that the demo's check failed.
pub const DEMO_REASON: &str = "demo_failed";

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

/// What every command that fails ends with.
pub fn of(error: &Error) -> u8 {
    match error.detail_str("reason") {
        Some(INTERRUPTED_REASON) => INTERRUPTED,
        Some(DEMO_REASON) => DEMO,
        _ => status(error.code()),
    }
}

/// The exit code of an error code.
fn status(code: Code) -> u8 {
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
        for status in TABLE.iter().map(|(_, status)| *status).chain([0, FAILED, DEMO, INTERRUPTED]) {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{status} "))), "{status}");
        }
    }

    #[test]
    fn reasons_come_before_codes() {
        let demo = Error::store("not kept").reason(DEMO_REASON);
        assert_eq!((of(&demo), of(&Error::store("damaged").reason("damaged"))), (DEMO, STORE));
        assert_eq!(of(&crate::context::interrupted("stopped")), INTERRUPTED);
    }

    /// Every row of the table in `docs/cli.md`: the exit code, and the error codes that end with it.
    fn documented() -> Vec<(String, Vec<String>)> {
        let page = include_str!("../../../docs/cli.md");
        let table = page.split_once("## Exit codes\n").expect("a section").1;
        let rows = table.lines().skip_while(|line| !line.starts_with("| 0 |")).take_while(|line| line.starts_with('|'));
        let code = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>())
            .map(|cells| (cells[0].to_owned(), code(cells.get(2).copied().unwrap_or_default())))
            .collect()
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let rows = documented();
        let mut statuses: Vec<u8> = TABLE.iter().map(|(_, status)| *status).chain([0, FAILED, DEMO, INTERRUPTED]).collect();
        statuses.sort_unstable();
        statuses.dedup();
        let named: Vec<&str> = rows.iter().map(|(status, _)| status.as_str()).collect();
        let known: Vec<String> = statuses.iter().map(ToString::to_string).collect();
        // SIGTERM that quits at once is the shell's number for it.
        assert_eq!(named, known.iter().map(String::as_str).chain(["143"]).collect::<Vec<_>>());
        for (status, mut codes) in rows {
            let mut ours: Vec<String> =
                TABLE.iter().filter(|(_, of)| of.to_string() == status).map(|(code, _)| code.as_str().to_owned()).collect();
            ours.sort_unstable();
            codes.sort_unstable();
            assert_eq!(codes, ours, "exit code {status}");
        }
    }
}
