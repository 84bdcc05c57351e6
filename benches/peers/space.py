"""How much room a command takes on the disk while it runs, files without a name included."""

import os
from pathlib import Path

from measure import Sampler, family

SAMPLE_EVERY_S = 0.2


class Space(Sampler):
    """Samples what lies below some directories: the largest sum of bytes at a time, and the largest of each directory."""

    def __init__(self, **directories):
        super().__init__(SAMPLE_EVERY_S)
        self.directories = {name: Path(path).resolve() for name, path in directories.items()}
        self.most = dict.fromkeys(directories, 0)
        self.most_together = 0

    def sample(self):
        files = {}
        for name, directory in self.directories.items():
            for place, _, names in os.walk(directory):
                for each in names:
                    note(files, Path(place) / each, name)
        for process in family(os.getpid(), None):
            for link, target in unnamed(process):
                owners = [name for name, directory in self.directories.items() if directory in target.parents]
                note(files, link, owners[0]) if owners else None
        sums = dict.fromkeys(self.directories, 0)
        for name, taken in files.values():
            sums[name] += taken
        self.most = {name: max(self.most[name], taken) for name, taken in sums.items()}
        self.most_together = max(self.most_together, sum(sums.values()))


def note(files, path, owner):
    """A file counts once, however many names and descriptors it has, and holes do not."""
    try:
        status = path.stat() if path.parent.name == "fd" else path.lstat()
    except OSError:
        return  # it has just gone
    files[status.st_dev, status.st_ino] = (owner, status.st_blocks * 512)


def unnamed(process):
    """Descriptors of files that have no name (any more), and where they are."""
    try:
        links = list(Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.endswith(" (deleted)"):
            yield link, Path(target.removesuffix(" (deleted)"))
