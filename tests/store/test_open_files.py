"""Who has a file open reads on: after its step was committed, replaced or removed, and what it held was collected."""

import errno
import mmap
import os
import shutil
import time

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, commit
from util import wait_for

FILES = {
    "small": b"small",
    "value.json": b"1.5\n",
    "empty": b"",
    "packed.npy": None,
    "let_go.npy": None,
    "noise": None,
    "text": b"a line\n" * 100_000,
}


@pytest.fixture(params=["auto", "none"])
def step(mount, root, request):
    """A committed step of every kind of file, with `want`: their bytes."""
    util.ckptfs("config", root, f"codec={request.param}")
    m = mount(root, EXPLICIT)
    step = m / "7"
    step.mkdir()
    make(step)
    commit(step)
    return step


def make(step):
    for name, content in FILES.items():
        if content is not None:
            (step / name).write_bytes(content)
    np.save(step / "packed.npy", np.arange(100))
    np.save(step / "let_go.npy", trees.floats(500_000))
    (step / "noise").write_bytes(trees.noise(300_000))


def open_all(step, how=os.O_RDONLY):
    """Descriptors by name with what they must read; nothing is read by them yet, and the kernel knows no page."""
    opened = {}
    for name in FILES:
        want = (step / name).read_bytes()
        fd = os.open(step / name, how)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        opened[name] = fd, want
    return opened


def check(opened):
    for name, (fd, want) in opened.items():
        assert os.fstat(fd).st_size == len(want), name
        assert b"".join(os.pread(fd, 100_000, off) for off in range(0, len(want) + 1, 100_000)) == want, name
        if want:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
                assert pages[:] == want, name
        os.close(fd)


def collect(root):
    """All that no step needs, at once and for good, as time does it: staged steps that have ended too."""
    wait_for(lambda: not [n for n in os.listdir(root / ".ckptstore/trash") if n.startswith("staging-")])
    util.ckptfs("gc", root, "--trash-keep=0")
    util.ckptfs("gc", root, "--trash-keep=0")
    assert not os.listdir(root / ".ckptstore/trash/objects")


def objects(root):
    return sum(len(files) for _, _, files in os.walk(root / ".ckptstore/objects"))


def test_staged_and_removed(step, root):
    """Files of a copy of a step, which stand for stored content, and files of a new step."""
    (step / "more").write_text("a change")
    new = step.parent / "8"
    new.mkdir()
    make(new)
    time.sleep(0.5)  # bytes that are stored are let go
    opened = [open_all(step), open_all(new)]
    shutil.rmtree(step)
    shutil.rmtree(new)
    collect(root)
    assert objects(root) == 0
    for files in opened:
        check(files)


def test_staged_and_committed(step, root):
    """The committed step has other bytes, and the next one too."""
    for k in range(2):
        (step / "more").write_text(f"{k}")
        opened = open_all(step)
        for name in FILES:
            (step / f"new-{name}").write_text(f"other {k}")
            os.rename(step / f"new-{name}", step / name)
        commit(step)
        collect(root)
        check(opened)
        os.unlink(step / "more")
        make(step)
        commit(step)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_committed_and_removed(step, root, elsewhere):
    """In this mount, or by another program."""
    opened = open_all(step)
    if elsewhere:
        os.rename(root / ".ckptstore/steps/7.json", root / ".ckptstore/trash/steps/7.json.1")
        wait_for(lambda: not step.exists())
    else:
        shutil.rmtree(step)
    collect(root)
    assert objects(root) == 0
    check(opened)


def test_directories(step, root):
    """An open directory whose step goes gives all of what was there, or ESTALE; never a part."""
    (step / "d").mkdir()
    for k in range(300):
        (step / f"d/{k}").write_text("x")
    folders = [os.open(step / "d", os.O_RDONLY)]
    commit(step)
    folders.append(os.open(step / "d", os.O_RDONLY))
    os.rename(root / ".ckptstore/steps/7.json", root / ".ckptstore/trash/steps/7.json.1")
    wait_for(lambda: not step.exists())
    collect(root)
    for fd in folders:
        try:
            assert len(os.listdir(fd)) == 300
        except OSError as e:
            assert e.errno == errno.ESTALE
        os.close(fd)


def test_content_of_another_copy(step):
    """A file that is emptied and made a copy of another one through the same descriptor has the other one's bytes."""
    (step / "more").write_text("a change")
    fd, other = os.open(step / "let_go.npy", os.O_RDWR), os.open(step / "noise", os.O_RDONLY)
    os.pread(fd, 100, 0)
    os.ftruncate(fd, 0)
    assert os.copy_file_range(other, fd, 1 << 20, 0, 0) == 300_000
    assert os.pread(fd, 1 << 20, 0) == trees.noise(300_000)
    os.ftruncate(fd, 0)
    third = os.open(step / "text", os.O_RDONLY)
    assert os.copy_file_range(third, fd, 1 << 20, 0, 0) == len(FILES["text"])
    assert os.pread(fd, 1 << 20, 0) == FILES["text"]
    for f in fd, other, third:
        os.close(f)
    commit(step)
    assert (step / "let_go.npy").read_bytes() == FILES["text"]


@pytest.mark.parametrize("prefix", [(), ("env", "CKPTFS_DISK_FAIL=1000000000000:EIO")], ids=["kernel", "daemon"])
def test_content_by_another_descriptor(mount, root, prefix):
    """What is copied into a file is what all of its descriptors read; with the prefix the kernel reads nothing of it by
    itself.
    """
    m = mount(root, EXPLICIT, prefix=prefix)
    first, second = trees.noise(250_000), trees.floats(70_000).tobytes()
    (m / "1").mkdir()
    (m / "1/first").write_bytes(first)
    (m / "1/second").write_bytes(second)
    commit(m / "1")
    (m / "7").mkdir()

    def copy(name, to):
        source = os.open(m / "1" / name, os.O_RDONLY)
        assert os.copy_file_range(source, to, 1 << 20, 0, 0) == os.fstat(source).st_size
        os.close(source)

    a = os.open(m / "7/f", os.O_RDWR | os.O_CREAT)
    copy("first", a)
    assert os.pread(a, 1 << 20, 0) == first
    b = os.open(m / "7/f", os.O_RDWR | os.O_TRUNC)
    copy("second", b)
    assert os.pread(a, 1 << 20, 0) == os.pread(b, 1 << 20, 0) == second
    os.close(a)
    os.close(b)
    commit(m / "7")
    assert (m / "7/f").read_bytes() == second
