//! The root file system as squashfs 4.0, written straight from the image, from its beginning to its end.
//!
//! ```text
//! nodes ─→ catalogue ─→ plan ─→ workers ─→ data (blocks, fragments) ─→ inodes, directories ─→ tables
//! ```
//!
//! Names and inodes are kept in memory, contents pass through it: a few blocks for each thread. The bytes depend on the
//! image and the settings, never on how fast a thread was or what a store held.

mod catalogue;
mod compressor;
mod data;
mod inode;
mod metadata;
mod output;
mod plan;
mod workers;
mod xattr;

use std::fs::File;
use std::io;
use std::thread;

use sifon_mount::layer::entry::{Timestamp, shown};
use sifon_mount::layer::squashfs::format;
use zerocopy::IntoBytes;

pub use compressor::{Compression, ParseCompressionError};

use super::contents::Contents;
use super::layout::BLOCK_BYTES;
use super::node::Content;
use catalogue::{Builder, Catalogue};
pub(super) use catalogue::{clamped, device};
use compressor::Compressor;
use data::StoredData;
use format::Superblock;
use metadata::LookupTable;
use output::Output;
use workers::Workers;
use xattr::Xattrs;

/// Loop devices map whole pages; mksquashfs pads to as many bytes.
const ALIGNMENT: u64 = 4096;

/// What the squashfs does not have though the image does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Extended attributes of families that squashfs does not know, such as access control lists.
    pub xattrs: u64,
    /// Symbolic links to nothing or to more than 4095 bytes, left out.
    pub symlinks: u64,
    /// Devices with numbers that squashfs cannot hold, left out.
    pub devices: u64,
}

impl Lost {
    /// A sentence for each thing that was lost.
    pub fn warnings(&self) -> Vec<String> {
        [
            (
                self.xattrs,
                "extended attributes were not kept: squashfs has user, trusted and security attributes only",
            ),
            (
                self.symlinks,
                "symbolic links to nothing or to more than 4095 bytes were left out",
            ),
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
    let mut compressor = Compressor::new(settings.compression);
    let mut xattrs = Xattrs::default();
    let catalogue = catalogued(contents, &mut xattrs, &mut compressor)?;
    let options = options(settings.compression);
    let options_at = size_of::<Superblock>() as u64;
    let mut output = Output::new(file, at, options_at);
    output.write(&options).map_err(SquashfsError::Write)?;
    let data = thread::scope(|scope| {
        let workers = Workers::start(scope, contents.source(), settings.compression)
            .map_err(SquashfsError::Write)?;
        data::store(contents, &catalogue, &mut output, settings, &workers)
    })?;
    let superblock = Superblock {
        magic: format::MAGIC,
        inodes: (catalogue.files.len() as u32).into(),
        created: clamped(Timestamp {
            secs: settings.created,
            nanos: 0,
        })
        .into(),
        block_bytes: (BLOCK_BYTES as u32).into(),
        compression: settings.compression.number().into(),
        block_log: (BLOCK_BYTES.ilog2() as u16).into(),
        flags: flags(settings.compression).into(),
        major: 4.into(),
        minor: 0.into(),
        ..Superblock::default()
    };
    let len = tables(
        superblock,
        &catalogue,
        data,
        xattrs,
        &mut output,
        &mut compressor,
    )
    .map_err(SquashfsError::Write)?;
    Ok(Written {
        len,
        lost: catalogue.lost,
    })
}

fn catalogued(
    contents: &Contents<'_>,
    xattrs: &mut Xattrs,
    compressor: &mut Compressor,
) -> Result<Catalogue, SquashfsError> {
    let mut builder = Builder::new(xattrs);
    for node in contents.nodes() {
        builder.push(node.map_err(SquashfsError::Tree)?, compressor)?;
    }
    let catalogue = builder.finish();
    if catalogue.files.is_empty() {
        return Err(SquashfsError::Tree(io::Error::other("it has no root")));
    }
    Ok(catalogue)
}

/// What says how blocks were compressed: one metadata block, or nothing.
fn options(compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(options) = compression.options() {
        // It cannot say how it is compressed itself.
        metadata::push_block(&mut bytes, &options, &mut Compressor::None);
    }
    bytes
}

fn flags(compression: Compression) -> u16 {
    let stored = format::FLAG_STORED_INODES
        | format::FLAG_STORED_DATA
        | format::FLAG_STORED_FRAGMENTS
        | format::FLAG_STORED_XATTRS
        | format::FLAG_STORED_IDS;
    let options = compression.options().map_or(0, |_| format::FLAG_OPTIONS);
    let stored = if compression == Compression::None {
        stored
    } else {
        0
    };
    format::FLAG_ALWAYS_FRAGMENTS
        | format::FLAG_DUPLICATES
        | format::FLAG_EXPORTABLE
        | options
        | stored
}

/// Writes what follows the contents, and the superblock; gives the length with its padding. Linux (since 5.11) holds
/// every table to ending exactly where the next begins, so the order is that of mksquashfs.
fn tables(
    mut superblock: Superblock,
    catalogue: &Catalogue,
    data: StoredData,
    xattrs: Xattrs,
    output: &mut Output<'_>,
    compressor: &mut Compressor,
) -> io::Result<u64> {
    let inodes = inode::written(catalogue, &data, compressor);
    superblock.root = inodes.root.packed().into();
    superblock.inodes_at = output.position().into();
    output.write(&inodes.inodes.finish(compressor).0)?;
    superblock.directories_at = output.position().into();
    output.write(&inodes.directories.finish(compressor).0)?;

    let mut table = |records: &[u8]| {
        let at = output.position();
        let table = LookupTable::of(records, at, compressor);
        output.write(&table.bytes)?;
        Ok::<_, io::Error>((at + table.places_at).into())
    };
    superblock.fragments = (data.fragments.len() as u32).into();
    superblock.fragments_at = table(data.fragments.as_bytes())?;
    superblock.export_at = table(inodes.by_number.as_bytes())?;
    let ids: Vec<u8> = catalogue
        .ids
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    superblock.ids = (catalogue.ids.len() as u16).into();
    superblock.ids_at = table(&ids)?;

    superblock.xattrs_at = format::NO_TABLE.into();
    match xattrs.finish(output.position(), compressor) {
        Some((bytes, at)) => {
            output.write(&bytes)?;
            superblock.xattrs_at = at.into();
        }
        None => superblock.flags |= format::FLAG_NO_XATTRS,
    }
    let end = output.position();
    superblock.bytes_used = end.into();
    let len = end.next_multiple_of(ALIGNMENT);
    output.write(&vec![0; (len - end) as usize])?;
    output.flush()?;
    output.write_before(superblock.as_bytes(), 0)?;
    Ok(len)
}

#[cfg(test)]
mod tests;
