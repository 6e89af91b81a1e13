"""A real file system that is full: an error at the write or the commit, nothing committed is hurt, and after a deletion
work goes on.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

import scenarios
import util
from scenarios import EXPLICIT, Calls
from util import fails

MIB = 1 << 20
SIZE = 48 * MIB


@pytest.fixture
def small_disk(tmp_path):
    """An ext4 of SIZE bytes on a loop device."""
    image, top = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as f:
        f.truncate(SIZE)
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is missing: install e2fsprogs")
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, timeout=util.LIMIT)
    top.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, top], capture_output=True, text=True, timeout=util.LIMIT)
    if done.returncode:
        pytest.skip(f"loop devices are not permitted here: {done.stderr.strip()}")
    yield top
    util.wait_for(lambda: subprocess.run(["umount", top], capture_output=True, timeout=util.LIMIT).returncode == 0, 10)


def free(disk):
    st = os.statvfs(disk)
    return st.f_bavail * st.f_frsize


def fill_to_the_last_block(disk):
    """Not one directory fits any more, also after the file system has given back what it had reserved."""
    with open(disk / "ballast", "wb") as f:
        for size in MIB, 4096:
            with contextlib.suppress(OSError):
                while True:
                    os.write(f.fileno(), bytes(size))
                    os.fsync(f.fileno())
    made = -1
    while made:
        os.sync()
        made = 0
        with fails(errno.ENOSPC):
            while True:
                os.mkdir(disk / f"{time.monotonic_ns()}")
                made += 1


def files(seed, mib=4):
    """A step of about so many MiB that do not compress, in two large leaves, and small ones."""
    made = {f"large{n}.npy": scenarios.npy(scenarios.noise(mib * MIB // 8, 10 * seed + n)) for n in range(2)}
    made |= {f"small/{n}.npy": scenarios.npy(scenarios.noise(1000, 1000 * seed + n)) for n in range(5)}
    return made | {"step.json": b"%d\n" % seed}


def commit(m, step, mib=4):
    calls = Calls(m.top)
    calls.write(str(step), files(step, mib))
    calls.fsync(str(step))


def fill(m, disk, steps):
    """Commit steps until the disk is full; the number of the one that failed."""
    for step in range(len(steps) + 1, 100):
        try:
            commit(m, step)
        except OSError as e:
            assert e.errno == errno.ENOSPC, repr(e)
            return step
        steps[str(step)] = scenarios.frozen(files(step))
    raise AssertionError(f"the disk is never full: {free(disk)} bytes are free")


def check(m, steps):
    allowed = {name: [holds] for name, holds in steps.items()}
    scenarios.compare(scenarios.on_disk(m.source), allowed, "on disk")
    scenarios.check_mount(m, allowed)
    util.ckptfs("verify", m.source)


def give_back(m, root, names):
    """Delete steps, and at once all that this leaves."""
    for name in names:
        Calls(m.top).remove_tree(name)
    util.ckptfs("gc", root, "--trash-keep=0")


def test_full(small_disk, tmp_path):
    root, steps = small_disk / "root", {}
    root.mkdir()
    util.ckptfs("init", root)
    with scenarios.Mount(root, EXPLICIT, folder=tmp_path / "mount") as m:
        assert m.alive, m.said()
        failed = fill(m, small_disk, steps)
        assert len(steps) >= 4 and free(small_disk) < 6 * MIB
        check(m, steps)
        # What was staged can go.
        Calls(m.top).remove_tree(str(failed))
        check(m, steps)
        for _ in range(2):  # full, emptied, filled again
            gone = sorted(steps, key=int)[:2]
            give_back(m, root, gone)
            for name in gone:
                del steps[name]
            check(m, steps)
            step = max(map(int, steps)) + 100
            commit(m, step)
            steps[str(step)] = scenarios.frozen(files(step))
            check(m, steps)
            with contextlib.suppress(OSError):  # whatever is left
                Calls(m.top).put("nothing", b"")
            for extra in range(step + 1, step + 20):
                try:
                    commit(m, extra)
                except OSError as e:
                    assert e.errno == errno.ENOSPC, repr(e)
                    break
                steps[str(extra)] = scenarios.frozen(files(extra))
            check(m, steps)
            Calls(m.top, again=True).remove_tree(str(extra))
        assert m.end() == 0, m.said()
    with scenarios.Mount(root, EXPLICIT, folder=tmp_path / "mount") as m:
        assert m.alive, m.said()
        check(m, steps)


def test_full_at_the_commit(small_disk, tmp_path):
    """The staged files fit, and what the commit makes of them does not: ENOSPC, and the same commit succeeds when there
    is room.
    """
    root = small_disk / "root"
    root.mkdir()
    util.ckptfs("init", root)
    with scenarios.Mount(root, EXPLICIT, folder=tmp_path / "mount") as m:
        assert m.alive, m.said()
        commit(m, 1)
        steps = {"1": scenarios.frozen(files(1))}
        calls = Calls(m.top)
        calls.write("2", files(2))
        ballast = small_disk / "ballast"
        with open(ballast, "wb") as f, pytest.raises(OSError) as raised:
            while True:
                f.write(bytes(MIB))
                f.flush()
        assert raised.value.errno == errno.ENOSPC
        try:
            calls.fsync("2")
        except OSError as e:
            assert e.errno == errno.ENOSPC, repr(e)
            assert scenarios.state(m / "2") == "staged"
            assert scenarios.error(m / "2")
        else:
            steps["2"] = scenarios.frozen(files(2))  # it may have all it needs
        check(m, steps)
        ballast.unlink()
        calls.fsync("2")
        steps["2"] = scenarios.frozen(files(2))
        check(m, steps)
        assert m.end() == 0, m.said()


def test_deletion_on_a_full_disk(small_disk, tmp_path):
    """rm -r of a step works where not one byte is left; that is how room is made."""
    root, steps = small_disk / "root", {}
    root.mkdir()
    util.ckptfs("init", root)
    with scenarios.Mount(root, EXPLICIT, folder=tmp_path / "mount") as m:
        assert m.alive, m.said()
        for step in 1, 2, 3:
            commit(m, step)
            steps[str(step)] = scenarios.frozen(files(step))
        time.sleep(1)  # what the daemon tidies up gives room back
        check(m, steps)
        fill_to_the_last_block(small_disk)
        give_back(m, root, ["1"])
        del steps["1"]
        check(m, steps)
        util.wait_for(lambda: free(small_disk) > 3 * MIB, 20)
        commit(m, 4, mib=1)
        steps["4"] = scenarios.frozen(files(4, mib=1))
        check(m, steps)
        assert m.end() == 0, m.said()


def test_room_of_staged_files(small_disk, tmp_path):
    """What was staged takes no room any more when it is committed; the leaves are nothing but zeros when they are
    compressed.
    """
    root, steps = small_disk / "root", {}
    root.mkdir()
    util.ckptfs("init", root)
    with scenarios.Mount(root, EXPLICIT, folder=tmp_path / "mount") as m:
        assert m.alive, m.said()
        before = free(small_disk)
        for step in range(1, 9):
            made = {"zeros.npy": scenarios.npy(np.full(10 * MIB // 8, step))}
            calls = Calls(m.top)
            calls.write(str(step), made)
            calls.fsync(str(step))
            steps[str(step)] = scenarios.frozen(made)
            util.wait_for(lambda: before - free(small_disk) < 4 * MIB, 10)
        check(m, steps)
        assert m.end() == 0, m.said()


@pytest.mark.parametrize("passthrough", [True, False])
def test_does_not_settle(small_disk, tmp_path, passthrough):
    """A step whose writer has met a full disk is not committed by itself, and retention takes nothing for it."""
    root = small_disk / "root"
    root.mkdir()
    util.ckptfs("init", root)
    util.ckptfs("config", root, "keep_last=1")
    env = {} if passthrough else {"CKPTFS_DISK_TRACE": tmp_path / "trace"}  # then the kernel does not write by itself
    (tmp_path / "large.bin").write_bytes(scenarios.noise(SIZE // 4, 1).tobytes())
    with scenarios.Mount(root, "settle=0.5", folder=tmp_path / "mount", env=env) as m:
        commit(m, 1)
        os.mkdir(m.top / "2")
        done = subprocess.run(["cp", tmp_path / "large.bin", m.top / "2"], capture_output=True, timeout=util.LIMIT)
        assert done.returncode == 1 and b"No space left" in done.stderr
        time.sleep(2)
        assert sorted(n for n in os.listdir(root / ".ckptstore/steps") if n[0].isdigit()) == ["1.json"]
        assert b"No space left" in os.getxattr(m.top / "2", "user.ckpt.error")
        Calls(m.top).remove_tree("2")
        subprocess.run(["cp", "-r", util.DATA / "demo/300", m.top / "2"], check=True, timeout=util.LIMIT)
        util.wait_for(lambda: os.path.exists(root / ".ckptstore/steps/2.json"), 20)  # another step of that name
