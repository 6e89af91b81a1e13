#!/usr/bin/env python3
"""Damaged checkpoints of every format through a mount, with what is read compared. Made for a program with sanitizers.

    tests/stress/mutate.py [--mutants N] [--seed S] [--case PATTERN] [--keep FOLDER]

A round takes one case, and mounts it beside copies of it that have one file damaged each: bits flipped, bytes changed,
cut, longer, parts moved, swapped or zeroed, numbers that lie. All files, and some views, of each copy are read. Always:
an errno that the pages name, no hang, no memory without bound, nothing in the log that a sanitizer says, and the good
one beside them reads as before. And where a checksum covers the file that is damaged: what is read is what was written,
or an error.

A round follows from its seed alone: --seed with what a fault says, and --mutants 1, repeats it.
"""

import argparse
import errno
import fnmatch
import itertools
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util

CLEAN = {errno.EBADMSG, errno.EUCLEAN, errno.EOPNOTSUPP, errno.ENODATA, errno.EIO, errno.ENOENT}
MEMORY = 256 << 20
MOST = 8 << 20  # bytes that are read of a file from its beginning
COPIES = 8
BESIDE = ("README.md", ".truth.json", ".tar")


# --- cases: a folder to copy, and which of its files a checksum covers


def in_store(file):
    """Manifests, objects and sums. What store.json says of retention and codecs is not covered, and no leaf depends on
    it.
    """
    return ".ckptstore" in file.parts and file.name != "store.json"


def in_ocdbt(file):
    """Nodes and manifest have a CRC-32C; values, which are in d/ as well, have none of OCDBT's."""
    return file.name == "manifest.ocdbt"


def in_zip(file):
    return file.name == "deflate.npz"  # a stored member is read in parts, and its CRC-32 is verify's


def nowhere(file):
    return False


def make_tree(top, rng):
    """Files that become every kind of leaf and object, small and large."""
    (top / "a/b").mkdir(parents=True)
    noise = np.frombuffer(rng.randbytes(400_000), "<u4")
    np.save(top / "noise.npy", noise)
    np.save(top / "smooth.npy", np.arange(300_000, dtype="<f4").reshape(300, 1000))
    np.save(top / "a/small.npy", np.arange(100, dtype="<i2"))
    np.save(top / "a/scalar.npy", np.float64(2.5))
    (top / "a/b/value.json").write_text("0.25\n")
    (top / "a/b/text.txt").write_text("to be or not to be\n" * 9000)
    (top / "a/b/bytes.bin").write_bytes(rng.randbytes(1_200_000))
    (top / "a/few.bin").write_bytes(b"few")


def make_store(top, rng, codec):
    make_tree(top.parent / "tree", rng)
    top.mkdir()
    util.ckptfs("init", top)
    util.ckptfs("config", top, f"codec={codec}")
    util.ckptfs("import", top.parent / "tree", top / "7")
    (top.parent / "tree/a/few.bin").write_bytes(b"some more")
    util.ckptfs("import", top.parent / "tree", top / "8")
    shutil.rmtree(top.parent / "tree")


def copy_in(path):
    def make(top, rng):
        if path.is_dir():
            util.copy_tree(path, top)
        else:
            top.mkdir()
            shutil.copyfile(path, top / path.name)

    return make


def cases():
    """{name: (what makes the folder, which files are covered)}"""
    found = {}
    for codec in "none", "lz4", "blosc", "auto":
        found[f"store/{codec}"] = (lambda top, rng, codec=codec: make_store(top, rng, codec)), in_store
    for group in "orbax", "numpy", "pytorch", "safetensors", "gguf", "flax-msgpack", "zarr":
        for path in sorted((util.DATA / group).iterdir()):
            if not path.name.endswith(BESIDE) and path.name != "bad":
                found[f"{group}/{path.name}"] = copy_in(path), {"orbax": in_ocdbt, "numpy": in_zip}.get(group, nowhere)
        for path in sorted((util.DATA / group / "bad").glob("*")):
            found[f"{group}/bad/{path.name}"] = copy_in(path), nowhere
    return found


# --- damage


def flip(data, rng):
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def change(data, rng):
    at = rng.randrange(len(data))
    data[at : at + rng.choice([1, 2, 16])] = rng.randbytes(min(len(data) - at, rng.choice([1, 2, 16])))


def cut(data, rng):
    del data[rng.choice([0, rng.randrange(len(data)), len(data) - 1, len(data) // 2]) :]


def lengthen(data, rng):
    data += rng.choice([b"\0", b"\0" * 100, rng.randbytes(50), bytes(data[-64:]), bytes(data[:5000])])


def move(data, rng):
    """A part over another one."""
    n = rng.choice([1, 8, 64, 4096])
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    part = bytes(data[source : source + n])
    data[target : target + len(part)] = part


def swap(data, rng):
    """Two parts of the file, such as two chunks, in each other's place."""
    n = max(1, len(data) // rng.choice([2, 4, 16]))
    a, b = rng.randrange(len(data) - n + 1), rng.randrange(len(data) - n + 1)
    data[a : a + n], data[b : b + n] = bytes(data[b : b + n]), bytes(data[a : a + n])


def drop(data, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 7, 512])]


def insert(data, rng):
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 8, 300]))


def zero(data, rng):
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice([4, 64, 4096, len(data)]))
    data[at:end] = bytes(end - at)


def lie(data, rng):
    """A number becomes another one: at either end of the file, where counts and offsets are, or anywhere."""
    form = rng.choice(["<B", "<H", "<I", "<Q", ">I", ">Q"])
    n = struct.calcsize(form)
    if len(data) < n:
        return
    near = min(len(data) - n + 1, 200)
    at = rng.choice([rng.randrange(near), len(data) - n - rng.randrange(near), rng.randrange(len(data) - n + 1)])
    top = (1 << 8 * n) - 1
    (was,) = struct.unpack_from(form, data, at)
    near_it = (was + 1) & top, (was - 1) & top, (was << 1) & top
    struct.pack_into(form, data, at, rng.choice([0, 1, top, top >> 1, (top >> 1) + 1, *near_it]))


def digit(data, rng):
    """A digit of a text becomes another, or more of them: JSON has no other numbers."""
    places = [n for n, c in enumerate(data[:100_000]) if 48 <= c <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice([b"0", b"9", b"-1", b"99999999999", b"4294967297", b"1e30", b"9" * 30])


DAMAGE = [flip, flip, flip, change, cut, lengthen, move, swap, drop, insert, zero, lie, lie, digit]


def damage(path, rng):
    """Damages a file in place. The kind, or None if it is as it was."""
    data = bytearray(path.read_bytes())
    was, kind = bytes(data), rng.choice(DAMAGE)
    if data:
        kind(data, rng)
    else:
        data += rng.randbytes(10)
    path.chmod(0o644)
    path.write_bytes(data)
    return kind.__name__ if data != was else None


# --- what is read


def views(name, is_directory, rng):
    """(a view, does it follow from the leaf's bytes alone?)"""
    if is_directory:
        return [(rng.choice([f"{name}.safetensors", f"{name}/.tree.json", f"{name}.html"]), False)]
    if not name.endswith(".npy"):
        return [(f"{name}.tree/.tree.json", False)]
    key = name.removesuffix(".npy")
    return [
        (rng.choice([key, f"{key}@0.npy", f"{key}@::2.npy", f"{key}@-1"]), True),
        (rng.choice([f"{key}.txt", f"{key}.meta.json", f"{key}.svg"]), False),
    ]


def read(path):
    """The first megabytes, since a damaged number may make a file of a few bytes look like many terabytes; and its
    end.
    """
    try:
        with open(path, "rb", buffering=0) as f:
            data = b"".join(itertools.islice(iter(lambda: f.read(1 << 20), b""), MOST >> 20))
            return data + os.pread(f.fileno(), 1 << 20, max(len(data), os.fstat(f.fileno()).st_size - (1 << 20)))
    except OSError as e:
        return e.errno


def contents(top, seed):
    """({path: bytes or errno} of all files and of views that must be the same, {view: errno} of others)."""
    found, others = {}, {}

    def visit(folder, name):
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as e:
            found[name] = e.errno
            return
        for entry in entries:
            path = f"{name}/{entry.name}"
            try:
                is_directory = entry.is_dir(follow_symlinks=False)
                is_link = entry.is_symlink()
            except OSError as e:
                found[path] = e.errno
                continue
            if is_link:
                continue
            rng = random.Random(f"{seed} {path}")  # the same views, whatever is missing
            if rng.random() < 0.3:
                for view, same in views(path, is_directory, rng):
                    got = read(f"{top}{view}")
                    if same:
                        found[view] = got
                    elif isinstance(got, int):
                        others[view] = got
            if is_directory:
                visit(entry.path, path)
            else:
                found[path] = read(entry.path)

    visit(top, "")
    return found, others


# --- a round


class Fault(AssertionError):
    pass


def one(folder, name, seed, counts):
    """A case beside damaged copies of itself, in one mount."""
    rng = random.Random(f"{name} {seed}")
    make, covers = cases()[name]
    runs = Path(folder) / "runs"
    runs.mkdir(parents=True)
    make(runs / "good", rng)
    files = sorted(p.relative_to(runs / "good") for p in (runs / "good").rglob("*") if p.is_file())
    damaged = {}
    for n in range(COPIES):
        copy, file = f"bad_{n}x", rng.choice(files)
        util.copy_tree(runs / "good", runs / copy)
        kind = damage(runs / copy / file, rng)
        if kind:
            damaged[copy] = file, kind
    with util.Mount(runs, "ro", folder=Path(folder) / "mount", patience=240) as m:
        good, _ = contents(m / "good", seed)
        for copy, (file, kind) in damaged.items():
            begin = time.monotonic()
            look_at(m, copy, file, kind, good, covers(file), seed, counts)
            counts["slowest copy, ms"] = max(counts["slowest copy, ms"], round((time.monotonic() - begin) * 1000))
            counts["mutants"] += 1
        if contents(m / "good", seed)[0] != good:
            raise Fault("the good one beside them has changed")
        if not util.SANITIZED and m.memory() > MEMORY:
            raise Fault(f"the daemon took {m.memory() >> 20} MiB")
    copy = rng.choice(sorted(damaged) or ["good"])
    done = util.ckptfs(rng.choice(["verify", "info", "ls"]), runs / copy, check=None, text=False)
    if done.returncode not in (0, 3, 4, 5):
        raise Fault(f"a command on {copy} ends with {done.returncode}: {done.stderr[-2000:]}")


def look_at(m, copy, file, kind, good, covered, seed, counts):
    got, others = contents(m / copy, seed)
    counts["files"] += len(got)
    what = f"{copy}, {file} {kind}"
    if m.daemon.poll() is not None or not util.mounted(m.top):
        raise Fault(f"{what}: the daemon is gone: {m.said()}")
    unclean = [
        (path, errno.errorcode[v])
        for path, v in [*got.items(), *others.items()]
        if isinstance(v, int) and v not in CLEAN
    ]
    unclean = [(path, e) for path, e in unclean if e not in ("EISDIR", "ENOTDIR", "ENAMETOOLONG", "EACCES")]
    if unclean:
        raise Fault(f"{what}: {unclean[:5]}")
    if not covered:
        return
    counts["of covered files"] += 1
    wrong = [path for path, v in got.items() if isinstance(v, bytes) and path in good and good[path] != v]
    more = [path for path in got if path not in good and isinstance(got[path], bytes)]
    failed = [path for path, v in got.items() if isinstance(v, int)]
    hidden = [
        path for path in good if path not in got and not any(path == f or path.startswith(f"{f}/") for f in failed)
    ]
    counts["errors in covered files"] += bool(failed)
    if wrong or more:
        raise Fault(f"{what}: other bytes than were written in {wrong[:5]}, not expected {more[:5]}")
    if hidden and not file.name.endswith(".npz"):  # the names of a zip's members have no checksum
        raise Fault(f"{what}: gone without an error: {hidden[:5]}")


def run(folder, mutants=100, seed=None, pattern="*", keep=None):
    """One sentence of what was done; a Fault with the case and the seed in it at the first difference."""
    first = random.randrange(1 << 30) if seed is None else int(seed)
    names = sorted(n for n in cases() if fnmatch.fnmatch(n, pattern))
    order, counts, rounds = [], Counter(), 0
    while counts["mutants"] < mutants:
        if not order:
            order = names + [n for n in names if n.startswith("store/")] * 12
            random.Random(first + rounds).shuffle(order)
        name, place = order.pop(), Path(folder) / f"round{rounds}"
        try:
            one(place, name, first + rounds if len(names) > 1 else first, counts)
        except (AssertionError, OSError) as e:
            if keep:
                shutil.copytree(place / "runs", keep, dirs_exist_ok=True)
            raise Fault(f"case {name}, seed {first + rounds if len(names) > 1 else first}: {e}") from e
        shutil.rmtree(place)
        rounds += 1
        if len(names) == 1:
            first += 1
    return f"mutate: seeds from {first}, {rounds} rounds, " + ", ".join(
        f"{n} {what}" for what, n in sorted(counts.items())
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="that a fault has named: with --case, to repeat it")
    parser.add_argument("--case", default="*", help="such as store/none, or orbax/*")
    parser.add_argument("--keep", help="where the files of a fault are copied to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ckptfs-mutate-", ignore_cleanup_errors=True) as folder:
        print(run(folder, given.mutants, given.seed, given.case, given.keep))


if __name__ == "__main__":
    main()
