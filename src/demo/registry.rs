//! A registry inside this process: one repository, to be read only, on a loopback port that the kernel
//! chooses (OCI distribution specification, "Pull").

mod http;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sifon_mount::digest::Digest;

use self::http::{Connection, Method, Request, Requested};

/// What a registry has.
#[derive(Default)]
pub struct Repository {
    /// Its name, such as `demo`.
    pub name: String,
    /// Manifests with their media types.
    pub manifests: BTreeMap<Digest, (&'static str, Vec<u8>)>,
    /// Tags, and the manifests they name.
    pub tags: BTreeMap<String, Digest>,
    /// Configurations and layers.
    pub blobs: BTreeMap<Digest, Body>,
}

/// The bytes of a blob.
pub enum Body {
    /// In memory.
    Bytes(Vec<u8>),
    /// A file of this many bytes, which nobody changes.
    File(File, u64),
}

/// How often a registry was asked, and what it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests that were answered, with whatever status.
    pub requests: u64,
    /// Bytes of manifests and blobs, without what HTTP adds.
    pub bytes: u64,
}

/// A registry that answers until it is dropped; then it closes its connections and waits for its threads.
pub struct Registry {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    repository: Repository,
    requests: AtomicU64,
    bytes: AtomicU64,
    is_closing: AtomicBool,
    /// Open connections, so that closing can end the waits of their threads.
    connections: Mutex<HashMap<u64, TcpStream>>,
}

/// Connections at once at most; further ones are closed at once.
const CONNECTIONS_LIMIT: usize = 64;

/// How long a connection waits for a request, and for the other side to take an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 256 << 10;

impl Registry {
    /// Serves `repository` from threads of its own.
    pub fn serve(repository: Repository) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            repository,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let acceptor = thread::Builder::new().name("demo registry".into()).spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        })?;
        Ok(Self {
            shared,
            address,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has served so far.
    pub fn served(&self) -> Served {
        Served {
            requests: self.shared.requests.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        // The acceptor sees the flag when its wait ends: by this connection. If even that cannot be
        // made, waiting for it would be forever.
        if TcpStream::connect(self.address).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            let _ = acceptor.join();
        }
    }
}

/// Accepts until closing, then ends all connections and waits for their threads.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    for (number, stream) in (0..).zip(listener.incoming()) {
        if shared.is_closing.load(Ordering::SeqCst) {
            break;
        }
        threads.retain(|thread: &JoinHandle<()>| !thread.is_finished());
        let Ok(stream) = stream else {
            // The connection broke before it was accepted, or descriptors ran out: some may be free soon.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if threads.len() == CONNECTIONS_LIMIT {
            continue;
        }
        if let Ok(thread) = attend(number, stream, shared) {
            threads.push(thread);
        }
    }
    for stream in shared.open().values() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// A thread that answers on one connection until it ends.
fn attend(number: u64, stream: TcpStream, shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    shared.open().insert(number, stream.try_clone()?);
    let spawned = thread::Builder::new()
        .name("demo connection".into())
        .spawn({
            let shared = shared.clone();
            move || {
                // The other side went away, or was too slow: nobody is left to tell.
                let _ = shared.converse(Connection::new(stream));
                shared.open().remove(&number);
            }
        });
    if spawned.is_err() {
        shared.open().remove(&number);
    }
    spawned
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections
            .lock()
            .expect("nothing panics while it is held")
    }

    fn converse(&self, mut connection: Connection) -> io::Result<()> {
        loop {
            let (answer, request) = match connection.next_request()? {
                Requested::End => return Ok(()),
                Requested::Malformed(status) => (Answer::failed(status), Request::last()),
                Requested::Request(request) => (self.answer(&request), request),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.send(connection.stream(), &request, &answer)?;
            if !request.keeps_alive {
                return Ok(());
            }
        }
    }

    fn answer<'a>(&'a self, request: &Request) -> Answer<'a> {
        let Some(rest) = request.path.strip_prefix("/v2/") else {
            return Answer::failed(404);
        };
        if request.method == Method::Other {
            return Answer::failed(405);
        }
        if rest.is_empty() {
            return Answer::of("application/json", Content::Bytes(b"{}"), None);
        }
        let name = &self.repository.name;
        let place = rest
            .strip_prefix(name.as_str())
            .and_then(|place| place.strip_prefix('/'));
        let found = match place.and_then(|place| place.split_once('/')) {
            Some(("manifests", reference)) => self.manifest(reference),
            Some(("blobs", digest)) => self.blob(digest),
            _ => None,
        };
        match (found, request.range) {
            (None, _) => Answer::failed(404),
            (Some(answer), Some(range)) => answer.narrowed(range),
            (Some(answer), None) => answer,
        }
    }

    fn manifest(&self, reference: &str) -> Option<Answer<'_>> {
        let digest = match self.repository.tags.get(reference) {
            Some(digest) => *digest,
            None => reference.parse().ok()?,
        };
        let (media_type, bytes) = self.repository.manifests.get(&digest)?;
        Some(Answer::of(media_type, Content::Bytes(bytes), Some(digest)))
    }

    fn blob(&self, digest: &str) -> Option<Answer<'_>> {
        let digest = digest.parse().ok()?;
        let content = match self.repository.blobs.get(&digest)? {
            Body::Bytes(bytes) => Content::Bytes(bytes),
            Body::File(file, len) => Content::File(file, *len),
        };
        Some(Answer::of(
            "application/octet-stream",
            content,
            Some(digest),
        ))
    }

    fn send(&self, to: &mut TcpStream, request: &Request, answer: &Answer<'_>) -> io::Result<()> {
        to.write_all(answer.head(request.keeps_alive).as_bytes())?;
        if request.method == Method::Head {
            return Ok(());
        }
        let (mut at, end) = (answer.from, answer.end);
        let mut piece = Vec::new();
        while at < end {
            let len = (end - at).min(PIECE_BYTES as u64) as usize;
            // Counted first, so that whoever has the bytes finds them counted.
            if answer.digest.is_some() {
                self.bytes.fetch_add(len as u64, Ordering::Relaxed);
            }
            to.write_all(answer.content.piece(at, len, &mut piece)?)?;
            at += len as u64;
        }
        Ok(())
    }
}

/// Where the bytes of an answer come from.
#[derive(Clone, Copy)]
enum Content<'a> {
    Bytes(&'a [u8]),
    File(&'a File, u64),
}

impl<'a> Content<'a> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// `len` bytes from `at`, which lie inside; those of a file by way of `piece`.
    fn piece<'p>(&self, at: u64, len: usize, piece: &'p mut Vec<u8>) -> io::Result<&'p [u8]>
    where
        'a: 'p,
    {
        match self {
            Self::Bytes(bytes) => Ok(&bytes[at as usize..at as usize + len]),
            Self::File(file, _) => {
                piece.resize(len, 0);
                file.read_exact_at(piece, at)?;
                Ok(piece)
            }
        }
    }
}

/// What is said to one request.
struct Answer<'a> {
    status: u16,
    media_type: &'static str,
    content: Content<'a>,
    /// What it is known by; `None` for what only this exchange needs.
    digest: Option<Digest>,
    from: u64,
    end: u64,
}

impl<'a> Answer<'a> {
    fn of(media_type: &'static str, content: Content<'a>, digest: Option<Digest>) -> Self {
        Self {
            status: 200,
            media_type,
            content,
            digest,
            from: 0,
            end: content.len(),
        }
    }

    fn failed(status: u16) -> Self {
        let body: &[u8] = match status {
            404 => br#"{"errors":[{"code":"NOT_FOUND","message":"the demonstration has no such object"}]}"#,
            405 => br#"{"errors":[{"code":"UNSUPPORTED","message":"the demonstration can only be read"}]}"#,
            _ => br#"{"errors":[{"code":"UNSUPPORTED","message":"not a request that is understood"}]}"#,
        };
        Self {
            status,
            ..Self::of("application/json", Content::Bytes(body), None)
        }
    }

    /// The part that was asked for: 206, or 416 where there is none.
    fn narrowed(self, range: http::Range) -> Self {
        match range.within(self.content.len()) {
            Some((from, end)) => Self {
                status: 206,
                from,
                end,
                ..self
            },
            None => Self {
                status: 416,
                from: 0,
                end: 0,
                ..self
            },
        }
    }

    fn head(&self, keeps_alive: bool) -> String {
        let reason = http::reason(self.status);
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nDocker-Distribution-API-Version: registry/2.0\r\n\
             Content-Type: {}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\n",
            self.status,
            self.media_type,
            self.end - self.from
        );
        if let Some(digest) = self.digest {
            head += &format!("Docker-Content-Digest: {digest}\r\n");
        }
        let len = self.content.len();
        match self.status {
            206 => {
                head += &format!(
                    "Content-Range: bytes {}-{}/{len}\r\n",
                    self.from,
                    self.end - 1
                )
            }
            416 => head += &format!("Content-Range: bytes */{len}\r\n"),
            _ => {}
        }
        if !keeps_alive {
            head += "Connection: close\r\n";
        }
        head + "\r\n"
    }
}

#[cfg(test)]
mod tests;
