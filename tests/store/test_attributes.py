"""Extended attributes: what was set is there after each commit and each change, or was refused when it was set."""

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, commit, run
from util import fails

OURS = "user.ckpt."


def own(path):
    """The user's attributes of a file."""
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if not name.startswith(OURS)}


def fill(path, length, name="user.n{}"):
    """Set attributes of that length until there is no room; nothing else may stop it. What was set."""
    given = {}
    for k in range(100_000):
        value = random.Random(k).randbytes(length)
        try:
            os.setxattr(path, name.format(k), value)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            break
        given[name.format(k)] = value
    return given


def make_files(step):
    """One of each kind: in a pack, an object of its own, an array whose bytes are let go, one with a type of its own, a
    value, a directory, the top.
    """
    (step / "d").mkdir(parents=True)
    (step / "small").write_bytes(b"small")
    (step / "empty").write_bytes(b"")
    (step / "large").write_bytes(trees.noise(300_000))
    np.save(step / "let_go.npy", trees.floats(500_000))
    np.save(step / "typed.npy", np.zeros(100_000, "V1"))
    os.setxattr(step / "typed.npy", "user.ckpt.dtype", b"float8_e4m3fn")
    (step / "value.json").write_text("1")
    return [step, *(step / name for name in ("d", "small", "empty", "large", "let_go.npy", "typed.npy", "value.json"))]


def change(step, k):
    (step / "changed").write_text(f"{k}")


@pytest.mark.parametrize("length", [0, 1, 30, 100, 390, 1500, 3000])
@pytest.mark.parametrize("when", ["staged", "copied"])
def test_full(writable, length, when):
    """As many as there is room for, set on a new step or on the copy of a committed one."""
    step = writable / "7"
    paths = make_files(step)
    if when == "copied":
        commit(step)
        change(step, 0)
    given = {path: {**fill(path, length), **fill(path, 30, "user.t{}"), **fill(path, 0, "user.e{}")} for path in paths}
    for k in range(3):
        for path in paths:
            assert own(path) == given[path], (k, path)
        change(step, k)
        commit(step)
    assert trees.attribute(step / "typed.npy", "dtype") == "float8_e4m3fn"


def test_while_it_is_full(writable):
    """An attribute that is full can be replaced by one as long, or shorter, and be taken away; then there is room
    again.
    """
    step = writable / "7"
    for path in make_files(step):
        given = fill(path, 200)
        for k in range(2):
            first = min(given)
            for value in b"\0" * 200, b"", b"x":
                os.setxattr(path, first, value)
                given[first] = value
            assert own(path) == given
            os.removexattr(path, first)
            os.setxattr(path, first, b"\xff" * 200)
            given[first] = b"\xff" * 200
            with fails(errno.ENOSPC):
                os.setxattr(path, "user.more", b"x" * 1000)
            commit(step)
            assert own(path) == given, path
            change(step, k)


VALUES = {
    "user.nul": b"\0",
    "user.nuls": b"a\0b\0\0",
    "user.empty": b"",
    "user.bytes": bytes(range(256)),
    "user.quote\"\\": b"\"}",
    "user.ünï": "ü".encode(),
    "user.tab\t\n\x01": b"\n",
    "user.a=b": b"=",
    "user.CKPT.kind": b"upper",
    "user.ckp": b"short",
    "user.Nul": b"another",
}


def test_values(writable, root, mount):
    step = writable / "7"
    paths = make_files(step)
    for path in paths:
        for name, value in VALUES.items():
            os.setxattr(path, name, value)
        with fails(errno.EINVAL):
            os.setxattr(path, b"user.\xff", b"a name that a manifest cannot have")
        with fails(errno.EOPNOTSUPP):
            os.setxattr(path, "user.ckptfs.ref", b"ref1 0")
    for k in range(2):
        commit(step)
        other = mount(root, "ro")
        for path in paths:
            assert own(path) == own(other / path.relative_to(writable.top)) == VALUES, path
        change(step, k)
        assert all(own(path) == VALUES for path in paths)


@pytest.mark.parametrize("tool", ["cp", "rsync"])
def test_tools(writable, root, tool):
    """cp -a and rsync -aX, into a step and from step to step, bring all; again they change nothing."""
    if not shutil.which(tool):
        pytest.skip(f"no {tool}")
    src = writable / "1"
    make_files(src)
    for path in [src, *sorted(src.rglob("*"))]:
        for name, value in VALUES.items():
            os.setxattr(path, name, value)
    os.setxattr(src / "d", "user.ckpt.kind", b"list")
    os.setxattr(src, "user.ckpt.metadata", b'{"a":1}')
    commit(src)
    for k, to in enumerate([2, 3, 3]):
        run(
            *(["cp", "-aT"] if tool == "cp" else ["rsync", "-aX"]),
            f"{writable.top}/{max(to - 1, 1)}" + ("/" if tool == "rsync" else ""),
            f"{writable.top}/{to}",
        )
        commit(writable / str(to))
        for path in [src, *sorted(src.rglob("*"))]:
            copy = writable / str(to) / path.relative_to(src)
            assert own(copy) == VALUES, copy
            assert trees.attribute(copy, "dtype") == trees.attribute(path, "dtype")
            assert trees.attribute(copy, "kind") == trees.attribute(path, "kind")
        assert trees.attribute(writable / str(to), "metadata") == '{"a":1}', k


@pytest.fixture
def roomy():
    """A folder on a file system that has room for 64 KiB in each attribute."""
    folder = tempfile.mkdtemp(dir="/dev/shm")
    try:
        os.setxattr(folder, "user.x", b"x" * 65536)
        os.removexattr(folder, "user.x")
    except OSError as e:
        os.rmdir(folder)
        pytest.skip(f"/dev/shm has no large attributes: {e}")
    yield Path(folder)
    shutil.rmtree(folder)


def test_large(roomy, mount, tmp_path):
    """Up to 64 KiB each where the file system has them, as many as a manifest has room for; on one that has less room a
    change of the step is refused.
    """
    root = roomy / "root"
    root.mkdir()
    util.ckptfs("init", root)
    step = mount(root, EXPLICIT) / "7"
    paths = make_files(step)
    given = {}
    for path in paths:
        value = random.Random(str(path)).randbytes(65536)
        os.setxattr(path, "user.large", value)
        given[path] = {"user.large": value, **fill(path, 10_000), **fill(path, 10, "user.\1\1\1\1\1\1\1\1\1{}")}
        assert len(given[path]) > 50
    for k in range(2):
        change(step, k)
        assert all(own(path) == given[path] for path in paths)
        commit(step)
    util.wait_for(lambda: not list((trees.store(root) / "trash").glob("staging-*")))
    run("cp", "-r", root, tmp_path / "copy")
    try:
        os.setxattr(tmp_path, "user.x", b"x" * 65536)
        pytest.skip("the rest wants a file system that has no room for it")
    except OSError as e:
        assert e.errno in (errno.ENOSPC, errno.E2BIG)
    m = mount(tmp_path / "copy", EXPLICIT)
    with fails(errno.ENOSPC):
        change(m / "7", 9)
    assert all(own(m / path.relative_to(step.parent)) == given[path] for path in paths)
    assert "its attribute user." in m.said()


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"[1]",
        b"1",
        b'"x"',
        b"null",
        b" ",
        b"{} {}",
        b'{"a":1}x',
        b'{"a":1}\0',
        b'{"a":\xff}',
        b'{"a":"\0"}',
        b"{'a':1}",
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ],
)
def test_bad_metadata(writable, value):
    """Refused when it is set, and nothing has changed: it would be refused by the commit."""
    step = writable / "7"
    step.mkdir()
    (step / "f").write_text("x")
    for k in range(2):
        with fails(errno.EINVAL):
            os.setxattr(step, "user.ckpt.metadata", value)
        assert trees.attribute(step, "metadata") is None
        os.setxattr(step, "user.ckpt.metadata", b' {"a": [1, {}, NaN], "\xc3\xbc": null}\n')
        with fails(errno.EINVAL):
            os.setxattr(step, "user.ckpt.metadata", value)
        assert "user.ckpt.metadata" in writable.said()
        commit(step)
        assert trees.attribute(step, "metadata") == '{"a":[1,{},NaN],"\u00fc":null}'
        with fails(errno.EINVAL):  # of a committed step, whose copy it is set on
            os.setxattr(step, "user.ckpt.metadata", value)
        os.setxattr(step, "user.ckpt.metadata", b"")
        assert trees.attribute(step, "metadata") == ""
        commit(step)
        assert trees.attribute(step, "metadata") == "{}"
        os.setxattr(step, "user.ckpt.metadata", b"{}")
        os.removexattr(step, "user.ckpt.metadata")


def test_deepest_metadata(writable):
    step = writable / "7"
    step.mkdir()
    value = b'{"a":' * 64 + b"1" + b"}" * 64
    os.setxattr(step, "user.ckpt.metadata", value)
    commit(step)
    assert os.getxattr(step, "user.ckpt.metadata") == value


def test_bad_kind_and_dtype(writable):
    step = writable / "7"
    (step / "d").mkdir(parents=True)
    np.save(step / "w.npy", np.zeros(4, "V1"))
    for path in step, step / "d":
        for value in b"", b"List", b"list\0", b"set", b"array":
            with fails(errno.EINVAL):
                os.setxattr(path, "user.ckpt.kind", value)
        for value in b"dict", b"list", b"tuple", b"object", b"namedtuple":
            os.setxattr(path, "user.ckpt.kind", value)
            assert os.getxattr(path, "user.ckpt.kind") == value
    for value in b"", b"float9", b"int4\0", b"\xff", b"bfloat", b"FLOAT", b"<", b"x" * 5000:
        with fails(errno.EINVAL):
            os.setxattr(step / "w.npy", "user.ckpt.dtype", value)
    with fails(errno.EINVAL):
        os.setxattr(step / "w.npy", "user.ckpt.kind", b"list")
    with fails(errno.EINVAL):
        os.setxattr(step, "user.ckpt.pinned", b"yes")
    for value in (
        b"Q4_K",
        b"F6_E2M3",
        b"<f4",
        b"[('a', '<i4'), ('b', '<f8')]",
        b"|S3",
        b"<M8[ns]",
        b"bfloat16",
        b"float8_e5m2",
    ):
        os.setxattr(step / "w.npy", "user.ckpt.dtype", value)
    os.setxattr(step / "w.npy", "user.ckpt.kind", b"array")
    commit(step)
    assert trees.attribute(step / "w.npy", "dtype") == "float8_e5m2" and trees.attribute(step, "kind") == "namedtuple"


def test_import(writable, root, tmp_path):
    """From store to store with all attributes; metadata that no manifest takes are refused before anything is
    copied.
    """
    step = writable / "7"
    paths = make_files(step)
    for path in paths:
        for name, value in VALUES.items():
            os.setxattr(path, name, value)
    os.setxattr(step, "user.ckpt.metadata", b'{"a":1}')
    commit(step)
    util.ckptfs("import", root / "7", root / "8")
    for path in paths:
        assert own(writable / "8" / path.relative_to(step)) == VALUES, path
    assert trees.attribute(writable / "8", "metadata") == '{"a":1}'
    deep = util.copy_tree(util.DATA / "demo/300", tmp_path / "deep")
    text = (deep / "_CHECKPOINT_METADATA").read_text()
    (deep / "_CHECKPOINT_METADATA").write_text(
        text.replace('"custom_metadata": {}', '"custom_metadata": ' + '{"a":' * 70 + "1" + "}" * 70)
    )
    done = util.ckptfs("import", deep, root / "9", check=None)
    assert done.returncode and "user.ckpt.metadata" in done.stderr and "9" not in os.listdir(writable.top)
