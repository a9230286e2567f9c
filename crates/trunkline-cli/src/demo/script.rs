//! What goes wrong in the demo, and for which messages: decided by the input, so that every run goes the same way.

use std::collections::{BTreeMap, BTreeSet};

use crate::demo::input::Webhook;

/// The kinds whose handling fails at first, where the input has them.
const FLAKY: [&str; 4] = ["issues", "pull_request", "push", "release"];
/// The kind that is never handled, where the input has it.
const CURSED: &str = "deployment_review";
/// How often a flaky message fails before it is handled.
pub(crate) const FAILURES: u32 = 2;

/// What the failing group makes of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    /// Fails [`FAILURES`] times, then succeeds.
    pub(crate) flaky: BTreeSet<String>,
    /// Never succeeds: ends as a dead letter.
    pub(crate) cursed: Option<String>,
}

impl Script {
    /// The script for an input: the known kinds, else its commonest kind and its rarest. An input of one kind all succeeds.
    pub(crate) fn of(webhooks: &[Webhook]) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for webhook in webhooks {
            *counts.entry(&webhook.kind).or_default() += 1;
        }
        let mut kinds: Vec<&str> = counts.keys().copied().collect();
        kinds.sort_by_key(|kind| counts[kind]);
        let rarest = kinds.first().copied().filter(|_| kinds.len() > 1);
        let cursed = if counts.contains_key(CURSED) && kinds.len() > 1 { Some(CURSED) } else { rarest };
        let mut flaky: BTreeSet<String> =
            FLAKY.iter().filter(|kind| counts.contains_key(*kind) && cursed != Some(kind)).map(ToString::to_string).collect();
        if flaky.is_empty() {
            flaky.extend(kinds.last().filter(|kind| cursed != Some(kind) && kinds.len() > 1).map(ToString::to_string));
        }
        Script { flaky, cursed: cursed.map(str::to_owned) }
    }

    /// What the handler says at its attempt number `attempt` (from 1).
    pub(crate) fn play(&self, kind: &str, attempt: u32) -> Result<(), String> {
        if self.cursed.as_deref() == Some(kind) {
            return Err(format!("there is no price for a {kind}"));
        }
        if self.flaky.contains(kind) && attempt <= FAILURES {
            return Err("the ledger is locked, try again".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::input::load;

    fn of(kinds: &[&str]) -> Script {
        let webhooks: Vec<_> =
            kinds.iter().map(|kind| Webhook { kind: (*kind).to_owned(), key: String::new(), body: bytes::Bytes::new() }).collect();
        Script::of(&webhooks)
    }

    #[test]
    fn the_built_in_input_has_its_parts() {
        let script = Script::of(&load(None).expect("built in"));
        assert_eq!(script.flaky.iter().collect::<Vec<_>>(), ["issues", "pull_request", "push", "release"]);
        assert_eq!(script.cursed.as_deref(), Some("deployment_review"));
    }

    #[test]
    fn any_input_gets_a_part_for_each() {
        let script = of(&["a", "b", "b", "c", "c", "c"]);
        assert_eq!((script.flaky.first().map(String::as_str), script.cursed.as_deref()), (Some("c"), Some("a")));
        assert_eq!(of(&["a", "a"]), Script { flaky: BTreeSet::new(), cursed: None });
        assert_eq!(of(&["push", "watch"]).cursed.as_deref(), Some("push"), "a kind has one part only");
        assert!(of(&["push", "watch"]).flaky.contains("watch"));
    }

    #[test]
    fn flaky_ends_well_and_cursed_never_does() {
        let script = of(&["push", "push", "deployment_review"]);
        assert!(script.play("push", FAILURES).is_err() && script.play("push", FAILURES + 1).is_ok());
        assert!(script.play("deployment_review", 99).is_err());
        assert!(script.play("watch", 1).is_ok());
    }
}
