"""Any pickle: what it describes is shown, of all protocols, and nothing in it is run."""

import argparse
import collections
import datetime
import enum
import errno
import functools
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import torch_files
import util

MIB = 1 << 20
PROTOCOLS = range(6)


@pytest.fixture
def source(tmp_path):
    """A folder to mount, apart from where it is mounted."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def save(path, tree, protocol=2):
    torch_files.save_pickle(path, pickle.dumps(tree, protocol))


def value(path):
    return json.loads(Path(f"{path}.json").read_text())


def same(path, want):
    got = np.load(f"{path}.npy")
    if want.dtype == ml_dtypes.int4:  # NumPy has nothing in the upper half of the byte, a mount has the sign
        want = want.astype("i1")
    want = want.astype(want.dtype.newbyteorder("<")) if want.dtype.names is None else want
    assert got.shape == want.shape and got.itemsize == want.itemsize, path
    assert got.tobytes() == want.tobytes(), path


def listing(top):
    """All files below, and directories that are empty."""
    found = set()
    for folder, folders, files in os.walk(top):
        found |= {os.path.relpath(os.path.join(folder, f), top) for f in files}
        if not folders and not files:
            found.add(os.path.relpath(folder, top) + "/")
    return found


# --- what is what it is


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


VALUES = {
    "posix path": (pathlib.PurePosixPath("/a/b.c"), "/a/b.c"),
    "relative path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "windows path": (pathlib.PureWindowsPath("C:/x/y"), "C:\\x\\y"),
    "datetime": (datetime.datetime(2024, 1, 2, 3, 4, 5, 678), "2024-01-02T03:04:05.000678"),
    "zoned": (
        datetime.datetime(2024, 12, 31, tzinfo=datetime.timezone(-datetime.timedelta(hours=5, minutes=30))),
        "2024-12-31T00:00:00-05:30",
    ),
    "utc": (datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc), "2024-01-02T00:00:00+00:00"),
    "date": (datetime.date(1, 2, 3), "0001-02-03"),
    "time": (datetime.time(1, 2, 3), "01:02:03"),
    "timedelta": (datetime.timedelta(days=2, seconds=3, microseconds=4), "2 days, 0:00:03.000004"),
    "negative": (datetime.timedelta(seconds=-1), "-1 day, 23:59:59"),
    "timezone": (datetime.timezone(datetime.timedelta(hours=1)), "UTC+01:00"),
    "frozenset": (frozenset([1]), [1]),
    "set of tuples": ({(1, "a")}, [[1, "a"]]),
    "range": (range(0, 10, 3), "range(0, 10, 3)"),
    "short range": (range(5), "range(0, 5)"),
    "function": (len, "builtins.len"),
    "class": (collections.OrderedDict, "collections.OrderedDict"),
    "big": (2**70, 2**70),
    "bigger": (-(10**3000), -(10**3000)),
    "float": (0.1, 0.1),
    "text": ("größer\n\\ \U0001f600", "größer\n\\ \U0001f600"),
    "true": (True, True),
    "none": (None, None),
    "float32": (np.float32(0.1), 0.10000000149011612),
    "int64": (np.int64(-7), -7),
    "bool_": (np.bool_(True), True),
    "bfloat16": (ml_dtypes.bfloat16(1.5), 1.5),
    "str_": (np.str_("hé"), "hé"),
    "dtype": (np.dtype(">f4"), "float32"),
    "custom dtype": (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
}
BYTES = {
    "bytes": b"\0\xff\x80abc",
    "no bytes": b"",
    "long bytes": bytes(range(256)) * 3,
    "bytearray": bytearray(b"xyz\xfe"),
    "bytes_": np.bytes_(b"ab"),
}
STRUCTURED = np.dtype([("a", "<f4"), ("b", ">i2", (2, 1)), ("c", [("d", "u1"), ("e", "S3")])])
ARRAYS = {
    "plain": np.arange(12, dtype="f4").reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "turned": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "exchanged": np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(1, 0, 2),
    "big-endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([[1 + 2j]], "c8"),
    "half": np.array([1.5, -2], "f2"),
    "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
    "float8": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
    "int4": np.array([-8, 7], ml_dtypes.int4),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(5.0),
    "times": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "25us": np.arange(3).astype("m8[25us]"),
    "strings": np.array(["ab", "cdé"]),
    "bytestrings": np.array([b"ab", b"c"]),
    "structured": np.array([(1, [[2], [3]], (4, b"xyz"))] * 2, STRUCTURED),
    "aligned": np.array([(1, 2.5)], np.dtype([("a", "u1"), ("b", "<f8")], align=True)),
    "record array": np.rec.array([(1, 2.5)], dtype=[("a", "u1"), ("b", "<f8")]),
    "complex number": np.complex128(1 - 2j),
    "python complex": np.array(1 - 2j),
    "time": np.datetime64("2020-01-01"),
    "record": np.array([(1, 2.5)], [("a", "u1"), ("b", "<f8")])[0],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values(mount, source, protocol):
    """What is not PyTorch's but known: a value, a blob, an array, of every protocol."""
    arrays = ARRAYS | {"python complex": complex(1, -2)}
    tree = {"values": {k: v for k, (v, _) in VALUES.items()}, "bytes": BYTES, "arrays": arrays}
    save(source / "x.pt", tree, protocol)
    m = mount(source)
    assert listing(m / "x.pt") == (
        {f"values/{k}.json" for k in VALUES} | {f"bytes/{k}" for k in BYTES} | {f"arrays/{k}.npy" for k in ARRAYS}
    )
    for key, (_, want) in VALUES.items():
        assert repr(value(m / f"x.pt/values/{key}")) == repr(want), key
    for key, want in BYTES.items():
        assert (m / f"x.pt/bytes/{key}").read_bytes() == bytes(want), key
    for key, want in ARRAYS.items():
        same(m / f"x.pt/arrays/{key}", np.asarray(want))
    assert np.array_equal(np.load(m / "x.pt/arrays/turned@1,::2.npy"), ARRAYS["turned"][1, ::2])
    assert json.loads((m / "x.pt/values/float32.meta.json").read_text())["dtype"] == "float32"
    assert json.loads((m / "x.pt/arrays/bfloat16.meta.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers(mount, source, protocol):
    tree = {
        "ordered": collections.OrderedDict([("a.b", 1), ("c", 2)]),
        "default": collections.defaultdict(list, {"x": [1]}),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2], 5),
        "objects": np.array([1, "a", None], dtype=object),
        "empty": [{}, [], (), collections.OrderedDict()],
    }
    save(source / "x.pt", tree, protocol)
    m = mount(source)
    assert listing(m / "x.pt") == {
        *("ordered/a/b.json", "ordered/c.json", "default/x/0.json", "counter/a.json", "counter/b.json"),
        *("deque/0.json", "deque/1.json", "objects/0.json", "objects/1.json", "objects/2.json"),
        *(f"empty/{i}/" for i in range(4)),
    }
    containers = json.loads((m / "x.pt/.tree.json").read_text())["containers"]
    assert {c["path"][0]: c["kind"] for c in containers if len(c["path"]) == 1} == {
        **dict.fromkeys(["ordered", "default", "counter"], "dict"),
        **dict.fromkeys(["deque", "objects", "empty"], "list"),
    }


def test_keys(mount, source):
    """Whatever can be hashed can be a key; what has no str() of its own is known by its place."""
    keys = [1, (1, "b"), b"k\xff", None, 2.5, Color, frozenset([1]), datetime.date(2024, 1, 2)]
    tree = {k: i for i, k in enumerate(keys)} | {Color.RED: 8, Color.BLUE: 9}
    save(source / "x.pt", tree)
    m = mount(source)
    name = f"{Color.__module__}.Color"
    assert {n[:-5]: value(m / "x.pt" / n[:-5]) for n in os.listdir(m / "x.pt")} == {
        **{"1": 0, "(1, 'b')": 1, "b'k\\xff'": 2, "None": 3, "2.5": 4, name: 5, "[1]": 6, "2024-01-02": 7},
        **{f"{name} #8": 8, f"{name} #9": 9},
    }


# --- objects


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("a", "b", "__dict__")

    def __init__(self):
        self.a, self.b, self.c = 1, np.arange(3), "c"


class OwnDict(dict):
    pass


class OwnList(list):
    pass


class Arguments:
    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return (1, "two"), {"three": 3}


class State:
    def __getstate__(self):
        return [1, 2]

    def __setstate__(self, state):
        pass


class Reduced:
    def __reduce__(self):
        return collections.namedtuple, ("X", "a b"), None, iter([1, 2]), iter([("k", 3)])


Pair = collections.namedtuple("Pair", "left right")


def here(name):
    return f"{__name__}.{name}"


def attribute(path, name):
    return os.getxattr(path, f"user.ckpt.{name}").decode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects(mount, source, protocol):
    """The attributes of an object are in its directory, what its constructor was given in args."""
    own_dict, own_list = OwnDict(a=1), OwnList([1, 2])
    own_dict.own, own_list.own = 2, 3
    tree = {
        "plain": Plain(x=1, w=np.ones((2, 2), "f4"), inner=Plain(y=[Plain()])),
        "namespace": argparse.Namespace(lr=0.1, names=["a"]),
        "simple": types.SimpleNamespace(a=1),
        "slots": Slots(),
        "dict": own_dict,
        "list": own_list,
        "arguments": Arguments(),
        "state": State(),
        "reduced": Reduced(),
        "pair": Pair(1, np.zeros(2)),
        "enum": Color.BLUE,
        "partial": functools.partial(int, base=2),
        "set": {Pair(1, 2)},
        "args": Plain(args=1),
    }
    save(source / "x.pt", tree, protocol)
    m = mount(source)
    want = {
        *("plain/x.json", "plain/w.npy", "plain/inner/y/0/", "namespace/lr.json", "namespace/names/0.json"),
        *("simple/a.json", "slots/a.json", "slots/b.npy", "slots/c.json", "dict/a.json", "dict/own.json"),
        *("list/0.json", "list/1.json", "list/own.json", "arguments/args/0.json", "arguments/args/1.json"),
        *("arguments/kwargs/three.json", "state/state/0.json", "state/state/1.json", "reduced/args/0.json"),
        *("reduced/args/1.json", "reduced/0.json", "reduced/1.json", "reduced/k.json", "pair/args/0.json"),
        *("pair/args/1.npy", "enum/args/0.json", "partial/args/0.json", "partial/state/0.json", "partial/state/1/"),
        *("partial/state/2/base.json", "partial/state/3.json", "set/0/args/0.json", "set/0/args/1.json"),
        "args/args.json",
    }
    assert listing(m / "x.pt") == want
    same(m / "x.pt/plain/w", np.ones((2, 2), "f4"))
    assert value(m / "x.pt/enum/args/0") == "b" and value(m / "x.pt/reduced/args/1") == "a b"
    classes = {
        "plain": here("Plain"),
        "plain/inner/y/0": here("Plain"),
        "namespace": "argparse.Namespace",
        "reduced": "collections.namedtuple",
        "enum": here("Color"),
        "partial": "functools.partial",
    }
    for path, name in classes.items():
        assert attribute(m / "x.pt" / path, "kind") == "object" and attribute(m / "x.pt" / path, "class") == name
    told = {tuple(c["path"]): c for c in json.loads((m / "x.pt/.tree.json").read_text())["containers"]}
    assert told[("plain", "inner", "y", 0)] == {"path": ["plain", "inner", "y", 0], "kind": "object"} | {
        "class": here("Plain")
    }
    assert told[("plain", "inner", "y")]["kind"] == "list" and told[("pair", "args")]["kind"] == "tuple"
    assert "class" not in told[("pair", "args")]


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_objects(mount, source, protocol):
    """Before protocol 2 a function of copyreg makes objects, of the state of a base class."""
    own = OwnDict(a=1)
    save(source / "y.pt", {"plain": Plain(x=1), "own": own}, protocol)
    m = mount(source)
    assert listing(m / "y.pt") == {"plain/x.json", "own/args/0/a.json"}
    assert attribute(m / "y.pt/plain", "class") == here("Plain") and attribute(m / "y.pt/own", "class") == here(
        "OwnDict"
    )


def test_top_object(mount, source):
    """An object that is the whole file is the file's directory; an array or a name is a bare leaf."""
    save(source / "object.pt", Plain(x=1, w=np.arange(3)))
    save(source / "array.pt", np.arange(3))
    save(source / "number.pt", np.float64(2.5))
    save(source / "name.pt", len)
    save(source / "list.pt", np.array([1, None], object))
    save(source / "set.pt", {Pair(1, 2)})
    m = mount(source)
    assert listing(m.top) == {
        *("object.pt/x.json", "object.pt/w.npy", "array.pt/%.npy", "number.pt/%.json", "name.pt/%.json"),
        *("list.pt/0.json", "list.pt/1.json", "set.pt/%/0/args/0.json", "set.pt/%/0/args/1.json"),
    }
    assert attribute(m / "object.pt", "class") == here("Plain")


def test_cycles(mount, source):
    """An object within itself is an empty directory there, which tells where it is; one in two places is in both."""
    parent = Plain(name="parent")
    parent.child = Plain(parent=parent, siblings=[])
    parent.child.siblings.append(parent.child)
    loop = [1]
    loop.append(loop)
    save(source / "x.pt", {"one": parent, "two": parent, "loop": loop, "method": parent.__init__})
    m = mount(source)
    for top in "one", "two":
        assert listing(m / "x.pt" / top) == {"name.json", "child/parent/", "child/siblings/0/"}
        assert attribute(m / f"x.pt/{top}/child/parent", "class") == here("Plain")
    told = {tuple(c["path"]): c for c in json.loads((m / "x.pt/.tree.json").read_text())["containers"]}
    assert told[("one", "child", "parent")]["same_as"] == ["one"]
    assert told[("one", "child", "siblings", 0)]["same_as"] == ["one", "child"]
    assert listing(m / "x.pt/loop") == {"0.json", "1/"}
    assert attribute(m / "x.pt/method", "class") == "builtins.getattr"


def test_objects_that_refer_to_each_other(mount, source):
    """Each of a hundred objects knows all others: as paths that is beyond all bounds."""
    crowd = [Plain(number=i, w=np.full(2, i)) for i in range(100)]
    for one in crowd:
        one.others = crowd
    chain = None
    for _ in range(60):
        chain = Plain(a=chain, b=chain)
    save(source / "x.pt", {"crowd": crowd, "chain": chain, "w": np.arange(3)})
    begin = time.monotonic()
    m = mount(source)
    same(m / "x.pt/w", np.arange(3))
    assert {value(m / f"x.pt/crowd/{i}/number") for i in range(100)} == set(range(100))
    assert time.monotonic() - begin < 20 and (util.SANITIZED or m.memory() < 256 * MIB)


# --- opcodes


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s


OPCODES = {  # a dict of what each makes
    "out-of-band buffers": (b"(X\1\0\0\0a\x97\x98X\1\0\0\0bK\1d.", {"a.npy", "b.json"}),
    "an array of one": (
        b"(X\1\0\0\0acnumpy.core.numeric\n_frombuffer\n(\x97cnumpy\ndtype\nX\2\0\0\0f4\x89\x88\x87R"
        b"(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbK\2\x85X\1\0\0\0CtRd.",
        {"a.npy"},
    ),
    "Python 2's strings": (b"(U\1aU\1bT\1\0\0\0cT\2\0\0\0\xff\xfed.", {"a.json", "c"}),
    "text": (b"(Va\nI1\nVb\nL2L\nVc\nF3.5\nVd\nS'x'\nVe\nI01\np1\n0g1\nd.", None),
    "BUILD twice": (b"(Va\nca\nb\n)\x81NbI1\nbd.", {"a/state/0.json", "a/state/1.json"}),
    "a call of a call": (b"(Va\nca\nb\n)R)Rd.", {"a/class/"}),
    "a nested name": (b"(Va\ncbuiltins\ngetattr\n(ca\nb\nVc\ntRd.", {"a.json"}),
}


def test_opcodes(mount, source):
    for name, (pickled, _) in OPCODES.items():
        torch_files.save_pickle(source / f"{name}.pt", pickled.replace(b"Ve\nI01\np1\n0g1\nd.", b"Ve\nI01\nd."))
    m = mount(source)
    for name, (_, want) in OPCODES.items():
        assert want is None or listing(m / f"{name}.pt") == want, name
    assert [value(m / "text.pt" / k) for k in "abcde"] == [1, 2, 3.5, "x", True]
    assert util.read_error(m / "out-of-band buffers.pt/a.npy") == errno.EOPNOTSUPP
    assert util.read_error(m / "an array of one.pt/a.npy") == errno.EOPNOTSUPP
    assert value(m / "a nested name.pt/a") == "a.b.c"


def test_registry(mount, source):
    """A class by its number in copyreg's registry is refused, and the reason says so."""
    for code, number in ((b"\x82", b"\1"), (b"\x83", b"\1\0"), (b"\x84", b"\1\0\0\0")):
        torch_files.save_pickle(source / f"{len(number)}.pt", b"\x80\2" + code + number + b")R.")
    m = mount(source)
    for n in 1, 2, 4:
        with util.fails(errno.EOPNOTSUPP):
            os.listdir(m / f"{n}.pt")
        assert f"EXT{n}" in attribute(m / f"{n}.pt", "error")


def numpy_state(shape, code, data):
    number = b"".join(b"J" + struct.pack("<i", n) for n in shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\1btR(K\1(" + number + b"t"
        b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"
    )


BAD_ARRAYS = {
    "short": (numpy_state((3,), b"f4", b"\0" * 11), errno.EUCLEAN),
    "long": (numpy_state((3,), b"f4", b"\0" * 13), errno.EUCLEAN),
    "negative": (numpy_state((-1,), b"f4", b""), errno.EUCLEAN),
    "huge": (numpy_state((2**31 - 1,) * 4, b"f8", b""), errno.EUCLEAN),
    "deep": (numpy_state((1,) * 40, b"f4", b"\0" * 4), errno.EOPNOTSUPP),
    "type": (numpy_state((1,), b"q9", b"\0" * 4), errno.EOPNOTSUPP),
}


def test_bad_arrays(mount, source):
    """Each of them fails, and nothing beside it."""
    pickled = b"(" + b"".join(text(k.encode()) + p for k, (p, _) in BAD_ARRAYS.items()) + text(b"n") + b"K\1d."
    torch_files.save_pickle(source / "x.pt", pickled)
    m = mount(source)
    assert listing(m / "x.pt") == {f"{k}.npy" for k in BAD_ARRAYS} | {"n.json"}
    for name, (_, code) in BAD_ARRAYS.items():
        assert util.read_error(m / f"x.pt/{name}.npy") == code, name
    assert value(m / "x.pt/n") == 1


BOMBS = {  # small files that say much
    "objects of objects": b"](" + b"ca\nb\nq\1" + b"h\1)R" * 3_000_000 + b"e.",
    "a call of a call of a call": b"ca\nb\n" + b")R" * 500_000 + b".",
    "a state of a state": b"ca\nb\n)\x81" + b"Nb" * 500_000 + b".",
    "a long name": b"](\x8c\1a" + text(b"x" * 8 * MIB) + b"\x93q\1" + b"h\1)R" * 500_000 + b"e.",
    "one tuple in many calls": b"](" + b"(" + b"K\1" * 500_000 + b"tq\1" + b"ca\nb\nq\2" + b"h\2h\1R" * 300_000 + b"e.",
    "a member of a member": b"](ca\nb\n"
    + b"cbuiltins\ngetattr\nq\0000"
    + b"ca\nb\n"
    + b"q\1\x30h\0h\1Va\n\x86R" * 300_000
    + b"e.",
    "long numbers": b"](" + (b"L" + b"9" * 4900 + b"L\n") * 5000 + b"e.",
    "a number beyond telling": b"](\x8b" + struct.pack("<I", 4 * MIB) + b"\x7f" * 4 * MIB + b"q\1" + b"h\1" * 9 + b"e.",
    "one array in many places": b"](" + numpy_state((MIB,), b"u1", b"\0" * MIB) + b"q\1" + b"h\1" * 500_000 + b"e.",
    "text that grows": b"](" + (b"V" + b"\xe9" * MIB + b"\n") * 40 + b"e.",
    "fields of fields": b"](cnumpy\ndtype\n"
    + text(b"V8")
    + b"\x89\x88\x87Rq\1(K\3X\1\0\0\0|N("
    + text(b"a")
    + b"t}"
    + text(b"a")
    + b"h\1K\0\x86sK\x08K\1K\0tbe.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(mount, source, name):
    """Shown or refused, soon and with little memory."""
    torch_files.save_pickle(source / "x.pt", b"\x80\2" + BOMBS[name], deflate=True)
    begin = time.monotonic()
    m = mount(source)
    try:
        os.listdir(m / "x.pt")
    except OSError as e:
        assert e.errno in (errno.EUCLEAN, errno.EOPNOTSUPP)
    print(f"{time.monotonic() - begin:.1f} s, {m.memory() / MIB:.0f} MiB")
    assert util.SANITIZED or (time.monotonic() - begin < 30 and m.memory() < 256 * MIB)


# --- nothing runs

EVIL = '''"""Each touches the file that it is told."""
import builtins

def touch(path):
    builtins.open(path, "w").close()

class New:
    def __new__(cls, path, **_):
        touch(path)
        return object.__new__(cls)

class Init:
    def __init__(self, path):
        touch(path)

class SetState:
    def __setstate__(self, path):
        touch(path)

class Attribute:
    def __setattr__(self, name, path):
        touch(path)

class Container:
    def append(self, path):
        touch(path)

    def extend(self, paths):
        touch(paths[0])

    def add(self, path):
        touch(path)

    def __setitem__(self, key, path):
        touch(path)

class Hash:
    def __new__(cls, path):
        made = object.__new__(cls)
        made.path = path
        return made

    def __hash__(self):
        touch(self.path)
        return 1
'''

UNPICKLE = '''
import copyreg, evil, io, os, pickle, sys
class Unpickler(pickle._Unpickler):
    def persistent_load(self, path):
        evil.touch(path)
copyreg.add_extension("evil", "touch", 77)
try:
    Unpickler(io.BytesIO(sys.stdin.buffer.read())).load()
except Exception as e:
    print(e)
'''


def ways(path):
    """{name: pickle that touches the file when it is loaded}"""
    p, evil = text(path), b"cevil\n"
    shell = text(b"touch " + path)
    nested = b"cevil\ntouch\n(" + p + b"tR."
    return {
        "os.system": b"cposix\nsystem\n(" + shell + b"tR.",
        "os.system in Python 2": b"cos\nsystem\n(" + shell + b"tR.",
        "subprocess": b"csubprocess\ncheck_call\n((" + text(b"touch") + p + b"ltR.",
        "Popen": b"csubprocess\nPopen\n((" + text(b"touch") + p + b"ltR.",
        "eval": b"cbuiltins\neval\n(" + text(b"open('" + path + b"', 'w')") + b"tR.",
        "exec": b"cbuiltins\nexec\n(" + text(b"open('" + path + b"', 'w')") + b"tR.",
        "open": b"cio\nopen\n(" + p + text(b"w") + b"tR.",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
        + text(b"os")
        + b"tR"
        + text(b"system")
        + b"tR("
        + shell
        + b"tR.",
        "STACK_GLOBAL": b"\x80\4\x8c\5posix\x8c\6system\x93" + shell + b"\x85R.",
        "INST": b"(" + p + b"ievil\nInit\n.",
        "OBJ": b"(cevil\nInit\n" + p + b"o.",
        "NEWOBJ": evil + b"New\n(" + p + b"t\x81.",
        "NEWOBJ_EX": evil + b"New\n(" + p + b"t}" + text(b"k") + b"K\1s\x92.",
        "BUILD": evil + b"SetState\n)\x81" + p + b"b.",
        "BUILD of attributes": evil + b"Attribute\n)\x81N}" + text(b"a") + p + b"s\x86b.",
        "APPEND": evil + b"Container\n)\x81" + p + b"a.",
        "APPENDS": evil + b"Container\n)\x81(" + p + b"e.",
        "SETITEM": evil + b"Container\n)\x81K\1" + p + b"s.",
        "ADDITEMS": evil + b"Container\n)\x81(" + p + b"\x90.",
        "a key": b"}" + evil + b"Hash\n(" + p + b"t\x81K\1s.",
        "PERSID": b"P" + path + b"\n.",
        "BINPERSID": p + b"Q.",
        "EXT1": b"\x82\x4d(" + p + b"tR.",
        "EXT2": b"\x83\x4d\0(" + p + b"tR.",
        "EXT4": b"\x84\x4d\0\0\0(" + p + b"tR.",
        "a nested pickle": b"cpickle\nloads\n(B" + struct.pack("<I", len(nested)) + nested + b"tR.",
        "an import": b"cimported\nnothing\n.",
        "copyreg": b"ccopyreg\n__newobj__\n(" + evil + b"New\n" + p + b"tR.",
        "functools": b"cfunctools\npartial\n(" + evil + b"touch\ntR(" + p + b"tR.",
        "what is dropped": evil + b"touch\n(" + p + b"tR0N.",
    }


def unpickle(pickled, folder):
    """As Python does."""
    return subprocess.run(
        [sys.executable, "-c", UNPICKLE],
        input=pickled,
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=60,
    )


def write_all(folder, name, pickled):
    """A pickle in each kind of file that has some."""
    torch_files.save_pickle(folder / f"{name}.pt", pickled)
    beside = b"(" + text(b"n") + b"K\1" + text(b"x") + pickled[:-1] + b"d."
    torch_files.save_pickle(folder / f"beside {name}.pt", beside)
    (folder / f"{name}.pkl").write_bytes(pickled)
    old = [pickle.dumps(torch_files.MAGIC, 2), pickle.dumps(torch_files.VERSION, 2), pickle.dumps({}, 2)]
    (folder / f"{name} old.pt").write_bytes(b"".join([*old, pickled, pickle.dumps([], 2)]))
    (folder / f"{name} dcp").mkdir()
    (folder / f"{name} dcp/.metadata").write_bytes(pickled)
    torch_files.save_distributed(folder / f"{name} piece", {}, {"n": torch_files.Pickled(pickled)})


def look_at_all(top):
    """Every file in a mount, and its views."""
    for folder, _, files in os.walk(top):
        for name in [".tree.json", *files]:
            for view in (name, name.rsplit(".", 1)[0] + ".meta.json", name.rsplit(".", 1)[0] + ".txt"):
                try:
                    Path(folder, view).read_bytes()
                except OSError:
                    pass
        try:
            for name in os.listxattr(folder):
                os.getxattr(folder, name)
        except OSError:
            pass


def test_nothing_runs(mount, tmp_path):
    """What Python would do to unpickle them no command does, and no mount."""
    touched, modules, source = (tmp_path / n for n in ("touched", "modules", "source"))
    for folder in touched, modules, source:
        folder.mkdir()
    (modules / "evil.py").write_text(EVIL)
    (modules / "imported.py").write_text(f"open({str(touched / 'an import')!r}, 'w')\n")
    found = {}
    for name in ways(b""):
        file = touched / name
        pickled = ways(os.fsencode(str(touched / name.replace(" ", "_"))))[name]
        said = unpickle(pickled, modules)
        file = file if name == "an import" else touched / name.replace(" ", "_")
        for _ in range(50):  # a child may take its time
            if file.exists():
                break
            time.sleep(0.1)
        assert file.exists(), f"{name}: it does nothing: {said}"
        file.unlink()
        found[name] = pickled
        write_all(source, name, pickled)
    assert len(found) >= 12
    environment = os.environ | {"PYTHONPATH": str(modules)}
    for command in (["ls", "-R"], ["info"], ["verify"]):
        subprocess.run([util.CKPTFS, *command, source], env=environment, capture_output=True, timeout=300)
    everything = source / "everything.pt"
    read = {n: p for n, p in found.items() if "EXT" not in n and "PERSID" not in n}  # those two are refused
    members = b"".join(text(n.encode()) + p[:-1] for n, p in read.items())
    torch_files.save_pickle(everything, b"(" + text(b"n") + b"K\1" + members + b"d.")
    assert util.ckptfs("cat", everything, "n.json").stdout == "1\n"
    for command in (
        ["cp", everything, ".", tmp_path / "copy"],
        ["diff", everything, everything],
        ["export", everything, tmp_path / "export", "--format=npy"],
        ["init", tmp_path / "store"],
        ["import", everything, tmp_path / "store/1"],
    ):
        util.run(util.CKPTFS, *command, env=environment)
    m = mount(source)
    look_at_all(m.top)
    assert value(m / "beside os.system.pt/n") == 1
    time.sleep(0.5)
    assert os.listdir(touched) == [], os.listdir(touched)
