//! The three kinds of client that reach hosts, by what lies on the way to them.

use std::path::Path;

use reqwest::Url;

use super::place::is_loopback;
use super::settings::Settings;

const USER_AGENT: &str = concat!("sifon/", env!("CARGO_PKG_VERSION"));

/// What lies between us and a host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Perhaps a proxy, to which connections may need TLS, whatever they carry.
    Far,
    /// A loopback address, which no proxy can reach for us.
    Near,
    /// The same without TLS: the system's certificates, of which there are hundreds, need not be read.
    NearAndPlain,
}

impl Way {
    /// How many there are.
    pub const ALL: usize = 3;

    pub fn to(url: &Url) -> Self {
        match url.host_str().is_some_and(is_loopback) {
            false => Self::Far,
            true if url.scheme() == "https" => Self::Near,
            true => Self::NearAndPlain,
        }
    }
}

/// A client for this way, as the settings want it.
pub(super) fn web_client(settings: &Settings, way: Way) -> Result<reqwest::Client, String> {
    let mut certificates = Vec::new();
    for file in settings
        .ca_files
        .iter()
        .filter(|_| way != Way::NearAndPlain)
    {
        certificates.extend(certificates_in(file)?);
    }
    let build = |only_ours: bool| {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(settings.connections.max(1))
            .tcp_nodelay(true);
        if way != Way::Far {
            builder = builder.no_proxy();
        }
        let certificates = certificates.iter().cloned();
        match only_ours {
            true => builder.tls_certs_only(certificates),
            false => builder.tls_certs_merge(certificates),
        }
        .build()
    };
    build(way == Way::NearAndPlain)
        .or_else(|error| {
            // A container or a small node without any certificates can still use plain HTTP and our own files.
            tracing::warn!(%error, "the system's certificates cannot be used");
            build(true)
        })
        .map_err(|error| error.to_string())
}

fn certificates_in(file: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let problem =
        |error: &dyn std::fmt::Display| format!("certificate file {}: {error}", file.display());
    let text = std::fs::read(file).map_err(|error| problem(&error))?;
    let found = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| problem(&error))?;
    match found.is_empty() {
        true => Err(problem(&"it holds no PEM certificate")),
        false => Ok(found),
    }
}
