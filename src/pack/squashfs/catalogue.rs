//! Everything that has a name, in memory: about 60 bytes for each file, 16 for each of its names, and the names.

use std::collections::HashMap;

use sifon_mount::layer::entry::Timestamp;

use super::compressor::Compressor;
use super::format::NONE;
use super::xattr::Xattrs;
use super::{Lost, SquashfsError};
use crate::pack::node::{Content, PackKind, PackNode};

/// The place of a file in the catalogue: the root has 0, a directory a smaller one than what is in it.
pub(super) type FileIndex = u32;

/// One file, however many names it has.
#[derive(Debug)]
pub(super) struct File {
    pub kind: Kind,
    pub mode: u16,
    /// Places in the table of ids.
    pub uid: u16,
    pub gid: u16,
    /// Seconds from 1970.
    pub mtime: u32,
    /// Names; of a directory, 2 and one for each directory in it.
    pub nlink: u32,
    /// A set of attributes, or [`NONE`].
    pub xattrs: u32,
    /// The inode's number, from 1.
    pub number: u32,
}

/// What a file is.
#[derive(Debug)]
pub(super) enum Kind {
    Directory { parent: FileIndex },
    Regular { size: u64, content: Content },
    Symlink { target: Box<[u8]> },
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub directory: FileIndex,
    pub file: FileIndex,
    at: u32,
    len: u8,
}

/// All names, sorted within their directories, and what they lead to.
pub(super) struct Catalogue {
    pub files: Vec<File>,
    pub names: Vec<Name>,
    name_bytes: Vec<u8>,
    /// Owners and groups.
    pub ids: Vec<u32>,
    pub lost: Lost,
}

/// Makes a [`Catalogue`] of nodes in the order of a walk.
pub(super) struct Builder<'a> {
    catalogue: Catalogue,
    xattrs: &'a mut Xattrs,
    id_places: HashMap<u32, u16>,
    /// Files with several names, by the number that the image has for them.
    linked: HashMap<u64, FileIndex>,
    /// The directories on the way to the last node, with the lengths of their paths.
    open: Vec<(usize, FileIndex)>,
}

/// What Linux makes of a path at most (`PATH_MAX`, the ending zero not counted); its squashfs refuses longer targets.
const SYMLINK_BYTES_LIMIT: usize = 4095;
/// Longer ones would need gigabytes for the sizes of their blocks.
const FILE_BYTES_LIMIT: u64 = 1 << 44;
/// What a superblock can count.
const IDS_LIMIT: usize = u16::MAX as usize;
/// What numbers of inodes and names can count, and more than any image has.
const FILES_LIMIT: usize = 1 << 28;
/// Device numbers that squashfs can hold.
const MAJOR_LIMIT: u32 = 1 << 12;
/// The same.
const MINOR_LIMIT: u32 = 1 << 20;

impl<'a> Builder<'a> {
    pub fn new(xattrs: &'a mut Xattrs) -> Self {
        Self {
            catalogue: Catalogue {
                files: Vec::new(),
                names: Vec::new(),
                name_bytes: Vec::new(),
                ids: Vec::new(),
                lost: Lost::default(),
            },
            xattrs,
            id_places: HashMap::new(),
            linked: HashMap::new(),
            open: Vec::new(),
        }
    }

    /// Adds the next node.
    pub fn push(
        &mut self,
        node: PackNode,
        compressor: &mut Compressor,
    ) -> Result<(), SquashfsError> {
        let slash = node.path.iter().rposition(|&byte| byte == b'/');
        let above = slash.unwrap_or(0);
        while self.open.last().is_some_and(|(len, _)| *len > above) {
            self.open.pop();
        }
        let path_len = node.path.len();
        let name = node.path[slash.map_or(0, |slash| slash + 1)..].to_vec();
        let parent = self.open.last().map_or(0, |(_, directory)| *directory);
        let is_root = self.catalogue.files.is_empty();
        let is_directory = node.kind == PackKind::Directory;
        let known = node.linked.and_then(|linked| self.linked.get(&linked));
        let file = match known {
            Some(&file) => {
                self.catalogue.files[file as usize].nlink += 1;
                file
            }
            None => match self.file(node, parent, compressor)? {
                Some(file) => file,
                None => return Ok(()),
            },
        };
        if is_directory {
            self.open.push((if is_root { 0 } else { path_len }, file));
        }
        if !is_root {
            self.name(parent, file, &name, is_directory);
        }
        Ok(())
    }

    fn name(&mut self, directory: FileIndex, file: FileIndex, name: &[u8], is_directory: bool) {
        let catalogue = &mut self.catalogue;
        catalogue.files[directory as usize].nlink += u32::from(is_directory);
        catalogue.names.push(Name {
            directory,
            file,
            at: catalogue.name_bytes.len() as u32,
            len: name.len() as u8,
        });
        catalogue.name_bytes.extend_from_slice(name);
    }

    /// A new file; `None` if squashfs has no room for it.
    fn file(
        &mut self,
        node: PackNode,
        parent: FileIndex,
        compressor: &mut Compressor,
    ) -> Result<Option<FileIndex>, SquashfsError> {
        self.check(&node)?;
        let lost = &mut self.catalogue.lost;
        let kind = match node.kind {
            PackKind::Directory => Kind::Directory { parent },
            PackKind::Regular { size, content } => Kind::Regular { size, content },
            PackKind::Symlink { target }
                if target.is_empty() || target.len() > SYMLINK_BYTES_LIMIT =>
            {
                lost.symlinks += 1;
                return Ok(None);
            }
            PackKind::Symlink { target } => Kind::Symlink {
                target: target.into(),
            },
            PackKind::CharDevice { major, minor } | PackKind::BlockDevice { major, minor } => {
                let Some(number) = device(major, minor) else {
                    lost.devices += 1;
                    return Ok(None);
                };
                match node.kind {
                    PackKind::CharDevice { .. } => Kind::CharDevice(number),
                    _ => Kind::BlockDevice(number),
                }
            }
            PackKind::Fifo => Kind::Fifo,
            PackKind::Socket => Kind::Socket,
        };
        let xattrs = match node.xattrs.is_empty() {
            true => NONE,
            false => self.xattrs.set(&node.xattrs, lost, compressor),
        };
        let file = self.catalogue.files.len() as FileIndex;
        let (uid, gid) = (self.id(node.uid), self.id(node.gid));
        self.catalogue.files.push(File {
            nlink: if matches!(kind, Kind::Directory { .. }) {
                2
            } else {
                1
            },
            kind,
            mode: node.mode & 0o7777,
            uid,
            gid,
            mtime: clamped(node.mtime),
            xattrs,
            number: 0,
        });
        if let Some(linked) = node.linked {
            self.linked.insert(linked, file);
        }
        Ok(Some(file))
    }

    fn check(&self, node: &PackNode) -> Result<(), SquashfsError> {
        let unfit = |problem| {
            Err(SquashfsError::Unfit {
                path: node.path.clone(),
                problem,
            })
        };
        if self.catalogue.ids.len() + 2 > IDS_LIMIT {
            return unfit("more than 65,533 owners and groups");
        }
        if self.catalogue.names.len() >= FILES_LIMIT
            || self.catalogue.name_bytes.len() + node.path.len() > u32::MAX as usize
        {
            return unfit("too many names");
        }
        match node.kind {
            PackKind::Regular { size, .. } if size > FILE_BYTES_LIMIT => {
                unfit("larger than 16 TiB")
            }
            _ => Ok(()),
        }
    }

    fn id(&mut self, id: u32) -> u16 {
        let ids = &mut self.catalogue.ids;
        *self.id_places.entry(id).or_insert_with(|| {
            ids.push(id);
            // `check` leaves room for two more.
            (ids.len() - 1) as u16
        })
    }

    /// All names, with numbers for their files: names of one directory have numbers that are close.
    pub fn finish(self) -> Catalogue {
        let mut catalogue = self.catalogue;
        // Stable: names come sorted.
        catalogue.names.sort_by_key(|name| name.directory);
        let mut number = 1;
        if let Some(root) = catalogue.files.first_mut() {
            root.number = number;
        }
        for name in &catalogue.names {
            let file = &mut catalogue.files[name.file as usize];
            if file.number == 0 {
                number += 1;
                file.number = number;
            }
        }
        catalogue
    }
}

impl Catalogue {
    pub fn name(&self, name: &Name) -> &[u8] {
        &self.name_bytes[name.at as usize..][..name.len.into()]
    }

    /// The names in a directory.
    pub fn names_in(&self, directory: FileIndex) -> &[Name] {
        let from = self
            .names
            .partition_point(|name| name.directory < directory);
        let to = self
            .names
            .partition_point(|name| name.directory <= directory);
        &self.names[from..to]
    }

    /// One path of a file, for a message.
    pub fn path(&self, file: FileIndex) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = file;
        while let Some(name) = self.names.iter().find(|name| name.file == at) {
            parts.push(self.name(name));
            at = name.directory;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

/// squashfs counts seconds from 1970 in 32 bits without a sign.
pub fn clamped(time: Timestamp) -> u32 {
    u32::try_from(time.secs.max(0)).unwrap_or(u32::MAX)
}

/// A device number as squashfs has it, `new_encode_dev` of linux/kdev_t.h; `None` if it has no room for it.
pub fn device(major: u32, minor: u32) -> Option<u32> {
    (major < MAJOR_LIMIT && minor < MINOR_LIMIT)
        .then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}
