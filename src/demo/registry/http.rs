//! HTTP/1.1 as far as a registry's readers speak it (RFC 9112): requests without a body.

use std::io::{self, Read};
use std::net::TcpStream;

/// Bytes in a request's head at most: more than any client of a registry sends, tokens included.
const HEAD_BYTES_LIMIT: usize = 32 << 10;

/// Header fields in a request at most.
const FIELDS_LIMIT: usize = 64;

/// The requests that come over one connection.
pub struct Connection {
    stream: TcpStream,
    /// What was received and not yet understood.
    received: Vec<u8>,
}

/// What came next.
pub enum Requested {
    /// A request.
    Request(Request),
    /// Something else, to be answered with this status, before the connection ends.
    Malformed(u16),
    /// The end of the connection.
    End,
}

/// A request that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub method: Method,
    /// With what; without a query.
    pub path: String,
    /// Which part of it.
    pub range: Option<Range>,
    /// Whether further requests may follow the answer.
    pub keeps_alive: bool,
}

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Head and body.
    Get,
    /// The head alone.
    Head,
    /// Something that a registry to be read does not do.
    Other,
}

/// Which bytes of an object are asked for (RFC 9110, 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// From the first on, up to the second and including it, or to the end.
    From(u64, Option<u64>),
    /// As many at the end.
    Last(u64),
}

impl Request {
    /// What an answer to no proper request needs to know.
    pub fn last() -> Self {
        Self {
            method: Method::Get,
            path: String::new(),
            range: None,
            keeps_alive: false,
        }
    }
}

impl Range {
    /// Where it begins and ends in an object of `len` bytes; `None` if no byte of it is there.
    pub fn within(self, len: u64) -> Option<(u64, u64)> {
        let (from, end) = match self {
            Self::From(first, last) => {
                let end = last.map_or(len, |last| last.saturating_add(1));
                (first, end.min(len))
            }
            Self::Last(count) => (len.saturating_sub(count), len),
        };
        (from < end).then_some((from, end))
    }

    /// `None` for what this side does not understand, or is asked for nowhere: several ranges at once, other units.
    /// Such a field counts as absent (RFC 9110, 14.2).
    fn parsed(field: &[u8]) -> Option<Self> {
        let (first, last) = std::str::from_utf8(field)
            .ok()?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits)
        };
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }
}

impl Connection {
    /// Nothing has been received over `stream` yet.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// Where answers go.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Waits for a whole head of a request, at most as long as the stream's timeout between two pieces of it.
    pub fn next_request(&mut self) -> io::Result<Requested> {
        loop {
            match parsed(&self.received) {
                Parsed::Request(request, len) => {
                    self.received.drain(..len);
                    return Ok(Requested::Request(request));
                }
                Parsed::Malformed(status) => return Ok(Requested::Malformed(status)),
                Parsed::Partial if self.received.len() >= HEAD_BYTES_LIMIT => {
                    return Ok(Requested::Malformed(431));
                }
                Parsed::Partial => {}
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece)? {
                0 => return Ok(Requested::End),
                len => self.received.extend_from_slice(&piece[..len]),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// And how many bytes it had.
    Request(Request, usize),
    Malformed(u16),
    Partial,
}

fn parsed(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
    let mut head = httparse::Request::new(&mut fields);
    let len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Malformed(431),
        Err(_) => return Parsed::Malformed(400),
    };
    let field = |name: &str| {
        let mut found = head
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(name));
        found.next().map(|field| field.value)
    };
    // A body would be taken for the next request.
    let has_body = field("Content-Length").is_some_and(|len| len != b"0")
        || field("Transfer-Encoding").is_some();
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => Method::Other,
    };
    let closes = field("Connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
    let path = head.path.unwrap_or_default();
    let request = Request {
        method,
        path: path.split('?').next().unwrap_or_default().to_owned(),
        range: field("Range").and_then(Range::parsed),
        keeps_alive: head.version == Some(1) && !closes && !has_body,
    };
    Parsed::Request(request, len)
}

/// What goes with a status, for people who look at the wire.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        _ => "Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Request {
        Request {
            path: path.into(),
            keeps_alive: true,
            ..Request::last()
        }
    }

    #[test]
    fn requests_are_understood_one_after_another() {
        let first = "GET /v2/?n=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        let second = "HEAD /a HTTP/1.1\r\nrange: bytes=1-2\r\nCONNECTION: Close\r\n\r\n";
        let both = format!("{first}{second}");
        assert_eq!(
            parsed(both.as_bytes()),
            Parsed::Request(get("/v2/"), first.len())
        );
        let expected = Request {
            method: Method::Head,
            path: "/a".into(),
            range: Some(Range::From(1, Some(2))),
            keeps_alive: false,
        };
        assert_eq!(
            parsed(second.as_bytes()),
            Parsed::Request(expected, second.len())
        );
    }

    #[test]
    fn after_a_body_or_http_1_0_the_connection_ends() {
        for request in [
            "GET / HTTP/1.0\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            match parsed(request.as_bytes()) {
                Parsed::Request(request, _) => assert!(!request.keeps_alive),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(parsed(b""), Parsed::Partial);
        assert_eq!(parsed(b"GET / HTTP/1.1\r\nHost:"), Parsed::Partial);
        for bytes in [
            &b"GET / HTTP/2.0\r\n\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01",
            b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
            b"GET\r\n\r\n",
        ] {
            assert_eq!(parsed(bytes), Parsed::Malformed(400));
        }
        let fields = "a: b\r\n".repeat(FIELDS_LIMIT + 1);
        let request = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(parsed(request.as_bytes()), Parsed::Malformed(431));
    }

    #[test]
    fn ranges_are_brought_inside_the_object() {
        for (field, within) in [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=2-", Some((2, 10))),
            ("bytes=2-99", Some((2, 10))),
            ("bytes=-3", Some((7, 10))),
            ("bytes=-99", Some((0, 10))),
            ("bytes=10-", None),
            ("bytes=-0", None),
            ("bytes=0-18446744073709551615", Some((0, 10))),
        ] {
            let range = Range::parsed(field.as_bytes()).unwrap();
            assert_eq!(range.within(10), within, "{field}");
        }
    }

    #[test]
    fn ranges_that_are_not_understood_count_as_absent() {
        for field in [
            "bytes=2-1",
            "bytes=0-0,2-3",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "items=0-1",
            "",
        ] {
            assert_eq!(Range::parsed(field.as_bytes()), None, "{field}");
        }
    }
}
