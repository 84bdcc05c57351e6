//! Options of every command, and the variables that say the same.

use std::path::PathBuf;
use std::time::Duration;

use sifon_mount::image::open::Options;
use sifon_mount::registry::{self, Credentials, Platform, Secret};
use sifon_mount::store;

use crate::output::Verbosity;
use crate::setting::{Settings, byte_count, default_store, environment};

/// Options of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct SettingArgs {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with_all = ["verbose", "debug"])]
    quiet: bool,
    /// Say what is decided and why
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Say everything
    #[arg(short, long, global = true)]
    debug: bool,
    /// Where to keep what was fetched; also $SIFON_STORE
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// How much to keep at most, such as 20G [default: 10G or a quarter of the free space]
    #[arg(long, global = true, hide_short_help = true, value_name = "BYTES", value_parser = byte_count)]
    store_size: Option<u64>,
    /// Make no request at all: use what the store has
    #[arg(long, global = true)]
    offline: bool,
    /// Ask what a tag names even if that was asked less than ten minutes ago
    #[arg(long, global = true)]
    refresh: bool,
    /// Use a SOCI index that somebody attached to the image, though nobody signs it; also $SIFON_SOCI_V1
    #[arg(long = "soci-v1", global = true, hide_short_help = true)]
    soci_v1: bool,
    /// Neither record what is read nor fetch ahead what was read before; also $SIFON_NO_PROFILE
    #[arg(long, global = true, hide_short_help = true)]
    no_profile: bool,
    /// Processor architecture of the image [default: this machine's]
    #[arg(long, global = true, value_name = "ARCH")]
    pub(super) arch: Option<String>,
    /// Variant of the architecture, such as v7 of arm
    #[arg(long, global = true, hide_short_help = true, value_name = "VARIANT")]
    arch_variant: Option<String>,
    /// User name at the registry; also $SIFON_DOCKER_USERNAME and Singularity's variables
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        value_name = "NAME",
        requires = "docker_password"
    )]
    docker_username: Option<String>,
    /// Password or token at the registry; better in $SIFON_DOCKER_PASSWORD, where nobody sees it
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        value_name = "PASSWORD",
        requires = "docker_username"
    )]
    docker_password: Option<String>,
    /// File with credentials, as `docker login` writes it
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Ask here before the registry itself: [http[s]://]HOST[:PORT][/PREFIX]; may be repeated, also $SIFON_MIRRORS
    #[arg(long, global = true, hide_short_help = true, value_name = "PLACE")]
    mirror: Vec<String>,
    /// Speak plain HTTP with the registry, as is done with those on this machine
    #[arg(long, global = true, hide_short_help = true)]
    no_https: bool,
    /// Trust this certificate authority too (PEM); may be repeated
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// How many connections to open at once
    #[arg(long, global = true, hide_short_help = true, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// How long to try before a read fails, in seconds
    #[arg(long, global = true, hide_short_help = true, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    timeout: u16,
}

impl SettingArgs {
    pub(super) fn resolved(self) -> Settings {
        let verbosity = match (self.quiet, self.verbose, self.debug) {
            (true, ..) => Verbosity::Quiet,
            (_, _, true) => Verbosity::Debug,
            (_, true, _) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let mut registry = registry::Settings::from_environment();
        if let Some(architecture) = &self.arch {
            registry.platform = Platform::linux(architecture, self.arch_variant.as_deref());
        }
        if let (Some(username), Some(password)) = (self.docker_username, self.docker_password) {
            registry.credentials = Some(Credentials {
                username,
                password: Secret(password),
            });
        }
        registry.authfile = self.authfile.or(registry.authfile).map(absolute);
        registry.mirrors = match self.mirror.is_empty() {
            true => separated("SIFON_MIRRORS"),
            false => self.mirror,
        };
        registry.plain_http |= self.no_https;
        registry.ca_files.extend(self.ca_file);
        registry.ca_files = registry.ca_files.into_iter().map(absolute).collect();
        registry.connections = self.connections.into();
        registry.timeout = Duration::from_secs(self.timeout.into());
        let site = environment(&["SIFON_SITE_STORES"]).unwrap_or_default();
        Settings {
            store: store::Settings {
                directory: absolute(self.store.unwrap_or_else(default_store)),
                site_directories: std::env::split_paths(&site).map(absolute).collect(),
                budget: self.store_size,
                trusted_uids: numbers("SIFON_TRUSTED_UIDS"),
                trusted_gids: numbers("SIFON_TRUSTED_GIDS"),
                nothing_kept: None,
            },
            open: Options {
                registry,
                offline: self.offline,
                refresh: self.refresh,
                soci_v1: self.soci_v1 || is_set("SIFON_SOCI_V1"),
                no_profile: self.no_profile || is_set("SIFON_NO_PROFILE"),
            },
            verbosity,
        }
    }
}

/// Whether a variable says yes.
fn is_set(variable: &str) -> bool {
    environment(&[variable])
        .is_some_and(|value| !["", "0", "false", "no"].contains(&&*value.to_string_lossy()))
}

/// `path` for a process in another directory; where this one's is gone, relative paths lead nowhere.
fn absolute(path: PathBuf) -> PathBuf {
    match path.as_os_str().is_empty() {
        true => path,
        false => std::path::absolute(&path).unwrap_or(path),
    }
}

/// Words separated by commas.
fn separated(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    let words = text.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Numbers of users or groups, separated by commas; what is no number trusts nobody.
fn numbers(variable: &str) -> Vec<u32> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split(',')
        .filter_map(|number| number.trim().parse().ok())
        .collect()
}
