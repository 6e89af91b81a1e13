"""MOUNT/.files: the source as it is, for the libraries that wrote it."""
import errno
import os
import shutil

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
    for attempt in (lambda: open(m / ".files/x", "w"), lambda: os.mkdir(m / ".files/x"), lambda: os.unlink(m / ".files/notes.txt"),
                    lambda: open(m / ".files/notes.txt", "a"), lambda: os.rename(m / ".files/notes.txt", m / ".files/x")):
        with fails(errno.EROFS):
            attempt()


def test_of_one_file(mount):
    m = mount(DATA / "safetensors/all-dtypes.safetensors", "ro")
    assert os.listdir(m / ".files") == ["all-dtypes.safetensors"]
    assert (m / ".files/all-dtypes.safetensors").read_bytes() == (DATA / "safetensors/all-dtypes.safetensors").read_bytes()
    with fails(errno.ENOENT):
        os.stat(m / ".files/all-dtypes.truth.json")


def test_of_a_root_that_is_written(mount, tmp_path):
    """The store's own files are not shown; foreign steps are."""
    root = tmp_path / "root"
    shutil.copytree(ORBAX / "manager_steps", root)
    util.ckptfs("init", root)
    m = mount(root, "commit=explicit")
    (m / "7").mkdir()
    (m / "7/x").write_text("x")
    assert sorted(os.listdir(m / ".files")) == sorted(n for n in os.listdir(root) if n != ".ckptstore")
    with fails(errno.EROFS):
        os.mkdir(m / ".files/8")
