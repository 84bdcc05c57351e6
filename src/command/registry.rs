//! `sifon registry`: who we are to registries.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use sifon_mount::reference::DOCKER_HUB;
use sifon_mount::registry::{Credentials, Registry, Secret, login};

use crate::setting::{Context, Error};

/// Log in to registries and out of them
///
/// Credentials are kept in the file that Apptainer uses, ~/.apptainer/docker-config.json, or in --authfile.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check a user name and password and keep them
    Login(Login),
    /// Forget a user name and password
    Logout {
        /// The registry, such as docker://ghcr.io
        registry: String,
    },
    /// Name the registries that credentials are kept for
    List,
}

#[derive(Debug, clap::Args)]
struct Login {
    /// The registry, such as docker://ghcr.io
    registry: String,
    /// User name; asked for when it is missing
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password or token; better --password-stdin, where nobody sees it
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from stdin
    #[arg(long)]
    password_stdin: bool,
}

/// Longer ones are no passwords.
const PASSWORD_BYTES_LIMIT: u64 = 64 << 10;

/// Logs in, or out, or lists.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    let settings = &context.settings.open.registry;
    let file = settings
        .login_file()
        .ok_or("no file for credentials: $HOME is not set, and --authfile was not given")?;
    match &args.action {
        Action::Login(login) => log_in(context, file, login)?,
        Action::Logout { registry } => {
            let host = host(registry)?;
            match login::forget(file, host)? {
                true => tracing::info!("{host}: credentials removed"),
                false => tracing::info!("{host}: there were no credentials"),
            }
        }
        Action::List => {
            let mut stdout = io::stdout().lock();
            for registry in login::known(file)? {
                writeln!(stdout, "{}", crate::output::plain(&registry))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn log_in(context: &Context, file: &Path, login: &Login) -> Result<(), Error> {
    let host = host(&login.registry)?;
    let username = match &login.username {
        Some(username) => username.clone(),
        None if login.password_stdin => return Err("--password-stdin needs --username".into()),
        None => asked("Username: ")?,
    };
    let password = match &login.password {
        Some(password) => password.clone(),
        None if login.password_stdin => {
            let mut text = String::new();
            let stdin = io::stdin().lock();
            stdin.take(PASSWORD_BYTES_LIMIT).read_to_string(&mut text)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => secretly_asked("Password or token: ")?,
    };
    if username.is_empty() || username.contains(':') || password.is_empty() {
        return Err("login needs a user name, without colons, and a password".into());
    }
    let credentials = Credentials {
        username,
        password: Secret(password),
    };
    let mut settings = context.settings.open.registry.clone();
    settings.credentials = Some(credentials.clone());
    Registry::greet(host, &settings)?;
    login::remember(file, host, &credentials)?;
    tracing::info!("{host}: credentials kept in {}", file.display());
    Ok(())
}

/// The host and port of a registry as users name it: `docker://HOST`, `oras://HOST` or plain.
fn host(registry: &str) -> Result<&str, Error> {
    let wrong = |problem: &str| format!("registry {registry:?}: {problem}");
    let host = match registry.split_once("://") {
        Some(("docker" | "oras" | "https", host)) => host,
        Some(_) => return Err(wrong("expected docker://HOST or oras://HOST").into()),
        None => registry,
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    match host {
        "" => Err(wrong("it names no host").into()),
        "index.docker.io" | "registry-1.docker.io" => Ok(DOCKER_HUB),
        host if host.bytes().all(is_host) => Ok(host),
        _ => Err(wrong("expected a host, perhaps with a port, and nothing after it").into()),
    }
}

fn asked(question: &str) -> Result<String, Error> {
    eprint!("{question}");
    let mut line = String::new();
    let stdin = io::stdin().lock();
    stdin.take(PASSWORD_BYTES_LIMIT).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks on a terminal that meanwhile shows nothing of what is typed.
fn secretly_asked(question: &str) -> Result<String, Error> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err("no terminal to ask for a password on: use --password-stdin".into());
    }
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let answer = asked(question);
    let restored = tcsetattr(&stdin, OptionalActions::Flush, &shown);
    eprintln!();
    restored?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_with_or_without_a_scheme() {
        for (registry, expected) in [
            ("docker://ghcr.io", "ghcr.io"),
            ("oras://ghcr.io/", "ghcr.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("docker://docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
        ] {
            assert_eq!(host(registry).unwrap(), expected);
        }
        for registry in ["", "docker://", "library://x", "docker://ghcr.io/owner"] {
            assert!(host(registry).is_err(), "{registry}");
        }
    }
}
