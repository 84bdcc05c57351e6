//! What is mounted where, as /proc/self/mountinfo tells it (proc(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount of this process's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number; fdinfo of an open file names it too.
    pub id: u32,
    /// The mount that this one is mounted on.
    pub parent: u32,
    /// The file system's device number, major and minor, as `st_dev` has it.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub target: PathBuf,
    /// For example `ext4` or `fuse.sifon`.
    pub file_system: String,
    /// What the one who mounted calls it.
    pub source: OsString,
    /// Options of the file system, `user_id=` of FUSE among them.
    pub options: String,
}

impl MountEntry {
    /// The user who mounted a FUSE file system.
    pub fn user(&self) -> Option<u32> {
        self.options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id="))?
            .parse()
            .ok()
    }
}

/// All mounts, in the order of mounting.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parsed(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that is seen at `target`, which must be absolute and without symbolic links: of several, the last.
pub fn mounted_on(target: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.target == target))
}

/// The mounts in `text`, which is as /proc/self/mountinfo; lines that are not as proc(5) says are left out.
pub fn parsed(text: &[u8]) -> Vec<MountEntry> {
    text.split(|&byte| byte == b'\n')
        .filter_map(entry)
        .collect()
}

fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let _root = fields.next()?;
    let target = unescaped(fields.next()?);
    // Mount options, then optional fields up to a lone dash.
    fields.find(|&field| field == b"-")?;
    let file_system = unescaped(fields.next()?);
    let source = unescaped(fields.next()?);
    let options = fields.next().unwrap_or_default();
    Some(MountEntry {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        target: target.into(),
        file_system: file_system.to_string_lossy().into_owned(),
        source,
        options: String::from_utf8_lossy(options).into_owned(),
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// A field with `\ooo` for spaces, tabs, line ends, backslashes and hash signs as the kernel writes them.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let escape = field
            .get(at..at + 4)
            .filter(|escape| escape[0] == b'\\')
            .and_then(|escape| std::str::from_utf8(&escape[1..]).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escape {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Whether `path`, as a link in /proc shows it, lies in the mount at `target`.
pub fn lies_in(path: &Path, target: &Path) -> bool {
    path.as_os_str() == target.as_os_str()
        || path
            .as_os_str()
            .as_bytes()
            .strip_prefix(target.as_os_str().as_bytes())
            .is_some_and(|rest| rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_a_mount() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:3 - fuse.sifon \
            docker://a\\043b ro,user_id=1000,group_id=7\n";
        let mounts = parsed(line);
        assert_eq!(mounts.len(), 1);
        let mount = &mounts[0];
        assert_eq!((mount.id, mount.parent, mount.device), (36, 35, (98, 0)));
        assert_eq!(mount.target, Path::new("/mnt 2"));
        assert_eq!(mount.file_system, FILE_SYSTEM);
        assert_eq!(mount.source, "docker://a#b");
        assert_eq!(mount.user(), Some(1000));
    }

    const FILE_SYSTEM: &str = super::super::mount::FILE_SYSTEM;

    #[test]
    fn lines_of_another_form_are_left_out() {
        for line in [
            "",
            "36",
            "36 35 98 / /mnt rw - ext4 /dev/a rw",
            "x 35 98:0 / /mnt rw - ext4 /dev/a rw",
            "36 35 98:0 / /mnt rw shared:1",
            "36 35 98:0 / /mnt rw - ext4",
        ] {
            assert_eq!(parsed(line.as_bytes()), [], "{line}");
        }
    }

    #[test]
    fn bytes_that_are_no_escape_stay() {
        for (field, bytes) in [
            (&b"a\\134b"[..], &b"a\\b"[..]),
            (b"a\\", b"a\\"),
            (b"\\9ab", b"\\9ab"),
            (b"\xff\\011", b"\xff\t"),
        ] {
            assert_eq!(unescaped(field).as_bytes(), bytes);
        }
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(mounted_on(Path::new("/")).unwrap().is_some());
        assert!(mounted_on(Path::new("/no such mount")).unwrap().is_none());
    }
}
