"""PyTorch's files where real ones would be too large, too rare or too slow to make: views, shards, objects, sizes,
damage.
"""

import errno
import io
import json
import os
import random
import re
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import ml_dtypes  # noqa: F401, for its types' names
import numpy as np
import pytest

import check_fixtures
import torch_files
import util

MIB = 1 << 20
TYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]


@pytest.fixture
def source(tmp_path):
    """A folder to mount, apart from where it is mounted."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def same(path, want):
    got = np.load(path)
    assert got.shape == want.shape and got.itemsize == want.itemsize, path
    assert got.tobytes() == want.tobytes(), path


def random_array(rng, shape, dtype):
    data = rng.integers(0, 2 if dtype == "bool" else 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return data.reshape(-1).view(dtype).reshape(shape).copy() if data.size else np.zeros(shape, dtype)


def random_view(rng, base):
    """A strided view as PyTorch has them: no negative strides."""
    view = base
    for i in range(view.ndim):
        start, step = rng.integers(0, 3), rng.integers(1, 4)
        view = view[(slice(None),) * i + (slice(start, None, step),)]
    view = view.transpose(rng.permutation(view.ndim))
    if rng.random() < 0.2:
        view = np.broadcast_to(view, (int(rng.integers(1, 4)), *view.shape))
    if rng.random() < 0.2 and view.size:
        view = view[:, 0] if view.ndim > 1 and view.shape[1] else view
    return view


def random_slices(rng, path, array, count):
    for _ in range(count if array.ndim else 0):
        parts = []
        for size in array.shape[: rng.integers(1, array.ndim + 1)]:
            start, stop = (int(n) for n in rng.integers(-size - 1, size + 2, 2))
            parts.append(f"{start}:{stop}:{rng.choice([1, 2, 3, -1, -2])}")
        text = ",".join(parts)
        same(f"{path}@{text}.npy", eval(f"a[{text}]", {"a": array}))


@pytest.mark.parametrize(
    "how",
    [{}, {"big": True}, {"deflate": True}, {"big": True, "deflate": True}],
    ids=lambda how: "-".join(how) or "plain",
)
def test_views(mount, source, how):
    """Random strided views that share storages, in either byte order, stored or deflated."""
    rng = np.random.default_rng(len(how))
    tree = {}
    for i in range(60):
        shape = tuple(int(n) for n in rng.integers(0 if i % 9 == 0 else 1, 13, rng.integers(0, 5)))
        base = random_array(rng, shape, TYPES[i % len(TYPES)])
        tree[str(i)] = [base, random_view(rng, base), random_view(rng, base)]
    torch_files.save(source / "x.pt", tree, **how)
    m = mount(source)
    for key, arrays in tree.items():
        for i, array in enumerate(arrays):
            same(m / f"x.pt/{key}/{i}.npy", array)
            random_slices(rng, m / f"x.pt/{key}/{i}", array, 4)


def test_signs(mount, source):
    """Conjugated and negated views, in both byte orders and through strides."""
    a = np.random.default_rng(1).random((3, 4)) + 1j
    f = np.array([0.0, -1.5, np.inf], np.float32)
    flagged = {
        "conj": (a, {"conj": True}),
        "neg": (a.T, {"neg": True}),
        "both": (a[:, 1:], {"conj": True, "neg": True}),
        "f": (f, {"neg": True}),
        "real": (f, {"conj": True}),
        "no": (a, {"conj": False}),
        "none": (f, None),
    }
    want = {"conj": a.conj(), "neg": -a.T, "both": -(a[:, 1:].conj()), "f": -f, "real": f, "no": a, "none": f}
    for big in (False, True):
        torch_files.save(source / f"{big}.pt", {k: torch_files.Flagged(*v) for k, v in flagged.items()}, big=big)
    torch_files.save(source / "int.pt", {"i": torch_files.Flagged(np.arange(3), {"neg": True}), "ok": np.arange(3)})
    m = mount(source)
    for big in (False, True):
        for key, array in want.items():
            same(m / f"{big}.pt/{key}.npy", array)
    same(m / "True.pt/both@1,::2.npy", want["both"][1, ::2])
    with pytest.raises(OSError) as e:
        (m / "int.pt/i.npy").read_bytes()
    assert e.value.errno == errno.EOPNOTSUPP


# --- objects


def random_tree(rng, depth, shared):
    kind = rng.randrange(14)
    if kind == 13 and shared:
        return rng.choice(shared)
    if depth and kind < 6:
        keys = rng.sample(
            ["a", "b.c", "b", "x y", "é", "", "..", "1", 1, -2, True, None, 2.5, (1, "q"), "long" * 80],
            rng.randrange(5),
        )
        items = [random_tree(rng, depth - 1, shared) for _ in keys]
        made = dict(zip(keys, items)) if kind < 3 else items if kind < 5 else tuple(items)
        shared.append(made)
        return made
    return [7, -1, 2**70, 0.1, float("nan"), "text\n\"é", "", True, None, b"\xff\0", b"", 1 - 2j, np.arange(3), 2**31][
        rng.randrange(14)
    ]


def leaves(tree, path=()):
    """(keys, leaf); containers without items are leaves."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, (key if isinstance(key, str) else str(key), isinstance(key, str))))
    elif isinstance(tree, (list, tuple)) and tree:
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, (str(i), False)))
    else:
        yield path, tree


def check_object(file, leaf):
    if isinstance(leaf, np.ndarray):
        same(f"{file}.npy", leaf)
    elif isinstance(leaf, complex):
        same(f"{file}.npy", np.array(leaf))
    elif isinstance(leaf, bytes):
        assert file.read_bytes() == leaf
    elif isinstance(leaf, (dict, list, tuple)):
        assert os.listdir(file) == []
    else:
        assert repr(json.loads(Path(f"{file}.json").read_text())) == repr(leaf), file


def test_objects(mount, source):
    """Random trees of Python objects, some in several places of one tree, as Python pickles them."""
    rng = random.Random(3)
    trees = {}
    while len(trees) < 80:
        tree = {"top": random_tree(rng, 5, [])}
        names = [tuple(k for k, _ in path) for path, _ in leaves(tree)]
        listed = [n[i][0] for n in [[*path] for path, _ in leaves(tree)] for i in range(len(n))]
        if any(
            "b.c" in listed and n for n in names if "b" in n
        ):  # whether these are split depends on what else there is
            continue
        trees[f"{len(trees)}.pt"] = tree
        torch_files.save(source / f"{len(trees) - 1}.pt", tree)
    m = mount(source)
    for name, tree in trees.items():
        for path, leaf in leaves(tree):
            keys = [part for key, text in path for part in (key.split(".") if text and all(key.split(".")) else [key])]
            suffix = (
                ".npy"
                if isinstance(leaf, (np.ndarray, complex))
                else ""
                if isinstance(leaf, (bytes, dict, list, tuple))
                else ".json"
            )
            names = [check_fixtures.escape(k) for k in keys[:-1]] + [check_fixtures.escape(keys[-1], suffix)]
            file = str(m.top.joinpath(name, *names))
            check_object(Path(file[: len(file) - len(suffix)]), leaf)


def test_equal_names(mount, source):
    """1 and '1' are two keys, also of containers; names with dots give way."""
    torch_files.save(
        source / "x.pt", {1: {"i": 1}, "1": {"s": 2}, 2: "int", "2": "str", "a.b": 1, "a": {"b": 2}, "c": 3, "c.d": 4}
    )
    m = mount(source / "x.pt")
    listed = {
        os.path.relpath(os.path.join(folder, name), m.top) for folder, _, files in os.walk(m.top) for name in files
    }
    assert listed == {"1/i.json", "%31/s.json", "2.json", "%32.json", "a.b.json", "a/b.json", "c.json", "c/d.json"}
    assert (m / "%32.json").read_text() == '"str"\n' and (m / "a.b.json").read_text() == "1\n"


def test_same_object_often(mount, source):
    """An object in a hundred places is shown in each; one that would be in too many refuses the file, at once. One that
    contains itself is empty there.
    """
    shared = {"w": np.arange(4), "n": 1}
    torch_files.save(source / "good.pt", [shared] * 100)
    bomb = []
    for _ in range(30):
        bomb = [bomb] * 10
    torch_files.save(source / "bomb.pt", bomb)
    cycle = {"a": 1}
    cycle["me"] = cycle
    torch_files.save(source / "cycle.pt", cycle)
    m = mount(source)
    assert len(os.listdir(m / "good.pt")) == 100
    same(m / "good.pt/99/w.npy", shared["w"])
    begin = time.monotonic()
    with pytest.raises(OSError) as e:
        os.listdir(m / "bomb.pt")
    assert e.value.errno == errno.EUCLEAN and time.monotonic() - begin < 10
    assert sorted(os.listdir(m / "cycle.pt")) == ["a.json", "me"] and os.listdir(m / "cycle.pt/me") == []
    assert m.memory() < 256 * MIB or util.SANITIZED


def pickle_file(path, pickled):
    """What torch.save would write around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr("a/data.pkl", pickled)


def text(n):
    return b"X" + struct.pack("<I", n) + b"x" * n


BOMBS = {  # small files that say much, by sharing or by what is done again and again
    "a long string in many places": b"](" + text(4 * MIB - 100) + b"q\1" + b"h\1" * 500_000 + b"e.",
    "long bytes in many places": b"](c_codecs\nencode\n"
    + text(8 * MIB)
    + b"X\6\0\0\0latin1\x86Rq\1"
    + b"h\1" * 500_000
    + b"e.",
    "sets of one list": b"](cbuiltins\nset\nq\1](" + b"K\1" * 500_000 + b"e\x85q\2R" + b"h\1h\2R" * 500_000 + b"e.",
    "sizes of one tuple": b"](ctorch\nSize\nq\1(" + b"K\1" * 500_000 + b"t\x85q\2R" + b"h\1h\2R" * 500_000 + b"e.",
    "one tuple as a key": b"}((" + b"K\1" * 500_000 + b"tq\2N" + b"h\2N" * 500_000 + b"u.",
    "a deep tuple put into a set's list": b"]q\1(cbuiltins\nset\nh\1\x85R" + b"N" + b"\x85" * 500_000 + b"e.",
    "many lists": b"]" + b"]a" * 20_000_000 + b".",
    "many nothings": b"N" * 30_000_000 + b".",
    "many marks": b"(" * 30_000_000 + b".",
    "much in the memo": b"N"
    + b"".join(b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) for i in range(3_000_000))
    + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(mount, source, name):
    """Refused, soon and with little memory."""
    pickle_file(source / "x.pt", b"\x80\2" + BOMBS[name])
    m = mount(source)
    begin = time.monotonic()
    with util.fails(errno.EUCLEAN, errno.EOPNOTSUPP):
        os.listdir(m / "x.pt")
    print(f"{time.monotonic() - begin:.1f} s, {m.memory() / MIB:.0f} MiB")
    assert util.SANITIZED or (time.monotonic() - begin < 30 and m.memory() < 256 * MIB)


def test_long_values(mount, source):
    """Long bytes are read in parts; a long string is no value that is shown, a long key no name."""
    data = np.random.default_rng(2).bytes(20 * MIB)
    torch_files.save(
        source / "x.pt", {"bytes": data, "short": "x" * (4 * MIB - 2), "long": "x" * (4 * MIB + 1), "n": 1}
    )
    torch_files.save(source / "key.pt", {"k" * 65536: 1})
    m = mount(source)
    assert (m / "x.pt/bytes").read_bytes() == data
    with open(m / "x.pt/bytes", "rb", buffering=0) as f:
        assert os.pread(f.fileno(), 1000, 12345678) == data[12345678:12346678]
    assert json.loads((m / "x.pt/short.json").read_text()) == "x" * (4 * MIB - 2)
    assert sorted(os.listdir(m / "x.pt")) == ["bytes", "long.json", "n.json", "short.json"]
    for path in ("x.pt/long.json", "x.pt/long"):
        assert util.read_error(m / path) == errno.EOPNOTSUPP
    with util.fails(errno.EOPNOTSUPP):
        os.listdir(m / "key.pt")
    assert util.SANITIZED or m.memory() < 256 * MIB


# --- what is a checkpoint


def test_which_files(mount, source):
    """What begins as torch.save writes; other files are files."""
    torch_files.save(source / "real.bin", {"a": 1})
    torch_files.save(source / "real.ckpt", {"a": 1})
    (source / "raw.bin").write_bytes(b"PK\3\4 not really")
    (source / "empty.ckpt").write_bytes(b"")
    (source / "broken.pt").write_bytes(b"x")
    (source / "empty.pth").write_bytes(b"")
    (source / "begun.pt").write_bytes(b"PK\3\4 cut")
    (source / "cut.pt").write_bytes((source / "real.bin").read_bytes()[:100])
    (source / "cut.bin").write_bytes((source / "real.bin").read_bytes()[:100])
    for name in ("a.th", "b.pyth", "c.PTH", "best.pth.tar", "d.pkl", "e.jit"):
        (source / name).write_bytes((source / "real.bin").read_bytes())
    torch_files.save_before_zip(source / "old.pth.tar", {"a": 1})
    torch_files.save_before_zip(source / "old.bin", {"a": 1})
    (source / ".pt").write_bytes(b"x")
    m = mount(source)
    assert {n: os.path.isdir(m / n) for n in os.listdir(m.top)} == {
        "real.bin": True,
        "real.ckpt": True,
        "raw.bin": False,
        "empty.ckpt": False,
        "broken.pt": False,
        "empty.pth": True,
        "begun.pt": True,
        "cut.pt": True,
        "cut.bin": True,
        "a.th": True,
        "b.pyth": True,
        "c.PTH": True,
        "best.pth.tar": True,
        "d.pkl": True,
        "e.jit": True,
        "old.pth.tar": True,
        "old.bin": True,
        ".pt": False,
    }
    assert (m / "raw.bin").read_bytes() == b"PK\3\4 not really" and os.listdir(m / "real.ckpt") == ["a.json"]


def test_unfinished(mount, source):
    """A distributed checkpoint without .metadata is not finished; other files of a finished one are blobs."""
    torch_files.save_distributed(source / "runs/good", {}, {"n": 1})
    for name, file in (("writing", ".metadata.tmp"), ("died", "__0_0.distcp")):
        (source / "runs" / name).mkdir()
        (source / "runs" / name / file).write_bytes(b"x")
    (source / "runs/good/config.json").write_text("{}")
    (source / "runs/good/logs").mkdir()
    (source / "runs/good/logs/1.txt").write_text("a")
    m = mount(source)
    assert os.listdir(m / "runs") == ["good"] and sorted(os.listdir(m / "runs/good")) == [
        "config.json",
        "logs",
        "n.json",
    ]
    assert (m / "runs/good/config.json").read_text() == "{}" and (m / "runs/good/logs/1.txt").read_text() == "a"
    unfinished = (m / ".ckptfs/unfinished").read_text()
    assert "runs/writing\t" in unfinished and "runs/died\t" in unfinished


def test_verify(source):
    """A flipped bit is found by its CRC-32, in a file and in a piece."""
    a = np.arange(1000, dtype=np.float32)
    torch_files.save(source / "x.pt", {"a": a})
    torch_files.save_distributed(source / "d", {"a": ((1000,), "float32", [((0,), a)])}, files=1)
    for place, file in ((source / "x.pt", source / "x.pt"), (source / "d", source / "d/__0_0.distcp")):
        util.ckptfs("verify", place)
        data = bytearray(file.read_bytes())
        data[data.index(a.tobytes()) + 1234] ^= 4
        file.write_bytes(data)
        assert "data/0" in (done := util.ckptfs("verify", place, check=4)).stderr + done.stdout


def test_verify_missing_files(source):
    """Of a folder of which a file is gone, each leaf with data in it is named, and the rest is read."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    halves = [((0, 0), a[:2].copy()), ((2, 0), a[2:].copy())]
    tensors = {"halves": ((3, 4), "float32", halves)} | {f"t{i}": ((3, 4), "float32", [((0, 0), a)]) for i in range(9)}
    torch_files.save_distributed(source / "d", tensors, {"n": 1, "o": {"x": [1, a]}}, files=3)
    (source / "d/__1_0.distcp").unlink()
    told = json.loads(util.ckptfs("verify", "--json", source / "d", check=4).stdout)
    assert sorted(f["path"] for f in told["faults"]) == ["halves.npy", "t2.npy", "t5.npy", "t8.npy"]
    assert told["files"] == 13


# --- shards


def cut(rng, low, size, pieces):
    """Boxes that tile a box: cut in two at random until there are so many."""
    boxes = [(low, size)]
    while len(boxes) < pieces:
        low, size = boxes.pop(rng.integers(len(boxes)))
        d = int(rng.integers(len(size)))
        if size[d] < 2:
            boxes.append((low, size))
            if all(n < 2 for _, s in boxes for n in s):
                break
            continue
        at = int(rng.integers(1, size[d]))
        for first, n in ((0, at), (at, size[d] - at)):
            boxes.append(
                (
                    tuple(x + first * (i == d) for i, x in enumerate(low)),
                    tuple(n if i == d else x for i, x in enumerate(size)),
                )
            )
    return boxes


def piece(rng, array, low, size):
    """A part of an array, laid out in one way or another."""
    part = array[tuple(slice(x, x + n) for x, n in zip(low, size))]
    if rng.random() < 0.5:
        return part.copy()
    order = rng.permutation(part.ndim)
    return part.transpose(order).copy().transpose(np.argsort(order))


@pytest.mark.parametrize("how", [{}, {"big": True}], ids=["little", "big"])
def test_shards(mount, source, how):
    """Boxes that no grid describes, in any order, some stored transposed."""
    rng = np.random.default_rng(8)
    tensors, arrays = {}, {}
    for i in range(40):
        shape = tuple(int(n) for n in rng.integers(1, 17, rng.integers(1, 4)))
        dtype = TYPES[i % len(TYPES)]
        array = arrays[f"t{i}"] = random_array(rng, shape, dtype)
        boxes = cut(rng, (0,) * len(shape), shape, int(rng.integers(1, 12)))
        rng.shuffle(boxes)
        tensors[f"t{i}"] = (
            shape,
            dtype,
            [(tuple(int(x) for x in low), piece(rng, array, low, size)) for low, size in boxes],
        )
    arrays["pinwheel"] = w = random_array(rng, (3, 3), "int16")
    tensors["pinwheel"] = (
        (3, 3),
        "int16",
        [
            ((0, 0), w[:1, :2].copy()),
            ((0, 2), w[:2, 2:].copy()),
            ((2, 1), w[2:, 1:].copy()),
            ((1, 0), w[1:, :1].copy()),
            ((1, 1), w[1:2, 1:2].copy()),
        ],
    )
    arrays["scalar"] = s = np.array(7.5)
    tensors["scalar"] = ((), "float64", [((), s)])
    arrays["empty"] = np.zeros((0, 3), "float32")
    tensors["empty"] = ((0, 3), "float32", [])
    torch_files.save_distributed(source / "d", tensors, files=3, **how)
    m = mount(source)
    for key, array in arrays.items():
        same(m / f"d/{key}.npy", array)
        random_slices(rng, m / f"d/{key}", array, 5)
        with open(m / f"d/{key}", "rb", buffering=0) as f:
            for _ in range(5):
                off, n = (int(x) for x in rng.integers(0, array.nbytes + 1, 2))
                assert os.pread(f.fileno(), n, off) == array.tobytes()[off : off + n]
    info = json.loads((m / "d/pinwheel.meta.json").read_text())
    assert info["pieces"] == 5 and info["boxes"][1] == {
        "offsets": [0, 2],
        "sizes": [2, 1],
        "file": info["boxes"][1]["file"],
    }


def test_more_files_than_descriptors(mount, source):
    """A process may not open as many files as there are pieces in."""
    tensors = {
        f"t{i}": (
            (4,),
            "float32",
            [((0,), np.full(2, i, "f4")), ((2,), np.full(2, -i, "f4"))] if i % 2 else [((0,), np.full(4, i, "f4"))],
        )
        for i in range(600)
    }
    torch_files.save_distributed(source / "d", tensors, files=600)
    m = mount(source, prefix=("prlimit", "--nofile=128"))
    for i in range(600):
        assert np.load(m / f"d/t{i}.npy")[3] == (-i if i % 2 else i)
    assert m.descriptors() < 128


def test_bad_shards(mount, source):
    """Each tensor whose pieces do not tile it cannot be read, and says so; the others can."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = ((3, 4), "float32")
    tensors = {
        "good": (*whole, [((0, 0), a)]),
        "hole": (*whole, [((0, 0), a[:2].copy())]),
        "none": (*whole, []),
        "overlap": (*whole, [((0, 0), a[:2].copy()), ((1, 0), a[:1].copy())]),
        "twice": (*whole, [((0, 0), a), ((0, 0), a)]),
        "outside": (*whole, [((1, 0), a)]),
        "huge": ((2**40, 4), "float32", [((0, 0), a)]),
        "wide": ((2**40, 2**40), "float32", [((0, 0), a)]),
        "type": (*whole, [((0, 0), a.astype("int32"))]),
    }
    torch_files.save_distributed(source / "d", tensors, {"n": 1}, files=1)
    torch_files.save_distributed(source / "gone", tensors, {"n": 1}, files=1)
    (source / "gone/__0_0.distcp").unlink()
    m = mount(source)

    def error(path):
        with pytest.raises(OSError) as e:
            Path(path).read_bytes()
        return e.value.errno

    same(m / "d/good.npy", a)
    for name in ("hole", "none", "huge"):
        assert error(m / f"d/{name}.npy") == errno.ENODATA, name
    for name in ("overlap", "twice", "outside", "wide", "type"):
        assert error(m / f"d/{name}.npy") == errno.EUCLEAN, name
    assert error(m / "gone/good.npy") == errno.ENODATA and error(m / "gone/n.npy") == errno.ENODATA


def test_pieces_without_their_data(mount, source):
    """The data of one piece begin with no header of a member: that tensor cannot be read, and nothing else happens."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    pieces = [((0, 0), a[:2].copy()), ((2, 0), a[2:].copy())]
    torch_files.save_distributed(source / "d", {n: ((3, 4), "float32", pieces) for n in "xyz"}, files=1)
    path = source / "d/__0_0.distcp"
    data = bytearray(path.read_bytes())
    headers = [h.start() for h in re.finditer(rb"PK\x03\x04.{26}archive/data/0", data, re.S)]
    assert len(headers) == 6
    data[headers[1] + 3] += 1
    path.write_bytes(data)
    m = mount(source)
    for _ in range(2):
        errors = [util.read_error(m / f"d/{n}.npy") for n in "xyz"]
        assert sorted(errors, key=str) == [errno.EUCLEAN, None, None] or sorted(errors, key=str) == [
            errno.EBADMSG,
            None,
            None,
        ], errors
    assert all(np.array_equal(np.load(m / f"d/{n}.npy"), a) for n, e in zip("xyz", errors) if e is None)


def test_paths(mount, source):
    """planner_data says where leaves are: names with dots of their own, lists in any order; bytes may be whole
    trees.
    """
    one = np.ones(1, np.float32)
    names = ["m.a.b", "m.a.c", "l.1", "l.0", "s.3", "o", "n"]
    tensors = {n: ((1,), "float32", [((0,), one * i)]) for i, n in enumerate(names[:5])}
    paths = {
        "m.a.b": ("m", "a.b"),
        "m.a.c": ("m", "a", "c"),
        "l.1": ("l", 1),
        "l.0": ("l", 0),
        "s.3": ("s", 3),
        "o": ("m", "o"),
        "n": ("n",),
    }
    torch_files.save_distributed(source / "d", tensors, {"o": {"x": [1, "y"], "w": np.arange(3)}, "n": None}, paths)
    torch_files.save_distributed(source / "unplanned", tensors, {"o": 1})
    m = mount(source)

    def listed(top):
        return {os.path.relpath(os.path.join(folder, name), top) for folder, _, files in os.walk(top) for name in files}

    assert listed(m / "d") == {
        "m/a/b.npy",
        "m/a/c.npy",
        "l/0.npy",
        "l/1.npy",
        "s/3.npy",
        "m/o/x/0.json",
        "m/o/x/1.json",
        "m/o/w.npy",
        "n.json",
    }
    assert np.load(m / "d/l/0.npy") == [3] and np.load(m / "d/m/a/b.npy") == [0]
    same(m / "d/m/o/w.npy", np.arange(3))
    kinds = {tuple(c["path"]): c["kind"] for c in json.loads((m / "d/.tree.json").read_text())["containers"]}
    assert kinds[("l",)] == "list" and kinds[("s",)] == "dict" and kinds[("m", "o", "x")] == "list"
    assert listed(m / "unplanned") == {"m/a/b.npy", "m/a/c.npy", "l/0.npy", "l/1.npy", "s/3.npy", "o.json"}


# --- sizes


def sparse_archive(path, pickled, size):
    """An archive with one storage of `size` zero bytes, which take no room on disk. Returns where they are."""

    def local(name, data, n):
        return (
            struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, 0, zlib.crc32(data) if data else 0, 0, 0, len(name), 0)
            + name
        )

    def central(name, data, n, at):
        extra = struct.pack("<HHQQQ", 1, 24, n, n, at)
        return (
            struct.pack(
                "<IHHHHHHIIIHHHHHII",
                0x02014B50,
                45,
                45,
                0,
                0,
                0,
                0,
                zlib.crc32(data) if data else 0,
                0xFFFFFFFF,
                0xFFFFFFFF,
                len(name),
                len(extra),
                0,
                0,
                0,
                0,
                0xFFFFFFFF,
            )
            + name
            + extra
        )

    with open(path, "wb") as f:
        directory = central(b"a/data.pkl", pickled, len(pickled), 0)
        f.write(local(b"a/data.pkl", pickled, len(pickled)) + pickled)
        directory += central(b"a/data/0", b"", size, f.tell())
        f.write(local(b"a/data/0", b"", size))
        at = f.tell()
        f.seek(size, os.SEEK_CUR)
        begin = f.tell()
        f.write(directory)
        f.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 2, 2, len(directory), begin))
        f.write(struct.pack("<IIQI", 0x07064B50, 0, begin + len(directory), 1))
        f.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return at


def views_pickle(count, views):
    """A dict of float32 views (name: offset, size, stride) of one storage."""

    def number(n):
        return b"\x8a" + bytes([(n.bit_length() + 8) // 8]) + n.to_bytes((n.bit_length() + 8) // 8, "little")

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def numbers(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    out = b"\x80\x02}("
    for name, (offset, size, stride) in views.items():
        out += (
            text(name)
            + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
            + text("cpu")
        )
        out += (
            number(count)
            + b"tQ"
            + number(offset)
            + numbers(size)
            + numbers(stride)
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
    return out + b"u."


def test_large_views(mount, source):
    """Slices of a storage of 10 GiB, straight, turned and in the other byte order, read about what they ask for;
    strides of 0 cost nothing.
    """
    rows, columns = 40960, 65536
    count = rows * columns
    pickled = views_pickle(
        count,
        {
            "w": (0, (rows, columns), (columns, 1)),
            "t": (0, (columns, rows), (1, columns)),
            "tail": (count - 4, (4,), (1,)),
            "expanded": (count - 1, (2**40,), (0,)),
            "huge": (0, (2**60,), (0,)),
            "beyond": (0, (2**62,), (0,)),
            "outside": (1, (count,), (1,)),
            "deep": (0, (1,) * 40, (1,) * 40),
        },
    )
    at = sparse_archive(source / "x.pt", pickled, 4 * count)
    with open(source / "x.pt", "r+b") as f:
        f.seek(at + 4 * (12345 * columns + 777))
        f.write(np.float32(1.5).tobytes())
        f.seek(at + 4 * (count - 1))
        f.write(np.float32(2.5).tobytes())
    m = mount(source)

    def fetched():
        return json.loads((m / ".ckptfs/stats.json").read_text())["bytes_fetched"]

    assert os.stat(m / "x.pt/w").st_size == os.stat(m / "x.pt/t").st_size == 4 * count
    before = fetched()
    assert np.load(m / "x.pt/w@12345,700:800.npy")[77] == 1.5
    assert np.load(m / "x.pt/t@700:800,12345.npy")[77] == 1.5
    assert np.load(m / "x.pt/t@777,12340:12350.npy")[5] == 1.5
    assert np.load(m / "x.pt/tail.npy")[3] == 2.5
    with open(m / "x.pt/t", "rb", buffering=0) as f:  # a run of the turned one: one element a row of the file
        data = os.pread(f.fileno(), 64 * 1024, 4 * 777 * rows)
        assert np.frombuffer(data, np.float32)[12345] == 1.5
    assert fetched() - before < 2 * MIB, fetched() - before
    assert (
        os.stat(m / "x.pt/expanded.npy").st_size == 2**42 + 128
        and os.stat(m / "x.pt/expanded.npy").st_blocks * 512 <= 4096
    )
    assert os.stat(m / "x.pt/huge").st_size == 2**62
    with open(m / "x.pt/expanded", "rb", buffering=0) as f:
        assert set(np.frombuffer(os.pread(f.fileno(), 1 << 20, 2**41), np.float32)) == {2.5}
    assert (np.load(m / "x.pt/expanded@-3:.npy") == 2.5).all()
    for name, code in (("beyond", errno.EUCLEAN), ("outside", errno.EUCLEAN), ("deep", errno.EOPNOTSUPP)):
        with pytest.raises(OSError) as e:
            (m / f"x.pt/{name}.npy").read_bytes()
        assert e.value.errno == code, name
    assert "2.5" in (m / "x.pt/expanded.txt").read_text()
    assert util.SANITIZED or m.memory() < 256 * MIB


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_tensors(mount, source):
    """As many tensors as a pickle of 64 MB has, each with a storage of its own."""
    base = np.zeros(1, np.float32)
    tree = {f"layers.{i // 100}.{i % 100}.weight": base.copy() for i in range(500_000)}
    torch_files.save(source / "x.pt", tree)
    m = mount(source, patience=500)
    begin = time.monotonic()
    assert len(os.listdir(m / "x.pt/layers")) == 5000
    print(f"opened in {time.monotonic() - begin:.1f} s")
    assert len(json.loads((m / "x.pt/.tree.json").read_text())["leaves"]) == 500_000
    for i in range(0, 500_000, 997):
        same(m / f"x.pt/layers/{i // 100}/{i % 100}/weight.npy", base)
    print(f"peak {m.memory() / MIB:.0f} MiB")
    assert util.SANITIZED or m.memory() < 256 * MIB


# --- the format before PyTorch 1.6


def test_before_zip(mount, source):
    """Storages follow the pickle, in the order of their keys, and some tensors share one."""
    rng = np.random.default_rng(16)
    arrays = {dtype: random_array(rng, (5, 4, 3), dtype) for dtype in TYPES}
    base = arrays["float32"]
    tree = {"dtypes": arrays, "t": base.transpose(2, 0, 1)[1:], "row": base[2, :, 1], "none": base[:0], "epoch": 90}
    torch_files.save_before_zip(source / "x.pt", tree)
    m = mount(source)
    for dtype, array in arrays.items():
        same(m / f"x.pt/dtypes/{dtype}.npy", array)
        random_slices(rng, m / f"x.pt/dtypes/{dtype}", array, 5)
    for name in ("t", "row", "none"):
        same(m / f"x.pt/{name}.npy", tree[name])
    assert (m / "x.pt/epoch.json").read_text() == "90\n"


def test_view_of_a_storage(mount, source):
    """A storage that is a part of another one: its tensors count from where it begins."""
    base = np.arange(20, dtype="f4")
    with torch_files.torch_names() as names:
        shared = torch_files.Storage(7, base, (5, 10))

        class Tensor:
            def __init__(self, offset, *shape):
                self.offset, self.shape = offset, shape

            def __reduce__(self):
                return names.tensor, (
                    shared,
                    self.offset,
                    self.shape,
                    (self.shape[-1], 1)[-len(self.shape) :],
                    False,
                    {},
                )

        tree = {"w": Tensor(2, 2, 4), "all": Tensor(0, 10), "beyond": Tensor(1, 10), "storage": shared}
        (source / "x.pt").write_bytes(torch_files.stream(tree, names, keys=["7"], more={"7": base}))
    m = mount(source)
    same(m / "x.pt/w.npy", base[7:15].reshape(2, 4))
    same(m / "x.pt/all.npy", base[5:15])
    same(m / "x.pt/storage.npy", base[5:15])
    with pytest.raises(OSError) as e:
        (m / "x.pt/beyond.npy").read_bytes()
    assert e.value.errno == errno.EUCLEAN


def damaged_streams():
    with torch_files.torch_names() as names:
        two = {"a": np.arange(3, dtype="f4"), "b": np.arange(4, dtype="f8")}
        good = torch_files.stream(two, names)
        yield "cut", good[:-1], errno.EBADMSG, "ends before storage"
        yield "no storages", good[: -(8 + 12 + 8 + 32)], errno.EBADMSG, "ends before storage"
        yield "magic only", good[:15], errno.EBADMSG, "ends where a pickle should begin"
        yield "cut pickle", good[:200], errno.EBADMSG, "the pickle ends"
        yield (
            "more elements",
            good[:-20] + (9).to_bytes(8, "little") + good[-12:],
            errno.EUCLEAN,
            "has 9 elements, not 3",
        )
        yield "unused key", torch_files.stream(two, names, keys=["1", "5", "0"]), errno.EUCLEAN, "storage 5"
        yield "key twice", torch_files.stream(two, names, keys=["1", "1", "0"]), errno.EUCLEAN, "same key"
        yield "odd key", torch_files.stream(two, names, keys=["1", "x", "0"]), errno.EUCLEAN, "no number"
        yield "no list", torch_files.stream(two, names, keys={"1": 1, "0": 0}), errno.EUCLEAN, "no list of storages"
        yield "version", torch_files.stream(two, names, version=1002), errno.EOPNOTSUPP, "version"
        yield "missing", torch_files.stream(two, names, keys=["1"]), None, "missing in the file"


def test_damaged_streams(mount, source):
    cases = list(damaged_streams())
    for i, (_, data, _, _) in enumerate(cases):
        (source / f"{i}.pt").write_bytes(data)
    m = mount(source)
    for i, (name, _, code, says) in enumerate(cases):
        if code is None:  # of one tensor alone
            same(m / f"{i}.pt/b.npy", np.arange(4, dtype="f8"))
            with pytest.raises(OSError) as e:
                (m / f"{i}.pt/a.npy").read_bytes()
            assert e.value.errno == errno.EUCLEAN, name
            continue
        with pytest.raises(OSError) as e:
            os.listdir(m / f"{i}.pt")
        assert e.value.errno == code, name
        assert says in os.getxattr(m / f"{i}.pt", "user.ckpt.error").decode(), name


def test_verify_reads_storages(source):
    """Of such a file there are no checksums: all of it is read."""
    array = np.arange(100000, dtype="f4")
    torch_files.save_before_zip(source / "x.pt", {"a": array, "b": array[10:20], "c": 1})
    assert json.loads(util.ckptfs("verify", "--json", source / "x.pt").stdout)["files"] == 3
    with open(source / "x.pt", "r+b") as f:
        f.truncate(1000)
    assert "ends before storage" in util.ckptfs("verify", source / "x.pt", check=4).stdout


def test_tar(mount, source):
    """What the first releases wrote is named, not opened; any other tar archive is a file."""
    for name, member in (("first.pth.tar", "sys_info"), ("other.pth.tar", "notes.txt"), ("first.pt", "tensors")):
        with tarfile.open(source / name, "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo(member)
            info.mtime, info.size = 1.5, 3  # which takes a header of its own
            tar.addfile(info, io.BytesIO(b"abc"))
    m = mount(source)
    assert (m / "other.pth.tar").is_file()
    for name in ("first.pth.tar", "first.pt"):
        with pytest.raises(OSError) as e:
            os.listdir(m / name)
        assert e.value.errno == errno.EOPNOTSUPP
        assert "tar archive" in os.getxattr(m / name, "user.ckpt.error").decode()


# --- folders of shards


def save_folder(folder, shards, places=None, save=torch_files.save):
    """Shards as transformers saves them, and the index that joins them."""
    folder.mkdir(parents=True)
    names = [f"pytorch_model-{i + 1:05}-of-{len(shards):05}.bin" for i in range(len(shards))]
    for name, tree in zip(names, shards):
        save(folder / name, tree)
    places = places or {key: names[i] for i, tree in enumerate(shards) for key in tree}
    index = {"metadata": {"total_size": 7}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return names


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_before_zip])
def test_folder(mount, source, save):
    """One tree of all shards, each of which can be opened by itself too."""
    arrays = {f"model.layers.{i}.w": np.full((3, 2), i, "f4") for i in range(100)} | {"head": np.arange(5, dtype="i8")}
    shards = [{key: a for i, (key, a) in enumerate(arrays.items()) if i % 70 == n} for n in range(70)]
    names = save_folder(source / "f", shards, save=save)
    m = mount(source)
    assert sorted(os.listdir(m / "f")) == ["config.json", "head.npy", "model"]
    for key, array in arrays.items():
        same(m / "f" / (key.replace(".", "/") + ".npy"), array)
    meta = json.loads((m / "f/model/layers/3/w.meta.json").read_text())
    assert meta["shard"] == names[3] and meta["storage"].startswith("data/"), meta
    assert json.loads(util.ckptfs("verify", "--json", source / "f").stdout)["faults"] == []
    assert util.ckptfs("ls", source / "f" / names[3]).stdout == "model\n"
    flat = mount(source / "f", "flat")
    assert set(os.listdir(flat.top)) == {f"{key}.npy" for key in arrays} | {"config.json"}


def test_folder_with_damage(mount, source):
    """A shard that is missing or damaged spoils its own tensors; what the index does not have is not shown."""
    shards = [{"a.w": np.ones(2)}, {"b": np.ones(3)}, {"c": np.ones(4)}, {"d": np.ones(5), "x": np.ones(6)}]
    names = save_folder(source / "f", shards, {"a.w": "", "b": "", "c": "", "d": "", "e": ""})
    places = dict(zip("abcd", names)) | {"e": names[3]}
    places["a.w"] = places.pop("a")
    (source / "f/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (source / "f" / names[0]).unlink()
    (source / "f" / names[1]).write_bytes(b"PK\3\4 damaged")
    m = mount(source)
    assert sorted(os.listdir(m / "f")) == ["a", "b.npy", "c.npy", "config.json", "d.npy", "e.npy"]
    same(m / "f/c.npy", np.ones(4))
    same(m / "f/d.npy", np.ones(5))
    for name, code in (("a/w.npy", errno.EIO), ("b.npy", errno.EBADMSG), ("e.npy", errno.ENODATA)):
        with pytest.raises(OSError) as e:
            (m / "f" / name).read_bytes()
        assert e.value.errno == code, name
    done = json.loads(util.ckptfs("verify", "--json", source / "f", check=4).stdout)
    assert sorted(f["path"] for f in done["faults"]) == ["a/w.npy", "b.npy", "e.npy"], done
    assert names[0] in str(done) and "is missing" in str(done)


def test_index_without_shards(mount, source):
    """Of many models the small files are downloaded without the shards: what else is in the folder opens up."""
    save_folder(source / "f", [{"a": np.ones(2)}])
    (source / "f/pytorch_model-00001-of-00001.bin").rename(source / "f/other.bin")
    m = mount(source)
    assert sorted(os.listdir(m / "f")) == ["config.json", "other.bin", "pytorch_model.bin.index.json"]
    same(m / "f/other.bin/a.npy", np.ones(2))
