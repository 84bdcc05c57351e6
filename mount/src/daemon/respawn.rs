//! This program started again, as another process with a task of its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::registry::Credentials;
use crate::sys::descriptor;

/// How this program starts itself for one of its hidden verbs.
#[derive(Clone, Debug)]
pub struct Respawn {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Respawn {
    /// The running program, even if its file was replaced or removed since, with `verb` as its only argument.
    pub fn verb(verb: &str) -> Self {
        Self::with_arguments([verb.into()])
    }

    /// The same with other arguments.
    pub fn with_arguments(arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: arguments.into_iter().collect(),
        }
    }

    /// A command that inherits stderr and the environment without credentials. It answers to the name `sifon`, whatever name the
    /// user called: that name decides how arguments are read.
    pub(super) fn command(&self) -> io::Result<Command> {
        descriptor::keep_descriptors_from_children()?;
        let mut command = Command::new(&self.program);
        command
            .arg0("sifon")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for variable in Credentials::variables() {
            command.env_remove(variable);
        }
        Ok(command)
    }
}
