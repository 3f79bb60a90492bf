//! Queries that failed a moment ago: whoever asks again at once is told the same, and the resolvers are
//! not asked (RFC 9520 3.2). A program that asks in a loop is no reason to ask them in a loop.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;

use super::message::Sameness;

/// What the RFC wants at least. Clients ask again after five seconds, or one.
const KEPT: Duration = Duration::from_secs(1);

/// So many are known at a time; of more, nothing is known.
const MOST: usize = 1024;

/// What was said to whom does not matter: a query that is the same but for its id fails alike.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<Sameness, (Instant, ResponseCode)>>);

impl Failures {
    pub fn add(&self, query: Sameness, code: ResponseCode, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (since, _)| is_fresh(*since, now));
        }
        if known.len() < MOST {
            known.insert(query, (now, code));
        }
    }

    pub fn find(&self, query: &Sameness, now: Instant) -> Option<ResponseCode> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, code) = known.get(query)?;
        is_fresh(*since, now).then_some(*code)
    }
}

fn is_fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < KEPT
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RecordType;

    use super::*;
    use crate::dns::message::{Asked, Transport, tests::query};

    fn sameness(name: &str) -> Sameness {
        let query = query(name, RecordType::A, None);
        let asked = Asked::read(&query, Transport::Udp).unwrap();
        asked.sameness(&query)
    }

    #[test]
    fn a_failure_is_remembered_for_a_second() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(sameness("a.example."), ResponseCode::Refused, now);
        let find = |name, after| failures.find(&sameness(name), now + after);
        assert_eq!(
            find("A.example.", Duration::from_millis(999)),
            Some(ResponseCode::Refused)
        );
        assert_eq!(find("a.example.", KEPT), None);
        assert_eq!(find("b.example.", Duration::ZERO), None);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (failures, now) = (Failures::default(), Instant::now());
        let add = |n: usize, now| {
            let query = sameness(&format!("n{n}.example."));
            failures.add(query, ResponseCode::ServFail, now);
        };
        (0..MOST + 10).for_each(|n| add(n, now));
        assert_eq!(failures.0.lock().unwrap().len(), MOST);
        add(MOST, now + KEPT);
        assert_eq!(failures.0.lock().unwrap().len(), 1, "the old ones are gone");
    }
}
