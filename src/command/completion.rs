//! `sifon completion`: what shells and `man` need to know of the command line, made from the command line itself.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;

use crate::setting::{Error, environment};

/// Words for the shell's completion, and manual pages
///
/// The words go to stdout, or with --install where the shell looks for those of a user's own:
///
///   sifon completion bash --install
///   sifon completion man ~/.local/share/man/man1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// For bash, with the package bash-completion
    Bash(Place),
    /// For zsh; the directory must be in its fpath
    Zsh(Place),
    /// For fish
    Fish(Place),
    /// For elvish
    Elvish(Words),
    /// Manual pages, one for each command
    Man {
        /// The directory they are written to, made if it is missing
        directory: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Write them where the shell looks for them, and say where that is
    #[arg(long)]
    install: bool,
}

#[derive(Debug, clap::Args)]
struct Words;

/// Prints or writes what was asked for, of `command`.
pub fn run(command: clap::Command, args: &Args) -> Result<ExitCode, Error> {
    let (shell, installs) = match &args.what {
        What::Bash(place) => (Shell::Bash, place.install),
        What::Zsh(place) => (Shell::Zsh, place.install),
        What::Fish(place) => (Shell::Fish, place.install),
        What::Elvish(Words) => (Shell::Elvish, false),
        What::Man { directory } => {
            pages(command, directory)
                .map_err(|err| format!("manual pages, {}: {err}", directory.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let words = words(command, shell);
    match own_place(shell).filter(|_| installs) {
        None if installs => {
            return Err(
                "--install: $HOME is not set, so there is no place of the user's own".into(),
            );
        }
        None => io::stdout().lock().write_all(&words)?,
        Some(file) => {
            let written = file
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&file, &words));
            written.map_err(|err| format!("{}: {err}", file.display()))?;
            tracing::info!("{}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn words(mut command: clap::Command, shell: Shell) -> Vec<u8> {
    let mut words = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut words);
    words
}

fn pages(command: clap::Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)
}

/// Where a shell looks for a user's own words; elvish has no such place.
fn own_place(shell: Shell) -> Option<PathBuf> {
    let home = || environment(&["HOME"]).map(PathBuf::from);
    let below = |variable, usual| {
        let named = environment(&[variable]).map(PathBuf::from);
        let named = named.filter(|named| named.is_absolute());
        named.or_else(|| Some(home()?.join(usual)))
    };
    let of_data = || below("XDG_DATA_HOME", ".local/share");
    match shell {
        Shell::Bash => Some(of_data()?.join("bash-completion/completions/sifon")),
        Shell::Zsh => Some(of_data()?.join("zsh/site-functions/_sifon")),
        Shell::Fish => {
            Some(below("XDG_CONFIG_HOME", ".config")?.join("fish/completions/sifon.fish"))
        }
        _ => None,
    }
}
