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


def test_types_that_are_not_known(mount, tmp_path):
    """They are listed, and take nothing else with them."""
    infos = tensor_info("ok", [4], 0, 0) + tensor_info("new", [4], 99, 32) + tensor_info("scratch", [32, 2], 9, 64)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 3, 0) + infos
    (tmp_path / "x.gguf").write_bytes(
        head + bytes(-len(head) % 32) + np.arange(4, dtype=np.float32).tobytes() + bytes(1000)
    )
    m = mount(tmp_path / "x.gguf")
    assert sorted(os.listdir(m.top)) == ["new.npy", "ok.npy", "scratch.npy"]
    same_array(m / "ok.npy", np.arange(4, dtype=np.float32))
    assert util.read_error(m / "new.npy") == util.read_error(m / "scratch.npy") == errno.EOPNOTSUPP
    leaves = {leaf["path"][0]: leaf for leaf in json.loads((m / ".tree.json").read_text())["leaves"]}
    assert (
        leaves["new"]["dtype"] == "type 99"
        and leaves["scratch"]["dtype"] == "Q8_1"
        and leaves["scratch"]["shape"] == [2, 32]
    )


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
