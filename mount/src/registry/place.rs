//! What a URL says of the place that it leads to.

use std::net::IpAddr;

use reqwest::Url;
use reqwest::header::LOCATION;

use super::answer::Answer;
use super::failure::Failure;

pub(super) fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme() == "https" && to.scheme() != "https"
}

/// Where `answer`, which came from `from`, says to go on.
pub(super) fn target(from: &Url, answer: &Answer) -> Result<Url, Failure> {
    let wrong = |problem: &str| Failure::wrong(answer.place(), problem);
    let location = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| wrong("redirects without saying where"))?;
    let url = from
        .join(location)
        .map_err(|_| wrong("redirects to something that is no URL"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(wrong("redirects to something that is not HTTP")),
    }
}

/// Host and port of a URL, for messages and for counting connections.
pub(super) fn place_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("nowhere");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether `host`, with or without a port, is this machine by its name or number.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_number() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.8.9.1",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.org",
            "128.0.0.1",
            "[::2]",
            "127.example.org",
            "docker.io",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
