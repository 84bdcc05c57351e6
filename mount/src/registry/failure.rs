//! One failed try, and whether another makes sense.

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::StatusCode;
use serde::Deserialize;

use super::settings::Settings;
use crate::blob::BlobError;
use crate::metric;

/// Tries in a row that may fail without a byte of progress.
const TRIES: u32 = 6;

/// The longest pause that we choose; a registry may ask for a longer one.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// Why one try failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Host and port that were asked.
    pub(super) place: String,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// No connection, or none any more, or nothing came over it.
    Connection(Box<dyn Error + Send + Sync>),
    /// An answer with a status that means no.
    Status {
        status: StatusCode,
        /// What the body and our own knowledge say about it.
        text: String,
        retry_after: Option<Duration>,
    },
    /// An answer that does not fit the question.
    Wrong(String),
    /// Nobody wants the bytes any more.
    Unwanted,
}

impl Failure {
    pub(super) fn connection(place: &str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            place: place.to_owned(),
            kind: Kind::Connection(cause.into()),
        }
    }

    pub(super) fn wrong(place: &str, problem: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            kind: Kind::Wrong(problem.into()),
        }
    }

    pub(super) fn is_connection(&self) -> bool {
        matches!(self.kind, Kind::Connection(_))
    }

    /// Whether a signed URL that worked before would fail like this once it has expired.
    pub(super) fn means_expired(&self) -> bool {
        match &self.kind {
            Kind::Status { status, text, .. } => match status.as_u16() {
                401 | 403 | 404 | 410 => true,
                400 => text.contains("ExpiredToken"),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the range that was asked for lies behind the end.
    pub(super) fn is_beyond_the_end(&self) -> bool {
        matches!(self.kind, Kind::Status { status, .. } if status == StatusCode::RANGE_NOT_SATISFIABLE)
    }

    /// Whether the answer says `words`.
    pub(super) fn mentions(&self, words: &str) -> bool {
        matches!(&self.kind, Kind::Status { text, .. } if text.contains(words))
    }

    /// Whether somebody was there, but spoke no HTTP.
    pub(super) fn is_gibberish(&self) -> bool {
        match &self.kind {
            Kind::Connection(cause) => cause
                .downcast_ref::<reqwest::Error>()
                .is_some_and(|error| !error.is_connect() && !error.is_timeout()),
            _ => false,
        }
    }

    /// Whether the other side speaks TLS, but is nobody we trust.
    pub(super) fn is_about_certificates(&self) -> bool {
        match &self.kind {
            Kind::Connection(cause) => mentions(cause.as_ref(), "invalid peer certificate"),
            _ => false,
        }
    }

    fn is_passing(&self) -> bool {
        match &self.kind {
            Kind::Connection(cause) => !is_lasting(cause.as_ref()),
            Kind::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            Kind::Wrong(_) | Kind::Unwanted => false,
        }
    }

    /// The error that the caller gets when no further try is made.
    pub(super) fn into_error(self, object: &str, waited: Duration) -> BlobError {
        let (object, place) = (object.to_owned(), self.place);
        match self.kind {
            Kind::Connection(source) => BlobError::Unreachable {
                object,
                place,
                waited: Duration::from_millis(waited.as_millis() as u64),
                source: Some(source),
            },
            Kind::Status { status, text, .. } => BlobError::Refused {
                object,
                place,
                answer: text,
                status: Some(status.as_u16()),
            },
            Kind::Wrong(problem) => BlobError::Wrong {
                object,
                problem: format!("{place} {problem}"),
            },
            Kind::Unwanted => BlobError::Wrong {
                object,
                problem: "reading it was given up".into(),
            },
        }
    }
}

/// Whether connecting will fail in the same way the next time: nobody of this name, or nobody to trust.
fn is_lasting(cause: &(dyn Error + 'static)) -> bool {
    mentions(cause, "invalid peer certificate") || mentions(cause, "Name or service not known")
}

fn mentions(cause: &(dyn Error + 'static), words: &str) -> bool {
    cause.to_string().contains(words) || cause.source().is_some_and(|cause| mentions(cause, words))
}

/// The tries at one object: how many, since when, until when.
#[derive(Debug)]
pub(super) struct Tries {
    began: Instant,
    deadline: Instant,
    failed: u32,
    limit: u32,
    backoff: Duration,
}

impl Tries {
    pub(super) fn until(deadline: Instant, settings: &Settings) -> Self {
        Self {
            began: Instant::now(),
            deadline,
            failed: 0,
            limit: TRIES,
            backoff: settings.backoff,
        }
    }

    /// One: there is another place to ask.
    pub(super) fn one(deadline: Instant, settings: &Settings) -> Self {
        Self {
            limit: 1,
            ..Self::until(deadline, settings)
        }
    }

    /// As many as there is time for: somebody waits who would get an error otherwise.
    pub(super) fn all_until(deadline: Instant, settings: &Settings) -> Self {
        Self {
            limit: u32::MAX,
            ..Self::until(deadline, settings)
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn waited(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    /// Bytes came: what failed before is forgiven, and the time runs until `deadline`.
    pub(super) fn progressed(&mut self, deadline: Instant) {
        self.began = Instant::now();
        self.deadline = deadline;
        self.failed = 0;
    }

    /// Waits for as long as is good after `failure`; gives it back when there is no sense in another try.
    pub(super) async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        if !failure.is_passing() || self.failed >= self.limit {
            return Err(failure);
        }
        let asked = match failure.kind {
            Kind::Status { retry_after, .. } => retry_after,
            _ => None,
        };
        let pause = asked.unwrap_or_else(|| jittered(self.backoff, self.failed));
        if pause >= self.deadline.saturating_duration_since(Instant::now()) {
            return Err(failure);
        }
        tracing::debug!(?pause, ?failure, "trying again");
        metric::RETRIES.add(1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// `backoff` doubled for each failure after the first, shortened by up to half so that a thousand tasks do not
/// come back together.
fn jittered(backoff: Duration, failed: u32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let doubled = backoff.saturating_mul(2u32.pow(failed.saturating_sub(1).min(10)));
    let whole = doubled.min(PAUSE_LIMIT);
    // The standard library's only source of randomness.
    let random = RandomState::new().hash_one(failed) as u32;
    whole.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// `Retry-After`: seconds, or a date in its preferred form (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    let since_1970 = Duration::from_secs(date.timestamp().try_into().ok()?);
    let then = UNIX_EPOCH.checked_add(since_1970)?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// What a registry's error body says, in one short line: `{"errors":[{"code":…,"message":…}]}`, the token server's
/// `{"details":…}`, S3's XML, or text.
pub(super) fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        details: Option<String>,
        message: Option<String>,
        error: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = String::from_utf8_lossy(body);
    let said = match serde_json::from_slice::<Body>(body) {
        Ok(body) if !body.errors.is_empty() => {
            let each = body.errors.iter().take(3);
            each.map(|entry| match entry.message.is_empty() {
                true => entry.code.clone(),
                false => entry.message.clone(),
            })
            .collect::<Vec<_>>()
            .join("; ")
        }
        Ok(body) => body
            .details
            .or(body.message)
            .or(body.error)
            .unwrap_or_default(),
        Err(_) => match (
            between(&text, "<Code>", "</Code>"),
            between(&text, "<Message>", "</Message>"),
        ) {
            (Some(code), message) => format!("{code} {}", message.unwrap_or_default()),
            // Of a page for a browser, only the title fits into a line.
            (None, _) if text.trim_start().starts_with('<') => {
                between(&text, "<title>", "</title>")
                    .unwrap_or_default()
                    .to_owned()
            }
            (None, _) => text.into_owned(),
        },
    };
    let printable = said.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(200).collect::<String>().trim().to_owned()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(retry_after("17", at(0)), Some(Duration::from_secs(17)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            retry_after(date, at(784_111_770)),
            Some(Duration::from_secs(7))
        );
        assert_eq!(retry_after(date, at(784_111_999)), Some(Duration::ZERO));
        assert_eq!(
            retry_after("Thu, 29 Feb 2024 00:00:00 GMT", at(1_709_164_799)),
            Some(Duration::from_secs(1))
        );
        for wrong in [
            "",
            "-1",
            "soon",
            "Sun, 06 Nox 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49",
        ] {
            assert_eq!(retry_after(wrong, at(0)), None, "{wrong}");
        }
    }

    #[test]
    fn error_bodies_become_one_line() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#,
                "not yours",
            ),
            (
                r#"{"errors":[{"code":"DENIED"},{"code":"X"}]}"#,
                "DENIED; X",
            ),
            (
                r#"{"details":"incorrect username or password"}"#,
                "incorrect username or password",
            ),
            (
                "<Error><Code>ExpiredToken</Code><Message>too late</Message></Error>",
                "ExpiredToken too late",
            ),
            ("<html>hello</html>", ""),
            ("<html><title>400 No</title></html>", "400 No"),
            ("plain\nwords\n", "plain words"),
        ] {
            assert_eq!(said(body.as_bytes()), expected);
        }
        assert_eq!(said(&[b'x'; 4096]).len(), 200);
    }

    #[test]
    fn pauses_double_and_stay_bounded() {
        let backoff = Duration::from_millis(250);
        for failed in 1..40 {
            let pause = jittered(backoff, failed);
            assert!(
                pause >= backoff / 2 && pause <= PAUSE_LIMIT,
                "{failed}: {pause:?}"
            );
        }
        assert!(jittered(backoff, 4) >= Duration::from_secs(1));
    }
}
