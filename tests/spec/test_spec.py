"""docs/format.md is enough to write a reader from: store_reader.py is one, and reads what the C code writes."""

import functools
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import store_reader
import util
from util import ckptfs

CODECS = ["auto", "none", "lz4", "blosc"]
CASES = [
    "dtypes",
    "empties_strings_scalars",
    "awkward_keys",
    "sharded_8dev",
    "namedtuple",
    "composite/1",
    "prng_keys",
    "single_save",
    "old_0_2_3/plain",
    "zarr3",
]


@functools.cache
def listed(source, path=""):
    """Paths and metadata of everything in a directory of a source, as a mount would show it."""
    return {
        e["path"].removeprefix(f"{path}/"): e for e in json.loads(ckptfs("ls", source, path, "-R", "--json").stdout)
    }


def cat(source, paths):
    """The bytes of files of a source, one after another."""
    return ckptfs("cat", source, "--", *paths, text=False).stdout if paths else b""


def make_files(top):
    """Files of all sizes and kinds, as a folder that is no checkpoint."""
    random = np.random.default_rng(1)
    smooth = np.cumsum(random.normal(size=800_000)).astype("f4")
    (top / "a/b").mkdir(parents=True)
    (top / "empty").mkdir()
    np.save(top / "large.npy", smooth.reshape(1000, 800))
    np.save(top / "a/noise.npy", random.integers(0, 255, 100_000, dtype="u1"))
    np.save(top / "a/fortran.npy", np.asfortranarray(smooth.reshape(800, 1000)))
    np.save(top / "a/big_endian.npy", smooth[:30_000].astype(">f8"))
    np.save(top / "a/b/structure.npy", np.zeros(20_000, [("x", "<i4"), ("y", "<f8", (2,))]))
    np.save(top / "a/b/text.npy", np.array(["a", "bcd"]))
    np.save(top / "a/b/nothing.npy", np.zeros((0, 3), "i2"))
    np.save(top / "scalar.npy", np.float64(1.5))
    (top / "noise.bin").write_bytes(random.bytes(2_500_000))
    (top / "a/zeros.bin").write_bytes(bytes(1 << 20))  # exactly a chunk
    (top / "a/text.txt").write_text("to be or not to be\n" * 10_000)
    (top / "nothing.bin").write_bytes(b"")
    (top / "value.json").write_text('"gr\u00fc\u00df \\u00e9 \\n"\n')
    (top / "no_value.json").write_text('{"a": [1, 2]}')
    (top / "broken.npy").write_bytes(b"this is no array")
    (top / "many").mkdir()
    for n in range(500):
        (top / f"many/{n}.bin").write_bytes(random.bytes(n))
    for n in 65535, 65536, 65537:  # about where packs end
        (top / f"{n}.bin").write_bytes(random.bytes(n))
    return top


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files") / "tree")


@pytest.fixture(scope="module", params=CODECS)
def store(request, files, tmp_path_factory):
    """A root with the steps of the demo, and the cases as steps, with one codec."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    ckptfs("init", root)
    ckptfs("config", root, f"codec={request.param}")
    for step in 200, 300:
        ckptfs("import", util.DATA / f"demo/{step}", root / str(step))
    for i, case in enumerate(CASES):
        ckptfs("import", util.ORBAX / case, root / f"case_{i}")
    ckptfs("import", files, root / "1000")
    return root


def sources():
    yield "300", util.DATA / "demo/300"
    for i, case in enumerate(CASES):
        yield f"case_{i}", util.ORBAX / case


@pytest.mark.parametrize("name,source", list(sources()), ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_leaf(store, name, source):
    step = store_reader.Store(store).step(name)
    want = {path: e for path, e in listed(source).items() if e["type"] == "file"}
    got = {leaf.path.decode(): leaf for leaf in step.leaves()}
    assert got.keys() == want.keys()
    everything = b"".join(map(step.read, got.values()))
    if cat(source, got) != everything or cat(store, [f"{name}/{path}" for path in got]) != everything:
        for path, leaf in got.items():  # which one is it?
            assert step.read(leaf) == cat(source, [path]) == cat(store, [f"{name}/{path}"]), path
        pytest.fail("all files together differ, and none by itself")
    for path, leaf in got.items():
        kind = want[path].get("kind")
        assert leaf.kind == kind or (leaf.kind, kind) == ("value", "blob"), path
        if kind == "array":
            assert (leaf.dtype or np_name(leaf)) == want[path]["dtype"] and leaf.shape == want[path]["shape"], path


def test_files(store, files):
    """Of a plain folder: every byte, also without the mount's own reader."""
    step = store_reader.Store(store).step("1000")
    got = {leaf.path.decode(): leaf for leaf in step.leaves()}
    want = {p.relative_to(files).as_posix(): p for p in files.rglob("*") if p.is_file()}
    assert got.keys() == want.keys()
    for path, leaf in got.items():
        assert step.read(leaf) == want[path].read_bytes(), path
        array = path.endswith(".npy") and path != "broken.npy"
        assert leaf.kind == ("array" if array else "value" if path == "value.json" else "blob"), path
        if array:
            assert np.array_equal(np.load(io.BytesIO(step.read(leaf))), np.load(want[path])), path
    assert {node.path.decode() for node in step.nodes[1:] if node.kind == "dir"} == {"a", "a/b", "empty", "many"}
    assert got["a/fortran.npy"].fortran and not got["large.npy"].fortran
    codecs = {path: got[path].codec for path in ("large.npy", "a/text.txt", "noise.bin")}
    assert (
        codecs
        == {
            "auto": {"large.npy": "blosc", "a/text.txt": "lz4", "noise.bin": "none"},
            "none": dict.fromkeys(codecs, "none"),
            "lz4": dict.fromkeys(codecs, "lz4"),
            "blosc": {"large.npy": "blosc", "a/text.txt": "lz4", "noise.bin": "lz4"},
        }[store_reader.Store(store).config["codec"]]
    )
    packed = {leaf.object or leaf.sha256 for leaf in got.values() if leaf.kind != "value" and leaf.size < 65536}
    assert len(packed) == 1


def np_name(leaf):
    return "bfloat16" if leaf.descr == "<V2" else np.dtype(leaf.descr).name


def test_directories(store):
    step = store_reader.Store(store).step("300")
    want = {path for path, e in listed(util.DATA / "demo/300").items() if e["type"] == "dir"}
    assert {node.path.decode() for node in step.nodes[1:] if node.kind == "dir"} == want
    kinds = {path: e["kind"] for path, e in listed(store, "300").items() if e["type"] == "dir"}
    assert kinds == {node.path.decode(): node.container for node in step.nodes[1:] if node.kind == "dir"}


def test_order_and_codecs(store):
    s = store_reader.Store(store)
    names = s.steps()
    assert names.index("200") < names.index("300") and [n for n in names if n[0] != "c"] == ["200", "300", "1000"]
    used = {leaf.codec for name in names for leaf in s.step(name).leaves() if leaf.codec}
    codec = s.config["codec"]
    assert (
        used
        <= {
            "auto": {"none", "lz4", "blosc"},
            "none": {"none"},
            "lz4": {"none", "lz4"},
            "blosc": {"none", "lz4", "blosc"},
        }[codec]
    ), used


def test_every_object_is_named_or_garbage(store):
    """Nothing is in objects/ that the page does not tell of."""
    s = store_reader.Store(store)
    named = {leaf.object or leaf.sha256 for name in s.steps() for leaf in s.step(name).leaves() if leaf.kind != "value"}
    here = set()
    for path in (s.dir / "objects").rglob("*"):
        if path.is_dir():
            assert re.fullmatch("[0-9a-f]{2}", path.name)
        else:
            assert re.fullmatch(r"[0-9a-f]{64}(\.sums)?", path.name) and path.name[:2] == path.parent.name
            if not path.name.endswith(".sums"):
                here.add(path.name)
    assert named == here
    for name in here:
        s.object(name)


def test_verify_agrees(store):
    ckptfs("verify", store)
    ckptfs("gc", store)
    test_every_object_is_named_or_garbage(store)


def flip(path, offset):
    os.chmod(path, 0o644)
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 0x40]))


@pytest.fixture(scope="module")
def sparse_store(tmp_path_factory):
    """A root with a step of files of 1 TiB that are mostly holes: their bytes that are not, by path."""
    top = tmp_path_factory.mktemp("sparse")
    places = {
        "blob": {
            0: b"a",
            (5 << 20) - 3: b"across",
            1 << 39: np.random.default_rng(1).bytes(3 << 20),
            (1 << 40) - 1: b"z",
        },
        "none": {},
    }
    (top / "tree").mkdir()
    for name, data in places.items():
        with open(top / "tree" / name, "wb") as f:
            f.truncate(1 << 40)
            for at, what in data.items():
                f.seek(at)
                f.write(what)
    array = np.lib.format.open_memmap(top / "tree/x.npy", mode="w+", dtype="<f4", shape=(1 << 38,))
    array[1 << 37] = 1.5
    array.flush()
    places["x.npy"] = {0: (top / "tree/x.npy").open("rb").read(128), 128 + (4 << 37): np.float32(1.5).tobytes()}
    ckptfs("init", top / "root")
    ckptfs("import", top / "tree", top / "root/7")
    return top / "root", places


def test_sparse(sparse_store):
    root, places = sparse_store
    step = store_reader.Store(root).step("7")
    assert step.head["required"] == ["sparse"] and {leaf.name.decode() for leaf in step.leaves()} == places.keys()
    for leaf in step.leaves():
        got = dict(step.read_sparse(leaf))
        for at, what in places[leaf.name.decode()].items():
            for i, byte in enumerate(what):
                chunk = (at + i) >> 20 << 20
                assert got[chunk][at + i - chunk] == byte
                if i > 100:
                    break
        assert len(got) == {"blob": 7, "none": 0, "x.npy": 2}[leaf.name.decode()]


def test_sparse_damage(sparse_store):
    root, _ = sparse_store
    store = store_reader.Store(root)
    for leaf in store.step("7").leaves():
        path = store.find(leaf.object)
        size = path.stat().st_size
        for offset in sorted({0, size // 2, size - 97, size - 106, size - 1}):
            flip(path, offset)
            with pytest.raises((store_reader.Damaged, store_reader.Unsupported)):
                store.step("7").read_sparse(leaf)
            ckptfs("verify", root, "7", check=4)
            flip(path, offset)
    ckptfs("verify", root, "7")


def test_damage_is_found(store, tmp_path):
    """By this reader and by ckptfs: any one byte of any file of the store."""
    for n, name in enumerate(["objects", "sums", "steps"]):
        root = util.copy_tree(store, tmp_path / str(n))
        s = store_reader.Store(root)
        if name == "steps":
            files = [s.dir / "steps/1000.json"]
        else:
            step = s.step("1000")
            objects = {leaf.object or leaf.sha256 for leaf in step.leaves() if leaf.kind != "value"}
            files = [s.find(o) for o in sorted(objects)]
            if name == "sums":
                files = [p.with_name(p.name + ".sums") for p in files if p.with_name(p.name + ".sums").exists()]
        for path in files[:3]:
            size = path.stat().st_size
            for offset in sorted({0, 9, size // 2, size - 97, size - 1} & set(range(size))):
                flip(path, offset)
                with pytest.raises((store_reader.Damaged, store_reader.Unsupported, UnicodeDecodeError, KeyError)):
                    step = s.step("1000")
                    for leaf in step.leaves():
                        step.read(leaf)
                assert ckptfs("verify", root, "1000", check=None).returncode == 4, (path, offset)
                flip(path, offset)
        ckptfs("verify", root, "1000")


def test_example_of_the_page():
    """The bytes of a sums file that docs/format.md prints."""
    text = (Path(__file__).parents[2] / "docs/format.md").read_text()
    data = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)$", text, re.M)))
    want = b"CKPTSUM1" + struct.pack("<IIQ", 1, 20, 6) + hashlib.sha256(b"hello\n").digest()
    want += struct.pack("<Q", store_reader.xxh3(b"hello\n"))
    assert data == want + struct.pack("<Q", store_reader.xxh3(want))


def test_the_program(store):
    """store_reader.py by itself."""
    done = subprocess.run(
        [sys.executable, Path(store_reader.__file__), store, "300"], capture_output=True, text=True, timeout=util.LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(store_reader.Store(store).step("300").leaves())
