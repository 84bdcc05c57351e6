//! Paths followed inside an image, symbolic links included, without ever asking the host's file system.

use std::borrow::Cow;

use crate::layer::entry::PATH_BYTES_LIMIT;

/// Symbolic links followed for one path at most, as `MAXSYMLINKS` of linux/namei.h.
pub const LINKS_LIMIT: u32 = 40;

/// Files with names, as far as following a path takes: the sealed tree, one that is being merged, an image with names of
/// ours in it, what is about to be packed.
pub trait Paths<'a> {
    /// What a name leads to.
    type Id: Clone;
    /// Why it cannot be told.
    type Error;

    /// Where paths begin.
    fn root(&self) -> Self::Id;
    /// What `name` leads to in `directory`.
    fn child(&self, directory: &Self::Id, name: &[u8]) -> Result<Option<Self::Id>, Self::Error>;
    /// How a path goes on there.
    fn step(&self, id: &Self::Id) -> Result<Step<'a>, Self::Error>;
}

/// What a path meets on its way.
pub enum Step<'a> {
    /// A directory.
    Directory,
    /// A symbolic link to this target, as written.
    Symlink(Cow<'a, [u8]>),
    /// A path can only end here.
    Other,
}

/// How far a path leads: names with what they lead to, from the root down, then names without.
pub struct Way<'a, Id> {
    root: Id,
    there: Vec<(Cow<'a, [u8]>, Id)>,
    missing: Vec<Cow<'a, [u8]>>,
}

impl<Id: Clone> Way<'_, Id> {
    /// The last one on the way that is there, which is no symbolic link; a directory if anything is missing.
    pub fn end(&self) -> Id {
        let last = self.there.last();
        last.map_or_else(|| self.root.clone(), |(_, id)| id.clone())
    }

    /// The names that are missing below [`Way::end`], without `.`, `..` and links.
    pub fn missing(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.missing.iter().map(|name| &**name)
    }

    /// The whole way, what is missing included: joined by single slashes, without a leading one, `.`, `..` and links.
    pub fn path(&self) -> Vec<u8> {
        let there = self.there.iter().map(|(name, _)| &**name);
        there.chain(self.missing()).collect::<Vec<_>>().join(&b'/')
    }
}

/// Why a path leads nowhere, whatever is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Round in circles: through more than [`LINKS_LIMIT`] symbolic links, or one too long to follow.
    Loop,
    /// Through something that is neither a directory nor a symbolic link.
    NotADirectory,
}

/// Follows `path` from the root as a process would whose root directory that is: absolute targets start
/// there, `..` stops there, the last component is followed, too. Behind a missing name `..` takes that name back,
/// as runtimes do that create what is missing, while the kernel would give up.
pub fn followed<'a, P: Paths<'a>>(
    paths: &P,
    path: &'a [u8],
) -> Result<Result<Way<'a, P::Id>, Blocked>, P::Error> {
    let mut way = Way {
        root: paths.root(),
        there: Vec::new(),
        missing: Vec::new(),
    };
    let mut links = 0;
    // What is still to be followed, each part before those below it in the stack.
    let mut pending = vec![Cow::Borrowed(path)];
    while let Some(path) = pending.pop() {
        let (name, rest) = split(path);
        pending.extend(rest);
        match &*name {
            b"" | b"." => {}
            b".." if way.missing.pop().is_some() => {}
            b".." => drop(way.there.pop()),
            _ if !way.missing.is_empty() => way.missing.push(name),
            _ => match paths.child(&way.end(), &name)? {
                None => way.missing.push(name),
                Some(id) => match paths.step(&id)? {
                    Step::Directory => way.there.push((name, id)),
                    Step::Symlink(target) => {
                        links += 1;
                        if links > LINKS_LIMIT || target.len() > PATH_BYTES_LIMIT {
                            return Ok(Err(Blocked::Loop));
                        }
                        if target.starts_with(b"/") {
                            way.there.clear();
                        }
                        pending.push(target);
                    }
                    Step::Other if pending.is_empty() => way.there.push((name, id)),
                    Step::Other => return Ok(Err(Blocked::NotADirectory)),
                },
            },
        }
    }
    Ok(Ok(way))
}

/// The first component of a path, and what comes after its slash.
fn split(path: Cow<'_, [u8]>) -> (Cow<'_, [u8]>, Option<Cow<'_, [u8]>>) {
    let Some(slash) = path.iter().position(|&byte| byte == b'/') else {
        return (path, None);
    };
    match path {
        Cow::Borrowed(path) => (path[..slash].into(), Some(path[slash + 1..].into())),
        Cow::Owned(mut path) => {
            let rest = path.split_off(slash + 1);
            path.truncate(slash);
            (path.into(), Some(rest.into()))
        }
    }
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved<Id> {
    /// To this node, which is no symbolic link.
    Found(Id),
    /// To nothing yet.
    Missing {
        /// The deepest directory on the way that is there.
        at: Id,
        /// [`Way::missing`], joined by single slashes.
        rest: Vec<u8>,
    },
    /// Nowhere.
    Blocked(Blocked),
}

/// The end of the way that [`followed`] finds.
pub(super) fn resolved<'a, P: Paths<'a>>(
    paths: &P,
    path: &'a [u8],
) -> Result<Resolved<P::Id>, P::Error> {
    Ok(match followed(paths, path)? {
        Err(blocked) => Resolved::Blocked(blocked),
        Ok(way) if way.missing.is_empty() => Resolved::Found(way.end()),
        Ok(way) => Resolved::Missing {
            at: way.end(),
            rest: way.missing.join(&b'/'),
        },
    })
}
