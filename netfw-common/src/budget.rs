//! How many flows a container may begin that come to nothing.
//!
//! Embryos make room for each other: a container that sends SYNs to nowhere as fast as it can would push out
//! those of the others before their answers come. So each may begin so many in a tick. One is given back by a
//! flow that is no burden any more: a connection that is established, a query that is answered. One that is
//! refused is not given back: its embryo stays for a while.

/// Map `BUDGETS`: LRU hash, ifindex of the endpoint's host side → this. One word, which CPUs read and write whole:
/// the tick that it is about (upper half), and how many were begun in it and not given back. Two CPUs at once may
/// count one: it is a limit, and no account.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Budget(u64);

impl Budget {
    #[inline(always)]
    const fn new(tick: u32, used: u32) -> Self {
        Self((tick as u64) << 32 | used as u64)
    }

    #[inline(always)]
    const fn used(self) -> u32 {
        self.0 as u32
    }

    /// One that was begun in the tick `now`, and no other.
    #[inline(always)]
    pub const fn first(now: u32) -> Self {
        Self::new(now, 1)
    }

    /// Notes another flow; None where there are `most` already.
    #[inline(always)]
    pub fn begin(self, now: u32, most: u32) -> Option<Self> {
        let tick = (self.0 >> 32) as u32;
        let used = if tick == now { self.used() } else { 0 };
        (used < most).then_some(Self::new(now, used + 1))
    }

    /// Gives one back.
    #[inline(always)]
    pub fn give_back(self) -> Self {
        Self(self.0 - u64::from(self.used() != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_so_many_and_some_are_given_back() {
        let mut budget = Budget::first(5);
        for _ in 0..2 {
            budget = budget.begin(5, 3).unwrap();
        }
        assert_eq!(budget.begin(5, 3), None);
        budget = budget.give_back().begin(5, 3).unwrap();
        assert_eq!(budget.begin(5, 3), None);
        budget = budget.begin(6, 3).unwrap();
        assert_eq!(budget, Budget::first(6));
        assert_eq!(budget.give_back().give_back(), Budget::new(6, 0));
    }
}
