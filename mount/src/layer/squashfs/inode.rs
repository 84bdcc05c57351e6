//! Inodes, short and extended, as one shape.

use zerocopy::little_endian::U32;

use super::format::{
    Directory, EXTENDED, ExtendedDirectory, ExtendedFile, File, InodeHeader, NONE,
    TYPE_BLOCK_DEVICE, TYPE_CHAR_DEVICE, TYPE_DIRECTORY, TYPE_FIFO, TYPE_FILE, TYPE_SOCKET,
    TYPE_SYMLINK,
};
use super::metadata::Position;
use super::{Reader, SquashfsError};
use crate::layer::entry::PATH_BYTES_LIMIT;

/// What an inode says.
pub(super) struct Inode {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    pub nlink: u32,
    /// Number of the set of its attributes, or [`NONE`].
    pub xattrs: u32,
}

/// What it is an inode of.
pub(super) enum Kind {
    Directory { listing: Position, len: u64 },
    File(FilePlace),
    Symlink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where the bytes of a regular file are.
pub(super) struct FilePlace {
    /// Where its first block begins.
    pub start: u64,
    pub size: u64,
    /// Where its tail is, or [`NONE`].
    pub fragment: u32,
    pub offset: u32,
    /// Where the sizes of its blocks stand.
    pub sizes: Position,
}

/// What the length of a listing counts that is not there.
const DOTS: u32 = 3;

impl Reader<'_> {
    /// The inode that `reference` leads to.
    pub(super) fn inode(&mut self, reference: u64) -> Result<Inode, SquashfsError> {
        let place = self
            .superblock
            .inodes_at
            .get()
            .saturating_add(reference >> 16);
        let mut at = Position {
            block: place,
            offset: (reference & 0xffff) as usize,
        };
        let header: InodeHeader = self.metadata.record(&mut at)?;
        let wrong = |problem| SquashfsError::damaged("inode in block", place, problem);
        let number = header.kind.get();
        let is_extended = number > EXTENDED;
        let mut nlink = 1;
        let mut xattrs = NONE;
        let kind = match (
            if is_extended {
                number - EXTENDED
            } else {
                number
            },
            is_extended,
        ) {
            (TYPE_DIRECTORY, false) => {
                let record: Directory = self.metadata.record(&mut at)?;
                nlink = record.nlink.get();
                let (block, offset) = (record.block.get(), record.offset.get());
                self.directory(block, offset, record.len.get().into())
            }
            (TYPE_DIRECTORY, true) => {
                let record: ExtendedDirectory = self.metadata.record(&mut at)?;
                (nlink, xattrs) = (record.nlink.get(), record.xattrs.get());
                let (block, offset) = (record.block.get(), record.offset.get());
                self.directory(block, offset, record.len.get())
            }
            (TYPE_FILE, false) => {
                let record: File = self.metadata.record(&mut at)?;
                Kind::File(FilePlace {
                    start: record.block.get().into(),
                    size: record.len.get().into(),
                    fragment: record.fragment.get(),
                    offset: record.offset.get(),
                    sizes: at,
                })
            }
            (TYPE_FILE, true) => {
                let record: ExtendedFile = self.metadata.record(&mut at)?;
                (nlink, xattrs) = (record.nlink.get(), record.xattrs.get());
                Kind::File(FilePlace {
                    start: record.block.get(),
                    size: record.len.get(),
                    fragment: record.fragment.get(),
                    offset: record.offset.get(),
                    sizes: at,
                })
            }
            (TYPE_SYMLINK, _) => {
                let [links, len]: [U32; 2] = self.metadata.record(&mut at)?;
                nlink = links.get();
                let len = len.get() as usize;
                if len > PATH_BYTES_LIMIT {
                    return Err(wrong("a symbolic link is longer than a path"));
                }
                let target = self.metadata.bytes(&mut at, len)?;
                if is_extended {
                    xattrs = self.metadata.record::<U32>(&mut at)?.get();
                }
                Kind::Symlink { target }
            }
            (device @ (TYPE_CHAR_DEVICE | TYPE_BLOCK_DEVICE), _) => {
                let [links, number]: [U32; 2] = self.metadata.record(&mut at)?;
                nlink = links.get();
                if is_extended {
                    xattrs = self.metadata.record::<U32>(&mut at)?.get();
                }
                let (major, minor) = device_numbers(number.get());
                match device {
                    TYPE_CHAR_DEVICE => Kind::CharDevice { major, minor },
                    _ => Kind::BlockDevice { major, minor },
                }
            }
            (pipe @ (TYPE_FIFO | TYPE_SOCKET), _) => {
                nlink = self.metadata.record::<U32>(&mut at)?.get();
                if is_extended {
                    xattrs = self.metadata.record::<U32>(&mut at)?.get();
                }
                match pipe {
                    TYPE_FIFO => Kind::Fifo,
                    _ => Kind::Socket,
                }
            }
            _ => return Err(wrong("an unknown type")),
        };
        let id = |index: u16| {
            let id = self.ids.get(usize::from(index)).copied();
            id.ok_or_else(|| wrong("its owner is not in the table of owners"))
        };
        Ok(Inode {
            kind,
            mode: header.mode.get() & 0o7777,
            uid: id(header.uid.get())?,
            gid: id(header.gid.get())?,
            mtime: header.mtime.get(),
            nlink,
            xattrs,
        })
    }

    fn directory(&self, block: u32, offset: u16, len: u32) -> Kind {
        let directories = self.superblock.directories_at.get();
        Kind::Directory {
            listing: Position {
                block: directories.saturating_add(block.into()),
                offset: offset.into(),
            },
            len: len.saturating_sub(DOTS).into(),
        }
    }
}

/// Major and minor number, as `new_decode_dev` of linux/kdev_t.h.
fn device_numbers(number: u32) -> (u32, u32) {
    (
        (number & 0xf_ff00) >> 8,
        (number & 0xff) | ((number >> 12) & 0xf_ff00),
    )
}
