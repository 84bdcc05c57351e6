//! Extraction as simple as it can be: a map from paths to files, for tests to compare the tree with.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::text;
use crate::layer::entry::{Entry, Kind, Timestamp};

/// A directory into which layers were extracted. Paths are in the form of [`Entry::path`]; every directory is
/// there, the root with an empty path.
#[derive(Clone)]
pub(super) struct Model {
    pub files: BTreeMap<String, Rc<Entry>>,
}

/// Why an entry cannot be extracted; it then changed nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Impossible;

/// What [`Model::real`] found on the way of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Real {
    /// The path without links, whether something is there or not.
    Path(String),
    Loop,
    NotADirectory,
}

impl Model {
    pub fn new() -> Self {
        Self {
            files: BTreeMap::from([(String::new(), Rc::new(implied()))]),
        }
    }

    /// Extracts one layer over what is there; returns the entries that can be extracted.
    pub fn extract(&mut self, layer: &[Entry]) -> Vec<Entry> {
        let mut lower = self.without_replaced_links(layer);
        for kind in [Kind::Whiteout, Kind::Opaque] {
            let hiding = layer.iter().filter(|entry| entry.kind == kind);
            let paths = hiding.map(|entry| text(&entry.path));
            let shallow_first = BTreeSet::from_iter(paths.map(|path| (parents(&path).len(), path)));
            for (_, path) in shallow_first {
                self.hide(&kind, &path, &mut lower);
            }
        }
        let accepted = |entry: &&Entry| self.add(entry).is_ok();
        layer.iter().filter(accepted).cloned().collect()
    }

    fn without_replaced_links(&self, layer: &[Entry]) -> Self {
        let mut lower = self.clone();
        for entry in layer.iter().filter(|entry| entry.kind == Kind::Directory) {
            if let Some(path) = lower.place(&text(&entry.path))
                && lower.is_link(&path)
            {
                lower.files.remove(&path);
            }
        }
        lower
    }

    /// Hides here and in `lower` what `path` leads to there.
    fn hide(&mut self, kind: &Kind, path: &str, lower: &mut Self) {
        let is_opaque = *kind == Kind::Opaque;
        let hidden = match lower.real(path) {
            Real::Path(real) if is_opaque => Some(real).filter(|real| lower.is_directory(real)),
            _ if is_opaque => None,
            _ => lower.place(path).filter(|place| !place.is_empty()),
        };
        let Some(hidden) = hidden else { return };
        for files in [&mut self.files, &mut lower.files] {
            files.retain(|path, _| !is_below(path, &hidden) && (is_opaque || *path != hidden));
        }
    }

    fn add(&mut self, entry: &Entry) -> Result<(), Impossible> {
        let path = text(&entry.path);
        let file = match &entry.kind {
            Kind::Opaque => return Ok(()),
            Kind::Whiteout if path.is_empty() => return Err(Impossible),
            Kind::Whiteout => return Ok(()),
            Kind::Hardlink { target } => {
                let target = self.place(&text(target)).ok_or(Impossible)?;
                let file = self.files.get(&target).ok_or(Impossible)?.clone();
                if file.kind == Kind::Directory {
                    return Err(Impossible);
                }
                file
            }
            _ => Rc::new(entry.clone()),
        };
        let is_directory = file.kind == Kind::Directory;
        if path.is_empty() && !is_directory {
            return Err(Impossible);
        }
        let place = self.place(&path).ok_or(Impossible)?;
        let above = parents(&place);
        if above
            .iter()
            .any(|path| self.files.contains_key(path) && !self.is_directory(path))
        {
            return Err(Impossible);
        }
        for path in above {
            self.files.entry(path).or_insert_with(|| Rc::new(implied()));
        }
        if !is_directory {
            self.files.retain(|path, _| !is_below(path, &place));
        }
        self.files.insert(place, file);
        Ok(())
    }

    /// Where the name of `path` itself stands: links in its directory followed, the last component not.
    fn place(&self, path: &str) -> Option<String> {
        let Some((above, name)) = path.rsplit_once('/') else {
            return Some(path.to_owned());
        };
        match self.real(above) {
            Real::Path(above) => Some(joined(&above, name)),
            _ => None,
        }
    }

    /// `path` with all links followed.
    pub fn real(&self, path: &str) -> Real {
        let mut real = String::new();
        let mut links = 0;
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(name) = rest.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    real.truncate(real.rfind('/').unwrap_or(0));
                    continue;
                }
                name => {
                    let next = joined(&real, name);
                    match self.files.get(&next).map(|file| &file.kind) {
                        None | Some(Kind::Directory) => real = next,
                        Some(Kind::Symlink { target }) => {
                            links += 1;
                            if links > 40 {
                                return Real::Loop;
                            }
                            let target = text(target);
                            if target.starts_with('/') {
                                real.clear();
                            }
                            rest.extend(target.split('/').rev().map(str::to_owned));
                        }
                        Some(_) if rest.is_empty() => real = next,
                        Some(_) => return Real::NotADirectory,
                    }
                }
            }
        }
        Real::Path(real)
    }

    /// How many names the file at `path` has, as `stat` counts them.
    pub fn nlink(&self, path: &str) -> usize {
        let file = &self.files[path];
        if file.kind != Kind::Directory {
            return self.same_file(file).len();
        }
        let is_child = |other: &str| !other.is_empty() && parent(other) == path;
        let children = self.files.keys().filter(|other| is_child(other));
        2 + children.filter(|path| self.is_directory(path)).count()
    }

    /// All names of one file.
    pub fn same_file(&self, file: &Rc<Entry>) -> BTreeSet<String> {
        let same = self
            .files
            .iter()
            .filter(|(_, other)| Rc::ptr_eq(file, other));
        same.map(|(path, _)| path.clone()).collect()
    }

    fn is_directory(&self, path: &str) -> bool {
        self.files
            .get(path)
            .is_some_and(|file| file.kind == Kind::Directory)
    }

    fn is_link(&self, path: &str) -> bool {
        let file = self.files.get(path);
        file.is_some_and(|file| matches!(file.kind, Kind::Symlink { .. }))
    }
}

fn implied() -> Entry {
    Entry {
        path: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
    }
}

pub(super) fn joined(directory: &str, name: &str) -> String {
    match directory {
        "" => name.to_owned(),
        directory => format!("{directory}/{name}"),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// The directories that `path` needs, without the root.
fn parents(path: &str) -> Vec<String> {
    let slashes = path.match_indices('/');
    slashes.map(|(slash, _)| path[..slash].to_owned()).collect()
}

fn is_below(path: &str, directory: &str) -> bool {
    match directory {
        "" => !path.is_empty(),
        directory => path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/')),
    }
}
