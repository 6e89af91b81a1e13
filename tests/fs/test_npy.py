"""NumPy's files in a mount: an .npy file with its views, an .npz archive as a directory."""

import errno
import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest

import util
from util import fails

ARRAYS = {
    "plain": np.arange(60, dtype="<f4").reshape(3, 4, 5),
    "big": np.arange(60, dtype=">i8").reshape(3, 20),
    "fortran": np.asfortranarray(np.arange(60, dtype="<i2").reshape(5, 12)),
    "both": np.asfortranarray(np.arange(60, dtype=">c16").reshape(5, 12)),
    "scalar": np.array(1.5),
    "nothing": np.zeros((3, 0, 2), "u1"),
    "text": np.array(["ab", "\u00e9", ""], ">U3"),
    "time": np.array(["2024-01-01", "NaT"], ">M8[D]"),
    "long": np.array([1.25, -2], ">f16"),
    "record": np.array([(1, 2.5), (3, -1)], [("x", "<i4"), ("y", ">f8")]),
    "a%b": np.arange(3),
    "a@b": np.arange(4),
    "\u00e4\x07": np.arange(5),
}


def little(a):
    """The bytes of view KEY: C order, little-endian, the fields of a record as they are."""
    return np.ascontiguousarray(a.astype(a.dtype if a.dtype.names else a.dtype.newbyteorder("<"))).tobytes()


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as z:
        for name, data in members.items():
            z.writestr(name, data)


def npy(a, **kwargs):
    f = io.BytesIO()
    np.lib.format.write_array(f, a, **kwargs)
    return f.getvalue()


def attributes(path):
    return {
        name.removeprefix("user.ckpt."): os.getxattr(path, name).decode()
        for name in os.listxattr(path)
        if name.startswith("user.ckpt.")
    }


def fetched(m):
    return json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"]


# --- .npy


@pytest.mark.parametrize("kind", ["folder", "stored", "deflated"])
def test_views(kind, mount, tmp_path):
    """What can be looked up beside an .npy file, be it a file or a member of an archive."""
    source = tmp_path / "data"
    source.mkdir()
    for name, a in ARRAYS.items():
        np.save(source / f"{name}.npy", a)
    files = {name: (source / f"{name}.npy").read_bytes() for name in ARRAYS}
    if kind != "folder":
        source = tmp_path / "data.npz"
        zipped(
            source,
            {f"{name}.npy": data for name, data in files.items()},
            zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED,
        )
    m = mount(source)
    listed = {name: name if kind == "folder" else name.replace("%", "%25").replace("\x07", "%07") for name in ARRAYS}
    assert sorted(os.listdir(m.top)) == sorted(f"{name}.npy" for name in listed.values())
    for name, a in ARRAYS.items():
        at = m / listed[name]
        assert at.with_name(at.name + ".npy").read_bytes() == files[name], name
        assert at.read_bytes() == little(a), name
        assert at.stat().st_size == a.nbytes
        meta = json.loads(at.with_name(at.name + ".meta.json").read_text())
        assert (meta["kind"], meta["shape"], meta["bytes"]) == ("array", list(a.shape), a.nbytes)
        assert at.with_name(at.name + ".txt").read_text().startswith("dtype "), name
        for index in ["0:1", "::-1", "-1", "1:,0", "..."] if a.ndim else ["..."]:
            want = try_index(a, index)
            view = at.with_name(f"{at.name}@{index}.npy")
            if want is None:
                with fails(errno.ENOENT):
                    view.read_bytes()
                continue
            got = np.load(view)
            assert got.shape == want.shape and got.tobytes() == little(want), f"{name}@{index}"
            assert got.dtype == (a.dtype if a.dtype.names else a.dtype.newbyteorder("<"))
            assert at.with_name(f"{at.name}@{index}").read_bytes() == little(want)
    with fails(errno.ENOENT):
        (m / "plain@9").read_bytes()
    with fails(errno.ENOENT):
        (m / "missing").read_bytes()


def try_index(a, index):
    try:
        return eval(f"a[{index}]" if "..." in index else f"a[{index}, ...]", {"a": a})
    except IndexError:
        return None


def test_attributes(mount, tmp_path):
    """An .npy file in a folder is a file that says what is in it; a malformed one says nothing."""
    runs = tmp_path / "runs"
    runs.mkdir()
    np.save(runs / "w.npy", np.zeros((2, 3), ">f4"))
    (runs / "bad.npy").write_bytes(b"\x93NUMPY\1\0v\0{'descr': ")
    (runs / "objects.npy").write_bytes(npy(np.array([{}], object)))
    (runs / "notes.txt").write_text("a text")
    m = mount(runs)
    assert sorted(os.listdir(m.top)) == ["bad.npy", "notes.txt", "objects.npy", "w.npy"]
    told = attributes(m / "w.npy")
    assert (told["key"], told["kind"], told["dtype"], told["shape"], told["format"]) == (
        "w",
        "array",
        "float32",
        "[2,3]",
        "npy",
    )
    assert os.getxattr(m / "w", "user.ckpt.dtype") == b"float32"
    for name in ("bad.npy", "objects.npy", "notes.txt"):
        assert attributes(m / name) == {}
        with fails(errno.ENODATA):
            os.getxattr(m / name, "user.ckpt.kind")
        with fails(errno.ENOENT):
            (m / name).with_suffix("").read_bytes()
        with fails(errno.ENOENT):
            (m / f"{name.split('.')[0]}@0.npy").read_bytes()
        assert (m / name).read_bytes() == (runs / name).read_bytes()
    (runs / "w.npy").unlink()
    np.save(runs / "w.npy", np.zeros(7, "<i2"))  # another file of that name
    util.wait_for(lambda: attributes(m / "w.npy").get("shape") == "[7]" and (m / "w").stat().st_size == 14, limit=10)


def test_source_file(mount, tmp_path):
    """A source that is an .npy file: a directory with that file."""
    a = np.arange(24).reshape(4, 6)
    np.save(tmp_path / "a%.b.npy", a)
    m = mount(tmp_path / "a%.b.npy")
    assert os.listdir(m.top) == ["a%.b.npy"]
    assert (m / "a%.b.npy").read_bytes() == (tmp_path / "a%.b.npy").read_bytes()
    assert (np.load(m / "a%.b@1:3,::2.npy") == a[1:3, ::2]).all()
    assert attributes(m / "a%.b.npy")["dtype"] == "int64"


def test_bad_source(tmp_path):
    whole, top = npy(np.arange(100)), tmp_path / "mnt"
    top.mkdir()
    for name, data, why in [
        ("cut.npy", whole[:-1], "too early"),
        ("empty.npy", b"", "header"),
        ("text.npy", b"hello", "not an .npy"),
        ("object.npy", npy(np.array([{}], object)), "Python objects"),
        ("no.npz", b"hello", "zip"),
        ("cut.npz", b"PK\3\4", "no end"),
    ]:
        (tmp_path / name).write_bytes(data)
        done = util.ckptfs("mount", tmp_path / name, top, check=4)
        assert why in done.stderr and not util.mounted(top), done.stderr


def test_after_the_last_element(mount, tmp_path):
    """What follows is part of the file, and not of the array."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f/two.npy").write_bytes(npy(np.arange(3)) + npy(np.arange(4)))
    m = mount(tmp_path / "f")
    assert (m / "two.npy").read_bytes() == (tmp_path / "f/two.npy").read_bytes()
    assert (m / "two").read_bytes() == np.arange(3).tobytes()


def test_long_header(mount, tmp_path):
    """Longer than what is read at first."""
    (tmp_path / "f").mkdir()
    for size in (900, 2000, 70000):
        text = b"{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }".ljust(size) + b"\n"
        (tmp_path / f"f/h{size}.npy").write_bytes(
            b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text + np.arange(3, dtype="<i4").tobytes()
        )
    m = mount(tmp_path / "f")
    for size in (900, 2000, 70000):
        assert (m / f"h{size}").read_bytes() == np.arange(3, dtype="<i4").tobytes()


@pytest.mark.parametrize("descr", ["<f4", ">f4"])
def test_huge(descr, mount, tmp_path):
    """Of a file that is mostly a hole, a slice reads what it needs."""
    shape = (1 << 20, 2560)  # 10 GiB
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    (tmp_path / "f").mkdir()
    with open(tmp_path / "f/w.npy", "wb") as f:
        f.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
        f.truncate(128 + 4 * shape[0] * shape[1])
        f.seek(128 + 4 * (1000000 * 2560 + 100))
        f.write(np.array([1.5], descr).tobytes())
    m = mount(tmp_path / "f")
    before = fetched(m)
    row = np.load(m / "w@1000000,0:1024.npy")
    assert row.shape == (1024,) and row[100] == 1.5 and not row[101:].any()
    assert fetched(m) - before < 40000
    assert (m / "w").stat().st_size == 4 * shape[0] * shape[1]
    assert m.memory() < 64 << 20


# --- .npz


def test_members(mount, tmp_path):
    """Folders, other files, and names that are none of a file."""
    a = npy(np.arange(4))
    members = {
        "w.npy": a,
        "layer/0/b.npy": a,
        "w/x.npy": a,
        "readme.txt": b"hi there",
        "d/": b"",
        "e/f/": b"",
        "../up.npy": a,
        "/abs.npy": a,
        "x//y.npy": a,
        ".npy": a,
        "c:\\z.npy": a,
        "%.npy": a,
        "u/\u00fc\n.npy": a,
        "k": b"a blob",
        "k/l.npy": a,
        ".ckptfs": b"mine",
        "q.npy/r.npy": a,
        "q.npy": a,
    }
    zipped(tmp_path / "x.npz", members)
    m = mount(tmp_path / "x.npz")
    got = {
        os.path.relpath(os.path.join(top, name), m.top) for top, dirs, files in os.walk(m.top) for name in dirs + files
    }
    assert got == {
        "w.npy",
        "layer",
        "layer/0",
        "layer/0/b.npy",
        "w",
        "w/x.npy",
        "readme.txt",
        "d",
        "e",
        "e/f",
        "%2E%2E",
        "%2E%2E/up.npy",
        "%",
        "%/abs.npy",
        "x",
        "x/%",
        "x/%/y.npy",
        "%.npy",
        "c:\\z.npy",
        "%25.npy",
        "u",
        "u/\u00fc%0A.npy",
        "k",
        "%6B",
        "%6B/l.npy",
        "%2Eckptfs",
        "q.npy",
        "q.npy/r.npy",
        "%71.npy",
    }
    assert (m / "readme.txt").read_bytes() == b"hi there" and (m / "k").read_bytes() == b"a blob"
    for name in ("w.npy", "%2E%2E/up.npy", "%71.npy", "%.npy"):
        assert (m / name).read_bytes() == a
    assert (m / "w").is_dir() and (np.load(m / "w@1:.npy") == np.arange(1, 4)).all()
    assert json.loads((m / "w.meta.json").read_text())["crc32"] == f"{zlib.crc32(a):08x}"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bad_members(method, mount, tmp_path):
    """One that cannot be read is a file without views; its neighbours are as they were."""
    good = npy(np.arange(1000))
    zipped(
        tmp_path / "x.npz",
        {"objects.npy": npy(np.array([{}], object)), "cut.npy": good[:-1], "no.npy": b"text", "w.npy": good},
        method,
    )
    m = mount(tmp_path / "x.npz")
    assert sorted(os.listdir(m.top)) == ["cut.npy", "no.npy", "objects.npy", "w.npy"]
    assert (m / "w").read_bytes() == np.arange(1000).tobytes()
    for name, code in [("objects", errno.EOPNOTSUPP), ("cut", errno.EBADMSG), ("no", errno.EUCLEAN)]:
        with zipfile.ZipFile(tmp_path / "x.npz") as z:
            assert (m / f"{name}.npy").read_bytes() == z.read(f"{name}.npy")
        with fails(code):
            (m / name).read_bytes()
        assert "error" in attributes(m / f"{name}.npy")
    assert [("error" in leaf) for leaf in json.loads((m / ".tree.json").read_text())["leaves"]] == [
        True,
        True,
        True,
        False,
    ]
    done = util.ckptfs("verify", tmp_path / "x.npz", check=4)
    assert "cut.npy" in done.stdout + done.stderr
    zipped(tmp_path / "all.npz", {"objects.npy": npy(np.array([{}], object)), "notes": b"text"}, method)
    done = util.ckptfs("ls", tmp_path / "all.npz", check=4)
    assert "Python objects" in done.stderr


def test_damage(mount, tmp_path):
    """A stored member's checksum is checked by verify; a deflated one's also when it is read."""
    good = npy(np.random.default_rng(1).integers(0, 9, 100000))
    for name, method in [("s", zipfile.ZIP_STORED), ("d", zipfile.ZIP_DEFLATED)]:
        zipped(tmp_path / f"{name}.npz", {"w.npy": good, "x.npy": good}, method)
        util.ckptfs("verify", tmp_path / f"{name}.npz")
        data = bytearray((tmp_path / f"{name}.npz").read_bytes())
        crc = data.index(b"PK\1\2") + 16
        data[crc] ^= 1  # what the directory says of the first
        (tmp_path / f"{name}.npz").write_bytes(data)
        done = util.ckptfs("verify", tmp_path / f"{name}.npz", check=4)
        assert "CRC-32" in done.stdout + done.stderr and "w.npy" in done.stdout + done.stderr
        m = mount(tmp_path / f"{name}.npz")
        assert (m / "x.npy").read_bytes() == good
        if name == "d":
            with fails(errno.EBADMSG):
                (m / "w.npy").read_bytes()
            with fails(errno.EBADMSG):
                (m / "w@0.npy").read_bytes()
        else:
            assert (m / "w.npy").read_bytes() == good


def test_large_deflated(mount, tmp_path):
    """More than memory may take: read in order in one pass, and at random."""
    a = np.zeros((100, 1 << 20), "<f4")  # 400 MiB
    a[:, ::4096] = np.arange(100)[:, None]
    np.savez_compressed(tmp_path / "x.npz", w=a)
    m = mount(tmp_path / "x.npz", "cache=64M")
    with open(m / "w.npy", "rb") as f:
        for row in a if f.read(128) else ():
            assert f.read(row.nbytes) == row.tobytes()
    stats = json.loads((m / ".ckptfs/stats.json").read_text())
    assert stats["chunks_decoded"] == 1
    for i in (99, 3, 50):
        assert (np.load(m / f"w@{i},4090:8200.npy") == a[i, 4090:8200]).all()
    if not util.SANITIZED:
        assert m.memory() < 200 << 20


def test_many_members(mount, tmp_path):
    a = npy(np.arange(2, dtype="<i2"))
    zipped(tmp_path / "x.npz", {f"layer{i // 100}/w{i}.npy": a for i in range(20000)})
    m = mount(tmp_path / "x.npz")
    assert len(os.listdir(m / "layer7")) == 100
    assert (m / "layer199/w19999").read_bytes() == b"\0\0\1\0"
    assert len(json.loads((m / ".tree.json").read_text())["leaves"]) == 20000


def test_commands(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a/b": np.arange(3), "c": np.float32(2)})
    assert util.ckptfs("ls", tmp_path / "x.npz").stdout.split() == ["a", "c.npy"]
    assert util.ckptfs("cat", tmp_path / "x.npz", "a/b@1.npy", text=False).stdout[-8:] == b"\1" + bytes(7)


def test_safetensors(mount, tmp_path):
    """A subtree as one safetensors file; members that cannot be read are left out of it."""
    import safetensors.numpy

    zipped(
        tmp_path / "x.npz",
        {
            "m/w.npy": npy(np.arange(6, dtype=">f4").reshape(2, 3)),
            "m/o.npy": npy(np.array([{}], object)),
            "m/t.npy": npy(np.array("abc")),
        },
    )
    m = mount(tmp_path / "x.npz")
    got = safetensors.numpy.load((m / "m.safetensors").read_bytes())
    assert list(got) == ["w"] and (got["w"] == np.arange(6).reshape(2, 3)).all()


def test_column_of_a_sparse_array(mount, tmp_path):
    """1 TiB, of which a few rows are there: what is a hole is not read."""
    rows, columns = 1 << 22, 1 << 16
    there = {0: 1.5, 4097: 2.5, rows - 1: 3.5}
    with open(tmp_path / "w.npy", "wb") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})
        begin = f.tell()
        f.truncate(begin + rows * columns * 4)
        for row, value in there.items():
            f.seek(begin + (row * columns + 3) * 4)
            f.write(np.float32(value).tobytes())
    if os.stat(tmp_path / "w.npy").st_blocks > 2048:
        pytest.skip("the file system keeps no holes")
    m = mount(tmp_path)
    want = np.zeros(rows, np.float32)
    want[list(there)] = list(there.values())
    fetches = json.loads((m / ".ckptfs/stats.json").read_text())["fetches"]
    assert (np.load(m / "w@:,3.npy") == want).all() and (np.load(m / "w@::-1,3.npy") == want[::-1]).all()
    assert not np.load(m / "w@::1024,5:1029.npy").any()
    assert json.loads((m / ".ckptfs/stats.json").read_text())["fetches"] - fetches < 1000
