//! `https://HOST/x.sif`: a file at a web server.

use std::fmt;

use super::registry::check_host;
use crate::digest::Digest;

/// The address of a file at a web server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebAddress(String);

/// Stands in place of what follows a question mark, before the name of that.
const HIDDEN: &str = "hidden-";

/// No browser or server takes longer ones.
const WEB_ADDRESS_BYTES_LIMIT: usize = 8192;

impl WebAddress {
    /// All of it, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the user wrote `http:`, not `https:`.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http:")
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        let (_, rest) = self
            .0
            .split_once("://")
            .expect("every address has a scheme");
        rest.split(['/', '?']).next().unwrap_or(rest)
    }

    /// Without what follows a question mark, which may be a secret.
    pub fn without_query(&self) -> &str {
        self.0.split('?').next().unwrap_or(&self.0)
    }

    /// What follows the question mark, as far as others may know it: which address it is, not what it says.
    fn hidden_query(&self) -> Option<String> {
        let (_, query) = self.0.split_once('?')?;
        if query.starts_with(HIDDEN) {
            return Some(query.to_owned());
        }
        let digest = Digest::of(query.as_bytes());
        let name: String = digest.hex().chars().take(16).collect();
        Some(format!("{HIDDEN}{name}"))
    }

    /// Whether it is one that was shown, of which nobody knows any more what follows the question mark.
    pub fn is_incomplete(&self) -> bool {
        self.0
            .split_once('?')
            .is_some_and(|(_, query)| query.starts_with(HIDDEN))
    }

    pub(super) fn parse(scheme: &str, rest: &[u8]) -> Result<Self, String> {
        let rest = str::from_utf8(rest).ok();
        let is_printed = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        let rest = rest.filter(|rest| rest.bytes().all(is_printed));
        let rest =
            rest.ok_or("an address is written in ASCII: other characters, spaces and # as %XX")?;
        if rest.len() > WEB_ADDRESS_BYTES_LIMIT {
            return Err("the address is longer than any server takes".into());
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err("credentials do not belong into an address".into());
        }
        check_host(host)?;
        if path.is_empty() {
            return Err("the address names no file".into());
        }
        Ok(Self(format!("{scheme}://{rest}")))
    }
}

/// As it is shown, logged, and written into tables of mounts and records that others can read: a question mark is often followed
/// by a signature or a token. Different addresses stay different.
impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.without_query())?;
        match self.hidden_query() {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}
