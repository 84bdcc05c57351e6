//! Just enough HTTP/1.1 to push to a registry and to inject faults.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// First line, headers with names in lower case, and body.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub start: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(value)
    }

    /// The second word of the first line: a request's path or an answer's status.
    pub fn second(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// First and last byte that are asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// The next message on a connection; `None` when it was closed.
pub fn received(reader: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    if line(reader, &mut message.start)? == 0 {
        return Ok(None);
    }
    loop {
        let mut text = String::new();
        if line(reader, &mut text)? == 0 || text.is_empty() {
            break;
        }
        if let Some((name, value)) = text.split_once(':') {
            let name = name.to_ascii_lowercase();
            message.headers.push((name, value.trim().to_owned()));
        }
    }
    let len = message
        .header("content-length")
        .and_then(|len| len.parse().ok());
    message.body = vec![0; len.unwrap_or(0)];
    reader.read_exact(&mut message.body)?;
    Ok(Some(message))
}

fn line(reader: &mut impl BufRead, text: &mut String) -> io::Result<usize> {
    let mut bytes = Vec::new();
    let read = reader
        .by_ref()
        .take(1 << 16)
        .read_until(b'\n', &mut bytes)?;
    *text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    Ok(read)
}

/// One request on its own connection, and the answer.
pub fn asked(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Message> {
    let mut stream = TcpStream::connect(address)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let answer = received(&mut BufReader::new(stream))?;
    answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
