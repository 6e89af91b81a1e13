"""One user cannot stop another: shares of descriptors, the order of background work, and what is told when descriptors
are short.
"""

import errno
import os
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import trees
import util

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")


def limited(descriptors):
    return "prlimit", f"--nofile={descriptors}:{descriptors}"


def reachable(path):
    """Ordinary users get to a path."""
    for folder in Path(path).parents:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)


@pytest.fixture
def shared(mount, root):
    """shared(descriptors): a mount for everybody, in which anybody can make steps."""

    def make(descriptors):
        root.chmod(0o1777)
        m = mount(root, "allow_other", trees.EXPLICIT, prefix=limited(descriptors))
        reachable(m.top / "x")
        return m

    return make


def as_nobody(script, limit=60):
    """Errors of a script that an ordinary user runs."""
    return subprocess.run(
        [*AS_NOBODY, "sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit
    ).stderr


def descriptors(m):
    return len(os.listdir(f"/proc/{m.daemon.pid}/fd"))


def open_until(path, error, most=1000):
    """Descriptors of new files, as many as can be had."""
    fds = []
    with pytest.raises(OSError) as e:
        for i in range(most):
            fds.append(os.open(f"{path}{i}", os.O_CREAT | os.O_RDWR))
    assert e.value.errno == error
    return fds


@as_root
def test_steps(shared):
    """A user has a share of the staged steps; who is beyond it disturbs nobody, and what has ended does not count."""
    m = shared(640)
    said = as_nobody(f"cd {m.top}; for i in $(seq 30); do mkdir $i; done")
    made = len(trees.steps(m))
    assert 0 < made < 20 and said.count("Disk quota exceeded") == 30 - made
    assert re.search(rf"user {NOBODY} has {made} staged steps", m.said())
    (m.top / "100").mkdir()
    assert as_nobody(f"rmdir {m.top}/1 && mkdir {m.top}/31") == ""
    assert "quota" in as_nobody(f"mkdir {m.top}/32")
    for i in range(2, made + 1):
        assert as_nobody(f"echo x > {m.top}/{i}/file && sync {m.top}/{i}") == ""
    assert as_nobody(f"mkdir {m.top}/32") == ""


@as_root
def test_open_files(shared):
    m = shared(640)
    assert as_nobody(f"mkdir {m.top}/1") == ""
    script = (
        "import os, time\nfds = []\ntry:\n"
        f"  while True: fds.append(os.open(f'{m.top}/1/{{len(fds)}}', os.O_CREAT | os.O_RDWR))\n"
        "except OSError as e: print(e.errno, len(fds), flush=True)\nos.read(0, 1)"
    )
    user = subprocess.Popen(
        [*AS_NOBODY, "/usr/bin/python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        number, count = map(int, user.stdout.readline().split())
        assert number == errno.EMFILE and 0 < count < 64
        assert f"user {NOBODY} has {count} files" in m.said()
        assert "Too many open files" in as_nobody(f"ls {m.top}/1")
        (m.top / "2").mkdir()
        (m.top / "2/file").write_text("x")
        os.listdir(m.top / "1")
        trees.commit(m.top / "2")
    finally:
        user.communicate("x", timeout=util.LIMIT)
    assert as_nobody(f"ls {m.top}/1") == ""


def test_ended_steps_hold_nothing(shared):
    """The kernel may remember the names of steps that were committed for long; that costs no descriptors."""
    m = shared(640)
    for i in range(40):
        (m.top / str(i)).mkdir()
        (m.top / f"{i}/file").write_text("x")
        trees.commit(m.top / str(i))
        if i == 5:
            before = descriptors(m)
    assert descriptors(m) <= before + 10


def test_open_files_of_ended_steps(shared):
    """What is open is read on."""
    m = shared(640)
    (m.top / "1").mkdir()
    data = trees.noise(200_000)
    (m.top / "1/file").write_bytes(data)
    (m.top / "1/zeros").write_bytes(bytes(200_000))
    with open(m.top / "1/file", "rb") as f, open(m.top / "1/zeros", "rb") as g:
        trees.commit(m.top / "1")
        assert os.pread(f.fileno(), len(data), 0) == data and os.pread(g.fileno(), 300_000, 0) == bytes(200_000)


def look(top):
    """All that is below, and what was said of the rest."""
    found, errors = {}, []
    for folder, folders, files in os.walk(top, onerror=errors.append):
        for name in files:
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as f:
                    found[os.path.relpath(path, top)] = f.read()
            except OSError as e:
                errors.append(e)
    return found, errors


def test_short_of_descriptors(mount, root, tmp_path):
    """EMFILE at opening, at worst; never something that is not there, and nothing that is remembered."""
    for name in "demo", "orbax/manager_steps", "orbax/composite":
        shutil.copytree(util.DATA / name, root / name.replace("/", "_"))
    want, errors = look(mount(root).top)
    assert len(want) > 30 and not errors
    # No place for anything: 40 is about what the daemon needs for itself.
    for n, left in enumerate([0, 1, 2, 3, 5, 8, 20]):
        m = mount(root, trees.EXPLICIT, "refresh=0", prefix=limited(64))
        os.mkdir(m.top / "1")
        pid = m.daemon.pid
        fds = []
        while 64 - descriptors(m) > left and len(fds) < 60:
            try:
                fds.append(os.open(m.top / f"1/{len(fds)}", os.O_CREAT | os.O_RDWR))
            except OSError as e:
                assert e.errno in (errno.EMFILE, errno.ENFILE)
                break
        highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(highest + 1 + left, 64), 64))
        got, errors = look(m.top)
        assert {e.errno for e in errors} <= {errno.EMFILE, errno.ENFILE}, errors
        assert all(want[path] == data for path, data in got.items() if not path.startswith("1/")), left
        if not errors:
            assert want.keys() == {path for path in got if not path.startswith("1/")}, left
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        for fd in fds:
            os.close(fd)
        shutil.rmtree(m.top / "1")
        again, errors = util.wait_for(lambda: (r := look(m.top))[0].keys() == want.keys() and r)
        assert again == want and not errors
        m.stop()


@as_root
def test_close(shared):
    """A close waits for what its own step has under way at most, and not for ever."""
    m = shared(1024)
    large = "for i in 1 2 3 4; do truncate -s 1T big$i; done"
    assert as_nobody(f"mkdir {m.top}/100 && cd {m.top}/100 && {large}") == ""
    (m.top / "2").mkdir()
    for i in range(4):
        util.run("sh", "-c", f"head -c 80000 /dev/urandom >{m.top}/2/f{i}", limit=30)
    trees.commit(m.top / "2")
    assert trees.is_committed(m.top / "2")


@as_root
def test_commits_that_last(mount, root):
    """Twenty commits that last, and as many changes that wait for them, leave threads for others' calls."""
    root.chmod(0o1777)
    m = mount(root, "allow_other", trees.EXPLICIT, prefix=("env", "CKPTFS_DISK_SLOW=link:2000"))
    reachable(m.top / "x")
    assert as_nobody(f"cd {m.top}; for i in $(seq 20); do mkdir $i; echo x >$i/file; done") == ""
    (m.top / "100").mkdir()
    users = [
        subprocess.Popen([*AS_NOBODY, "sh", "-c", f"sync {m.top}/{i}"], stdin=subprocess.DEVNULL) for i in range(1, 21)
    ]
    try:
        time.sleep(1)
        users += [
            subprocess.Popen(
                [*AS_NOBODY, "sh", "-c", f"echo y >{m.top}/{i}/other"],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for i in range(1, 21)
        ]
        time.sleep(1)
        for i in range(20):
            (m.top / f"100/{i}").write_text("x")
            os.listdir(m.top)
        assert all(user.poll() is None for user in users)  # they have not ended yet, and nobody waited for them
    finally:
        for user in users:
            user.wait(timeout=util.LIMIT)
    assert all(user.returncode == 0 for user in users[:20])
    assert all((root / f".ckptstore/steps/{i}.json").exists() for i in range(1, 21))
