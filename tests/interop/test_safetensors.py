"""What the mount shows of files that safetensors has just written, and what safetensors (NumPy, PyTorch) makes of the
mount's own files.
"""

import errno
import json
import mmap
import os
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import util
from arrays import compare, same_array, stored

RNG = np.random.default_rng(11)
DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
]
SMALL = [
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e8m0fnu,
]
NAMES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}


def noise(dtype, *shape):
    """Any bits at all, NaNs among them."""
    dtype = np.dtype(dtype)
    if dtype == bool:
        return RNG.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(RNG.bytes(count), dtype).reshape(shape)


def write(path, tensors, metadata=None, pad=0):
    """A file made by hand: tensors {name: (dtype, shape, bytes)} in any order and at any alignment."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode() + b" " * pad
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def model():
    """A tree of a common kind, with types and shapes of all kinds."""
    tree = {f"types.{name}": noise(name, 5, 7) for name in DTYPES} | {"types.bfloat16": noise(ml_dtypes.bfloat16, 4, 6)}
    for layer in range(3):
        tree |= {f"layers.{layer}.weight": noise("float32", 16, 9), f"layers.{layer}.bias": noise("float16", 16)}
    return tree | {
        "scalar": noise("int64"),
        "empty": noise("float32", 0),
        "none": noise("int8", 3, 0, 2),
        "one": noise("float64", 1),
        "deep": noise("int16", 2, 3, 1, 2, 3),
        "wide": noise("uint8", 1, 100000),
    }


def paths(tensors):
    return {name.replace(".", "/"): a for name, a in tensors.items()}


@pytest.fixture
def src(tmp_path):
    """A folder of its own: no source may hold its own mount."""
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


def test_file(mount, src):
    """As the source, and in a folder; all of it, slices, the metadata."""
    tensors = model()
    safetensors.numpy.save_file(tensors, src / "model.safetensors", {"format": "np", "by": "größer \"\\\n"})
    m = mount(src / "model.safetensors")
    compare(m.top, paths(tensors), 1)
    assert sum(len(files) for _, _, files in os.walk(m.top)) == len(tensors)
    assert json.loads(os.getxattr(m.top, "user.ckpt.metadata")) == {"format": "np", "by": "größer \"\\\n"}
    (src / "folder").mkdir()
    os.link(src / "model.safetensors", src / "folder/x.safetensors")
    compare(mount(src / "folder") / "x.safetensors", paths(tensors), 2)


def test_small_floats(mount, src):
    """Types that NumPy has no name for, the packed ones, and data that are not aligned."""
    arrays = {np.dtype(t).name: noise(t, 3, 5) for t in SMALL[1:]}
    tensors = {name: (NAMES[name], a.shape, a.tobytes()) for name, a in arrays.items()}
    packed = {
        "four.F4": ("F4", (3, 4), RNG.bytes(6)),
        "six.F6_E2M3": ("F6_E2M3", (4,), RNG.bytes(3)),
        "six.F6_E3M2": ("F6_E3M2", (2, 2), RNG.bytes(3)),
    }
    odd = noise("float64", 3)
    write(src / "x.safetensors", {"byte": ("U8", (1,), b"x"), "odd": ("F64", (3,), odd.tobytes())} | tensors | packed)
    assert set(safetensors.safe_open(src / "x.safetensors", "numpy").keys()) == {"byte", "odd", *tensors, *packed}
    m = mount(src / "x.safetensors")
    compare(m.top, arrays | {"odd": odd}, 3)
    for name, (dtype, shape, content) in packed.items():
        path = m / name.replace(".", "/")
        assert path.read_bytes() == content
        meta = json.loads(Path(f"{path}.meta.json").read_text())
        assert (meta["kind"], meta["dtype"], meta["shape"]) == ("blob", dtype, list(shape))
        assert os.getxattr(path, "user.ckpt.dtype").decode() == dtype


def test_names(mount, src):
    """Anything is a name. Dots make directories, unless that would make two of a name; with -o flat they do not."""
    names = [
        "",
        ".",
        "..",
        "a",
        "a.b",
        "a.b.c",
        "a..b",
        ".x",
        "x.",
        "a/b",
        "%",
        "ü.é",
        "tab\tnl\n",
        "nul\0",
        "n" * 300,
        "CASE",
        "case",
        "a.npy",
        "a.b.npy",
        "b.npy.c",
        "b",
    ]
    tensors = {name: np.array([i], np.int32) for i, name in enumerate(names)}
    safetensors.numpy.save_file(tensors, src / "x.safetensors")
    m, flat = mount(src / "x.safetensors"), mount(src / "x.safetensors", "flat")
    for top in m.top, flat.top:
        tree = json.loads((top / ".tree.json").read_text())
        assert sorted(".".join(leaf["path"]) for leaf in tree["leaves"]) == sorted(names)
        for leaf in tree["leaves"]:
            same_array(top / leaf["file"], tensors[".".join(leaf["path"])])
    assert [len(leaf["path"]) for leaf in tree["leaves"]] == [1] * len(names)
    assert sorted(os.listdir(m / "a")) == ["b", "b.npy", "npy.npy"] and os.listdir(m / "a/b") == ["c.npy", "npy.npy"]
    assert {
        "%.npy",
        "%2E.npy",
        "%2E%2E.npy",
        "a.npy",
        "a..b.npy",
        ".x.npy",
        "x..npy",
        "a%2Fb.npy",
        "%25.npy",
        "nul%00.npy",
    } <= set(os.listdir(m.top))


def test_large(mount, src):
    """10 GiB: a slice reads about as much as it has."""
    rows = 10 << 20
    head = json.dumps({"big": {"dtype": "U8", "shape": [rows, 1024], "data_offsets": [0, rows << 10]}}).encode()
    with open(src / "x.safetensors", "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.seek(8 + len(head) + (9 << 30))
        f.write(bytes(range(256)) * 16)
        f.truncate(8 + len(head) + (rows << 10))
    m = mount(src / "x.safetensors")
    before = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"]
    assert np.load(m / f"big@{9 << 20}:{(9 << 20) + 4}.npy").tobytes() == bytes(range(256)) * 16
    fetched = json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"] - before
    assert fetched < 64 << 10, fetched
    assert np.load(m / "big.npy", mmap_mode="r")[9 << 20, :3].tolist() == [0, 1, 2]
    assert m.memory() < 64 << 20 or util.SANITIZED


def test_many(mount, src):
    """A long header."""
    names = [f"model.layers.{i // 10}.experts.{i % 10}.weight" for i in range(50000)]
    write(src / "x.safetensors", {name: ("U8", (i % 3,), bytes(i % 3)) for i, name in enumerate(names)})
    m = mount(src / "x.safetensors")
    assert sum(len(files) for _, _, files in os.walk(m.top)) == len(names)
    assert (m / "model/layers/4321/experts/4/weight").stat().st_size == 43214 % 3
    with safetensors.safe_open(m / ".safetensors", "numpy") as f:
        assert len(f.keys()) == len(names)


# --- folders of shards


def save_shards(folder, tensors, shards=3, base="model"):
    """As the libraries of models do: shards, an index and a configuration."""
    folder.mkdir(exist_ok=True)
    names = [f"{base}-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(tensors)}
    for shard in names:
        safetensors.numpy.save_file(
            {k: a for k, a in tensors.items() if where[k] == shard}, folder / shard, {"format": "pt"}
        )
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": where}
    (folder / f"{base}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text('{"model_type": "none"}')
    return where


def test_shards(mount, src):
    tensors = model()
    where = save_shards(src / "model", tensors)
    (src / "model/original/deep").mkdir(parents=True)
    (src / "model/original/deep/notes.txt").write_text("notes")
    (src / "model/stray.safetensors").write_bytes(b"not of the index")
    for m in mount(src / "model"), mount(src):
        top = m.top if m.source == src / "model" else m / "model"
        compare(top, paths(tensors), 4)
        assert json.loads(os.getxattr(top, "user.ckpt.metadata")) == {
            "total_size": sum(a.nbytes for a in tensors.values()),
            "format": "pt",
        }
        assert (top / "config.json").read_text() == '{"model_type": "none"}' and (
            top / "original/deep/notes.txt"
        ).read_text() == "notes"
        assert (top / "stray.safetensors").read_bytes() == b"not of the index"
        listed = set(os.listdir(top))
        assert listed == {name.split(".")[0] + ("" if "." in name else ".npy") for name in tensors} | {
            "config.json",
            "original",
            "stray.safetensors",
        }
        meta = json.loads((top / "layers/0/weight.meta.json").read_text())
        assert meta["format"] == "safetensors" and meta["shard"] == where["layers.0.weight"]


def test_shards_that_are_wrong(mount, src):
    """What is missing or malformed is the error of its own leaves."""
    tensors = {f"t{i}": noise("int32", 3) for i in range(8)} | {"absent": noise("int32", 3), "extra": noise("int32", 3)}
    folder = src / "model"
    where = save_shards(folder, tensors, 4)
    (folder / "model-00002-of-00004.safetensors").unlink()
    with open(folder / "model-00003-of-00004.safetensors", "ab") as f:
        f.write(b"x")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != "extra"} | {
        "not.there": "model-00001-of-00004.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    m = mount(src)
    errors = {"model-00002-of-00004.safetensors": errno.EIO, "model-00003-of-00004.safetensors": errno.EUCLEAN}
    for name in index["weight_map"]:
        path = m / "model" / f"{name.replace('.', '/')}.npy"
        want = errno.ENODATA if name == "not.there" else errors.get(where[name])
        if want:
            assert util.read_error(path) == want, name
            assert os.path.basename(name.replace(".", "/")) + ".npy" in os.listdir(path.parent)
        else:
            same_array(path, tensors[name])
    assert "extra.npy" not in os.listdir(m / "model")
    assert util.read_error(m / "model.safetensors") == errno.EIO


def test_download_cache(mount, src):
    """Snapshots are links to blobs: seen where both are in the source."""
    tensors = {f"a.{i}": noise("float32", 4) for i in range(4)}
    snapshot, blobs = src / "hub/snapshots/main", src / "hub/blobs"
    snapshot.parent.mkdir(parents=True)
    save_shards(snapshot, tensors, 2)
    blobs.mkdir()
    for n, p in enumerate(list(snapshot.iterdir())):
        p.rename(blobs / f"sha-{n}")
        p.symlink_to(f"../../blobs/sha-{n}")
    compare(mount(src / "hub") / "snapshots/main", paths(tensors), 5)
    done = util.ckptfs("info", snapshot, check=None)
    assert done.returncode == 4 and "leads out of the source" in done.stderr


def test_several_indices(mount, src):
    """ "model" comes first; the files of the others are files."""
    tensors = {f"a.{i}": noise("float32", 4) for i in range(4)}
    half = {name: noise("float16", 4) for name in tensors}
    save_shards(src / "m", half, 2, "a.fp16")
    save_shards(src / "m", tensors, 2)
    m = mount(src / "m")
    compare(m.top, paths(tensors), 6)
    assert (m / "a.fp16-00001-of-00002.safetensors").read_bytes() == (
        src / "m/a.fp16-00001-of-00002.safetensors"
    ).read_bytes()
    assert "a.fp16.safetensors.index.json" in os.listdir(m.top) and "model.safetensors.index.json" not in os.listdir(
        m.top
    )


# --- the mount's own safetensors files


def check_loaded(path, tensors):
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, a in tensors.items():
        assert (
            loaded[name].shape == a.shape and loaded[name].dtype == a.dtype and loaded[name].tobytes() == a.tobytes()
        ), name
    with safetensors.safe_open(path, "numpy") as f:
        assert set(f.keys()) == tensors.keys()
        name = max((n for n in tensors if tensors[n].ndim == 2), key=lambda n: tensors[n].nbytes)
        assert f.get_slice(name)[:, 1:3].tobytes() == tensors[name][:, 1:3].tobytes()


def test_views(mount, src):
    """DIR.safetensors, of a file and of shards: equal tensors, the same metadata, aligned data, and mmap."""
    tensors = model()
    safetensors.numpy.save_file(tensors, src / "file.safetensors", {"format": "np", "k": "v"})
    save_shards(src / "shards", tensors)
    m = mount(src)
    for name in "file.safetensors", "shards":
        check_loaded(m / f"{name}.safetensors", tensors)
        check_loaded(m / name / ".safetensors", tensors)
        check_loaded(m / name / "layers.safetensors", {n[7:]: a for n, a in tensors.items() if n.startswith("layers.")})
    with safetensors.safe_open(m / "file.safetensors/types.safetensors", "numpy") as f:
        assert f.metadata() == {"format": "np", "k": "v"}
    with safetensors.safe_open(m / "shards.safetensors", "numpy") as f:
        assert f.metadata() == {
            "format": "pt",
            "total_size": str(sum(a.nbytes for a in tensors.values())),
            "config.json": "left out: a blob",
        }
    with open(m / "file.safetensors.safetensors", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as data:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        assert (8 + size) % 64 == 0
        for name, a in tensors.items():
            begin, end = header[name]["data_offsets"]
            assert data[8 + size + begin : 8 + size + end] == a.tobytes() and (8 + size + begin) % a.dtype.itemsize == 0
    # what was written anew is a file like any other
    (src / "copy.safetensors").write_bytes((m / "shards.safetensors").read_bytes())
    compare(mount(src / "copy.safetensors").top, paths(tensors), 7)


TORCH = """
import sys, torch, safetensors, safetensors.torch
source, mount = sys.argv[1:]
tree = {"a.weight": torch.randn(7, 5), "a.bias": torch.randn(7).to(torch.bfloat16),
        "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "t.half": torch.randn(3, 3).half(), "t.bool": torch.tensor([True, False]),
        "t.scalar": torch.tensor(1.5), "t.empty": torch.zeros(0, 4)}
if mount == "-":
    torch.manual_seed(3)
    tree = {k: v + 0 if v.dtype != torch.bool else v for k, v in tree.items()}
    safetensors.torch.save_file(tree, source, {"format": "pt"})
else:
    want, got = safetensors.torch.load_file(source), safetensors.torch.load_file(mount)
    assert want.keys() == got.keys(), got.keys()
    for k, v in want.items():
        assert v.dtype == got[k].dtype and torch.equal(v, got[k]), k
    with safetensors.safe_open(mount, "pt") as f:
        assert torch.equal(f.get_slice("a.weight")[2:5, 1], want["a.weight"][2:5, 1])
        assert f.metadata() == {"format": "pt"}
"""


def torch_python(tmp_path):
    """A Python with PyTorch, and this safetensors package on its path: this one, or that of the system."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/safetensors").symlink_to(Path(safetensors.__file__).parent)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages")}
    for python in os.path.join(os.path.dirname(os.__file__), "../../bin/python3"), "/usr/bin/python3":
        if (
            subprocess.run(
                [python, "-c", "import torch, safetensors.torch"],
                env=environment,
                capture_output=True,
                timeout=util.LIMIT,
            ).returncode
            == 0
        ):
            return lambda *args: subprocess.run(
                [python, "-c", TORCH, *map(str, args)], env=environment, check=True, timeout=util.LIMIT
            )
    pytest.skip("no PyTorch")


def test_torch(mount, src, tmp_path):
    """What PyTorch saves is what it loads from the mount."""
    run = torch_python(tmp_path)
    run(src / "model.safetensors", "-")
    m = mount(src)
    run(src / "model.safetensors", m / "model.safetensors.safetensors")
    assert np.load(m / "model.safetensors/t/scalar.npy") == 1.5
    want = safetensors.numpy.load_file(src / "model.safetensors")["a.bias"]
    same_array(m / "model.safetensors/a/bias.npy", stored(want))


def save_two_shards(folder, number):
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"a.w": np.full(3, number, "f4")}, {"b": np.full(2, number, "f4")}
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for name, tensors in zip(names, shards):
        safetensors.numpy.save_file(tensors, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, t in zip(names, shards) for key in t}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_checkpoints_below(mount, tmp_path):
    """A folder with an index, as a trainer leaves it, with the checkpoints of the way: each opens up for itself."""
    run = tmp_path / "run"
    save_two_shards(run, 3)
    save_two_shards(run / "checkpoint-500", 1)
    (run / "checkpoint-1000").mkdir()
    safetensors.numpy.save_file({"x": np.ones(1)}, run / "checkpoint-1000/model.safetensors")
    (run / "checkpoint-1000/trainer_state.json").write_text("[1]")
    (run / "deep/er").mkdir(parents=True)
    np.savez(run / "deep/er/state.npz", y=np.arange(2))
    (run / "assets/x").mkdir(parents=True)
    (run / "assets/x/vocab.txt").write_text("a")
    for m in (mount(run), mount(tmp_path, "flat")):
        top = m / "run" if (m / "run").exists() else m.top
        assert {"assets", "b.npy", "checkpoint-1000", "checkpoint-500", "deep"} <= set(os.listdir(top))
        assert np.load(top / "b.npy")[0] == 3
        assert np.load(top / "checkpoint-500/b.npy")[0] == 1
        assert sorted(os.listdir(top / "checkpoint-1000")) == ["model.safetensors", "trainer_state.json"]
        assert np.load(top / "checkpoint-1000/model.safetensors/x.npy") == [1]
        assert (np.load(top / "deep/er/state.npz/y.npy") == [0, 1]).all()
        assert (top / "assets/x/vocab.txt").read_text() == "a"
        assert os.getxattr(top / "checkpoint-500", "user.ckpt.step") == b"500"
        assert sorted(safetensors.numpy.load_file(top / "checkpoint-500.safetensors")) in (["a.w", "b"], ["a/w", "b"])
        assert not (top / "deep.safetensors").exists()
    assert json.loads(util.ckptfs("verify", "--json", run).stdout)["files"] == 8
    assert util.ckptfs("ls", run, "checkpoint-500").stdout == "a\nb.npy\n"
    assert util.ckptfs("info", "--json", run / "checkpoint-500").stdout.count('"leaves":2') == 1
