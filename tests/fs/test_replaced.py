"""A source that is one checkpoint, and is replaced, removed or written again while it is mounted."""

import errno
import io
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import safetensors.numpy

import util
from util import ORBAX, fails, wait_for

SEEN = 4  # seconds: a refresh time of one second, two more, and one for a slow machine
BIG = 1 << 18  # elements, so that the kernel has not all of a file when its beginning was read


def write_safetensors(path, tree):
    safetensors.numpy.save_file(tree, path)


def write_npz(path, tree):
    with open(path, "wb") as f:
        np.savez(f, **{name.replace(".", "/"): value for name, value in tree.items()})


WRITERS = {"safetensors": write_safetensors, "npz": write_npz}


def tree(value, **more):
    """Two arrays and one below, all of this value."""
    names = ["w", "a.b.c", *more]
    return {name: np.full(BIG, value, "f4") for name in names}


def folder(path, value, name):
    """Shards with an index, and a file beside them."""
    path.mkdir()
    shards = {"w": "model-00001-of-00002.safetensors", "a.b.c": "model-00002-of-00002.safetensors"}
    for key, file in shards.items():
        write_safetensors(path / file, {key: np.full(BIG, value, "f4")})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (path / name).write_text(str(value))


def value_of(path):
    """The one value of an array; None: it is not there. Any other error is a failure."""
    try:
        array = np.load(io.BytesIO(path.read_bytes()))
    except FileNotFoundError:
        return None
    assert array.shape == (BIG,) and (array == array[0]).all(), "bytes of two files"
    return float(array[0])


def exchange(new, path, how):
    """Give a new file or folder the name of the old one."""
    if how == "remove":
        (shutil.rmtree if path.is_dir() else os.unlink)(path)
        time.sleep(0.3)
    elif path.is_dir():
        os.rename(path, path.with_name("old"))
    os.rename(new, path)


@pytest.mark.parametrize("how", ["rename", "remove"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_file(mount, tmp_path, suffix, how):
    path, write = tmp_path / f"model.{suffix}", WRITERS[suffix]
    write(path, tree(1, old=1))
    m = mount(path, "refresh=1")
    assert [value_of(m / name) for name in ("w.npy", "a/b/c.npy", "old.npy")] == [1, 1, 1]
    text, inode = (m / "w.txt").read_text(), os.stat(m / "a/b/c.npy").st_ino
    part = (m / "w@0:2").read_bytes()
    with open(m / "a/b/c.npy", "rb") as reader:
        begin = reader.read(100)
        write(tmp_path / f"new.{suffix}", tree(2, new=2))
        exchange(tmp_path / f"new.{suffix}", path, how)
        wait_for(lambda: value_of(m / "w.npy") == 2, SEEN)
        assert [value_of(m / name) for name in ("w.npy", "a/b/c.npy", "new.npy", "old.npy")] == [2, 2, 2, None]
        assert sorted(os.listdir(m.top)) == ["a", "new.npy", "w.npy"]
        assert (m / "w.txt").read_text() != text and (m / "w@0:2").read_bytes() != part
        assert os.stat(m / "a/b/c.npy").st_ino != inode
        old = np.load(io.BytesIO(begin + reader.read()))
        assert old.shape == (BIG,) and (old == 1).all()


@pytest.mark.parametrize("suffix", WRITERS)
def test_file_of_any_name(mount, tmp_path, suffix):
    """Its content tells what it is, then as before."""
    path = tmp_path / "weights.of-mine"
    WRITERS[suffix](tmp_path / f"1.{suffix}", tree(1))
    os.rename(tmp_path / f"1.{suffix}", path)
    m = mount(path, "refresh=1")
    assert value_of(m / "w.npy") == 1
    WRITERS[suffix](tmp_path / f"2.{suffix}", tree(2))
    os.rename(tmp_path / f"2.{suffix}", path)
    wait_for(lambda: value_of(m / "w.npy") == 2, SEEN)


def test_link_that_leads_elsewhere(mount, tmp_path):
    """As `last.safetensors` is often kept: a link to the newest file."""
    for value in (1, 2):
        write_safetensors(tmp_path / f"{value}.safetensors", tree(value))
    os.symlink("1.safetensors", tmp_path / "last.safetensors")
    m = mount(tmp_path / "last.safetensors", "refresh=1")
    assert value_of(m / "w.npy") == 1
    os.symlink("2.safetensors", tmp_path / "new")
    os.rename(tmp_path / "new", tmp_path / "last.safetensors")
    wait_for(lambda: value_of(m / "w.npy") == 2, SEEN)


@pytest.mark.parametrize("how", ["rename", "remove"])
def test_folder_with_an_index(mount, tmp_path, how):
    path = tmp_path / "model"
    folder(path, 1, "one.txt")
    m = mount(path, "refresh=1")
    assert value_of(m / "a/b/c.npy") == 1 and (m / "one.txt").read_text() == "1"
    with open(m / "w.npy", "rb") as reader:
        begin = reader.read(100)
        folder(tmp_path / "new", 2, "two.txt")
        exchange(tmp_path / "new", path, how)
        wait_for(lambda: value_of(m / "w.npy") == 2, SEEN)
        assert value_of(m / "a/b/c.npy") == 2 and (m / "two.txt").read_text() == "2"
        assert not (m / "one.txt").exists()
        assert (np.load(io.BytesIO(begin + reader.read())) == 1).all()


def test_orbax_save(mount, tmp_path):
    """As `force=True` saves: deleted file by file, and another one renamed to its place."""
    path = tmp_path / "last"
    util.copy_tree(ORBAX / "manager_steps/3", path)
    m = mount(path, "refresh=1")
    data = np.load(m / "data/0.npy")
    util.copy_tree(ORBAX / "manager_steps/4", tmp_path / "last.orbax-checkpoint-tmp")
    exchange(tmp_path / "last.orbax-checkpoint-tmp", path, "remove")

    def is_other():
        return util.read_error(m / "data/0.npy") is None and not np.array_equal(np.load(m / "data/0.npy"), data)

    wait_for(is_other, SEEN)
    assert np.load(m / "model/params/kernel.npy").shape == (5, 3)


@pytest.mark.parametrize("is_dir", [False, True])
def test_gone_and_back(mount, tmp_path, is_dir):
    path = tmp_path / "model.safetensors"
    make = (lambda p, v: folder(p, v, "x.txt")) if is_dir else (lambda p, v: write_safetensors(p, tree(v)))
    make(path, 1)
    m = mount(path, "refresh=1")
    assert value_of(m / "w.npy") == 1
    os.rename(path, tmp_path / "away")
    wait_for(lambda: value_of(m / "w.npy") is None, SEEN)
    assert value_of(m / "a/b/c.npy") is None and not (m / "w.txt").exists()
    with fails(errno.ENOENT):
        os.listdir(m.top)
    assert b"not there" in os.getxattr(m.top, "user.ckpt.error")
    assert os.stat(m.top).st_mode & 0o111
    make(path, 2)
    wait_for(lambda: value_of(m / "w.npy") == 2, SEEN)
    assert "user.ckpt.error" not in os.listxattr(m.top)
    exchange(tmp_path / "away", path, "rename")
    wait_for(lambda: value_of(m / "w.npy") == 1, SEEN)


def test_written_in_place(mount, tmp_path):
    """The same file: who has it open gets an error, and whoever comes then the new bytes."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tree(1))
    m = mount(path, "refresh=1")
    assert value_of(m / "w.npy") == 1
    write_safetensors(tmp_path / "new", tree(2, more=2))
    path.write_bytes((tmp_path / "new").read_bytes())
    wait_for(lambda: util.read_error(m / "w.npy") is None and value_of(m / "w.npy") == 2, SEEN)
    assert value_of(m / "more.npy") == 2


def test_damaged_and_mended(mount, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tree(1))
    m = mount(path, "refresh=1")
    assert value_of(m / "w.npy") == 1
    (tmp_path / "bad").write_bytes(path.read_bytes()[:1000])
    os.rename(tmp_path / "bad", path)
    wait_for(lambda: util.read_error(m / "w.npy") in (errno.EBADMSG, errno.EUCLEAN), SEEN)
    assert os.getxattr(m.top, "user.ckpt.error")
    write_safetensors(tmp_path / "new", tree(3))
    os.rename(tmp_path / "new", path)
    wait_for(lambda: util.read_error(m / "w.npy") is None and value_of(m / "w.npy") == 3, SEEN)


def test_something_else(mount, tmp_path):
    """What is no checkpoint is not shown in its stead."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tree(1))
    m = mount(path, "refresh=1")
    assert value_of(m / "w.npy") == 1
    path.unlink()
    path.mkdir()
    (path / "w.npy").write_text("not this")
    wait_for(lambda: value_of(m / "w.npy") is None, SEEN)
    assert b"it was a file" in os.getxattr(m.top, "user.ckpt.error")


def test_deleted_files_are_let_go(mount, tmp_path):
    """Nobody asks for anything any more: the space of what was replaced is free all the same."""
    path = tmp_path / "model"
    folder(path, 1, "one.txt")
    m = mount(path, "refresh=1")
    for name in ("w.npy", "w", "w.txt", "w.meta.json", "w@0:2.npy", "a/b/c.npy", "a.safetensors", ".tree.json"):
        (m / name).read_bytes()
    folder(tmp_path / "new", 2, "two.txt")
    exchange(tmp_path / "new", path, "remove")

    def deleted():
        fds = f"/proc/{m.daemon.pid}/fd"
        links = [os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)]
        return [link for link in links if link.endswith((".safetensors (deleted)", ".txt (deleted)"))]

    wait_for(lambda: not deleted(), 10)
    assert value_of(m / "w.npy") == 2


def test_a_longer_refresh_time(mount, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tree(1))
    m = mount(path, "refresh=3")
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # so that all that is remembered is young
        assert value_of(m / "w.npy") == 1
        time.sleep(0.05)
    write_safetensors(tmp_path / "new", tree(2))
    os.rename(tmp_path / "new", path)
    wait_for(lambda: value_of(m / "w.npy") == 2, 3 + 2)


def test_mounted_over_itself(tmp_path):
    """The daemon does not look into its own mount."""
    path = tmp_path / "mnt"
    folder(path, 1, "one.txt")
    util.ckptfs("mount", path, path, "-o", "refresh=1")
    try:
        for _ in range(15):
            assert value_of(path / "w.npy") == 1
            time.sleep(0.2)
    finally:
        util.unmount(path)
    assert sorted(os.listdir(path))[-1] == "one.txt"


def test_mount_inside_of_the_source(tmp_path):
    path = tmp_path / "model"
    folder(path, 1, "one.txt")
    (path / "mnt").mkdir()
    util.ckptfs("mount", path, path / "mnt", "-o", "refresh=1")
    try:
        time.sleep(2.5)
        assert value_of(path / "mnt/w.npy") == 1
        assert not (path / "mnt/mnt").exists()
    finally:
        util.unmount(path / "mnt")


def test_never_bytes_of_two(mount, tmp_path):
    """It is replaced again and again while it is read: each file is of one checkpoint, never of an older one."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tree(0))
    m = mount(path, "refresh=0.2")
    done, faults = threading.Event(), []

    def read(name):
        try:
            last = 0
            while not done.is_set():
                if (value := value_of(m / name)) is not None:
                    assert value >= last, f"{name}: {value} after {last}"
                    last = value
        except BaseException as e:
            faults.append(e)
            done.set()

    readers = [threading.Thread(target=read, args=(name,)) for name in ("w.npy", "a/b/c.npy", "w.npy")]
    for reader in readers:
        reader.start()
    for value in range(1, 40):
        write_safetensors(tmp_path / "new", tree(value))
        if value % 3 == 0:
            path.unlink()
        os.rename(tmp_path / "new", path)
        if done.wait(0.15):
            break
    wait_for(lambda: faults or value_of(m / "a/b/c.npy") == 39, SEEN)
    done.set()
    for reader in readers:
        reader.join()
    assert not faults, faults
