//! The extended attributes of a file on this machine.

use std::io;
use std::path::Path;

/// Names and values, sorted; of a symbolic link its own. None where the file system has no such thing.
pub fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 4096];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let names = names[..len].split(|&byte| byte == 0);
    let mut xattrs = Vec::new();
    for name in names.filter(|name| !name.is_empty()) {
        let mut value = vec![0; 70_000];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(xattrs)
}
