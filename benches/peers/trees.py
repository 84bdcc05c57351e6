"""What an image's layers say of its files, and what a directory shows: two trees that can be compared. Neither needs sifon."""

import errno
import gzip
import hashlib
import json
import os
import stat
import tarfile

PIECE_BYTES = 1 << 20

# What squashfs knows of extended attributes.
FAMILIES = ("user.", "trusted.", "security.")

# What a SIF has beside the image, or instead of what the image has there.
SINGULARITYS = [".exec", ".run", ".shell", ".singularity.d", ".test", "environment", "singularity", "etc/hosts", "etc/resolv.conf"]

KINDS = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link", tarfile.CHRTYPE: "character device",
         tarfile.BLKTYPE: "block device", tarfile.FIFOTYPE: "fifo"}


def of_layers(layout):
    """By path, what unpacking the layers of the only image in this OCI layout in their order gives; each hard link has its file's."""
    blob = lambda descriptor: layout / "blobs" / descriptor["digest"].replace(":", "/")
    document = json.loads((layout / "index.json").read_text())
    while "layers" not in document:
        document = json.loads(blob(document["manifests"][0]).read_text())
    tree = {}
    for descriptor in document["layers"]:
        layer = {}
        with gzip.open(blob(descriptor)) as plain, tarfile.open(fileobj=plain, mode="r|", bufsize=PIECE_BYTES) as archive:
            for member in archive:
                add(member, archive, tree, layer)
        for path, file in layer.items():
            if path in tree and not (tree[path]["kind"] == file["kind"] == "directory"):
                remove(tree, path)
            tree[path] = file
    return {path: file for path, file in tree.items() if path and not is_singularitys(path)}


def add(member, archive, tree, layer):
    """What one member of a layer says; of whiteouts, what they do to the layers below."""
    path = os.path.normpath("/" + member.name).lstrip("/")
    directory, name = os.path.split(path)
    if name == ".wh..wh..opq":
        for below in [below for below in tree if below.startswith(directory + "/")]:
            del tree[below]
    elif name.startswith(".wh."):
        remove(tree, os.path.join(directory, name.removeprefix(".wh.")))
    elif member.islnk():
        target = os.path.normpath("/" + member.linkname).lstrip("/")
        layer[path] = layer.get(target) or tree[target]
    else:
        remove(layer, path) if not member.isdir() else None
        kind = KINDS[member.type]
        families = {key.removeprefix("SCHILY.xattr."): value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
        layer[path] = {
            "kind": kind, "mode": member.mode & 0o7777, "owner": (member.uid, member.gid), "mtime": min(max(int(member.mtime // 1), 0), 2**32 - 1),
            "target": member.linkname if kind == "link" else None, "device": (member.devmajor, member.devminor) if "device" in kind else None,
            "content": digest(archive.extractfile(member)) if kind == "file" else None,
            "xattrs": {key: value.encode("utf-8", "surrogateescape") for key, value in families.items() if key.startswith(FAMILIES)},
        }


def remove(tree, path):
    for gone in [below for below in tree if below == path or below.startswith(path + "/")] if path in tree else []:
        del tree[gone]


def of_directory(root):
    """By path, what the directory shows."""
    tree, files = {}, {}
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        for entry in os.scandir(os.path.join(root, directory)):
            path = os.path.join(directory, entry.name)
            if is_singularitys(path):
                continue
            found = entry.stat(follow_symlinks=False)
            file = files.get(found.st_ino)
            if file is None or stat.S_ISDIR(found.st_mode):
                file = shown(entry.path, found)
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                files[found.st_ino] = file
            tree[path] = file
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
    return tree


def shown(path, found):
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
            stat.S_IFIFO: "fifo"}.get(stat.S_IFMT(found.st_mode), "socket")
    try:
        names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(FAMILIES)]
    except OSError as error:
        # A file system in which no file has any.
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    return {
        "kind": kind, "mode": 0o777 if kind == "link" else stat.S_IMODE(found.st_mode), "owner": (found.st_uid, found.st_gid),
        "mtime": found.st_mtime_ns // 10**9, "target": os.readlink(path) if kind == "link" else None,
        "device": (os.major(found.st_rdev), os.minor(found.st_rdev)) if "device" in kind else None,
        "content": digest(open(path, "rb")) if kind == "file" else None,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
    }


def digest(file):
    """Of what is in the file, and how long it is."""
    hasher, length = hashlib.sha256(), 0
    with file:
        while piece := file.read(PIECE_BYTES):
            hasher.update(piece)
            length += len(piece)
    return length, hasher.hexdigest()


def differences(expected, seen, ignored=()):
    """Each in words: names that only one has, what is said of one otherwise, and names that are one file in one tree only."""
    told = [f"{path}: not there" for path in sorted(expected.keys() - seen.keys())]
    told += [f"{path}: not in the image" for path in sorted(seen.keys() - expected.keys())]
    both = sorted(expected.keys() & seen.keys())
    for path in both:
        for what, value in expected[path].items():
            if seen[path][what] != value and what not in ignored and (what != "mode" or seen[path]["kind"] != "link"):
                told.append(f"{path}: {what} is {seen[path][what]!r}, not {value!r}")
    first = lambda tree: {path: names[0] for names in linked(tree, both) for path in names}
    [of_expected, of_seen] = first(expected), first(seen)
    told += [f"{path}: is one file with {of_seen[path]}, not with {of_expected[path]}" for path in both if of_expected[path] != of_seen[path]]
    return told


def linked(tree, paths):
    """The names of each file, in order."""
    names = {}
    for path in paths:
        names.setdefault(id(tree[path]), []).append(path)
    return names.values()


def is_singularitys(path):
    return any(path == added or path.startswith(added + "/") for added in SINGULARITYS)
