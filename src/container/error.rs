//! Why a program could not be started in an image.

use std::io;

/// Why a program could not be started in an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the system failed.
    #[error("{action}")]
    System {
        /// What was being done, and to what.
        action: String,
        /// The system's answer.
        source: io::Error,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// Another process found the error.
    #[error("{message}")]
    Reported {
        /// Its message, causes included.
        message: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// Something asked for cannot be had; the text is the whole message.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// A failed call while doing `action`.
    pub fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            action: action.into(),
            source: source.into(),
            hint: None,
        }
    }

    /// What the user can do about it, to be printed apart.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::System { hint, .. } | Self::Reported { hint, .. } => hint.as_deref(),
            Self::Refused(_) => None,
        }
    }

    /// The message with its causes in one line, for the other end of a socket.
    pub fn in_one_line(&self) -> String {
        in_one_line(self)
    }
}

/// `error` with its causes, joined by colons.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
