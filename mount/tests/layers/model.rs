//! Extraction as simple as it can be: a map from paths to files with their bytes.
//!
//! Knows no symbolic links on the way of a path: layers for it have none there.

use std::collections::BTreeMap;
use std::rc::Rc;

use sifon_mount::layer::entry::Kind;

use super::{Member, directory};

/// A file under one or several names.
#[derive(Debug)]
pub struct File {
    pub member: Member,
    /// No layer has an entry for this directory.
    pub is_implied: bool,
}

/// Why a member cannot be extracted; it then changed nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Impossible;

/// What is there after extraction. Every directory is there, the root with an empty path.
pub struct Model {
    pub files: BTreeMap<Vec<u8>, Rc<File>>,
}

impl Model {
    pub fn new() -> Self {
        Self {
            files: BTreeMap::from([(Vec::new(), implied(b""))]),
        }
    }

    /// What layers leave of which every member can be extracted.
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a [Member]>) -> Self {
        let mut model = Self::new();
        for layer in layers {
            assert_eq!(model.extract(layer).len(), layer.len());
        }
        model
    }

    /// Extracts one layer over what is there; gives the members that can be extracted.
    pub fn extract(&mut self, layer: &[Member]) -> Vec<Member> {
        for member in layer {
            self.hide(member);
        }
        let possible = layer.iter().filter(|member| self.add(member).is_ok());
        possible.cloned().collect()
    }

    fn hide(&mut self, member: &Member) {
        let hidden = &member.entry.path;
        match member.entry.kind {
            Kind::Whiteout => self
                .files
                .retain(|path, _| path != hidden && !is_below(path, hidden)),
            Kind::Opaque => self.files.retain(|path, _| !is_below(path, hidden)),
            _ => {}
        }
    }

    fn add(&mut self, member: &Member) -> Result<(), Impossible> {
        let path = &member.entry.path;
        let file = match &member.entry.kind {
            Kind::Whiteout | Kind::Opaque => return Ok(()),
            Kind::Hardlink { target } => {
                let file = self.files.get(target).ok_or(Impossible)?;
                if is_directory(file) {
                    return Err(Impossible);
                }
                Rc::clone(file)
            }
            _ => Rc::new(File {
                member: member.clone(),
                is_implied: false,
            }),
        };
        for above in parents(path) {
            match self.files.get(above) {
                Some(file) if !is_directory(file) => return Err(Impossible),
                Some(_) => {}
                None => _ = self.files.insert(above.to_vec(), implied(above)),
            }
        }
        if !is_directory(&file) {
            if path.is_empty() {
                return Err(Impossible);
            }
            self.files.retain(|other, _| !is_below(other, path));
        }
        self.files.insert(path.clone(), file);
        Ok(())
    }

    /// How many names the file at `path` has, as `stat` counts them.
    pub fn nlink(&self, path: &[u8]) -> u64 {
        let file = &self.files[path];
        if !is_directory(file) {
            return self.names_of(file).count() as u64;
        }
        let children = self.children(path);
        let directories = children.filter(|(_, file)| is_directory(file));
        2 + directories.count() as u64
    }

    /// The first name of the file at `path`, the same for all its names.
    pub fn first_name(&self, path: &[u8]) -> &[u8] {
        let file = &self.files[path];
        let mut names = self.names_of(file);
        names.next().expect("it has at least the name asked for")
    }

    fn names_of(&self, file: &Rc<File>) -> impl Iterator<Item = &[u8]> {
        let same = self
            .files
            .iter()
            .filter(move |(_, other)| Rc::ptr_eq(file, other));
        same.map(|(path, _)| &path[..])
    }

    /// Names in a directory, sorted, with their files.
    pub fn children(&self, directory: &[u8]) -> impl Iterator<Item = (&[u8], &Rc<File>)> {
        let below = if directory.is_empty() {
            0
        } else {
            directory.len() + 1
        };
        self.files.iter().filter_map(move |(path, file)| {
            let is_child = is_below(path, directory) && !path[below..].contains(&b'/');
            is_child.then(|| (&path[below..], file))
        })
    }
}

pub fn is_directory(file: &File) -> bool {
    file.member.entry.kind == Kind::Directory
}

fn implied(path: &[u8]) -> Rc<File> {
    Rc::new(File {
        member: directory(path).mtime(0, 0),
        is_implied: true,
    })
}

fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(slash, _)| &path[..slash])
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    match directory {
        b"" => !path.is_empty(),
        directory => path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/')),
    }
}
