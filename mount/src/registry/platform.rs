//! Which build of an image fits a machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and its variant, in Go's words, as image indexes name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `ppc64le`, …
    pub architecture: String,
    /// `v7`, `v8`, `v3`, … where the architecture has variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on the architecture this program was built for.
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH, None)
    }

    /// Linux on `architecture`, in Go's words or in those of `uname -m`.
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "x86" | "i386" | "i486" | "i586" | "i686" => ("386", None),
            "aarch64" => ("arm64", None),
            "armhf" | "armv7l" | "armv7" => ("arm", Some("v7")),
            "armel" | "armv6l" | "armv6" => ("arm", Some("v6")),
            "powerpc64le" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        let variant = variant.or(implied).map(|variant| {
            match variant.starts_with(|first: char| first.is_ascii_digit()) {
                true => format!("v{variant}"),
                false => variant.to_owned(),
            }
        });
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant,
        }
    }

    /// How well a build for `offered` fits this machine: `None` not at all, else the smaller the better.
    pub fn fit(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let (wanted, got) = (self.level(), offered.level());
        match got <= wanted {
            true => Some(wanted - got),
            // x86-64-v3 and the like on a machine of which only `amd64` is known: better than nothing.
            false if self.variant.is_none() && self.architecture == "amd64" => Some(100 + got),
            false => None,
        }
    }

    /// The variant as a number; without one, what the architecture's images mean by that.
    fn level(&self) -> u32 {
        let usual = match self.architecture.as_str() {
            "arm" => 7,
            "arm64" => 8,
            _ => 1,
        };
        match &self.variant {
            None => usual,
            Some(variant) => {
                let digits = variant.strip_prefix('v').unwrap_or(variant);
                let major = digits.split('.').next().unwrap_or(digits);
                // Minor versions do not matter to anyone we know of.
                major.parse().unwrap_or(u32::MAX >> 1)
            }
        }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::host()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(wanted: (&str, Option<&str>), offered: (&str, Option<&str>)) -> Option<u32> {
        Platform::linux(wanted.0, wanted.1).fit(&Platform::linux(offered.0, offered.1))
    }

    #[test]
    fn a_machine_runs_its_own_variant_and_older_ones() {
        assert_eq!(fit(("x86_64", None), ("amd64", None)), Some(0));
        assert_eq!(fit(("aarch64", None), ("arm64", Some("v8"))), Some(0));
        assert_eq!(fit(("arm64", Some("8")), ("arm64", None)), Some(0));
        assert_eq!(fit(("arm", None), ("arm", Some("v7"))), Some(0));
        assert_eq!(fit(("arm", None), ("arm", Some("v6"))), Some(1));
        assert_eq!(fit(("arm", Some("v6")), ("arm", Some("v7"))), None);
        assert_eq!(fit(("amd64", None), ("arm64", None)), None);
        assert!(
            fit(("amd64", None), ("amd64", Some("v3")))
                > fit(("amd64", None), ("amd64", Some("v2")))
        );
    }

    #[test]
    fn another_system_fits_nobody() {
        let mut windows = Platform::linux("amd64", None);
        windows.os = "windows".into();
        assert_eq!(Platform::linux("amd64", None).fit(&windows), None);
    }
}
