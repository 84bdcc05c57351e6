//! Paths followed inside a tree, symbolic links included, without ever asking the host's file system.

use crate::layer::entry::PATH_BYTES_LIMIT;

/// Symbolic links followed for one path at most, as `MAXSYMLINKS` of linux/namei.h.
const LINKS_LIMIT: u32 = 40;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved<Id> {
    /// To this node, which is no symbolic link.
    Found(Id),
    /// To nothing yet.
    Missing {
        /// The deepest directory on the way that is there.
        at: Id,
        /// The names that are missing below it: at least one, joined by single slashes, without
        /// `.`, `..` and links.
        rest: Vec<u8>,
    },
    /// Round in circles: through more than 40 symbolic links, or one too long to follow.
    Loop,
    /// Through something that is neither a directory nor a symbolic link.
    NotADirectory,
}

/// What a path meets on its way.
pub(super) enum Step<'a> {
    Directory,
    Symlink(&'a [u8]),
    Other,
}

/// A tree that paths can be followed in: the sealed one, or one that is being merged.
pub(super) trait Paths<'a> {
    type Id: Copy;
    type Error;

    fn root(&self) -> Self::Id;
    fn child(&self, directory: Self::Id, name: &[u8]) -> Result<Option<Self::Id>, Self::Error>;
    fn step(&self, id: Self::Id) -> Result<Step<'a>, Self::Error>;
    /// The directory above; the root's is the root.
    fn above(&self, directory: Self::Id) -> Result<Self::Id, Self::Error>;
}

/// Follows `path` from the root as a process would whose root directory that is: absolute targets start
/// there and `..` stops there. Behind a missing name `..` takes that name back, as runtimes do
/// that create what is missing, while the kernel would give up.
pub(super) fn resolved<'a, P: Paths<'a>>(
    paths: &P,
    path: &'a [u8],
) -> Result<Resolved<P::Id>, P::Error> {
    let mut at = paths.root();
    let mut missing: Vec<&[u8]> = Vec::new();
    let mut links = 0;
    let mut pending = vec![path];
    while let Some(path) = pending.pop() {
        let name = match path.iter().position(|&byte| byte == b'/') {
            Some(slash) => {
                pending.push(&path[slash + 1..]);
                &path[..slash]
            }
            None => path,
        };
        match name {
            b"" | b"." => {}
            b".." if missing.pop().is_some() => {}
            b".." => at = paths.above(at)?,
            name if !missing.is_empty() => missing.push(name),
            name => match paths.child(at, name)? {
                None => missing.push(name),
                Some(id) => match paths.step(id)? {
                    Step::Directory => at = id,
                    Step::Symlink(target) => {
                        links += 1;
                        if links > LINKS_LIMIT || target.len() > PATH_BYTES_LIMIT {
                            return Ok(Resolved::Loop);
                        }
                        if target.starts_with(b"/") {
                            at = paths.root();
                        }
                        pending.push(target);
                    }
                    Step::Other if pending.is_empty() => return Ok(Resolved::Found(id)),
                    Step::Other => return Ok(Resolved::NotADirectory),
                },
            },
        }
    }
    Ok(match missing.is_empty() {
        true => Resolved::Found(at),
        false => Resolved::Missing {
            at,
            rest: missing.join(&b'/'),
        },
    })
}
