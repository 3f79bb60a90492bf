//! How many flows a container may begin that nobody answers.
//!
//! Embryos make room for each other: a container that sends SYNs to nowhere as fast as it can would push out
//! those of the others before their answers come. So each may begin so many in a tick; an answer gives one back.
//! What is answered is not limited.

/// Map `BUDGETS`: LRU hash, ifindex of the endpoint's host side → this.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The tick that it is about.
    pub tick: u32,
    /// Flows begun in it and not answered.
    pub used: u32,
}

const _: () = assert!(size_of::<Budget>() == 8);

impl Budget {
    /// Notes another flow; None where there are `most` already. Two CPUs at once may count one.
    #[inline(always)]
    pub fn begin(self, now: u32, most: u32) -> Option<Self> {
        let used = if self.tick == now { self.used } else { 0 };
        (used < most).then_some(Self {
            tick: now,
            used: used + 1,
        })
    }

    /// Notes an answer.
    #[inline(always)]
    pub fn answered(self) -> Self {
        Self {
            used: self.used.saturating_sub(1),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_so_many_and_answers_give_back() {
        let mut budget = Budget::default();
        for _ in 0..3 {
            budget = budget.begin(5, 3).unwrap();
        }
        assert_eq!(budget.begin(5, 3), None);
        budget = budget.answered().begin(5, 3).unwrap();
        assert_eq!(budget.begin(5, 3), None);
        budget = budget.begin(6, 3).unwrap();
        assert_eq!(budget.used, 1);
        assert_eq!(budget.answered().answered().used, 0);
    }
}
