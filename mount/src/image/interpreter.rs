//! What interpreters read when they start, which no loader and no library tells: today Python's, which looks at one small file
//! after the other, each of which would cost a round trip.

use super::{Enough, Image};
use crate::tree::{NodeId, NodeKind};

/// Of each version: the codecs without which it does not start.
const ENCODINGS: [&str; 3] = ["__init__", "aliases", "utf_8"];

/// Modules that every start imports, and that are part of the program from version 3.11 on.
const IMPORTED: [&str; 11] = [
    "_collections_abc",
    "_sitebuiltins",
    "abc",
    "codecs",
    "genericpath",
    "io",
    "os",
    "posixpath",
    "site",
    "stat",
    "_bootlocale",
];
const PART_OF_THE_PROGRAM_FROM: u32 = 11;

/// Where packages are, below the directory in which `bin` is; `VERSION` stands for a name like `python3.11`.
const PACKAGES: [&str; 4] = [
    "lib/python3/dist-packages",
    "lib/VERSION/dist-packages",
    "lib/VERSION/site-packages",
    "local/lib/VERSION/dist-packages",
];

/// Names in one directory of packages that are looked at at most.
const NAMES_LIMIT: usize = 4096;

/// The files that the program at `path`, which no link is part of, reads when it starts, as far as that is known.
pub(super) fn starts_with(image: &Image, path: &[u8]) -> Vec<NodeId> {
    let Some((above, version, minor)) = python(path) else {
        return Vec::new();
    };
    let compiled = |directory: &str, module: &str| {
        let name = format!("{directory}__pycache__/{module}.cpython-3{minor}.pyc");
        format!("{above}lib/{version}/{name}")
    };
    let imported = match minor < PART_OF_THE_PROGRAM_FROM {
        true => &IMPORTED[..],
        false => &[],
    };
    let modules = imported.iter().chain(&["sitecustomize"]);
    let modules = modules.map(|module| compiled("", module));
    let encodings = ENCODINGS
        .iter()
        .map(|module| compiled("encodings/", module));
    let found = |path: String| image.resolved(path.as_bytes()).ok().flatten();
    let mut files: Vec<NodeId> = encodings.chain(modules).filter_map(found).collect();
    for packages in PACKAGES {
        let packages = format!("{above}{}", packages.replace("VERSION", version));
        if let Some(directory) = found(packages) {
            files.extend(path_files(image, directory));
        }
    }
    let is_regular = |id: &NodeId| {
        let node = image.node(*id);
        node.is_ok_and(|node| matches!(node.kind, NodeKind::Regular { .. }))
    };
    files.retain(is_regular);
    files
}

/// Of `usr/bin/python3.11`: `usr/`, `python3.11` and 11.
fn python(path: &[u8]) -> Option<(&str, &str, u32)> {
    let path = str::from_utf8(path).ok()?;
    let (above, version) = path.split_once("bin/python3.")?;
    let is_whole = above.is_empty() || above.ends_with('/');
    let minor = version.parse().ok().filter(|_| is_whole)?;
    Some((
        above,
        &path[path.len() - version.len() - "python3.".len()..],
        minor,
    ))
}

/// Files that name further directories of packages: all of them are read (Python's library reference, `site`).
fn path_files(image: &Image, directory: NodeId) -> Vec<NodeId> {
    let (mut files, mut looked_at) = (Vec::new(), 0);
    // A damaged tree is told of when it is read.
    let _ = image.children(directory, 0, |name, id, _| {
        if name.ends_with(b".pth") {
            files.push(id);
        }
        looked_at += 1;
        match looked_at < NAMES_LIMIT {
            true => Enough::No,
            false => Enough::Yes,
        }
    });
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_like_a_version_of_python_is_one() {
        for (path, told) in [
            ("usr/bin/python3.11", Some(("usr/", "python3.11", 11))),
            ("bin/python3.6", Some(("", "python3.6", 6))),
            (
                "opt/conda/bin/python3.9",
                Some(("opt/conda/", "python3.9", 9)),
            ),
            ("usr/bin/python3", None),
            ("usr/bin/python3.11-config", None),
            ("usr/sbin/python3.11", None),
            ("usr/bin/python3.", None),
        ] {
            assert_eq!(python(path.as_bytes()), told, "{path}");
        }
        assert_eq!(python(b"usr/\xff/bin/python3.11"), None);
    }
}
