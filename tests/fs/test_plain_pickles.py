"""Pickles by themselves: what pickle.dump writes of NumPy arrays, small and large, by all protocols."""

import collections
import contextlib
import errno
import json
import os
import pickle
import struct
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import util

MIB = 1 << 20
RNG = np.random.default_rng(7)
BIG = RNG.standard_normal((300, 200)).astype("f4")
Network = collections.namedtuple("Network", "policy value")
Network.__module__ = "somewhere.else"  # where nobody could import it from


def same(path, want):
    got = np.load(path)
    assert got.shape == want.shape and got.itemsize == want.itemsize, path
    assert got.tobytes() == want.tobytes(), path


@contextlib.contextmanager
def importable(made):
    """A class can be pickled by its name, for as long as that takes."""
    names = "somewhere", "somewhere.else"
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[made.__module__], made.__name__, made)
    yield
    for name in names:
        del sys.modules[name]


def haiku():
    """Parameters as Haiku has them; some arrays are longer than what is kept in memory."""
    return {
        "mlp/~/linear_0": {"w": BIG, "b": np.arange(3, dtype="f8")},
        "order": np.asfortranarray(RNG.standard_normal((150, 200))),
        "swapped": np.arange(30000, dtype=">i4"),
        "bf16": RNG.standard_normal((200, 300)).astype(ml_dtypes.bfloat16),
        "text": np.array(["ab", "ü"] * 10000),
        "parts": np.zeros(3000, dtype=[("a", "f4"), ("b", "i8", (2,))]),
        "bytes": bytes(range(256)) * 400,
        "array": bytearray(b"xyz" * 40000),
        "step": 3,
    }


@pytest.mark.parametrize("protocol", range(6))
def test_protocols(mount, tmp_path, protocol):
    tree = haiku()
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol))
    m = mount(tmp_path / "x.pkl")
    layer = m / "mlp%2F~%2Flinear_0"
    same(layer / "w.npy", BIG)
    same(layer / "b.npy", tree["mlp/~/linear_0"]["b"])
    same(m / "order.npy", np.ascontiguousarray(tree["order"]))
    same(m / "swapped.npy", tree["swapped"].astype("<i4"))
    for name in ("bf16", "text", "parts"):
        same(m / f"{name}.npy", tree[name])
    same(layer / "w@7:200:3,::-2.npy", np.ascontiguousarray(BIG[7:200:3, ::-2]))
    assert (m / "bytes").read_bytes() == tree["bytes"] and (m / "array").read_bytes() == tree["array"]
    assert (m / "step.json").read_text() == "3\n"
    assert json.loads((m / "bf16.meta.json").read_text())["dtype"] == "bfloat16"
    assert os.getxattr(m.top, "user.ckpt.format") == b"pickle"
    assert json.loads(util.ckptfs("verify", "--json", tmp_path / "x.pkl").stdout)["faults"] == []


def test_which_files(mount, tmp_path):
    """A pickle is known by how it begins, under names that checkpoints have."""
    (tmp_path / "s").mkdir()
    data = pickle.dumps({"w": np.ones(3)})
    for name in ("a.pkl", "b.PICKLE", "c.bin", "d.pt", "e.ckpt", "suffixless"):
        (tmp_path / "s" / name).write_bytes(data)
    (tmp_path / "s/old.pkl").write_bytes(pickle.dumps({"w": np.ones(3), "n": [1, 2]}, 0))
    (tmp_path / "s/text.pkl").write_text("I am no pickle.\nI am a text.")
    (tmp_path / "s/empty.pkl").write_bytes(b"")
    (tmp_path / "s/x.txt").write_bytes(data)
    m = mount(tmp_path / "s")
    opened = {name for name in os.listdir(m.top) if (m / name).is_dir()}
    assert opened == {"a.pkl", "b.PICKLE", "c.bin", "d.pt", "e.ckpt", "suffixless", "old.pkl"}
    for name in opened:
        same(m / name / "w.npy", np.ones(3))
    same(mount(tmp_path / "s/x.txt") / "w.npy", np.ones(3))


def test_brax(mount, tmp_path):
    """A tuple of a statistics object and parameters, as Brax saves them; the class is nobody's."""
    with importable(Network):
        (tmp_path / "p.pickle").write_bytes(pickle.dumps((Network(np.ones(2), {"k": BIG}), {"params": np.zeros(1)})))
    m = mount(tmp_path / "p.pickle")
    assert sorted(os.listdir(m.top)) == ["0", "1"] and os.getxattr(m.top, "user.ckpt.kind") == b"tuple"
    found = {os.path.relpath(os.path.join(d, f), m.top) for d, _, files in os.walk(m.top) for f in files}
    assert "1/params.npy" in found and any(f.endswith("k.npy") for f in found), found
    same(m / next(f for f in found if f.endswith("k.npy")), BIG)


def test_several(mount, tmp_path):
    """Pickles one after another are a list of them; what else follows is nobody's."""
    parts = [{"w": BIG}, [1, "a"], np.arange(3)]
    (tmp_path / "x.pkl").write_bytes(b"".join(pickle.dumps(p) for p in parts))
    (tmp_path / "y.pkl").write_bytes(pickle.dumps({"a": 1}) + b"trailing")
    (tmp_path / "z.pkl").write_bytes(pickle.dumps({"w": BIG}) + pickle.dumps({"w": BIG})[:-1000])
    m = mount(tmp_path)
    assert sorted(os.listdir(m / "x.pkl")) == ["0", "1", "2.npy"]
    same(m / "x.pkl/0/w.npy", BIG)
    same(m / "x.pkl/2.npy", np.arange(3))
    assert os.listdir(m / "y.pkl") == ["a.json"]
    with pytest.raises(OSError) as e:
        os.listdir(m / "z.pkl")
    assert e.value.errno == errno.EBADMSG


def large_pickle(path, count, size):
    """{i: bytearray of `size` zeros}, which take no room on disk; in each the first bytes are its number."""
    with open(path, "wb") as f:
        f.write(b"\x80\x05}(")
        for i in range(count):
            f.write(b"M" + struct.pack("<H", i) + b"\x8e" + struct.pack("<Q", size))
            f.write(struct.pack("<Q", i))
            f.seek(size - 8, os.SEEK_CUR)
        f.write(b"u.")


def test_large(mount, tmp_path):
    """50 GiB: opening it reads the pickle alone, reading takes what is asked for."""
    large_pickle(tmp_path / "x.pkl", 50, 1 << 30)
    m = mount(tmp_path / "x.pkl")
    assert len(os.listdir(m.top)) == 50
    for i in (0, 49):
        with open(m / str(i), "rb") as f:
            assert f.read(8) == struct.pack("<Q", i) and f.seek(0, os.SEEK_END) == 1 << 30
    assert util.SANITIZED or m.memory() < 64 * MIB


def test_damage(mount, tmp_path):
    """Data of another length than the shape; a file that ends early; a storage that no pickle has."""
    good = pickle.dumps({"w": BIG, "n": 1})
    length = struct.pack("<I", BIG.nbytes)
    assert good.count(length) == 1
    (tmp_path / "cut.pkl").write_bytes(good[: len(good) // 2])
    (tmp_path / "short.pkl").write_bytes(good.replace(b"K\x01M\x2c\x01K\xc8", b"K\x01M\x2d\x01K\xc8"))
    (tmp_path / "huge.pkl").write_bytes(good.replace(b"B" + length, b"B" + struct.pack("<I", 0xFFFFFFFF)))
    storage = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ."
    (tmp_path / "storage.pkl").write_bytes(storage)
    m = mount(tmp_path)
    for name in ("cut.pkl", "huge.pkl"):
        with pytest.raises(OSError) as e:
            os.listdir(m / name)
        assert e.value.errno == errno.EBADMSG, name
    for path in ("short.pkl/w.npy", "storage.pkl/%.npy"):
        assert util.read_error(m / path) == errno.EUCLEAN, path
    assert (m / "short.pkl/n.json").read_text() == "1\n"


def test_no_storage(mount, tmp_path):
    """Bytes that only begin like a storage that PyTorch saved, and are loaded like one, are an object's."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    for i, data in enumerate((magic, magic + b"\x80\x02M\xe9\x03.", magic + b"x" * 100)):
        pickled = b"\x80\x04}(K\x07K\x08K\x09ctorch.storage\n_load_from_bytes\nC" + bytes([len(data)]) + data
        (tmp_path / f"{i}.pkl").write_bytes(pickled + b"\x85Ru.")
    m = mount(tmp_path)
    for i, size in enumerate((15, 21, 115)):
        assert (m / f"{i}.pkl/7.json").read_text() == "8\n"
        assert (m / f"{i}.pkl/9/args/0").stat().st_size == size
