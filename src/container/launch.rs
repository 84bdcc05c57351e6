//! From a plan to a program: the steps that the client takes, in order.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use sifon_mount::sys::namespace::{self, Parts};

use super::app;
use super::binds::{self, Root, Sources};
use super::client::{Hears, Server};
use super::directory::{self, Directory};
use super::environment::{self, Variables};
use super::error::Error;
use super::front;
use super::identity::Identity;
use super::instance::Detached;
use super::namespaces::{self, Privilege};
use super::plan::{Bind, Plan, Source};
use super::process;
use super::supervise;
use super::wire::{Ready, Request, Target};
use super::writable::{self, Writable};

/// A program that is to run in an image.
pub struct Launch<'a> {
    /// Who runs it.
    pub identity: &'a Identity,
    /// What it will see of the host.
    pub plan: &'a Plan,
    /// What its environment is made from; the image's part comes from the server.
    pub environment: environment::Sources,
    /// The settings with which the server opens the image.
    pub settings: serde_json::Value,
    /// What it will see of file systems in files, as [`Plan`] counts them; mounts that are attached nowhere.
    pub from_images: Vec<OwnedFd>,
    /// The image, in words that do not depend on a directory.
    pub image: OsString,
    /// The directory that it is, if it is one: the server's image has nothing of it, and is there for all to meet in.
    pub directory: Option<Directory>,
    /// How the user calls the program, if the image has no say in that.
    pub program: Option<OsString>,
    /// How long the image stays mounted after its last program.
    pub linger: Duration,
    /// What it shares with the machine.
    pub isolation: Isolation,
    /// Where it can write beside what it sees of the host.
    pub writable: Writable,
    /// Its umask, if not the caller's.
    pub umask: Option<u32>,
    /// Whether it starts in the image's `WorkingDir`.
    pub starts_where_image_says: bool,
    /// Whether the caller is root in the server's user namespace, and keeps root's rights there.
    pub is_root_inside: bool,
    /// For a container that goes on by itself; it has process numbers of its own then.
    pub detached: Option<Detached>,
    /// Hears how far the opening of the image is.
    pub hears: &'a dyn Hears,
    /// Prints an error, in a process that nobody else would hear of it from.
    pub report: &'a dyn Fn(Error),
}

/// What a program does not share with the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Process numbers.
    pub processes: bool,
    /// Shared memory and such.
    pub communication: bool,
    /// The machine's name.
    pub name: bool,
    /// Another name.
    pub host_name: Option<String>,
    /// The network; there is a loopback interface then.
    pub network: bool,
}

impl Launch<'_> {
    /// Waits for `server` to show the image, joins it and becomes the program whose words `words`
    /// gives (none: it waits), from what the image says about itself and the program's environment. Returns only on failure. The process must have a
    /// single thread.
    pub fn become_program(
        self,
        server: Server,
        words: impl FnOnce(&Ready, &Variables) -> Result<Vec<OsString>, Error>,
    ) -> Result<Infallible, Error> {
        let privilege = Privilege::of_caller();
        let request = Request {
            settings: self.settings.clone(),
            image: self.image.clone(),
            targets: targets(self.plan, self.directory.is_some()),
            linger: self.linger,
            is_bare: self.directory.is_some(),
            program: self.program.clone(),
        };
        let (ready, joinable, joining) = server.ask(request, privilege, self.hears)?;
        let lays_own = self.directory.is_some() || self.writable.is_wanted();
        let image = namespaces::join(joinable, |root| {
            !front::is_one(root) || (!lays_own && front::shows(root, &ready.targets))
        })?;
        joining.done()?;
        let root = match &self.directory {
            Some(from) => writable::on_directory(&image, from, &self.writable, &self.plan.binds)?,
            None => Root {
                directory: match self.writable.is_wanted() {
                    true => writable::overlaid(&image, &self.writable)?,
                    false => image,
                },
                placed: ready.targets.clone(),
                stage: None,
                is_kept: false,
            },
        };
        self.isolation.begin()?;
        let report = self.report;
        let stays = self.detached.is_some();
        match self.isolation.processes {
            true => {
                let detached = match &self.detached {
                    Some(detached) => Some(detached.try_clone()?),
                    None => None,
                };
                let begun = |pid: Option<_>| match &detached {
                    Some(detached) => {
                        detached.let_go()?;
                        pid.map_or(Ok(()), |pid| detached.pid(pid))
                    }
                    None => Ok(()),
                };
                let inside = || self.inside(privilege, &ready, &root, words);
                supervise::supervised(inside, stays, report, &begun)
            }
            false => self.inside(privilege, &ready, &root, words),
        }
    }

    /// In all namespaces: makes what the program sees, and becomes it.
    fn inside(
        self,
        privilege: Privilege,
        ready: &Ready,
        root: &Root,
        words: impl FnOnce(&Ready, &Variables) -> Result<Vec<OsString>, Error>,
    ) -> Result<Infallible, Error> {
        let sources = Sources {
            from_images: &self.from_images,
            identity: self.identity,
        };
        binds::make(root, &self.plan.binds, &sources)?;
        namespaces::change_root(&root.directory)?;
        let ready = match self.directory {
            Some(_) => &directory::about(ready),
            None => ready,
        };
        let mut directories = self.plan.directories.clone();
        if self.starts_where_image_says && !ready.working_directory.is_empty() {
            let directory = OsStr::from_bytes(&ready.working_directory);
            directories.insert(0, Path::new("/").join(directory));
        }
        let directory = process::enter_directory(&directories)?;
        process::drop_privileges(privilege, self.is_root_inside)?;
        if let Some(umask) = self.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        let sources = environment::Sources {
            image: app::environment(self.environment.app.as_deref(), &ready.environment)?,
            ..self.environment
        };
        let mut variables = environment::variables(&sources);
        variables.retain(|(name, _)| name != b"PWD");
        variables.push((b"PWD".to_vec(), directory.as_os_str().as_bytes().to_vec()));
        let words = words(ready, &variables)?;
        if let Some(detached) = &self.detached {
            detached.ready(ready)?;
        }
        if words.is_empty() {
            return Err(process::wait_for_a_signal());
        }
        Err(process::become_program(&words, variables))
    }
}

impl Isolation {
    fn begin(&self) -> Result<(), Error> {
        let failed = |err| Error::system("namespaces of the container's own", err);
        let parts = Parts {
            processes: self.processes,
            communication: self.communication,
            name: self.name,
            network: self.network,
        };
        namespace::unshare_parts(parts).map_err(failed)?;
        if let Some(name) = &self.host_name {
            rustix::system::sethostname(name.as_bytes()).map_err(|err| failed(err.into()))?;
        }
        match self.network {
            true => namespace::bring_up_loopback().map_err(failed),
            false => Ok(()),
        }
    }
}

/// Where the image must have something for the binds of `plan`: one that is a directory shows none of them, and only lends its place.
fn targets(plan: &Plan, is_directory: bool) -> Vec<Target> {
    let binds = plan.binds.iter();
    let binds = binds.filter(|bind| !is_directory || bind.source == Source::Stage);
    let target = |bind: &Bind| Target {
        path: bind.target.as_os_str().as_bytes().to_vec(),
        kind: bind.kind,
        if_missing: bind.if_missing,
        covers_link: bind.covers_link,
    };
    binds.map(target).collect()
}
