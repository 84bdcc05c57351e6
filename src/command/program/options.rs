//! What can be asked for: the options, what variables add to them, and what their texts mean.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use sifon_mount::reference::Reference;
use sifon_mount::source::is_image_file;
use sifon_mount::source::sif::Sif;

use super::Action;
use super::assignments::assignments;
use super::limits::Limits;
use super::variables::{is_true, listed, variable};
use crate::command::gpu;
use crate::container;
use crate::container::bind::{self, BindRequest};
use crate::container::environment::{Sources, Variables};
use crate::container::in_one_line;
use crate::container::namespaces;
use crate::container::plan::{Options, TargetKind};
use crate::container::scripts;
use crate::setting::{Error, image_or_directory};

/// Headings of the help, in the order in which people look for options.
const FILES: &str = "What the program sees of this machine";
const APART: &str = "What it does not share with it";
const VARIABLES: &str = "Its environment";
const WRITING: &str = "Writing into the image";
const GPU: &str = "Graphics processors";
const SERVER: &str = "The mount";

/// Options of `exec`, `run` and `shell`. Each that takes no value can also be given as a variable, such as `SIFON_CONTAIN=1`,
/// `APPTAINER_CONTAIN=1` or `SINGULARITY_CONTAIN=1`.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Show a path of this machine in the container too: SOURCE[:TARGET[:ro]]
    ///
    /// With FILE:TARGET:image-src=PATH it is a path in a SIF or squashfs, such as a data set. May be repeated, or list
    /// several separated by commas. $SIFON_BIND, $APPTAINER_BIND and
    /// $SINGULARITY_BIND (or …_BINDPATH) add to it.
    #[arg(help_heading = FILES, short = 'B', long, value_name = "BIND")]
    pub(super) bind: Vec<OsString>,
    /// The same in other words: type=bind,source=DIR,destination=DIR[,ro][,image-src=PATH]
    #[arg(help_heading = FILES, long, value_name = "WORDS")]
    pub(super) mount: Vec<OsString>,
    /// Show DIR, or SOURCE at TARGET, as the home directory
    #[arg(help_heading = FILES, short = 'H', long, value_name = "SOURCE[:TARGET]")]
    pub(super) home: Option<OsString>,
    /// Do not show your home directory
    #[arg(help_heading = FILES, long)]
    pub(super) no_home: bool,
    /// Leave out what is there otherwise: proc, sys, dev, home, tmp, cwd, bind-paths or a file such as /etc/localtime
    #[arg(help_heading = FILES, long, value_name = "NAME", value_delimiter = ',')]
    pub(super) no_mount: Vec<String>,
    /// Put /tmp, /var/tmp and scratch directories into this directory
    #[arg(help_heading = FILES, short = 'W', long, value_name = "DIR")]
    pub(super) workdir: Option<PathBuf>,
    /// An empty directory that only the container has
    #[arg(help_heading = FILES, short = 'S', long, value_name = "DIR")]
    pub(super) scratch: Vec<PathBuf>,
    /// Start the program in this directory of the container
    #[arg(help_heading = FILES, long, visible_alias = "cwd", value_name = "DIR")]
    pub(super) pwd: Option<PathBuf>,
    /// Start in the image's WORKDIR, as Docker does; Singularity does not
    #[arg(help_heading = FILES, long)]
    pub(super) oci_defaults: bool,
    /// Own, empty /tmp, /var/tmp and home, and only the most necessary devices
    #[arg(help_heading = APART, short, long)]
    pub(super) contain: bool,
    /// --contain, --pid, --ipc and --cleanenv
    #[arg(help_heading = APART, short = 'C', long)]
    pub(super) containall: bool,
    /// As Docker would: --containall, --no-umask, --no-eval and --writable-tmpfs
    #[arg(help_heading = APART, long)]
    pub(super) compat: bool,
    /// A user namespace: always so
    #[arg(help_heading = APART, short, long)]
    pub(super) userns: bool,
    /// Own process numbers; all processes end with the program
    #[arg(help_heading = APART, short, long)]
    pub(super) pid: bool,
    /// Own shared memory, semaphores and message queues
    #[arg(help_heading = APART, short, long)]
    pub(super) ipc: bool,
    /// Own name of the machine
    #[arg(help_heading = APART, long)]
    pub(super) uts: bool,
    /// The machine's name in the container; implies --uts
    #[arg(help_heading = APART, long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Own network, with nothing but the loopback interface: needs --network none
    #[arg(help_heading = APART, short, long)]
    pub(super) net: bool,
    /// The kind of network that --net makes
    #[arg(help_heading = APART, long, value_name = "KIND", value_parser = ["none"])]
    pub(super) network: Option<String>,
    /// Ask these servers for names of machines, not those that the host asks: addresses separated by commas
    #[arg(help_heading = APART, long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(super) dns: Vec<IpAddr>,
    /// Be root in the container, with rights over nothing but your own files
    ///
    /// Other users and groups are there if the site gives you a range of them (/etc/subuid and /etc/subgid, by newuidmap and
    /// newgidmap), else root is alone; -v says which.
    #[arg(help_heading = APART, short, long)]
    pub(super) fakeroot: bool,
    /// Keep your environment out of the container, but for TERM and proxies
    #[arg(help_heading = VARIABLES, short = 'e', long)]
    pub(super) cleanenv: bool,
    /// Set a variable in the container; $NAME stands for the container's other variables
    #[arg(help_heading = VARIABLES, long, value_name = "NAME=VALUE")]
    pub(super) env: Vec<OsString>,
    /// Set the variables in this file, NAME=VALUE on each line as a shell would read it
    #[arg(help_heading = VARIABLES, long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Choose an app of the image (Scientific Filesystem): its variables and programs, and what `run` starts
    #[arg(help_heading = VARIABLES, long, value_name = "NAME")]
    pub(super) app: Option<OsString>,
    /// Take $ in values and arguments for a character like any other
    #[arg(help_heading = VARIABLES, long)]
    pub(super) no_eval: bool,
    /// Do not pass the umask on: 0022 in the container
    #[arg(help_heading = VARIABLES, long)]
    pub(super) no_umask: bool,
    /// Let the program write into the image, and keep that there: a directory, or a SIF with an overlay in it
    ///
    /// A directory is shown as it is then: what has no place in it is left out. `sifon overlay create FILE.sif` makes an overlay in a
    /// SIF. Without this option both are only shown.
    #[arg(help_heading = WRITING, short = 'w', long)]
    pub(super) writable: bool,
    /// Let the program write into the image; what it writes is in memory and gone with it
    #[arg(help_heading = WRITING, long)]
    pub(super) writable_tmpfs: bool,
    /// Let the program write into the image, and keep what it writes in this directory or ext3 file
    ///
    /// May be repeated; but one all must be read-only: PATH:ro, a SIF or a squashfs. The first is undermost. An ext3 file (see
    /// `sifon overlay create`) needs the programs fuse2fs and fuse-overlayfs.
    #[arg(help_heading = WRITING, short, long, value_name = "PATH[:ro]")]
    pub(super) overlay: Vec<OsString>,
    /// Show the host's NVIDIA driver: libraries, programs, devices
    #[arg(help_heading = GPU, long)]
    pub(super) nv: bool,
    /// Show the host's ROCm driver
    #[arg(help_heading = GPU, long)]
    pub(super) rocm: bool,
    /// How long the image stays mounted for the next program when this one has ended, in seconds; also $SIFON_LINGER
    #[arg(help_heading = SERVER, long, value_name = "SECONDS", env = "SIFON_LINGER", hide_env = true, default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86_400 * 7))]
    pub(super) linger: u32,
    /// Share nothing with other programs: a server and a mount for this one alone, and --pid
    #[arg(help_heading = SERVER, long)]
    pub(super) private: bool,
    /// Share the image's mount and a user namespace with the other programs of the job: that is so without it
    ///
    /// Each program sees its own binds. For those that are to share process numbers, too, there are instances (`sifon instance start`).
    #[arg(help_heading = SERVER, long, conflicts_with = "private")]
    pub(super) sharens: bool,
    #[command(flatten)]
    pub(super) limits: Limits,
    /// For command lines written for Singularity: no effect, the program has no more rights than you have
    #[arg(long, hide = true, value_name = "WORDS")]
    pub(super) security: Vec<String>,
    /// For command lines written for Singularity: no effect
    #[arg(long, hide = true)]
    pub(super) no_init: bool,
    /// For command lines written for Singularity: no effect
    #[arg(long, hide = true)]
    pub(super) no_privs: bool,
}

impl Args {
    /// With what variables say, and what options imply.
    pub(super) fn resolved(&self) -> Result<Self, Error> {
        self.limits.require_none()?;
        let mut args = self.clone();
        for (flag, name) in [
            (&mut args.no_home, "NO_HOME"),
            (&mut args.contain, "CONTAIN"),
            (&mut args.containall, "CONTAINALL"),
            (&mut args.compat, "COMPAT"),
            (&mut args.cleanenv, "CLEANENV"),
            (&mut args.no_eval, "NO_EVAL"),
            (&mut args.no_umask, "NO_UMASK"),
            (&mut args.pid, "UNSHARE_PID"),
            (&mut args.ipc, "UNSHARE_IPC"),
            (&mut args.uts, "UNSHARE_UTS"),
            (&mut args.net, "UNSHARE_NET"),
            (&mut args.writable, "WRITABLE"),
            (&mut args.writable_tmpfs, "WRITABLE_TMPFS"),
            (&mut args.fakeroot, "FAKEROOT"),
            (&mut args.nv, "NV"),
            (&mut args.rocm, "ROCM"),
        ] {
            *flag |= variable(name).is_some_and(|value| is_true(&value));
        }
        args.home = args.home.or_else(|| variable("HOME"));
        args.workdir = args.workdir.or_else(|| variable("WORKDIR").map(Into::into));
        args.hostname = args
            .hostname
            .or_else(|| variable("HOSTNAME")?.into_string().ok());
        args.pwd = args
            .pwd
            .or_else(|| variable("PWD").or_else(|| variable("CWD")).map(Into::into));
        if args.env_file.is_empty() {
            args.env_file = listed(variable("ENV_FILE"))
                .into_iter()
                .map(Into::into)
                .collect();
        }
        if args.overlay.is_empty() {
            args.overlay = listed(variable("OVERLAY"));
        }
        args.no_mount.extend(
            listed(variable("NO_MOUNT"))
                .into_iter()
                .filter_map(|name| name.into_string().ok()),
        );
        args.mount.extend(variable("MOUNT"));
        args.app = args.app.or_else(|| variable("APP"));
        if args.dns.is_empty() {
            args.dns = addresses(variable("DNS"))?;
        }
        args.containall |= args.compat;
        args.no_umask |= args.compat;
        args.no_eval |= args.compat;
        args.writable_tmpfs |= args.compat && args.overlay.is_empty();
        args.contain |= args.containall;
        args.pid |= args.containall || args.private;
        args.ipc |= args.containall;
        args.cleanenv |= args.containall;
        args.uts |= args.hostname.is_some();
        args.require_shared()?;
        Ok(args)
    }

    /// With `--sharens` nothing may be the program's own that programs under Singularity would share then.
    fn require_shared(&self) -> Result<(), Error> {
        let own = [
            (self.pid, "process numbers"),
            (self.ipc, "shared memory"),
            (self.uts, "a machine's name"),
            (self.net, "a network"),
        ];
        let own = own.into_iter().find(|(is_own, _)| *is_own);
        match own.filter(|_| self.sharens) {
            None => Ok(()),
            Some((_, what)) => Err(Box::new(container::Error::Reported {
                message: format!("--sharens with {what} of the container's own: programs share these in an instance only"),
                hint: Some(
                    "start the container once, `sifon instance start IMAGE NAME`, and each program with `sifon exec instance://NAME PROGRAM`"
                        .into(),
                ),
            })),
        }
    }

    /// Whether the user is root inside.
    pub fn is_root_inside(&self) -> bool {
        self.resolved().is_ok_and(|args| args.fakeroot)
    }

    /// Home in the container, if it is not the caller's own.
    pub fn home_inside(&self) -> Option<PathBuf> {
        let args = self.resolved().ok()?;
        let (_, target) = home(args.home.as_deref()?).ok()?;
        Some(target)
    }

    /// The binds, and where they are in the container, joined by commas: what a program finds in `APPTAINER_BIND`.
    pub(super) fn requested_binds(&self) -> Result<(Vec<BindRequest>, Vec<u8>), Error> {
        let mut texts = self.bind.clone();
        for suffix in ["BIND", "BINDPATH"] {
            texts.extend(variable(suffix));
        }
        texts.retain(|text| !text.is_empty());
        let mut binds = Vec::new();
        for text in &texts {
            binds.extend(bind::requests(text)?);
        }
        for text in &self.mount {
            binds.extend(bind::mounts(text)?);
        }
        let targets: Vec<_> = binds.iter().map(|bind| bind.target.as_os_str()).collect();
        let text = targets.join(OsStr::new(","));
        Ok((binds, text.into_vec()))
    }

    pub(super) fn options(&self, binds: Vec<BindRequest>) -> Result<Options, Error> {
        let mut driver = Vec::new();
        let mut devices = Vec::new();
        for (is_wanted, kind) in [(self.nv, &gpu::NVIDIA), (self.rocm, &gpu::ROCM)] {
            if is_wanted {
                driver.extend(kind.binds());
                devices.extend(kind.devices());
            }
        }
        Ok(Options {
            binds,
            from_images: Vec::new(),
            home: self.home.as_deref().map(home).transpose()?,
            is_without_home: self.no_home,
            left_out: self.no_mount.clone(),
            is_contained: self.contain,
            has_own_processes: self.pid,
            work_directory: self.work_directory()?,
            scratch: self.scratch_directories()?,
            host_name: self.hostname.clone(),
            driver,
            devices,
            name_servers: self.dns.clone(),
            directory: self.pwd.clone(),
            adds_no_names: false,
        })
    }

    fn scratch_directories(&self) -> Result<Vec<PathBuf>, Error> {
        match self.scratch.iter().find(|path| !path.is_absolute()) {
            Some(path) => {
                Err(format!("--scratch: {} must be an absolute path", path.display()).into())
            }
            None => Ok(self.scratch.clone()),
        }
    }

    /// The directory of `--workdir`, with those in it that are shown.
    fn work_directory(&self) -> Result<Option<PathBuf>, Error> {
        let Some(directory) = &self.workdir else {
            return Ok(None);
        };
        let directory = std::path::absolute(directory)?;
        if !directory.is_dir() {
            return Err(format!("--workdir: {} is no directory", directory.display()).into());
        }
        let own = ["tmp", "var_tmp", "home"].map(PathBuf::from);
        let below = |path: &PathBuf| format!("scratch/{}", path.display()).into();
        let scratch = self.scratch.iter().map(below);
        for name in own.into_iter().filter(|_| self.contain).chain(scratch) {
            let path = directory.join(name);
            let failed = |err| format!("--workdir: {}: {err}", path.display());
            fs::create_dir_all(&path).map_err(failed)?;
        }
        Ok(Some(directory))
    }

    pub(super) fn environment(
        &self,
        image: &OsStr,
        action: &Action,
        home: Option<&Path>,
        bind: Vec<u8>,
    ) -> Result<Sources, Error> {
        let host: Variables = std::env::vars_os()
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .collect();
        let mut asked = Variables::new();
        for file in &self.env_file {
            let failed = |problem: &dyn std::fmt::Display| {
                format!("--env-file {}: {problem}", file.display())
            };
            let text = fs::read(file).map_err(|err| failed(&err))?;
            let variables = scripts::of_file(&text, &host).map_err(|command| {
                let command = String::from_utf8_lossy(&command);
                failed(&format_args!(
                    "{command:?} sets no variable, or needs a shell"
                ))
            })?;
            asked.extend(variables);
        }
        asked.extend(assignments(&self.env)?);
        let container = container_of(image);
        Ok(Sources {
            host,
            image: Variables::new(),
            asked,
            is_clean: self.cleanenv,
            is_literal: self.no_eval,
            home: home.map(|home| home.as_os_str().as_bytes().to_vec()),
            name: name_of(container.as_bytes()).to_vec(),
            container: container.into_vec(),
            bind,
            command: action.verb().into(),
            app: self.app.clone(),
            instance: None,
            ids: self.numbers_inside(),
        })
    }

    /// User and group that the caller is in the container.
    pub(super) fn numbers_inside(&self) -> (u32, u32) {
        match self.fakeroot {
            true => (0, 0),
            false => namespaces::own_numbers(),
        }
    }
}

/// What those of `binds` show that come from file systems in files, in order. `opened` gives a mount of a part of such a file.
pub(super) fn from_images(
    binds: &[BindRequest],
    opened: impl Fn(&Path, &Path) -> Result<OwnedFd, Error>,
) -> Result<Vec<(TargetKind, OwnedFd)>, Error> {
    let mut shown = Vec::new();
    for bind in binds {
        let Some(part) = &bind.within_image else {
            continue;
        };
        let file = std::path::absolute(&bind.source)?;
        let failed = |err: &dyn std::fmt::Display| {
            format!("bind of {} from {}: {err}", part.display(), file.display())
        };
        fs::metadata(&file).map_err(|err| failed(&err))?;
        if !is_image_file(&file) {
            return Err(failed(&"it is neither a SIF nor a squashfs").into());
        }
        if Sif::open(File::open(&file)?)
            .is_ok_and(|sif| sif.primary_partition().is_some() && sif.data_partition().is_some())
        {
            let problem = "it has a root file system and another one with data, and which of them is meant cannot be said";
            return Err(failed(&problem).into());
        }
        let tree = opened(&file, part).map_err(|err| failed(&in_one_line(&*err)))?;
        let found = rustix::fs::fstat(&tree).map_err(|err| failed(&err))?;
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => TargetKind::Directory,
            _ => TargetKind::File,
        };
        shown.push((kind, tree));
    }
    Ok(shown)
}

/// Addresses in a variable.
fn addresses(text: Option<OsString>) -> Result<Vec<IpAddr>, Error> {
    let address = |text: OsString| {
        let address = text.to_str().and_then(|text| text.trim().parse().ok());
        address.ok_or_else(|| format!("--dns: {} is no address", text.display()).into())
    };
    listed(text).into_iter().map(address).collect()
}

/// `SOURCE[:TARGET]` of `--home`, both absolute.
fn home(text: &OsStr) -> Result<(PathBuf, PathBuf), Error> {
    let mut parts = text.as_bytes().splitn(2, |&byte| byte == b':');
    let source = OsStr::from_bytes(parts.next().unwrap_or_default());
    let source = std::path::absolute(source)?;
    if !source.is_dir() {
        return Err(format!("--home: {} is no directory", source.display()).into());
    }
    let target = match parts.next() {
        Some(target) => PathBuf::from(OsStr::from_bytes(target)),
        None => source.clone(),
    };
    if !target.is_absolute() {
        return Err(format!("--home: {} must be an absolute path", target.display()).into());
    }
    Ok((source, target))
}

/// The image as a program in it finds it named: where a file is, from the root, because the program may start elsewhere.
fn container_of(image: &OsStr) -> OsString {
    let path = match image_or_directory(image) {
        Ok(Reference::Directory(path)) => Some(without_dots(&path)),
        Ok(Reference::File(path)) => Some(path),
        _ => None,
    };
    path.map_or_else(|| image.into(), PathBuf::into_os_string)
}

/// The path with `..` taken as the way back to what stands before it, whatever is a link: a name, as Singularity writes it.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path {
        match part == ".." {
            true => _ = plain.pop(),
            false => plain.push(part),
        }
    }
    plain
}

/// What the image is called inside: the last part of its name.
fn name_of(image: &[u8]) -> &[u8] {
    image.rsplit(|&byte| byte == b'/').next().unwrap_or(image)
}
