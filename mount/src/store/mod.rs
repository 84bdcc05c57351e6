//! Chunks at rest: one directory tree, shared by users and nodes, without daemon, lock or database.
//!
//! ```text
//! STORE/v1/manifests/HEX        manifests, indexes and configs as they came: digest-named, checked on reading
//!          layers/HEX.table     what a layer holds          (sealed; HEX tells by which index, too)
//!          layers/HEX.index     the same, for its blob      (sealed; made by `sifon index`)
//!          layers/HEX.native    its chunks, if streamed     (sealed)
//!          layers/HEX.marks     which of its chunks were found right, if they have slow digests
//!          packed/HEX           its blob, sparse, if seekable (ranges as they were fetched; checksums behind its end, if nothing else vouches)
//!                               or while it is streamed
//!          trees/HEX            merged trees                (sealed)
//!          profiles/HEX.profile  what is read of an image, for the next mount (a hint)
//!          profiles/HEX.stats    what the last mount of it cost
//!          tags/HEX             what a tag named, and when
//!          images/HEX           what an image needs; its time is that of the last use
//!          leases/…             which images are mounted, and where
//!          tmp/                 files that are being written, and HEX.turn while somebody fetches what others want, too
//! ```
//!
//! Sealed files are written under no name or a temporary one, renamed, mode 0444, never changed. Tables and trees say which
//! digests to expect, so they are taken only from directories that nobody but the user (or somebody the user trusts) can
//! write to, and if their checksum is right; everything else is checked whenever it is read. Large native layers are synced
//! before they get their names; what is made again in a moment is not: a mount does not wait for the disk, and after a loss
//! of power the checksum or the digest tells what is missing, and an empty file says nothing. Nothing here ever fails a read: what cannot be kept is not kept.

mod checksum;
mod directory;
mod draft;
mod evict;
mod lease;
mod tags;
mod turn;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use checksum::CheckedDraft;
pub use draft::Draft;
pub use evict::{Evicted, ImageRecord, ImageUse};
pub use lease::Lease;
pub use turn::Turn;

use crate::digest::Digest;
use crate::layer::table::Table;
use crate::sys::Sealed;
use crate::tree::Tree;
use checksum::checked;
use directory::Directory;

/// Where the store is and how large it may become.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// The user's own store.
    pub directory: PathBuf,
    /// Read-only stores of the site, asked after the user's own.
    pub site_directories: Vec<PathBuf>,
    /// Bytes to keep at most; without it min(10 GB, a quarter of the space that is free).
    pub budget: Option<u64>,
    /// Users besides root and the caller whose tables and trees are taken as they are.
    pub trusted_uids: Vec<u32>,
    /// Groups that may write to the store's directories.
    pub trusted_gids: Vec<u32>,
    /// Keep nothing in the user's own store, and take nothing from there: files have no names, are made in this
    /// directory, and end with the process.
    pub nothing_kept: Option<PathBuf>,
}

/// A file of the store by its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A manifest, an index or a config.
    Manifest(Digest),
    /// A layer's table, by its key (`layer::table::key`).
    Table(Digest),
    /// A layer's table that needs no native file, made by us while the layer streamed by.
    Index(Digest),
    /// A streamed layer's chunks.
    Native(Digest),
    /// Which chunks of a seekable layer were found right, by its table's key.
    Marks(Digest),
    /// A seekable layer's blob, in so far as it was fetched.
    Packed(Digest),
    /// A merged tree, by [`tree_key`].
    Tree(Digest),
    /// What is laid on top of a tree, by whatever name the one who does that has for it.
    Top(Digest),
    /// What is read of the image of this manifest.
    Profile(Digest),
    /// What the last mount of the image of this manifest cost.
    Stats(Digest),
}

impl Name {
    fn path(self) -> PathBuf {
        let (directory, digest, suffix) = match self {
            Self::Manifest(digest) => ("manifests", digest, ""),
            Self::Table(digest) => ("layers", digest, ".table"),
            Self::Index(digest) => ("layers", digest, ".index"),
            Self::Native(digest) => ("layers", digest, ".native"),
            Self::Marks(digest) => ("layers", digest, ".marks"),
            Self::Packed(digest) => ("packed", digest, ""),
            Self::Tree(digest) => ("trees", digest, ""),
            Self::Top(digest) => ("trees", digest, ".top"),
            Self::Profile(digest) => ("profiles", digest, ".profile"),
            Self::Stats(digest) => ("profiles", digest, ".stats"),
        };
        Path::new(directory).join(digest.hex() + suffix)
    }
}

/// The name of the tree that the layers whose tables have these keys, bottom first, merge into.
pub fn tree_key(tables: &[Digest]) -> Digest {
    let mut names = format!("tree version {}\n", crate::tree::VERSION);
    for table in tables {
        names.push_str(&table.hex());
        names.push('\n');
    }
    Digest::of(names.as_bytes())
}

/// A manifest, an index or a config at most; what is larger was not written by us.
const MANIFEST_BYTES_LIMIT: u64 = 8 << 20;

/// A stranger's table is read into memory: one for a million files has 150 MB.
const STRANGERS_TABLE_BYTES_LIMIT: u64 = 256 << 20;

/// The user's store with the site's behind it.
pub struct Store {
    own: Directory,
    site: Vec<Directory>,
    budget: Option<u64>,
    /// Where files without a name are made that are not to be kept.
    elsewhere: PathBuf,
}

impl Store {
    /// Opens or makes the store. A store that cannot be written to is no error: then what is fetched is
    /// kept in files without names until the process ends.
    pub fn open(settings: &Settings) -> Self {
        let trust = directory::Trust::of(settings);
        let own = match &settings.nothing_kept {
            None => Directory::open_or_make(&settings.directory, &trust),
            Some(_) => Directory::nowhere(),
        };
        let site = settings
            .site_directories
            .iter()
            .map(|site| Directory::open(site, &trust))
            .collect();
        let store = Self {
            own,
            site,
            budget: settings.budget,
            elsewhere: settings
                .nothing_kept
                .clone()
                .unwrap_or_else(std::env::temp_dir),
        };
        store.own.remove_stale_drafts();
        store
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        self.own.path()
    }

    /// Whether anything is kept: if not, files without names are made where the settings say, and there only.
    pub fn keeps(&self) -> bool {
        self.own.is_writable()
    }

    /// The bytes that `digest` names, if they are here: a manifest, an index or a config.
    pub fn manifest(&self, digest: Digest) -> Option<Vec<u8>> {
        self.directories().find_map(|directory| {
            let bytes = directory.read(&Name::Manifest(digest).path(), MANIFEST_BYTES_LIMIT)?;
            (Digest::of(&bytes) == digest).then_some(bytes)
        })
    }

    /// Keeps a manifest, an index or a config.
    pub fn keep_manifest(&self, digest: Digest, bytes: &[u8]) {
        let kept = self.draft().and_then(|mut draft| {
            draft.write_all(bytes)?;
            self.own.place_at(draft, &Name::Manifest(digest).path())
        });
        if let Err(err) = kept {
            tracing::debug!(%digest, error = %err, "manifest not kept");
        }
    }

    /// A small file that is a hint at most, and that anybody may have written: a profile or statistics.
    pub fn hint(&self, name: Name, limit: usize) -> Option<Vec<u8>> {
        self.directories()
            .find_map(|directory| directory.read(&name.path(), limit as u64))
    }

    /// Keeps such a file in place of the one that was there, at once or not at all.
    pub fn keep_hint(&self, name: Name, bytes: &[u8]) -> io::Result<()> {
        let mut draft = self.own.draft()?;
        draft.write_all(bytes)?;
        // A process that ends with its mount must not wait for the disk: its successor wants its name.
        self.own.place_at(draft, &name.path()).map(drop)
    }

    /// The table of this key, if a trusted directory has it.
    pub fn table(&self, key: Digest) -> Option<Table> {
        let sealed = self.sealed(Name::Table(key))?;
        let table = Table::open(sealed).ok()?;
        (table.key() == key).then_some(table)
    }

    /// The table that we once made for the blob of `layer`, if a trusted directory has it.
    pub fn index(&self, layer: Digest) -> Option<Table> {
        let sealed = self.sealed(Name::Index(layer))?;
        let table = Table::open(sealed).ok()?;
        (table.layer() == layer && table.key() != layer).then_some(table)
    }

    /// A table that anybody may have written: to be checked against its native file, see
    /// [`crate::layer::native::accepted`]. It is read into memory, since its owner could cut it short.
    pub fn strangers_table(&self, layer: Digest) -> Option<Table> {
        self.directories()
            .filter(|directory| !directory.is_trusted())
            .find_map(|directory| {
                let file = directory.open_file(Name::Table(layer))?;
                let is_small = file.metadata().ok()?.len() <= STRANGERS_TABLE_BYTES_LIMIT;
                let sealed = checked(is_small.then(|| Sealed::read(&file))?.ok()?)?;
                let table = Table::open(sealed).ok()?;
                (table.key() == layer).then_some(table)
            })
    }

    /// The merged tree of the given key, if a trusted directory has it.
    pub fn tree(&self, key: Digest) -> Option<Tree> {
        Tree::open(self.sealed(Name::Tree(key))?).ok()
    }

    /// What lies on top of a tree, if a trusted directory knows: see [`Name::Top`]. None within if nothing does.
    pub fn top(&self, name: Digest) -> Option<Option<Vec<u8>>> {
        let bytes = self.sealed(Name::Top(name))?;
        Some((!bytes.is_empty()).then(|| bytes.to_vec()))
    }

    /// Keeps what lies there; it is not empty.
    pub fn keep_top(&self, name: Digest, bytes: Option<&[u8]>) {
        let kept = self.sealed_with(Name::Top(name), |to| {
            to.write_all(bytes.unwrap_or_default())
        });
        if let Err(err) = kept {
            tracing::debug!(%name, error = %err, "what lies on top of a tree is not kept");
        }
    }

    /// The native file of a streamed layer. Its bytes are to be checked, chunk by chunk.
    pub fn native(&self, layer: Digest) -> Option<File> {
        self.directories()
            .find_map(|directory| directory.open_file(Name::Native(layer)))
    }

    /// Whether a file of this name is here.
    pub fn has(&self, name: Name) -> bool {
        self.directories()
            .any(|directory| directory.open_file(name).is_some())
    }

    /// The sparse copy of a seekable layer's blob, for `pread` and `pwrite` at the blob's own offsets. A
    /// read gives zeros, or anything, where nothing was fetched: check every chunk.
    pub fn packed(&self, layer: Digest, size: u64) -> io::Result<File> {
        self.own
            .open_packed(Name::Packed(layer), size)
            .or_else(|err| {
                tracing::debug!(%layer, error = %err, "the store cannot be written to");
                tempfile::tempfile_in(&self.elsewhere)
            })
    }

    /// The same, of `len` bytes, in which nobody has written whom the user does not trust.
    pub fn packed_by_trusted(&self, layer: Digest, len: u64) -> io::Result<File> {
        match self.own.has_trusted_packed() {
            true => self.packed(layer, len),
            false => tempfile::tempfile_in(&self.elsewhere),
        }
    }

    /// The same for a blob that is streamed, and kept only until all of it came: `None` where nothing can be kept, or where
    /// the disk or the budget has no room for it beside what becomes of it.
    pub fn passing_packed(&self, layer: Digest, len: u64) -> Option<File> {
        let name = Name::Packed(layer);
        let is_there = || self.own.open_file(name).is_some();
        if !self.own.has_trusted_packed() || !(is_there() || self.has_room(len)) {
            return None;
        }
        self.own.open_packed(name, len).ok()
    }

    /// Removes the copy of a layer's blob, of which all that is wanted is kept otherwise.
    pub fn forget_packed(&self, layer: Digest) {
        if self.own.is_writable() {
            let _ = std::fs::remove_file(self.directory().join(Name::Packed(layer).path()));
        }
    }

    /// A file of `len` bytes for what was found right of the chunks of the table of this key, zeros at first; `None` where somebody could
    /// write to it whom the user does not trust, or nobody can.
    pub fn marks(&self, key: Digest, len: u64) -> Option<File> {
        let own = self.own.is_trusted().then_some(&self.own)?;
        own.open_packed(Name::Marks(key), len).ok()
    }

    /// A new file to write to. Until [`Store::seal`] it has no name that anybody looks for.
    pub fn draft(&self) -> io::Result<Draft> {
        self.own.draft().or_else(|_| self.nameless_draft())
    }

    /// A new file outside the store, for when the store is full; it ends with the process.
    pub fn nameless_draft(&self) -> io::Result<Draft> {
        Ok(Draft::outside(tempfile::tempfile_in(&self.elsewhere)?))
    }

    /// Gives a finished file its name, or, where the store cannot be written to, keeps it without one; the
    /// returned file is open for reading either way.
    pub fn seal(&self, draft: Draft, name: Name) -> io::Result<File> {
        self.own.seal(draft, name)
    }

    /// Writes a table or a tree, seals it and gives its bytes back. Where the store cannot be written to, or is full, it
    /// is written (once more) to a file that ends with the process.
    pub fn sealed_with(
        &self,
        name: Name,
        mut write: impl FnMut(&mut io::BufWriter<CheckedDraft>) -> io::Result<()>,
    ) -> io::Result<Sealed> {
        let mut written = |draft| {
            let mut to = io::BufWriter::with_capacity(1 << 16, CheckedDraft::new(draft));
            write(&mut to)?;
            let checked = to.into_inner().map_err(io::IntoInnerError::into_error)?;
            checked.finish()
        };
        let kept = self
            .draft()
            .and_then(&mut written)
            .and_then(|draft| self.own.place_at(draft, &name.path()));
        let sealed = match kept {
            Err(err) if err.raw_os_error().is_some() => {
                tracing::warn!(
                    store = %self.directory().display(),
                    error = %err,
                    "the store cannot keep a table: it is kept until the image is unmounted"
                );
                Sealed::map(&written(self.nameless_draft()?)?.file()?)
            }
            kept => self.own.bytes_of(&kept?),
        };
        checked(sealed?)
            .ok_or_else(|| io::Error::other("what was just written reads back otherwise"))
    }

    /// Where temporary files without names can be made.
    pub fn scratch(&self) -> PathBuf {
        self.own.scratch().unwrap_or_else(|| self.elsewhere.clone())
    }

    /// What `reference` named when it was last asked for, at most `age` ago or in this batch job.
    pub fn tag(&self, reference: &str, age: Duration) -> Option<Digest> {
        self.directories()
            .filter(|directory| directory.is_trusted())
            .find_map(|directory| tags::recall(directory, reference, age))
    }

    /// Remembers what `reference` names.
    pub fn remember_tag(&self, reference: &str, digest: Digest) {
        if let Err(err) = tags::remember(self, reference, digest) {
            tracing::debug!(reference, error = %err, "tag not remembered");
        }
    }

    fn sealed(&self, name: Name) -> Option<Sealed> {
        self.directories()
            .filter(|directory| directory.is_trusted())
            .find_map(|directory| {
                let file = directory.open_file(name)?;
                checked(directory.bytes_of(&file).ok()?)
            })
    }

    fn directories(&self) -> impl Iterator<Item = &Directory> {
        std::iter::once(&self.own).chain(&self.site)
    }
}

#[cfg(test)]
mod tests;
