"""Each call that changes the disk while a staged file is opened, truncated, linked, renamed, copied or otherwise
changed: the daemon is killed at it, or it fails. Every file is then what it was or what it was to be. On the next mount
the same names are written again, with other bytes of the same length; they are committed, and compared.
"""

import concurrent.futures
import ctypes
import dataclasses
import errno
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import disk_reader
import powercut
import scenarios
import util
from scenarios import EXPLICIT, noise, npy

WORKERS = 4
SEED = 20261201
PUNCH, ZERO = 3, 0x10  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE

NOISE = noise(50_000, 5).tobytes()
SMOOTH = npy(
    np.arange(40_000, dtype=np.float32)
)  # compresses: its object is made at once, and its own bytes are let go
OWN = noise(30_000, 6).tobytes()
BEGIN = {
    "1": {"noise.bin": NOISE, "smooth.npy": SMOOTH, "small.bin": b"small" * 100},
    "3": {"shared.bin": NOISE, "smooth.npy": SMOOTH, "own.bin": b"own" * 1000},
    "2": {"gone.npy": SMOOTH, "own.bin": OWN, "linked.bin": NOISE, "empty.bin": b""},
}
REFERENCES = {"2/gone.npy": SMOOTH, "2/linked.bin": NOISE, "3/shared.bin": NOISE, "3/smooth.npy": SMOOTH}
STAGED = "2", "3"


@dataclasses.dataclass
class Case:
    """run(top) makes the calls. change: {path: contents that it may have afterwards, the last one when all went well};
    None: it is not there.
    """

    name: str
    run: object
    change: dict
    attributes: object = None  # told of a file: what it must have, whatever became of it

    def __str__(self):
        return self.name


def opened(path, flags, act=lambda fd: None):
    def run(top):
        fd = os.open(top / path, flags, 0o644)
        try:
            act(fd)
        finally:
            os.close(fd)

    return run


def written(path, flags, data, at=0):
    return opened(path, flags, lambda fd: os.pwrite(fd, data, at))


def patched(data, patch, at):
    return data[:at] + patch + data[at + len(patch) :]


def copied(source, target, read=False):
    """By copy_file_range. read: somebody has the target open, so that the kernel does not write to it by itself."""

    def run(top):
        reader = os.open(top / target, os.O_RDONLY) if read else -1
        src, size = os.open(top / source, os.O_RDONLY), os.stat(top / source).st_size
        try:
            opened(
                target,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                lambda fd: [os.copy_file_range(src, fd, size - done, done, done) for done in range(0, size, size)],
            )(top)
        finally:
            os.close(src)
            if read:
                os.close(reader)

    return run


def allocated(path, mode, at, size):
    def run(fd):
        if ctypes.CDLL(None, use_errno=True).fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(size)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return opened(path, os.O_RDWR, run)


def zeroed(data, at, size):
    return data[:at] + bytes(min(size, max(0, len(data) - at))) + data[at + size :]


def of_references(name, run, change):
    """A case for each kind of reference file."""
    return [
        Case(f"{name}-{path.replace('/', '-')}", run(path, data), {path: [data, *change(data)]})
        for path, data in REFERENCES.items()
    ]


def link_attributes(path, st):
    if path == "2/new.bin":
        assert st.st_mode & 0o7777 == 0o640, f"{path} has the mode {st.st_mode:o}"


CASES = [
    *of_references("empty", lambda p, d: opened(p, os.O_WRONLY | os.O_TRUNC), lambda d: [b""]),
    *of_references("rewrite", lambda p, d: written(p, os.O_WRONLY | os.O_TRUNC, d[::-1]), lambda d: [b"", d[::-1]]),
    *of_references("shorten", lambda p, d: lambda top: os.truncate(top / p, 5000), lambda d: [d[:5000]]),
    *of_references("nothing", lambda p, d: lambda top: os.truncate(top / p, 0), lambda d: [b""]),
    *of_references(
        "lengthen", lambda p, d: lambda top: os.truncate(top / p, len(d) + 5000), lambda d: [d + bytes(5000)]
    ),
    *of_references(
        "write", lambda p, d: written(p, os.O_RDWR, b"changed", 7000), lambda d: [patched(d, b"changed", 7000)]
    ),
    *of_references("punch", lambda p, d: allocated(p, PUNCH, 1000, 50_000), lambda d: [zeroed(d, 1000, 50_000)]),
    *of_references("zero", lambda p, d: allocated(p, ZERO, len(d) - 100, 200), lambda d: [d[:-100] + bytes(200)]),
    *of_references("allocate", lambda p, d: allocated(p, 0, 0, len(d) + 100), lambda d: [d + bytes(100)]),
    *of_references("remove", lambda p, d: lambda top: os.unlink(top / p), lambda d: [None]),
    *of_references("chmod", lambda p, d: lambda top: os.chmod(top / p, 0o600), lambda d: []),
    *of_references("times", lambda p, d: lambda top: os.utime(top / p, (1e9, 1e9)), lambda d: []),
    *of_references("own attribute", lambda p, d: lambda top: os.setxattr(top / p, "user.mine", b"1"), lambda d: []),
    Case("shorten own", lambda top: os.truncate(top / "2/own.bin", 99), {"2/own.bin": [OWN, OWN[:99]]}),
    Case("new", written("2/new.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, NOISE), {"2/new.bin": [None, b"", NOISE]}),
    Case(
        "link",
        lambda top: os.link(top / "1/noise.bin", top / "2/new.bin"),
        {"2/new.bin": [None, NOISE]},
        link_attributes,
    ),
    Case(
        "link packed",
        lambda top: os.link(top / "1/small.bin", top / "2/new.bin"),
        {"2/new.bin": [None, BEGIN["1"]["small.bin"]]},
    ),
    Case("link staged", lambda top: os.link(top / "2/gone.npy", top / "2/new.bin"), {"2/new.bin": [None, SMOOTH]}),
    Case(
        "rename",
        lambda top: os.rename(top / "2/gone.npy", top / "2/new.npy"),
        {"2/gone.npy": [SMOOTH, None], "2/new.npy": [None, SMOOTH]},
    ),
    Case(
        "rename over",
        lambda top: os.rename(top / "2/own.bin", top / "2/linked.bin"),
        {"2/own.bin": [OWN, None], "2/linked.bin": [NOISE, OWN]},
    ),
    Case("copy", copied("1/noise.bin", "2/new.bin"), {"2/new.bin": [None, b"", NOISE]}),
    Case("copy over own", copied("1/noise.bin", "2/own.bin"), {"2/own.bin": [OWN, b"", NOISE]}),
    Case("copy over empty", copied("1/noise.bin", "2/empty.bin"), {"2/empty.bin": [b"", NOISE]}),
    Case("copy over a reference", copied("1/noise.bin", "2/gone.npy", read=True), {"2/gone.npy": [SMOOTH, b"", NOISE]}),
    Case(
        "copy staged over one",
        copied("2/linked.bin", "3/smooth.npy", read=True),
        {"3/smooth.npy": [SMOOTH, b"", NOISE]},
    ),
]


def has_reference(root, size):
    """Is there a staged file of that size, as it says, that is a reference?"""
    for path in Path(root).glob(".ckptstore/staging/*/tree/*"):
        if "user.ckptfs.ref" in os.listxattr(path) and f" {size} ".encode() in os.getxattr(path, "user.ckptfs.ref"):
            return True
    return False


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A root with a committed step 1, a new step 2 and a changed step 3, both of which have reference files. Not to be
    changed.
    """
    folder = tmp_path_factory.mktemp("prepared")
    root = folder / "root"
    root.mkdir()
    util.ckptfs("init", root)
    with util.Mount(root, EXPLICIT, folder=folder / "mount") as m:
        calls = scenarios.Calls(m.top)
        for step in "1", "3":
            calls.write(step, BEGIN[step])
            if step == "1":
                os.chmod(m / "1/noise.bin", 0o640)
            calls.fsync(step)
        calls.write("2", {name: data for name, data in BEGIN["2"].items() if name != "linked.bin"})
        os.link(m / "1/noise.bin", m / "2/linked.bin")
        calls.put("3/own.bin", b"x")  # opens it for changes
        calls.put("3/own.bin", BEGIN["3"]["own.bin"])
        util.wait_for(lambda: has_reference(root, len(SMOOTH)))
        calls.fsync("2/own.bin")
    with util.Mount(root, EXPLICIT, folder=folder / "mount") as m:
        compare(m, {}, "prepared")
    return root


def begin():
    return {f"{step}/{name}": data for step in STAGED for name, data in BEGIN[step].items()}


def read(path):
    return path.read_bytes() if path.exists() else None


def shown(data):
    return "nothing there" if data is None else f"{len(data)} bytes, {data.count(0)} of them zeros"


def need(truth, text):
    """An assertion that does not show the bytes."""
    if not truth:
        raise AssertionError(text)


def compare(m, change, where, last=False):
    """Every file has what it may have, and no other is there; what there is. last: it has what it was to get."""
    may = {path: [data] for path, data in begin().items()} | change
    got = {path: read(m / path) for path in may}
    for path, data in got.items():
        allowed = may[path][-1:] if last else may[path]
        need(data in allowed, f"{where}: {path} has {shown(data)}, not one of {[shown(d) for d in allowed]}")
        need(
            data is None or os.stat(m / path).st_size == len(data), f"{where}: the size of {path} is not {shown(data)}"
        )
    names = {f"{step}/{name}" for step in STAGED for name in os.listdir(m / step)}
    need(names == {path for path, data in got.items() if data is not None}, f"{where}: {sorted(names)}")
    return {path: data for path, data in got.items() if data is not None}


def write_again(m, there, case):
    """The changed names, with other bytes of a length that they had: by a new file's calls, or in place where that is
    as long.
    """
    for n, (path, contents) in enumerate(sorted(case.change.items())):
        longest = max((data for data in contents if data is not None), key=len)
        data = bytes(byte ^ 0x55 for byte in longest[:1000]) + longest[1000:]
        in_place = len(there.get(path, b"")) == len(data) and (n + len(case.name)) % 2
        with open(m / path, "r+b" if in_place else "wb") as f:
            f.write(data)
        there[path] = data
    for path, data in there.items():
        need(read(m / path) == data, f"{path} is not what was written just now")
    return there


def settle(folder, root, case, where):
    """The next mount, in which the names are written again, and committed."""
    with scenarios.Mount(root, EXPLICIT, folder=folder / "mount") as m:
        assert m.alive, m.said()
        there = compare(m, case.change, where)
        if case.attributes:
            for path in there:
                case.attributes(path, os.stat(m / path))
        there = write_again(m, there, case)
        for path in there:
            if path.endswith(".npy") and path in case.change:  # what is no whole array is not committed
                os.rename(m / path, m / f"{path}.bin")
        there = {
            f"{path}.bin" if path.endswith(".npy") and path in case.change else path: data
            for path, data in there.items()
        }
        for step in STAGED:
            scenarios.Calls(m.top).fsync(step)
        for path, data in there.items():
            need(read(m / path) == data, f"{where}: {path} is committed with other bytes: {shown(read(m / path))}")
        assert m.end() == 0, m.said()
    assert util.ckptfs("verify", root, check=None).returncode == 0


def killed_at(case, prepared, folder, n):
    folder.mkdir()
    root = folder / "root"
    subprocess.run(["cp", "-a", prepared, root], check=True, timeout=util.LIMIT)
    with scenarios.Mount(root, EXPLICIT, folder=folder / "mount", env={"CKPTFS_DISK_FAIL": f"{n}:KILL"}) as m:
        if m.alive:
            try:
                case.run(m.top)
                time.sleep(0.1)
            except OSError as e:
                try:
                    m.daemon.wait(10)
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"{e!r}, but the daemon lives: {m.said()}") from None
        status = m.end()
        assert status in (0, -9), f"the daemon ended with {status}: {m.said()}"
    settle(folder, root, case, "after the kill")
    scenarios.remove(folder)
    return status == -9


def failed_at(case, prepared, folder, n, kind):
    """A call fails once. The caller is told, or it did not matter."""
    folder.mkdir()
    root = folder / "root"
    subprocess.run(["cp", "-a", prepared, root], check=True, timeout=util.LIMIT)
    with scenarios.Mount(root, EXPLICIT, folder=folder / "mount", env={"CKPTFS_DISK_FAIL": f"{n}:{kind}:once"}) as m:
        assert m.alive, m.said()
        if not all(
            (m / step).exists() for step in STAGED
        ):  # it failed when they were taken over: the next mount has them
            failed = True
        else:
            try:
                case.run(m.top)
                failed = False
            except OSError as e:
                assert e.errno == getattr(errno, kind), f"{e!r}, wanted {kind}"
                failed = True
            compare(m, case.change, f"after {kind}", last=not failed)
        assert m.end() == 0, m.said()
    settle(folder, root, case, f"on the next mount after {kind}")
    scenarios.remove(folder)
    return failed


def traced(case, prepared, folder):
    """A run without a fault: the disk before it, and the calls."""
    folder.mkdir()
    root, trace = folder / "root", folder / "trace"
    subprocess.run(["cp", "-a", prepared, root], check=True, timeout=util.LIMIT)
    disk = powercut.Disk(root)
    with scenarios.Mount(root, EXPLICIT, folder=folder / "mount", env={"CKPTFS_DISK_TRACE": trace}) as m:
        case.run(m.top)
        assert m.end() == 0, m.said()
    return disk, powercut.Trace(trace)


def calls_of(case, prepared, folder):
    return len(traced(case, prepared, folder)[1].lines)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kill(prepared, case, tmp_path, tell):
    """At every call."""
    count, faults, killed = calls_of(case, prepared, tmp_path / "count"), scenarios.Faults(), 0
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        jobs = {n: pool.submit(killed_at, case, prepared, tmp_path / f"{n}", n) for n in range(1, count + 1)}
        for n, job in jobs.items():
            try:
                killed += job.result()
            except Exception as e:
                faults.add(n, scenarios.told(e))
    tell(f"killed {killed} times")
    assert not faults, f"killed at a call: {faults}"
    assert killed, "it was never killed"


CUT = [
    case
    for case in CASES
    if case.name.startswith(("empty", "nothing", "shorten-", "lengthen", "chmod", "times", "rename", "link staged"))
]


@pytest.mark.parametrize("case", CUT, ids=str)
def test_cut(prepared, case, tmp_path, tell):
    """The power is cut at every call of a change that needs no fsync to be whole: what shares stored data is never half
    there.
    """
    disk, trace = traced(case, prepared, tmp_path / "run")
    may = {path: [data] for path, data in begin().items()} | case.change
    may = {
        path: [data if data is None else disk_reader.sha256(data) for data in contents]
        for path, contents in may.items()
    }
    reader, count = disk_reader.Reader(), 0
    for k in range(len(trace.lines) + 1):
        if k:
            disk.play(trace.lines[k - 1], trace.data)
        for name, tree in disk.outcomes(random.Random(f"{SEED} {k}"), 30):
            count += 1
            staged = {s.name: s for s in reader.staged(tree[".ckptstore"])}
            for path, hashes in may.items():
                step, leaf = path.split("/")
                need(
                    staged[step].hash(leaf) in hashes,
                    f"{path} is neither old nor new after {k} calls ({name}):\n{trace.around(k)}",
                )
    tell(f"{len(trace.lines) + 1} points, {count} outcomes")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_faults(prepared, case, tmp_path, tell):
    """No call fails without a word, or leaves half of a change."""
    count, faults = calls_of(case, prepared, tmp_path / "count"), scenarios.Faults()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        jobs = {
            (n, kind): pool.submit(failed_at, case, prepared, tmp_path / f"{n}-{kind}", n, kind)
            for n in range(1, count + 1)
            for kind in [("EIO", "ENOSPC")[n % 2]]
        }
        for (n, kind), job in jobs.items():
            try:
                job.result()
            except Exception as e:
                faults.add(f"{n}:{kind}", scenarios.told(e))
    tell(f"{len(jobs)} calls failed")
    assert not faults, f"a call fails: {faults}"
