//! Whom one query asks, in turns: pure. Resolvers are numbers here, in the order in which they are asked.

use std::{collections::VecDeque, time::Instant};

/// What one query has asked, and waits for, at a time.
pub const PENDING: usize = 6;

/// The order, and who has not answered yet.
#[derive(Debug)]
pub struct Round {
    /// To be asked, and how often.
    left: VecDeque<(usize, usize)>,
    /// Asked, and when: they have not answered.
    waiting: Vec<(usize, Instant)>,
}

impl Round {
    pub fn new(servers: usize, attempts: usize) -> Self {
        Self {
            left: (0..servers).map(|n| (n, attempts)).collect(),
            waiting: Vec::new(),
        }
    }

    /// While so many asks are under way.
    pub fn may_ask(&self, pending: usize) -> bool {
        !self.left.is_empty() && pending < PENDING
    }

    pub fn is_over(&self) -> bool {
        self.left.is_empty() && self.waiting.is_empty()
    }

    /// Who is asked now, if anybody.
    pub fn next(&mut self, pending: usize, now: Instant) -> Option<usize> {
        if !self.may_ask(pending) {
            return None;
        }
        let (n, attempts) = self.left.pop_front()?;
        if attempts > 1 {
            self.left.push_back((n, attempts - 1));
        }
        self.waiting.push((n, now));
        Some(n)
    }

    /// One ask has come to nothing.
    pub fn ended(&mut self, server: usize) {
        if let Some(at) = self.waiting.iter().position(|&(n, _)| n == server) {
            self.waiting.remove(at);
        }
    }

    /// These are asked no more, nor waited for.
    pub fn drop_all(&mut self, which: impl Fn(usize) -> bool) {
        self.left.retain(|&(n, _)| !which(n));
        self.waiting.retain(|&(n, _)| !which(n));
    }

    /// Who has been asked by then, and waited for since; each as asked at first.
    pub fn asked_before(&self, then: Option<Instant>) -> impl Iterator<Item = (usize, Instant)> {
        let waiting = self.waiting.iter().copied();
        waiting.filter(move |&(_, asked)| then.is_some_and(|then| asked <= then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_asks_each_as_often_as_it_may_and_no_more_at_a_time() {
        let now = Instant::now();
        let mut round = Round::new(2, 2);
        let asked: Vec<_> = (0..9).map_while(|n| round.next(n, now)).collect();
        assert_eq!(asked, [0, 1, 0, 1]);
        assert!(!round.is_over() && !round.may_ask(4));
        for n in asked {
            round.ended(n);
        }
        assert!(round.is_over());

        let mut round = Round::new(3, 5);
        let asked: Vec<_> = (0..99).map_while(|n| round.next(n, now)).collect();
        assert_eq!(asked, [0, 1, 2, 0, 1, 2]);
        assert_eq!(asked.len(), PENDING);
        round.ended(1);
        assert_eq!(round.next(PENDING - 1, now), Some(0));
        assert_eq!(round.next(PENDING, now), None);
        // One that refused.
        round.drop_all(|n| n == 0);
        assert_eq!(round.next(0, now), Some(1));
        assert_eq!(round.asked_before(None).count(), 0);
        assert!(round.asked_before(Some(now)).all(|(n, _)| n != 0));
    }
}
