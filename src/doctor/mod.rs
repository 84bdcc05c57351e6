//! What works on this machine, and what to do about what does not.
//!
//! Each check does what it asks about, as far as that leaves nothing behind; settings are read only to say why it failed.

mod checks;
mod store;

use serde::Serialize;

pub use checks::{APPARMOR_PROFILE_OPTION, apparmor_profile, host};
pub use store::store;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there, and does what it should.
    Works,
    /// Something is missing that some options need, and nothing else.
    Limited,
    /// A command does not work because of it.
    Fails,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub state: State,
    /// What was seen, and what works because of it.
    pub found: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// Nothing to be done.
    pub fn works(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            subject,
            state: State::Works,
            found: found.into(),
            advice: None,
        }
    }

    /// Some options are missing.
    pub fn limited(
        subject: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            subject,
            state: State::Limited,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    /// A command does not work.
    pub fn fails(
        subject: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Fails,
            ..Self::limited(subject, found, advice)
        }
    }
}
