"""Leaves of every kind and type, keys of every kind, and the files that they become."""

import collections
import dataclasses
import errno
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest

import ckptfs
import util

TYPES = [
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
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3b11fnuz",
    "int4",
    "uint4",
    "int2",
    "uint2",
    "float4_e2m1fn",
]
VALUES = [
    0,
    7,
    -(2**70),
    2**63,
    True,
    False,
    None,
    1.0,
    0.1,
    1e300,
    float("inf"),
    float("-inf"),
    "",
    "größer\n\"",
    "null",
]
KEYS = [
    "a",
    "",
    ".",
    "..",
    "sl/ash",
    "100%",
    "%41",
    "tab\t\x7f",
    "ü",
    "a.b",
    "x@0:4",
    "x@:,-1",
    "mail@home",
    ".tree",
    ".ckptfs",
    ".safetensors",
    "latest",
    "x.npy",
    "x.json",
    "x.meta",
    "1",
    "-",
    " ",
]


def numbers(dtype):
    return np.arange(-3, 5).reshape(2, 4).astype(getattr(ml_dtypes, dtype, dtype))


def same(a, b):
    """Are two trees equal, in types too?"""
    if isinstance(a, (np.ndarray, np.generic)):
        if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        if "int" in a.dtype.name:  # an int4 may have anything in its other four bits
            return bool((a == b).all())
        return a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_types(mnt):
    tree = {name: numbers(name) for name in TYPES}
    ckptfs.save(mnt / "1", tree)
    assert same(ckptfs.restore(mnt / "1"), tree)
    assert same(ckptfs.restore(mnt / "1", tree), tree)
    for name in TYPES:
        assert os.getxattr(mnt / f"1/{name}.npy", "user.ckpt.dtype").decode() == name
    mapped = ckptfs.restore(mnt / "1", mmap=True)
    assert all(isinstance(a, np.memmap) for name, a in mapped.items() if "int4" not in name and "int2" not in name)
    assert all(same(np.asarray(a), tree[name]) for name, a in mapped.items())
    del mapped


def test_other_types(mnt):
    tree = {
        "when": np.array(["2026-01-02"], "M8[us]"),
        "text": np.array(["a", "xyz"]),
        "fields": np.ones(3, [("a", "f4"), ("b", "i2")]),
    }
    ckptfs.save(mnt / "1", tree | {"big": np.arange(3, dtype=">i4")})
    assert same(ckptfs.restore(mnt / "1"), tree | {"big": np.arange(3, dtype="i4")})


def test_layouts(mnt):
    """Arrays that are not contiguous, of any size, are written in C order; those of others are read in any order."""
    a = np.arange(3_000_000, dtype="f8").reshape(1500, 2000)
    tree = {"transposed": a.T, "strided": a[::3, ::-2], "empty": np.zeros((0, 4)), "point": np.ones(()), "view": a[7:9]}
    ckptfs.save(mnt / "1", tree)
    assert same(ckptfs.restore(mnt / "1"), tree)
    (mnt / ".2").mkdir()
    np.save(mnt / ".2/f.npy", np.asfortranarray(a[:4, :5]))
    np.save(mnt / ".2/b.npy", a[:4, :5].astype(">f4"))
    os.rename(mnt / ".2", mnt / "2")
    assert same(ckptfs.restore(mnt / "2"), {"b": a[:4, :5].astype("f4"), "f": a[:4, :5]})


def test_values(mnt):
    ckptfs.save(mnt / "1", VALUES)
    assert same(ckptfs.restore(mnt / "1"), VALUES)
    assert same(ckptfs.restore(mnt / "1", VALUES), VALUES)
    assert (mnt / "1/4.json").read_text() == "true\n" and (mnt / "1/6.json").read_text() == "null\n"


@pytest.mark.parametrize("leaf", [np.arange(6.0).reshape(2, 3), 5, None, "text", b"\x00bytes", {}, [], ()], ids=repr)
def test_bare(mnt, leaf):
    """A single array, value or blob, and nothing at all."""
    ckptfs.save(mnt / "1", leaf, metrics={"loss": 1})
    assert same(ckptfs.restore(mnt / "1"), leaf)
    assert leaf is None or same(ckptfs.restore(mnt / "1", leaf), leaf)


def test_scalars(mnt):
    """NumPy's scalars are arrays without dimensions, and come back as what the target has."""
    ckptfs.save(mnt / "1", {"f": np.float32(1.5), "c": 1 + 2j, "n": 3})
    assert same(ckptfs.restore(mnt / "1"), {"c": np.array(1 + 2j), "f": np.array(1.5, "f4"), "n": 3})
    assert same(
        ckptfs.restore(mnt / "1", {"f": np.float32(0), "c": 0j, "n": 0}), {"f": np.float32(1.5), "c": 1 + 2j, "n": 3}
    )
    assert same(ckptfs.restore(mnt / "1", {"f": 0.0, "n": np.zeros((), "i2")}), {"f": 1.5, "n": np.array(3, "i2")})
    with pytest.raises(ValueError, match="n: stored is the value 3, wanted float32 .2,."):
        ckptfs.restore(mnt / "1", {"n": np.zeros(2, "f4")})


@pytest.mark.parametrize("leaf", [np.arange(3), 1.5, b"data", {"inside": 1}], ids=["array", "value", "blob", "dict"])
def test_keys(mnt, leaf):
    tree = {key: leaf for key in KEYS}
    ckptfs.save(mnt / "1", {"in": tree})
    assert same(ckptfs.restore(mnt / "1"), {"in": tree})
    assert same(ckptfs.restore(mnt / "1", {"in": tree}), {"in": tree})
    assert same(ckptfs.restore(mnt / "1/in"), tree)


def test_long_keys(mnt):
    """Names that are cut: a target finds its leaves, and neighbours stay apart."""
    tree = {"k" * 300: np.arange(3), "k" * 301: 1, "ü" * 200: {"é" * 150: b"x"}, "n" * 245: {"e" * 251: 2.0}}
    ckptfs.save(mnt / "1", tree)
    assert same(ckptfs.restore(mnt / "1", tree), tree)


def test_names_on_disk(mnt):
    """What a shell sees."""
    ckptfs.save(
        mnt / "1",
        {"a/b": [np.ones(2), 1.5, b"x"], "t": (None,), "e": {}},
        metrics={"loss": 0.5},
        metadata={"note": "first"},
    )
    found = sorted(
        os.path.relpath(os.path.join(d, n), mnt / "1") for d, dirs, files in os.walk(mnt / "1") for n in dirs + files
    )
    assert found == ["a%2Fb", "a%2Fb/0.npy", "a%2Fb/1.json", "a%2Fb/2", "e", "metrics.json", "t", "t/0.json"]
    assert [os.getxattr(mnt / "1" / n, "user.ckpt.kind") for n in ("", "a%2Fb", "t", "e")] == [
        b"dict",
        b"list",
        b"tuple",
        b"dict",
    ]
    assert json.loads((mnt / "1/metrics.json").read_text()) == {"loss": 0.5}
    assert ckptfs.metrics(mnt / "1") == {"loss": 0.5} and ckptfs.metadata(mnt / "1") == {"note": "first"}
    assert sorted(os.listdir(mnt)) == ["1", "latest"]


def test_single_leaf(mnt):
    """The path of a leaf, with its suffix or without, and of any directory."""
    tree = {"a": {"w": np.arange(4, dtype="f4").astype("bfloat16"), "n": 1, "b": b"x"}}
    ckptfs.save(mnt / "1", tree)
    for name, key in ("w", "w"), ("w.npy", "w"), ("n", "n"), ("n.json", "n"), ("b", "b"):
        assert same(ckptfs.restore(mnt / "latest/a" / name), tree["a"][key])
    assert same(ckptfs.restore(mnt / "1/a"), tree["a"])
    with pytest.raises(FileNotFoundError):
        ckptfs.restore(mnt / "1/nothing")
    with pytest.raises(FileNotFoundError):
        ckptfs.restore(mnt / "2")


def test_describe(mnt):
    """Shapes and types without data, as a target too."""
    tree = {"w": np.ones((2, 3), "bfloat16"), "n": 1, "list": [b"x", None]}
    ckptfs.save(mnt / "1", tree)
    before = json.loads((mnt / ".ckptfs/stats.json").read_text())["chunks_decoded"]
    found = ckptfs.describe(mnt / "1")
    assert found == {"list": [b"", None], "n": 1, "w": ckptfs.Spec((2, 3), np.dtype("bfloat16"))}
    assert json.loads((mnt / ".ckptfs/stats.json").read_text())["chunks_decoded"] == before
    assert same(ckptfs.restore(mnt / "1", {"w": found["w"]}), {"w": tree["w"]})


@dataclasses.dataclass
class Config:
    rate: float
    layers: list


Pair = collections.namedtuple("Pair", "left right")


def test_containers(mnt):
    tree = {
        "config": Config(0.1, [np.ones(2)]),
        "pair": Pair(1, (2,)),
        "ordered": collections.OrderedDict(b=1, a=2),
        "default": collections.defaultdict(list, x=[3]),
        5: "five",
    }
    ckptfs.save(mnt / "1", tree)
    raw = ckptfs.restore(mnt / "1")
    assert same(
        raw,
        {
            "config": {"layers": [np.ones(2)], "rate": 0.1},
            "default": {"x": [3]},
            "ordered": {"a": 2, "b": 1},
            "pair": {"left": 1, "right": (2,)},
            "5": "five",
        },
    )
    got = ckptfs.restore(mnt / "1", tree)
    assert type(got["config"]) is Config and got["config"].rate == 0.1 and same(got["config"].layers, [np.ones(2)])
    assert (
        got["pair"] == Pair(1, (2,))
        and type(got["pair"]) is Pair
        and list(got["ordered"].items()) == [("b", 1), ("a", 2)]
    )
    assert got["default"] == {"x": [3]} and got["default"]["new"] == [] and got[5] == "five"


def test_refused(mnt):
    """What is no tree is refused before anything is written, and nothing is left behind."""
    for tree, error in (
        ({"f": print}, TypeError),
        ({"o": np.array([{}])}, TypeError),
        ({1: 1, "1": 2}, ValueError),
        ({"s": {1}}, TypeError),
    ):
        with pytest.raises(error):
            ckptfs.save(mnt / "1", tree)
    with pytest.raises(ValueError, match="metrics.json"):
        ckptfs.save(mnt / "1", {"metrics": 1}, metrics={"loss": 1})
    with pytest.raises(ValueError, match="named by digits"):
        ckptfs.save(mnt / "final", {})
    ckptfs.save(mnt / "1", {"a": 1})
    with pytest.raises(FileExistsError):
        ckptfs.save(mnt / "1", {"a": 2})
    ckptfs.save(mnt / "1", {"a": 3}, overwrite=True)
    assert ckptfs.restore(mnt / "1") == {"a": 3}
    assert sorted(os.listdir(mnt)) == ["1", "latest"]


def test_overwrite_at_once(mount, tmp_path):
    (tmp_path / "root").mkdir()
    mnt = mount(tmp_path / "root", "commit=explicit", "overwrite").top
    for n in range(3):
        ckptfs.save(mnt / "step_1", {"a": np.full(5, n)}, overwrite=True)
        assert ckptfs.restore(mnt / "latest")["a"][0] == n


def test_reasons(mnt, mount, tmp_path):
    """The mount's reason is in the error; a foreign root and a staged step say what they are."""
    foreign = mount(util.ORBAX / "single_save").top
    with pytest.raises(OSError) as e:
        ckptfs.save(foreign / "5", {"a": 1})
    assert e.value.errno == errno.EROFS
    (mnt / "3").mkdir()
    with pytest.raises(FileNotFoundError, match="staged"):
        ckptfs.restore(mnt / "3")
    with pytest.raises(OSError, match="the metadata"):
        ckptfs.save(mnt / "4", {}, metadata={"text": "x" * 100_000})
    assert os.listdir(mnt) == ["3"]


def test_orbax(mount):
    """Checkpoints of Orbax are restored as those of the store."""
    m = mount(util.ORBAX)
    raw = ckptfs.restore(m / "single_save")
    assert (
        raw["config"]["dimensions"].tolist() == [5, 3]
        and raw["model"]["step"] == 1
        and raw["model"]["opt_state"] == [None, None]
    )
    got = ckptfs.restore(
        m / "single_save", {"model": {"params": {"kernel": np.zeros((5, 3), "f4")}, "step": np.zeros((), "i4")}}
    )
    assert same(got["model"]["params"]["kernel"], raw["model"]["params"]["kernel"]) and same(
        got["model"]["step"], np.array(1, "i4")
    )
    awkward = ckptfs.restore(m / "awkward_keys")
    assert "sl/ash" in awkward and ckptfs.restore(m / "sharded_8dev/both").shape == (16, 8)


@pytest.mark.parametrize("change", ["another step", "replaced", "deleted"])
def test_one_step(mount, tmp_path, monkeypatch, change):
    """A restore that others commit and delete beside gives one step, or an error, and never parts of two."""
    (tmp_path / "root").mkdir()
    mnt = mount(tmp_path / "root", "commit=explicit", "overwrite").top
    ckptfs.save(mnt / "1", {str(i): np.full(50_000, 1) for i in range(20)})
    new = {str(i): np.full(50_000, 2) for i in range(20)}
    each = ckptfs.reading.parallel.each

    def slow(work, items, workers=None):
        items = list(items)
        monkeypatch.undo()
        each(work, items[:10])
        if change == "another step":
            ckptfs.save(mnt / "2", new)
        elif change == "replaced":
            ckptfs.save(mnt / "1", new, overwrite=True)
        else:
            shutil.rmtree(mnt / "1")
        each(work, items[10:])

    monkeypatch.setattr(ckptfs.reading.parallel, "each", slow)
    try:
        got = ckptfs.restore(mnt / "latest")
    except OSError as e:
        assert change != "another step" and e.errno in (errno.ENOENT, errno.ESTALE), e
    else:
        assert len(got) == 20 and all((a == 1).all() for a in got.values())


def test_cannot_be_decoded(mount, tmp_path):
    """An array with a codec that the mount does not know: its own error, and only if it is wanted."""
    copy = util.copy_tree(util.ORBAX / "no_ocdbt", tmp_path / "copy")
    file = next(copy.rglob(".zarray"))
    meta = json.loads(file.read_text())
    file.chmod(0o644)
    file.write_text(json.dumps(meta | {"compressor": {"id": "quantum"}}))
    m = mount(copy)
    with pytest.raises(OSError) as e:
        ckptfs.restore(m.top)
    assert e.value.errno == errno.EOPNOTSUPP


def test_no_mount(tmp_path):
    """Where nothing would commit it, nothing is saved."""
    with pytest.raises(OSError, match="not in a ckptfs mount"):
        ckptfs.save(tmp_path / "1", {"a": 1})
    manager = ckptfs.CheckpointManager(tmp_path)
    with pytest.raises(OSError, match="not in a ckptfs mount"):
        manager.save(1, {"a": 1})
    assert os.listdir(tmp_path) == []


def test_long_string(mount, tmp_path):
    """A value's text has a maximum."""
    (tmp_path / "root").mkdir()
    util.ckptfs("init", tmp_path / "root")
    mnt = mount(tmp_path / "root", "commit=explicit").top
    ckptfs.save(mnt / "1", {"a": "x" * 65_000})
    assert ckptfs.restore(mnt / "1") == {"a": "x" * 65_000}
    with pytest.raises(ValueError, match="a/b: as JSON"):
        ckptfs.save(mnt / "2", {"a": {"b": "x" * 70_000}})
    assert os.listdir(mnt)[:1] == ["1"]
