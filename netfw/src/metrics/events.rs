//! What the agent counts as it happens. It begins at 0 with each agent.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};

/// Clones count together.
#[derive(Clone, Debug)]
pub struct Events {
    pub answers: Answers,
    pub requests: Family<Request, Counter>,
    /// Looks at the node, each of which brings it in line with what is wanted.
    pub reconciles: Counter,
    pub repairs: Family<Repaired, Counter>,
}

impl Default for Events {
    /// What is rare begins at 0, or its first time would be no increase.
    fn default() -> Self {
        let repairs = Family::default();
        for what in Repair::ALL {
            drop(repairs.get_or_create(&Repaired { what }));
        }
        Self {
            answers: Answers::default(),
            requests: Family::default(),
            reconciles: Counter::default(),
            repairs,
        }
    }
}

impl Events {
    /// Something was put back that somebody else had taken away.
    pub fn repaired(&self, what: Repair) {
        self.repairs.get_or_create(&Repaired { what }).inc();
    }

    pub fn requested(&self, method: &str, code: u16) {
        let method = ["GET", "POST", "DELETE"]
            .into_iter()
            .find(|known| *known == method)
            // Its client may say what it likes.
            .unwrap_or("other");
        self.requests.get_or_create(&Request { method, code }).inc();
    }
}

/// Of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    method: &'static str,
    /// HTTP's.
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Repaired {
    what: Repair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// A network's, or the gateway's address on it.
    Bridge,
    /// An endpoint's interface.
    Endpoint,
    /// A program under clsact.
    Filter,
    /// A bridge's.
    Forwarding,
    /// The programs of the node's own sockets.
    Sockets,
}

impl Repair {
    const ALL: [Self; 5] = [
        Self::Bridge,
        Self::Endpoint,
        Self::Filter,
        Self::Forwarding,
        Self::Sockets,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Endpoint => "endpoint",
            Self::Filter => "filter",
            Self::Forwarding => "forwarding",
            Self::Sockets => "sockets",
        }
    }
}

impl EncodeLabelValue for Repair {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

/// Queries to the name servers, by what came of them. Clones count together.
#[derive(Clone, Debug)]
pub struct Answers(Family<Query, Counter>);

impl Default for Answers {
    fn default() -> Self {
        let answers = Self(Family::default());
        for result in Answered::ALL {
            drop(answers.0.get_or_create(&Query { result }));
        }
        answers
    }
}

impl Answers {
    pub fn count(&self, result: Answered) {
        self.0.get_or_create(&Query { result }).inc();
    }

    pub(super) fn family(&self) -> Family<Query, Counter> {
        self.0.clone()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Query {
    result: Answered,
}

/// What came of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answered {
    /// From the names of endpoints.
    Known,
    /// One of ours that there is not.
    NoSuchName,
    /// By one of the node's resolvers, whatever it said.
    Forwarded,
    /// None of them answered, or the network is internal: SERVFAIL.
    Failed,
    /// The asker, or all of them together, had too many under way.
    Refused,
    /// It could not be read.
    Malformed,
}

impl Answered {
    const ALL: [Self; 6] = [
        Self::Known,
        Self::NoSuchName,
        Self::Forwarded,
        Self::Failed,
        Self::Refused,
        Self::Malformed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::NoSuchName => "no_such_name",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
        }
    }
}

impl EncodeLabelValue for Answered {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_invent_methods() {
        let events = Events::default();
        for method in ["BREW", "GET\n", "WHEN"] {
            events.requested(method, 404);
        }
        let other = Request {
            method: "other",
            code: 404,
        };
        assert_eq!(events.requests.get_or_create(&other).get(), 3);
    }
}
