//! `sifon exec`: a program in an image.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sifon_mount::image::open::OnProgress;

use super::serve;
use crate::container;
use crate::container::bind::{self, BindRequest};
use crate::container::client::{Hears, Server};
use crate::container::environment::{Sources, Variables};
use crate::container::identity::Identity;
use crate::container::launch::Launch;
use crate::container::meeting::Group;
use crate::container::plan::{self, Host, Options, TargetKind};
use crate::setting::{Context, Error, parsed};

/// Run a program in an image
///
/// The program sees the image as its root directory, and of this machine /proc, /sys, /dev, $HOME,
/// /tmp, /var/tmp and the current directory. It runs as you, with your terminal and your environment
/// (what the image sets wins), and its exit status is this command's. Options end at the image's name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show a path of this machine in the container too: SOURCE[:TARGET[:ro]]
    ///
    /// May be repeated, or list several separated by commas. $SIFON_BIND, $APPTAINER_BIND and
    /// $SINGULARITY_BIND (or …_BINDPATH) add to it.
    #[arg(short = 'B', long, value_name = "BIND")]
    bind: Vec<OsString>,
    /// Keep your environment out of the container, but for TERM and proxies
    #[arg(short = 'e', long)]
    cleanenv: bool,
    /// Set a variable in the container; $NAME stands for the container's other variables
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Start the program in this directory of the container
    #[arg(long, visible_alias = "cwd", value_name = "DIR")]
    pwd: Option<PathBuf>,
    /// Do not show your home directory
    #[arg(long)]
    no_home: bool,
    /// How long the image stays mounted for the next program when this one has ended, in seconds; also $SIFON_LINGER
    #[arg(long, value_name = "SECONDS", env = "SIFON_LINGER", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86_400 * 7))]
    linger: u32,
    /// Share nothing with other programs: a server and a mount for this one alone
    #[arg(long)]
    private: bool,
    /// The image, the program and its arguments
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 2.., required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Becomes the program; returns only if that fails.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    match start(context, args)? {}
}

fn start(context: &Context, args: &Args) -> Result<Infallible, Error> {
    let (image, words) = args.words.split_first().ok_or("no image was named")?;
    let reference = parsed(image)?;
    let (binds, bind_text) = binds(args)?;
    let group = match args.private {
        true => Group::of_nobody_else()?,
        false => Group::of_caller("")?,
    };
    // It starts while this process finds out the rest.
    let server = Server::reach(&group, serve::VERB)?;
    let identity = Identity::of_caller()?;
    let directory = std::env::current_dir()
        .ok()
        .filter(|directory| directory.is_absolute());
    let options = Options {
        binds,
        is_without_home: args.no_home,
        directory: args.pwd.clone(),
    };
    let host = Host {
        identity: &identity,
        directory: directory.as_deref(),
        kind_of: &kind_of,
    };
    let plan = plan::plan(&options, &host)?;
    let environment = Sources {
        host: std::env::vars_os()
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .collect(),
        image: Variables::new(),
        asked: assignments(&args.env)?,
        is_clean: args.cleanenv,
        home: plan
            .home
            .as_deref()
            .map(|home| home.as_os_str().as_bytes().to_vec()),
        name: name_of(image.as_bytes()).to_vec(),
        container: image.as_bytes().to_vec(),
        bind: bind_text,
        command: b"exec".to_vec(),
    };
    let progress = context.output.progress();
    let launch = Launch {
        identity: &identity,
        plan: &plan,
        environment,
        settings: serde_json::to_value(&context.settings)?,
        image: reference.to_string().into(),
        linger: match args.private {
            true => Duration::ZERO,
            false => Duration::from_secs(args.linger.into()),
        },
        hears: &Told(progress),
    };
    Ok(launch.become_program(server, |_| words.to_vec())?)
}

fn kind_of(path: &Path) -> Option<TargetKind> {
    let found = fs::metadata(path).ok()?;
    Some(if found.is_dir() {
        TargetKind::Directory
    } else {
        TargetKind::File
    })
}

/// The binds of the command line, then those of the environment; also as one text.
fn binds(args: &Args) -> Result<(Vec<BindRequest>, Vec<u8>), Error> {
    let mut texts = args.bind.clone();
    for suffix in ["BIND", "BINDPATH"] {
        let variables =
            ["SIFON", "APPTAINER", "SINGULARITY"].map(|prefix| format!("{prefix}_{suffix}"));
        texts.extend(variables.iter().find_map(std::env::var_os));
    }
    texts.retain(|text| !text.is_empty());
    let mut binds = Vec::new();
    for text in &texts {
        binds.extend(bind::requests(text)?);
    }
    Ok((binds, texts.join(OsStr::new(",")).into_vec()))
}

/// `NAME=VALUE`, several separated by commas; a piece without a name belongs to the value before it.
fn assignments(texts: &[OsString]) -> Result<Variables, Error> {
    let mut variables = Variables::new();
    for text in texts {
        let mut is_first = true;
        for piece in text.as_bytes().split(|&byte| byte == b',') {
            match (named(piece), variables.last_mut()) {
                (Some((name, value)), _) => variables.push((name.to_vec(), value.to_vec())),
                (None, Some((_, value))) if !is_first => {
                    value.push(b',');
                    value.extend_from_slice(piece);
                }
                (None, _) => {
                    return Err(format!("--env {}: expected NAME=VALUE", text.display()).into());
                }
            }
            is_first = false;
        }
    }
    Ok(variables)
}

fn named(piece: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = piece.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&piece[..equals], &piece[equals + 1..]);
    let is_name = name.first().is_some_and(|byte| !byte.is_ascii_digit())
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    is_name.then_some((name, value))
}

/// What the image is called inside: the last part of its name.
fn name_of(image: &[u8]) -> &[u8] {
    image.rsplit(|&byte| byte == b'/').next().unwrap_or(image)
}

/// Shows the user how the opening of an image goes.
struct Told(OnProgress);

impl Hears for Told {
    fn step(&self, step: serde_json::Value) {
        // One that this version does not know is not worth failing for.
        if let Ok(step) = serde_json::from_value(step) {
            (self.0)(step);
        }
    }

    fn message(&self, line: &str) {
        // Nothing can be said where stderr is closed.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// What the user can do about an error of a container.
pub fn hint(error: &Error) -> Option<String> {
    error
        .downcast_ref::<container::Error>()?
        .hint()
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_split_at_commas_before_names() {
        let list = |texts: &[&str]| {
            let texts: Vec<OsString> = texts.iter().map(OsString::from).collect();
            assignments(&texts).map(|list| {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                list.into_iter()
                    .map(|(name, value)| (text(name), text(value)))
                    .collect::<Vec<_>>()
            })
        };
        for (texts, expected) in [
            (&["A=1"][..], &[("A", "1")][..]),
            (&["A=1,B=2"], &[("A", "1"), ("B", "2")]),
            (&["A=1,2,B=x=y"], &[("A", "1,2"), ("B", "x=y")]),
            (&["A=", "B=a, b"], &[("A", ""), ("B", "a, b")]),
        ] {
            let expected: Vec<(String, String)> = expected
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect();
            assert_eq!(list(texts).unwrap(), expected);
        }
        for texts in [&["A"][..], &["=1"], &["1=2"], &["A=1", "B"]] {
            assert!(list(texts).is_err(), "{texts:?}");
        }
    }
}
