//! Directories, from the root down, become entries.

use std::collections::{HashMap, HashSet};

use super::data::Data;
use super::format::{ListingEntry, ListingHeader};
use super::inode::{Inode, Kind};
use super::metadata::Position;
use super::{Reader, SquashfsError};
use crate::layer::entry::{self, Entry, PATH_BYTES_LIMIT, Timestamp, normalised};
use crate::layer::table::{PieceRange, TableWriter};

/// Paths of files with several links that are remembered at most.
const LINKED_BYTES_LIMIT: usize = 256 << 20;

/// Attributes that are OverlayFS's own, and the one that says that a directory hides what lower layers have in it.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// What a header of a listing counts at most.
const LISTED_LIMIT: u32 = 256;

/// A directory whose names are being read.
struct Listing {
    at: Position,
    /// Bytes of it that are left.
    left: u64,
    /// Of the last header: names that are left, and where their inodes are.
    names: u32,
    inodes: u32,
    /// How long the directory's own path is.
    path_len: usize,
}

struct Walk<'r, 'a, 'w> {
    reader: &'r mut Reader<'a>,
    writer: &'w mut TableWriter,
    data: Data,
    path: Vec<u8>,
    /// Directories that were entered: a directory has one place.
    entered: HashSet<u64>,
    /// The first names of files that have several.
    linked: HashMap<u64, Vec<u8>>,
    linked_bytes: usize,
}

/// Writes all files, each directory before what is in it.
pub(super) fn entries(
    reader: &mut Reader<'_>,
    writer: &mut TableWriter,
) -> Result<(), SquashfsError> {
    let data = Data::of(reader);
    let root = reader.superblock.root.get();
    let mut walk = Walk {
        reader,
        writer,
        data,
        path: Vec::new(),
        entered: HashSet::new(),
        linked: HashMap::new(),
        linked_bytes: 0,
    };
    let Some(listing) = walk.file(root)? else {
        return Err(walk.wrong("the root is no directory"));
    };
    let mut open = vec![listing];
    while let Some(listing) = open.last_mut() {
        walk.path.truncate(listing.path_len);
        let Some((name, reference)) = walk.next(listing)? else {
            open.pop();
            continue;
        };
        walk.enter(&name)?;
        if let Some(listing) = walk.file(reference)? {
            open.push(listing);
        }
    }
    Ok(())
}

impl Walk<'_, '_, '_> {
    /// The next name of a directory, and where its inode is.
    fn next(&mut self, listing: &mut Listing) -> Result<Option<(Vec<u8>, u64)>, SquashfsError> {
        if listing.names == 0 {
            if listing.left < size_of::<ListingHeader>() as u64 {
                return Ok(None);
            }
            let header: ListingHeader = self.reader.metadata.record(&mut listing.at)?;
            if header.entries.get() >= LISTED_LIMIT {
                return Err(self.wrong("its listing is damaged: too many names at once"));
            }
            listing.names = header.entries.get() + 1;
            listing.inodes = header.block.get();
            listing.left -= size_of::<ListingHeader>() as u64;
        }
        let entry: ListingEntry = self.reader.metadata.record(&mut listing.at)?;
        let name_len = u64::from(entry.name_len.get()) + 1;
        let len = size_of::<ListingEntry>() as u64 + name_len;
        listing.left = listing
            .left
            .checked_sub(len)
            .ok_or_else(|| self.wrong("its listing is damaged: a name goes beyond its end"))?;
        let name = self
            .reader
            .metadata
            .bytes(&mut listing.at, name_len as usize)?;
        listing.names -= 1;
        let reference = u64::from(listing.inodes) << 16 | u64::from(entry.offset.get());
        Ok(Some((name, reference)))
    }

    /// Makes `path` that of `name` in the directory that it is now.
    fn enter(&mut self, name: &[u8]) -> Result<(), SquashfsError> {
        let is_name = !name.contains(&b'/') && normalised(name).is_ok_and(|same| same == name);
        if !is_name {
            return Err(self.wrong("its listing has a name that no file can have"));
        }
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        match self.path.len() > PATH_BYTES_LIMIT {
            true => Err(self.wrong("its path is longer than any may be")),
            false => Ok(()),
        }
    }

    /// Writes the file at `path`, whose inode is at `reference`; of a directory, what is in it.
    fn file(&mut self, reference: u64) -> Result<Option<Listing>, SquashfsError> {
        if let Some(target) = self.linked.get(&reference) {
            let target = target.clone();
            self.write_link(target)?;
            return Ok(None);
        }
        let inode = self.reader.inode(reference)?;
        let (kind, pieces, listing) = self.understood(&inode)?;
        let mut entry = Entry {
            path: self.path.clone(),
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: Timestamp {
                secs: inode.mtime.into(),
                nanos: 0,
            },
            xattrs: self.reader.xattrs(inode.xattrs)?,
        };
        if self.reader.hides_lower {
            self.hide_lower(&mut entry)?;
        }
        self.writer
            .entry(&entry, pieces)
            .map_err(SquashfsError::Write)?;
        if listing.is_some() && !self.entered.insert(reference) {
            return Err(self.wrong("the directory has several places, or is within itself"));
        }
        if listing.is_none() && inode.nlink > 1 {
            self.remember(reference)?;
        }
        Ok(listing)
    }

    /// Understands OverlayFS's marks (kernel, `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque directories").
    fn hide_lower(&mut self, entry: &mut Entry) -> Result<(), SquashfsError> {
        if let entry::Kind::CharDevice { major: 0, minor: 0 } = entry.kind {
            entry.kind = entry::Kind::Whiteout;
            entry.xattrs.clear();
        }
        let is_opaque = entry.xattrs.iter().any(|(name, _)| name == OPAQUE);
        entry
            .xattrs
            .retain(|(name, _)| !name.starts_with(OVERLAY_PREFIX));
        if !is_opaque || entry.kind != entry::Kind::Directory {
            return Ok(());
        }
        let mark = Entry::bare(entry.path.clone(), entry::Kind::Opaque);
        self.writer
            .entry(&mark, PieceRange::default())
            .map_err(SquashfsError::Write)
    }

    /// What kind of entry an inode is, with the pieces of a regular file or the listing of a directory.
    fn understood(
        &mut self,
        inode: &Inode,
    ) -> Result<(entry::Kind, PieceRange, Option<Listing>), SquashfsError> {
        let mut pieces = PieceRange::default();
        let mut listing = None;
        let kind = match &inode.kind {
            &Kind::Directory { listing: at, len } => {
                listing = Some(Listing {
                    at,
                    left: len,
                    names: 0,
                    inodes: 0,
                    path_len: self.path.len(),
                });
                entry::Kind::Directory
            }
            Kind::File(file) => {
                let found = self.data.pieces(self.reader, file, self.writer)?;
                pieces = self.writer.pieces(&found).map_err(SquashfsError::Write)?;
                entry::Kind::Regular { size: file.size }
            }
            Kind::Symlink { target } => entry::Kind::Symlink {
                target: target.clone(),
            },
            &Kind::CharDevice { major, minor } => entry::Kind::CharDevice { major, minor },
            &Kind::BlockDevice { major, minor } => entry::Kind::BlockDevice { major, minor },
            Kind::Fifo => entry::Kind::Fifo,
            Kind::Socket => entry::Kind::Socket,
        };
        Ok((kind, pieces, listing))
    }

    /// Writes `path` as another name of the file at `target`.
    fn write_link(&mut self, target: Vec<u8>) -> Result<(), SquashfsError> {
        let entry = Entry::bare(self.path.clone(), entry::Kind::Hardlink { target });
        self.writer
            .entry(&entry, PieceRange::default())
            .map_err(SquashfsError::Write)
    }

    fn remember(&mut self, reference: u64) -> Result<(), SquashfsError> {
        self.linked_bytes += self.path.len();
        if self.linked_bytes > LINKED_BYTES_LIMIT {
            return Err(SquashfsError::Unsupported(
                "its files with several links have too many names".into(),
            ));
        }
        self.linked.insert(reference, self.path.clone());
        Ok(())
    }

    fn wrong(&self, problem: &'static str) -> SquashfsError {
        SquashfsError::File {
            path: self.path.clone(),
            problem,
        }
    }
}
