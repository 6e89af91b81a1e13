"""MOUNT/.files: the source as it is, for the libraries that wrote it."""

import errno
import os
import shutil
import time

import util
from util import DATA, ORBAX, fails, wait_for


def listing(top):
    found = {}
    for folder, dirs, files in os.walk(top):
        for name in dirs + files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, top)
            if os.path.islink(path):
                found[relative] = os.readlink(path)
            else:
                found[relative] = None if os.path.isdir(path) else open(path, "rb").read()
    return found


def test_as_in_the_source(mount, tmp_path):
    """Steps of every kind, unfinished ones and other files; links that stay inside."""
    source = tmp_path / "source"
    shutil.copytree(ORBAX / "manager_steps", source / "run")
    shutil.copytree(DATA / "flax-msgpack/leftovers", source / "flax")
    (source / "run/9.orbax-checkpoint-tmp-1").mkdir()
    (source / "notes.txt").write_text("notes")
    (source / "inside").symlink_to("run/4")
    (source / "outside").symlink_to("../../elsewhere")
    (source / "absolute").symlink_to("/etc/passwd")
    m = mount(source, "ro", "refresh=0.1")
    want = {k: v for k, v in listing(source).items() if k not in ("outside", "absolute")}
    assert listing(m / ".files") == want
    assert ".files" not in os.listdir(m.top)
    (source / "later").write_text("later")
    wait_for(lambda: "later" in os.listdir(m / ".files"), 10)
    assert (m / ".files/later").read_text() == "later"
    for attempt in (
        lambda: open(m / ".files/x", "w"),
        lambda: os.mkdir(m / ".files/x"),
        lambda: os.unlink(m / ".files/notes.txt"),
        lambda: open(m / ".files/notes.txt", "a"),
        lambda: os.rename(m / ".files/notes.txt", m / ".files/x"),
    ):
        with fails(errno.EROFS):
            attempt()


def test_of_one_file(mount):
    m = mount(DATA / "safetensors/all-dtypes.safetensors", "ro")
    assert os.listdir(m / ".files") == ["all-dtypes.safetensors"]
    assert (m / ".files/all-dtypes.safetensors").read_bytes() == (
        DATA / "safetensors/all-dtypes.safetensors"
    ).read_bytes()
    with fails(errno.ENOENT):
        os.stat(m / ".files/all-dtypes.truth.json")


def test_of_a_root_that_is_written(mount, tmp_path):
    """It is the root's own directory, without the store. What is put there is a foreign step, as if it had been put
    into the source.
    """
    root = tmp_path / "root"
    shutil.copytree(ORBAX / "manager_steps", root)
    util.ckptfs("init", root)
    m = mount(root, "commit=explicit")
    (m / "7").mkdir()
    (m / "7/x").write_text("x")
    assert sorted(os.listdir(m / ".files")) == sorted(n for n in os.listdir(root) if n != ".ckptstore")
    for attempt in (lambda: os.stat(m / ".files/.ckptstore"), lambda: os.listdir(m / ".files/.ckptstore/steps")):
        with fails(errno.ENOENT):
            attempt()
    for attempt in (
        lambda: os.mkdir(m / ".files/.ckptstore"),
        lambda: os.rename(m / ".files/3", m / ".files/.ckptstore"),
        lambda: open(m / ".files/.ckptstore", "w"),
        lambda: os.rmdir(m / ".files/.ckptstore"),
    ):
        with fails(errno.EPERM, errno.EINVAL, errno.EEXIST, errno.ENOENT):
            attempt()
    tmp, final = m / ".files/8.orbax-checkpoint-tmp-0", m / ".files/8"
    shutil.copytree(ORBAX / "manager_steps/4", tmp)
    assert not (m / "8").exists() and os.getxattr(m / "7", "user.ckpt.state") == b"staged"
    os.rename(tmp, final)
    assert sorted(os.listdir(m.top)) == ["3", "4", "7", "8", "latest"] and os.readlink(m / "latest") == "8"
    kernel = "model/params/kernel.npy"
    assert (m / "8" / kernel).read_bytes() == (m / "4" / kernel).read_bytes()
    with fails(errno.EROFS):  # as a tree it is the library's
        os.unlink(m / "8" / kernel)
    shutil.rmtree(m / ".files/3")
    assert sorted(os.listdir(m.top)) == ["4", "7", "8", "latest"]
    os.unlink(m / "7/x")
    os.rmdir(m / "7")
    assert sorted(os.listdir(root)) == sorted([".ckptstore", *(n for n in os.listdir(m / ".files"))])


def test_nothing_is_shared_with_the_store(mount, tmp_path):
    """A copy from a step of the store has bytes of its own, and commits nothing; nor does a sync."""
    root = tmp_path / "root"
    root.mkdir()
    util.ckptfs("init", root)
    m = mount(root, "settle=0.3")
    data = os.urandom(300_000)
    (m / "7").mkdir()
    (m / "7/blob").write_bytes(data)
    fd = os.open(m / "7", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    (m / ".files/9").mkdir()
    with open(m / "7/blob", "rb") as a, open(m / ".files/9/blob", "wb") as b:
        assert os.copy_file_range(a.fileno(), b.fileno(), len(data)) == len(data)
    with fails(errno.EXDEV):
        os.link(m / "7/blob", m / ".files/9/linked")
    with fails(errno.EXDEV):
        os.rename(m / ".files/9/blob", m / "7/other")
    fd = os.open(m / ".files/9", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    time.sleep(1)
    assert (root / "9/blob").read_bytes() == data and not os.listxattr(root / "9/blob")
    assert os.listdir(root / ".ckptstore/steps") == ["7.json"]


def test_a_new_root(mount, tmp_path):
    """An empty directory becomes a native root when something is saved there, too."""
    (tmp_path / "root").mkdir()
    m = mount(tmp_path / "root")
    shutil.copy(DATA / "flax-msgpack/guide/checkpoint_5", m / ".files/checkpoint_tmp")
    os.rename(m / ".files/checkpoint_tmp", m / ".files/checkpoint_5")
    assert sorted(os.listdir(m.top)) == ["checkpoint_5", "latest"] and os.path.isdir(m / "checkpoint_5")
    (m / "6").mkdir()
    (m / "6/x").write_text("x")
