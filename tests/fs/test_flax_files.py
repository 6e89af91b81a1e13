"""Roots of Flax's own files: what is shown, what is hidden, what a user's files suffer; and what a hostile file
costs.
"""

import errno
import json
import os
import struct

import numpy as np
import pytest

import util

DATA = util.DATA / "flax-msgpack"
STEP = b"\x81\xa1a\x05"  # {"a": 5}
LIMIT = 256 << 20


def unfinished(m):
    return dict(line.split("\t") for line in (m / ".ckptfs/unfinished").read_text().splitlines())


@pytest.fixture
def folder(tmp_path):
    """folder({path: bytes}) writes files below a new source, and returns it."""

    def make(files):
        for path, data in files.items():
            file = tmp_path / "source" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return tmp_path / "source"

    return make


def test_what_is_a_step(mount, folder):
    """A file that has a step's name, or no suffix, and begins like a state dict opens up."""
    pickle, text = b"\x80\x04\x95\x10\0", "שלום".encode()
    m = mount(
        folder(
            {
                "checkpoint_3": STEP,
                "checkpoint_10": STEP,
                "checkpoint_2.5": STEP,
                "checkpoint_4": pickle,
                "checkpoint_5": text,
                "checkpoint_6": b"",
                "checkpoint_7": b"\x80",
                "12": STEP,
                "notes_99": b"notes",
                "checkpoint_8.txt": STEP,
            }
        )
    )
    trees = {name for name in os.listdir(m.top) if (m / name).is_dir() and not (m / name).is_symlink()}
    assert trees == {"checkpoint_3", "checkpoint_10", "checkpoint_2.5", "checkpoint_7", "12"}
    assert (m / "checkpoint_3/a.json").read_text() == "5\n" and os.listdir(m / "checkpoint_7") == []
    assert os.readlink(m / "latest") == "12"
    assert (
        (m / "checkpoint_4").read_bytes() == pickle
        and (m / "checkpoint_5").read_bytes() == text
        and (m / "checkpoint_6").read_bytes() == b""
    )


def test_temporary_names(mount, folder):
    """PREFIXtmp is hidden where it is Flax's; a user's file of such a name is not."""
    m = mount(
        folder(
            {
                "a/checkpoint_tmp": b"",
                "a/checkpoint_1": STEP,
                "b/ckpt_tmp": b"half",
                "b/ckpt_1": STEP,
                "c/new_tmp": STEP,
                "c/my_tmp": b"my notes",
                "c/notes_1": b"text",
                "c/notes_tmp": b"text",
                "c/x.msgpack": STEP,
            }
        )
    )
    assert sorted(unfinished(m)) == ["a/checkpoint_tmp", "b/ckpt_tmp", "c/new_tmp"]
    assert all("Flax" in reason for reason in unfinished(m).values())
    assert sorted(os.listdir(m / "a")) == ["checkpoint_1", "latest"] and sorted(os.listdir(m / "b")) == [
        "ckpt_1",
        "latest",
    ]
    assert sorted(os.listdir(m / "c")) == ["my_tmp", "notes_1", "notes_tmp", "x.msgpack"]
    for hidden in ("a/checkpoint_tmp", "b/ckpt_tmp"):
        with util.fails(errno.ENOENT):
            os.stat(m / hidden)
    assert (m / "c/my_tmp").read_text() == "my notes"


def test_shared_arrays(mount, tmp_path):
    """Folders *_gda hold Zarr arrays, and are plain folders all the way down; others of that ending are what they
    are.
    """
    source = util.copy_tree(DATA / "leftovers", tmp_path / "run")
    zarray = (source / "checkpoint_3_gda/x/.zarray").read_bytes()
    for name in ("checkpoint_3_gda/params/w", "checkpoint_tmp_gda/y", "my_gda/x"):
        (source / name).mkdir(parents=True)
        (source / name / ".zarray").write_bytes(zarray)
    m = mount(source)
    assert os.listdir(m / "checkpoint_3_gda/x") == [".zarray"] and os.listdir(m / "checkpoint_3_gda/params/w") == [
        ".zarray"
    ]
    assert os.listdir(m / "checkpoint_tmp_gda/y") == [".zarray"]
    assert os.listdir(m / "my_gda") == ["x.npy"]  # an item of Orbax
    assert os.readlink(m / "latest") == "checkpoint_3"


def test_changed_in_place(mount, folder):
    """A file that is written over is another checkpoint; what was open of it gives no mixture."""
    source = folder({"run/w.msgpack": (DATA / "top-array.msgpack").read_bytes()})
    m = mount(source, "refresh=1")
    with open(m / "run/w.msgpack/%", "rb", buffering=0) as f:
        os.utime(source / "run/w.msgpack", ns=(1, 1))
        with open(source / "run/w.msgpack", "r+b") as w:
            w.seek(16)
            w.write(b"\xff" * 20)
        with util.fails(errno.ESTALE):
            f.read()
    util.wait_for(lambda: util.read_error(m / "run/w.msgpack/%") is None, 15)
    assert (m / "run/w.msgpack/%").read_bytes() == b"\xff" * 20


# --- commands


def test_info():
    """Steps are told as Flax numbers them."""
    steps = json.loads(util.ckptfs("info", DATA / "float-steps", "--json").stdout)["steps"]
    assert [(s["name"], s["step"]) for s in steps] == [
        (f"checkpoint_{n}", float(n)) for n in ("-1.0", "1e-05", "0.5", "2.0", "10.0", "1e+16")
    ]
    assert " 1e-05  checkpoint_1e-05 " in util.ckptfs("info", DATA / "float-steps").stdout


def paths(root, step):
    """The files of a step, as the commands tell them."""
    entries = json.loads(util.ckptfs("ls", root, step, "-R", "--json").stdout)
    return [e["path"].removeprefix(f"{step}/") for e in entries if e["kind"] in ("array", "value", "blob")]


@pytest.mark.parametrize(
    "source",
    [
        "adam.msgpack",
        "dtypes.msgpack",
        "chunked.msgpack",
        "native-lists.msgpack",
        "top-array.msgpack",
        "top-none.msgpack",
        "guide/checkpoint_5",
        "guide/latest",
        "guide/checkpoint_4/model",
    ],
)
def test_import_export(tmp_path, source):
    """A file, a step of a root, a part of one: into a step of a store, and out as plain files."""
    (tmp_path / "root").mkdir()
    util.ckptfs("init", tmp_path / "root")
    util.ckptfs("import", DATA / source, tmp_path / "root/7")
    util.ckptfs("diff", DATA / source, tmp_path / "root/7")
    util.ckptfs("verify", tmp_path / "root")
    util.ckptfs("export", "--format", "npy", DATA / source, tmp_path / "out")
    found = {
        os.path.relpath(os.path.join(folder, name), tmp_path / "out")
        for folder, _, files in os.walk(tmp_path / "out")
        for name in files
    }
    assert found == set(paths(tmp_path / "root", "7"))
    for name in found:
        assert (
            util.ckptfs("cat", tmp_path / "root", f"7/{name}", text=False).stdout
            == (tmp_path / "out" / name).read_bytes()
        )


def test_verify(tmp_path):
    """What is malformed is a fault, told with its reason; the rest is read."""
    assert "0 faults" in util.ckptfs("verify", DATA / "guide").stdout
    (tmp_path / "good.msgpack").write_bytes(STEP)
    (tmp_path / "cut.msgpack").write_bytes(STEP[:-1])
    done = util.ckptfs("verify", tmp_path, check=4)
    assert "cut.msgpack: " in done.stdout and "1 fault" in done.stdout


# --- what a hostile file costs


def nils():
    return b"\xdd" + struct.pack(">I", 3_500_000) + b"\xc0" * 3_500_000


def empty_maps():
    return b"\xdd" + struct.pack(">I", 3_500_000) + b"\x80" * 3_500_000


def strings():
    return (
        b"\xdd"
        + struct.pack(">I", 8_000)
        + b"".join(b"\xda" + struct.pack(">H", 4008) + b"%08d" % n + b"\x01" * 4000 for n in range(8_000))
    )


def keys():
    return (
        b"\xdf"
        + struct.pack(">I", 3_000)
        + b"".join(b"\xda" + struct.pack(">H", 65_000) + b"%08d" % n + b"k" * 64_992 + b"\xc0" for n in range(3_000))
    )


def byte():
    """An array of one element."""
    payload = b"\x93\x91\x01\xa5uint8\xc4\x01x"
    return b"\xc7" + bytes([len(payload)]) + b"\x01" + payload


def pieces():
    count = struct.pack(">I", 1_200_000)
    parts = b"".join(b"\xa7%07d" % n + byte() for n in range(1_200_000))
    return b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\xce" + count + b"\xa6chunks\xdf" + count + parts


def just_within():
    """About as many leaves as are still shown."""
    return b"\xdd" + struct.pack(">I", 2_000_000) + byte() * 2_000_000


@pytest.mark.parametrize(
    "make, want",
    [
        (nils, errno.EOPNOTSUPP),
        (empty_maps, errno.EOPNOTSUPP),
        (strings, errno.EOPNOTSUPP),
        (keys, errno.EOPNOTSUPP),
        (pieces, errno.EOPNOTSUPP),
        (just_within, 0),
    ],
)
def test_memory(mount, folder, make, want):
    m = mount(folder({"x.msgpack": make(), "good.msgpack": STEP}))
    try:
        found = sum(1 for _ in os.scandir(m / "x.msgpack"))
        assert not want and found == 2_000_000
    except OSError as e:
        assert e.errno == want and os.getxattr(m / "x.msgpack", "user.ckpt.error")
    assert util.SANITIZED or m.memory() < LIMIT, f"{m.memory() >> 20} MiB"
    assert (m / "good.msgpack/a.json").read_text() == "5\n"


# --- folders of shards


def packed(value):
    """msgpack as Flax writes it, of dicts with short string keys, integers below 128 and NumPy arrays."""
    if isinstance(value, dict):
        pairs = b"".join(packed(k) + packed(v) for k, v in value.items())
        return b"\xde" + len(value).to_bytes(2, "big") + pairs
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return bytes([value])
    shape = bytes([0x90 | value.ndim, *value.shape])
    data = value.tobytes()
    body = b"\x93" + shape + packed(value.dtype.name) + b"\xc5" + len(data).to_bytes(2, "big") + data
    return b"\xc8" + len(body).to_bytes(2, "big") + b"\1" + body


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield "/".join((*path, key)), value


def flax_folder(shards, **more):
    """As transformers saves it: nested dicts, and an index whose keys are joined with '/'."""
    names = [f"flax_model-{i + 1:05}-of-{len(shards):05}.msgpack" for i in range(len(shards))]
    places = {path: name for name, tree in zip(names, shards) for path, _ in leaves(tree)} | more
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    files = {f"f/{name}": packed(tree) for name, tree in zip(names, shards)}
    return names, files | {"f/flax_model.msgpack.index.json": index, "f/config.json": b"{}"}


def test_folder(mount, folder):
    """One tree of all shards, more than are kept open; each shard can be opened by itself too."""
    shards = [{"model": {f"layer{i}": {"w": np.full((2, 3), i, "f4")}, "n": {f"k{i}": i}}} for i in range(70)]
    names, files = flax_folder(shards)
    source = folder(files)
    m = mount(source)
    assert sorted(os.listdir(m / "f")) == ["config.json", "model"] and len(os.listdir(m / "f/model")) == 71
    for i in range(70):
        assert (np.load(m / f"f/model/layer{i}/w.npy") == i).all()
        assert (m / f"f/model/n/k{i}.json").read_text() == f"{i}\n"
    assert util.ckptfs("ls", source / "f" / names[69], "model").stdout == "layer69\nn\n"
    assert json.loads(util.ckptfs("verify", "--json", source / "f").stdout)["faults"] == []


def test_folder_with_damage(mount, folder):
    """A shard that is missing or damaged spoils its own leaves alone."""
    shards = [{"a": {"w": np.ones(2)}}, {"b": {"x": np.ones(3), "y": 1}}, {"a": {"z": np.ones(4)}}]
    names, files = flax_folder(shards, **{"a/gone": "flax_model-00003-of-00003.msgpack"})
    del files[f"f/{names[0]}"]
    files[f"f/{names[1]}"] = files[f"f/{names[1]}"][:-1]
    m = mount(folder(files))
    assert sorted(os.listdir(m / "f/a")) == ["gone.npy", "w.npy", "z.npy"]
    assert sorted(os.listdir(m / "f/b")) == ["x.npy", "y.npy"]
    assert np.load(m / "f/a/z.npy").shape == (4,)
    for name, code in (("a/w", errno.EIO), ("b/x", errno.EBADMSG), ("b/y", errno.EBADMSG), ("a/gone", errno.ENODATA)):
        with pytest.raises(OSError) as e:
            (m / f"f/{name}.npy").read_bytes()
        assert e.value.errno == code, name
    done = json.loads(util.ckptfs("verify", "--json", folder(files) / "f", check=4).stdout)
    assert sorted(f["path"] for f in done["faults"]) == ["a/gone.npy", "a/w.npy", "b/x.npy", "b/y.npy"]
