//! One directory of the store: opened, trusted or not, written to or not.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::process::{getegid, geteuid};

use super::draft::Draft;
use super::{Name, Settings, turn};
use crate::sys::Sealed;

/// The layout's version; another one lives beside it.
const VERSION: &str = "v1";

/// Temporary files of other machines are left alone for this long.
const DRAFT_AGE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A layer of so few bytes is streamed again sooner than a disk answers that it has them.
const UNSYNCED_BYTES: u64 = 1 << 20;

/// What describes a layer of a million files on its way into a table takes less.
const SCRATCH_BYTES: u64 = 256 << 20;

/// Whose directories' contents are taken as they are.
pub(super) struct Trust {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Trust {
    pub fn of(settings: &Settings) -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let mut trust = Self {
            uids: settings.trusted_uids.clone(),
            gids: settings.trusted_gids.clone(),
        };
        trust.uids.extend([0, uid]);
        trust.gids.push(0);
        // Where every user has a group of the same number, that group is the user.
        if uid == gid {
            trust.gids.push(gid);
        }
        trust
    }

    /// Whether nobody else can change what is in the directory `path` (absolute, without links), or what any directory
    /// on the way to it leads to. A sticky one may be on the way, such as /tmp: others can add names to it,
    /// but not take ours. In the last one an added name would be believed.
    fn covers(&self, path: &Path) -> io::Result<bool> {
        for component in path.ancestors() {
            let directory = rustix::fs::open(
                component,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let stat = rustix::fs::fstat(directory.as_fd())?;
            let mode = Mode::from_raw_mode(stat.st_mode);
            let is_sticky = stat.st_mode & 0o1000 != 0 && component != path;
            let others_write = mode.contains(Mode::WOTH)
                || (mode.contains(Mode::WGRP) && !self.gids.contains(&stat.st_gid));
            if !self.uids.contains(&stat.st_uid) || (others_write && !is_sticky) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub(super) struct Directory {
    path: PathBuf,
    is_trusted: bool,
    /// Whether nobody but those who are trusted can write to packed files.
    has_trusted_packed: bool,
    is_writable: bool,
    is_on_network: bool,
}

impl Directory {
    /// For the user's own: makes what is missing.
    pub fn open_or_make(path: &Path, trust: &Trust) -> Self {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path.join(VERSION));
        let mut directory = Self::open(path, trust);
        match made.and_then(|()| directory.make_directories()) {
            Ok(()) => {
                directory.is_writable = true;
                let packed = directory.path.join("packed");
                directory.has_trusted_packed = trust.covers(&packed).unwrap_or(false);
            }
            Err(err) => {
                tracing::warn!(store = %path.display(), error = %err, "the store cannot be written to: nothing will be kept");
            }
        }
        directory
    }

    /// For a site's: as it is, never written to.
    pub fn open(path: &Path, trust: &Trust) -> Self {
        let path = path
            .canonicalize()
            .unwrap_or_else(|_| path.to_path_buf())
            .join(VERSION);
        let is_trusted = path.exists()
            && ["", "layers", "trees", "tags"]
                .iter()
                .map(|part| path.join(part).components().collect::<PathBuf>())
                .filter(|part| part.symlink_metadata().is_ok())
                .all(|part| trust.covers(&part).unwrap_or(false));
        if !is_trusted && path.exists() {
            tracing::warn!(
                store = %path.display(),
                "others can write to the store or a directory above it: its tables are not used"
            );
        }
        let is_on_network = is_on_network(&path);
        Self {
            path,
            is_trusted,
            has_trusted_packed: false,
            is_writable: false,
            is_on_network,
        }
    }

    /// A directory that has nothing and takes nothing.
    pub fn nowhere() -> Self {
        Self {
            // Nothing can be below what is no directory.
            path: Path::new("/dev/null").join(VERSION),
            is_trusted: false,
            has_trusted_packed: false,
            is_writable: false,
            is_on_network: false,
        }
    }

    fn make_directories(&self) -> io::Result<()> {
        for part in [
            "manifests",
            "layers",
            "packed",
            "trees",
            "profiles",
            "tags",
            "images",
            "leases",
            "tmp",
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(self.path.join(part))?;
        }
        let writable = rustix::fs::access(self.path.join("tmp"), rustix::fs::Access::WRITE_OK);
        Ok(writable?)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    pub fn has_trusted_packed(&self) -> bool {
        self.has_trusted_packed
    }

    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// A regular file of the store, or nothing.
    pub fn open_file(&self, name: Name) -> Option<File> {
        self.open_at(&name.path())
    }

    fn open_at(&self, path: &Path) -> Option<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(self.path.join(path))
            .ok()?;
        file.metadata()
            .is_ok_and(|metadata| metadata.is_file())
            .then_some(file)
    }

    /// A small file's bytes, or nothing; `path` counts from this directory.
    pub fn read(&self, path: &Path, limit: u64) -> Option<Vec<u8>> {
        let file = self.open_at(path)?;
        let mut bytes = Vec::new();
        (&file).take(limit + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= limit).then_some(bytes)
    }

    /// The bytes of a sealed file of this directory.
    pub fn bytes_of(&self, file: &File) -> io::Result<Sealed> {
        if self.is_on_network {
            Sealed::read(file)
        } else {
            Sealed::map(file)
        }
    }

    pub fn open_packed(&self, name: Name, size: u64) -> io::Result<File> {
        self.writable()?;
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
                .open(self.path.join(name.path()))
        };
        let file = self.with_directories(open)?;
        let metadata = file.metadata()?;
        // Where others can write, the name could be another one of a file that is dear to us.
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if metadata.len() != size {
            file.set_len(size)?;
        }
        Ok(file)
    }

    pub fn draft(&self) -> io::Result<Draft> {
        self.writable()?;
        let tmp = self.path.join("tmp");
        let nameless = || {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            Ok(rustix::fs::open(&tmp, flags, Mode::from_raw_mode(0o644))?)
        };
        if let Ok(file) = self.with_directories(nameless) {
            return Ok(Draft::nameless(file.into()));
        }
        let path = tmp.join(temporary_name());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)?;
        Ok(Draft::named(file, path))
    }

    /// Gives a native layer its name; a file that already has that name is replaced. One that would take long to make again is
    /// synced before.
    pub fn seal(&self, draft: Draft, name: Name) -> io::Result<File> {
        let is_kept = self.is_writable && !draft.is_outside();
        if is_kept && draft.as_file().metadata()?.len() > UNSYNCED_BYTES {
            draft.as_file().sync_data()?;
        }
        self.place_at(draft, &name.path())
    }

    /// Gives a draft its name, without waiting for the disk: after a loss of power the file may be empty. `path` counts from
    /// this directory.
    pub fn place_at(&self, draft: Draft, path: &Path) -> io::Result<File> {
        if !self.is_writable || draft.is_outside() {
            return draft.file();
        }
        draft
            .as_file()
            .set_permissions(fs::Permissions::from_mode(0o444))?;
        let to = self.path.join(path);
        match draft.temporary() {
            Some(from) => self.with_directories(|| fs::rename(from, &to))?,
            None => self.with_directories(|| self.link(draft.as_file(), &to))?,
        }
        draft.keep()
    }

    fn link(&self, file: &File, to: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |to: &Path| rustix::fs::linkat(CWD, &*from, CWD, to, AtFlags::SYMLINK_FOLLOW);
        match link(to) {
            Err(rustix::io::Errno::EXIST) => {
                let temporary = self.path.join("tmp").join(temporary_name());
                link(&temporary)?;
                fs::rename(&temporary, to)
            }
            linked => Ok(linked?),
        }
    }

    /// Does `what`, and once more if somebody deleted the store's directories meanwhile.
    fn with_directories<T>(&self, what: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match what() {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.make_directories()?;
                what()
            }
            done => done,
        }
    }

    fn writable(&self) -> io::Result<()> {
        if self.is_writable {
            Ok(())
        } else {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    /// Where temporary files can be made, if there is room for them.
    pub fn scratch(&self) -> Option<PathBuf> {
        let tmp = self.path.join("tmp");
        let is_there = || tmp.is_dir() || self.make_directories().is_ok();
        (self.is_writable && is_there() && has_room(&tmp)).then_some(tmp)
    }

    /// Removes what killed processes left in `tmp`: of this machine at once, of others after a day.
    pub fn remove_stale_drafts(&self) {
        if !self.is_writable {
            return;
        }
        for entry in fs::read_dir(self.path.join("tmp"))
            .into_iter()
            .flatten()
            .flatten()
        {
            turn::remove_if_abandoned(&entry.path());
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| Owner::parse(name.rsplit_once('-')?.0));
            let is_old = || {
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                modified.is_ok_and(|at| {
                    SystemTime::now().duration_since(at).unwrap_or_default() > DRAFT_AGE_LIMIT
                })
            };
            let is_stale = match owner {
                Some(owner) if owner.is_here() => !owner.is_alive(),
                _ => is_old(),
            };
            if is_stale {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Whether the file system takes [`SCRATCH_BYTES`] more. Quotas are not seen here: they fail the write.
fn has_room(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= SCRATCH_BYTES)
}

/// A process that something in the store belongs to, as file names say it: `HOST-PID`.
pub(super) struct Owner {
    host: String,
    pid: u32,
}

impl Owner {
    pub fn this_process() -> Self {
        Self {
            host: host(),
            pid: std::process::id(),
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (host, pid) = text.rsplit_once('-')?;
        Some(Self {
            host: host.to_owned(),
            pid: pid.parse().ok()?,
        })
    }

    pub fn is_here(&self) -> bool {
        self.host == host()
    }

    pub fn is_alive(&self) -> bool {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return false };
        // Only "no such process" says that it is gone; another user's may not be signalled.
        rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.host, self.pid)
    }
}

/// The host as far as process numbers go: containers with one name still number their processes apart.
fn host() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .replace(['/', '\0'], "_");
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) => format!("{name}.{:x}", namespace.ino()),
        Err(_) => name,
    }
}

fn temporary_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}",
        Owner::this_process(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whether another machine could cut a file short under our mapping of it.
fn is_on_network(path: &Path) -> bool {
    /// `f_type` of the local file systems that people keep caches on (statfs(2), linux/magic.h).
    const LOCAL: [i64; 10] = [
        0xEF53,     // ext2, ext3, ext4
        0x58465342, // XFS
        0x9123683E, // Btrfs
        0x01021994, // tmpfs
        0x858458F6, // ramfs
        0x2FC12FC1, // ZFS
        0x794C7630, // overlayfs
        0xF2F52010, // F2FS
        0x24051905, // UBIFS
        0xCA451A4E, // bcachefs
    ];
    match rustix::fs::statfs(path) {
        Ok(stat) => !LOCAL.contains(&stat.f_type),
        Err(_) => false,
    }
}

/// Bytes that a file takes on the disk, holes not counted.
pub(super) fn disk_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}
