//! Registries: the only HTTP. Blocking calls for ordinary threads; every wait ends.
//!
//! A client of our own on `reqwest`: one request per range, tokens kept until they expire, a blob's final URL
//! asked once. Nothing that comes back has been verified, except manifests.

mod answer;
mod auth;
mod challenge;
mod client;
mod content;
mod credential;
mod engine;
mod failure;
pub mod login;
mod mirrors;
mod network;
mod place;
mod platform;
mod push;
mod remote;
mod settings;
mod stream;
mod way;
mod web;

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::Method;

use self::client::{Access, Client, Question};
use self::mirrors::{Place, by_health, mirrors};
use self::network::Network;
use self::remote::Remote;
use self::stream::Stream;
use crate::blob::{Blob, BlobError, Patience};
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::reference::{DEFAULT_TAG, RegistryReference};

pub use self::content::OnSent;
pub use self::engine::{engine_image, engine_image_id};
pub use self::platform::Platform;
pub use self::push::Destination;
pub use self::settings::{Credentials, Secret, Settings};
pub use self::web::{WebFile, web_file};

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
    /// Mirrors, then the registry itself.
    places: Vec<Place>,
    settings: Settings,
    reference: RegistryReference,
    /// How the user calls what is in it.
    scheme: &'static str,
    network: OnceLock<Arc<Network>>,
    /// A manifest that came when only its digest was asked for.
    spare: Mutex<Option<(Digest, Bytes)>>,
}

impl Shared {
    /// For the registry itself, whatever mirrors there are.
    fn client(&self) -> &Arc<Client> {
        let own = self.places.last();
        &own.expect("the registry itself is one of the places")
            .client
    }
}

impl Registry {
    /// The repository that `reference` names. Nothing is asked yet.
    pub fn new(reference: &RegistryReference, settings: &Settings) -> Self {
        Self::with_access(reference, settings, Access::Read, "docker")
    }

    /// The same, for the files in it, which are called `oras://` in messages.
    pub fn of_files(reference: &RegistryReference, settings: &Settings) -> Self {
        Self::with_access(reference, settings, Access::Read, "oras")
    }

    fn with_access(
        reference: &RegistryReference,
        settings: &Settings,
        access: Access,
        scheme: &'static str,
    ) -> Self {
        // What is written goes to the registry itself.
        let mirrors = match access {
            Access::Read => mirrors(reference, settings),
            Access::Write => Vec::new(),
        };
        let mirrors = mirrors.into_iter();
        let mut places: Vec<Place> = mirrors
            .map(|mirror| {
                let resolves_tags = mirror.resolves_tags;
                Place::new(Client::of_mirror(mirror, settings), resolves_tags)
            })
            .collect();
        places.push(Place::new(
            Client::new(reference, settings.clone(), access),
            true,
        ));
        Self(Arc::new(Shared {
            places,
            settings: settings.clone(),
            reference: reference.clone(),
            scheme,
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
        let (object, path) = self.tag();
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
        self.fetched_by_tag(&path, &object)
    }

    /// The same for one who will ask for the document itself next: one GET brings both.
    pub fn resolve_anew(&self) -> Result<Digest, BlobError> {
        if let Some(digest) = self.0.reference.digest {
            return Ok(digest);
        }
        let (object, path) = self.tag();
        self.fetched_by_tag(&path, &object)
    }

    /// What the reference's tag is called in messages, and where it is asked for.
    fn tag(&self) -> (String, String) {
        let tag = self.0.reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
        let object = format!("manifest {}://{}", self.0.scheme, self.0.reference);
        (object, format!("manifests/{tag}"))
    }

    fn fetched_by_tag(&self, path: &str, object: &str) -> Result<Digest, BlobError> {
        let (promised, body) = self.small(Method::GET, path, MANIFEST_BYTES_LIMIT, object)?;
        let digest = Digest::of(&body);
        if promised.is_some_and(|promised| promised != digest) {
            return Err(BlobError::Wrong {
                object: object.to_owned(),
                problem: format!(
                    "{} sent other bytes than those of the digest that it names",
                    self.0.reference.host
                ),
            });
        }
        *self.0.spare.lock() = Some((digest, body));
        Ok(digest)
    }

    /// Whether anything was asked for.
    pub fn is_connected(&self) -> bool {
        self.0.network.get().is_some()
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
                    self.0.reference.host
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
        let remote = |place: &Place| Arc::new(Remote::new(place.client.clone(), digest, size));
        Arc::new(RemoteBlob {
            registry: self.clone(),
            remotes: self.0.places.iter().map(remote).collect(),
        })
    }

    fn small(
        &self,
        method: Method,
        path: &str,
        limit: usize,
        object: &str,
    ) -> Result<(Option<Digest>, Bytes), BlobError> {
        let by_tag = path
            .strip_prefix("manifests/")
            .is_some_and(|name| name.parse::<Digest>().is_err());
        let places = by_health(&self.0.places);
        let places = places
            .into_iter()
            .filter(|place| place.resolves_tags || !by_tag);
        let places: Vec<&Place> = places.collect();
        let mut failed = None;
        for (number, place) in places.iter().enumerate() {
            let question = Question {
                method: method.clone(),
                path,
                accept: Some(ACCEPT),
                range: None,
                body: None,
            };
            let is_only = number + 1 == places.len();
            let work = place.client.small(question, limit, object, is_only);
            match self.network(object)?.wait_for(work) {
                Ok((headers, body)) => {
                    place.did_well();
                    let digest = headers
                        .get("docker-content-digest")
                        .and_then(|value| value.to_str().ok()?.parse().ok());
                    return Ok((digest, body.into()));
                }
                Err(error) => {
                    failed = Some(self.passed_over(place, error));
                }
            }
        }
        Err(failed.expect("the registry itself is one of the places"))
    }

    /// Remembers that a mirror failed. What a mirror says is told only where it matters: the registry itself comes last.
    fn passed_over(&self, place: &Place, error: BlobError) -> BlobError {
        if self.0.places.len() > 1 {
            let host = place.client.place();
            tracing::debug!(
                mirror = host,
                error = &error as &dyn std::error::Error,
                "asking the next"
            );
            // One that lacks an image may have the next.
            if !matches!(
                error,
                BlobError::Refused {
                    status: Some(400..=499),
                    ..
                }
            ) {
                place.avoid();
            }
        }
        error
    }

    fn network(&self, object: &str) -> Result<&Arc<Network>, BlobError> {
        if let Some(network) = self.0.network.get() {
            return Ok(network);
        }
        let network = Network::new(&self.0.settings).map_err(|error| BlobError::Wrong {
            object: object.to_owned(),
            problem: format!("no threads to fetch it with: {error}"),
        })?;
        Ok(self.0.network.get_or_init(|| Arc::new(network)))
    }
}

struct RemoteBlob {
    registry: Registry,
    /// One for each of the registry's places.
    remotes: Vec<Arc<Remote>>,
}

impl RemoteBlob {
    /// The registry's own.
    fn main(&self) -> &Arc<Remote> {
        self.remotes
            .last()
            .expect("the registry itself is one of the places")
    }

    /// In the order in which they are asked.
    fn by_health(&self) -> Vec<(&Place, &Arc<Remote>)> {
        let places = &self.registry.0.places;
        let (healthy, avoided): (Vec<_>, Vec<_>) = places
            .iter()
            .zip(&self.remotes)
            .partition(|(place, _)| place.is_healthy());
        healthy.into_iter().chain(avoided).collect()
    }

    fn within(&self, range: &Range<u64>) -> Result<(), BlobError> {
        if range.start <= range.end && range.end <= self.size() {
            return Ok(());
        }
        Err(BlobError::Wrong {
            object: self.main().object(),
            problem: format!("bytes {range:?} are not within its {}", self.size()),
        })
    }
}

impl Blob for RemoteBlob {
    fn digest(&self) -> Digest {
        self.main().digest
    }

    fn size(&self) -> u64 {
        self.main().size
    }

    fn read(&self, at: PackedOffset, len: usize, deadline: Instant) -> Result<Bytes, BlobError> {
        let range = at.0..at.0.saturating_add(len as u64);
        self.within(&range)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let network = self.registry.network(&self.main().object())?;
        if let [only] = &self.remotes[..] {
            return network.wait_for(only.bytes(range, deadline));
        }
        let mut read = bytes::BytesMut::new();
        let each = &mut |bytes: Bytes| read.extend_from_slice(&bytes);
        self.pour(range, Patience::Until(deadline), each)?;
        Ok(read.freeze())
    }

    fn pour(
        &self,
        range: Range<u64>,
        patience: Patience,
        each: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), BlobError> {
        self.within(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        let network = self.registry.network(&self.main().object())?;
        let places = self.by_health();
        let mut from = range.start;
        for (number, (place, remote)) in places.iter().enumerate() {
            let is_last = number + 1 == places.len();
            let rest = from..range.end;
            let mut counted = |bytes: Bytes| {
                from += bytes.len() as u64;
                each(bytes);
            };
            let work = remote.poured(rest, patience, &mut counted, is_last);
            match network.wait_for(work) {
                Ok(()) => {
                    place.did_well();
                    return Ok(());
                }
                Err(error) => {
                    let error = self.registry.passed_over(place, error);
                    if is_last {
                        return Err(error);
                    }
                }
            }
        }
        unreachable!("the last place returns")
    }

    fn doubt(&self) {
        if let Some((place, _)) = self.by_health().first()
            && self.remotes.len() > 1
        {
            place.avoid();
        }
    }

    fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
        let network = self.registry.network(&self.main().object())?;
        let places = self.by_health().into_iter();
        let remotes = places.map(|(_, remote)| Arc::clone(remote)).collect();
        Ok(Box::new(Stream::new(network.clone(), remotes, range)))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn is_named_by_its_bytes(&self) -> bool {
        self.main().version.is_none()
    }
}
