"""Files that are mostly holes: a commit, a check and a copy neither read nor store the holes. 1 TiB of zeros would take
an hour to hash.
"""

import errno
import json
import os
import time

import numpy as np
import pytest

import trees
import util

TIB = 1 << 40
PLACES = {0: b"begin", (5 << 20) - 2: b"across", 700 << 30: os.urandom(3 << 20), TIB - 3: b"end"}


def make(path, size=TIB, places=PLACES):
    with open(path, "wb") as f:
        f.truncate(size)
        for at, data in places.items():
            f.seek(at)
            f.write(data)
    return path


def check(path, size=TIB, places=PLACES):
    assert os.stat(path).st_size == size
    with open(path, "rb") as f:
        for at, data in places.items():
            f.seek(max(at - 10, 0))
            assert (
                f.read(len(data) + 20)
                == (bytes(min(at, 10)) + data + bytes(20))[: min(len(data) + 20, size - max(at - 10, 0))][
                    : len(data) + 20
                ]
            ), at
        for at in 1 << 20, 100 << 30, TIB - (1 << 20):
            if at < size - 65536:
                f.seek(at)
                assert not any(f.read(65536)), at


def make_array(path, shape=(1 << 38,)):
    array = np.lib.format.open_memmap(path, mode="w+", dtype="<f4", shape=shape)
    flat = array.reshape(-1)
    flat[[0, 123_456_789, flat.size - 1]] = 1, 3.5, 2
    array.flush()
    return path


def check_array(path, shape=(1 << 38,)):
    flat = np.load(path, mmap_mode="r").reshape(-1)
    assert flat.size == np.prod(shape, dtype=object) and flat[
        [0, 1, 123_456_789, 123_456_790, flat.size - 1]
    ].tolist() == [1, 0, 3.5, 0, 2]


def taken(root):
    return sum(p.stat().st_blocks * 512 for p in (root / ".ckptstore").rglob("*"))


@pytest.fixture
def committed(writable, root):
    step = writable.top / "7"
    step.mkdir()
    make(step / "blob")
    make_array(step / "x.npy")
    (step / "small").write_text("small")
    trees.commit(step)
    return step


def test_commit(committed, root, writable, mount):
    check(committed / "blob")
    check_array(committed / "x.npy")
    assert taken(root) < 16 << 20
    assert (
        os.getxattr(committed / "x.npy", "user.ckpt.kind") == b"array"
        and os.getxattr(committed / "blob", "user.ckpt.codec") == b"sparse"
    )
    with pytest.raises(OSError) as e:
        os.getxattr(committed / "blob", "user.ckpt.sha256")
    assert e.value.errno == errno.ENODATA
    meta = json.loads((committed / "x.meta.json").read_text())
    assert meta["codec"] == "sparse" and "sha256" not in meta and meta["shape"] == [1 << 38]
    head = (root / ".ckptstore/steps/7.json").read_text().splitlines()[0]
    assert json.loads(head + "]}")["required"] == ["sparse"]
    writable.stop()
    again = mount(root)
    check(again.top / "7/blob")
    check_array(again.top / "7/x.npy")


def test_holes_are_told(committed):
    fd = os.open(committed / "blob", os.O_RDONLY)
    starts, at = [], 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            break
        starts.append(at)
        at = os.lseek(fd, at, os.SEEK_HOLE)
    os.close(fd)
    assert starts == [0, 4 << 20, 700 << 30, TIB - (1 << 20)] and at == TIB


def test_commands(committed, root, tmp_path):
    util.ckptfs("verify", root)
    util.ckptfs("cp", root, "7", tmp_path / "copy", "-r")
    check(tmp_path / "copy/blob")
    assert (tmp_path / "copy/blob").stat().st_blocks * 512 < 32 << 20
    check_array(tmp_path / "copy/x.npy")
    util.ckptfs("export", f"{root}/7", tmp_path / "exported", "--format", "npy")
    check_array(tmp_path / "exported/x.npy")
    util.ckptfs("import", tmp_path / "copy", root / "8")
    util.ckptfs("diff", f"{root}/7", f"{root}/8")
    assert (
        len(list((root / ".ckptstore/objects").glob("*/*"))) <= 5 + 2
    )  # stored once: two sparse ones, a pack, its sums
    with open(tmp_path / "copy/blob", "r+b") as f:
        f.seek(400 << 30)
        f.write(b"x")
    util.ckptfs("import", tmp_path / "copy", root / "9")
    util.ckptfs("diff", f"{root}/7", f"{root}/9", check=6)
    util.run("rm", "-r", tmp_path / "copy")


def test_damage(committed, root):
    record = [
        json.loads(line.rstrip(",")) for line in (root / ".ckptstore/steps/7.json").read_text().splitlines()[1:-1]
    ]
    name = next(r["object"] for r in record if r["name"] == "blob")
    path = root / f".ckptstore/objects/{name[:2]}/{name}"
    data = bytearray(path.read_bytes())
    for at in 20, len(data) - 97, len(data) - 120:  # a chunk, the index, a number in it
        data[at] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        util.ckptfs("verify", root, check=4)
        data[at] ^= 1
    path.write_bytes(data)
    util.ckptfs("verify", root)


def test_change(committed, root):
    """A changed sparse file has bytes of its own first, and they are few."""
    with open(committed / "blob", "r+b") as f:
        f.seek(300 << 30)
        f.write(b"changed")
    with open(committed / "x.npy", "r+b") as f:
        f.seek(128 + 4 * 500)
        f.write(np.float32(7).tobytes())
    trees.commit(committed)
    check(committed / "blob", places={**PLACES, 300 << 30: b"changed"})
    check_array(committed / "x.npy")
    assert np.load(committed / "x.npy", mmap_mode="r")[500] == 7
    assert taken(root) < 64 << 20
    util.ckptfs("verify", root)


def test_copies(committed, root, writable):
    (writable.top / "8").mkdir()
    util.run("cp", "-a", *committed.iterdir(), writable.top / "8")
    trees.commit(writable.top / "8")
    check(writable.top / "8/blob")
    check_array(writable.top / "8/x.npy")
    assert taken(root) < 64 << 20
    util.ckptfs("verify", root)


def test_pieces(writable, root):
    """What is joined of pieces has their holes, and is as quick."""
    step = writable.top / "7"
    step.mkdir()
    make_array(step / "x@0:1,:.npy", (1, 1 << 35))
    make_array(step / "x@1:2,:.npy", (1, 1 << 35))
    make_array(step / "y@:,0:1024.npy", (1 << 20, 1024))
    make_array(step / "y@:,1024:2048.npy", (1 << 20, 1024))
    trees.commit(step)
    x = np.load(step / "x.npy", mmap_mode="r")
    assert x.shape == (2, 1 << 35)
    for i in 0, 1:
        assert x[i, [0, 123_456_789, 123_456_790, -1]].tolist() == [1, 3.5, 0, 2]
    y = np.load(step / "y.npy", mmap_mode="r")
    at = divmod(123_456_789, 1024)
    for first in 0, 1024:
        assert y[0, first] == 1 and y[-1, first + 1023] == 2 and y[at[0], first + at[1]] == 3.5
    assert np.count_nonzero(y[at[0] - 10 : at[0] + 10]) == 2
    assert taken(root) < 64 << 20
    util.ckptfs("verify", root)


@pytest.mark.parametrize("wait", [0, 0.5])  # for the background, which may have made an object of it
def test_too_large(writable, wait):
    """A file of a step has at most 2^62 bytes. Where the kernel writes by itself, and the file system lets it, the
    commit tells.
    """
    step = writable.top / "7"
    step.mkdir()
    with open(step / "x", "wb") as f:
        for change in (lambda: f.truncate((1 << 62) + 1), lambda: os.posix_fallocate(f.fileno(), 1 << 62, 1)):
            with pytest.raises(OSError) as e:
                change()
            assert e.value.errno == errno.EFBIG
        try:
            os.pwrite(f.fileno(), b"x", 1 << 62)
        except OSError as e:
            assert e.errno == errno.EFBIG
            return
    time.sleep(wait)
    with pytest.raises(OSError) as e:
        trees.commit(step)
    assert e.value.errno == errno.EFBIG and "at most 4611686018427387904" in trees.attribute(step, "error")


def test_exbibytes(writable, root):
    """As long as a file can be: its commit ends, and so does what reads it."""
    step = writable.top / "7"
    step.mkdir()
    size = 1 << 62
    (step / "x").write_bytes(b"")
    while True:
        try:
            os.truncate(step / "x", size)
            break
        except OSError as e:  # ext4 has files of 16 TiB at most
            assert e.errno == errno.EFBIG
            size //= 2
    with open(step / "x", "r+b") as f:
        f.seek(size // 2)
        f.write(b"middle")
    trees.commit(step)
    assert (step / "x").stat().st_size == size
    with open(step / "x", "rb") as f:
        assert f.seek(1, os.SEEK_DATA) == size // 2 and f.read(6) == b"middle"
    util.ckptfs("verify", root)


def test_closes(mount, root):
    """The holes of one user's file are no work, for the background as for the commit: nobody waits for them at a
    close.
    """
    m = mount(root, "allow_other", trees.EXPLICIT)
    (m.top / "100").mkdir()
    for i in range(8):
        make(m.top / f"100/sparse{i}", places={})
    (m.top / "2").mkdir()
    for i in range(8):
        util.run("sh", "-c", f"head -c 80000 /dev/urandom > {m.top}/2/f{i}", limit=30)
    trees.commit(m.top / "2")
