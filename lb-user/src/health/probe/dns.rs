//! A DNS question, over UDP and, where the answer was cut, over TCP. hickory-proto reads and writes the
//! messages.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use hickory_proto::{
    ProtoError,
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Late, Place, datagram,
    tcp::{self, ConnectError},
};
use crate::model::DnsCheck;

/// Longest answer over UDP, in bytes. Without EDNS a server sends 512 at most (RFC 1035, 4.2.1).
const MAX_DATAGRAM: usize = 4_096;
/// Datagrams that are looked at in one attempt: those of somebody else, or late ones, do not count as
/// the answer, and a flood of them must not keep a core busy.
const MAX_DATAGRAMS: usize = 16;

/// Why there is no right answer.
#[derive(Debug, Error)]
pub enum DnsError {
    /// No UDP.
    #[error("no DNS over UDP with {target}: {source}")]
    Datagram {
        /// Address asked.
        target: SocketAddr,
        /// The kernel's words.
        source: io::Error,
    },
    /// The connection for a long answer broke.
    #[error("no DNS over TCP with {target}: {source}")]
    Stream {
        /// Address asked.
        target: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// No connection for a long answer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No answer in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// The question cannot be written.
    #[error("cannot ask for {name}: {source}")]
    Question {
        /// Name and type asked for.
        name: String,
        /// What is wrong with it.
        source: ProtoError,
    },
    /// What came is no answer.
    #[error("{target} sent what is no answer to the question")]
    NoAnswer {
        /// Address asked.
        target: SocketAddr,
    },
    /// The server says no.
    #[error("{target} answered {code} to {name}")]
    Code {
        /// Address asked.
        target: SocketAddr,
        /// In its words.
        code: ResponseCode,
        /// Name and type asked for.
        name: String,
    },
    /// Not the record that was expected.
    #[error("{target} answered {name} with {found} instead of {expected}")]
    Records {
        /// Address asked.
        target: SocketAddr,
        /// Name and type asked for.
        name: String,
        /// Records of the type that came.
        found: String,
        /// What is missing.
        expected: String,
    },
}

pub(super) async fn attempt(place: &Place, check: &DnsCheck) -> Result<(), DnsError> {
    let (question, bytes) = question(check)?;
    let answer = place
        .within(
            place.limits.answer,
            "answer",
            over_udp(place, &question, &bytes),
        )
        .await??;
    let answer = if answer.metadata.truncation {
        let stream = tcp::connect(place).await?;
        place
            .within(
                place.limits.answer,
                "answer over TCP",
                over_tcp(place.target, stream, &question, &bytes),
            )
            .await??
    } else {
        answer
    };
    judge(place.target, check, &answer)
}

fn question(check: &DnsCheck) -> Result<(Message, Vec<u8>), DnsError> {
    let bad = |source| DnsError::Question {
        name: text(check),
        source,
    };
    let mut name = Name::from_str_relaxed(&check.name).map_err(bad)?;
    name.set_fqdn(true);
    let record = RecordType::from_str(&check.record).map_err(|error| bad(error.into()))?;
    let mut message = Message::query();
    message.metadata.recursion_desired = check.recursion;
    message.add_query(Query::query(name, record));
    let bytes = message.to_vec().map_err(bad)?;
    Ok((message, bytes))
}

async fn over_udp(place: &Place, question: &Message, bytes: &[u8]) -> Result<Message, DnsError> {
    let target = place.target;
    let failed = |source| DnsError::Datagram { target, source };
    let socket = datagram::open(place).map_err(failed)?;
    socket.send(bytes).await.map_err(failed)?;
    let mut buffer = [0; MAX_DATAGRAM];
    for _ in 0..MAX_DATAGRAMS {
        let length = socket.recv(&mut buffer).await.map_err(failed)?;
        if let Some(answer) = read(question, &buffer[..length]) {
            return Ok(answer);
        }
    }
    Err(DnsError::NoAnswer { target })
}

async fn over_tcp(
    target: SocketAddr,
    mut stream: TcpStream,
    question: &Message,
    bytes: &[u8],
) -> Result<Message, DnsError> {
    let failed = |source| DnsError::Stream { target, source };
    // RFC 1035, 4.2.2: two bytes of length before the message, so 65,535 bytes are the bound.
    let length = u16::try_from(bytes.len()).map_err(|_| DnsError::NoAnswer { target })?;
    let framed = [&length.to_be_bytes(), bytes].concat();
    stream.write_all(&framed).await.map_err(failed)?;
    let length = stream.read_u16().await.map_err(failed)?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.map_err(failed)?;
    read(question, &answer).ok_or(DnsError::NoAnswer { target })
}

/// The message, if it is an answer to the question.
fn read(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_ours = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    is_ours.then_some(answer)
}

fn judge(target: SocketAddr, check: &DnsCheck, answer: &Message) -> Result<(), DnsError> {
    let code = answer.metadata.response_code;
    if code != ResponseCode::NoError {
        let name = text(check);
        return Err(DnsError::Code { target, code, name });
    }
    let wanted = |data: &RData| match RecordType::from_str(&check.record) {
        Ok(RecordType::ANY) => true,
        Ok(record) => data.record_type() == record,
        Err(_) => false,
    };
    let found: Vec<String> = answer
        .answers
        .iter()
        .filter(|record| wanted(&record.data))
        .filter_map(|record| written(&record.data))
        .collect();
    let missing = check
        .expect
        .iter()
        .find(|expected| !found.iter().any(|record| is_same(record, expected)));
    let expected = match missing {
        Some(expected) => expected.clone(),
        None if found.is_empty() => "at least one record".to_owned(),
        None => return Ok(()),
    };
    let found = match found.as_slice() {
        [] => "no record".to_owned(),
        records => records.join(", "),
    };
    Err(DnsError::Records {
        target,
        name: text(check),
        found,
        expected,
    })
}

/// A record's data as in a zone file. Some cannot be written, and `to_string` would panic of them.
fn written(data: &RData) -> Option<String> {
    let mut text = String::new();
    write!(text, "{data}").ok()?;
    Some(text)
}

/// Whether both are the same record, however they are written.
fn is_same(record: &str, expected: &str) -> bool {
    bare(record) == bare(expected)
}

/// Without what makes no difference in a zone file: case, the dot behind a name, quotes and where a text is split
/// into several, blanks, and how an address is abbreviated. The library puts a comma behind the last value of a list.
fn bare(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let unquoted = words.join(" ").replace("\" \"", "").replace('"', "");
    let word = |word: &str| {
        let word = word.trim_end_matches(['.', ',']).to_ascii_lowercase();
        word.parse().map_or(word, |ip: IpAddr| ip.to_string())
    };
    unquoted.split(' ').map(word).collect()
}

fn text(check: &DnsCheck) -> String {
    format!("{} {}", check.name, check.record)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Record, rdata};

    use super::*;

    fn check(record: &str, expect: &[&str]) -> DnsCheck {
        DnsCheck {
            name: "www.example.com".into(),
            record: record.into(),
            expect: expect.iter().map(|text| (*text).to_owned()).collect(),
            recursion: true,
        }
    }

    /// What an answer with these records makes of a check.
    fn verdict(check: &DnsCheck, records: Vec<RData>, code: ResponseCode) -> Result<(), String> {
        let (question, _) = question(check).unwrap();
        let mut answer = question.clone().into_response();
        answer.metadata.response_code = code;
        for data in records {
            answer.add_answer(Record::from_rdata(
                question.queries[0].name().clone(),
                60,
                data,
            ));
        }
        let bytes = answer.to_vec().unwrap();
        let read = read(&question, &bytes).ok_or("not ours")?;
        judge("192.0.2.1:53".parse().unwrap(), check, &read).map_err(|error| error.to_string())
    }

    #[test]
    fn answers_are_judged() {
        let a = |last| RData::A(rdata::A::new(192, 0, 2, last));
        let ok = ResponseCode::NoError;
        assert_eq!(verdict(&check("A", &[]), vec![a(1)], ok), Ok(()));
        assert_eq!(
            verdict(&check("A", &["192.0.2.2"]), vec![a(1), a(2)], ok),
            Ok(())
        );
        let missing = verdict(&check("A", &["192.0.2.3"]), vec![a(1), a(2)], ok);
        assert!(
            missing
                .unwrap_err()
                .contains("192.0.2.1, 192.0.2.2 instead of 192.0.2.3")
        );
        let none = verdict(&check("AAAA", &[]), vec![a(1)], ok).unwrap_err();
        assert!(
            none.contains("no record instead of at least one record"),
            "{none}"
        );
        let code = verdict(&check("A", &[]), vec![], ResponseCode::NXDomain).unwrap_err();
        assert!(code.contains("to www.example.com A"), "{code}");
        let name = Name::from_str("Mail.Example.com.").unwrap();
        let mx = RData::MX(rdata::MX::new(10, name));
        assert_eq!(
            verdict(&check("MX", &["10 mail.example.com"]), vec![mx], ok),
            Ok(())
        );
    }

    #[test]
    fn records_may_be_written_in_many_ways() {
        for (record, expected, same) in [
            ("2001:db8::1", "2001:0DB8:0::0001", true),
            ("2001:db8::1", "2001:db8::2", false),
            ("10 mail.example.com.", "10  Mail.example.com", true),
            ("10 mail.example.com.", "20 mail.example.com", false),
            ("v=spf1 -all", "\"v=spf1 -all\"", true),
            ("v=spf1 -all", "\"v=spf1 ~all\"", false),
            ("onetwo", "\"one\" \"two\"", true),
            ("0 issue \"ca.example.net\"", "0 issue ca.example.net", true),
            ("1 . alpn=h2,", "1 . alpn=\"h2\"", true),
            ("1 . alpn=h2,h3,", "1 . alpn=h2", false),
            (
                "100 10 \"u\" \"\" \"!a!b!\" .",
                "100 10 \"u\" \"\" \"!a!b!\" .",
                true,
            ),
        ] {
            assert_eq!(is_same(record, expected), same, "{record} / {expected}");
        }
    }

    #[test]
    fn somebody_elses_answer_is_none() {
        let (ours, _) = question(&check("A", &[])).unwrap();
        let mut other = ours.clone().into_response();
        other.metadata.id = ours.metadata.id.wrapping_add(1);
        assert!(read(&ours, &other.to_vec().unwrap()).is_none());
        assert!(
            read(&ours, &ours.to_vec().unwrap()).is_none(),
            "a question is no answer"
        );
        let (mx, _) = question(&check("MX", &[])).unwrap();
        let mut other = mx.into_response();
        other.metadata.id = ours.metadata.id;
        assert!(read(&ours, &other.to_vec().unwrap()).is_none());
        assert!(read(&ours, b"garbage").is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(0u8.., 0..200), record in 0u16..260) {
            let (question, sent) = question(&check("ANY", &[])).unwrap();
            // Behind the question: one record of any type, and garbage.
            let mut message = sent.clone();
            message[2] |= 0x80;
            message[7] = 1;
            message.extend([0xc0, 12]);
            message.extend(record.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            message.extend(&bytes);
            if let Some(answer) = read(&question, &message) {
                let _ = judge("192.0.2.1:53".parse().unwrap(), &check("ANY", &[]), &answer);
            }
            let _ = read(&question, &bytes);
        }
    }
}
