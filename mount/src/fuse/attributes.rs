//! Attributes as the kernel wants them.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::image::Attributes;
use crate::layer::entry::Timestamp;
use crate::tree::NodeKind;

/// What `st_blksize` says: a page, as for other file systems.
pub(super) const BLOCK_BYTES: u32 = 4096;

pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    let node = &attributes.node;
    let mtime = system_time(node.mtime);
    FileAttr {
        ino: INodeNo(attributes.id.0),
        size: node.size,
        blocks: attributes.blocks(),
        // An image keeps one time only.
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(node.kind),
        perm: node.mode,
        nlink: node.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: match node.kind {
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                device_number(major, minor)
            }
            _ => 0,
        },
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// For a name that leads nowhere: the kernel takes node 0 as "does not exist" and remembers it.
pub(super) fn missing() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::Regular { .. } => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::CharDevice { .. } => FileType::CharDevice,
        NodeKind::BlockDevice { .. } => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

/// As `new_encode_dev` of linux/kdev_t.h: 12 bits of the major number, 20 of the minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

/// A time that this machine cannot express becomes 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = match time.secs < 0 {
        true => epoch.checked_sub(whole),
        false => epoch.checked_add(whole),
    };
    let nanos = Duration::from_nanos(time.nanos.into());
    second
        .and_then(|second| second.checked_add(nanos))
        .unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_forward_from_a_whole_second() {
        let time = |secs, nanos| system_time(Timestamp { secs, nanos });
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(time(0, 0), epoch);
        assert_eq!(time(-1, 750_000_000), epoch - Duration::from_millis(250));
        assert_eq!(time(2, 1), epoch + Duration::new(2, 1));
        for secs in [i64::MIN, i64::MAX] {
            let _ = time(secs, 999_999_999);
        }
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_unpacks_them() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(0xabc, 0x12345), 0x123a_bc45);
    }
}
