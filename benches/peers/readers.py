"""Reads files in a directory as programs do: `readers.py random|sequential READERS DIRECTORY FILE...`. Prints bytes and seconds."""

import os
import random
import sys
import time

SMALL_BYTES = 4096
PIECE_BYTES = 1 << 20

# Of all readers together: some seconds' work.
RANDOM_READS = 6000


def main():
    how, readers, directory, *files = sys.argv[1:]
    os.chdir(directory)
    ready, start, done = os.pipe(), os.pipe(), os.pipe()
    for reader in range(int(readers)):
        if os.fork() == 0:
            opened = [os.open(file, os.O_RDONLY) for file in files]
            places = list({"random": at_random, "sequential": in_order}[how](opened, reader, int(readers)))
            os.write(ready[1], b"x")
            os.read(start[0], 1)
            os.write(done[1], b"%16d" % read(places))
            os._exit(0)
    for _ in range(int(readers)):
        os.read(ready[0], 1)
    # What is measured is reading, not preparing for it.
    began = time.monotonic()
    os.write(start[1], b"x" * int(readers))
    read_bytes = sum(int(os.read(done[0], 16)) for _ in range(int(readers)))
    print(read_bytes, time.monotonic() - began)


def at_random(opened, reader, readers):
    """4 KiB at places that nobody can foresee, and of which the kernel is told that."""
    for file in opened:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    sizes = [os.fstat(file).st_size for file in opened]
    places = random.Random(reader)
    for file in places.choices(range(len(opened)), sizes, k=RANDOM_READS // readers):
        yield opened[file], places.randrange(0, sizes[file] - SMALL_BYTES) // SMALL_BYTES * SMALL_BYTES, SMALL_BYTES


def in_order(opened, reader, readers):
    """Each reader has as much to do, however unequal the files are: a stretch of all of them, one after another."""
    pieces = [(file, at, PIECE_BYTES) for file in opened for at in range(0, os.fstat(file).st_size, PIECE_BYTES)]
    return pieces[len(pieces) * reader // readers:len(pieces) * (reader + 1) // readers]


def read(places):
    """How many bytes there were."""
    buffer = bytearray(PIECE_BYTES)
    return sum(os.preadv(file, [memoryview(buffer)[:size]], at) for file, at, size in places)


main()
