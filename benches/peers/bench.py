"""What every comparison needs: the binaries, lines that are far away, and words for the table."""

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Round trip in milliseconds, Mbit/s; None is loopback as it is.
LINES = {"loopback": None, "5 ms, 1 Gbit/s": (5, 1000), "40 ms, 200 Mbit/s": (40, 200)}

# Whoever measures is root; what is measured is not. The number that ../shared/oracle uses too.
USER = 1000
AS_USER = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]

REPOSITORY = "science"
PRINT = ["python3", "-c", "print(1)"]
IMPORT = ["python3", "-c", "import tensorflow, sklearn, pandas, matplotlib.pyplot; print(1)"]

# Longer than anything here takes on two slow cores: beyond it something hangs.
DEADLINE_S = 1200


def built(options):
    tell("building")
    wanted = [] if options.sifon else ["--bin", "sifon"]
    command = ["cargo", "build", "--release", *wanted, "--example", "proxy", "--example", "floor"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    sifon = options.sifon.resolve() if options.sifon else target / "sifon"
    return {"sifon": sifon, "proxy": target / "examples/proxy", "floor": target / "examples/floor"}


@contextlib.contextmanager
def proxy(programs, registry, line):
    """The address at which the registry is as far away as `line` says."""
    command = [programs["proxy"], "127.0.0.1:0", registry.address, *map(str, line)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def machine():
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores {model}, Linux {platform.release()}, {int(memory.split()[1]) / 2**20:.0f} GiB"


def verdict(met):
    return "yes" if met else "**no**"


def quoted(program):
    return " ".join(f"'{word}'" for word in program)


def tell(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def prepared(options):
    """The image and the binaries."""
    if os.geteuid() != 0:
        sys.exit("needs root, to drop the page cache and to enter the tree of original tools")
    if shutil.which("docker-registry") is None:
        sys.exit("needs docker-registry (apt-get install docker-registry)")
    options.work.mkdir(parents=True, exist_ok=True)
    subprocess.run([HERE / "image", options.image], check=True, stdout=sys.stderr)
    if options.oracle and not (Path(options.oracle) / "etc/hosts").exists():
        # A bare Debian tree has none, and Apptainer does not build without.
        (Path(options.oracle) / "etc/hosts").write_text("127.0.0.1 localhost\n")
    return built(options)


def parser_of(purpose):
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--image", type=Path, help="the image's OCI layout; made if it is not there")
    parser.add_argument("--work", type=Path, default=ROOT / "target/peers", help="for stores, caches and the registry")
    parser.add_argument("--sifon", type=Path, help="the binary to measure, instead of building one")
    parser.add_argument("--oracle", type=Path, default=os.environ.get("SIFON_ORACLE"),
                        help="the tree that ../shared/oracle/setup made; without it the original tools are skipped")
    parser.add_argument("--enter", type=Path, default=ROOT.parent / "shared/oracle/run",
                        help="the program that runs a command in that tree")
    parser.add_argument("--line", action="append", choices=LINES, help="only over this line; may be repeated")
    return parser


def places(options):
    options.work = options.work.resolve()
    options.image = (options.image or options.work / "image").resolve()
    return options


def print_table(header, rows):
    for cells in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(cells) + " |")
    print()
