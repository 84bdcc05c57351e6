//! Inodes and directories: two streams that point into each other.
//!
//! A directory's listing names the places of its files' inodes, and its inode that of the listing; so what is in a
//! directory is written before it.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::catalogue::{Catalogue, FileIndex, Kind, Name};
use super::compressor::Compressor;
use super::data::{Place, Run, StoredData};
use super::format::{
    Directory, EXTENDED, ExtendedDirectory, ExtendedFile, File, IndexEntry, InodeHeader,
    ListingEntry, ListingHeader, METADATA_BYTES, NONE, Reference, TYPE_BLOCK_DEVICE,
    TYPE_CHAR_DEVICE, TYPE_DIRECTORY, TYPE_FIFO, TYPE_FILE, TYPE_SOCKET, TYPE_SYMLINK,
};
use super::metadata::Metadata;

/// What a header of a listing can count.
const ENTRIES_LIMIT: usize = 256;
/// What an inode of a directory says that its listing has beyond its bytes.
const DOTS: usize = 3;

/// All inodes and directories.
pub(super) struct Inodes {
    pub inodes: Metadata,
    pub directories: Metadata,
    /// Where the inode of each number is, in the order of numbers, as the export table has it.
    pub by_number: Vec<U64>,
    pub root: Reference,
}

struct Writer<'a> {
    catalogue: &'a Catalogue,
    data: &'a StoredData,
    compressor: &'a mut Compressor,
    inodes: Metadata,
    directories: Metadata,
    /// Where the inode of each file is; the type goes into listings.
    places: Vec<Option<Reference>>,
}

/// Writes the inodes of all files.
pub(super) fn written(
    catalogue: &Catalogue,
    data: &StoredData,
    compressor: &mut Compressor,
) -> Inodes {
    let count = catalogue.files.len();
    let mut writer = Writer {
        catalogue,
        data,
        compressor,
        inodes: Metadata::default(),
        directories: Metadata::default(),
        places: vec![None; count],
    };
    // A directory comes before what is in it.
    for index in (0..count as FileIndex).rev() {
        if let Kind::Directory { parent } = catalogue.files[index as usize].kind {
            writer.directory(index, parent);
        }
    }
    let mut by_number = vec![U64::ZERO; count];
    for (file, place) in catalogue.files.iter().zip(&writer.places) {
        by_number[file.number as usize - 1] = place.unwrap_or_default().packed().into();
    }
    Inodes {
        by_number,
        root: writer.places[0].unwrap_or_default(),
        inodes: writer.inodes,
        directories: writer.directories,
    }
}

/// A listing as it was written.
struct Listing {
    at: Reference,
    len: usize,
    /// With the name of the first entry at each place.
    index: Vec<(IndexEntry, Name)>,
}

impl Writer<'_> {
    fn directory(&mut self, index: FileIndex, parent: FileIndex) {
        let catalogue = self.catalogue;
        let names = catalogue.names_in(index);
        for name in names {
            if self.places[name.file as usize].is_none() {
                self.file(name.file);
            }
        }
        let listing = self.listing(names);
        let parent = match index {
            // Of the root, as mksquashfs says it: one that no inode has.
            0 => catalogue.files.len() as u32 + 1,
            _ => catalogue.files[parent as usize].number,
        };
        let file = &catalogue.files[index as usize];
        let len = listing.len + DOTS;
        let short_len = u16::try_from(len).ok();
        let is_extended = file.xattrs != NONE || !listing.index.is_empty() || short_len.is_none();
        self.header(index, TYPE_DIRECTORY, is_extended);
        match short_len {
            Some(len) if !is_extended => self.put(&Directory {
                block: (listing.at.block as u32).into(),
                nlink: file.nlink.into(),
                len: len.into(),
                offset: listing.at.offset.into(),
                parent: parent.into(),
            }),
            _ => self.put(&ExtendedDirectory {
                nlink: file.nlink.into(),
                len: (len as u32).into(),
                block: (listing.at.block as u32).into(),
                parent: parent.into(),
                indexes: (listing.index.len() as u16).into(),
                offset: listing.at.offset.into(),
                xattrs: file.xattrs.into(),
            }),
        }
        if is_extended {
            for (entry, name) in &listing.index {
                self.put(entry);
                self.bytes(catalogue.name(name));
            }
        }
    }

    /// Writes the names of a directory, whose inodes are written.
    fn listing(&mut self, names: &[Name]) -> Listing {
        let mut listing = Listing {
            at: self.directories.position(),
            len: 0,
            index: Vec::new(),
        };
        let mut indexed = 0;
        let mut rest = names;
        while let Some(first) = rest.first() {
            let at = self.directories.position();
            if listing.len - indexed >= METADATA_BYTES && listing.index.len() < u16::MAX.into() {
                let entry = IndexEntry {
                    at: (listing.len as u32).into(),
                    block: (at.block as u32).into(),
                    name_len: (self.catalogue.name(first).len() as u32 - 1).into(),
                };
                listing.index.push((entry, *first));
                indexed = listing.len;
            }
            let together = self.together(rest);
            let (now, later) = rest.split_at(together);
            listing.len += self.entries(now);
            rest = later;
        }
        listing
    }

    /// How many of `names` can share a header: inodes in one block, numbers that are close, and not so many that an
    /// index could not lead into them.
    fn together(&self, names: &[Name]) -> usize {
        let first = self.place(names[0].file);
        let number = self.number(names[0].file);
        let mut bytes = 0;
        names
            .iter()
            .take(ENTRIES_LIMIT)
            .take_while(|name| {
                bytes += size_of::<ListingEntry>() + self.catalogue.name(name).len();
                let delta = i64::from(self.number(name.file)) - i64::from(number);
                self.place(name.file).block == first.block
                    && i16::try_from(delta).is_ok()
                    && bytes <= METADATA_BYTES / 2
            })
            .count()
    }

    /// Writes a header and what it counts; how many bytes.
    fn entries(&mut self, names: &[Name]) -> usize {
        let number = self.number(names[0].file);
        let header = ListingHeader {
            entries: (names.len() as u32 - 1).into(),
            block: (self.place(names[0].file).block as u32).into(),
            number: number.into(),
        };
        self.directories.put(&header, self.compressor);
        let mut len = size_of::<ListingHeader>();
        for name in names {
            let bytes = self.catalogue.name(name);
            let entry = ListingEntry {
                offset: self.place(name.file).offset.into(),
                number: (self.number(name.file).wrapping_sub(number) as u16).into(),
                kind: kind(&self.catalogue.files[name.file as usize].kind).into(),
                name_len: (bytes.len() as u16 - 1).into(),
            };
            self.directories.put(&entry, self.compressor);
            self.directories.write(bytes, self.compressor);
            len += size_of::<ListingEntry>() + bytes.len();
        }
        len
    }

    fn place(&self, file: FileIndex) -> Reference {
        self.places[file as usize].expect("what is in a directory is written before its listing")
    }

    fn number(&self, file: FileIndex) -> u32 {
        self.catalogue.files[file as usize].number
    }

    /// Writes the inode of anything but a directory.
    fn file(&mut self, index: FileIndex) {
        let file = &self.catalogue.files[index as usize];
        let is_extended = file.xattrs != NONE;
        let links = U32::new(file.nlink);
        match &file.kind {
            // Written when its turn comes; its number is larger.
            Kind::Directory { .. } => return,
            Kind::Regular { size, .. } => return self.regular(index, *size),
            Kind::Symlink { target } => {
                self.header(index, TYPE_SYMLINK, is_extended);
                self.put(&[links, U32::new(target.len() as u32)]);
                self.bytes(target);
            }
            Kind::CharDevice(number) => {
                self.header(index, TYPE_CHAR_DEVICE, is_extended);
                self.put(&[links, U32::new(*number)]);
            }
            Kind::BlockDevice(number) => {
                self.header(index, TYPE_BLOCK_DEVICE, is_extended);
                self.put(&[links, U32::new(*number)]);
            }
            Kind::Fifo | Kind::Socket => {
                self.header(index, kind(&file.kind), is_extended);
                self.put(&links);
            }
        }
        if is_extended {
            self.put(&U32::new(file.xattrs));
        }
    }

    fn regular(&mut self, index: FileIndex, size: u64) {
        let file = &self.catalogue.files[index as usize];
        let nothing = Place::default();
        let place = self.data.places.get(&index).unwrap_or(&nothing);
        let fits = u32::try_from(place.start).ok().zip(size.try_into().ok());
        let is_extended = file.xattrs != NONE || file.nlink > 1 || place.sparse > 0;
        self.header(index, TYPE_FILE, is_extended || fits.is_none());
        match fits {
            Some((block, len)) if !is_extended => self.put(&File {
                block: block.into(),
                fragment: place.fragment.into(),
                offset: place.offset.into(),
                len: U32::new(len),
            }),
            _ => self.put(&ExtendedFile {
                block: place.start.into(),
                len: size.into(),
                // A file that is nothing but holes still has a byte, as mksquashfs says it.
                sparse: place.sparse.min(size.saturating_sub(1)).into(),
                nlink: file.nlink.into(),
                fragment: place.fragment.into(),
                offset: place.offset.into(),
                xattrs: file.xattrs.into(),
            }),
        }
        for run in &self.data.runs[place.runs.clone()] {
            match run {
                Run::Block(size) => self.put(&U32::new(*size)),
                Run::Zeros(blocks) => {
                    for _ in 0..*blocks {
                        self.put(&U32::ZERO);
                    }
                }
            }
        }
    }

    /// Begins an inode.
    fn header(&mut self, index: FileIndex, kind: u16, is_extended: bool) {
        self.places[index as usize] = Some(self.inodes.position());
        let file = &self.catalogue.files[index as usize];
        let header = InodeHeader {
            kind: U16::new(if is_extended { kind + EXTENDED } else { kind }),
            mode: file.mode.into(),
            uid: file.uid.into(),
            gid: file.gid.into(),
            mtime: file.mtime.into(),
            number: file.number.into(),
        };
        self.put(&header);
    }

    fn put(&mut self, record: &(impl IntoBytes + zerocopy::Immutable)) {
        self.inodes.put(record, self.compressor);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.inodes.write(bytes, self.compressor);
    }
}

fn kind(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory { .. } => TYPE_DIRECTORY,
        Kind::Regular { .. } => TYPE_FILE,
        Kind::Symlink { .. } => TYPE_SYMLINK,
        Kind::CharDevice(_) => TYPE_CHAR_DEVICE,
        Kind::BlockDevice(_) => TYPE_BLOCK_DEVICE,
        Kind::Fifo => TYPE_FIFO,
        Kind::Socket => TYPE_SOCKET,
    }
}
