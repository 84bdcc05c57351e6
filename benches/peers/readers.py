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
    start, done = os.pipe(), os.pipe()
    for reader in range(int(readers)):
        if os.fork() == 0:
            opened = [os.open(file, os.O_RDONLY) for file in files]
            read = {"random": at_random, "sequential": in_order}[how](opened, reader, int(readers))
            os.read(start[0], 1)
            os.write(done[1], b"%16d" % sum(read))
            os._exit(0)
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
    for _ in range(RANDOM_READS // readers):
        [file] = places.choices(range(len(opened)), sizes)
        at = places.randrange(0, sizes[file] - SMALL_BYTES) // SMALL_BYTES * SMALL_BYTES
        yield len(os.pread(opened[file], SMALL_BYTES, at))


def in_order(opened, reader, readers):
    """Each reader has files of its own."""
    piece = bytearray(PIECE_BYTES)
    for file in opened[reader::readers]:
        while read := os.readv(file, [piece]):
            yield read


main()
