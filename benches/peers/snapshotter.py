"""SOCI's own snapshotter on the same image: under a containerd of its own, which knows nothing of the image before a run."""

import contextlib
import shutil
import subprocess
import threading
import time

from bench import DEADLINE_S, REPOSITORY, tell

# Starts both daemons in $HERE, and then does what it is told; nothing is left of them.
DAEMONS = """
cat > $HERE/containerd.toml <<X
version = 2
root = "$HERE/root"
state = "$HERE/run"
[grpc]
  address = "$HERE/containerd.sock"
[proxy_plugins.soci]
  type = "snapshot"
  address = "$HERE/soci.sock"
  [proxy_plugins.soci.exports]
    root = "$HERE/soci"
X
cat > $HERE/soci.toml <<X
[[resolver.host."$ADDRESS".mirrors]]
host = "$ADDRESS"
insecure = true
X
soci-snapshotter-grpc --address $HERE/soci.sock --root $HERE/soci --config $HERE/soci.toml > $HERE/soci.log 2>&1 &
containerd -c $HERE/containerd.toml > $HERE/containerd.log 2>&1 &
trap 'kill %1 %2; wait' EXIT
export CONTAINERD_ADDRESS=$HERE/containerd.sock
for _ in $(seq 200); do [ -S $HERE/soci.sock ] && ctr version >/dev/null 2>&1 && break; sleep 0.1; done
"""

INDEX = DAEMONS + """
ctr content fetch --plain-http $IMAGE >&2
soci create $IMAGE >&2
soci push --plain-http $IMAGE >&2
soci index list -q
"""

# Waits until it is told to begin. The pull is not counted, in its favour: a layer without a zTOC is asked for by https first, for
# ten seconds, from this registry too.
RUN = DAEMONS + """
soci image rpull --plain-http --soci-index-digest $INDEX $IMAGE >&2
echo ready
read -r _
ctr run --rm --net-host --snapshotter soci $IMAGE measured "$@"
"""


class SociSnapshotter:
    """Runs programs from the image with this tag. Its index is made by `soci` once, and stays in the registry."""

    def __init__(self, options, registry, tag):
        self.options, self.registry, self.tag = options, registry, tag
        self.here = options.work / "snapshotter"
        self.index = self.known_index()

    def known_index(self):
        known = self.options.work / "soci-index"
        if not known.exists():
            tell("making SOCI's own index")
            with self.script(INDEX, self.registry.address, stdin=subprocess.DEVNULL) as process:
                known.write_text(process.stdout.read().split()[-1])
        return known.read_text()

    def first_output_s(self, address, program):
        """Seconds from the container's start to the program's first output; the daemons and the layers' indexes are there."""
        with self.script(RUN, address, *program, stdin=subprocess.PIPE) as process:
            process.stdout.readline()
            started = time.monotonic()
            process.stdin.write("go\n")
            process.stdin.flush()
            first = process.stdout.read(1)
            seconds = time.monotonic() - started
            process.stdin.close()
            process.stdout.read()
        if not first:
            raise SystemExit(f"soci-snapshotter did not run the program: see {self.here}")
        return seconds

    @contextlib.contextmanager
    def script(self, script, address, *arguments, stdin):
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        names = {"HERE": "/host", "ADDRESS": address, "IMAGE": f"{address}/{REPOSITORY}:{self.tag}", "INDEX": getattr(self, "index", "")}
        words = [f"{name}={value}" for name, value in names.items()]
        command = [self.options.enter, self.options.oracle, "env", *words, "bash", "-ec", script, "bash", *arguments]
        with open(self.options.work / "snapshotter.log", "ab") as log:
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.here)
        alarm = threading.Timer(DEADLINE_S, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            status = process.wait()
            alarm.cancel()
        if status != 0:
            raise SystemExit(f"soci-snapshotter: status {status}: see {log.name} and {self.here}")
