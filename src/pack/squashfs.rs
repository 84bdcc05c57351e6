//! The root file system as squashfs, written by `backhand` straight from the image.
//!
//! Contents are read while they are written, a block at a time; only names stay in memory. What `backhand` cannot
//! keep is counted in [`Lost`].

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::thread;

use backhand::compression::{CompressionOptions, Compressor, Gzip, Zstd};
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use sifon_mount::layer::entry::{Timestamp, shown};
use xxhash_rust::xxh64::Xxh64;

use super::node::{Content, Contents, PackKind, PackNode};

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Read by Linux since 4.14 and by current squashfuse.
    #[default]
    Zstd,
    /// Read everywhere.
    Gzip,
}

/// Of 1.33 GB in 76,670 files, level 3 made 375 MB in 6 CPU seconds, level 9 353 MB in 14, level 15 333 MB in 98.
const ZSTD_LEVEL: u32 = 3;
/// Of the same files, level 6 made 372 MB in 17 CPU seconds, level 9 took more than twice that.
const GZIP_LEVEL: u32 = 6;
/// What mksquashfs and the kernel take for granted.
const BLOCK_BYTES: usize = 128 << 10;

/// `backhand` writes and reads no longer ones; it would panic.
const SYMLINK_BYTES_LIMIT: usize = 255;
/// Components in a path. The time that `backhand` takes grows with the cube of the depth (2,000 levels: two
/// minutes), the stack with the depth.
const DEPTH_LIMIT: usize = 256;
/// `backhand` takes only smaller files.
const FILE_BYTES_LIMIT: u64 = 1 << 41;
/// Numbers of owners and groups, together, that a superblock can count.
const IDS_LIMIT: usize = u16::MAX as usize;
/// Device numbers that squashfs can hold.
const MAJOR_LIMIT: u32 = 1 << 12;
/// The same.
const MINOR_LIMIT: u32 = 1 << 20;
/// The writer calls itself once per level of directories.
const STACK_BYTES: usize = 64 << 20;
/// Bytes that are gathered before they go to the file.
const BUFFER_BYTES: usize = 1 << 20;

/// What the squashfs does not have though the image does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Names that became files of their own, not links.
    pub hard_links: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Symbolic links with a target over 255 bytes, left out.
    pub symlinks: u64,
    /// Files more than 256 levels deep, left out.
    pub deep: u64,
    /// Devices with numbers that squashfs cannot hold, left out.
    pub devices: u64,
}

impl Lost {
    /// A sentence for each thing that was lost.
    pub fn warnings(&self) -> Vec<String> {
        [
            (self.hard_links, "hard links became files of their own"),
            (
                self.xattrs,
                "extended attributes (file capabilities among them) were not kept",
            ),
            (
                self.symlinks,
                "symbolic links to more than 255 bytes were left out",
            ),
            (self.deep, "files more than 256 levels deep were left out"),
            (
                self.devices,
                "devices with numbers too large for squashfs were left out",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

/// Why there is no squashfs.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    /// The names of the image cannot be read.
    #[error("image: its tree cannot be read")]
    Tree(#[source] io::Error),
    /// The bytes of a file cannot be read.
    #[error("image, /{}: its content cannot be read", shown(path))]
    Content {
        /// The file.
        path: Vec<u8>,
        /// Why.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("squashfs: writing failed")]
    Write(#[source] io::Error),
    /// The format has no room for something.
    #[error("image, /{}: {problem}", shown(path))]
    Unfit {
        /// The file.
        path: Vec<u8>,
        /// What has no room.
        problem: &'static str,
    },
    /// `backhand` refused.
    #[error("squashfs: {0}")]
    Refused(String),
}

/// How to write.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// How blocks are compressed.
    pub compression: Compression,
    /// The file system's own time, in seconds since 1970.
    pub created: i64,
    /// Told how many more bytes of files have been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes from the first to the end of the padding.
    pub len: u64,
    /// What is missing.
    pub lost: Lost,
}

/// Writes `contents` into `file` from byte `at`; what the file has behind the returned length is garbage.
pub fn write(
    contents: &Contents<'_>,
    file: &File,
    at: u64,
    settings: Settings<'_>,
) -> Result<Written, SquashfsError> {
    // backhand stores a file once that has the length and the XXH64 of another. Somebody can make two that are
    // not the same; then nothing is shared.
    match attempt(contents, file, at, settings, true)? {
        Some(written) => Ok(written),
        None => {
            tracing::warn!(
                "the image has files made to be taken for each other; nothing is shared"
            );
            Ok(attempt(contents, file, at, settings, false)?
                .expect("only a search for duplicates can fail so"))
        }
    }
}

/// One try, on a thread with room for deep trees; `None` if files were taken for each other that are not the same.
fn attempt(
    contents: &Contents<'_>,
    file: &File,
    at: u64,
    settings: Settings<'_>,
    shared: bool,
) -> Result<Option<Written>, SquashfsError> {
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .name("squashfs".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || {
                Attempt::new(contents, shared).run(file, at, settings)
            })
            .map_err(SquashfsError::Write)?;
        writer.join().unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(SquashfsError::Refused(format!(
                "the writer gave up: {text}"
            )))
        })
    })
}

/// One run of `backhand`.
struct Attempt<'a> {
    contents: &'a Contents<'a>,
    shared: bool,
    lost: Lost,
    /// Numbers of owners and groups so far. The writer has 0 from the start.
    ids: HashSet<u32>,
    /// Files of which a name has been seen.
    linked: HashSet<u64>,
    state: Rc<State>,
}

/// What readers and the writer report past `backhand`.
#[derive(Default)]
struct State {
    failure: RefCell<Option<SquashfsError>>,
    /// Length and XXH64 of each file that may be shared, and what tells it from others.
    twins: RefCell<HashMap<(u64, u64), blake3::Hash>>,
    taken_for_another: RefCell<bool>,
}

impl State {
    /// Keeps the first failure, which is the cause of later ones, and gives `backhand` one.
    fn failed(&self, failure: SquashfsError) -> io::Error {
        self.failure.borrow_mut().get_or_insert(failure);
        io::Error::other("reported apart")
    }
}

impl<'a> Attempt<'a> {
    fn new(contents: &'a Contents<'a>, shared: bool) -> Self {
        Self {
            contents,
            shared,
            lost: Lost::default(),
            ids: HashSet::from([0]),
            linked: HashSet::new(),
            state: Rc::default(),
        }
    }

    fn run(
        mut self,
        file: &File,
        at: u64,
        settings: Settings<'a>,
    ) -> Result<Option<Written>, SquashfsError> {
        let mut writer = FilesystemWriter::default();
        writer.set_compressor(compressor(settings.compression)?);
        writer.set_block_size(BLOCK_BYTES as u32);
        writer.set_no_duplicate_files(self.shared);
        writer.set_time(clamped(settings.created));
        let mut root = (0, 0);
        for node in self.contents.nodes() {
            let node = node.map_err(SquashfsError::Tree)?;
            if node.path.is_empty() {
                root = (node.uid, node.gid);
            }
            self.push(&mut writer, node, settings.progress)?;
        }
        if [root.0, root.1].iter().any(|id| !self.ids.contains(id)) {
            // Nothing but the root directory has its owner, whom backhand then does not know.
            writer.set_root_uid(0);
            writer.set_root_gid(0);
        }
        let mut place = Place::new(file, at);
        let written = writer.write(&mut place).map_err(refused);
        if let Some(failure) = self.state.failure.take() {
            return Err(failure);
        }
        let (_, len) = written?;
        place.flush().map_err(SquashfsError::Write)?;
        let taken = *self.state.taken_for_another.borrow();
        Ok((!taken).then_some(Written {
            len,
            lost: self.lost,
        }))
    }

    fn push(
        &mut self,
        writer: &mut FilesystemWriter<'a, 'a, 'a>,
        node: PackNode,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Result<(), SquashfsError> {
        self.lost.xattrs += u64::from(node.xattrs);
        if node.path.is_empty() {
            writer.set_root_mode(node.mode);
            writer.set_root_uid(node.uid);
            writer.set_root_gid(node.gid);
            return Ok(());
        }
        if node.path.split(|&byte| byte == b'/').count() > DEPTH_LIMIT {
            self.lost.deep += 1;
            return Ok(());
        }
        self.count(&node)?;
        let path = Path::new(OsStr::from_bytes(&node.path));
        let header = NodeHeader {
            permissions: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            mtime: clamped_time(node.mtime),
        };
        match node.kind {
            PackKind::Directory => writer.push_dir(path, header),
            PackKind::Regular { size, content } => {
                let reader = FileReader {
                    contents: self.contents,
                    content,
                    path: node.path.as_slice().into(),
                    at: 0,
                    size,
                    shared: self.shared,
                    hashes: None,
                    progress,
                    state: Rc::clone(&self.state),
                };
                writer.push_file(reader, path, header)
            }
            PackKind::Symlink { target } if target.len() > SYMLINK_BYTES_LIMIT => {
                self.lost.symlinks += 1;
                Ok(())
            }
            PackKind::Symlink { target } => {
                writer.push_symlink(Path::new(OsStr::from_bytes(&target)), path, header)
            }
            PackKind::CharDevice { major, minor } => match device(major, minor) {
                Some(number) => writer.push_char_device(number, path, header),
                None => self.lose_device(),
            },
            PackKind::BlockDevice { major, minor } => match device(major, minor) {
                Some(number) => writer.push_block_device(number, path, header),
                None => self.lose_device(),
            },
            PackKind::Fifo => writer.push_fifo(path, header),
            PackKind::Socket => writer.push_socket(path, header),
        }
        .map_err(refused)
    }

    fn count(&mut self, node: &PackNode) -> Result<(), SquashfsError> {
        let unfit = |problem| SquashfsError::Unfit {
            path: node.path.clone(),
            problem,
        };
        self.ids.extend([node.uid, node.gid]);
        if self.ids.len() > IDS_LIMIT {
            return Err(unfit("more than 65,535 owners and groups"));
        }
        if let PackKind::Regular { size, .. } = &node.kind
            && *size >= FILE_BYTES_LIMIT
        {
            return Err(unfit("larger than 2 TiB"));
        }
        if let Some(file) = node.linked
            && !self.linked.insert(file)
        {
            self.lost.hard_links += 1;
        }
        Ok(())
    }

    fn lose_device(&mut self) -> Result<(), backhand::BackhandError> {
        self.lost.devices += 1;
        Ok(())
    }
}

fn refused(err: backhand::BackhandError) -> SquashfsError {
    match err {
        backhand::BackhandError::StdIo(err) => SquashfsError::Write(err),
        err => SquashfsError::Refused(err.to_string()),
    }
}

fn compressor(compression: Compression) -> Result<FilesystemCompressor, SquashfsError> {
    let (name, options) = match compression {
        Compression::Zstd => (
            Compressor::Zstd,
            CompressionOptions::Zstd(Zstd {
                compression_level: ZSTD_LEVEL,
            }),
        ),
        Compression::Gzip => (
            Compressor::Gzip,
            CompressionOptions::Gzip(Gzip {
                compression_level: GZIP_LEVEL,
                window_size: 15,
                strategies: 0,
            }),
        ),
    };
    FilesystemCompressor::new(name, Some(options)).map_err(refused)
}

/// squashfs counts seconds from 1970 in 32 bits without a sign.
fn clamped(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn clamped_time(time: Timestamp) -> u32 {
    clamped(time.secs)
}

/// A device number as squashfs has it: `new_encode_dev` of linux/kdev_t.h.
fn device(major: u32, minor: u32) -> Option<u32> {
    (major < MAJOR_LIMIT && minor < MINOR_LIMIT)
        .then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// A file's bytes, exactly as many as its size says.
struct FileReader<'a> {
    contents: &'a Contents<'a>,
    content: Content,
    path: Box<[u8]>,
    at: u64,
    size: u64,
    /// Whether `backhand` looks for files with the same bytes.
    shared: bool,
    hashes: Option<Box<(Xxh64, blake3::Hasher)>>,
    progress: &'a (dyn Fn(u64) + Sync),
    state: Rc<State>,
}

impl Read for FileReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let wanted = left.min(into.len());
        if wanted == 0 {
            if left == 0 {
                self.finish();
            }
            return Ok(0);
        }
        let len = match self
            .contents
            .read(&self.content, self.at, &mut into[..wanted])
        {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            read => read,
        }
        .map_err(|source| {
            self.state.failed(SquashfsError::Content {
                path: self.path.to_vec(),
                source,
            })
        })?;
        // Only files of at least a block are shared.
        if self.shared && self.size >= BLOCK_BYTES as u64 {
            let (xxh, blake) = &mut **self
                .hashes
                .get_or_insert_with(|| Box::new((Xxh64::new(0), blake3::Hasher::new())));
            xxh.update(&into[..len]);
            blake.update(&into[..len]);
        }
        self.at += len as u64;
        (self.progress)(len as u64);
        Ok(len)
    }
}

impl FileReader<'_> {
    /// Sees whether `backhand` is going to take this file for another.
    fn finish(&mut self) {
        let Some((xxh, blake)) = self.hashes.take().map(|hashes| *hashes) else {
            return;
        };
        let hash = blake.finalize();
        let mut twins = self.state.twins.borrow_mut();
        if *twins.entry((self.size, xxh.digest())).or_insert(hash) != hash {
            *self.state.taken_for_another.borrow_mut() = true;
        }
    }
}

/// The part of a file from some byte on, as a file of its own. Bytes are gathered as long as they follow each
/// other; asking for the position costs nothing.
struct Place<'a> {
    file: &'a File,
    start: u64,
    position: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a> Place<'a> {
    fn new(file: &'a File, start: u64) -> Self {
        Self {
            file,
            start,
            position: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffer_at: 0,
        }
    }
}

impl Write for Place<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let follows = self.buffer_at + self.buffer.len() as u64 == self.position;
        if !follows || self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
            self.buffer_at = self.position;
        }
        self.buffer.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_all_at(&self.buffer, self.start + self.buffer_at)?;
        self.buffer_at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Seek for Place<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(by) => self
                .position
                .checked_add_signed(by)
                .ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
