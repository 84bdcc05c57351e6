//! An answer whose body is still on its way.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::failure::{Failure, Kind, retry_after, said};
use crate::metric;

/// The part of an error's body that is read.
const ERROR_BYTES_LIMIT: usize = 16 << 10;

/// Status and headers, and the body to come. Holds a place among the host's connections until it is dropped.
pub(super) struct Answer {
    place: String,
    response: reqwest::Response,
    stall: Duration,
    permit: Option<OwnedSemaphorePermit>,
}

impl Answer {
    pub(super) fn new(
        place: String,
        response: reqwest::Response,
        stall: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            place,
            response,
            stall,
            permit: Some(permit),
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The header as text, where it is there and is text.
    pub(super) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Length of the body as its header says.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header(reqwest::header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Lets others connect although this body is not finished, because its reader may take any time.
    pub(super) fn release(&mut self) {
        self.permit = None;
    }

    /// The next bytes of the body; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match timeout(self.stall, self.response.chunk()).await {
            Ok(Ok(bytes)) => {
                metric::RECEIVED.add(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
                Ok(bytes)
            }
            Ok(Err(error)) => Err(Failure::connection(&self.place, error.without_url())),
            Err(_) => {
                let problem = format!("no byte came for {:?}", self.stall);
                Err(Failure::connection(&self.place, problem))
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) async fn body(mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(bytes) = self.next().await? {
            if body.len() + bytes.len() > limit {
                let problem = format!("sent more than {limit} bytes");
                return Err(Failure::wrong(&self.place, problem));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// Itself, if its status is one of success.
    pub(super) async fn success(self) -> Result<Self, Failure> {
        match self.status().is_success() {
            true => Ok(self),
            false => Err(self.refusal("").await),
        }
    }

    /// The answer as a failure, with what its body says and a `remark` of ours.
    pub(super) async fn refusal(mut self, remark: &str) -> Failure {
        let status = self.status();
        let retry_after = self
            .header(RETRY_AFTER)
            .and_then(|value| retry_after(value, SystemTime::now()));
        let mut body = Vec::new();
        while let Ok(Some(bytes)) = self.next().await
            && body.len() < ERROR_BYTES_LIMIT
        {
            body.extend_from_slice(&bytes);
        }
        body.truncate(ERROR_BYTES_LIMIT);
        let mut text = status.to_string();
        for (before, more) in [(": ", said(&body).as_str()), (", ", remark)] {
            if !more.is_empty() {
                text.push_str(before);
                text.push_str(more);
            }
        }
        Failure {
            place: self.place,
            kind: Kind::Status {
                status,
                text,
                retry_after,
            },
        }
    }
}
