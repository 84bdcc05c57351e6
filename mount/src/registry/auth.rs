//! Telling a registry who we are: the token of the distribution project's token servers, or basic authentication.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use super::answer::Answer;
use super::challenge::{Challenge, chosen};
use super::client::{Access, Body, Client, Request};
use super::credential::{Found, Identity, found};
use super::failure::Failure;
use super::place::place_of;
use super::settings::{Credentials, Secret};

/// A token server's answer is never longer.
const ANSWER_BYTES_LIMIT: usize = 1 << 20;

/// How long a token is good for when its server does not say (distribution's token specification).
const USUAL_LIFE: Duration = Duration::from_secs(60);

/// What was learnt about the registry's wishes. The lock is held while a token is fetched, so that all who need one
/// wait for the same.
#[derive(Default)]
pub(super) struct Auth {
    current: Mutex<Current>,
    found: OnceCell<Found>,
}

#[derive(Default)]
struct Current {
    header: Option<HeaderValue>,
    /// The challenge that a token answered, and when that token ends.
    renewal: Option<(Challenge, Instant)>,
}

impl Client {
    /// The credentials for this repository and where they come from; looked up when first needed.
    pub(super) async fn found(&self) -> &Found {
        let lookup = async || {
            let (settings, host) = (self.settings.clone(), self.host.clone());
            let repository = self.repository.clone();
            let deadline = Instant::now() + settings.timeout;
            let task =
                tokio::task::spawn_blocking(move || found(&settings, &host, &repository, deadline));
            task.await.unwrap_or_else(|_| Found {
                identity: None,
                story: "without credentials: looking for them failed".into(),
            })
        };
        self.auth.found.get_or_init(lookup).await
    }

    /// The `Authorization` to send, as far as the registry has asked for one.
    pub(super) async fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let mut current = self.auth.current.lock().await;
        let ended = match &current.renewal {
            Some((challenge, ends)) if *ends <= Instant::now() => Some(challenge.clone()),
            _ => None,
        };
        if let Some(challenge) = ended {
            *current = self.answered(challenge).await?;
        }
        Ok(current.header.clone())
    }

    /// The `Authorization` that answers a 401 to a request with `used`; `None` when there is none that was not tried.
    pub(super) async fn reauthorized(
        &self,
        answer: &Answer,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenge = chosen(headers.iter().filter_map(|value| value.to_str().ok()));
        let mut current = self.auth.current.lock().await;
        if current.header.as_ref() != used {
            return Ok(current.header.clone());
        }
        if let Some(challenge) = challenge {
            *current = self.answered(challenge).await?;
        }
        Ok(current.header.clone().filter(|header| Some(header) != used))
    }

    async fn answered(&self, challenge: Challenge) -> Result<Current, Failure> {
        match &challenge {
            Challenge::Basic => Ok(Current {
                header: match &self.found().await.identity {
                    Some(Identity::Password(credentials)) => Some(basic(credentials)),
                    _ => None,
                },
                renewal: None,
            }),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = match (self.access, scope) {
                    // A token for reading alone would be refused later, by some with a 403 that asks for no better one.
                    (Access::Write, _) => format!("repository:{}:pull,push", self.repository),
                    (Access::Read, Some(scope)) => scope.clone(),
                    (Access::Read, None) if self.repository.is_empty() => String::new(),
                    (Access::Read, None) => format!("repository:{}:pull", self.repository),
                };
                let token = self.token(realm, service.as_deref(), &scope).await?;
                let (header, life) = token;
                Ok(Current {
                    header: Some(header),
                    renewal: Some((challenge, Instant::now() + life * 9 / 10)),
                })
            }
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<(HeaderValue, Duration), Failure> {
        let wrong = |problem: &str| Failure::wrong(self.place(), problem);
        let mut url = Url::parse(realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong("names a token server that is no URL"))?;
        let found = self.found().await;
        if found.identity.is_some() && url.scheme() == "http" && self.uses_tls() {
            return Err(wrong(
                "wants the password sent to a token server without TLS",
            ));
        }
        let mut request = Request::get(url.clone());
        let mut asked = Vec::new();
        if !scope.is_empty() {
            asked.push(("scope", scope));
        }
        asked.extend(service.map(|service| ("service", service)));
        match &found.identity {
            None => {}
            Some(Identity::Password(credentials)) => {
                asked.push(("account", &credentials.username));
                request.authorization = Some(basic(credentials));
            }
            Some(Identity::Token(Secret(token))) => {
                asked.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "sifon"),
                    ("refresh_token", token),
                ]);
                request.method = Method::POST;
            }
        }
        match request.method == Method::POST {
            true => {
                request.body = Some(Body {
                    kind: "application/x-www-form-urlencoded",
                    content: Bytes::from(encoded(&url, &asked)).into(),
                    condition: None,
                });
            }
            false => {
                url.query_pairs_mut().extend_pairs(asked);
                request.url = url;
            }
        }
        let place = place_of(&request.url);
        let answer = self.send(request).await?;
        if !answer.status().is_success() {
            let remark = format!("asked for a token {}", found.story);
            return Err(answer.refusal(&remark).await);
        }
        let body = answer.body(ANSWER_BYTES_LIMIT).await?;
        read(&body).ok_or_else(|| Failure::wrong(&place, "sent something else than a token"))
    }
}

/// `pairs` in the encoding of forms, which is that of a URL's query.
fn encoded(url: &Url, pairs: &[(&str, &str)]) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

fn basic(credentials: &Credentials) -> HeaderValue {
    let plain = format!("{}:{}", credentials.username, credentials.password.0);
    secret_header(format!("Basic {}", STANDARD.encode(plain))).expect("base64 fits into a header")
}

fn secret_header(text: String) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// The header with the token in a server's answer, and its life.
fn read(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
    }
    let answer: Token = serde_json::from_slice(body).ok()?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())?;
    let life = match answer.expires_in {
        Some(seconds) if (1.0..=86_400.0).contains(&seconds) => Duration::from_secs_f64(seconds),
        Some(seconds) if seconds > 86_400.0 => Duration::from_secs(86_400),
        _ => USUAL_LIFE,
    };
    Some((secret_header(format!("Bearer {token}"))?, life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_the_token_are_read_and_its_life_is_bounded() {
        for (body, token, life) in [
            (r#"{"token":"a","expires_in":300}"#, "Bearer a", 300),
            (r#"{"access_token":"b"}"#, "Bearer b", 60),
            (r#"{"token":"c","expires_in":1e30}"#, "Bearer c", 86_400),
            (r#"{"token":"d","expires_in":-5}"#, "Bearer d", 60),
        ] {
            let (header, got) = read(body.as_bytes()).unwrap();
            assert_eq!(header, token);
            assert_eq!(got, Duration::from_secs(life));
        }
        for body in ["", "{}", r#"{"token":""}"#, "{\"token\":\"a\\nb\"}", "[]"] {
            assert!(read(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn a_form_is_encoded() {
        let url = Url::parse("https://t/x?y=z").unwrap();
        assert_eq!(encoded(&url, &[("a", "b c&d")]), "a=b+c%26d");
    }
}
