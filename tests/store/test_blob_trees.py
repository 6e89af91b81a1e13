"""A checkpoint file that was copied into a step is a blob, and opens up as a tree under BLOB.tree."""

import errno
import json
import os
import struct
import threading

import numpy as np
import pytest

import check_fixtures
import trees
import util
from trees import commit

FLAX = util.DATA / "flax-msgpack"


def state(**arrays):
    """A state dict as Flax writes it."""

    def text(s):
        return b"\xd9" + bytes([len(s)]) + s.encode()

    def ndarray(a):
        payload = (
            b"\x93"
            + bytes([0x90 + a.ndim])
            + b"".join(b"\xce" + struct.pack(">I", n) for n in a.shape)
            + text(a.dtype.name)
        )
        payload += b"\xc6" + struct.pack(">I", a.nbytes) + a.tobytes()
        return b"\xc9" + struct.pack(">I", len(payload)) + b"\x01" + payload

    return bytes([0x80 + len(arrays)]) + b"".join(text(name) + ndarray(a) for name, a in arrays.items())


def attribute(path, name):
    return os.getxattr(path, f"user.ckpt.{name}").decode()


@pytest.mark.parametrize(
    "case", ["adam", "dtypes", "chunked", "scalars", "odd-keys", "top-int", "top-empty", "native-lists"]
)
def test_tree(writable, case):
    """The tree is the one that the file is when it is mounted by itself, whatever else the step holds."""
    step = writable / "7"
    trees.put(step / "notes.txt", b"notes")
    trees.put(step / "deep/weights.msgpack", (FLAX / f"{case}.msgpack").read_bytes())
    commit(step)
    truth = json.loads((FLAX / f"{case}.truth.json").read_text())
    faults = check_fixtures.compare(
        str(step / "deep/weights.msgpack.tree"), check_fixtures.expectation(truth, str(FLAX / f"{case}.msgpack"))
    )
    assert not faults, "\n".join(faults)
    assert (
        sorted(os.listdir(step / "deep")) == ["weights.msgpack"]
        and attribute(step / "deep/weights.msgpack.tree", "format") == "flax-msgpack"
    )
    for name in ("notes.txt.tree", "deep.tree", "deep/weights.tree", "nothing.tree", "deep/weights.msgpack.tree.tree"):
        with util.fails(errno.ENOENT):
            os.stat(step / name)


@pytest.mark.parametrize(
    "data",
    [
        np.arange(3_000_000, dtype=np.int32) // 100,
        np.random.default_rng(1).integers(0, 2**31, 3_000_000, dtype=np.int32),
        np.arange(40, dtype=np.int32),
    ],
    ids=["encoded", "plain", "packed"],
)
def test_forms(writable, root, data):
    """However the store keeps the blob: views, slices, mmap, and nothing but what is asked for."""
    step = writable / "7"
    trees.put(step / "w.msgpack", state(first=data, second=data.reshape(-1, 8)))
    commit(step)
    top = step / "w.msgpack.tree"
    before = json.loads((writable / ".ckptfs/stats.json").read_text())["bytes_fetched"]
    assert np.array_equal(np.load(top / "second@-3:,::-2.npy"), data.reshape(-1, 8)[-3:, ::-2])
    assert (
        data.nbytes < 1 << 20
        or json.loads((writable / ".ckptfs/stats.json").read_text())["bytes_fetched"] - before < 6 << 20
    )
    assert (
        np.array_equal(np.load(top / "first.npy", mmap_mode="r"), data)
        and (top / "second").read_bytes() == data.tobytes()
    )
    assert json.loads((top / ".tree.json").read_text())["format"] == "flax-msgpack"
    with open(step / "w.msgpack.tree.safetensors", "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        assert set(json.loads(f.read(size))) == {"__metadata__", "first", "second"}


def test_nested(writable):
    """A tree in a blob of a tree."""
    inner = state(a=np.arange(5))
    outer = b"\x81\xa9i.msgpack\xc5" + struct.pack(">H", len(inner)) + inner
    step = writable / "7"
    trees.put(step / "o.msgpack", outer)
    commit(step)
    assert os.listdir(step / "o.msgpack.tree") == ["i.msgpack"]
    assert np.load(step / "o.msgpack.tree/i.msgpack.tree/a.npy").tolist() == [0, 1, 2, 3, 4]


def test_malformed(writable):
    """A directory that does not open, and says why; its neighbours do."""
    step = writable / "7"
    trees.put(step / "cut.msgpack", (FLAX / "adam.msgpack").read_bytes()[:-1])
    trees.put(step / "good.msgpack", (FLAX / "adam.msgpack").read_bytes())
    commit(step)
    with util.fails(errno.EBADMSG):
        os.listdir(step / "cut.msgpack.tree")
    assert attribute(step / "cut.msgpack.tree", "error") and os.listdir(step / "good.msgpack.tree")


def test_life(writable, root):
    """It goes with its step, and what is open of it is read to the end; nothing is left behind."""
    step, data = writable / "7", np.random.default_rng(2).integers(0, 100, 500_000)
    trees.put(step / "w.msgpack", state(a=data))
    commit(step)
    with open(step / "w.msgpack.tree/a", "rb", buffering=0) as f:
        assert f.read(4096) == data.tobytes()[:4096]
        trees.put(step / "w.msgpack", state(a=data + 1))
        commit(step)
        assert np.array_equal(np.load(step / "w.msgpack.tree/a.npy"), data + 1)
        trees.run("rm", "-r", step)
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert f.read() == data.tobytes()[4096:]
    with util.fails(errno.ENOENT):
        os.stat(step / "w.msgpack.tree")
    held = writable.descriptors()
    for n in range(30):
        trees.put(writable / f"{n}/w.msgpack", state(a=np.arange(n)))
        commit(writable / f"{n}")
        assert len(np.load(writable / f"{n}/w.msgpack.tree/a.npy")) == n
        trees.run("rm", "-r", writable / f"{n}")
    util.wait_for(lambda: writable.descriptors() < held + 10, 30)


def test_at_once(writable):
    """Several readers of several trees."""
    step, faults = writable / "7", []
    for n in range(4):
        trees.put(step / f"{n}.msgpack", state(a=np.arange(200_000) + n, b=np.full((50, 50), n)))
    commit(step)

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            n, at = int(rng.integers(4)), int(rng.integers(200_000))
            if (
                np.load(step / f"{n}.msgpack.tree/a@{at}.npy") != at + n
                or (np.load(step / f"{n}.msgpack.tree/b.npy") != n).any()
            ):
                faults.append((n, at))

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_commands(writable, root):
    """The commands see it too."""
    trees.put(writable / "7/w.msgpack", state(a=np.arange(4, dtype=np.float32)))
    commit(writable / "7")
    assert util.ckptfs("ls", root, "7/w.msgpack.tree").stdout.split() == ["a.npy"]
    assert util.ckptfs("cat", root, "7/w.msgpack.tree/a.txt").stdout.startswith("dtype  float32")
