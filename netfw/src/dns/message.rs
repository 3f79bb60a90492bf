//! Messages: as much of a query as decides what becomes of it, and answers of our own.

use hickory_proto::{
    op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{RData, Record, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::answer::TTL;

/// Answers of our own by UDP: what passes any IPv6 link whole: 1280 bytes, less headers.
const UDP_MAX: u16 = 1232;
/// What a client takes that says nothing about it (RFC 1035 4.2.1).
const UDP_MIN: u16 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// A query that can be answered, or forwarded.
#[derive(Clone, Debug)]
pub struct Asked {
    metadata: Metadata,
    pub question: Query,
    transport: Transport,
}

/// What cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// No query: to answer it might make two servers talk for ever.
    Silence,
    /// This is what the asker is told.
    Refused(Vec<u8>),
}

impl Asked {
    pub fn read(bytes: &[u8], transport: Transport) -> Result<Self, Unanswerable> {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else {
            return Err(Unanswerable::Silence);
        };
        if metadata.message_type == MessageType::Response {
            return Err(Unanswerable::Silence);
        }
        let refused = |code| Unanswerable::Refused(refusal(&metadata, code));
        if metadata.op_code != OpCode::Query {
            return Err(refused(ResponseCode::NotImp));
        }
        // More than one was never made to work (RFC 9619).
        let HeaderCounts { queries: 1, .. } = counts else {
            return Err(refused(ResponseCode::FormErr));
        };
        let Ok(question) = Query::read(&mut decoder) else {
            return Err(refused(ResponseCode::FormErr));
        };
        // A transfer is a talk of its own, of many answers.
        if matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) {
            return Err(refused(ResponseCode::NotImp));
        }
        Ok(Self {
            metadata,
            question,
            transport,
        })
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// An answer of our own. `query` is what this was read from.
    pub fn answer(&self, query: &[u8], code: ResponseCode, records: Vec<RData>) -> Vec<u8> {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.authoritative =
            matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        let name = &self.question.name;
        message.answers = records
            .into_iter()
            .map(|data| Record::from_rdata(name.clone(), TTL, data))
            .collect();
        message.add_query(self.question.clone());
        let asked = Message::from_vec(query).ok().and_then(|query| query.edns);
        let mut room = UDP_MIN;
        if let Some(asked) = asked {
            room = asked.max_payload().clamp(UDP_MIN, UDP_MAX);
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            // As it was asked (RFC 3225 3).
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
            if asked.version() > 0 {
                message.metadata.response_code = ResponseCode::BADVERS;
                message.answers.clear();
            }
        }
        let room = match self.transport {
            Transport::Udp => room,
            Transport::Tcp => u16::MAX,
        };
        fit(message, room.into())
    }
}

/// The message in at most so many bytes: with as many answers as fit, and TC where some do not.
fn fit(mut message: Message, room: usize) -> Vec<u8> {
    /// An address of IPv6, the largest of ours that come in numbers.
    const RECORD: usize = 28;
    loop {
        // There is one name in it, read from a message, so it can be written.
        let bytes = message.to_vec().unwrap_or_default();
        let excess = bytes.len().saturating_sub(room);
        if excess == 0 || message.answers.is_empty() {
            return bytes;
        }
        message.metadata.truncation = true;
        let keep = message
            .answers
            .len()
            .saturating_sub(excess.div_ceil(RECORD));
        message.answers.truncate(keep);
    }
}

/// A header alone.
fn refusal(metadata: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata.recursion_desired = metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.to_vec().unwrap_or_default()
}

/// Puts another id into a message.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(head) = message.first_chunk_mut::<2>() {
        *head = id.to_be_bytes();
    }
}

pub fn id(message: &[u8]) -> u16 {
    message
        .first_chunk::<2>()
        .map_or(0, |head| u16::from_be_bytes(*head))
}

/// Is it the answer to this question, asked with this id? Whoever forges one has to guess the id, and
/// the port that it was asked from.
pub fn is_answer(message: &[u8], id: u16, question: &Query) -> bool {
    let mut decoder = BinDecoder::new(message);
    let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else {
        return false;
    };
    if metadata.id != id
        || metadata.message_type != MessageType::Response
        || metadata.op_code != OpCode::Query
    {
        return false;
    }
    match counts.queries {
        // Some say so little where they refuse.
        0 => metadata.response_code != ResponseCode::NoError,
        1 => Query::read(&mut decoder).is_ok_and(|found| found == *question),
        _ => false,
    }
}

/// Does the answer say that another resolver might know better? As the C library sees it.
pub fn is_failure(answer: &[u8]) -> bool {
    let mut decoder = BinDecoder::new(answer);
    Header::read(&mut decoder).is_ok_and(|header| {
        matches!(
            header.metadata.response_code,
            ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
        )
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{Name, rdata::A};
    use proptest::prelude::*;

    use super::*;

    /// A query as a client sends it, with EDNS where a size is given.
    pub fn query(name: &str, kind: RecordType, size: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(size) = size {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn addresses(count: u32) -> Vec<RData> {
        (0..count)
            .map(|n| RData::A(A(Ipv4Addr::from_bits(0x0a00_0000 + n))))
            .collect()
    }

    fn answer(query: &[u8], transport: Transport, records: Vec<RData>) -> Message {
        let asked = Asked::read(query, transport).unwrap();
        let bytes = asked.answer(query, ResponseCode::NoError, records);
        assert!(is_answer(&bytes, 0x1234, &asked.question));
        Message::from_vec(&bytes).unwrap()
    }

    #[test]
    fn an_answer_says_what_was_asked() {
        let query = query("Web.Front.", RecordType::A, None);
        let message = answer(&query, Transport::Udp, addresses(2));
        assert_eq!(message.queries[0].name.to_ascii(), "Web.Front.");
        assert_eq!(message.answers.len(), 2);
        assert_eq!(message.answers[0].ttl, TTL);
        assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
        assert!(message.metadata.authoritative && !message.metadata.truncation);
        assert!(message.edns.is_none());
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said_to_be() {
        for (size, transport, room, whole) in [
            (None, Transport::Udp, 512, false),
            (Some(800), Transport::Udp, 800, false),
            (Some(100), Transport::Udp, 512, false),
            (Some(4096), Transport::Udp, 1232, false),
            (None, Transport::Tcp, 65535, true),
        ] {
            let query = query("many.front.", RecordType::A, size);
            let message = answer(&query, transport, addresses(200));
            let length = message.to_vec().unwrap().len();
            assert!(
                length <= room && length > room.min(3000) - 40,
                "{length} of {room}"
            );
            assert_eq!(message.metadata.truncation, !whole);
            assert_eq!(message.edns.is_some(), size.is_some());
        }
    }

    #[test]
    fn an_unknown_version_of_edns_is_told_so() {
        let mut message = Message::from_vec(&query("web.", RecordType::A, Some(1232))).unwrap();
        message.edns.as_mut().unwrap().set_version(1);
        let message = answer(&message.to_vec().unwrap(), Transport::Udp, addresses(1));
        assert_eq!(message.edns.unwrap().rcode_high(), 1);
        assert!(message.answers.is_empty());
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let mut response = query("web.", RecordType::A, None);
        response[2] |= 0x80;
        for bytes in [&[][..], &[0; 11][..], &response[..]] {
            let read = Asked::read(bytes, Transport::Udp);
            assert_eq!(read.unwrap_err(), Unanswerable::Silence);
        }
    }

    #[test]
    fn bad_queries_are_told_why() {
        let good = query("web.", RecordType::A, None);
        let update = {
            let mut bytes = good.clone();
            bytes[2] = 5 << 3;
            bytes
        };
        let two = {
            let mut bytes = good.clone();
            bytes[5] = 2;
            bytes
        };
        let transfer = query("web.", RecordType::AXFR, None);
        for (bytes, code) in [
            (update, ResponseCode::NotImp),
            (two, ResponseCode::FormErr),
            (good[..14].to_vec(), ResponseCode::FormErr),
            (transfer, ResponseCode::NotImp),
        ] {
            let Unanswerable::Refused(told) = Asked::read(&bytes, Transport::Udp).unwrap_err()
            else {
                panic!("silence for {bytes:?}");
            };
            let told = Message::from_vec(&told).unwrap();
            assert_eq!(
                (told.metadata.id, told.metadata.response_code),
                (0x1234, code)
            );
        }
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let query = query("web.example.", RecordType::A, None);
        let asked = Asked::read(&query, Transport::Udp).unwrap();
        let good = asked.answer(&query, ResponseCode::NoError, addresses(1));
        let is = |bytes: &[u8]| is_answer(bytes, 0x1234, &asked.question);
        assert!(is(&good));
        assert!(!is_answer(&good, 0x1235, &asked.question));
        assert!(!is(&query), "the query itself");
        let other = self::query("web.example.", RecordType::AAAA, None);
        let other = Asked::read(&other, Transport::Udp).unwrap().answer(
            &other,
            ResponseCode::NoError,
            Vec::new(),
        );
        assert!(!is(&other), "of another type");
        assert!(!is(&good[..10]));
        // Short refusals.
        let refused = refusal(&asked.metadata, ResponseCode::Refused);
        assert!(is(&refused) && is_failure(&refused) && !is_failure(&good));
        assert!(!is(&refusal(&asked.metadata, ResponseCode::NoError)));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            at in 0..60usize,
        ) {
            // Noise, and a query with noise in it.
            let mut query = query("web.example.", RecordType::A, Some(1232));
            for (to, from) in query.iter_mut().skip(at).zip(&bytes) {
                *to = *from;
            }
            for bytes in [bytes, query] {
                if let Ok(asked) = Asked::read(&bytes, Transport::Udp) {
                    let answer = asked.answer(&bytes, ResponseCode::NoError, addresses(100));
                    prop_assert!(is_answer(&answer, id(&bytes), &asked.question));
                    prop_assert!(answer.len() <= usize::from(UDP_MAX));
                }
            }
        }
    }

    #[test]
    fn ids_are_exchanged() {
        let mut bytes = query("web.", RecordType::A, None);
        set_id(&mut bytes, 0xbeef);
        assert_eq!(id(&bytes), 0xbeef);
        assert_eq!(bytes[2..], query("web.", RecordType::A, None)[2..]);
        set_id(&mut [], 1);
        assert_eq!(id(&[1]), 0);
    }
}
