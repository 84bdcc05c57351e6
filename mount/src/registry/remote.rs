//! Ranges of one blob. Where it really is, is asked once and remembered.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, ETAG, LAST_MODIFIED};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::timeout_at;

use super::answer::Answer;
use super::client::{Client, Question, Request};
use super::failure::{Failure, Kind, Tries};
use crate::blob::{BlobError, Patience};
use crate::digest::Digest;

/// A blob of this size is cut to a range here when the registry does not do it.
pub(super) const SMALL_BLOB_BYTES: u64 = 4 << 20;

/// What an answer has to bring within the settings' timeout to count as alive.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Memory set aside before the first byte came.
const TRUSTED_BYTES: u64 = 1 << 20;

/// One blob of a repository.
pub(super) struct Remote {
    pub(super) client: Arc<Client>,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// What it is called in messages.
    object: String,
    /// What must stay so, of a file that no digest vouches for.
    pub(super) version: Option<Version>,
    /// The lock is held while the place is asked for, so that all who need it wait for one request.
    location: Mutex<Option<Arc<Location>>>,
}

/// Where a blob's bytes come from.
enum Location {
    /// The registry sends them itself.
    Registry,
    /// It has sent us there, for now.
    Elsewhere { url: Url, is_same_origin: bool },
}

/// What a web server says of a file that tells its versions apart (RFC 9110, section 8.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) tag: Option<String>,
    pub(super) modified: Option<String>,
}

impl Version {
    pub(super) fn of(answer: &Answer) -> Self {
        let header = |name| answer.header(name).map(str::to_owned);
        Self {
            tag: header(ETAG),
            modified: header(LAST_MODIFIED),
        }
    }

    /// By the tag, which is exact, or else by the time. An answer without either, such as a cache's, tells nothing.
    fn is_still_that_of(&self, answer: &Answer) -> bool {
        let now = Self::of(answer);
        match (&self.tag, &now.tag) {
            (Some(tag), Some(now)) => tag == now,
            _ => match (&self.modified, &now.modified) {
                (Some(modified), Some(now)) => modified == now,
                _ => true,
            },
        }
    }
}

/// How often something is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// A few times.
    Usual,
    /// Once: there is another place to ask.
    Once,
    /// Until the deadline: a program would get an error otherwise.
    UntilDeadline,
}

/// Takes the bytes of a range, in order.
pub(super) trait Sink: Send {
    /// The rest of the blob follows, because the registry does not do ranges. False refuses that.
    fn whole(&mut self) -> bool {
        false
    }

    /// The registry does ranges.
    fn ranged(&mut self) {}

    /// How often to try.
    fn persistence(&self) -> Persistence {
        Persistence::Usual
    }

    /// Takes `bytes`, perhaps after waiting for room; false if nobody wants more.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

impl Sink for BytesMut {
    async fn take(&mut self, bytes: Bytes) -> bool {
        self.extend_from_slice(&bytes);
        true
    }
}

/// Hands what comes to a function of the one who asked.
struct Poured<'a> {
    each: &'a mut (dyn FnMut(Bytes) + Send),
    is_only: bool,
}

impl Sink for Poured<'_> {
    fn persistence(&self) -> Persistence {
        match self.is_only {
            true => Persistence::UntilDeadline,
            false => Persistence::Once,
        }
    }

    async fn take(&mut self, bytes: Bytes) -> bool {
        (self.each)(bytes);
        true
    }
}

/// Where a transfer stands, from one try to the next.
struct Transfer {
    start: u64,
    reached: u64,
    end: u64,
    /// The reader takes any time for what comes, and the connection waits for it.
    is_unbounded: bool,
    tries: Tries,
    patience: Patience,
    /// Bytes since the deadline was last moved.
    gained: u64,
    /// Places that did not work.
    stale: Option<Arc<Location>>,
    /// The place of the current try, if it was known before.
    remembered: Option<Arc<Location>>,
}

impl Remote {
    pub(super) fn new(client: Arc<Client>, digest: Digest, size: u64) -> Self {
        Self {
            client,
            digest,
            size,
            object: format!("blob {digest}"),
            version: None,
            location: Mutex::new(None),
        }
    }

    /// A file of which the server tells the version, and which is called `object`.
    pub(super) fn of_version(self, object: String, version: Version) -> Self {
        Self {
            object,
            version: Some(version),
            ..self
        }
    }

    pub(super) fn object(&self) -> String {
        self.object.clone()
    }

    /// Exactly the bytes of `range`.
    pub(super) async fn bytes(
        &self,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Bytes, BlobError> {
        let expected = (range.end - range.start).min(TRUSTED_BYTES);
        let mut bytes = BytesMut::with_capacity(expected as usize);
        self.transfer(range, Patience::Until(deadline), &mut bytes)
            .await?;
        Ok(bytes.freeze())
    }

    /// The bytes of `range`, handed to `each` in order as they come; tried once if there is another place to ask.
    pub(super) async fn poured(
        &self,
        range: Range<u64>,
        patience: Patience,
        each: &mut (dyn FnMut(Bytes) + Send),
        is_only: bool,
    ) -> Result<(), BlobError> {
        self.transfer(range, patience, &mut Poured { each, is_only })
            .await
    }

    /// Brings `range`, which is not empty and within the blob, to `sink`; goes on from the byte reached after a failure.
    pub(super) async fn transfer(
        &self,
        range: Range<u64>,
        patience: Patience,
        sink: &mut impl Sink,
    ) -> Result<(), BlobError> {
        let deadline = match patience {
            Patience::Until(deadline) => deadline,
            Patience::While(progress) => Instant::now() + progress,
        };
        let mut transfer = Transfer {
            start: range.start,
            reached: range.start,
            end: range.end,
            is_unbounded: false,
            tries: match (patience, sink.persistence()) {
                (_, Persistence::Once) => Tries::one(deadline, &self.client.settings),
                (Patience::Until(_), Persistence::UntilDeadline) => {
                    Tries::all_until(deadline, &self.client.settings)
                }
                _ => Tries::until(deadline, &self.client.settings),
            },
            patience,
            gained: 0,
            stale: None,
            remembered: None,
        };
        loop {
            let Err(mut failure) = self.one_try(&mut transfer, sink).await else {
                return Ok(());
            };
            if self.version.is_some() && failure.is_beyond_the_end() {
                failure = self.changed(&failure.place);
            }
            if let Some(remembered) = transfer.remembered.take()
                && (failure.means_expired()
                    || failure.is_connection() && transfer.tries.failed() > 0)
            {
                tracing::debug!(blob = %self.digest, ?failure, "asking again where it is");
                transfer.stale = Some(remembered);
                if failure.means_expired() {
                    continue;
                }
            }
            let paused = transfer.tries.pause(failure).await;
            paused
                .map_err(|failure| failure.into_error(&self.object(), transfer.tries.waited()))?;
        }
    }

    async fn one_try(&self, transfer: &mut Transfer, sink: &mut impl Sink) -> Result<(), Failure> {
        let deadline = transfer.tries.deadline().into();
        let opened = timeout_at(deadline, self.open(transfer)).await;
        let mut answer = opened.map_err(|_| self.late())??;
        self.check_version(&answer)?;
        let is_partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        let mut skip = match is_partial {
            true => {
                self.check_range(&answer, &transfer.range())?;
                sink.ranged();
                0
            }
            false => {
                self.check_whole(&answer, transfer, sink)?;
                transfer.reached
            }
        };
        if transfer.is_unbounded {
            answer.release();
        }
        while transfer.reached < transfer.end || is_partial {
            let deadline = transfer.tries.deadline().into();
            let next = timeout_at(deadline, answer.next()).await;
            let Some(mut bytes) = next.map_err(|_| self.late())?? else {
                break;
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let _ = bytes.split_to(skipped as usize);
            transfer.moved(skipped, Duration::ZERO);
            let left = transfer.end - transfer.reached;
            if bytes.len() as u64 > left {
                if is_partial {
                    return Err(Failure::wrong(
                        answer.place(),
                        "sent more than was asked for",
                    ));
                }
                bytes.truncate(left as usize);
            }
            self.hand_over(transfer, sink, bytes, answer.place())
                .await?;
        }
        match transfer.end - transfer.reached {
            0 => Ok(()),
            missing => {
                let problem = format!("the answer ended {missing} bytes early");
                Err(Failure::connection(answer.place(), problem))
            }
        }
    }

    fn late(&self) -> Failure {
        Failure::connection(self.client.place(), "the time for it was over")
    }

    async fn hand_over(
        &self,
        transfer: &mut Transfer,
        sink: &mut impl Sink,
        bytes: Bytes,
        place: &str,
    ) -> Result<(), Failure> {
        let len = bytes.len() as u64;
        if len == 0 {
            return Ok(());
        }
        let before = Instant::now();
        if !sink.take(bytes).await {
            return Err(Failure {
                place: place.to_owned(),
                kind: Kind::Unwanted,
            });
        }
        transfer.reached += len;
        // Waiting for the reader is nobody's fault, and does not count.
        transfer.moved(len, before.elapsed());
        Ok(())
    }

    /// The answer to a request for `range`, from the registry or from where it sends us.
    async fn open(&self, transfer: &mut Transfer) -> Result<Answer, Failure> {
        transfer.remembered = None;
        let range = &transfer.range();
        let path = format!("blobs/{}", self.digest);
        let question = Question {
            method: Method::GET,
            path: &path,
            accept: None,
            range: Some(range),
            body: None,
        };
        let mut location = self.location.lock().await;
        let known = location.clone().filter(|known| {
            let stale = transfer.stale.as_ref();
            !stale.is_some_and(|stale| Arc::ptr_eq(stale, known))
        });
        let Some(known) = known else {
            let (redirected, answer) = self.client.followed(question).await?;
            // A place that refuses is not worth remembering.
            let answer = answer.success().await?;
            *location = Some(Arc::new(self.location_of(redirected)));
            return Ok(answer);
        };
        drop(location);
        transfer.remembered = Some(known.clone());
        match &*known {
            Location::Registry => {
                let (redirected, answer) = self.client.followed(question).await?;
                let answer = answer.success().await?;
                if redirected.is_some() {
                    *self.location.lock().await = Some(Arc::new(self.location_of(redirected)));
                }
                Ok(answer)
            }
            Location::Elsewhere {
                url,
                is_same_origin,
            } => {
                let authorization = match is_same_origin {
                    true => self.client.authorization().await?,
                    false => None,
                };
                let request = Request {
                    range: Some(range),
                    authorization,
                    ..Request::get(url.clone())
                };
                self.client.send(request).await?.success().await
            }
        }
    }

    /// Whether the file is still the one that was opened.
    fn check_version(&self, answer: &Answer) -> Result<(), Failure> {
        match &self.version {
            Some(version) if !version.is_still_that_of(answer) => Err(self.changed(answer.place())),
            _ => Ok(()),
        }
    }

    fn changed(&self, place: &str) -> Failure {
        Failure::wrong(place, "has another file there now than when it was opened")
    }

    fn check_range(&self, answer: &Answer, range: &Range<u64>) -> Result<(), Failure> {
        let said = answer.header(CONTENT_RANGE).unwrap_or("nothing");
        let asked = format!("{}-{}", range.start, range.end - 1);
        let wrong = |problem: String| Err(Failure::wrong(answer.place(), problem));
        let Some((bounds, total)) = said
            .strip_prefix("bytes ")
            .and_then(|said| said.split_once('/'))
        else {
            return wrong(format!("was asked for bytes {asked} and sent {said:.100}"));
        };
        if bounds.trim() != asked {
            return wrong(format!(
                "was asked for bytes {asked} and sent bytes {bounds:.100}"
            ));
        }
        if total != "*" && total.parse() != Ok(self.size) {
            if self.version.is_some() {
                return Err(self.changed(answer.place()));
            }
            let size = self.size;
            return wrong(format!(
                "has {total:.30} bytes of it, but the manifest says {size}"
            ));
        }
        Ok(())
    }

    /// Whether an answer with the whole blob will do.
    fn check_whole(
        &self,
        answer: &Answer,
        transfer: &mut Transfer,
        sink: &mut impl Sink,
    ) -> Result<(), Failure> {
        let wrong = |problem: String| Err(Failure::wrong(answer.place(), problem));
        if answer.status() != StatusCode::OK {
            return wrong(format!(
                "answered {} when asked for a range",
                answer.status()
            ));
        }
        let size = self.size;
        if let Some(length) = answer.content_length().filter(|&length| length != size) {
            if self.version.is_some() {
                return Err(self.changed(answer.place()));
            }
            return wrong(format!(
                "has {length} bytes of it, but the manifest says {size}"
            ));
        }
        if transfer.covers_all(size) || size <= SMALL_BLOB_BYTES {
            return Ok(());
        }
        if !sink.whole() {
            return wrong("sends the whole blob when asked for a range of it".into());
        }
        transfer.is_unbounded = true;
        transfer.end = size;
        Ok(())
    }

    fn location_of(&self, redirected: Option<Url>) -> Location {
        match redirected {
            None => Location::Registry,
            Some(url) => Location::Elsewhere {
                is_same_origin: self.client.is_registry(&url),
                url,
            },
        }
    }
}

impl Transfer {
    /// What is still missing.
    fn range(&self) -> Range<u64> {
        self.reached..self.end
    }

    /// Some bytes came, which the reader let wait for so long.
    fn moved(&mut self, len: u64, held_up: Duration) {
        self.gained += len;
        if let Patience::While(progress) = self.patience
            && (self.gained >= PROGRESS_BYTES || held_up > progress / 2)
        {
            self.gained = 0;
            self.tries.progressed(Instant::now() + progress);
        }
    }

    fn covers_all(&self, size: u64) -> bool {
        self.start == 0 && self.end == size
    }
}
