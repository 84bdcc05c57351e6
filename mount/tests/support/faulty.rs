//! An HTTP server that answers as a test wants, faults included.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::http::{Message, received};

/// A server on a loopback port, until it is dropped.
pub struct Faulty {
    address: String,
    shared: Arc<Shared>,
}

type Handler = dyn Fn(&Message, usize) -> Reply + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    seen: Mutex<Vec<Message>>,
    counts: Mutex<HashMap<String, usize>>,
    is_over: AtomicBool,
}

/// What is sent back.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which something else happens.
    fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Close,
    Stall,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            fault: None,
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// What a good server answers to a request for `content` or a range of it.
    pub fn content(request: &Message, content: &[u8]) -> Self {
        match request.range() {
            Some((first, last)) if last < content.len() && first <= last => Self::status(206)
                .header(
                    "Content-Range",
                    format!("bytes {first}-{last}/{}", content.len()),
                )
                .body(&content[first..=last]),
            Some(_) => Self::status(416),
            None => Self::ok(content),
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.fault = Some((bytes, Fault::Close));
        self
    }

    /// Sends nothing more after so many bytes of the body.
    pub fn stall_after(mut self, bytes: usize) -> Self {
        self.fault = Some((bytes, Fault::Stall));
        self
    }
}

impl Faulty {
    /// Serves what `handler` says about a request, of which there were so many for the same method and path before.
    pub fn start(handler: impl Fn(&Message, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            seen: Mutex::default(),
            counts: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.is_over.load(Ordering::Relaxed) {
                    break;
                }
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        Self { address, shared }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Message> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many requests came for paths that contain `part`.
    pub fn count(&self, part: &str) -> usize {
        self.seen()
            .iter()
            .filter(|request| request.second().contains(part))
            .count()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = received(&mut reader)? {
            self.seen.lock().unwrap().push(request.clone());
            let key = format!("{} {}", request.method(), request.second());
            let before = {
                let mut counts = self.counts.lock().unwrap();
                let count = counts.entry(key).or_default();
                *count += 1;
                *count - 1
            };
            let reply = (self.handler)(&request, before);
            if !send(&stream, &reply, request.method() == "HEAD")? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether the connection can go on.
fn send(mut stream: &TcpStream, reply: &Reply, is_head: bool) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length");
    if !has_length {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if is_head {
        return Ok(true);
    }
    match reply.fault {
        None => {
            stream.write_all(&reply.body)?;
            Ok(true)
        }
        Some((bytes, fault)) => {
            stream.write_all(&reply.body[..bytes])?;
            if let Fault::Stall = fault {
                // Until the other side has had enough.
                let _ = stream.read(&mut [0; 64]);
            }
            let _ = stream.shutdown(std::net::Shutdown::Both);
            Ok(false)
        }
    }
}
