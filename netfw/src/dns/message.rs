//! Messages: as much of a query as decides what becomes of it, and answers of our own.

use hickory_proto::{
    op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::answer::TTL;

/// Answers of our own by UDP: what passes any IPv6 link whole: 1280 bytes, less headers.
const UDP_MAX: u16 = 1232;
/// What a client takes that says nothing about it (RFC 1035 4.2.1).
const UDP_MIN: u16 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// A query that can be answered, or forwarded.
#[derive(Clone, Debug)]
pub struct Asked {
    metadata: Metadata,
    pub question: Query,
    /// Where it ends in the message.
    end: usize,
    edns: Option<Edns>,
    transport: Transport,
}

/// What makes two queries one: all but the id. The flags count, and what stands behind the question:
/// a resolver may refuse one query, and answer another for the same name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sameness {
    /// Equal whatever the case of letters.
    question: Query,
    transport: Transport,
    rest: Vec<u8>,
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
        let end = decoder.index();
        let Ok(edns) = read_edns(&mut decoder, &counts) else {
            return Err(refused(ResponseCode::FormErr));
        };
        // A transfer is a talk of its own, of many answers.
        if matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) {
            return Err(refused(ResponseCode::NotImp));
        }
        Ok(Self {
            metadata,
            question,
            end,
            edns,
            transport,
        })
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// `query` is what this was read from.
    pub fn sameness(&self, query: &[u8]) -> Sameness {
        let flags = query.get(2..4).unwrap_or_default();
        let behind = query.get(self.end..).unwrap_or_default();
        Sameness {
            question: self.question.clone(),
            transport: self.transport,
            rest: [flags, behind].concat(),
        }
    }

    /// An answer of our own.
    pub fn answer(&self, code: ResponseCode, records: Vec<RData>) -> Vec<u8> {
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
        if message.answers.is_empty() {
            message.authorities.extend(authority(name, code));
        }
        message.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            // As it was asked (RFC 3225 3).
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
            if asked.version() > 0 {
                message.metadata.response_code = ResponseCode::BADVERS;
                message.metadata.authoritative = false;
                message.answers.clear();
                message.authorities.clear();
            }
        }
        fit(message, self.room().min(self.own_max()).into())
    }

    /// What the asker takes.
    fn room(&self) -> u16 {
        match (self.transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.max_payload().max(UDP_MIN),
            (Transport::Udp, None) => UDP_MIN,
        }
    }

    /// What we send.
    fn own_max(&self) -> u16 {
        match self.transport {
            Transport::Udp => UDP_MAX,
            Transport::Tcp => u16::MAX,
        }
    }

    /// Somebody's answer, as much as the asker takes: it may have been got by TCP for one who asked by
    /// UDP, and is told to come by TCP too. None if it cannot be read.
    pub fn cut(&self, answer: Vec<u8>) -> Option<Vec<u8>> {
        if answer.len() <= self.room().into() {
            return Some(answer);
        }
        let mut message = Message::from_vec(&answer).ok()?;
        message.metadata.truncation = true;
        // Nothing rather than a part: whoever sees TC asks again.
        message.answers.clear();
        message.authorities.clear();
        message.additionals.clear();
        message.to_vec().ok()
    }
}

/// The EDNS record of a query whose question has been read. More than one is an error (RFC 6891
/// 6.1.1); what cannot be read is between the asker and whoever is asked.
fn read_edns(decoder: &mut BinDecoder<'_>, counts: &HeaderCounts) -> Result<Option<Edns>, ()> {
    let before = usize::from(counts.answers) + usize::from(counts.authorities);
    let mut edns = None;
    for n in 0..before + usize::from(counts.additionals) {
        let Ok(record) = Record::read(decoder) else {
            break;
        };
        if n >= before && record.record_type() == RecordType::OPT {
            if edns.is_some() {
                return Err(());
            }
            edns = Some(Edns::from(&record));
        }
    }
    Ok(edns)
}

/// How long it may be remembered that there is nothing (RFC 2308 5), in a zone that is made up as RFC
/// 6303 3 has it: the name itself, or the one above a name that is not there.
fn authority(name: &Name, code: ResponseCode) -> Option<Record> {
    let zone = match code {
        ResponseCode::NoError => name.clone(),
        ResponseCode::NXDomain => name.base_name(),
        _ => return None,
    };
    let nobody = Name::from_ascii("nobody.invalid.").ok()?;
    let soa = SOA::new(zone.clone(), nobody, 1, 3600, 1200, 604_800, TTL);
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}

/// The message in at most so many bytes: with as many answers as fit, and TC where some do not.
fn fit(mut message: Message, room: usize) -> Vec<u8> {
    /// An address of IPv6, the largest of ours that come in numbers.
    const RECORD: usize = 28;
    loop {
        // There is one name in it, read from a message, so it can be written.
        let bytes = message.to_vec().unwrap_or_default();
        let excess = bytes.len().saturating_sub(room);
        if excess == 0 {
            return bytes;
        }
        if message.answers.is_empty() {
            if message.authorities.is_empty() {
                return bytes;
            }
            message.authorities.clear();
            continue;
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
        0 => matches!(
            metadata.response_code,
            ResponseCode::FormErr
                | ResponseCode::ServFail
                | ResponseCode::NotImp
                | ResponseCode::Refused
        ),
        1 => Query::read(&mut decoder).is_ok_and(|found| found == *question),
        _ => false,
    }
}

/// Does the answer say that another resolver might know better? As the C library sees it. What it says.
pub fn failure(answer: &[u8]) -> Option<ResponseCode> {
    let header = Header::read(&mut BinDecoder::new(answer)).ok()?;
    let code = header.metadata.response_code;
    matches!(
        code,
        ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
    )
    .then_some(code)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;
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
        let bytes = asked.answer(ResponseCode::NoError, records);
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
        for count in 0..2 {
            let message = answer(&message.to_vec().unwrap(), Transport::Udp, addresses(count));
            assert_eq!(message.edns.unwrap().rcode_high(), 1);
            assert!(message.answers.is_empty() && message.authorities.is_empty());
            assert!(!message.metadata.authoritative);
        }
    }

    #[test]
    fn that_there_is_nothing_may_be_kept_as_long_as_what_there_is() {
        let query = query("x.Web.Front.", RecordType::A, None);
        let asked = Asked::read(&query, Transport::Udp).unwrap();
        let told = |code, records| {
            let bytes = asked.answer(code, records);
            Message::from_vec(&bytes).unwrap()
        };
        for (code, zone) in [
            (ResponseCode::NoError, "x.Web.Front."),
            (ResponseCode::NXDomain, "Web.Front."),
        ] {
            let message = told(code, Vec::new());
            assert!(message.metadata.authoritative);
            let [record] = &message.authorities[..] else {
                panic!("{message:?}");
            };
            assert_eq!((record.name.to_ascii().as_str(), record.ttl), (zone, TTL));
            let RData::SOA(soa) = &record.data else {
                panic!("{record:?}");
            };
            assert_eq!(soa.minimum, TTL);
        }
        assert!(
            told(ResponseCode::NoError, addresses(1))
                .authorities
                .is_empty()
        );
        assert!(
            told(ResponseCode::ServFail, Vec::new())
                .authorities
                .is_empty()
        );
    }

    #[test]
    fn the_longest_name_has_room_for_nothing() {
        let name = [
            "x".repeat(63),
            "y".repeat(63),
            "z".repeat(63),
            "w".repeat(61),
        ]
        .join(".");
        let query = query(&format!("{name}."), RecordType::A, None);
        let message = answer(&query, Transport::Udp, Vec::new());
        assert!(message.to_vec().unwrap().len() <= UDP_MIN.into());
        assert!(!message.metadata.truncation);
    }

    #[test]
    fn an_answer_that_came_by_tcp_is_cut_for_who_asked_by_udp() {
        for (size, room) in [(None, 512), (Some(100), 512), (Some(4096), 4096)] {
            let query = query("many.example.", RecordType::A, size);
            let by_tcp = Asked::read(&query, Transport::Tcp).unwrap();
            let by_udp = Asked::read(&query, Transport::Udp).unwrap();
            let short = by_tcp.answer(ResponseCode::NoError, addresses(2));
            assert_eq!(by_udp.cut(short.clone()), Some(short));
            let long = by_tcp.answer(ResponseCode::NoError, addresses(1000));
            assert_eq!(by_tcp.cut(long.clone()), Some(long.clone()));
            let cut = by_udp.cut(long).unwrap();
            assert!(cut.len() <= room && is_answer(&cut, 0x1234, &by_udp.question));
            let cut = Message::from_vec(&cut).unwrap();
            assert!(cut.metadata.truncation && cut.answers.is_empty());
            assert_eq!(cut.edns.is_some(), size.is_some());
            assert_eq!(by_udp.cut(vec![0xff; 5000]), None);
        }
    }

    #[test]
    fn queries_are_the_same_but_for_the_id_and_the_case() {
        let sameness = |query: &[u8], transport| {
            let asked = Asked::read(query, transport).unwrap();
            asked.sameness(query)
        };
        let first = query("web.", RecordType::A, Some(1232));
        let mut same = query("WEB.", RecordType::A, Some(1232));
        set_id(&mut same, 7);
        let udp = Transport::Udp;
        assert_eq!(sameness(&first, udp), sameness(&same, udp));
        let mut checked = first.clone();
        checked[3] |= 0x10;
        for other in [
            query("web.", RecordType::AAAA, Some(1232)),
            query("web.", RecordType::A, Some(1400)),
            query("web.", RecordType::A, None),
            query("wed.", RecordType::A, Some(1232)),
            checked,
        ] {
            assert_ne!(sameness(&first, udp), sameness(&other, udp));
        }
        assert_ne!(sameness(&first, udp), sameness(&first, Transport::Tcp));
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
        let two_opts = {
            let mut bytes = query("web.", RecordType::A, Some(1232));
            bytes[11] = 2;
            bytes.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
            bytes
        };
        for (bytes, code) in [
            (update, ResponseCode::NotImp),
            (two, ResponseCode::FormErr),
            (good[..14].to_vec(), ResponseCode::FormErr),
            (transfer, ResponseCode::NotImp),
            (two_opts, ResponseCode::FormErr),
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
        let good = asked.answer(ResponseCode::NoError, addresses(1));
        let is = |bytes: &[u8]| is_answer(bytes, 0x1234, &asked.question);
        assert!(is(&good));
        assert!(!is_answer(&good, 0x1235, &asked.question));
        assert!(!is(&query), "the query itself");
        let other = self::query("web.example.", RecordType::AAAA, None);
        let other = Asked::read(&other, Transport::Udp).unwrap();
        let other = other.answer(ResponseCode::NoError, Vec::new());
        assert!(!is(&other), "of another type");
        assert!(!is(&good[..10]));
        // Short refusals.
        let refused = refusal(&asked.metadata, ResponseCode::Refused);
        assert!(is(&refused));
        assert_eq!(failure(&refused), Some(ResponseCode::Refused));
        assert_eq!(failure(&good), None);
        for code in [
            ResponseCode::NoError,
            ResponseCode::NXDomain,
            ResponseCode::YXDomain,
        ] {
            assert!(!is(&refusal(&asked.metadata, code)), "{code}");
        }
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
                    let room = if asked.edns.is_some() { UDP_MAX } else { UDP_MIN };
                    for count in [0, 100] {
                        let answer = asked.answer(ResponseCode::NoError, addresses(count));
                        prop_assert!(is_answer(&answer, id(&bytes), &asked.question));
                        prop_assert!(answer.len() <= usize::from(room));
                    }
                    let _ = asked.sameness(&bytes);
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
