"""What the mount shows of files that NumPy has just saved is, bit for bit, what NumPy loads."""

import os
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import util

pytestmark = pytest.mark.filterwarnings("ignore:Stored array in format")

SLICES = 200
TYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    "c16",
    "G",
    "S7",
    "U3",
    "V5",
    "M8[ns]",
    "m8[25us]",
    "M8[D]",
]
SHAPES = [(), (1,), (0,), (5,), (3, 4), (3, 0, 2), (2, 3, 4, 5), (1, 7, 1)]
RECORD = np.dtype([("x", "<i4"), ("y", ">f8", (2,)), ("\u65e5", "S3"), ("in", [("a", "?"), ("b", "<u2")])])


def filled(dtype, shape, order="C", seed=0):
    """An array of any type with bytes that tell its elements apart."""
    dtype = np.dtype(dtype)
    data = np.random.default_rng(seed).integers(
        0, 2 if dtype.kind == "b" else 100, int(np.prod(shape)) * dtype.itemsize, np.uint8
    )
    if dtype.kind == "U":
        data = np.frombuffer(
            data.astype(dtype.str[0] + "u4")[: data.size // 4 or None].tobytes()[: data.size], np.uint8
        )
    return np.asarray(np.frombuffer(data.tobytes(), dtype).reshape(shape), order=order)


def everything():
    """{key: array} of every type in both byte orders, every shape in both orders."""
    all = {}
    for i, code in enumerate(TYPES):
        for sign in "<>":
            dtype = np.dtype(code).newbyteorder(sign)
            all[f"{code}{sign}"] = filled(dtype, (4, 3), seed=i)
    for i, shape in enumerate(SHAPES):
        for order in "CF":
            for code in ("<f4", ">i2", "<U2"):
                all[f"shape{i}/{order}/{code}"] = filled(code, shape, order, seed=i)
    all["record"] = np.zeros(6, RECORD).view()
    all["record"]["x"] = range(6)
    all["bfloat16"] = np.arange(6, dtype=ml_dtypes.bfloat16)
    all["float8"] = np.arange(6).astype(ml_dtypes.float8_e4m3fn)
    return all


def little(a):
    if a.dtype.names:
        return a.tobytes()
    return a.astype(a.dtype.newbyteorder("<")).tobytes() if a.dtype.kind not in "V" else a.tobytes()


def same_array(got, want):
    """As np.load gives it of the mount, be it with another byte order."""
    assert got.shape == want.shape and got.dtype.itemsize == want.dtype.itemsize
    assert little(got) == little(want)


def random_index(rng, shape):
    """A basic index of an array and its text, some of it out of range."""
    index, text = [], []
    for n in shape[: rng.randint(0, len(shape))]:
        if n and rng.random() < 0.3:
            i = rng.randrange(-n, n)
            index.append(i)
            text.append(str(i))
            continue
        start, stop, step = (rng.choice([None, rng.randint(-n - 2, n + 2)]) for _ in range(3))
        step = step or None
        index.append(slice(start, stop, step))
        text.append(":".join("" if v is None else str(v) for v in (start, stop, step)))
    return (*index, ...), ",".join([*text, "..."])


def check_slices(top, arrays, seed):
    rng = random.Random(seed)
    keys = sorted(key for key, a in arrays.items() if not key.startswith("U"))
    for _ in range(SLICES):
        key = rng.choice(keys)
        index, text = random_index(rng, arrays[key].shape)
        want = arrays[key][index]
        got = np.load(top / f"{key}@{text}.npy")
        same_array(got, want)
        assert (top / f"{key}@{text}").read_bytes() == little(want), f"{key}@{text}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, mount, tmp_path):
    arrays = everything()
    save(tmp_path / "all.npz", **arrays)
    m = mount(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as z, zipfile.ZipFile(tmp_path / "all.npz") as members:
        for key, a in arrays.items():
            path = m / f"{key}.npy"
            assert path.read_bytes() == members.read(f"{key}.npy"), key
            got = np.load(path)
            assert got.dtype == z[key].dtype and got.shape == a.shape and got.tobytes() == z[key].tobytes(), key
            if not (m / key).is_dir():
                assert (m / key).read_bytes() == little(z[key]), key
        check_slices(m.top, {key: z[key] for key in arrays}, save.__name__)


def test_npy_folder(mount, tmp_path):
    runs = tmp_path / "runs"
    arrays = {key.replace("/", "_"): a for key, a in everything().items()}
    runs.mkdir()
    for key, a in arrays.items():
        np.save(runs / f"{key}.npy", a)
    m = mount(runs)
    for key, a in arrays.items():
        loaded = np.load(runs / f"{key}.npy")
        assert (m / f"{key}.npy").read_bytes() == (runs / f"{key}.npy").read_bytes()
        assert (m / key).read_bytes() == little(loaded), key
        mapped = np.load(m / f"{key}.npy", mmap_mode="r") if a.size else loaded
        assert mapped.dtype == loaded.dtype and mapped.tobytes() == loaded.tobytes()
    check_slices(m.top, {key: np.load(runs / f"{key}.npy") for key in arrays}, "folder")
    assert (np.load(m / "bfloat16.npy").view(ml_dtypes.bfloat16) == np.arange(6)).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_names(save, mount, tmp_path):
    """Any name that a file can have, and positional ones."""
    keys = [
        "",
        "a b",
        "\u00e9\u65e5",
        "100%",
        "tab\there",
        "dots.in.name",
        "..",
        "x/y/z",
        "/top",
        "a.npy",
        "long" * 60,
        "quote'\"",
        "@0:1",
        "\\",
    ]
    arrays = {key: np.array([i, -i]) for i, key in enumerate(keys)}
    save(tmp_path / "names.npz", *arrays.values(), **arrays)
    m = mount(tmp_path / "names.npz")
    for i, key in enumerate(keys):
        parts = [{"": "%", "..": "%2E%2E"}.get(p, p.replace("%", "%25").replace("\t", "%09")) for p in key.split("/")]
        assert (np.load(m / f"{'/'.join(parts)}.npy") == [i, -i]).all(), key
        assert (np.load(m / f"arr_{i}.npy") == [i, -i]).all()
    assert sum(len(files) for _, _, files in os.walk(m.top)) == 2 * len(keys)


def test_safetensors(mount, tmp_path):
    arrays = {key: a for key, a in everything().items() if a.dtype.kind in "?biuf" and a.dtype.itemsize <= 8}
    np.savez_compressed(tmp_path / "x.npz", **{f"params/{key}": a for key, a in arrays.items()})
    m = mount(tmp_path / "x.npz")
    got = safetensors.numpy.load((m / "params.safetensors").read_bytes())
    assert got.keys() == {key.replace("/", ".") for key in arrays}
    for key, a in arrays.items():
        want = a.astype(a.dtype.newbyteorder("<"))
        t = got[key.replace("/", ".")]
        assert t.dtype == want.dtype and t.shape == want.shape and t.tobytes() == want.tobytes(), key


def test_other_zips(mount, tmp_path):
    """Archives that other programs write: sizes behind the data, zip64, comments, a prefix, several methods in one."""
    a, big = np.arange(1000), np.zeros(300000)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "big.npy", big)

    class Stream:  # which cannot seek, so that sizes follow the data
        def __init__(self, path, prefix=b""):
            self.f = open(path, "wb")
            self.f.write(prefix)

        def write(self, data):
            return self.f.write(data)

        def flush(self):
            self.f.flush()

    stream = Stream(tmp_path / "stream.npz")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(tmp_path / "a.npy", "a.npy")
        z.write(tmp_path / "big.npy", "d/big.npy", zipfile.ZIP_STORED)
        with z.open("wide.npy", "w", force_zip64=True) as f:
            f.write((tmp_path / "a.npy").read_bytes())
        z.comment = b"c" * 65535
    stream.f.close()
    with open(tmp_path / "prefix.npz", "wb") as f:
        f.write(b"#!/bin/sh\n")
        with zipfile.ZipFile(f, "a") as z:
            z.write(tmp_path / "a.npy", "a.npy")
            z.write(tmp_path / "big.npy", "d/big.npy", zipfile.ZIP_DEFLATED, 9)
            z.write(tmp_path / "a.npy", "wide.npy")
    for name in ("stream.npz", "prefix.npz"):
        m = mount(tmp_path / name)
        for key, want in [("a", a), ("wide", a), ("d/big", big)]:
            assert (np.load(m / f"{key}.npy") == want).all() and (m / key).read_bytes() == want.tobytes(), (name, key)
    bzip = tmp_path / "bzip.npz"
    with zipfile.ZipFile(bzip, "w", zipfile.ZIP_BZIP2) as z:
        z.write(tmp_path / "a.npy", "a.npy")
    assert "method 12" in util.ckptfs("ls", bzip, check=4).stderr
