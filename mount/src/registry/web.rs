//! A file at a web server, read in ranges.
//!
//! Nobody tells its digest, so the server's word is taken. What is checked is that it stays the same file: its *version*,
//! the entity tag or the time of change, with its size, is what the store keeps what was read of it under; and each read
//! fails once the server has another one.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, StatusCode};
use tokio::time::timeout_at;

use super::answer::Answer;
use super::client::{Client, Question};
use super::failure::{Failure, Tries};
use super::mirrors::Place;
use super::remote::{Remote, SMALL_BLOB_BYTES, Version};
use super::settings::Settings;
use super::{Registry, RemoteBlob, Shared};
use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::reference::{RegistryReference, WebAddress};

/// What is asked for first: all that a SIF tells about itself, nearly always.
const HEAD_BYTES: u64 = 128 << 10;

/// No file is larger (1 TiB).
const FILE_BYTES_LIMIT: u64 = 1 << 40;

/// A file as it is at the server now.
pub struct WebFile {
    /// Its bytes. The digest is that of its address and version.
    pub blob: Arc<dyn Blob>,
    /// Its first bytes, which came with the first answer; perhaps none.
    pub head: Bytes,
    /// Whether the server sends parts of it, or it is so small that all of it does.
    pub does_ranges: bool,
}

/// Asks for the beginning of the file at `address`.
pub fn web_file(address: &WebAddress, settings: &Settings) -> Result<WebFile, BlobError> {
    let object = format!("file {}", address.without_query());
    let failed = |failure: Failure| failure.into_error(&object, Default::default());
    let client = Client::of_file(address, settings).map_err(failed)?;
    let registry = Registry(Arc::new(Shared {
        places: vec![Place::new(client, true)],
        settings: settings.clone(),
        reference: RegistryReference {
            host: address.host().to_owned(),
            repository: String::new(),
            tag: None,
            digest: None,
        },
        scheme: if address.is_plain() { "http" } else { "https" },
        network: Default::default(),
        spare: Default::default(),
    }));
    let client = registry.0.client().clone();
    let network = registry.network(&object)?;
    let Beginning {
        size,
        version,
        head,
        is_ranged,
    } = network.wait_for(client.beginning(&object))?;
    let digest = identity(address, size, &version, &head);
    let remote = Remote::new(client, digest, size).of_version(object, version);
    Ok(WebFile {
        blob: Arc::new(RemoteBlob {
            registry,
            remotes: vec![Arc::new(remote)],
        }),
        head,
        does_ranges: is_ranged || size <= SMALL_BLOB_BYTES,
    })
}

/// What the first answer tells.
struct Beginning {
    size: u64,
    version: Version,
    head: Bytes,
    is_ranged: bool,
}

impl Client {
    async fn beginning(&self, object: &str) -> Result<Beginning, BlobError> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut tries = Tries::until(deadline, &self.settings);
        loop {
            let failure = match timeout_at(deadline.into(), self.begin_once()).await {
                Ok(Ok(beginning)) => return Ok(beginning),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::connection(self.place(), "the time for it was over"),
            };
            let paused = tries.pause(failure).await;
            paused.map_err(|failure| failure.into_error(object, tries.waited()))?;
        }
    }

    async fn begin_once(&self) -> Result<Beginning, Failure> {
        let question = Question {
            method: Method::GET,
            path: "",
            accept: None,
            range: Some(&(0..HEAD_BYTES)),
            body: None,
        };
        let (_, answer) = self.followed(question).await?;
        let answer = match answer.success().await {
            Err(failure) if failure.is_beyond_the_end() => {
                return Err(Failure::wrong(&failure.place, "has an empty file there"));
            }
            answer => answer?,
        };
        let version = Version::of(&answer);
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            let size = checked_size(&answer, answer.content_length())?;
            return Ok(Beginning {
                size,
                version,
                head: Bytes::new(),
                is_ranged: false,
            });
        }
        let size = checked_size(&answer, total(&answer))?;
        let head = beginning_of(answer, size.min(HEAD_BYTES) as usize).await?;
        Ok(Beginning {
            size,
            version,
            head,
            is_ranged: true,
        })
    }
}

/// The size in an answer to a request for the first bytes.
fn total(answer: &Answer) -> Option<u64> {
    let said = answer.header(CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (bounds, total) = said.split_once('/')?;
    bounds
        .trim()
        .starts_with("0-")
        .then(|| total.parse().ok())?
}

fn checked_size(answer: &Answer, size: Option<u64>) -> Result<u64, Failure> {
    match size {
        None => Err(Failure::wrong(
            answer.place(),
            "does not tell the file's length",
        )),
        Some(0) => Err(Failure::wrong(answer.place(), "has an empty file there")),
        Some(size) if size > FILE_BYTES_LIMIT => Err(Failure::wrong(
            answer.place(),
            format!("claims that the file has {size} bytes"),
        )),
        Some(size) => Ok(size),
    }
}

async fn beginning_of(mut answer: Answer, len: usize) -> Result<Bytes, Failure> {
    let mut head = BytesMut::with_capacity(len);
    while head.len() < len
        && let Some(bytes) = answer.next().await?
    {
        head.extend_from_slice(&bytes);
    }
    match head.len() == len {
        true => Ok(head.freeze()),
        false => {
            let problem = format!("the answer had {} bytes where {len} belong", head.len());
            Err(Failure::connection(answer.place(), problem))
        }
    }
}

/// A name that no other version of the file has. Where the server tells nothing that would change with it, one that no later
/// look at it has either.
fn identity(address: &WebAddress, size: u64, version: &Version, head: &[u8]) -> Digest {
    let told = match version {
        Version {
            tag: None,
            modified: None,
        } => {
            tracing::warn!(
                "{}: the server does not tell versions apart: should the file change while it is used, nobody would notice",
                address.without_query()
            );
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            format!("as of {:?} for {}", now.ok(), std::process::id())
        }
        version => format!("tag {:?}, modified {:?}", version.tag, version.modified),
    };
    let name = format!(
        "file {address}: {size} bytes, {told}, {}\n",
        Digest::of(head)
    );
    Digest::of(name.as_bytes())
}
