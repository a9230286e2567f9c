//! Whether the demo kept its promises: nothing lost, nothing out of order within a key, enough members at work.
//!
//! It judges by [`Evidence`] alone, so that a broker that loses or swaps messages cannot talk its way out.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;
use trunkline::MessageId;

use crate::demo::evidence::{Confirmed, Ended, Evidence, Run};

/// How many faults of one check are told one by one.
const TOLD: usize = 5;

/// What one promise came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// The promise.
    pub(crate) promise: &'static str,
    /// Whether it was kept.
    pub(crate) kept: bool,
    /// What was looked at, in numbers.
    pub(crate) seen: String,
    /// What was wrong: the first few, and how many more.
    pub(crate) faults: Vec<String>,
}

impl Check {
    fn new(promise: &'static str, seen: String, faults: &[Fault]) -> Self {
        let more = faults.len().saturating_sub(TOLD);
        let mut told: Vec<String> = faults.iter().take(TOLD).map(ToString::to_string).collect();
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        Check { promise, kept: faults.is_empty(), seen, faults: told }
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Lost { group: &'static str, message: Confirmed },
    Both { group: &'static str, id: MessageId },
    Unknown { group: &'static str, id: MessageId },
    Swapped { group: &'static str, key: String, later: u64, earlier: u64 },
    Together { group: &'static str, key: String, first: u64, second: u64 },
    Fence { group: &'static str, key: String, sequence: u64 },
    Members { worked: usize, least: usize },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Lost { group, message } => {
                write!(
                    f,
                    "{group}: {} (number {} of {}) was confirmed, but neither handled nor buried",
                    message.id, message.sequence, message.key
                )
            }
            Fault::Both { group, id } => write!(f, "{group}: {id} was handled, and buried all the same"),
            Fault::Unknown { group, id } => write!(f, "{group}: {id} was handled, but its produce was never confirmed"),
            Fault::Swapped { group, key, later, earlier } => write!(f, "{group}: number {earlier} of {key} ran after number {later}"),
            Fault::Together { group, key, first, second } => {
                write!(f, "{group}: numbers {first} and {second} of {key} ran at the same time")
            }
            Fault::Fence { group, key, sequence } => {
                write!(f, "{group}: the fence of number {sequence} of {key} is lower than one before it")
            }
            Fault::Members { worked, least } => write!(f, "{worked} members handled something; at least {least} should have"),
        }
    }
}

/// All checks, for these groups.
pub(crate) fn check(evidence: &Evidence, groups: &[&'static str], least_members: usize) -> Vec<Check> {
    let by_id: HashMap<MessageId, &Confirmed> = evidence.confirmed.iter().map(|message| (message.id, message)).collect();
    vec![nothing_lost(evidence, groups, &by_id), in_order(evidence, &by_id), members(evidence, least_members)]
}

/// Each confirmed message is done or dead in each group, not both, and no group saw a message that nobody sent.
fn nothing_lost(evidence: &Evidence, groups: &[&'static str], by_id: &HashMap<MessageId, &Confirmed>) -> Check {
    let mut faults = Vec::new();
    let (mut handled, mut buried) = (0, 0);
    for group in groups {
        let runs = || evidence.runs.iter().filter(|run| run.group == *group);
        let done: HashSet<MessageId> = runs().filter(|run| run.how == Ended::Done).map(|run| run.id).collect();
        let dead: HashSet<MessageId> = evidence.dead.get(group).into_iter().flatten().copied().collect();
        handled += done.len();
        buried += dead.len();
        let lost = evidence.confirmed.iter().filter(|message| !done.contains(&message.id) && !dead.contains(&message.id));
        faults.extend(lost.map(|message| Fault::Lost { group, message: message.clone() }));
        faults.extend(done.intersection(&dead).map(|id| Fault::Both { group, id: *id }));
        let strangers: HashSet<MessageId> = runs().map(|run| run.id).filter(|id| !by_id.contains_key(id)).collect();
        faults.extend(strangers.into_iter().map(|id| Fault::Unknown { group, id }));
    }
    let (confirmed, groups) = (evidence.confirmed.len(), groups.len());
    Check::new("nothing was lost", format!("{confirmed} confirmed, {groups} groups: {handled} handled + {buried} dead letters"), &faults)
}

/// In each group the messages of a key ran one after the other, in the order of their confirms, whichever member ran them.
///
/// A second hand-over of a message that was done already is allowed: the promise is at least once.
fn in_order(evidence: &Evidence, by_id: &HashMap<MessageId, &Confirmed>) -> Check {
    let mut lines: HashMap<(&'static str, &str), Vec<(&Confirmed, &Run)>> = HashMap::new();
    for run in &evidence.runs {
        if let Some(message) = by_id.get(&run.id) {
            lines.entry((run.group, &message.key)).or_default().push((message, run));
        }
    }
    let mut faults = Vec::new();
    for ((group, key), line) in &mut lines {
        line.sort_by_key(|(_, run)| run.began);
        follow(group, key, line, &mut faults);
    }
    let (keys, runs) = (lines.len(), lines.values().map(Vec::len).sum::<usize>());
    Check::new("nothing came out of order within a key", format!("{runs} runs along {keys} lines of one key in one group"), &faults)
}

/// Follows the runs of one key in one group, in the order they began.
fn follow(group: &'static str, key: &str, line: &[(&Confirmed, &Run)], faults: &mut Vec<Fault>) {
    let mut done = HashSet::new();
    let mut furthest: Option<(&Confirmed, &Run)> = None;
    let mut before: Option<(&Confirmed, &Run)> = None;
    for (message, run) in line {
        if let Some((first, previous)) = before
            && run.began < previous.ended
        {
            faults.push(Fault::Together { group, key: key.to_owned(), first: first.sequence, second: message.sequence });
        }
        before = Some((message, run));
        if done.contains(&message.id) {
            continue;
        }
        if let Some((ahead, fenced)) = furthest {
            if message.sequence < ahead.sequence {
                faults.push(Fault::Swapped { group, key: key.to_owned(), later: ahead.sequence, earlier: message.sequence });
                continue;
            }
            if run.fence < fenced.fence {
                faults.push(Fault::Fence { group, key: key.to_owned(), sequence: message.sequence });
            }
        }
        furthest = Some((message, run));
        if run.how == Ended::Done {
            done.insert(message.id);
        }
    }
}

/// Enough members took part.
fn members(evidence: &Evidence, least: usize) -> Check {
    let worked = evidence.runs.iter().map(|run| (run.group, run.member)).collect::<HashSet<_>>().len();
    let faults = if worked < least { vec![Fault::Members { worked, least }] } else { Vec::new() };
    Check::new("the members shared the work", format!("{worked} members handled something"), &faults)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trunkline::consume::handler::Fence;

    use super::*;

    const GROUPS: [&str; 2] = ["billing", "audit"];

    /// Two keys with three messages each, handled in turn by four members; the second of `a` fails once and the last of `b`
    /// dies at `billing`.
    fn sound() -> Evidence {
        let mut evidence = Evidence::default();
        let mut clock = 0..;
        let mut tick = || clock.next().expect("endless");
        for sequence in 0..3 {
            for key in ["a", "b"] {
                evidence.confirmed.push(Confirmed { id: MessageId::now(), key: Arc::from(key), sequence });
            }
        }
        for (place, group) in GROUPS.into_iter().enumerate() {
            for (at, message) in evidence.confirmed.clone().into_iter().enumerate() {
                let dies = group == "billing" && at == 5;
                let ends: &[Ended] = match at {
                    _ if dies => &[Ended::Failed, Ended::Failed],
                    2 => &[Ended::Failed, Ended::Done],
                    _ => &[Ended::Done],
                };
                for how in ends {
                    let fence = Fence { shard: at as u32 % 2, epoch: 1, position: message.sequence };
                    let member = 2 * place + at % 2;
                    evidence.runs.push(Run { group, member, id: message.id, began: tick(), ended: tick(), fence, how: *how });
                }
                if dies {
                    evidence.dead.entry(group).or_default().push(message.id);
                }
            }
        }
        evidence
    }

    fn failed(evidence: &Evidence) -> Vec<&'static str> {
        check(evidence, &GROUPS, 4).into_iter().filter(|check| !check.kept).map(|check| check.promise).collect()
    }

    fn faults(evidence: &Evidence) -> Vec<String> {
        check(evidence, &GROUPS, 4).into_iter().flat_map(|check| check.faults).collect()
    }

    /// The place of a run in the evidence, by group, key and sequence.
    fn at(evidence: &Evidence, group: &str, key: &str, sequence: u64) -> usize {
        let id = evidence.confirmed.iter().find(|m| &*m.key == key && m.sequence == sequence).expect("message").id;
        evidence.runs.iter().position(|run| run.group == group && run.id == id).expect("run")
    }

    #[test]
    fn a_sound_run_passes() {
        let evidence = sound();
        let checks = check(&evidence, &GROUPS, 4);
        assert!(checks.iter().all(|check| check.kept), "{checks:#?}");
        assert_eq!(checks[0].seen, "6 confirmed, 2 groups: 11 handled + 1 dead letters");
        assert_eq!(checks[2].seen, "4 members handled something");
    }

    #[test]
    fn a_lost_message_is_found() {
        let mut evidence = sound();
        let gone = at(&evidence, "audit", "b", 1);
        let id = evidence.runs.remove(gone).id;
        assert_eq!(failed(&evidence), ["nothing was lost"]);
        assert!(faults(&evidence)[0].contains(&id.to_string()), "{:?}", faults(&evidence));
    }

    #[test]
    fn a_failure_without_a_dead_letter_is_a_loss() {
        let mut evidence = sound();
        evidence.dead.clear();
        assert_eq!(failed(&evidence), ["nothing was lost"]);
    }

    #[test]
    fn a_dead_letter_of_the_other_group_does_not_count() {
        let mut evidence = sound();
        let dead = evidence.dead.remove("billing").expect("dead");
        evidence.dead.insert("audit", dead);
        let faults = faults(&evidence);
        assert_eq!(faults.len(), 2, "lost at billing, both at audit: {faults:?}");
    }

    #[test]
    fn a_message_nobody_confirmed_is_found() {
        let mut evidence = sound();
        let stranger = Run { id: MessageId::now(), ..evidence.runs[0].clone() };
        evidence.runs.push(stranger);
        assert_eq!(failed(&evidence), ["nothing was lost"]);
    }

    #[test]
    fn a_swapped_order_is_found() {
        let mut evidence = sound();
        let (first, second) = (at(&evidence, "audit", "b", 0), at(&evidence, "audit", "b", 1));
        let (a, b) = (evidence.runs[first].id, evidence.runs[second].id);
        (evidence.runs[first].id, evidence.runs[second].id) = (b, a);
        assert_eq!(failed(&evidence), ["nothing came out of order within a key"]);
        assert!(faults(&evidence)[0].contains("number 0 of b ran after number 1"), "{:?}", faults(&evidence));
    }

    #[test]
    fn a_retry_that_is_overtaken_is_found() {
        let mut evidence = sound();
        // The second try of number 1 comes after number 2.
        let retry = at(&evidence, "billing", "a", 1) + 1;
        let (began, ended) = (1_000, 1_001);
        (evidence.runs[retry].began, evidence.runs[retry].ended) = (began, ended);
        assert_eq!(failed(&evidence), ["nothing came out of order within a key"]);
    }

    #[test]
    fn two_at_once_on_one_key_are_found() {
        let mut evidence = sound();
        let (first, second) = (at(&evidence, "billing", "b", 0), at(&evidence, "billing", "b", 1));
        evidence.runs[first].ended = evidence.runs[second].began + 1;
        assert!(faults(&evidence)[0].contains("ran at the same time"), "{:?}", faults(&evidence));
    }

    #[test]
    fn a_fence_that_falls_is_found() {
        let mut evidence = sound();
        let last = at(&evidence, "audit", "a", 2);
        evidence.runs[last].fence.epoch = 0;
        assert!(faults(&evidence)[0].contains("fence"), "{:?}", faults(&evidence));
    }

    #[test]
    fn a_second_hand_over_of_what_is_done_is_allowed() {
        let mut evidence = sound();
        let first = at(&evidence, "audit", "a", 0);
        let again = Run { began: 2_000, ended: 2_001, ..evidence.runs[first].clone() };
        evidence.runs.push(again);
        assert_eq!(failed(&evidence), [""; 0]);
    }

    #[test]
    fn too_few_members_are_found() {
        let mut evidence = sound();
        evidence.runs.iter_mut().filter(|run| run.group == "audit").for_each(|run| run.member = 2);
        assert_eq!(failed(&evidence), ["the members shared the work"]);
        assert_eq!(faults(&evidence), ["3 members handled something; at least 4 should have"]);
    }

    #[test]
    fn many_faults_are_told_short() {
        let mut evidence = sound();
        evidence.runs.clear();
        let told = check(&evidence, &GROUPS, 4).swap_remove(0).faults;
        assert_eq!((told.len(), told[5].as_str()), (6, "and 6 more"));
    }
}
