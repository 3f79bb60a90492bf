//! From a query's bytes to its answer's, whatever they came by.

use std::{net::IpAddr, sync::Arc};

use hickory_proto::op::ResponseCode;

use super::{
    answer::{Asker, Identity, Verdict},
    forward::Forwarder,
    limit::{Limits, Pass, Tally},
    message::{Asked, Transport, Unanswerable},
    socket::is_own,
    upstream::Question,
    view::{Directory, Names},
};
use crate::{
    metrics::{Answered, Answers},
    name::Name,
};

/// What serves all networks.
#[derive(Debug)]
pub struct Resolver {
    directory: Directory,
    forwarder: Forwarder,
    queries: Arc<Tally<Identity>>,
    connections: Arc<Tally<Identity>>,
    answers: Answers,
}

/// What comes of a query.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing: it was none.
    Silence,
    Answer(Vec<u8>),
    Forward(Box<Forwarded>),
}

/// A query that the node's resolvers are to be asked.
#[derive(Debug)]
pub struct Forwarded {
    resolver: Arc<Resolver>,
    names: Arc<Names>,
    asked: Asked,
    query: Vec<u8>,
    /// Held while it is under way.
    _pass: Pass<Identity>,
}

impl Resolver {
    pub fn new(forwarder: Forwarder, limits: &Limits, answers: Answers) -> Self {
        Self {
            directory: Directory::default(),
            forwarder,
            queries: Tally::new(limits.queries, limits.queries_each),
            connections: Tally::new(limits.connections, limits.connections_each),
            answers,
        }
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A query that came in on this network's bridge.
    pub fn consider(
        self: &Arc<Self>,
        network: &Name,
        from: IpAddr,
        query: &[u8],
        transport: Transport,
    ) -> Outcome {
        let asked = match Asked::read(query, transport) {
            Ok(asked) => asked,
            Err(Unanswerable::Silence) => return Outcome::Silence,
            Err(Unanswerable::Refused(answer)) => {
                self.answers.count(Answered::Malformed);
                return Outcome::Answer(answer);
            }
        };
        let names = self.directory.current();
        let Some(asker) = Asker::find(&names, network, from) else {
            // The network is being removed.
            return Outcome::Silence;
        };
        let (code, records) = match asker.ask(&asked.question) {
            Verdict::Ours(records) => (ResponseCode::NoError, records),
            Verdict::NoSuchName => (ResponseCode::NXDomain, Vec::new()),
            Verdict::Internal => (ResponseCode::ServFail, Vec::new()),
            Verdict::Forward if asker.is_link_local_on().is_some_and(|on| is_own(from, on)) => {
                (ResponseCode::ServFail, Vec::new())
            }
            Verdict::Forward => match self.queries.enter(asker.identity()) {
                Some(pass) => {
                    return Outcome::Forward(Box::new(Forwarded {
                        resolver: self.clone(),
                        names,
                        query: query.to_vec(),
                        asked,
                        _pass: pass,
                    }));
                }
                // Said at once, so that the asker need not wait to find out.
                None => (ResponseCode::Refused, Vec::new()),
            },
        };
        self.answers.count(match code {
            ResponseCode::NoError => Answered::Known,
            ResponseCode::NXDomain => Answered::NoSuchName,
            ResponseCode::Refused => Answered::Refused,
            _ => Answered::Failed,
        });
        Outcome::Answer(asked.answer(code, records))
    }

    /// May this asker have one more connection?
    pub fn connect(&self, network: &Name, from: IpAddr) -> Option<Pass<Identity>> {
        let names = self.directory.current();
        let asker = Asker::find(&names, network, from)?;
        self.connections.enter(asker.identity())
    }
}

impl Forwarded {
    pub async fn answer(self) -> Vec<u8> {
        let Self { asked, query, .. } = self;
        let question = Question {
            question: asked.question.clone(),
            transport: asked.transport(),
            sameness: asked.sameness(&query),
            query,
        };
        let forwarder = &self.resolver.forwarder;
        let told = forwarder.forward(question, self.names.gateways()).await;
        let told = told.and_then(|answer| asked.cut(answer).ok_or(ResponseCode::ServFail));
        self.resolver.answers.count(match told {
            Ok(_) => Answered::Forwarded,
            Err(_) => Answered::Failed,
        });
        told.unwrap_or_else(|code| asked.answer(code, Vec::new()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hickory_proto::{op::Message, rr::RecordType};

    use super::*;
    use crate::dns::{
        forward::Patience,
        message::tests::query,
        resolv::File,
        view::{Bridge, Member, Network, View},
    };

    /// A resolver that serves `front` (web at 127.0.0.1) and `inner`, which is internal; it forwards to
    /// where nobody listens.
    pub fn resolver(directory: &std::path::Path, limits: &Limits) -> Arc<Resolver> {
        let path = directory.join("resolv.conf");
        std::fs::write(&path, "nameserver 127.77.77.77\noptions attempts:1\n").unwrap();
        let forwarder = Forwarder::new(File::new(path), Patience::default());
        let resolver = Resolver::new(forwarder, limits, Answers::default());
        let network = |name: &str, internal, addr: &str| Network {
            name: name.parse().unwrap(),
            internal,
            bridge: Bridge {
                ifindex: 1,
                name: "lo".into(),
            },
            gateways: vec!["10.1.0.1".parse().unwrap()],
            subnets: vec!["10.0.0.0/8".parse().unwrap()],
            members: vec![Member {
                endpoint: "web".parse().unwrap(),
                aliases: Vec::new(),
                addresses: vec![addr.parse().unwrap()],
                links: Vec::new(),
            }],
        };
        resolver.directory().set(View::of([
            network("front", false, "127.0.0.1"),
            network("inner", true, "10.2.0.2"),
        ]));
        Arc::new(resolver)
    }

    pub const LIMITS: Limits = Limits {
        queries: 4,
        queries_each: 1,
        connections: 4,
        connections_each: 2,
    };

    fn code(bytes: &[u8]) -> ResponseCode {
        Message::from_vec(bytes).unwrap().metadata.response_code
    }

    #[tokio::test]
    async fn what_becomes_of_queries() {
        let directory = tempfile::tempdir().unwrap();
        let resolver = resolver(directory.path(), &LIMITS);
        let consider = |network: &str, name: &str| {
            let query = query(name, RecordType::A, Some(1232));
            let from = "10.2.0.9".parse().unwrap();
            resolver.consider(&network.parse().unwrap(), from, &query, Transport::Udp)
        };
        let Outcome::Answer(known) = consider("front", "web.") else {
            panic!("not answered");
        };
        assert_eq!(Message::from_vec(&known).unwrap().answers.len(), 1);
        let Outcome::Answer(internal) = consider("inner", "example.org.") else {
            panic!("not answered");
        };
        assert_eq!(code(&internal), ResponseCode::ServFail);
        assert!(matches!(consider("gone", "web."), Outcome::Silence));

        let Outcome::Forward(first) = consider("front", "example.org.") else {
            panic!("not forwarded");
        };
        let Outcome::Answer(second) = consider("front", "example.org.") else {
            panic!("over the limit");
        };
        assert_eq!(code(&second), ResponseCode::Refused);
        // Nobody answers.
        let told = Message::from_vec(&first.answer().await).unwrap();
        assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(told.metadata.id, 0x1234);
        assert!(told.edns.is_some());
        assert!(matches!(
            consider("front", "example.org."),
            Outcome::Forward(_)
        ));
    }
}
