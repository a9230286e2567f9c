//! What the stores do alike: bounds, and how failures are grouped.

use super::LotState;

/// The most bytes of an error that are kept,
pub(super) const ERROR_MAX: usize = 4096;
/// and of its first line, which is indexed.
pub(super) const ERROR_GROUP_MAX: usize = 512;
/// What came to so many ends without an outcome is handed out alone; the index `lot_suspect` says the same.
pub(super) const SUSPECT: u32 = 2;
/// How many results of a job are kept.
pub(super) const RESULTS_MAX: usize = 1000;
/// How long a job is kept after it last moved.
pub(super) const JOB_KEPT_MS: i64 = 30 * 24 * 3600 * 1000;
/// How long a member that went silent is kept.
pub(super) const MEMBER_KEPT_MS: i64 = 24 * 3600 * 1000;
/// Rows that one step of a sweep removes, so that other writers get their turn in between.
pub(super) const SWEEP_ROWS: usize = 5_000;
/// How the headers of an entry are encoded: 1 is [`crate::message::Headers::encode`].
pub(super) const HEADERS_FORMAT: i64 = 1;
/// How long a hand-over is remembered that no outcome was seen of: another host may have handled the message.
pub(super) const HAND_OVER_KEPT: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3_600);

pub(super) const WAITING: i64 = 0;
pub(super) const PUBLISH: i64 = 1;
pub(super) const DEAD: i64 = 2;

/// A state as it is stored.
pub(super) fn number(state: LotState) -> i64 {
    match state {
        LotState::Waiting => WAITING,
        LotState::Publish => PUBLISH,
        LotState::Dead => DEAD,
    }
}

/// `text` up to `max` bytes, at the end of a character.
pub(super) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// What an entry's failures are grouped by: the first line of its error, or its reason.
pub(super) fn error_group<'a>(error: Option<&'a str>, reason: Option<&'a str>) -> Option<&'a str> {
    let line = error.and_then(|error| error.lines().map(str::trim).find(|line| !line.is_empty()));
    line.or(reason).map(|line| cut(line, ERROR_GROUP_MAX))
}

/// Whether a text may be one of the fixed reasons: then rows with that reason match too.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// A time or count as it is stored: numbers beyond 2^63 are cut, which no time and no count reaches.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The time or count of a stored number.
pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
