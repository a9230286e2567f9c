//! Leases: who is a member of a group, and who owns which shard.
//!
//! Both are single words in the group's page, changed by compare-and-swap, so that no process that is stopped can hold
//! the others up. A member's word is its id and when its lease ends; a shard's word is its epoch and its owner. An owner
//! counts as long as its member's lease does; who finds it ended may take the shard, and the epoch tells them apart.

use std::sync::atomic::Ordering::SeqCst;

use super::control::{GroupPage, MEMBERS};

const ID_BITS: u32 = 22;
const TAG_BITS: u32 = 12;
const SLOT_BITS: u32 = 10;
const DEAD: u64 = (1 << SLOT_BITS) - 1;

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// One member as it stands in the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    slot: usize,
    word: u64,
}

/// Who owns a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody; it was given back.
    Free,
    /// Nobody; its last owner died.
    Dead,
    /// The member in this slot with this tag.
    Member(usize, u64),
}

/// A shard's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ownership {
    pub(super) epoch: u64,
    pub(super) owner: Owner,
}

impl Ownership {
    pub(super) fn pack(self) -> u64 {
        let (slot, tag) = match self.owner {
            Owner::Free => (0, 0),
            Owner::Dead => (DEAD, 0),
            Owner::Member(slot, tag) => (slot as u64 + 1, tag),
        };
        self.epoch << (SLOT_BITS + TAG_BITS) | slot << TAG_BITS | tag
    }

    pub(super) fn unpack(word: u64) -> Self {
        let owner = match word >> TAG_BITS & mask(SLOT_BITS) {
            0 => Owner::Free,
            DEAD => Owner::Dead,
            slot => Owner::Member(usize::try_from(slot - 1).unwrap_or(usize::MAX), word & mask(TAG_BITS)),
        };
        Ownership { epoch: word >> (SLOT_BITS + TAG_BITS), owner }
    }
}

impl Member {
    /// Enters the group; `None` if it is full.
    pub(super) fn join(page: &GroupPage, now: u64, lease: u64) -> Option<Self> {
        let id = rand::random_range(1..=mask(ID_BITS));
        let word = (now + lease) << ID_BITS | id;
        let slot = (0..MEMBERS).find(|slot| {
            // First the mark, so that nobody overlooks the member.
            page.slots().fetch_max(*slot as u64 + 1, SeqCst);
            page.member(*slot).compare_exchange(0, word, SeqCst, SeqCst).is_ok()
        })?;
        Some(Member { slot, word })
    }

    /// Renews the lease; `false` if the member was put out.
    pub(super) fn renew(&mut self, page: &GroupPage, now: u64, lease: u64) -> bool {
        let word = (now + lease) << ID_BITS | self.word & mask(ID_BITS);
        let renewed = page.member(self.slot).compare_exchange(self.word, word, SeqCst, SeqCst).is_ok();
        self.word = word;
        renewed
    }

    /// Leaves the group. Its shards must have been given back.
    pub(super) fn leave(self, page: &GroupPage) {
        let _ = page.member(self.slot).compare_exchange(self.word, 0, SeqCst, SeqCst);
    }

    pub(super) fn owner(self) -> Owner {
        Owner::Member(self.slot, self.word & mask(TAG_BITS))
    }

    /// How many shards this member should own, of all that are alive: evenly, the first ones one more.
    pub(super) fn quota(self, page: &GroupPage, now: u64) -> usize {
        let alive = page.used().filter(|slot| *slot == self.slot || alive(page.member(*slot).load(SeqCst), now));
        let (mut members, mut rank) = (0, 0);
        for slot in alive {
            if slot < self.slot {
                rank += 1;
            }
            members += 1;
        }
        let shards = page.shards() as usize;
        shards / members + usize::from(rank < shards % members)
    }
}

fn alive(word: u64, now: u64) -> bool {
    word >> ID_BITS > now
}

/// Whether somebody owns the shard and is alive.
pub(super) fn owned(page: &GroupPage, shard: u32, now: u64) -> bool {
    match Ownership::unpack(page.shard(shard).owner().load(SeqCst)).owner {
        Owner::Member(slot, _) => slot < MEMBERS && alive(page.member(slot).load(SeqCst), now),
        Owner::Free | Owner::Dead => false,
    }
}

/// Puts out members whose lease ended: first frees their shards, then their slot, so that who gets the slot next is
/// never taken for the owner. `true` if there was one.
pub(super) fn evict(page: &GroupPage, now: u64) -> bool {
    let mut evicted = false;
    for slot in page.used() {
        let member = page.member(slot).load(SeqCst);
        if member == 0 || alive(member, now) {
            continue;
        }
        for shard in 0..page.shards() {
            let word = page.shard(shard).owner();
            let seen = word.load(SeqCst);
            let Ownership { epoch, owner } = Ownership::unpack(seen);
            if owner == Owner::Member(slot, member & mask(TAG_BITS)) {
                let dead = Ownership { epoch, owner: Owner::Dead }.pack();
                let _ = word.compare_exchange(seen, dead, SeqCst, SeqCst);
            }
        }
        evicted |= page.member(slot).compare_exchange(member, 0, SeqCst, SeqCst).is_ok();
    }
    if evicted {
        page.version().fetch_add(1, SeqCst);
    }
    evicted
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::memory_disk::MemoryDisk;
    use super::*;

    fn page(shards: u32) -> GroupPage {
        GroupPage::open(&MemoryDisk::new(), Path::new("control"), shards).expect("a page in memory")
    }

    #[test]
    fn words_survive_packing() {
        for owner in [Owner::Free, Owner::Dead, Owner::Member(0, 0), Owner::Member(999, 4095)] {
            let ownership = Ownership { epoch: 1_900_000_000_123, owner };
            assert_eq!(Ownership::unpack(ownership.pack()), ownership);
        }
        assert_eq!(Ownership::unpack(0), Ownership { epoch: 0, owner: Owner::Free });
    }

    #[test]
    fn quotas_add_up_to_all_shards() {
        let page = page(8);
        let members: Vec<Member> = (0..3).filter_map(|_| Member::join(&page, 0, 100)).collect();
        let quotas: Vec<usize> = members.iter().map(|member| member.quota(&page, 50)).collect();
        assert_eq!(quotas, [3, 3, 2]);
        assert_eq!(members[2].quota(&page, 100), 8, "the others' leases ended");
    }

    #[test]
    fn who_is_put_out_cannot_renew_and_loses_its_shards() {
        let page = page(1);
        let mut member = Member::join(&page, 0, 100).expect("an empty group");
        page.shard(0).owner().store(Ownership { epoch: 7, owner: member.owner() }.pack(), SeqCst);
        assert!(member.renew(&page, 150, 100), "late, but nobody minded");
        assert!(!evict(&page, 249));
        assert!(evict(&page, 250));
        assert!(!member.renew(&page, 251, 100));
        assert_eq!(Ownership::unpack(page.shard(0).owner().load(SeqCst)), Ownership { epoch: 7, owner: Owner::Dead });
    }
}
