//! One member: its header, with what the extended headers before it said.

use super::header::Header;
use super::pax::Records;
use super::{TarError, malformed};
use crate::extent::PlainOffset;
use crate::layer::entry::{Entry, Kind, NameError, normalised, shown};

/// A header with what the extended headers before it said.
pub struct Member {
    pub at: PlainOffset,
    pub header: Header,
    pub records: Records,
    pub long_name: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
}

impl Member {
    /// Length of its body, if it has one.
    pub fn size(&self) -> Result<u64, TarError> {
        let size = self.records.size.map_or_else(|| self.header.size(), Ok);
        size.map_err(|problem| self.malformed(problem))
    }

    /// What it is, unless that is a regular file. `size` is what [`Member::size`] says.
    pub fn kind_without_content(&self, size: u64) -> Result<Option<Kind>, TarError> {
        Ok(Some(match self.header.flag() {
            b'1' => Kind::Hardlink {
                target: self.hardlink_target()?,
            },
            b'2' => Kind::Symlink {
                target: self.symlink_target()?,
            },
            b'3' => {
                let (major, minor) = self.device()?;
                Kind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = self.device()?;
                Kind::BlockDevice { major, minor }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // Version 7 knows a directory by its slash, and some later writers never learned its type.
            0 if self.is_named_directory() => Kind::Directory,
            b'0' if self.is_named_directory() && size == 0 => Kind::Directory,
            _ => return Ok(None),
        }))
    }

    /// The member as an entry; `None` for AUFS's bookkeeping.
    pub fn entry(mut self, kind: Kind) -> Result<Option<Entry>, TarError> {
        let xattrs = std::mem::take(&mut self.records.xattrs);
        let wrong = |problem| self.malformed(problem);
        let path = normalised(&self.name()).map_err(|source| self.unacceptable(source))?;
        if path.is_empty() && kind != Kind::Directory {
            return Err(wrong("only a directory can be the root"));
        }
        if is_in_aufs_directory(&path) {
            return Ok(None);
        }
        let header = &self.header;
        let records = &self.records;
        let entry = Entry {
            path,
            kind,
            mode: header.mode().map_err(wrong)?,
            uid: records
                .uid
                .map_or_else(|| header.uid(), Ok)
                .map_err(wrong)?,
            gid: records
                .gid
                .map_or_else(|| header.gid(), Ok)
                .map_err(wrong)?,
            mtime: records
                .mtime
                .map_or_else(|| header.mtime(), Ok)
                .map_err(wrong)?,
            xattrs,
        };
        let understood = entry.with_whiteouts_understood();
        understood.map_err(|source| self.unacceptable(source))
    }

    /// The raw name. A long name of GNU's is the most particular about this member.
    fn name(&self) -> Vec<u8> {
        let records = &self.records;
        let name = self.long_name.as_ref().or(records.sparse.name.as_ref());
        name.or(records.path.as_ref())
            .cloned()
            .unwrap_or_else(|| self.header.name())
    }

    fn link(&self) -> &[u8] {
        let link = self.long_link.as_ref().or(self.records.link.as_ref());
        link.map_or_else(|| self.header.link(), Vec::as_slice)
    }

    fn is_named_directory(&self) -> bool {
        self.name().ends_with(b"/")
    }

    fn device(&self) -> Result<(u32, u32), TarError> {
        let (major, minor) = (self.header.device()).map_err(|problem| self.malformed(problem))?;
        let records = &self.records;
        Ok((
            records.major.unwrap_or(major),
            records.minor.unwrap_or(minor),
        ))
    }

    fn hardlink_target(&self) -> Result<Vec<u8>, TarError> {
        let target = normalised(self.link()).map_err(|source| self.unacceptable(source))?;
        match target.is_empty() {
            true => Err(self.malformed("a link to nothing")),
            false => Ok(target),
        }
    }

    fn symlink_target(&self) -> Result<Vec<u8>, TarError> {
        let target = self.link().to_vec();
        if target.is_empty() {
            Err(self.malformed("a link to nothing"))
        } else if target.contains(&0) {
            Err(self.unacceptable(NameError::Nul(target)))
        } else {
            Ok(target)
        }
    }

    pub fn malformed(&self, problem: &str) -> TarError {
        let name = self.name();
        malformed(self.at, format!("member {:?}: {problem}", shown(&name)))
    }

    fn unacceptable(&self, source: NameError) -> TarError {
        TarError::Name {
            at: self.at,
            source,
        }
    }
}

/// Below a directory such as `.wh..wh.plnk`, in which AUFS kept hard-linked files.
fn is_in_aufs_directory(path: &[u8]) -> bool {
    let mut components = path.rsplit(|&byte| byte == b'/').skip(1);
    components.any(|component| component.starts_with(b".wh..wh."))
}
