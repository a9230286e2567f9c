//! Who owns which shard: a small ledger per group that all members read, and write one after the other.
//!
//! Each write is only taken if the writer has seen the last one, so all see the same sequence of ledgers. A member only
//! changes what is its own: it beats, takes free shards that fall to it, says for whom it gives one up, gives it up. What
//! a member that no longer beats owned is free.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Each member with its last beat.
    #[serde(default)]
    pub(super) members: BTreeMap<String, u64>,
    #[serde(default)]
    pub(super) shards: Vec<Holding>,
}

/// One shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holding {
    /// Nobody if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) owner: String,
    /// The number of the newest ownership.
    pub(super) epoch: u64,
    /// For whom the owner gives it up.
    #[serde(default, rename = "for", skip_serializing_if = "String::is_empty")]
    pub(super) wish: String,
}

impl Ledger {
    /// Makes room for so many shards. What is more was of an earlier topic of the name.
    pub(super) fn resize(&mut self, shards: u32) {
        self.shards.resize_with(shards as usize, Holding::default);
    }

    pub(super) fn beat(&mut self, me: &str) {
        *self.members.entry(me.to_owned()).or_default() += 1;
    }

    /// Takes members out; what they owned is free.
    pub(super) fn bury(&mut self, dead: &[String]) {
        for gone in dead {
            self.members.remove(gone);
        }
        for shard in &mut self.shards {
            if !self.members.contains_key(&shard.owner) {
                (shard.owner, shard.wish) = (String::new(), String::new());
            }
        }
    }

    /// Gives shards up.
    pub(super) fn give_up(&mut self, me: &str, shards: &[u32]) {
        for shard in shards {
            if let Some(shard) = self.shards.get_mut(*shard as usize).filter(|shard| shard.owner == me) {
                (shard.owner, shard.wish) = (String::new(), String::new());
            }
        }
    }

    /// What falls to me is taken, with an epoch above all before; what falls to others is promised to them.
    pub(super) fn settle(&mut self, me: &str, epoch: u64) {
        let targets = self.targets();
        for (shard, target) in self.shards.iter_mut().zip(targets) {
            if shard.owner.is_empty() && target == me {
                shard.owner = me.to_owned();
                shard.epoch = epoch.max(shard.epoch + 1);
            } else if shard.owner == me && shard.wish.is_empty() && target != me {
                shard.wish = target;
            }
        }
    }

    /// Who should own each shard: everybody the same number, give or take one, moving as few as can be.
    fn targets(&self) -> Vec<String> {
        let live = |name: &String| self.members.contains_key(name);
        // What is promised counts for whom it is promised to.
        let held: Vec<Option<&String>> =
            self.shards.iter().map(|shard| [&shard.wish, &shard.owner].into_iter().find(|name| live(name))).collect();
        let mut members: Vec<(usize, &String)> =
            self.members.keys().map(|name| (held.iter().filter(|holder| **holder == Some(name)).count(), name)).collect();
        if members.is_empty() {
            return vec![String::new(); self.shards.len()];
        }
        // Who has more keeps more, so that nothing moves without need.
        members.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let (each, more) = (self.shards.len() / members.len(), self.shards.len() % members.len());
        let mut quota: BTreeMap<&String, usize> =
            members.iter().enumerate().map(|(at, (_, name))| (*name, each + usize::from(at < more))).collect();
        let mut targets: Vec<Option<&String>> = vec![None; self.shards.len()];
        for (target, holder) in targets.iter_mut().zip(&held) {
            if let Some((name, left)) = holder.and_then(|name| quota.get_mut(name).map(|left| (name, left)))
                && *left > 0
            {
                *left -= 1;
                *target = Some(name);
            }
        }
        let mut lacking = quota.into_iter().flat_map(|(name, left)| std::iter::repeat_n(name, left));
        targets.into_iter().map(|target| target.or_else(|| lacking.next()).cloned().unwrap_or_default()).collect()
    }

    /// The shards of a member.
    #[cfg(test)]
    fn of(&self, me: &str) -> Vec<usize> {
        self.shards.iter().enumerate().filter(|(_, shard)| shard.owner == me).map(|(at, _)| at).collect()
    }

    /// All who stand in it.
    #[cfg(test)]
    fn names(&self) -> Vec<String> {
        self.members.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ledger: &mut Ledger, epoch: u64) {
        for name in ledger.names() {
            ledger.settle(&name, epoch);
        }
    }

    #[test]
    fn shards_are_shared_evenly_and_move_no_more_than_they_must() {
        let mut ledger = Ledger::default();
        ledger.resize(4);
        ledger.beat("a");
        all(&mut ledger, 7);
        assert_eq!(ledger.of("a"), [0, 1, 2, 3]);
        assert!(ledger.shards.iter().all(|shard| shard.epoch == 7));

        ledger.beat("b");
        all(&mut ledger, 8);
        let promised: Vec<_> = ledger.shards.iter().map(|shard| shard.wish.as_str()).collect();
        assert_eq!(promised, ["", "", "b", "b"]);
        assert_eq!(ledger.of("b"), [0_usize; 0], "not before it is given up");
        ledger.give_up("a", &[2]);
        all(&mut ledger, 9);
        assert_eq!((ledger.of("a"), ledger.of("b"), ledger.shards[2].epoch), (vec![0, 1, 3], vec![2], 9));

        ledger.bury(&["a".into()]);
        all(&mut ledger, 8);
        assert_eq!(ledger.of("b"), [0, 1, 2, 3]);
        assert_eq!(ledger.shards[2].epoch, 9, "who keeps a shard keeps its epoch");
        assert!([0, 1, 3].into_iter().all(|shard| ledger.shards[shard].epoch == 8));
    }

    #[test]
    fn epochs_rise_even_if_the_number_that_is_offered_does_not() {
        let mut ledger = Ledger::default();
        ledger.resize(1);
        ledger.beat("a");
        ledger.settle("a", 5);
        ledger.give_up("a", &[0]);
        ledger.settle("a", 5);
        assert_eq!(ledger.shards[0].epoch, 6);
    }

    #[test]
    fn more_members_than_shards() {
        let mut ledger = Ledger::default();
        ledger.resize(2);
        for name in ["a", "b", "c"] {
            ledger.beat(name);
        }
        all(&mut ledger, 1);
        let owned = [ledger.of("a").len(), ledger.of("b").len(), ledger.of("c").len()];
        assert_eq!(owned.iter().sum::<usize>(), 2);
        assert!(owned.iter().all(|n| *n <= 1));
        let before = ledger.clone();
        all(&mut ledger, 2);
        assert_eq!(ledger, before, "nothing moves where everybody has what is due");
    }

    #[test]
    fn a_promise_to_one_that_died_is_kept_to_another() {
        let mut ledger = Ledger::default();
        ledger.resize(2);
        ledger.beat("a");
        all(&mut ledger, 1);
        ledger.beat("b");
        all(&mut ledger, 2);
        assert_eq!(ledger.shards[1].wish, "b");
        ledger.bury(&["b".into()]);
        ledger.beat("c");
        ledger.give_up("a", &[1]);
        all(&mut ledger, 3);
        assert_eq!((ledger.of("a"), ledger.of("c")), (vec![0], vec![1]));
    }

    #[test]
    fn the_ledger_is_small_and_stays_readable() {
        let mut ledger = Ledger::default();
        ledger.resize(2);
        ledger.beat("a");
        ledger.settle("a", 3);
        ledger.give_up("a", &[1]);
        let json = serde_json::to_string(&ledger).expect("json");
        assert_eq!(json, r#"{"members":{"a":1},"shards":[{"owner":"a","epoch":3},{"epoch":3}]}"#);
        assert_eq!(serde_json::from_str::<Ledger>(&json).expect("read"), ledger);
    }
}
