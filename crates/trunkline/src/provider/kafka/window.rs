//! What of a shard is settled: the offset to commit is the lowest one that is not, and what is settled beyond it is kept
//! within a bound that fits beside the committed offset.

use std::collections::VecDeque;

/// Offsets from the lowest unsettled one on that may be handed out. Beyond it the shard waits for that one.
pub(super) const WIDTH: usize = 10_000;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// The lowest offset that is not settled: what is committed.
    base: i64,
    /// From `base` on, what was received or is known: settled (or a gap in the log), or not.
    settled: VecDeque<bool>,
    /// Of these, so many were received by this owner; the rest was settled by an earlier one.
    received: usize,
}

/// What is to be done with a message that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receipt {
    /// Hand it out.
    New,
    /// It was settled before, or is in hand: pass over it.
    Known,
    /// It lies too far beyond the lowest unsettled one: keep it until that is settled.
    Far,
}

impl Window {
    /// Starts at `base`, where `settled` are settled already, from `base` on.
    pub(super) fn new(base: i64, settled: &[bool]) -> Self {
        let mut window = Window { base, settled: settled.iter().copied().collect(), received: 0 };
        while window.settled.back() == Some(&false) {
            window.settled.pop_back();
        }
        window
    }

    /// The offset to commit.
    pub(super) fn base(&self) -> i64 {
        self.base
    }

    /// Takes account of a message that came.
    pub(super) fn receive(&mut self, offset: i64) -> Receipt {
        let next = self.base + self.received as i64;
        let Ok(ahead) = usize::try_from(offset - next) else { return Receipt::Known };
        let at = self.received + ahead;
        if self.received == 0 {
            // Nothing before it is in hand: what lies between was settled, or is not in the log any more.
            self.settled.drain(..ahead.min(self.settled.len()));
            self.base = offset;
        } else if at >= WIDTH {
            return Receipt::Far;
        } else {
            // Offsets that were passed over are gaps: compacted away, or not messages.
            self.grow(at);
            self.settled.iter_mut().skip(self.received).take(ahead).for_each(|settled| *settled = true);
            self.received = at;
        }
        self.grow(self.received + 1);
        self.received += 1;
        if self.settled[self.received - 1] {
            self.advance();
            return Receipt::Known;
        }
        Receipt::New
    }

    fn grow(&mut self, to: usize) {
        if self.settled.len() < to {
            self.settled.resize(to, false);
        }
    }

    /// Settles an offset that was handed out; whether it was not before.
    pub(super) fn settle(&mut self, offset: i64) -> bool {
        let slot = usize::try_from(offset - self.base).ok().and_then(|at| self.settled.get_mut(at));
        let new = slot.is_some_and(|settled| !std::mem::replace(settled, true));
        self.advance();
        new
    }

    fn advance(&mut self) {
        while self.received > 0 && self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.received -= 1;
            self.base += 1;
        }
    }

    /// Whether nothing is settled beyond the offset to commit.
    #[cfg(test)]
    fn is_plain(&self) -> bool {
        !self.settled.contains(&true)
    }

    /// What is settled from [`Window::base`] on.
    pub(super) fn settled(&self) -> Vec<bool> {
        if self.settled.iter().any(|settled| *settled) { self.settled.iter().copied().collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_unsettled_is_committed() {
        let mut window = Window::new(5, &[]);
        assert_eq!([5, 6, 8, 9].map(|offset| window.receive(offset)), [Receipt::New; 4]);
        assert!(window.settle(6) && window.settle(9) && !window.settle(9));
        assert_eq!((window.base(), window.settled()), (5, vec![false, true, true, false, true]));
        assert!(window.settle(5));
        assert_eq!(window.base(), 8, "what is settled and the gap behind it are passed");
        assert!(window.settle(8));
        assert_eq!((window.base(), window.is_plain()), (10, true));
    }

    #[test]
    fn what_an_earlier_owner_settled_is_passed_over() {
        let mut window = Window::new(5, &[false, true, false, true, true, false]);
        assert_eq!([5, 6, 7, 8, 9, 10].map(|offset| window.receive(offset) == Receipt::New), [true, false, true, false, false, true]);
        assert!(window.settle(5));
        assert_eq!(window.base(), 7);
        assert!(window.settle(7));
        assert_eq!(window.base(), 10);
    }

    #[test]
    fn what_an_earlier_owner_settled_is_kept_until_it_comes() {
        let window = Window::new(5, &[false, true]);
        assert_eq!((window.base(), window.settled()), (5, vec![false, true]));
        let mut window = window;
        assert_eq!(window.receive(5), Receipt::New);
        assert!(window.settle(5));
        assert_eq!((window.base(), window.settled()), (6, vec![true]), "the next one has not come yet");
        assert_eq!(window.receive(6), Receipt::Known);
        assert_eq!(window.base(), 7);
    }

    #[test]
    fn a_log_that_starts_later_moves_the_start() {
        let mut window = Window::new(0, &[]);
        assert_eq!(window.receive(1_000_000), Receipt::New);
        assert_eq!(window.base(), 1_000_000);
        assert_eq!(window.receive(1_000_000 + WIDTH as i64), Receipt::Far);
        assert!(window.settle(1_000_000));
        assert_eq!(window.receive(1_000_000 + WIDTH as i64), Receipt::New);
        assert_eq!(window.receive(7), Receipt::Known);
    }

    proptest! {
        /// Whatever is settled in whatever order, no unsettled offset is ever below the committed one, and a new owner is
        /// handed exactly what is not settled.
        #[test]
        fn nothing_unsettled_is_passed(
            gaps in prop::collection::vec(0_i64..4, 1..200),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let mut offset = 0;
            let offsets: Vec<i64> = gaps.iter().map(|gap| { offset += gap + 1; offset }).collect();
            let mut window = Window::new(0, &[]);
            for offset in &offsets {
                prop_assert_eq!(window.receive(*offset), Receipt::New);
            }
            let mut left = offsets.clone();
            for pick in order {
                if left.is_empty() { break; }
                let settled = left.remove(pick.index(left.len()));
                prop_assert!(window.settle(settled));
                prop_assert!(left.first().is_none_or(|lowest| window.base() <= *lowest));
            }
            let mut next = Window::new(window.base(), &window.settled());
            let again: Vec<i64> = offsets.iter().copied()
                .filter(|offset| *offset >= window.base() && next.receive(*offset) == Receipt::New).collect();
            prop_assert_eq!(again, left);
        }
    }
}
