//! From a plan to a program: the steps that the client takes, in order.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::binds;
use super::client::{Hears, Server};
use super::environment::{self, Sources};
use super::error::Error;
use super::identity::Identity;
use super::namespaces::{self, Privilege};
use super::plan::Plan;
use super::process;
use super::wire::{Ready, Request, Target};

/// A program that is to run in an image.
pub struct Launch<'a> {
    /// Who runs it.
    pub identity: &'a Identity,
    /// What it will see of the host.
    pub plan: &'a Plan,
    /// What its environment is made from; the image's part comes from the server.
    pub environment: Sources,
    /// The settings with which the server opens the image.
    pub settings: serde_json::Value,
    /// The image, in words that do not depend on a directory.
    pub image: OsString,
    /// How long the image stays mounted after its last program.
    pub linger: Duration,
    /// Hears how far the opening of the image is.
    pub hears: &'a dyn Hears,
}

impl Launch<'_> {
    /// Waits for `server` to show the image, joins it and becomes the program whose words `words`
    /// gives, from what the image says about itself. Returns only on failure. The process must have a
    /// single thread.
    pub fn become_program(
        self,
        server: Server,
        words: impl FnOnce(&Ready) -> Vec<OsString>,
    ) -> Result<Infallible, Error> {
        let privilege = Privilege::of_caller();
        let request = Request {
            settings: self.settings,
            image: self.image,
            targets: targets(self.plan),
            linger: self.linger,
        };
        let (ready, joinable, joining) = server.ask(request, privilege, self.hears)?;
        let image = namespaces::join(joinable)?;
        joining.done()?;
        binds::make(&image, &self.plan.binds, &ready.targets, self.identity)?;
        namespaces::change_root(&image)?;
        drop(image);
        let directory = process::enter_directory(&self.plan.directories)?;
        process::drop_privileges(privilege)?;
        let words = words(&ready);
        let sources = Sources {
            image: ready.environment,
            ..self.environment
        };
        let mut variables = environment::variables(&sources);
        variables.retain(|(name, _)| name != b"PWD");
        variables.push((b"PWD".to_vec(), directory.as_os_str().as_bytes().to_vec()));
        Err(process::become_program(&words, variables))
    }
}

/// Where the image must have something for the binds of `plan`.
fn targets(plan: &Plan) -> Vec<Target> {
    let target = |bind: &super::plan::Bind| Target {
        path: bind.target.as_os_str().as_bytes().to_vec(),
        kind: bind.kind,
        if_missing: bind.if_missing,
        covers_link: bind.covers_link,
    };
    plan.binds.iter().map(target).collect()
}
