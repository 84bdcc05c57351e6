//! Registries: the only HTTP. Blocking calls for ordinary threads; every wait ends.
//!
//! A client of our own on `reqwest`: one request per range, tokens kept until they expire, a blob's final URL
//! asked once. Nothing that comes back has been verified, except manifests.

mod answer;
mod auth;
mod challenge;
mod client;
mod credential;
mod failure;
pub mod login;
mod network;
mod platform;
mod push;
mod remote;
mod settings;
mod stream;

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::Method;

use self::client::{Access, Client, Question};
use self::network::Network;
use self::remote::Remote;
use self::stream::Stream;
use crate::blob::{Blob, BlobError, Patience};
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::reference::{DEFAULT_TAG, RegistryReference};

pub use self::platform::Platform;
pub use self::push::Destination;
pub use self::settings::{Credentials, Secret, Settings};

/// Manifests and indexes are never longer (the distribution specification's own limit).
pub const MANIFEST_BYTES_LIMIT: usize = 4 << 20;

/// What we can make sense of, with what we like best in front.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// One repository at one registry. Clones share connections, tokens and limits; threads start at the first request.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    client: Arc<Client>,
    reference: RegistryReference,
    network: OnceLock<Arc<Network>>,
    /// A manifest that came when only its digest was asked for.
    spare: Mutex<Option<(Digest, Bytes)>>,
}

impl Registry {
    /// The repository that `reference` names. Nothing is asked yet.
    pub fn new(reference: &RegistryReference, settings: &Settings) -> Self {
        Self::with_access(reference, settings, Access::Read)
    }

    fn with_access(reference: &RegistryReference, settings: &Settings, access: Access) -> Self {
        Self(Arc::new(Shared {
            client: Arc::new(Client::new(reference, settings.clone(), access)),
            reference: reference.clone(),
            network: OnceLock::new(),
            spare: Mutex::new(None),
        }))
    }

    /// Asks the registry at `host` whether it lets us in, with the credentials that the settings have for it.
    pub fn greet(host: &str, settings: &Settings) -> Result<(), BlobError> {
        let itself = RegistryReference {
            host: host.to_owned(),
            repository: String::new(),
            tag: None,
            digest: None,
        };
        let object = format!("registry {host}");
        Self::new(&itself, settings)
            .small(Method::GET, "", MANIFEST_BYTES_LIMIT, &object)
            .map(|_| ())
    }

    /// The digest of the manifest or index that the reference means: by digest without asking, by tag with one HEAD,
    /// which Docker Hub does not count, or a GET where HEAD does not tell it.
    pub fn resolve(&self) -> Result<Digest, BlobError> {
        if let Some(digest) = self.0.reference.digest {
            return Ok(digest);
        }
        let tag = self.0.reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
        let object = format!("manifest docker://{}", self.0.reference);
        let path = format!("manifests/{tag}");
        match self.small(Method::HEAD, &path, MANIFEST_BYTES_LIMIT, &object) {
            Ok((Some(digest), _)) => return Ok(digest),
            Ok((None, _)) => {}
            Err(BlobError::Refused {
                status: Some(400 | 404 | 405 | 406 | 501),
                ..
            }) => {
                // Its answer to HEAD has no words, and some registries do not know HEAD.
            }
            Err(error) => return Err(error),
        }
        let (_, body) = self.small(Method::GET, &path, MANIFEST_BYTES_LIMIT, &object)?;
        let digest = Digest::of(&body);
        *self.0.spare.lock() = Some((digest, body));
        Ok(digest)
    }

    /// The bytes of a manifest or index, which match `digest`.
    pub fn manifest(&self, digest: Digest) -> Result<Bytes, BlobError> {
        if let Some((_, body)) = self.0.spare.lock().take_if(|(spare, _)| *spare == digest) {
            return Ok(body);
        }
        let object = format!("manifest {digest}");
        let path = format!("manifests/{digest}");
        let (_, body) = self.small(Method::GET, &path, MANIFEST_BYTES_LIMIT, &object)?;
        match Digest::of(&body) == digest {
            true => Ok(body),
            false => Err(BlobError::Wrong {
                object,
                problem: format!(
                    "{} sent other bytes than this digest's",
                    self.0.client.place()
                ),
            }),
        }
    }

    /// The index of manifests that say something about `subject` (distribution-spec, "Listing Referrers"), from a registry
    /// that does not know the question under the tag that stands for the answer. `None` if there is neither.
    pub fn referrers(&self, subject: Digest, kind: &str) -> Result<Option<Bytes>, BlobError> {
        let object = format!("what refers to {subject}");
        let kind = kind.replace('+', "%2B");
        let asked = format!("referrers/{subject}?artifactType={kind}");
        let tag = format!("manifests/{}", subject.to_string().replace(':', "-"));
        for path in [asked, tag] {
            match self.small(Method::GET, &path, MANIFEST_BYTES_LIMIT, &object) {
                // Some answer with a page for people.
                Ok((_, body)) if body.trim_ascii_start().starts_with(b"{") => {
                    return Ok(Some(body));
                }
                Ok(_) => {}
                Err(BlobError::Refused {
                    status: Some(400..=405),
                    ..
                }) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }

    /// A blob of this repository.
    pub fn blob(&self, digest: Digest, size: u64) -> Arc<dyn Blob> {
        let remote = Remote::new(self.0.client.clone(), digest, size);
        Arc::new(RemoteBlob {
            registry: self.clone(),
            remote: Arc::new(remote),
        })
    }

    fn small(
        &self,
        method: Method,
        path: &str,
        limit: usize,
        object: &str,
    ) -> Result<(Option<Digest>, Bytes), BlobError> {
        let question = Question {
            method,
            path,
            accept: Some(ACCEPT),
            range: None,
            body: None,
        };
        let work = self.0.client.small(question, limit, object);
        let (headers, body) = self.network(object)?.wait_for(work)?;
        let digest = headers
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok((digest, body.into()))
    }

    fn network(&self, object: &str) -> Result<&Arc<Network>, BlobError> {
        if let Some(network) = self.0.network.get() {
            return Ok(network);
        }
        let network = Network::new(&self.0.client.settings).map_err(|error| BlobError::Wrong {
            object: object.to_owned(),
            problem: format!("no threads to fetch it with: {error}"),
        })?;
        Ok(self.0.network.get_or_init(|| Arc::new(network)))
    }
}

struct RemoteBlob {
    registry: Registry,
    remote: Arc<Remote>,
}

impl Blob for RemoteBlob {
    fn digest(&self) -> Digest {
        self.remote.digest
    }

    fn size(&self) -> u64 {
        self.remote.size
    }

    fn read(&self, at: PackedOffset, len: usize, deadline: Instant) -> Result<Bytes, BlobError> {
        let object = self.remote.object();
        let end =
            at.0.checked_add(len as u64)
                .filter(|&end| end <= self.size());
        let end = end.ok_or_else(|| BlobError::Wrong {
            problem: format!("{len} bytes at {} are not within its {}", at.0, self.size()),
            object: object.clone(),
        })?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let network = self.registry.network(&object)?;
        network.wait_for(self.remote.bytes(at.0..end, deadline))
    }

    fn pour(
        &self,
        range: Range<u64>,
        patience: Patience,
        each: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), BlobError> {
        let object = self.remote.object();
        if range.start > range.end || range.end > self.size() {
            let problem = format!("{range:?} is not within its {}", self.size());
            return Err(BlobError::Wrong { object, problem });
        }
        if range.is_empty() {
            return Ok(());
        }
        let network = self.registry.network(&object)?;
        network.wait_for(self.remote.poured(range, patience, each))
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>, BlobError> {
        let network = self.registry.network(&self.remote.object())?;
        Ok(Box::new(Stream::new(network.clone(), self.remote.clone())))
    }

    fn is_remote(&self) -> bool {
        true
    }
}
