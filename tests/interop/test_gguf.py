"""What the mount shows of files that the gguf package has just written, in both byte orders."""

import errno
import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import util
from arrays import compare, same_array, stored

RNG = np.random.default_rng(12)
TYPES = gguf.GGMLQuantizationType
VOCABULARY = [f"token {i} ü" for i in range(20000)]


def write(path, tensors, quantised=None, endian=gguf.GGUFEndian.LITTLE, alignment=None, pairs=lambda w: None):
    """A file of arrays, and of {name: (type, shape in elements, bytes)}."""
    w = gguf.GGUFWriter(path, "llama", endianess=endian)
    if alignment:
        w.add_custom_alignment(alignment)
    pairs(w)
    for name, a in tensors.items():
        w.add_tensor(name, a)
    for name, (kind, blocks) in (quantised or {}).items():
        w.add_tensor(name, blocks, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def model():
    tree = {f"blk.{i}.attn.weight": RNG.standard_normal((6, 8)).astype(np.float32) for i in range(3)}
    tree |= {"token_embd.weight": RNG.standard_normal((20, 4)).astype(np.float16), "output": RNG.standard_normal(7)}
    return tree | {
        f"t.{name}": RNG.integers(-100, 100, (2, 3, 4)).astype(name) for name in ("int8", "int16", "int32", "int64")
    }


def quantised():
    """Blocks as the package makes them, for 4 rows of 512."""
    rows = RNG.standard_normal((4, 512)).astype(np.float32)
    return {
        f"q.{kind.name}": (kind, gguf.quants.quantize(rows, kind))
        for kind in (TYPES.Q4_0, TYPES.Q5_1, TYPES.Q8_0, TYPES.TQ1_0, TYPES.TQ2_0)
    }


def paths(tensors):
    return {name.replace(".", "/"): a for name, a in tensors.items()}


def add_pairs(w):
    w.add_name("tiny")
    w.add_uint64("x.u64", 2**64 - 1)
    w.add_int64("x.i64", -(2**63))
    w.add_float32("x.f32", 0.1)
    w.add_bool("x.bool", True)
    w.add_array("x.ints", [1, -2, 3])
    w.add_string("x.text", "ü\n\"" * 3)
    w.add_string("x.long", "x" * 100000)
    w.add_token_list(VOCABULARY)


@pytest.mark.parametrize("endian", gguf.GGUFEndian, ids=lambda e: e.name.lower())
@pytest.mark.parametrize("alignment", [None, 8, 4096])
def test_file(mount, tmp_path, endian, alignment):
    """All tensors, slices of them, the blocks of those that are quantised, and the key-value pairs."""
    tensors, blocks = model(), quantised() if endian == gguf.GGUFEndian.LITTLE else {}
    write(tmp_path / "x.gguf", tensors, blocks, endian, alignment, add_pairs)
    m = mount(tmp_path / "x.gguf")
    compare(m.top, paths(tensors), alignment)
    read = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {".".join(leaf["path"]) for leaf in json.loads((m / ".tree.json").read_text())["leaves"]} == {
        t.name for t in read.tensors
    }
    for t in read.tensors:
        path = m / t.name.replace(".", "/")
        if t.name in blocks:
            assert path.read_bytes() == t.data.tobytes()
            meta = json.loads(Path(f"{path}.meta.json").read_text())
            assert (meta["kind"], meta["dtype"], meta["shape"]) == (
                "blob",
                t.tensor_type.name,
                [int(n) for n in t.shape[::-1]],
            )
    metadata = json.loads(os.getxattr(m.top, "user.ckpt.metadata"))
    assert metadata["general.architecture"] == "llama" and metadata["general.name"] == "tiny"
    assert (
        metadata["x.u64"] == 2**64 - 1 and metadata["x.i64"] == -(2**63) and metadata["x.f32"] == float(np.float32(0.1))
    )
    assert metadata["x.bool"] is True and metadata["x.ints"] == [1, -2, 3] and metadata["x.text"] == "ü\n\"" * 3
    assert metadata["x.long"] == {"type": "string", "bytes": 100000}
    assert metadata["tokenizer.ggml.tokens"] == {"type": "array", "of": "string", "count": len(VOCABULARY)}


def test_bfloat16_and_names(mount, tmp_path):
    """In a folder; a type that NumPy lacks, names of all kinds, and with -o flat."""
    names = ["a", "a.b", "a.b.c", "..", "x/y", "ü" * 40, "a..b", ""]
    values = {name: np.arange(i, i + 4, dtype=np.float32) for i, name in enumerate(names)}
    bits = (RNG.standard_normal((3, 8)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/x.gguf", values, {"bf": (TYPES.BF16, bits.view(np.uint8).reshape(3, 16))})
    m, flat = mount(tmp_path / "folder"), mount(tmp_path / "folder", "flat")
    for top in m / "x.gguf", flat / "x.gguf":
        for leaf in json.loads((top / ".tree.json").read_text())["leaves"]:
            name = ".".join(leaf["path"])
            same_array(top / leaf["file"], values[name] if name in values else bits.view("V2"))
    assert {"a.npy", "a.b.npy", "%2E%2E.npy", "x%2Fy.npy", "%.npy"} <= set(os.listdir(flat / "x.gguf"))
    assert os.listdir(m / "x.gguf/a/b") == ["c.npy"]


def tensor_info(name, dims, kind, offset):
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    )


def foreign(tensors, data, version=3):
    """A file of (name, shape, type, offset)s."""
    infos = b"".join(tensor_info(*t) for t in tensors)
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), 0) + infos
    return head + bytes(-len(head) % 32) + data


def test_types_that_are_not_known(mount, tmp_path):
    """Their bytes are those up to the next tensor, or to the end of the file."""
    data = np.random.default_rng(1).bytes(1000)
    tensors = [("ok", [4], 0, 0), ("late", [2], 4, 512), ("new", [4], 99, 32), ("scratch", [32, 2], 9, 64)]
    (tmp_path / "x.gguf").write_bytes(foreign(tensors, data))
    m = mount(tmp_path / "x.gguf")
    assert sorted(os.listdir(m.top)) == ["late", "new", "ok.npy", "scratch"]
    same_array(m / "ok.npy", np.frombuffer(data[:16], np.float32))
    assert (m / "new").read_bytes() == data[32:64]
    assert (m / "scratch").read_bytes() == data[64:512]
    assert (m / "late").read_bytes() == data[512:]
    meta = {name: json.loads((m / f"{name}.meta.json").read_text()) for name in ("late", "new", "scratch")}
    assert {n: (x["dtype"], x["shape"]) for n, x in meta.items()} == {
        "late": ("type 4", [2]),
        "new": ("type 99", [4]),
        "scratch": ("Q8_1", [2, 32]),
    }
    assert json.loads(util.ckptfs("verify", "--json", tmp_path / "x.gguf").stdout)["faults"] == []


def test_only_types_that_are_not_known(mount, tmp_path):
    """As other programs than llama.cpp have them."""
    data = bytes(range(100))
    (tmp_path / "x.gguf").write_bytes(foreign([("a.b", [7], 200, 64), ("a.c", [7, 1], 137, 0)], data))
    m = mount(tmp_path / "x.gguf")
    assert (m / "a/b").read_bytes() == data[64:] and (m / "a/c").read_bytes() == data[:64]


# --- split models


def split(folder, parts, name="big"):
    """As llama.cpp splits: the metadata are in the first, and each says which one it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (tensors, blocks) in enumerate(parts):

        def pairs(w, i=i):
            if i == 0:
                w.add_name("split one")
            w.add_uint16("split.no", i)
            w.add_uint16("split.count", len(parts))
            w.add_int32("split.tensors.count", sum(len(t) + len(b) for t, b in parts))

        write(folder / f"{name}-{i + 1:05}-of-{len(parts):05}.gguf", tensors, blocks, pairs=pairs)


def test_split(mount, tmp_path):
    """One tree of all parts, each of which can be opened by itself too."""
    tensors, blocks = list(model().items()), list(quantised().items())
    parts = [(dict(tensors[i::3]), dict(blocks[i::3])) for i in range(3)]
    split(tmp_path / "f", parts)
    (tmp_path / "f/README.md").write_text("hello")
    m = mount(tmp_path)
    compare(m / "f", paths(dict(tensors)), "split")
    assert sum(len(files) for _, _, files in os.walk(m / "f")) == len(tensors) + len(blocks) + 1
    for name, (_, data) in blocks:
        assert (m / "f" / name.replace(".", "/")).read_bytes() == data.tobytes(), name
    assert (m / "f/README.md").read_text() == "hello"
    metadata = json.loads((m / "f/.tree.json").read_text())["metadata"]
    assert metadata["general.name"] == "split one" and metadata["split.count"] == 3
    first = next(iter(parts[1][0]))
    meta = json.loads((m / "f" / f"{first.replace('.', '/')}.meta.json").read_text())
    assert meta["shard"] == "big-00002-of-00003.gguf"
    part = mount(tmp_path / "f/big-00002-of-00003.gguf")
    compare(part.top, paths(parts[1][0]), "part")


def test_split_with_damage(mount, tmp_path):
    """A part that is gone or damaged is a file that cannot be read; the others are shown."""
    arrays = [({f"a.w{i}": np.full(4, i, np.float32)}, {}) for i in range(4)]
    split(tmp_path / "f", arrays)
    (tmp_path / "f/big-00001-of-00004.gguf").unlink()
    cut = tmp_path / "f/big-00003-of-00004.gguf"
    cut.write_bytes(cut.read_bytes()[:-40])
    m = mount(tmp_path)
    assert sorted(os.listdir(m / "f")) == ["a", "big-00001-of-00004.gguf", "big-00003-of-00004.gguf"]
    assert sorted(os.listdir(m / "f/a")) == ["w1.npy", "w3.npy"]
    same_array(m / "f/a/w3.npy", np.full(4, 3, np.float32))
    assert util.read_error(m / "f/big-00001-of-00004.gguf") == errno.EIO
    assert util.read_error(m / "f/big-00003-of-00004.gguf") == errno.EBADMSG
    faults = json.loads(util.ckptfs("verify", "--json", tmp_path / "f", check=4).stdout)["faults"]
    assert sorted(f["path"] for f in faults) == ["big-00001-of-00004.gguf", "big-00003-of-00004.gguf"]


def test_several_models(mount, tmp_path):
    """A folder of more than one model is no model: each file opens by itself."""
    arrays = [({f"a.w{i}": np.full(4, i, np.float32)}, {}) for i in range(2)]
    split(tmp_path / "two", arrays, "q4")
    split(tmp_path / "two", arrays, "q8")
    split(tmp_path / "beside", arrays)
    write(tmp_path / "beside/other.gguf", {"b": np.ones(3)})
    split(tmp_path / "one", arrays[:1])
    m = mount(tmp_path)
    assert len(os.listdir(m / "two")) == 4 and len(os.listdir(m / "beside")) == 3
    assert os.listdir(m / "one/big-00001-of-00001.gguf/a") == ["w0.npy"]
    assert os.listdir(m / "beside/big-00002-of-00002.gguf/a") == ["w1.npy"]


@pytest.mark.parametrize("order", "<>")
def test_large(mount, tmp_path, order):
    """10 GiB: a slice reads about as much as it has, also where its bytes are swapped."""
    rows, dims = 10 << 18, [1024, 10 << 18]
    head = b"GGUF" + struct.pack(f"{order}IQQQ3sI2QIQ", 3, 1, 0, 3, b"big", 2, *dims, 0, 0)
    head += bytes(-len(head) % 32)
    row = np.arange(1024, dtype=f"{order}f4")
    with open(tmp_path / "x.gguf", "wb") as f:
        f.write(head)
        f.seek(len(head) + (9 << 18) * 4096)
        f.write(row.tobytes())
        f.truncate(len(head) + rows * 4096)
    m = mount(tmp_path / "x.gguf")
    before = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"]
    assert (np.load(m / f"big@{9 << 18}.npy") == row).all() and np.load(m / f"big@{9 << 18},5.npy") == 5
    fetched = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"] - before
    assert fetched < 64 << 10, fetched
    assert np.load(m / "big.npy", mmap_mode="r")[9 << 18, :3].tolist() == [0, 1, 2]
    assert m.memory() < 64 << 20 or util.SANITIZED


def test_safetensors_view(mount, tmp_path):
    """The arrays as one safetensors file; quantised tensors are left out of it, and named."""
    import safetensors.numpy

    tensors, blocks = model(), quantised()
    write(tmp_path / "x.gguf", tensors, blocks, pairs=add_pairs)
    m = mount(tmp_path / "x.gguf")
    loaded = safetensors.numpy.load_file(m / ".safetensors")
    assert loaded.keys() == tensors.keys() and all(
        loaded[k].tobytes() == stored(a).tobytes() for k, a in tensors.items()
    )
    with safetensors.safe_open(m / ".safetensors", "numpy") as f:
        metadata = f.metadata()
    assert (
        all(metadata[name] == "left out: a blob" for name in blocks)
        and metadata["format"] == "gguf"
        and metadata["general.name"] == "tiny"
    )
    assert metadata["x.u64"] == str(2**64 - 1)
