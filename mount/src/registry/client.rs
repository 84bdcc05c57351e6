//! One repository at one registry: requests with authentication, redirects, deadlines and retries.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::answer::Answer;
use super::auth::Auth;
use super::content::{Content, while_moving};
use super::failure::{Failure, Tries};
use super::mirrors::{Mirror, api_host};
use super::place::{is_downgrade, is_loopback, place_of, target};
use super::settings::Settings;
use super::way::{Way, web_client};
use crate::blob::BlobError;
use crate::metric;
use crate::reference::{RegistryReference, WebAddress};

/// Redirects that are followed from one request.
const HOPS: usize = 5;

/// Everything that requests to one repository share.
pub(super) struct Client {
    /// The registry as the user means it.
    pub(super) host: String,
    /// Where its API is.
    address: String,
    pub(super) repository: String,
    /// What a mirror is told about whom it stands for.
    namespace: Option<String>,
    /// The one file that is asked for, where the place is a web server and no registry.
    file: Option<Url>,
    pub(super) settings: Settings,
    pub(super) access: Access,
    pub(super) auth: Auth,
    uses_tls: AtomicBool,
    has_answered: AtomicBool,
    /// By [`Way`].
    webs: [OnceLock<reqwest::Client>; Way::ALL],
    permits: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The slowest line on which something is sent, in bytes per second: how long that takes cannot be seen while it does.
const SLOWEST_LINE: u64 = 32 << 10;

/// The time that sending so many bytes may take.
pub(super) fn time_to_send(len: u64) -> Duration {
    Duration::from_secs(len / SLOWEST_LINE)
}

/// One request, before it is sent.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Option<&'a str>,
    pub(super) range: Option<&'a Range<u64>>,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: Option<Body<'a>>,
}

/// What a request brings.
#[derive(Clone)]
pub(super) struct Body<'a> {
    /// Its media type.
    pub(super) kind: &'a str,
    pub(super) content: Content,
    pub(super) condition: Option<Condition>,
}

/// The header that says what must still be so at the registry for a body to be taken (RFC 9110, section 13.1); many registries
/// do not look at it.
pub(super) type Condition = (HeaderName, HeaderValue);

impl Request<'_> {
    pub(super) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            accept: None,
            range: None,
            authorization: None,
            body: None,
        }
    }
}

/// What is asked of the registry: a path below `/v2/REPOSITORY/`, and how.
#[derive(Clone)]
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) accept: Option<&'a str>,
    pub(super) range: Option<&'a Range<u64>>,
    pub(super) body: Option<Body<'a>>,
}

/// What we want to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Client {
    pub(super) fn new(reference: &RegistryReference, settings: Settings, access: Access) -> Self {
        let address = api_host(&reference.host).to_owned();
        let uses_tls = !settings.plain_http && !is_loopback(&address);
        Self {
            host: reference.host.clone(),
            address,
            repository: reference.repository.clone(),
            namespace: None,
            file: None,
            settings,
            access,
            auth: Auth::default(),
            uses_tls: AtomicBool::new(uses_tls),
            has_answered: AtomicBool::new(false),
            webs: Default::default(),
            permits: Mutex::new(HashMap::new()),
        }
    }

    /// For a mirror. A password that was given for this run is not for it.
    pub(super) fn of_mirror(mirror: Mirror, settings: &Settings) -> Self {
        let mut settings = settings.clone();
        settings.credentials = None;
        settings.plain_http = mirror.plain_http;
        settings.ca_files.extend(mirror.ca_files);
        let reference = RegistryReference {
            host: mirror.host,
            repository: mirror.repository,
            tag: None,
            digest: None,
        };
        Self {
            namespace: mirror.namespace,
            ..Self::new(&reference, settings, Access::Read)
        }
    }

    /// For a file at a web server, which gets no credentials of registries.
    pub(super) fn of_file(address: &WebAddress, settings: &Settings) -> Result<Self, Failure> {
        let url = Url::parse(address.as_str()).map_err(|error| {
            Failure::wrong(address.host(), format!("has no usable address: {error}"))
        })?;
        let settings = Settings {
            credentials: None,
            authfile: None,
            credential_files: Vec::new(),
            plain_http: address.is_plain(),
            ..settings.clone()
        };
        let reference = RegistryReference {
            host: address.host().to_owned(),
            repository: String::new(),
            tag: None,
            digest: None,
        };
        Ok(Self {
            address: address.host().to_owned(),
            file: Some(url),
            uses_tls: AtomicBool::new(!address.is_plain()),
            ..Self::new(&reference, settings, Access::Read)
        })
    }

    /// Host and port of the API, for messages.
    pub(super) fn place(&self) -> &str {
        &self.address
    }

    /// Whether credentials would travel in the open to the registry.
    pub(super) fn uses_tls(&self) -> bool {
        self.uses_tls.load(Ordering::Relaxed)
    }

    /// Whether `url` belongs to the registry itself, as far as our credentials are concerned.
    pub(super) fn is_registry(&self, url: &Url) -> bool {
        self.url("")
            .is_ok_and(|registry| registry.origin() == url.origin())
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, Failure> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let scheme = if self.uses_tls() { "https" } else { "http" };
        let (address, repository) = (&self.address, &self.repository);
        let repository = match repository.as_str() {
            // The registry itself, not one of its repositories.
            "" => String::new(),
            repository => format!("{repository}/"),
        };
        let mut url = Url::parse(&format!("{scheme}://{address}/v2/{repository}{path}"))
            .map_err(|error| Failure::wrong(address, format!("has no usable address: {error}")))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The headers and the body of a small object, of at most `limit` bytes, all tries within the settings' timeout;
    /// only one if there is another place to ask.
    pub(super) async fn small(
        &self,
        question: Question<'_>,
        limit: usize,
        object: &str,
        is_only: bool,
    ) -> Result<(HeaderMap, Vec<u8>), BlobError> {
        let sent = question.body.as_ref().map_or(0, |body| body.content.size());
        let deadline = Instant::now() + self.settings.timeout + time_to_send(sent);
        let mut tries = match is_only {
            true => Tries::until(deadline, &self.settings),
            false => Tries::one(deadline, &self.settings),
        };
        loop {
            let one_try = async {
                let (_, answer) = self.followed(question.clone()).await?;
                let answer = answer.success().await?;
                let headers = answer.headers().clone();
                Ok((headers, answer.body(limit).await?))
            };
            let failure = match timeout_at(deadline.into(), one_try).await {
                Ok(Ok(small)) => return Ok(small),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::connection(&self.address, "the time for it was over"),
            };
            let paused = tries.pause(failure).await;
            paused.map_err(|failure| failure.into_error(object, tries.waited()))?;
        }
    }

    /// The answer to `question` after redirects. With the final URL if there were any. Our authorization goes to
    /// the registry alone.
    pub(super) async fn followed(
        &self,
        question: Question<'_>,
    ) -> Result<(Option<Url>, Answer), Failure> {
        let mut answer = self.ask(question.clone()).await?;
        let registry = self.url(question.path)?;
        let mut url = registry.clone();
        for _ in 0..HOPS {
            if !is_redirect(answer.status()) {
                let redirected = (url != registry).then_some(url);
                return Ok((redirected, answer));
            }
            if question.body.is_some() && !keeps_method(answer.status()) {
                let problem = "redirects what was sent to it as if it had been asked for something";
                return Err(Failure::wrong(answer.place(), problem));
            }
            url = target(&url, &answer)?;
            // A blob is known by its digest, but whoever can change a manifest on its way chooses the image, and of a web
            // server's file nobody tells the digest.
            let matters =
                question.accept.is_some() || question.body.is_some() || self.file.is_some();
            if matters && is_downgrade(&registry, &url) {
                return Err(Failure::wrong(
                    answer.place(),
                    "redirects from HTTPS to plain HTTP",
                ));
            }
            let authorization = match self.is_registry(&url) {
                true => self.authorization().await?,
                false => None,
            };
            drop(answer);
            let request = Request {
                method: question.method.clone(),
                accept: question.accept,
                range: question.range,
                authorization,
                body: question.body.clone(),
                ..Request::get(url.clone())
            };
            answer = self.send(request).await?;
        }
        Err(Failure::wrong(
            &self.address,
            format!("redirects more than {HOPS} times"),
        ))
    }

    /// The registry's own answer, which may be a redirect. A 401 is answered with credentials or a new token, once.
    async fn ask(&self, question: Question<'_>) -> Result<Answer, Failure> {
        let mut authorization = self.authorization().await?;
        for is_last in [false, true] {
            let answer = self.ask_once(&question, authorization.clone()).await?;
            match answer.status() {
                StatusCode::UNAUTHORIZED if !is_last => {
                    match self.reauthorized(&answer, authorization.as_ref()).await? {
                        Some(renewed) => authorization = Some(renewed),
                        None => return Err(self.denied(answer).await),
                    }
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.denied(answer).await);
                }
                _ => return Ok(answer),
            }
        }
        unreachable!("the last pass returns")
    }

    async fn denied(&self, answer: Answer) -> Failure {
        let story = self.found().await.story.clone();
        answer.refusal(&format!("asked {story}")).await
    }

    async fn ask_once(
        &self,
        question: &Question<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let request = || {
            Ok(Request {
                method: question.method.clone(),
                url: self.url(question.path)?,
                accept: question.accept,
                range: question.range,
                authorization: authorization.clone(),
                body: question.body.clone(),
            })
        };
        let outcome = self.send(request()?).await;
        let is_open = self.settings.plain_http
            || self.uses_tls()
            || self.has_answered.load(Ordering::Relaxed);
        let outcome = match is_open {
            true => outcome,
            false => match unless_tls_is_wanted(outcome).await {
                Ok(outcome) => outcome,
                Err(failure) => {
                    self.uses_tls.store(true, Ordering::Relaxed);
                    let secured = self.send(request()?).await;
                    if secured.is_err() {
                        self.uses_tls.store(false, Ordering::Relaxed);
                    }
                    // Whoever says so wants TLS; one who only broke off did perhaps not.
                    let is_meant = failure.mentions("HTTPS");
                    secured.map_err(|untrusted| {
                        match is_meant || untrusted.is_about_certificates() {
                            true => untrusted,
                            false => failure,
                        }
                    })
                }
            },
        };
        if outcome.is_ok() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Sends one request and waits for the headers of its answer.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let place = place_of(&request.url);
        let permits = self.permits_of(&place);
        let permit = permits
            .acquire_owned()
            .await
            .expect("this semaphore is never closed");
        let mut builder = self.web(&request.url)?.request(request.method, request.url);
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if let Some(range) = request.range {
            builder = builder.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(authorization) = request.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let mut patience = self.settings.connect_timeout + self.settings.stall_timeout;
        let sent = Arc::new(AtomicU64::new(0));
        if let Some(body) = request.body {
            patience += body.content.patience(&self.settings);
            builder = builder
                .header(CONTENT_TYPE, body.kind)
                .body(body.content.body(&sent));
            if let Some((name, value)) = body.condition {
                builder = builder.header(name, value);
            }
        }
        metric::REQUESTS.add(1);
        match while_moving(builder.send(), &sent, patience).await {
            Ok(Ok(response)) => {
                let stall = self.settings.stall_timeout;
                Ok(Answer::new(place, response, stall, permit))
            }
            // A signed URL is a secret for as long as it is valid.
            Ok(Err(error)) => Err(Failure::connection(&place, error.without_url())),
            Err(_) => Err(Failure::connection(
                &place,
                format!("no answer for {patience:?}"),
            )),
        }
    }

    fn permits_of(&self, place: &str) -> Arc<Semaphore> {
        let mut permits = self.permits.lock();
        let new = || Arc::new(Semaphore::new(self.settings.connections.max(1)));
        permits.entry(place.to_owned()).or_insert_with(new).clone()
    }

    fn web(&self, url: &Url) -> Result<&reqwest::Client, Failure> {
        let way = Way::to(url);
        let slot = &self.webs[way as usize];
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let client = web_client(&self.settings, way).map_err(|problem| {
            Failure::wrong(&place_of(url), format!("cannot be asked: {problem}"))
        })?;
        Ok(slot.get_or_init(|| client))
    }
}

/// `Err` with what went wrong when a server for TLS was asked without.
async fn unless_tls_is_wanted(
    outcome: Result<Answer, Failure>,
) -> Result<Result<Answer, Failure>, Failure> {
    match outcome {
        Ok(answer) if answer.status() == StatusCode::BAD_REQUEST => {
            let failure = answer.refusal("").await;
            match failure.mentions("HTTPS") {
                true => Err(failure),
                false => Ok(Err(failure)),
            }
        }
        Err(failure) if failure.is_gibberish() => Err(failure),
        other => Ok(other),
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a redirect with this status means the same request once more (RFC 9110, sections 15.4.8 and 15.4.9).
fn keeps_method(status: StatusCode) -> bool {
    matches!(status.as_u16(), 307 | 308)
}
