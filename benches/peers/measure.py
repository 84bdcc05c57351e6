"""One run of a command: how long, and how much memory."""

import dataclasses
import os
import subprocess
import threading
import time
from pathlib import Path

SAMPLE_EVERY_S = 0.1
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass
class Run:
    """Seconds and bytes."""

    first_output_s: float
    end_s: float
    peak_bytes: int
    """The largest sum of resident memory, over the command, its descendants and the servers it left running."""
    largest_bytes: int
    """The peak (VmHWM) of the process that needed most, as the kernel counted it."""


def timed(command, deadline_s, server=None, **options):
    """Runs `command` to its end. Its first output must come, and it must succeed, within the deadline.

    `server` names processes that belong to the command without descending from it.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
    alarm = threading.Timer(deadline_s, process.kill)
    alarm.start()
    with Memory(process.pid, server) as memory:
        first = process.stdout.read(1)
        first_output_s = time.monotonic() - started
        process.stdout.read()
        status = wait(process)
        end_s = time.monotonic() - started
        memory.sample()
    alarm.cancel()
    if status.code != 0 or not first:
        raise SystemExit(f"{' '.join(map(str, command))}: status {status.code} after {end_s:.0f} s")
    return Run(first_output_s, end_s, memory.peak_bytes, max(memory.largest_bytes, status.largest_bytes))


def seconds_of(commands, deadline_s, **options):
    """Runs `commands` at once, to the end of them all; they must succeed, within the deadline.

    A wait with a limit of Python's own would look every so often only, up to 50 ms late.
    """
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    processes = [subprocess.Popen(command, **quiet, **options) for command in commands]
    alarm = threading.Timer(deadline_s, lambda: [process.kill() for process in processes])
    alarm.start()
    failed = [process.args for process in processes if process.wait()]
    seconds = time.monotonic() - began
    alarm.cancel()
    if failed:
        raise SystemExit(f"{' '.join(map(str, failed[0]))}: failed, as did {len(failed) - 1} beside, after {seconds:.0f} s")
    return seconds


@dataclasses.dataclass
class Ended:
    code: int
    largest_bytes: int


def wait(process):
    """Waits as `time` does, with what the kernel counted for the process and all it waited for."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, usage.ru_maxrss * 1024)


class Sampler:
    """Takes samples from a thread until the `with` block ends."""

    def __init__(self, every_s=SAMPLE_EVERY_S):
        self.every_s = every_s
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    def watch(self):
        while not self.ended.wait(self.every_s):
            self.sample()


class Memory(Sampler):
    """Samples the memory of a process tree."""

    def __init__(self, root, server):
        super().__init__()
        self.root, self.server = root, server
        self.peak_bytes = self.largest_bytes = 0

    def sample(self):
        members = [process for process in family(self.root, self.server)]
        self.peak_bytes = max(self.peak_bytes, sum(resident_bytes(process) for process in members))
        self.largest_bytes = max([self.largest_bytes, *(high_water_bytes(process) for process in members)])


def family(root, server):
    """`root`, its descendants, and every process of the name `server`."""
    parents, named = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue  # it has just ended
        process = int(entry.name)
        parents[process] = int(rest.split()[1])
        if server and name.startswith(server):
            named.append(process)
    return {process for process in parents if descends(process, root, parents)}.union(named)


def descends(process, root, parents):
    while process in parents:
        if process == root:
            return True
        process = parents[process]
    return False


def resident_bytes(process):
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def high_water_bytes(process):
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def drop_page_cache():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
