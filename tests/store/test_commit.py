"""What a commit refuses, what a change of a committed step is, and what steps share."""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, MIB, attribute, commit, is_committed, run, state, wait_committed
from util import ORBAX, fails, wait_for

SEEN = 15  # seconds within which another mount must see a change, at refresh=1


@pytest.fixture
def step(writable):
    """A staged step 7 with one array."""
    (writable / "7").mkdir()
    np.save(writable / "7/w.npy", np.arange(6.0).reshape(2, 3))
    return writable / "7"


def refused(step, root, *errnos):
    """A commit that fails, tells why, and changes nothing."""
    before, files = trees.snapshot(root), trees.listing(step)
    with fails(*errnos):
        commit(step)
    assert attribute(step, "error"), "no reason"
    assert state(step) == "staged" and trees.snapshot(root) == before
    trees.compare(trees.listing(step), files)
    done = run("sync", step, check=None)
    assert done.returncode and any(os.strerror(n).encode() in done.stderr for n in errnos)
    return attribute(step, "error")


def accepted(step):
    commit(step)
    assert is_committed(step) and attribute(step, "error") is None


# --- refusals


def test_open_for_writing(step, root):
    with open(step / "open.bin", "wb") as f:
        f.write(b"half")
        f.flush()
        assert "open" in refused(step, root, errno.EBUSY)
    accepted(step)


def test_open_for_appending_in_another_process(step, root):
    """Without having written anything."""
    process = subprocess.Popen(
        ["bash", "-c", "exec 3>>w2.bin; echo opened; exec sleep 600"], cwd=step, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"opened\n"
        refused(step, root, errno.EBUSY)
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()
    accepted(step)


def test_open_for_reading_is_fine(step):
    with open(step / "w.npy", "rb") as f:
        accepted(step)
        assert np.load(f).shape == (2, 3)


def test_mapped_for_writing(step, root):
    """A mapping keeps the file open after its descriptor was closed."""
    with open(step / "m.bin", "w+b") as f:
        f.truncate(5000)
        view = mmap.mmap(f.fileno(), 5000)
    view[0] = 1
    view.flush()  # an overlay tells of the change only then
    refused(step, root, errno.EBUSY)
    view[1] = 2
    view.close()
    accepted(step)
    assert (step / "m.bin").read_bytes()[:3] == b"\1\2\0"


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
LIBC.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t


@contextlib.contextmanager
def mapping(path, size, write=True):
    """A file's bytes, mapped; its descriptor is closed, unlike that of Python's own mmap."""
    fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
    at = LIBC.mmap(None, size, mmap.PROT_READ | (mmap.PROT_WRITE if write else 0), mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    assert at not in (None, ctypes.c_void_p(-1).value)
    try:
        yield memoryview((ctypes.c_char * size).from_address(at)).cast("B")
    finally:
        LIBC.munmap(at, size)


@pytest.mark.parametrize("size", [5000, 4_000_000])
@pytest.mark.parametrize("compressible", [True, False])
@pytest.mark.parametrize("late", [0, 0.3])
def test_mapped_and_closed(writable, step, root, size, compressible, late):
    """What is written through a mapping after the last close belongs to the step, which is not committed while that can
    still be.
    """
    first = bytes(size) if compressible else trees.noise(size)
    (step / "m.bin").write_bytes(first)
    with mapping(step / "m.bin", size) as view:
        view[:1000] = bytes(range(100)) * 10
        time.sleep(late)
        view[:1000] = b"x" * 1000  # no page of it is new
        assert "m.bin" in refused(step, root, errno.EBUSY)
        view[2000:3000] = b"y" * 1000
    accepted(step)
    assert (step / "m.bin").read_bytes() == b"x" * 1000 + first[1000:2000] + b"y" * 1000 + first[3000:]
    trees.check_hashes(writable, "7")


def test_close_by_a_child(step):
    """A child that was forked while a file is written closes it when it becomes another program, or ends; the writer
    goes on.
    """
    data = np.zeros(20_000_000, np.uint8)
    ending = threading.Event()

    def fork():
        while not ending.is_set():
            subprocess.run(["true"], close_fds=False)

    forker = threading.Thread(target=fork)
    forker.start()
    try:
        for turn in range(1, 11):
            data[:] = turn
            fd = os.open(step / "a.bin", os.O_RDWR | os.O_CREAT)
            os.write(fd, data)
            os.close(fd)
            fd = os.open(step / "a.bin", os.O_RDWR)
            os.pwrite(fd, data, 0)  # of the same length: the file's size tells nothing
            os.close(fd)
            commit(step)
            assert (np.fromfile(step / "a.bin", np.uint8) == turn).all()
    finally:
        ending.set()
        forker.join()


def staged_file(root, name):
    return next((root / ".ckptstore/staging").glob(f"*/tree/{name}"))


def is_let_go(root, name):
    return staged_file(root, name).stat().st_blocks * 512 < 65536


def test_stored_bytes_are_let_go(step, root):
    """Once the content of a closed file is stored, the file in staging takes no room; nobody sees a difference."""
    a = np.arange(2_000_000) // 7
    np.save(step / "a.npy", a)
    os.utime(step / "a.npy", ns=(5, 123_456_789_012_345_678))
    wait_for(lambda: is_let_go(root, "a.npy"))
    assert (
        os.stat(step / "a.npy").st_mtime_ns == 123_456_789_012_345_678 and os.path.getsize(step / "a.npy") == 16_000_128
    )
    assert (np.load(step / "a.npy") == a).all() and np.load(step / "a.npy", mmap_mode="r")[-1] == a[-1]
    shutil.copyfile(step / "a.npy", step / "copy.npy")
    os.link(step / "a.npy", step / "link.npy")
    with open(step / "a.npy", "r+b") as f:  # it gets its bytes back, and keeps them
        f.seek(-8, os.SEEK_END)
        f.write(np.int64(-1).tobytes())
    with open(step / "short.npy", "wb") as f:
        f.write((step / "copy.npy").read_bytes()[:1_000_000])
    wait_for(lambda: is_let_go(root, "short.npy"))
    assert "short.npy" in refused(step, root, errno.EBADMSG)
    os.truncate(step / "short.npy", 500_000)
    os.rename(step / "short.npy", step / "short")
    accepted(step)
    changed = a.copy()
    changed[-1] = -1
    assert (
        (np.load(step / "a.npy") == changed).all()
        and (np.load(step / "link.npy") == changed).all()
        and (np.load(step / "copy.npy") == a).all()
    )
    assert (step / "short").read_bytes() == (step / "copy.npy").read_bytes()[:500_000]


@pytest.mark.parametrize("compressible", [True, False])
def test_a_reader_does_not_matter(step, compressible):
    """Who opened a file for reading while it was written, and keeps it open or mapped, does not keep it from being
    committed.
    """
    data = bytes(2_000_000) if compressible else trees.noise(2_000_000)
    with open(step / "a.bin", "wb") as f:
        f.write(data[:-1])
        f.flush()
        reader = open(step / "a.bin", "rb", buffering=0)
        with mapping(step / "a.bin", 1_000_000, write=False) as view:
            f.write(data[-1:])
            f.close()
            accepted(step)
            assert bytes(view[:100]) == data[:100]
    assert reader.read() == data and (step / "a.bin").read_bytes() == data
    reader.close()


def test_bytes_that_stay(step, root):
    """What its user has made durable, and what somebody reads, or has mapped."""
    a = np.arange(2_000_000) // 7
    for name in "synced", "read", "mapped", "free":
        with open(step / f"{name}.npy", "wb") as f:
            np.save(f, a)
            if name == "synced":
                f.flush()
                os.fsync(f.fileno())
            reader = open(step / "read.npy", "rb", buffering=0) if name == "read" else None
        if name == "read":
            kept = reader
        if name == "mapped":
            with mapping(step / "mapped.npy", 16_000_128, write=False) as view:
                np.save(step / "free.npy", a + 1)
                wait_for(lambda: is_let_go(root, "free.npy"))
                time.sleep(0.2)
                assert bytes(view[-8:]) == a[-1:].tobytes() and not any(
                    is_let_go(root, f"{name}.npy") for name in ("synced", "read", "mapped")
                )
    assert kept.seek(-8, os.SEEK_END) and kept.read() == a[-1:].tobytes()
    kept.close()
    accepted(step)
    assert all((np.load(step / f"{name}.npy") == a).all() for name in ("synced", "read", "mapped"))


def test_close_is_enough(writable):
    """A file that was closed counts as closed at once: the commit that follows never says EBUSY."""
    (writable / "7").mkdir()
    for n in range(200):
        (writable / f"7/f{n % 7}.bin").write_bytes(b"%d" % n)
        commit(writable / "7")
    assert (writable / "7/f3.bin").read_bytes() == b"199"


@pytest.mark.parametrize("length", [0, 5, 50, 128, 170, 175])
def test_short_array(step, root, length):
    data = (step / "w.npy").read_bytes()
    assert len(data) == 176
    (step / "below").mkdir()
    (step / "below/short.npy").write_bytes(data[:length])
    assert "short.npy" in refused(step, root, errno.EBADMSG)
    (step / "below/short.npy").write_bytes(data)
    accepted(step)


def test_long_array(step, root):
    with open(step / "w.npy", "ab") as f:
        f.write(b"!")
    assert "w.npy" in refused(step, root, errno.EBADMSG)
    os.truncate(step / "w.npy", 176)
    accepted(step)


def piece(step, name, a):
    np.save(step / name, np.asarray(a, np.int32))


def test_pieces(writable, root):
    """Slices that tile are one array, whatever their order, and so are equal repeats; what was no piece stays."""
    step = writable / "7"
    (step / "d").mkdir(parents=True)
    a = np.arange(60).reshape(6, 10)
    for rows in (slice(4, 6), slice(0, 1), slice(1, 4)):
        piece(step / "d", f"w@{rows.start}:{rows.stop},0:5.npy", a[rows, :5])
        piece(step / "d", f"w@{rows.start}:{rows.stop},5:10.npy", a[rows, 5:])
    piece(step, "v@0:3.npy", [1, 2, 3])
    piece(step, "v@3:5.npy", [4, 5])
    piece(step, "one@0:2.npy", [1, 2])
    piece(step, "repeat@0:2.npy", [1, 2])
    piece(step, "repeat@2:3.npy", [3])
    shutil.copy(step / "repeat@0:2.npy", step / "repeat@:2.npy")
    accepted(step)
    assert sorted(os.listdir(step)) == ["d", "one.npy", "repeat.npy", "v.npy"] and os.listdir(step / "d") == ["w.npy"]
    assert (np.load(step / "d/w.npy") == a).all() and np.load(step / "d/w.npy").dtype == np.int32
    assert np.load(step / "v.npy").tolist() == [1, 2, 3, 4, 5] and np.load(step / "one.npy").tolist() == [1, 2]
    assert np.load(step / "repeat.npy").tolist() == [1, 2, 3]
    assert (np.load(step / "d/w@1:4,5:10.npy") == a[1:4, 5:]).all()
    trees.verify(root)


def test_large_pieces(writable):
    """Of many megabytes, cut along the last axis so that their bytes interleave, and of a type that NumPy has no name
    for.
    """
    step = writable / "7"
    step.mkdir()
    a = trees.noise_array(3_000_000).reshape(1000, 3000)
    b = a.astype("<u2").view("V2")
    for n in range(0, 3000, 750):
        np.save(step / f"a@0:1000,{n}:{n + 750}.npy", a[:, n : n + 750])
        np.save(step / f"b@0:1000,{n}:{n + 750}.npy", b[:, n : n + 750])
    accepted(step)
    assert (np.load(step / "a.npy") == a).all() and np.load(step / "b.npy").tobytes() == b.tobytes()


@pytest.mark.parametrize("wrong", ["hole", "beginning", "overlap", "two types", "two shapes", "not its slice"])
def test_pieces_that_do_not_tile(step, root, wrong):
    piece(step, "p@0:2,0:3.npy", np.ones((2, 3)))
    second = {
        "hole": ("p@3:4,0:3.npy", np.ones((1, 3))),
        "beginning": ("q@1:3,0:3.npy", np.ones((2, 3))),
        "overlap": ("p@1:3,0:3.npy", np.zeros((2, 3))),
        "two types": ("p@2:3,0:3.npy", None),
        "two shapes": ("p@2:3.npy", np.ones(1)),
        "not its slice": ("p@2:3,0:3.npy", np.ones((2, 3))),
    }[wrong]
    if second[1] is None:
        np.save(step / second[0], np.ones((1, 3), np.float64))
    else:
        piece(step, *second)
    reason = (
        refused(step, root, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN)
        if wrong not in ("hole", "beginning", "overlap")
        else refused(step, root, errno.ENODATA)
    )
    assert re.search(rf"\b{second[0][0]}(@|\.npy|\b)", reason), reason
    os.unlink(step / second[0])
    accepted(step)
    assert (np.load(step / "p.npy") == np.ones((2, 3))).all()


def test_piece_beside_the_whole(step, root):
    """An array and a piece of it with other bytes cannot both be kept."""
    piece(step, "w@0:1,0:3.npy", [[9, 9, 9]])
    with fails(errno.ENODATA, errno.EEXIST):
        commit(step)
    os.unlink(step / "w@0:1,0:3.npy")
    accepted(step)


def test_first_reason_goes(step, root):
    """user.ckpt.error tells of the last commit."""
    (step / "a.npy").write_bytes(b"")
    first = refused(step, root, errno.EBADMSG)
    (step / "a.npy").unlink()
    (step / "b@5:6.npy").write_bytes((step / "w.npy").read_bytes())
    assert refused(step, root, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN) != first
    (step / "b@5:6.npy").unlink()
    accepted(step)


def test_refusal_by_rename(writable, root):
    """mv -T .new 7 fails with the error, and .new stays."""
    (writable / ".new").mkdir()
    (writable / ".new/short.npy").write_bytes(b"\x93NUMPY")
    with fails(errno.EBADMSG):
        os.rename(writable / ".new", writable / "7")
    assert os.listdir(writable / ".new") == ["short.npy"] and "short.npy" in attribute(writable / ".new", "error")
    assert not os.path.lexists(writable / "7") and trees.committed(root) == []
    done = run("mv", "-T", writable / ".new", writable / "7", check=None)
    assert done.returncode and b"Bad message" in done.stderr
    (writable / ".new/short.npy").unlink()
    run("mv", "-T", writable / ".new", writable / "7")
    assert is_committed(writable / "7")


def test_refusal_of_a_change(step, root, mount):
    """The committed step stays as it was."""
    accepted(step)
    before = trees.snapshot(root)
    (step / "short.npy").write_bytes(b"\x93NUMPY")
    refused(step, root, errno.EBADMSG)
    assert trees.snapshot(root) == before
    assert os.listdir(mount(root, "ro") / "7") == ["w.npy"]


def test_rename_onto_a_step(step, writable, root):
    accepted(step)
    before = trees.snapshot(root)
    (writable / ".new").mkdir()
    (writable / ".new/x").write_text("x")
    with fails(errno.EEXIST):
        os.rename(writable / ".new", step)
    assert run("mv", "-T", writable / ".new", step, check=None).returncode
    (writable / "8").mkdir()
    (writable / "8/x").write_text("8")
    for other in "staged", "committed":  # 8
        with fails(errno.EEXIST):
            os.rename(writable / "8", step)
        with fails(errno.EEXIST, errno.ENOTEMPTY):
            os.rename(writable / ".new", writable / "8")
        if other == "staged":
            assert trees.snapshot(root) == before
            commit(writable / "8")
    assert os.listdir(step) == ["w.npy"] and os.listdir(writable / ".new") == ["x"]
    assert trees.steps(writable) == [".new", "7", "8"]


def test_overwrite(mount, root):
    m = mount(root, EXPLICIT, "overwrite")
    other = mount(root, "ro", "refresh=1")
    for name, text in ("7", "old"), ("8", "eight"), (".new", "new"):
        (m / name).mkdir()
        (m / name / "x").write_text(text)
        (m / name / text).write_text("")
    commit(m / "7")
    commit(m / "8")
    wait_for(lambda: trees.steps(other) == ["7", "8"], SEEN)
    with open(m / "7/x") as f, open(other / "7/x") as g:
        run("mv", "-T", m / ".new", m / "7")
        assert (
            is_committed(m / "7") and sorted(os.listdir(m / "7")) == ["new", "x"] and (m / "7/x").read_text() == "new"
        )
        wait_for(lambda: (other / "7/x").read_text() == "new", SEEN)
        assert f.read() == "old" and g.read() == "old"
    os.rename(m / "8", m / "7")  # a committed one
    assert (
        trees.steps(m) == ["7"] and sorted(os.listdir(m / "7")) == ["eight", "x"] and (m / "7/x").read_text() == "eight"
    )
    assert trees.committed(root) == ["7"]
    wait_for(lambda: (other / "7/x").read_text() == "eight", SEEN)


def test_links_and_special_files(step, writable, root):
    for make in (
        lambda: os.symlink("w.npy", step / "link"),
        lambda: os.mkfifo(step / "fifo"),
        lambda: os.mknod(step / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    ):
        with fails(errno.EPERM):
            make()
    with socket.socket(socket.AF_UNIX) as s, fails(errno.EPERM):
        here = os.getcwd()
        os.chdir(step)  # the path of a socket must be short
        try:
            s.bind("socket")
        finally:
            os.chdir(here)
    with fails(errno.EPERM, errno.EROFS):
        os.symlink("7", writable / "link")
    os.mknod(step / "ordinary", stat.S_IFREG | 0o600)
    assert sorted(os.listdir(step)) == ["ordinary", "w.npy"]
    accepted(step)
    with fails(errno.EPERM):
        os.symlink("w.npy", step / "link")


def test_foreign_steps(mount, tmp_path):
    """Steps of other libraries in a native root are readable, and read-only; the store's own are beside them."""
    root = util.copy_tree(util.DATA / "demo", tmp_path / "root")
    before = trees.listing(root)
    util.ckptfs("init", root)
    m = mount(root, EXPLICIT)
    assert trees.steps(m) == ["100", "200", "300"]
    attempts = [
        lambda: open(m / "100/new", "wb"),
        lambda: open(m / "100/metrics.json", "r+b"),
        lambda: open(m / "100/metrics.json", "wb"),
        lambda: os.mkdir(m / "100/x"),
        lambda: os.unlink(m / "100/metrics.json"),
        lambda: os.rmdir(m / "100/state"),
        lambda: os.rename(m / "100", m / "400"),
        lambda: os.rename(m / "100/metrics.json", m / "100/y"),
        lambda: os.chmod(m / "100/metrics.json", 0o600),
        lambda: os.truncate(m / "100/metrics.json", 0),
        lambda: os.utime(m / "100/metrics.json", (1, 1)),
        lambda: os.setxattr(m / "100", "user.x", b"1"),
        lambda: os.link(m / "100/metrics.json", m / "100/z"),
        lambda: os.rmdir(m / "100"),
        lambda: os.rename(m / "100/metrics.json", m / "400/metrics.json"),
    ]
    (m / "400").mkdir()
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()
    with fails(errno.EROFS, errno.EPERM):
        os.symlink("x", m / "100/x")
    with fails(errno.EEXIST):
        os.mkdir(m / "100")
    (m / ".new").mkdir()
    with fails(errno.EEXIST, errno.EROFS):
        os.rename(m / ".new", m / "100")
    (m / ".new").rmdir()
    (m / "400").rmdir()
    # a foreign step's tree, copied, is one of the store
    run("cp", "-r", m / "300", m / "400")
    commit(m / "400")
    wait_for(lambda: os.readlink(m / "latest") == "400", SEEN)
    trees.compare(trees.listing(m / "400"), trees.listing(m / "300"), modes=False, times=False)
    after = trees.listing(root)
    assert {k: v for k, v in after.items() if not k.startswith(b".ckptstore") and k} == {
        k: v for k, v in before.items() if k
    }
    run("cp", "-r", util.DATA / "demo/300", root / "500.orbax-checkpoint-tmp")
    os.rename(root / "500.orbax-checkpoint-tmp", root / "500")
    wait_for(lambda: trees.steps(m) == ["100", "200", "300", "400", "500"], SEEN)
    wait_for(lambda: os.readlink(m / "latest") == "500", SEEN)


def test_foreign_roots(mount, tmp_path):
    """A root that is not a native one is read-only, whatever the options."""
    root = util.copy_tree(ORBAX / "manager_steps", tmp_path / "run")
    m = mount(root, "rw")
    for attempt in (lambda: os.mkdir(m / "7"), lambda: os.rename(m / "3", m / "7"), lambda: open(m / "3/x", "wb")):
        with fails(errno.EROFS):
            attempt()
    assert ".ckptstore" not in os.listdir(root)


def test_read_only_mount(mount, root):
    m = mount(root, EXPLICIT)
    (m / "7").mkdir()
    (m / "7/x").write_text("x")
    commit(m / "7")
    (m / "7/y").write_text("y")
    m.stop()
    m = mount(root, "ro")
    assert os.listdir(m / "7") == ["x"]  # staged steps belong to writers
    for attempt in (
        lambda: os.mkdir(m / "8"),
        lambda: os.rename(m / "7", m / "8"),
        lambda: open(m / "7/x", "r+b"),
        lambda: os.unlink(m / "7/x"),
        lambda: os.setxattr(m / "7", "user.ckpt.pinned", b"1"),
        lambda: os.rmdir(m / "7"),
    ):
        with fails(errno.EROFS):
            attempt()


def test_nothing_there(step, writable):
    for attempt in (
        lambda: os.stat(writable / "8"),
        lambda: os.rename(writable / "8", writable / "9"),
        lambda: os.rmdir(writable / "8"),
        lambda: os.unlink(step / "x"),
        lambda: os.rename(step / "x", step / "y"),
        lambda: os.mkdir(step / "x/y"),
        lambda: open(step / "x/y", "wb"),
        lambda: os.readlink(writable / "latest"),
        lambda: os.rename(writable / ".a", writable / "8"),
    ):
        with fails(errno.ENOENT):
            attempt()


def test_top_of_the_mount(step, writable):
    """Only directories can be made there; the links that ckptfs makes and the control directory stay."""
    with fails(errno.EPERM, errno.EROFS, errno.EACCES):
        (writable / "file").write_text("x")
    with fails(errno.EPERM, errno.EROFS, errno.EACCES, errno.EXDEV):
        os.rename(step / "w.npy", writable / "w.npy")
    accepted(step)
    with fails(errno.EPERM, errno.EROFS, errno.EACCES, errno.EBUSY):
        os.unlink(writable / "latest")
    for name in ("latest", ".ckptfs"):
        with fails(errno.EEXIST, errno.EPERM, errno.EROFS, errno.EACCES, errno.EBUSY):
            os.mkdir(writable / name)
    with fails(errno.EPERM, errno.EROFS, errno.EACCES):
        (writable / ".ckptfs/x").write_text("x")
    assert trees.steps(writable) == ["7"] and os.readlink(writable / "latest") == "7"
    for name in (".ckptstore", ".files"):
        with fails(errno.EEXIST, errno.EPERM, errno.EROFS, errno.EACCES, errno.EBUSY, errno.EINVAL):
            os.mkdir(writable / name)
    assert trees.committed(writable.source) == ["7"]


# --- staged steps


def test_staged_is_seen_here_only(step, writable, mount, root):
    other = mount(root, EXPLICIT)
    assert trees.steps(writable) == ["7"] and trees.steps(other) == []
    with fails(errno.ENOENT):
        os.stat(other / "7")
    assert not os.path.lexists(writable / "latest") and state(step) == "staged"
    accepted(step)
    wait_for(lambda: trees.steps(other) == ["7"] and os.readlink(other / "latest") == "7", SEEN)


def test_latest_follows_commits_only(writable):
    for name in ("step_9", "step_10", "step_0008"):
        (writable / name).mkdir()
        commit(writable / name)
    assert os.readlink(writable / "latest") == "step_10"
    (writable / "step_11").mkdir()
    assert os.readlink(writable / "latest") == "step_10"
    (writable / "step_10/x").write_text("a change")
    assert os.readlink(writable / "latest") == "step_10" and state(writable / "latest") == "staged"
    commit(writable / "step_11")
    wait_for(lambda: os.readlink(writable / "latest") == "step_11", SEEN)
    os.rmdir(writable / "step_11")
    wait_for(lambda: os.readlink(writable / "latest") == "step_10", SEEN)


@pytest.mark.parametrize("name", ["0", "7", "0007", "step_7", "a_b_7", "x" * 200 + "_1"])
def test_step_names(writable, root, name):
    (writable / ".new").mkdir()
    (writable / ".new/x").write_text("x")
    os.rename(writable / ".new", writable / name)
    assert is_committed(writable / name) and trees.committed(root) == [name]


@pytest.mark.parametrize(
    "name", [".new", "7.tmp", "7.orbax-checkpoint-tmp-12", "step7", "seven", "7_", "_", "step_7x", "-7"]
)
def test_names_to_stage_under(writable, root, name):
    """A sync of them is no commit, and a rename to them neither."""
    (writable / name).mkdir()
    (writable / name / "x").write_text("x")
    commit(writable / name)
    assert state(writable / name) == "staged"
    os.rename(writable / name, writable / ".other")
    os.rename(writable / ".other", writable / name)
    assert state(writable / name) == "staged" and trees.committed(root) == []
    os.rename(writable / name, writable / "7")
    assert is_committed(writable / "7") and (writable / "7/x").read_text() == "x"


def test_staged_survives_unmounting(step, writable, mount, root):
    (step / "d/e").mkdir(parents=True)
    (step / "d/x.bin").write_bytes(trees.noise(200_000))
    (writable / ".new").mkdir(0o750)
    (writable / ".new/y").write_text("y")
    os.setxattr(step / "d", "user.ckpt.kind", b"list")
    want = trees.listing(step), trees.listing(writable / ".new")
    writable.stop()
    m = mount(root, "settle=600")
    assert trees.steps(m) == [".new", "7"] and state(m / ".new") == "staged"
    trees.compare(trees.listing(m / "7"), want[0])
    trees.compare(trees.listing(m / ".new"), want[1])
    assert os.getxattr(m / "7/d", "user.ckpt.kind") == b"list"
    commit(m / "7")
    os.rename(m / ".new", m / "8")
    trees.compare(trees.listing(m / "7"), want[0])
    trees.compare(trees.listing(m / "8"), want[1])


@pytest.mark.parametrize("options", [EXPLICIT, "settle=1"])
def test_staged_survives_a_crash(mount, root, options):
    """The daemon is killed while there are a new staged step, a changed one, and an open file."""
    m = mount(root, EXPLICIT)
    (m / "6").mkdir()
    (m / "6/x").write_text("old")
    (m / "6/kept.bin").write_bytes(trees.noise(300_000))
    commit(m / "6")
    (m / "6/x").write_text("new")
    (m / "7").mkdir()
    (m / "7/large.bin").write_bytes(trees.noise(5 * MIB))
    os.utime(m / "7/large.bin", (1, 1))
    want = trees.listing(m / "7"), trees.listing(m / "6")
    fd = os.open(m / "7/open.bin", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"part")
    os.fsync(fd)
    m.crash()
    with contextlib.suppress(OSError):
        os.close(fd)
    m = mount(root, options)
    assert trees.committed(root) == ["6"] and state(m / "7") == "staged" and state(m / "6") == "staged"
    assert (m / "7/open.bin").read_bytes() == b"part"
    run("rm", m / "7/open.bin")
    if options == EXPLICIT:
        got = trees.listing(m / "7")
        trees.compare({k: v for k, v in got.items() if k}, {k: v for k, v in want[0].items() if k})
        trees.compare(trees.listing(m / "6"), want[1])
        commit(m / "7")
        commit(m / "6")
    else:
        run("touch", m / "7/touched", m / "6/touched")
        wait_committed(m / "7")
        wait_committed(m / "6")
    assert (m / "6/x").read_text() == "new" and (m / "6/kept.bin").read_bytes() == trees.noise(300_000)
    assert (m / "7/large.bin").read_bytes() == trees.noise(5 * MIB)
    trees.verify(root)


def test_crash_in_the_middle_of_commits(mount, root):
    """Killed at some moment: each step is committed whole or staged, and a second try works."""
    data = {f"{n}.bin": trees.noise(400_000, n) for n in range(12)}
    for turn, after in enumerate((0.0, 0.01, 0.03, 0.1)):
        m = mount(root, EXPLICIT)
        name = str(turn)
        (m / name).mkdir()
        for file, content in data.items():
            (m / name / file).write_bytes(content + b"%d" % turn)
        process = subprocess.Popen(["sync", str(m / name)], stderr=subprocess.DEVNULL)
        time.sleep(after)
        m.crash()
        process.wait(20)
        m = mount(root, EXPLICIT)
        assert state(m / name) == ("committed" if name in trees.committed(root) else "staged")
        if state(m / name) == "staged":
            commit(m / name)
        assert {file: (m / name / file).read_bytes() for file in os.listdir(m / name)} == {
            f: c + b"%d" % turn for f, c in data.items()
        }
        m.stop()
    trees.verify(root)


def test_deletion_of_staged(step, writable, root):
    (step / "d").mkdir()
    run("rm", "-r", step)
    assert trees.steps(writable) == [] and trees.committed(root) == []
    assert {p.name for p in (trees.store(root) / "staging").rglob("*") if p.is_file()} <= {"lock", "name", "base"}
    (writable / "7").mkdir()
    assert os.listdir(writable / "7") == []


# --- changes


def test_change_is_a_copy(step, writable, mount, root):
    """Until the commit, only this mount sees it."""
    (step / "old.txt").write_text("old\n")
    (step / "large.bin").write_bytes(trees.noise(3 * MIB))
    (step / "d").mkdir()
    (step / "d/y").write_text("y")
    accepted(step)
    before, was = trees.snapshot(root), trees.listing(step)
    other = mount(root, "refresh=1")
    trees.compare(trees.listing(other / "7"), was)
    with open(step / "old.txt") as here, open(other / "7/old.txt") as there:
        (step / "old.txt").write_text("changed\n")
        assert state(step) == "staged"
        (step / "new.npy").write_bytes((step / "w.npy").read_bytes())
        os.unlink(step / "d/y")
        os.rmdir(step / "d")
        os.rename(step / "w.npy", step / "renamed.npy")
        with open(step / "large.bin", "r+b") as f:
            f.seek(MIB)
            f.write(b"in the middle")
        os.chmod(step / "renamed.npy", 0o600)
        now = trees.listing(step)
        assert set(now) == {b"", b"old.txt", b"new.npy", b"renamed.npy", b"large.bin"}
        time.sleep(2.5)
        trees.compare(trees.listing(other / "7"), was)
        assert trees.snapshot(root) == before and state(other / "7") == "committed"
        accepted(step)
        trees.compare(trees.listing(step), now)
        wait_for(lambda: "new.npy" in os.listdir(other / "7"), SEEN)
        trees.compare(trees.listing(other / "7"), now)
        assert here.read() == "old\n" and there.read() == "old\n"
    assert manifest_names(root, "7") == {"old.txt", "new.npy", "renamed.npy", "large.bin"}
    assert trees.manifest(root, "7")["id"] != json.loads(before[0]["7"])["id"]
    trees.verify(root)


def manifest_names(root, name):
    return {node["name"] for node in trees.manifest(root, name)["nodes"]}


CHANGES = {
    "truncate to nothing": lambda d: os.truncate(d / "f", 0),
    "truncate": lambda d: os.truncate(d / "f", 70_000),
    "lengthen": lambda d: os.truncate(d / "f", 2 * MIB),
    "open with O_TRUNC": lambda d: open(d / "f", "wb").close(),
    "chmod": lambda d: os.chmod(d / "f", 0o640),
    "utime": lambda d: os.utime(d / "f", (5, 5)),
    "setxattr": lambda d: os.setxattr(d / "f", "user.x", b"1"),
    "rename": lambda d: os.rename(d / "f", d / "g"),
    "rename over": lambda d: os.rename(d / "s", d / "f"),
    "link": lambda d: os.link(d / "f", d / "g"),
    "unlink": lambda d: os.unlink(d / "f"),
    "mkdir": lambda d: os.mkdir(d / "new"),
    "chmod the directory": lambda d: os.chmod(d, 0o700),
    "write": lambda d: trees.run("dd", "if=/dev/zero", f"of={d}/f", "bs=7", "seek=10000", "count=1", "conv=notrunc"),
    "write a small one": lambda d: trees.run(
        "dd", "if=/dev/zero", f"of={d}/s", "bs=1", "seek=1", "count=1", "conv=notrunc"
    ),
    "append": lambda d: trees.run("bash", "-c", f"echo more >> '{d}/f'"),
    "create": lambda d: (d / "new").write_text("n"),
    "create and delete": lambda d: ((d / "new").write_text("n"), os.unlink(d / "new")),
    "kind": lambda d: os.setxattr(d, "user.ckpt.kind", b"tuple"),
    "allocate": lambda d: trees.run("fallocate", "-l", "2M", d / "f", check=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change(writable, mount, root, tmp_path, change):
    """Of a committed step, it does what it does on an ordinary file system, and does it to the staged copy alone."""
    for top in (tmp_path / "plain", writable / "7"):
        (top / "d/e").mkdir(parents=True)
        (top / "d/f").write_bytes(trees.noise(150_000))
        (top / "d/s").write_bytes(b"small")
        for path in ("d/e", "d/f", "d/s", "d"):
            os.utime(top / path, (1_600_000_000, 1_600_000_000))
    commit(writable / "7")
    before = trees.snapshot(root)
    CHANGES[change](tmp_path / "plain/d")
    CHANGES[change](writable / "7/d")

    def same(a, b):
        a, b = trees.listing(a), trees.listing(b)
        old = {k for k, e in b.items() if e.mtime < 1_700_000_000 * 10**9}
        trees.compare(a, b, times=False)
        assert {k for k, e in a.items() if e.mtime < 1_700_000_000 * 10**9} == old
        assert {k: a[k].mtime for k in old} == {k: b[k].mtime for k in old}

    same(writable / "7", tmp_path / "plain")
    assert state(writable / "7") == "staged" and trees.snapshot(root) == before
    commit(writable / "7")
    same(writable / "7", tmp_path / "plain")
    writable.stop()
    m = mount(root, EXPLICIT)
    same(m / "7", tmp_path / "plain")
    if change == "setxattr":
        assert os.getxattr(m / "7/d/f", "user.x") == b"1"
    if change == "kind":
        assert os.getxattr(m / "7/d", "user.ckpt.kind") == b"tuple"


def test_opening_for_writing_keeps_times(writable):
    """A file of a committed step that is opened for writing and closed has not changed."""
    step = writable / "7"
    step.mkdir()
    for name, size in ("small", 5), ("large", 150_000):
        (step / name).write_bytes(trees.noise(size))
        os.utime(step / name, (1_600_000_000, 1_600_000_000))
    commit(step)
    for name in ("small", "large"):
        open(step / name, "r+b").close()
        assert os.stat(step / name).st_mtime == 1_600_000_000, name
    commit(step)
    assert [os.stat(step / name).st_mtime for name in ("small", "large")] == [1_600_000_000] * 2


def test_changes_through_descriptors(step, writable):
    """Of a committed step's directory that was opened before the change: as rsync and tar work, by names relative to
    it.
    """
    (step / "d").mkdir()
    accepted(step)
    for path in (".", "d"):
        fd = os.open(step / path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.utime(".", (5, 5), dir_fd=fd)
            os.utime(fd, (6, 6))
            os.chmod(fd, 0o750)
            os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
            os.mkdir("newd", dir_fd=fd)
            os.unlink("new", dir_fd=fd)
        finally:
            os.close(fd)
        assert sorted(os.listdir(step / path)) == sorted({".": ["d", "newd", "w.npy"], "d": ["newd"]}[path])
        accepted(step)
    fd = os.open(step / "w.npy", os.O_RDONLY)
    try:
        os.chmod(fd, 0o600)
        os.utime(fd, (7, 7))
        os.setxattr(fd, "user.x", b"1")
    finally:
        os.close(fd)
    st = os.stat(step / "w.npy")
    assert (stat.S_IMODE(st.st_mode), st.st_mtime, os.getxattr(step / "w.npy", "user.x")) == (0o600, 7, b"1")


def test_changes_are_seen_at_once(step, writable):
    """By whoever made them, in each way to look: before the commit, after it, and after a rename of the step."""
    for name in ("a", "b", "c"):
        (step / name).write_text(name)
    (step / "d").mkdir()
    accepted(step)
    assert sorted(os.listdir(step)) == ["a", "b", "c", "d", "w.npy"]

    def look(names, how):
        assert sorted(os.listdir(step)) == sorted(names) and state(step) == how
        for name in ("a", "b", "c", "d", "new"):
            assert os.path.lexists(step / name) == (name in names), name

    os.unlink(step / "b")
    look(["a", "c", "d", "w.npy"], "staged")
    accepted(step)
    look(["a", "c", "d", "w.npy"], "committed")
    os.rename(step / "a", step / "new")
    look(["c", "d", "new", "w.npy"], "staged")
    (step / "d/x").write_text("x")
    accepted(step)
    look(["c", "d", "new", "w.npy"], "committed")
    assert os.listdir(step / "d") == ["x"]
    (step / "c").write_text("longer")
    assert os.stat(step / "c").st_size == 6
    os.chmod(step / "d", 0o700)
    accepted(step)
    assert os.stat(step / "c").st_size == 6 and stat.S_IMODE(os.stat(step / "d").st_mode) == 0o700
    os.unlink(step / "c")
    os.rename(step, writable / "8")
    assert sorted(os.listdir(writable / "8")) == ["d", "new", "w.npy"] and trees.steps(writable) == ["8"]
    os.unlink(writable / "8/new")
    assert sorted(os.listdir(writable / "8")) == ["d", "w.npy"]
    accepted(writable / "8")
    assert sorted(os.listdir(writable / "8")) == ["d", "w.npy"]


def test_looking_is_no_change(step, writable, root):
    """Reads, failed writes and locks leave a committed step committed."""
    accepted(step)
    os.stat(step / "w.npy")
    (step / "w.npy").read_bytes()
    with open(step / "w.npy", "rb") as f:
        fcntl.flock(f, fcntl.LOCK_SH)
    with fails(errno.ENOENT):
        os.unlink(step / "nothing")
    with fails(errno.EEXIST):
        os.mkdir(step / "w.npy")
    with fails(errno.EEXIST):
        open(step / "w.npy", "xb")
    commit(step)
    run("sync", "-f", writable.top)
    assert is_committed(step)


def test_renaming_a_step(step, writable, mount, root):
    accepted(step)
    was, payloads = trees.listing(step), trees.objects(root)
    other = mount(root, "refresh=1")
    os.setxattr(step, "user.ckpt.pinned", b"1")
    with open(step / "w.npy", "rb") as f:
        run("mv", step, writable / "8")
        assert np.load(f).shape == (2, 3)
    assert trees.steps(writable) == ["8"] and is_committed(writable / "8")
    wait_for(lambda: os.readlink(writable / "latest") == "8", SEEN)
    trees.compare(trees.listing(writable / "8"), was)
    assert trees.committed(root) == ["8"] and trees.objects(root) == payloads
    assert attribute(writable / "8", "pinned") == "1" and attribute(writable / "8", "step") == "8"
    wait_for(lambda: trees.steps(other) == ["8"], SEEN)
    trees.compare(trees.listing(other / "8"), was)
    with fails(errno.ENOENT):
        os.stat(writable / "7")
    (writable / "7").mkdir()
    assert os.listdir(writable / "7") == []


def test_renaming_a_changed_step(step, writable, root):
    """The change goes along, and the committed step is not left behind twice."""
    accepted(step)
    (step / "x").write_text("x")
    os.rename(step, writable / "8")
    if state(writable / "8") == "staged":
        commit(writable / "8")
    assert sorted(os.listdir(writable / "8")) == ["w.npy", "x"]
    assert trees.steps(writable) in (["8"], ["7", "8"]) and trees.committed(root) == trees.steps(writable)


def test_renaming_to_another_name(step, writable, root):
    """A committed step under a name that no step has: refused, or it is staged with all that was in it."""
    accepted(step)
    was = trees.listing(step)
    try:
        os.rename(step, writable / ".away")
    except OSError as e:
        assert e.errno in (errno.EPERM, errno.EINVAL, errno.EROFS, errno.EXDEV, errno.EOPNOTSUPP, errno.EBUSY), e
        trees.compare(trees.listing(step), was)
        assert is_committed(step)
        return
    trees.compare(trees.listing(writable / ".away"), was)
    os.rename(writable / ".away", step)
    trees.compare(trees.listing(step), was)
    assert is_committed(step)


def test_deletion_is_atomic(step, writable, mount, root):
    """Elsewhere the step is whole until its last rmdir, and then it is gone."""
    for n in range(20):
        (step / f"d{n}").mkdir()
        (step / f"d{n}/x").write_text(f"{n}")
    accepted(step)
    (writable / "6").mkdir()
    commit(writable / "6")
    was, before = trees.listing(step), trees.snapshot(root)
    other = mount(root, "refresh=1")
    with open(other / "7/d3/x") as reader:
        for n in range(20):
            run("rm", "-r", step / f"d{n}")
        os.unlink(step / "w.npy")
        time.sleep(1.5)
        assert trees.snapshot(root) == before and os.listdir(step) == []
        trees.compare(trees.listing(other / "7"), was)
        os.rmdir(step)
        assert trees.committed(root) == ["6"] and trees.steps(writable) == ["6"]
        wait_for(lambda: os.readlink(writable / "latest") == "6", SEEN)
        wait_for(lambda: trees.steps(other) == ["6"] and os.readlink(other / "latest") == "6", SEEN)
        assert reader.read() == "3"


def test_rm_r(mount, root, small_tree):
    """With a mount that commits by itself, too: nothing half-deleted is ever committed."""
    m = mount(root, "settle=1")
    run("cp", "-r", small_tree, m / "7")
    wait_committed(m / "7")
    run("rm", "-r", m / "7")
    assert trees.steps(m) == [] and trees.committed(root) == []
    time.sleep(2.5)
    assert trees.steps(m) == [] and trees.committed(root) == []
    run("cp", "-r", small_tree, m / "7")  # again, with other bytes under the same names
    run("bash", "-c", 'echo other > "$1"', "-", m / "7/notes.txt")
    wait_committed(m / "7")
    assert (m / "7/notes.txt").read_text() == "other\n"


def test_times_of_a_directory_with_less(writable):
    """A name went: the directory's time of the last change of its files, and that of itself, have moved."""
    (writable / "7/d").mkdir(parents=True)
    (writable / "7/d/x").write_text("x")
    commit(writable / "7")
    before = os.stat(writable / "7/d")
    time.sleep(0.02)
    os.unlink(writable / "7/d/x")
    after = os.stat(writable / "7/d")
    assert after.st_mtime_ns > before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns


def removed_something(m):
    """Step 7 of a mount, with a leaf and a directory removed of which nothing is on disk yet."""
    (m / "7/d/e").mkdir(parents=True)
    for path in "d/x", "d/e/y", "z":
        (m / "7" / path).write_text(path)
    np.save(m / "7/d/w.npy", np.arange(6.0))
    commit(m / "7")
    os.unlink(m / "7/d/w.npy")
    run("rm", "-r", m / "7/d/e")
    for gone in "d/w.npy", "d/w", "d/w@0:2", "d/w.txt", "d/e", "d/e/y":
        with fails(errno.ENOENT):
            os.stat(m / "7" / gone)
    with fails(errno.ENOENT):
        os.unlink(m / "7/d/w.npy")
    assert os.listdir(m / "7/d") == ["x"] and state(m / "7") == "staged"
    return m / "7"


def test_a_removal_copies_nothing(writable, root):
    before = removed_something(writable)
    assert os.listdir(root / ".ckptstore/staging") == []
    with fails(errno.ENOTEMPTY):
        os.rmdir(before / "d")
    with fails(errno.EISDIR):
        os.unlink(before / "d")
    with fails(errno.ENOTDIR):
        os.rmdir(before / "z")
    assert manifest_names(root, "7") == {"d", "e", "w.npy", "x", "y", "z"}


def test_a_removal_commits_by_itself(mount, root):
    m = mount(root, "settle=1")
    step = removed_something(m)
    wait_committed(step)
    wait_for(lambda: manifest_names(root, "7") == {"d", "x", "z"}, 10)
    assert (step / "d/x").read_text() == "d/x"


@pytest.mark.parametrize("then", ["sync", "sync of a directory", "create", "rename", "unmount"])
def test_a_removal_and_then(writable, mount, root, then):
    """Whatever follows, what was removed stays removed."""
    step, names = removed_something(writable), {"d", "x", "z"}
    if then == "sync of a directory":
        run("sync", step / "d")
    if then == "create":
        np.save(step / "d/w.npy", np.arange(3.0))
        names.add("w.npy")
    if then == "rename":
        os.rename(step, writable / "8")
        assert manifest_names(root, "8") == names and trees.steps(writable) == ["8"]
        return
    if then == "unmount":
        writable.stop()
        step = mount(root, EXPLICIT) / "7"
        assert state(step) == "staged"
    commit(step)
    assert manifest_names(root, "7") == names and sorted(os.listdir(step / "d")) == sorted(names - {"d", "z"})


def test_rmdir_of_a_full_step(step):
    with fails(errno.ENOTEMPTY):
        os.rmdir(step)
    accepted(step)
    with fails(errno.ENOTEMPTY):
        os.rmdir(step)
    assert is_committed(step) and os.listdir(step) == ["w.npy"]


def test_two_changes_of_one_step(step, mount, root):
    """Two mounts change the same step: the first commit wins, the second is refused and keeps its files."""
    accepted(step)
    other = mount(root, EXPLICIT, "refresh=1")
    (step / "here").write_text("here")
    (other / "7/there").write_text("there")
    accepted(step)
    with fails(errno.EEXIST, errno.ESTALE, errno.EBUSY):
        commit(other / "7")
    assert sorted(os.listdir(other / "7")) == ["there", "w.npy"] and attribute(other / "7", "error")
    assert manifest_names(root, "7") == {"w.npy", "here"}
    run("cp", "-r", other / "7", other / "8")  # what is left to do with it
    commit(other / "8")
    assert sorted(os.listdir(other / "8")) == ["there", "w.npy"] and is_committed(other / "8")
    run("rm", "-r", other / "8")


def test_two_new_steps_of_one_name(mount, root):
    one, two = mount(root, EXPLICIT, "refresh=1"), mount(root, EXPLICIT, "refresh=1")
    for m, text in (one, "one"), (two, "two"):
        (m / "7").mkdir()
        (m / "7/x").write_text(text)
    commit(one / "7")
    with fails(errno.EEXIST):
        commit(two / "7")
    assert (one / "7/x").read_text() == "one" and (two / "7/x").read_text() == "two"
    third = mount(root, "ro")
    assert (third / "7/x").read_text() == "one"


# --- sharing


@pytest.fixture
def large_step(writable, root):
    """A committed step 7 of 60 MB: noise, what compresses, and a few small leaves."""
    step = writable / "7"
    (step / "small").mkdir(parents=True)
    for n in range(4):
        np.save(step / f"noise{n}.npy", trees.noise_array(2_500_000, n))
    np.save(step / "ramp.npy", np.arange(5_000_000, dtype=np.int32))
    for n in range(10):
        np.save(step / f"small/{n}.npy", np.full(100, n))
    commit(step)
    return step


def test_copy_shares(large_step, writable, mount, root):
    was, payloads, disk = trees.listing(large_step), trees.objects(root), trees.disk_usage(root)
    assert disk < 80 * MIB
    run("cp", "-r", large_step, writable / "8")
    print(f"until the commit {(trees.disk_usage(root) - disk) / MIB:.1f} MiB more")
    trees.compare(trees.listing(writable / "8"), was, times=False)
    commit(writable / "8")
    now = trees.objects(root)
    assert {k: v for k, v in now.items() if v > 65536} == {k: v for k, v in payloads.items() if v > 65536}
    assert sum(now.values()) - sum(payloads.values()) < 65536
    wait_for(lambda: trees.disk_usage(root) - disk < MIB, 20)
    writable.stop()
    trees.compare(trees.listing(mount(root) / "8"), was, times=False)


def test_link_shares(large_step, writable, mount, root):
    payloads, disk = trees.objects(root), trees.disk_usage(root)
    (writable / "8").mkdir()
    run("ln", large_step / "noise0.npy", writable / "8/linked.npy")
    run("ln", large_step / "small/3.npy", writable / "8/three.npy")
    os.link(large_step / "ramp.npy", writable / "8/ramp.npy")
    assert (writable / "8/linked.npy").read_bytes() == (large_step / "noise0.npy").read_bytes()
    assert trees.disk_usage(root) - disk < MIB
    commit(writable / "8")
    now = trees.objects(root)
    assert {k: v for k, v in now.items() if v > 65536} == {k: v for k, v in payloads.items() if v > 65536}
    with open(writable / "8/linked.npy", "r+b") as f:  # a change of one is not one of the other
        f.seek(200)
        f.write(b"other")
    commit(writable / "8")
    writable.stop()
    m = mount(root)
    assert (m / "7/noise0.npy").read_bytes()[200:205] != b"other" and (m / "8/linked.npy").read_bytes()[
        200:205
    ] == b"other"
    assert (
        np.load(m / "8/three.npy").tolist() == [3] * 100 and (np.load(m / "8/ramp.npy") == np.arange(5_000_000)).all()
    )


def test_link_keeps_what_a_file_has(writable):
    """A link between steps has the mode, times and attributes of its file."""
    (writable / "7").mkdir()
    for name, data in ("small", b"s"), ("large", trees.noise(100_000)):
        path = writable / "7" / f"{name}.npy"
        np.save(path, np.frombuffer(data, "V1"))
        os.setxattr(path, "user.ckpt.dtype", b"float8_e4m3fn")
        os.setxattr(path, "user.x", b"mine")
        os.chmod(path, 0o640)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    commit(writable / "7")
    (writable / "8").mkdir()
    for name in ("small.npy", "large.npy"):
        run("ln", writable / "7" / name, writable / "8" / name)
    for state_now in "staged", "committed":
        for name in ("small.npy", "large.npy"):
            path = writable / "8" / name
            st = os.stat(path)
            assert (stat.S_IMODE(st.st_mode), st.st_mtime) == (0o640, 1_600_000_000), name
            assert (
                os.getxattr(path, "user.x") == b"mine" and os.getxattr(path, "user.ckpt.dtype") == b"float8_e4m3fn"
            ), name
        if state_now == "staged":
            commit(writable / "8")


def test_copy_file_range(large_step, writable):
    """A whole leaf, a part of one, and one appended to another; each gives the bytes that a copy would."""
    (writable / "8").mkdir()
    data = (large_step / "noise0.npy").read_bytes()
    with open(large_step / "noise0.npy", "rb") as source, open(writable / "8/part.bin", "wb") as target:
        left = 3 * MIB
        while left:
            n = os.copy_file_range(source.fileno(), target.fileno(), left, 100_000 + 3 * MIB - left)
            assert n > 0
            left -= n
        os.lseek(source.fileno(), 5, os.SEEK_SET)
        n = os.copy_file_range(source.fileno(), target.fileno(), 1000)
        assert n == 1000
    assert (writable / "8/part.bin").read_bytes() == data[100_000 : 100_000 + 3 * MIB] + data[5:1005]
    run("cp", "--reflink=auto", large_step / "noise0.npy", writable / "8/whole.npy")
    run("cp", "--sparse=never", large_step / "noise0.npy", writable / "8/again.npy")
    run("cp", large_step / "noise1.npy", writable / "8/whole.npy")  # over another
    commit(writable / "8")
    assert (writable / "8/again.npy").read_bytes() == data
    assert (writable / "8/whole.npy").read_bytes() == (large_step / "noise1.npy").read_bytes()


def test_move_between_steps(large_step, writable, root):
    """mv of a leaf and of a directory from one step to another."""
    want = trees.listing(large_step / "small"), (large_step / "noise2.npy").read_bytes()
    (writable / "8").mkdir()
    run("mv", large_step / "noise2.npy", large_step / "small", writable / "8")
    commit(writable / "7")
    commit(writable / "8")
    assert sorted(os.listdir(large_step)) == ["noise0.npy", "noise1.npy", "noise3.npy", "ramp.npy"]
    trees.compare(trees.listing(writable / "8/small"), want[0])
    assert (writable / "8/noise2.npy").read_bytes() == want[1]


def test_a_small_change_of_a_large_step(large_step, writable, root):
    """Costs what was changed."""
    disk = trees.disk_usage(root)
    (large_step / "small/3.npy").write_bytes((large_step / "small/4.npy").read_bytes())
    assert trees.disk_usage(root) - disk < MIB
    commit(large_step)
    assert trees.disk_usage(root) - disk < MIB


def test_equal_leaves_are_stored_once(writable, root):
    data = trees.noise(MIB)
    for name in ("1", "2"):
        (writable / name).mkdir()
        for n in range(5):
            (writable / name / f"{n}.bin").write_bytes(data)
        commit(writable / name)
    assert len([size for size in trees.objects(root).values() if size >= MIB]) == 1
    wait_for(lambda: trees.disk_usage(root) < 2 * MIB, 20)


def test_ten_steps(writable, root, mount):
    """Nine tenths of the bytes stay the same from step to step: together they take less than two of them."""
    one = None
    for step in range(10):
        folder = writable / str(step)
        folder.mkdir()
        for n in range(20):
            np.save(folder / f"w{n}.npy", trees.noise_array(250_000, n if n >= 2 else 1000 + step * 2 + n))
        commit(folder)
        one = one or sum(trees.objects(root).values())
    writable.stop()
    assert one > 19 * 1_000_000
    wait_for(lambda: trees.disk_usage(root) < 2 * one, 20)
    m = mount(root, "ro")
    for step in range(10):
        for n in (0, 1, 2, 19):
            assert (
                np.load(m / f"{step}/w{n}.npy") == trees.noise_array(250_000, n if n >= 2 else 1000 + step * 2 + n)
            ).all()


@pytest.mark.parametrize("compressible", [False, True])
def test_rewritten_while_it_is_hashed(writable, root, mount, compressible):
    """
    A file is changed again just after it was closed, when its first content may be half hashed or encoded. Neither it,
    nor another file with that first content, may come out with wrong bytes.
    """
    for turn in range(12):
        first = (
            np.arange(3_000_000, dtype=np.uint32) // 3 + turn if compressible else trees.noise_array(3_000_000, turn)
        )
        step = writable / f"{turn}"
        step.mkdir()
        np.save(step / "a.npy", first)
        time.sleep(0.01 * turn)
        with open(step / "a.npy", "r+b") as f:
            for at in (500_000, 6_000_000, 11_900_000):
                f.seek(at)
                f.write(b"changed" * 1000)
        time.sleep(0.005 * turn)
        with open(step / "a.npy", "r+b") as f:
            f.seek(2_000_000)
            f.write(b"again")
        np.save(step / "b.npy", first)
        commit(step)
        assert (np.load(step / "b.npy") == first).all(), turn
        trees.check_hashes(writable, f"{turn}")
        data = (step / "a.npy").read_bytes()
        assert (
            data[500_000:500_007] == data[11_900_000:11_900_007] == b"changed" and data[2_000_000:2_000_005] == b"again"
        )
    writable.stop()
    m = mount(root, "ro")
    for turn in range(12):
        trees.check_hashes(m, f"{turn}")


def test_du(large_step, writable):
    """st_size is the bytes read, st_blocks what is stored."""
    st = os.stat(large_step / "ramp.npy")
    assert st.st_size == 20_000_128 and st.st_blocks * 512 < 10_000_000
    st = os.stat(large_step / "noise0.npy")
    assert abs(st.st_blocks * 512 - st.st_size) < 0.1 * st.st_size
    assert (
        int(attribute(large_step / "ramp.npy", "stored")) < 10_000_000
        and attribute(large_step / "ramp.npy", "codec") == "blosc"
    )
    assert attribute(large_step / "noise0.npy", "codec") in ("none", "blosc")


def test_codec_option(mount, root):
    for codec in ("none", "lz4", "blosc"):
        m = mount(root, EXPLICIT, f"codec={codec}")
        (m / "7").mkdir()
        np.save(m / "7/w.npy", np.arange(1_000_000) + len(codec))
        commit(m / "7")
        got = attribute(m / "7/w.npy", "codec")
        assert got == codec, got
        assert (np.load(m / "7/w.npy") == np.arange(1_000_000) + len(codec)).all()
        run("rm", "-r", m / "7")
        m.stop()


def test_raw_objects_are_plain_files(writable, root):
    """What does not compress is in the store as it is: usable without ckptfs."""
    (writable / "7").mkdir()
    np.save(writable / "7/w.npy", trees.noise_array(100_000))
    commit(writable / "7")
    node = trees.manifest(root, "7")["nodes"][0]
    assert node["name"] == "w.npy" and node["codec"] == "none"
    path = trees.store(root) / "objects" / node["sha256"][:2] / node["sha256"]
    assert path.read_bytes() == (writable / "7/w.npy").read_bytes() and not path.stat().st_mode & 0o222


def test_special_bits(writable, root, mount):
    """Directories of groups (2775) and shared ones (1777), which cp -a, rsync -a and tar keep."""
    modes = {"group": 0o2775, "shared": 0o1777, "x": 0o644}
    for name, bits in modes.items():
        path = writable / "7" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x") if name == "x" else path.mkdir()
        os.chmod(path, bits)
    commit(writable / "7")
    assert {name: stat.S_IMODE(os.stat(writable / "7" / name).st_mode) for name in modes} == modes
    (writable / "7/y").write_text("y")
    commit(writable / "7")
    assert {name: stat.S_IMODE(os.stat(writable / "7" / name).st_mode) for name in modes} == modes


def test_modes_and_times_of_a_step(writable, root, mount):
    """Also those of its own directory; a change leaves those of the others as they are."""
    paths = ["d/e", "d/x", "d", "f", ""]
    (writable / "7/d/e").mkdir(parents=True)
    for name in ("d/x", "f"):
        (writable / "7" / name).write_text("x")
    for n, path in enumerate(paths):
        if os.geteuid() == 0:
            os.chown(writable / "7" / path, 1234, 4321 + n)
        os.chmod(writable / "7" / path, 0o740 + n)
        os.utime(writable / "7" / path, ns=(1_600_000_000_123_456_789 + n, 1_600_000_000_123_456_789 + n))

    def seen(top):
        return [(st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns) for st in (os.stat(top / path) for path in paths)]

    want = seen(writable / "7")
    assert want[0][3] == 1_600_000_000_123_456_789
    commit(writable / "7")
    assert seen(writable / "7") == want
    writable.stop()
    m = mount(root, EXPLICIT)
    assert seen(m / "7") == want
    os.chmod(m / "7/d/x", 0o600)
    want[1] = (stat.S_IFREG | 0o600, *want[1][1:])
    assert seen(m / "7") == want
    commit(m / "7")
    assert seen(m / "7") == want


def test_commit_while_reading_and_listing(mount, root):
    """A process that walks and reads the staged step does not hinder its commit."""
    m = mount(root, EXPLICIT)
    (m / "7").mkdir()
    for n in range(50):
        np.save(m / f"7/{n}.npy", np.arange(1000) + n)
    code = (
        "import os, sys, time\nend = time.time() + 4\nwhile time.time() < end:\n"
        " for d, _, fs in os.walk(sys.argv[1]):\n  for f in fs:\n"
        "   try: open(os.path.join(d, f), 'rb').read()\n   except OSError as e: assert e.errno in (2, 116), e"
    )
    readers = [subprocess.Popen([sys.executable, "-c", code, str(m / "7")], stderr=subprocess.PIPE) for _ in range(2)]
    for n in range(10):
        np.save(m / "7/0.npy", np.arange(1000) + 100 + n)
        commit(m / "7")
    for r in readers:
        _, said = r.communicate(timeout=30)
        assert r.returncode == 0, said.decode()
    assert np.load(m / "7/0.npy")[0] == 109


def test_long_metadata(step, mount, root, writable):
    """As long as an attribute may be, whatever the disk has room for; a change keeps it, and it can be taken away."""
    text = b'{"notes":"%s"}' % (b"x" * 60_000)
    os.setxattr(step, "user.ckpt.metadata", text)
    assert os.getxattr(step, "user.ckpt.metadata") == text and "user.ckpt.metadata" in os.listxattr(step)
    accepted(step)
    assert os.getxattr(step, "user.ckpt.metadata") == text
    (step / "more").write_text("more")
    accepted(step)
    assert os.getxattr(mount(root, "ro") / "7", "user.ckpt.metadata") == text
    os.removexattr(step, "user.ckpt.metadata")
    accepted(step)
    assert os.getxattr(step, "user.ckpt.metadata") == b"{}"


def test_handles_outlive_the_commit(writable):
    """Who has a file of the staged step open reads on, and knows its size; a directory's handle gives no part of what
    was there.
    """
    for n, content in enumerate([trees.floats(500_000).tobytes(), trees.noise(300_000), b"small"]):
        step = writable / f"{n}"
        (step / "d").mkdir(parents=True)
        for name in range(50):
            (step / f"d/{name}").write_bytes(b"x")
        np.save(step / "f.npy", np.frombuffer(content, np.uint8 if n else np.float32))
        want = (step / "f.npy").read_bytes()
        fd, folder = os.open(step / "f.npy", os.O_RDONLY), os.open(step / "d", os.O_RDONLY)
        commit(step)
        time.sleep(1.1)  # what the kernel knows of it is old by now
        assert os.fstat(fd).st_size == len(want) and os.pread(fd, len(want) + 10, 0) == want
        assert os.lseek(fd, 0, os.SEEK_END) == len(want)
        with fails(errno.ESTALE):
            os.listdir(folder)
        os.close(fd)
        os.close(folder)
        assert len(os.listdir(step / "d")) == 50
