//! The other direction: blobs and manifests to a registry (distribution specification, "Push").

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::client::{Access, Body, Client, Condition, Question, Request, time_to_send};
use super::content::{Content, OnSent};
use super::failure::{Failure, Tries};
use super::place::{is_downgrade, target};
use super::settings::Settings;
use super::{ACCEPT, MANIFEST_BYTES_LIMIT, Registry};
use crate::blob::BlobError;
use crate::digest::Digest;
use crate::reference::RegistryReference;

/// How often a tag that several write at once is tried again.
const ROUNDS: u32 = 8;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One repository at one registry, to write to.
pub struct Destination(Registry);

impl Destination {
    /// The repository that `reference` names. Nothing is asked yet.
    pub fn new(reference: &RegistryReference, settings: &Settings) -> Self {
        Self(Registry::with_access(
            reference,
            settings,
            Access::Write,
            "docker",
        ))
    }

    /// Puts a blob there, if it is not there yet; gives its digest.
    pub fn blob(&self, bytes: &Bytes) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        self.content(digest, bytes.clone().into())?;
        Ok(digest)
    }

    /// Puts a blob there that is a file of this size and with this digest, if it is not there yet; whether it was sent. `sent` is
    /// told how many more bytes are on their way, and that so many are not, where they have to be sent once more.
    pub fn file(
        &self,
        digest: Digest,
        size: u64,
        file: Arc<File>,
        sent: OnSent,
    ) -> Result<bool, BlobError> {
        self.content(digest, Content::File { file, size, sent })
    }

    /// Whether it was not there yet.
    fn content(&self, digest: Digest, content: Content) -> Result<bool, BlobError> {
        let object = format!("blob {digest}");
        if self.has_blob(digest, &object)? {
            tracing::debug!("{object}: there already");
            return Ok(false);
        }
        let client = self.0.0.client();
        let work = client.upload(digest, &content, &object);
        self.0.network(&object)?.wait_for(work)?;
        Ok(true)
    }

    fn has_blob(&self, digest: Digest, object: &str) -> Result<bool, BlobError> {
        let path = format!("blobs/{digest}");
        match self.0.small(Method::HEAD, &path, 0, object) {
            Ok(_) => Ok(true),
            // Some do not know HEAD, and everyone knows an upload.
            Err(BlobError::Refused {
                status: Some(400 | 404 | 405 | 501),
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts a manifest or index there, by its digest or, with a name, under that tag. What it names must be there. Whether the
    /// registry lists it among the referrers of its subject, if it has one.
    pub fn manifest(
        &self,
        tag: Option<&str>,
        kind: &str,
        bytes: &Bytes,
    ) -> Result<bool, BlobError> {
        let digest = Digest::of(bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let headers = self.put(&name, kind, bytes, None)?;
        let taken = headers.get("docker-content-digest");
        let taken = taken.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        if let Some(taken) = taken.filter(|&taken| taken != digest) {
            return Err(BlobError::Wrong {
                object: format!("manifest {name}"),
                problem: format!(
                    "{} took it for {taken}, but it is {digest}",
                    self.0.0.client().place()
                ),
            });
        }
        Ok(headers.contains_key("oci-subject"))
    }

    /// Adds `entry`, a descriptor, to the index under the tag that stands for the answer to who refers to `subject` (distribution
    /// specification, "Referrers Tag Schema"). What others put there stays. Gives the tag.
    pub fn refer(&self, subject: Digest, entry: &Value) -> Result<String, BlobError> {
        let tag = subject.to_string().replace(':', "-");
        let object = format!("what refers to {subject}");
        let mut wanted = vec![entry.clone()];
        for _ in 0..ROUNDS {
            let (mut index, version) = self.referrers_index(&tag, &object)?;
            let Some(missing) = added(&mut index, &wanted) else {
                return Ok(tag);
            };
            wanted = missing;
            let bytes = Bytes::from(index.to_string());
            if bytes.len() > MANIFEST_BYTES_LIMIT {
                let problem = "there is no room for one more under its tag".into();
                return Err(BlobError::Wrong { object, problem });
            }
            match self.put(&tag, INDEX, &bytes, Some(version)) {
                Ok(_) => {}
                // Somebody else wrote to it in between.
                Err(BlobError::Refused {
                    status: Some(409 | 412),
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        let problem = format!("others changed tag {tag} whenever it was to be written");
        Err(BlobError::Wrong { object, problem })
    }

    /// The index under the tag, or an empty one, and the condition that it is still the same.
    fn referrers_index(&self, tag: &str, object: &str) -> Result<(Value, Condition), BlobError> {
        let path = format!("manifests/{tag}");
        let question = Question {
            method: Method::GET,
            path: &path,
            accept: Some(ACCEPT),
            range: None,
            body: None,
        };
        let client = self.0.0.client();
        let work = client.small(question, MANIFEST_BYTES_LIMIT, object, true);
        let (headers, body) = match self.0.network(object)?.wait_for(work) {
            Ok(found) => found,
            Err(BlobError::Refused {
                status: Some(404), ..
            }) => {
                let empty = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
                return Ok((empty, (IF_NONE_MATCH, HeaderValue::from_static("*"))));
            }
            Err(error) => return Err(error),
        };
        let index: Option<Value> = serde_json::from_slice(&body).ok();
        let index = index.filter(|index| index["manifests"].is_array());
        let index = index.ok_or_else(|| BlobError::Wrong {
            object: object.to_owned(),
            problem: format!("under tag {tag} is no index, but something else"),
        })?;
        let version = headers.get(ETAG).cloned();
        let version = version.unwrap_or(HeaderValue::from_static("*"));
        Ok((index, (IF_MATCH, version)))
    }

    fn put(
        &self,
        name: &str,
        kind: &str,
        bytes: &Bytes,
        condition: Option<Condition>,
    ) -> Result<HeaderMap, BlobError> {
        let object = format!("manifest {name}");
        let path = format!("manifests/{name}");
        let question = Question {
            method: Method::PUT,
            path: &path,
            accept: None,
            range: None,
            body: Some(Body {
                kind,
                content: bytes.clone().into(),
                condition,
            }),
        };
        let work = self
            .0
            .0
            .client()
            .small(question, MANIFEST_BYTES_LIMIT, &object, true);
        let (headers, _) = self.0.network(&object)?.wait_for(work)?;
        Ok(headers)
    }
}

/// Adds to `index` those of `wanted` that it lacks; `None` if it has them all. Else all that it should have after this,
/// so that a second look finds out what somebody else has overwritten.
fn added(index: &mut Value, wanted: &[Value]) -> Option<Vec<Value>> {
    let entries = index["manifests"].as_array_mut()?;
    let there: BTreeSet<String> = entries
        .iter()
        .filter_map(|entry| Some(entry["digest"].as_str()?.to_owned()))
        .collect();
    let is_missing = |entry: &&Value| {
        let digest = entry["digest"].as_str();
        digest.is_some_and(|digest| !there.contains(digest))
    };
    let missing: Vec<Value> = wanted.iter().filter(is_missing).cloned().collect();
    if missing.is_empty() {
        return None;
    }
    entries.extend(missing);
    Some(entries.clone())
}

impl Client {
    /// Sends a blob in one piece, all tries within the settings' timeout and the time that its bytes need.
    async fn upload(
        &self,
        digest: Digest,
        content: &Content,
        object: &str,
    ) -> Result<(), BlobError> {
        let deadline = Instant::now() + self.settings.timeout + time_to_send(content.size());
        let mut tries = Tries::until(deadline, &self.settings);
        loop {
            let one_try = self.upload_once(digest, content);
            let failure = match timeout_at(deadline.into(), one_try).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::connection(self.place(), "the time for it was over"),
            };
            let paused = tries.pause(failure).await;
            paused.map_err(|failure| failure.into_error(object, tries.waited()))?;
        }
    }

    /// POST for a place, then PUT to it.
    async fn upload_once(&self, digest: Digest, content: &Content) -> Result<(), Failure> {
        let path = "blobs/uploads/";
        let question = Question {
            method: Method::POST,
            path,
            accept: None,
            range: None,
            body: Some(Body {
                kind: "application/octet-stream",
                content: Bytes::new().into(),
                condition: None,
            }),
        };
        let (redirected, answer) = self.followed(question).await?;
        let answer = answer.success().await?;
        let asked = match redirected {
            Some(url) => url,
            None => self.url(path)?,
        };
        let mut url = target(&asked, &answer)?;
        if is_downgrade(&asked, &url) {
            let problem = "wants what is uploaded over HTTPS sent over plain HTTP";
            return Err(Failure::wrong(answer.place(), problem));
        }
        drop(answer);
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let authorization = match self.is_registry(&url) {
            true => self.authorization().await?,
            false => None,
        };
        let request = Request {
            method: Method::PUT,
            authorization,
            body: Some(Body {
                kind: "application/octet-stream",
                content: content.clone(),
                condition: None,
            }),
            ..Request::get(url)
        };
        let answer = self.send(request).await?.success().await?;
        let taken = answer.header("docker-content-digest");
        match taken.and_then(|taken| taken.parse::<Digest>().ok()) {
            Some(taken) if taken != digest => {
                let problem = format!("took it for {taken}");
                Err(Failure::wrong(answer.place(), problem))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_keeps_what_is_in_it_and_gets_what_it_lacks() {
        let entry = |digest: &str| json!({"digest": digest, "own": 1});
        let mut index = json!({"schemaVersion": 2, "manifests": [entry("a"), {"strange": 2}]});
        let all = added(&mut index, &[entry("b")]).unwrap();
        assert_eq!(
            index["manifests"],
            json!([entry("a"), {"strange": 2}, entry("b")])
        );
        assert_eq!(added(&mut index, &all), None);
        // Somebody who had not seen "b" wrote over it.
        let mut index = json!({"manifests": [entry("a"), entry("c")]});
        added(&mut index, &all).unwrap();
        assert_eq!(
            index["manifests"],
            json!([entry("a"), entry("c"), entry("b")])
        );
    }
}
