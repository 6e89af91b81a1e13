"""Staged files that stand for stored content, and what their users see while they come to have bytes of their own, or
lose them.
"""

import errno
import io
import mmap
import multiprocessing
import os
import shutil
import threading
import time

import numpy as np
import pytest

import trees
import util
from trees import commit
from util import fails

REF = "user.ckptfs.ref"


def array(count, start=0):
    """An .npy file that compresses: its object is made at once, and its own bytes are let go."""
    f = io.BytesIO()
    np.save(f, np.arange(start, start + count, dtype=np.float32))
    return f.getvalue()


def staged_files(root, name):
    return list(root.glob(f".ckptstore/staging/*/tree/{name}"))


def wait_let_go(root, name):
    util.wait_for(lambda: any(REF in os.listxattr(path) for path in staged_files(root, name)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_mapping_of_a_copy(writable, when):
    """A store through a mapping changes no time that the file system can be asked for: what was copied there does not
    count as unchanged.
    """
    data = np.random.default_rng(1).bytes(1 << 20)
    (writable / "1").mkdir()
    (writable / "1/blob").write_bytes(data)
    commit(writable / "1")
    (writable / "2").mkdir()
    with open(writable / "1/blob", "rb") as source, open(writable / "2/blob", "w+b") as f:
        f.truncate(len(data))
        view = mmap.mmap(f.fileno(), len(data)) if when == "before" else None
        for at in range(0, len(data), 4096) if view else ():
            view[at] = 1
        done = 0
        while done < len(data):
            done += os.copy_file_range(source.fileno(), f.fileno(), len(data) - done, done, done)
        view = view or mmap.mmap(f.fileno(), len(data))
        assert view[:] == data
        view[:5] = view[-4096:-4091] = b"AFTER"
        want = view[:]
        view.close()
    assert (writable / "2/blob").read_bytes() == want
    time.sleep(0.5)  # its object is made
    commit(writable / "2")
    assert (writable / "2/blob").read_bytes() == want


def read_on(path, old, begun, seconds, wrong):
    """Until the time is over: each read gives a beginning of what was, which may have been cut."""
    fd = os.open(path, os.O_RDONLY)
    begun.set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not old.startswith(os.pread(fd, len(old) + 100, 0)):
            # Once is the kernel: while it cuts a folio off, it zeroes what others are copying, on a plain ext4 too.
            got = os.pread(fd, len(old) + 100, 0)
            if not old.startswith(got):
                wrong.value = next(n for n, byte in enumerate(got) if byte != old[n]) + 1
                return
    os.close(fd)


@pytest.mark.parametrize("how", ["path", "file", "open"])
def test_cut_while_read(writable, root, how):
    """Who reads a file while it is cut sees what was there or the end, and no zeros."""
    if util.SANITIZED == "thread":
        pytest.skip(
            "everything takes ten times as long there, and for so long "
            "the kernel itself may show a page of zeros behind the new end"
        )
    old, rounds = array(400_000), 12
    (writable / "7").mkdir()
    for n in range(rounds):
        (writable / f"7/{n}.npy").write_bytes(old)
    for n in range(rounds):
        wait_let_go(root, f"{n}.npy")
        path, size = writable / f"7/{n}.npy", 0 if how == "open" else 5000
        wrong, begun = multiprocessing.Value("q", 0), multiprocessing.Event()
        readers = [multiprocessing.Process(target=read_on, args=(path, old, begun, 0.2, wrong)) for _ in range(2)]
        for r in readers:
            r.start()
        assert begun.wait(util.LIMIT)
        time.sleep(0.001 * n)
        if how == "path":
            os.truncate(path, size)
        else:
            with open(path, "wb" if how == "open" else "r+b") as f:
                f.truncate(size)
        assert path.read_bytes() == old[:size]
        for r in readers:
            r.join()
        assert not wrong.value, f"zeros that were never there, from byte {wrong.value - 1} on"


def test_sizes_stay(mount, root):
    """While a file is given bytes of its own it is as long as it was."""
    m = mount(root, trees.EXPLICIT, prefix=("env", "CKPTFS_DISK_SLOW=truncate:100"))
    old = array(100_000)
    (m / "7").mkdir()
    (m / "7/w.npy").write_bytes(old)
    wait_let_go(root, "w.npy")
    seen, over = set(), threading.Event()

    def watch():
        while not over.is_set():
            seen.add(os.stat(m / "7/w.npy").st_size)
            with open(m / "7/w.npy", "rb") as f:
                seen.add(len(f.read()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        os.close(os.open(m / "7/w.npy", os.O_RDWR))
    finally:
        over.set()
        watcher.join()
    assert seen == {len(old)}
    assert not any(REF in os.listxattr(path) for path in staged_files(root, "w.npy"))


def test_filled_again_while_open(writable):
    """A reader's file is emptied, and made to share other content: it reads that."""
    one, two = np.random.default_rng(1).bytes(100_000), np.random.default_rng(2).bytes(100_000)
    (writable / "1").mkdir()
    (writable / "1/one").write_bytes(one)
    (writable / "1/two").write_bytes(two)
    commit(writable / "1")
    (writable / "2").mkdir()
    os.link(writable / "1/one", writable / "2/f")
    fd = os.open(writable / "2/f", os.O_RDONLY)
    try:
        assert os.pread(fd, 200_000, 0) == one
        with open(writable / "1/two", "rb") as source, open(writable / "2/f", "wb") as f:
            assert os.copy_file_range(source.fileno(), f.fileno(), len(two), 0, 0) == len(two)
        assert os.pread(fd, 200_000, 0) == two
    finally:
        os.close(fd)
    commit(writable / "2")
    assert (writable / "2/f").read_bytes() == two


@pytest.mark.parametrize("size", [0, 10, 100_000, 500_000])
def test_length_on_disk_does_not_count(mount, root, size):
    """Whatever a reference file has on disk: of an earlier mount that was killed, or by hand."""
    data = np.random.default_rng(1).bytes(100_000)
    m = mount(root, trees.EXPLICIT)
    (m / "1").mkdir()
    (m / "1/f").write_bytes(data)
    commit(m / "1")
    (m / "2").mkdir()
    for name in "read", "cut", "changed":
        os.link(m / "1/f", m / f"2/{name}")
    m.stop()
    for name in "read", "cut", "changed":
        with open(staged_files(root, name)[0], "r+b") as f:
            f.write(b"junk" * 10)
            f.truncate(size)
    m = mount(root, trees.EXPLICIT)
    assert os.stat(m / "2/read").st_size == len(data) and (m / "2/read").read_bytes() == data
    os.truncate(m / "2/cut", 99_999)
    with open(m / "2/changed", "r+b") as f:
        f.seek(50)
        f.write(b"changed")
    commit(m / "2")
    assert (m / "2/read").read_bytes() == data
    assert (m / "2/cut").read_bytes() == data[:-1]
    assert (m / "2/changed").read_bytes() == data[:50] + b"changed" + data[57:]


def test_damaged_reference(mount, root):
    """It is not taken for a file of zeros. Who writes it anew, or removes it, can go on."""
    m = mount(root, trees.EXPLICIT)
    (m / "1").mkdir()
    (m / "1/f").write_bytes(bytes(range(256)) * 1000)
    commit(m / "1")
    (m / "2").mkdir()
    for name in "again", "gone", "kept":
        os.link(m / "1/f", m / f"2/{name}")
    m.stop()
    for name in "again", "gone", "kept":
        os.setxattr(staged_files(root, name)[0], REF, b"ref1 nonsense")
    m = mount(root, trees.EXPLICIT)
    with fails(errno.EUCLEAN):
        (m / "2/kept").read_bytes()
    with fails(errno.EUCLEAN):
        open(m / "2/kept", "r+b")
    with fails(errno.EUCLEAN):
        commit(m / "2")
    (m / "2/again").write_bytes(b"new")
    (m / "2/gone").unlink()
    os.truncate(m / "2/kept", 0)
    commit(m / "2")
    assert (m / "2/again").read_bytes() == b"new" and (m / "2/kept").read_bytes() == b""


def test_a_link_is_whole_or_not_there(mount, root):
    """It has its name when it has its attributes too; what is half made is no file of the step."""
    m = mount(root, trees.EXPLICIT)
    (m / "1").mkdir()
    (m / "1/f").write_bytes(bytes(range(256)) * 1000)
    os.chmod(m / "1/f", 0o604)
    os.setxattr(m / "1/f", "user.mine", b"kept")
    commit(m / "1")
    (m / "2").mkdir()
    os.link(m / "1/f", m / "2/f")
    with fails(errno.EEXIST):
        os.link(m / "1/f", m / "2/f")
    assert os.listdir(m / "2") == ["f"] and not list(root.glob(".ckptstore/staging/*/link-*"))
    assert os.stat(m / "2/f").st_mode & 0o7777 == 0o604 and os.getxattr(m / "2/f", "user.mine") == b"kept"
    assert os.stat(m / "2/f").st_mtime_ns == os.stat(m / "1/f").st_mtime_ns


def test_append_while_a_link_is_made(mount, root):
    """A link that others see is all there: what they write to it at once stays. The directory is reached in two ways,
    so that the kernel keeps nobody out of it."""
    old, new = bytes(range(256)) * 1000, b"appended"
    m = mount(root, trees.EXPLICIT)
    for name in "1", "2":
        (m / name).mkdir()
        (m / name / "f").write_bytes(old + name.encode())
        commit(m / name)
    m.stop()
    m = mount(root, trees.EXPLICIT, prefix=("env", "CKPTFS_DISK_SLOW=rename:1000"))
    committed = os.open(m / "2", os.O_RDONLY | os.O_DIRECTORY)
    (m / "2/other").write_bytes(b"makes a staged copy")
    maker = threading.Thread(target=os.link, args=(m / "1/f", "g"), kwargs={"dst_dir_fd": committed})
    maker.start()
    util.wait_for(lambda: (m / "2/g").exists(), every=0.01)
    with open(m / "2/g", "ab") as f:
        f.write(new)
    assert maker.is_alive()
    maker.join()
    os.close(committed)
    assert (m / "2/g").read_bytes() == old + b"1" + new


def test_mode_after_a_commit_that_was_killed(mount, root, tmp_path):
    """A commit is killed before a file has become an object, at each call of it; then the file gets another mode, and
    that is committed.
    """
    data, trace = np.random.default_rng(0).bytes(100_000), tmp_path / "trace"

    def prepare(*env):
        m = mount(root, trees.EXPLICIT, "codec=none", prefix=("env", *env))
        if not (m / "7").exists():
            (m / "7").mkdir()
            (m / "7/w").write_bytes(data)
        (m / "7/w").chmod(0o644)
        return m

    m = prepare(f"CKPTFS_DISK_TRACE={trace}")
    begin = len(trace.read_bytes().splitlines())
    commit(m / "7")
    m.stop()
    marked = [
        n for n, line in enumerate(trace.read_bytes().splitlines()) if b"user.ckptfs.alias" in line and n >= begin
    ]
    assert marked, "nothing was marked"
    for turn in range(marked[0] + 1, marked[0] + 6):
        shutil.rmtree(root)
        root.mkdir()
        util.ckptfs("init", root)
        m = prepare(f"CKPTFS_DISK_FAIL={turn}:KILL")
        with fails(errno.ENOTCONN, errno.ECONNABORTED):
            commit(m / "7")
        m.crash()
        m = mount(root, trees.EXPLICIT)
        (m / "7/w").chmod(0o600)
        assert (m / "7/w").stat().st_mode & 0o777 == 0o600
        commit(m / "7")
        assert (m / "7/w").stat().st_mode & 0o777 == 0o600 and (m / "7/w").read_bytes() == data, f"call {turn}"
        m.stop()
