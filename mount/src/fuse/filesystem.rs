//! The kernel's requests, answered from an image. There are no handles and no other state: node numbers are places
//! in the tree, so that another process can take the connection over.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::View;
use super::attributes::{self, BLOCK_BYTES, file_attr};
use super::workers::Workers;
use crate::image::{Enough, Image, Owners};
use crate::sys::mount::MAX_READ;
use crate::tree::{NodeId, NodeKind, TreeError};

/// How long the kernel may remember names and attributes: for good, because nothing in an image changes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Read-aheads in flight at once: enough to keep a far registry busy.
const MAX_BACKGROUND: u16 = 64;

/// What we want of the kernel where it has it: attributes with directory listings, symbolic links
/// remembered, several requests in one directory at once.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO);

/// Places of `.`, `..` and the first name in a listing.
const DOT: u64 = 0;
const DOT_DOT: u64 = 1;
const NAMES_FROM: u64 = 2;

pub(super) struct ImageFileSystem {
    image: Arc<Image>,
    owners: Owners,
    workers: Workers,
    /// Whether the kernel takes ENOSYS for "opening needs no request".
    opens_itself: bool,
    opens_directories_itself: bool,
}

impl ImageFileSystem {
    pub(super) fn new(image: Arc<Image>, view: View) -> io::Result<Self> {
        Ok(Self {
            workers: Workers::start(&image, view.timeout, view.threads)?,
            image,
            owners: view.owners,
            opens_itself: false,
            opens_directories_itself: false,
        })
    }

    fn attr(&self, id: NodeId) -> Result<FileAttr, TreeError> {
        let node = self.image.node(id)?;
        Ok(file_attr(&self.owners.shown(id, node)))
    }

    /// Shows what is in `directory` to `each` from the place `from`, `.` and `..` first.
    fn list(
        &self,
        directory: NodeId,
        from: u64,
        mut each: impl FnMut(&[u8], NodeId, u64) -> Enough,
    ) -> Result<(), TreeError> {
        if from == DOT && each(b".", directory, DOT_DOT) == Enough::Yes {
            return Ok(());
        }
        if from <= DOT_DOT {
            let parent = self.image.parent(directory)?;
            if each(b"..", parent, NAMES_FROM) == Enough::Yes {
                return Ok(());
            }
        }
        let from = from.saturating_sub(NAMES_FROM);
        self.image.children(directory, from, |name, id, next| {
            each(name, id, next + NAMES_FROM)
        })
    }

    fn readdirplus_into(
        &self,
        directory: NodeId,
        from: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), TreeError> {
        let mut damaged = None;
        self.list(directory, from, |name, id, next| match self.attr(id) {
            Ok(attr) => {
                let name = OsStr::from_bytes(name);
                enough(reply.add(attr.ino, next, name, &FOREVER, &attr, Generation(0)))
            }
            Err(err) => {
                damaged = Some(err);
                Enough::Yes
            }
        })?;
        damaged.map_or(Ok(()), Err)
    }

    fn readdir_into(
        &self,
        directory: NodeId,
        from: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), TreeError> {
        let mut damaged = None;
        self.list(directory, from, |name, id, next| {
            match self.image.node(id) {
                Ok(node) => {
                    let kind = attributes::file_type(node.kind);
                    enough(reply.add(INodeNo(id.0), next, kind, OsStr::from_bytes(name)))
                }
                Err(err) => {
                    damaged = Some(err);
                    Enough::Yes
                }
            }
        })?;
        damaged.map_or(Ok(()), Err)
    }

    fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Option<&[u8]>, TreeError> {
        let xattrs = self.image.xattrs(id)?;
        let found = xattrs.into_iter().find(|(key, _)| *key == name);
        Ok(found.map(|(_, value)| value))
    }

    /// Names as listxattr(2) gives them: each with a NUL byte at its end.
    fn xattr_names(&self, id: NodeId) -> Result<Vec<u8>, TreeError> {
        let mut names = Vec::new();
        for (name, _) in self.image.xattrs(id)? {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Whether access(2) may be asked for, where the kernel checks no permissions for us: everything
    /// but running what nobody may run, as for root.
    fn allows(&self, id: NodeId, mask: AccessFlags) -> Result<bool, TreeError> {
        if !mask.contains(AccessFlags::X_OK) {
            return Ok(true);
        }
        let node = self.image.node(id)?;
        Ok(!matches!(node.kind, NodeKind::Regular { .. }) || node.mode & 0o111 != 0)
    }
}

fn enough(is_full: bool) -> Enough {
    match is_full {
        true => Enough::Yes,
        false => Enough::No,
    }
}

/// Logs the failure and its causes, once, as it leaves us; gives the number the kernel gets: whatever is wrong
/// with an image's bytes, a program can do no more about it than about a broken disk.
pub(super) fn failed(
    op: &'static str,
    id: NodeId,
    error: &(dyn std::error::Error + 'static),
) -> Errno {
    tracing::warn!(op, ino = id.0, error, "failed");
    Errno::EIO
}

/// Does what answers one request. If that panics, the request's reply, dropped unused, answers EIO, and the thread
/// lives on for the next.
fn guarded(op: &'static str, ino: INodeNo, answer: impl FnOnce(NodeId)) {
    if catch_unwind(AssertUnwindSafe(|| answer(NodeId(ino.0)))).is_err() {
        tracing::error!(op, ino = ino.0, "panicked");
    }
}

/// Answers a request for an attribute's value, or for its length when `size` is 0.
fn reply_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for ImageFileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        config
            .add_capabilities(WANTED & offered)
            .expect("only what is offered is asked for");
        config
            .set_max_background(MAX_BACKGROUND)
            .expect("more than zero");
        // Nothing is written, but the largest read follows from it (fuse_init_out.max_pages).
        config
            .set_max_write(MAX_READ)
            .expect("less than fuser's buffer");
        self.opens_itself = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.opens_directories_itself = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", parent, |parent| {
            let found = self
                .image
                .lookup(parent, name.as_bytes())
                .and_then(|found| found.map(|id| self.attr(id)).transpose());
            match found {
                Ok(Some(attr)) => reply.entry(&FOREVER, &attr, Generation(0)),
                Ok(None) => reply.entry(&FOREVER, &attributes::missing(), Generation(0)),
                Err(err) => reply.error(failed("lookup", parent, &err)),
            }
        });
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", ino, |id| match self.attr(id) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(err) => reply.error(failed("getattr", id, &err)),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", ino, |id| match self.image.link_target(id) {
            Ok(target) => reply.data(target),
            Err(err) => reply.error(failed("readlink", id, &err)),
        });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.opens_itself {
            return reply.error(Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", ino, |id| {
            match self.image.read_cached(id, offset, size) {
                Ok(Some(bytes)) => reply.data(&bytes),
                Ok(None) => self.workers.read(id, offset, size, reply),
                Err(err) => reply.error(failed("read", id, &err)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.opens_directories_itself {
            return reply.error(Errno::ENOSYS);
        }
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        guarded("readdir", ino, |id| {
            match self.readdir_into(id, offset, &mut reply) {
                Ok(()) => reply.ok(),
                Err(err) => reply.error(failed("readdir", id, &err)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", ino, |id| {
            match self.readdirplus_into(id, offset, &mut reply) {
                Ok(()) => reply.ok(),
                Err(err) => reply.error(failed("readdirplus", id, &err)),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let bytes = self.image.tree().file_bytes();
        let blocks = bytes.div_ceil(BLOCK_BYTES.into());
        let files = self.image.file_count();
        // Full, as every read-only file system.
        reply.statfs(blocks, 0, 0, files, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.image.has_xattrs() {
            // The kernel does not ask again, which it otherwise does at every `ls -l` and every program's start.
            return reply.error(Errno::ENOSYS);
        }
        guarded("getxattr", ino, |id| {
            match self.xattr(id, name.as_bytes()) {
                Ok(Some(value)) => reply_xattr(reply, value, size),
                Ok(None) => reply.error(Errno::ENODATA),
                Err(err) => reply.error(failed("getxattr", id, &err)),
            }
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.image.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded("listxattr", ino, |id| match self.xattr_names(id) {
            Ok(names) => reply_xattr(reply, &names, size),
            Err(err) => reply.error(failed("listxattr", id, &err)),
        });
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // Not ENOSYS, which the kernel takes for "everything is allowed": `test -x` of a text must be false.
        guarded("access", ino, |id| match self.allows(id, mask) {
            Ok(true) => reply.ok(),
            Ok(false) => reply.error(Errno::EACCES),
            Err(err) => reply.error(failed("access", id, &err)),
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask whether a file is a terminal; older kernels would hand them ENOSYS as it is.
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // The kernel then does it itself: everything is data up to the end.
        reply.error(Errno::ENOSYS);
    }
}
