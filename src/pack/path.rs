//! Paths in what is packed: their order, and where they lead.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io;

use sifon_mount::tree::{Paths, Step, followed};

use super::node::{Standing, Standings};

/// Paths in the order of a walk: by components, each by its bytes.
pub fn walk_order(one: &[u8], other: &[u8]) -> Ordering {
    let slash = |byte: &u8| *byte == b'/';
    one.split(slash).cmp(other.split(slash))
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// To what stands at this path, which has no symlink in it.
    Found(Vec<u8>, Standing),
    /// To a path where nothing stands yet; what stands above it are directories.
    Missing(Vec<u8>),
    /// Nowhere: through a file, or in circles.
    Blocked,
}

/// Where `path` leads for a process whose root is the image; see [`followed`].
pub fn resolved(standings: &Standings<'_>, path: &[u8]) -> io::Result<Resolved> {
    let Ok(way) = followed(&Followable(standings), path)? else {
        return Ok(Resolved::Blocked);
    };
    Ok(match way.missing().len() {
        0 => Resolved::Found(way.path(), way.end().standing),
        _ => Resolved::Missing(way.path()),
    })
}

/// A path without symlinks, and what stands there.
#[derive(Clone)]
struct Place {
    path: Vec<u8>,
    standing: Standing,
}

/// What stands somewhere as paths see it.
struct Followable<'a>(&'a Standings<'a>);

impl<'a> Paths<'a> for Followable<'_> {
    type Id = Place;
    type Error = io::Error;

    fn root(&self) -> Place {
        Place {
            path: Vec::new(),
            standing: Standing::Directory,
        }
    }

    fn child(&self, directory: &Place, name: &[u8]) -> io::Result<Option<Place>> {
        let mut path = directory.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let standing = (self.0)(&path)?;
        Ok(standing.map(|standing| Place { path, standing }))
    }

    fn step(&self, place: &Place) -> io::Result<Step<'a>> {
        Ok(match &place.standing {
            Standing::Directory => Step::Directory,
            Standing::Symlink(target) => Step::Symlink(Cow::Owned(target.clone())),
            Standing::File => Step::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::Source;
    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn paths_lead_where_a_process_in_the_image_would_get() {
        let source = Sample::new()
            .directory("usr")
            .directory("usr/etc")
            .file("usr/etc/hosts", b"")
            .link("etc", "usr/etc")
            .link("usr/up", "../../../../usr/./etc")
            .link("absolute", "/usr//etc/")
            .link("dangling", "/run/x")
            .link("loop", "loop")
            .link("file", "etc/hosts");
        let found = |path: &str, standing| Resolved::Found(path.into(), standing);
        for (path, expected) in [
            ("", found("", Standing::Directory)),
            ("etc", found("usr/etc", Standing::Directory)),
            ("etc/hosts", found("usr/etc/hosts", Standing::File)),
            ("usr/up/hosts", found("usr/etc/hosts", Standing::File)),
            ("absolute", found("usr/etc", Standing::Directory)),
            ("file", found("usr/etc/hosts", Standing::File)),
            ("dangling", Resolved::Missing("run/x".into())),
            ("dangling/a/../b", Resolved::Missing("run/x/b".into())),
            ("etc/new", Resolved::Missing("usr/etc/new".into())),
            ("loop", Resolved::Blocked),
            ("file/x", Resolved::Blocked),
        ] {
            assert_eq!(
                resolved(&|path| source.standing(path), path.as_bytes()).unwrap(),
                expected,
                "{path}"
            );
        }
    }
}
