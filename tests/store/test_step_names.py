"""Names of steps in a store: what commits, what only stays staged, and what version 0.1.0 is kept from.

That version knows digits, and digits behind a "_". It would collect the objects of steps of other names.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import shutil
import sys
import threading
import time

import numpy as np
import pytest

import util
from util import fails, wait_for

sys.path.insert(0, str(util.TESTS / "spec"))
import store_reader

EXPLICIT = "commit=explicit"
NEW = ["step-500", "checkpoint-500", "step=500", "epoch=3-step=500", "a_1-500"]
OLD = ["500", "0500", "step_500", "a-b_500"]
NONE = ["step500", "step-1.5", "lr=-500", "1e-500", "v1.2-500", "v1.2_500", ".new-500", "-500", "=500", "step-500a"]


def store_json(root):
    return json.loads((root / ".ckptstore/store.json").read_text())


def is_marked(root):
    """Version 0.1.0 does not open it, and cannot take its lock where it has it open."""
    requires = store_json(root).get("required", [])
    assert requires in ([], ["step_names"])
    try:
        os.close(os.open(root / ".ckptstore/lock", os.O_RDWR | os.O_NOFOLLOW))
        assert not requires
    except IsADirectoryError:
        assert requires and (root / ".ckptstore/lock2").is_file()
    return bool(requires)


def save(step, value):
    step.mkdir()
    np.save(step / "w.npy", np.full(50_000, value))  # an object of its own
    (step / "note.txt").write_text(str(value))


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def value(path):
    return np.load(io.BytesIO((path / "w.npy").read_bytes()))[0]


def error(step):
    with contextlib.suppress(OSError):
        return os.getxattr(step, "user.ckpt.error").decode()


def steps(root):
    told = json.loads(util.ckptfs("info", root, "--json").stdout)["steps"]
    return [(s["name"], s["step"]) for s in told if s["step"] is not None]


@pytest.mark.parametrize("name", [*NEW, *OLD])
def test_sync_commits(mount, root, name):
    m = mount(root, EXPLICIT)
    save(m / name, 7)
    sync(m / name)
    assert os.getxattr(m / name, "user.ckpt.state") == b"committed"
    assert os.getxattr(m / name, "user.ckpt.step") == b"500"
    assert os.readlink(m / "latest") == name and value(m / "latest") == 7
    (told,) = json.loads((m / ".ckptfs/steps.json").read_text())["roots"]
    assert [(s["name"], s["step"], s["latest"]) for s in told["steps"]] == [(name, 500, True)]
    assert is_marked(root) == (name in NEW)
    assert util.ckptfs("wait", root, "--after=499", "--timeout=5").stdout == f"{name}\n"
    reader = store_reader.Store(root)
    assert reader.steps() == [name]
    assert {leaf.name: leaf.size for leaf in reader.step(name).leaves()}[b"note.txt"] == 1


@pytest.mark.parametrize("name", NONE)
def test_sync_of_another_name_says_so(mount, root, name):
    m = mount(root, "settle=0.2")
    save(m / name, 7)
    sync(m / name)  # it is on the disk
    assert os.getxattr(m / name, "user.ckpt.state") == b"staged"
    assert name in error(m / name) and "not a step's name" in error(m / name)
    sync(m / name)
    assert m.said().count(f"{name} stays staged") == 1
    time.sleep(0.6)
    assert os.getxattr(m / name, "user.ckpt.state") == b"staged" and not is_marked(root)
    os.rename(m / name, m / ".other")
    assert error(m / ".other") is None
    sync(m / ".other")
    assert ".other" in error(m / ".other")
    os.rename(m / ".other", m / "step-500")
    assert os.getxattr(m / "step-500", "user.ckpt.state") == b"committed" and error(m / "step-500") is None


def test_directories_below_say_nothing(mount, root):
    m = mount(root, EXPLICIT)
    save(m / ".new", 7)
    (m / ".new/below").mkdir()
    sync(m / ".new/below")
    assert error(m / ".new") is None


def test_commits_by_itself(mount, root):
    m = mount(root, "settle=0.3")
    util.run("sh", "-c", f"mkdir {m.top}/step-5 && echo 1 >{m.top}/step-5/a.json")
    wait_for(lambda: os.getxattr(m / "step-5", "user.ckpt.state") == b"committed", 20)


def test_import_rename_change_and_delete(mount, root, tmp_path):
    save(tmp_path / "tree", 3)
    util.ckptfs("import", tmp_path / "tree", root / "step-500")
    assert is_marked(root) and steps(root) == [("step-500", 500)]
    m = mount(root, EXPLICIT)
    os.rename(m / "step-500", m / "checkpoint=600")
    assert steps(root) == [("checkpoint=600", 600)] and value(m / "checkpoint=600") == 3
    (m / "checkpoint=600/note.txt").write_text("changed")
    sync(m / "checkpoint=600")
    assert (m / "checkpoint=600/note.txt").read_text() == "changed" and value(m / "checkpoint=600") == 3
    os.setxattr(m / "checkpoint=600", "user.ckpt.pinned", b"1")
    assert (root / ".ckptstore/steps/checkpoint=600.pin").exists()
    os.rename(m / "checkpoint=600", m / "600")
    assert (root / ".ckptstore/steps/600.pin").exists() and len(os.listdir(root / ".ckptstore/steps")) == 2
    os.rename(m / "600", m / "step-600")
    with fails(errno.EPERM):
        os.rename(m / "step-600", m / "step600")
    shutil.rmtree(m / "step-600")
    assert steps(root) == [] and os.listdir(m.top) == []
    assert any(name.startswith("step-600.json.") for name in os.listdir(root / ".ckptstore/trash/steps"))


def test_renaming_marks_the_store(mount, root):
    m = mount(root, EXPLICIT)
    save(m / "7", 7)
    sync(m / "7")
    assert not is_marked(root)
    os.rename(m / "7", m / "step-7")
    assert is_marked(root) and value(m / "step-7") == 7
    util.ckptfs("config", root, "keep_last=5")  # what it requires stays
    assert is_marked(root) and store_json(root)["retention"] == {"keep_last": 5}


def test_retention_and_collection(mount, root):
    m = mount(root, EXPLICIT)
    for n in (1, 2, 30, 4):
        save(m / f"step-{n}", n)
        sync(m / f"step-{n}")
    os.setxattr(m / "step-1", "user.ckpt.pinned", b"1")
    util.ckptfs("config", root, "keep_last=2")
    util.ckptfs("prune", root)
    assert steps(root) == [("step-1", 1), ("step-4", 4), ("step-30", 30)]
    util.ckptfs("gc", root, "--trash-keep=0")
    assert util.ckptfs("verify", root).stdout.endswith("0 faults\n")
    assert [value(m / name) for name in ("step-1", "step-4", "latest")] == [1, 4, 30]
    save(m / "step_40", 40)
    sync(m / "step_40")
    wait_for(lambda: steps(root) == [("step-1", 1), ("step-30", 30), ("step_40", 40)], 20)
    assert os.readlink(m / "latest") == "step_40"


def test_two_names_of_one_number(mount, root):
    """What was committed is a step, whatever else there is; the last by the bytes of its name is the latest."""
    m = mount(root, EXPLICIT)
    for name in ("step-7", "7", "model=7"):
        save(m / name, len(name))
        sync(m / name)
    assert steps(root) == [("7", 7), ("model=7", 7), ("step-7", 7)]
    assert os.readlink(m / "latest") == "step-7" and value(m / "7") == 1


def test_several_writers(mount, root):
    m = [mount(root, "writers=2", f"writer={k}") for k in range(2)]
    for k in range(2):
        (m[k] / "step-7").mkdir()
        np.save(m[k] / f"step-7/w@{k}:,:.npy", np.full((1, 3), k))
    first = threading.Thread(target=sync, args=(m[0] / "step-7",))
    first.start()
    sync(m[1] / "step-7")
    first.join()
    assert np.load(m[0] / "step-7/w.npy").tolist() == [[0] * 3, [1] * 3]
    assert is_marked(root) and store_reader.Store(root).steps() == ["step-7"]


def test_steps_that_0_1_0_named(mount, root):
    """A name with a dot is given to no step any more; one that has it keeps it, and its data."""
    m = mount(root, EXPLICIT, "refresh=0.1")
    save(m / "7", 7)
    sync(m / "7")
    manifests = root / ".ckptstore/steps"
    os.rename(manifests / "7.json", manifests / "v1.2_7.json")
    wait_for(lambda: os.listdir(m.top) != ["7", "latest"], 20)
    assert steps(root) == [("v1.2_7", 7)] and os.getxattr(m / "v1.2_7", "user.ckpt.step") == b"7"
    util.ckptfs("gc", root, "--trash-keep=0")
    assert value(m / "v1.2_7") == 7
    (m / "v1.2_7/note.txt").write_text("changed")
    sync(m / "v1.2_7")
    assert os.getxattr(m / "v1.2_7", "user.ckpt.state") == b"committed"
    assert util.ckptfs("cat", root, "v1.2_7/note.txt").stdout == "changed" and not is_marked(root)
    with fails(errno.EPERM):
        os.rename(m / "v1.2_7", m / "v1.2_8")
    os.rename(m / "v1.2_7", m / "8")
    assert steps(root) == [("8", 8)] and not is_marked(root)


# --- the lock that has moved


@contextlib.contextmanager
def old_lock(root):
    """As version 0.1.0 holds it while it collects."""
    with open(root / ".ckptstore/lock", "r+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def test_a_collection_under_way_ends_before_the_commit(mount, root):
    """Also one that has the lock's file open and waits for it while it moves."""
    m = mount(root, EXPLICIT)
    save(m / "step-7", 7)
    manifest = root / ".ckptstore/steps/step-7.json"
    waiting = open(root / ".ckptstore/lock", "r+b")  # noqa: SIM115
    seen = []

    def collect():
        fcntl.flock(waiting, fcntl.LOCK_EX)
        time.sleep(0.5)
        seen.append(manifest.exists())
        waiting.close()

    with old_lock(root):
        commit = threading.Thread(target=sync, args=(m / "step-7",))
        commit.start()
        time.sleep(0.5)
        assert not is_marked(root) and not manifest.exists()
        other = threading.Thread(target=collect)
        other.start()
        time.sleep(0.2)
    other.join()
    commit.join()
    assert seen == [False] and manifest.exists() and is_marked(root)


def test_where_names_cannot_be_exchanged(root, tmp_path):
    """As on network file systems."""
    save(tmp_path / "tree", 3)
    trace = tmp_path / "trace"
    shutil.copytree(root, tmp_path / "copy")
    env = {**os.environ, "CKPTFS_DISK_TRACE": str(trace)}
    util.ckptfs("import", tmp_path / "tree", tmp_path / "copy/step-1", env=env)
    lines = trace.read_text().splitlines()
    (n,) = (i for i, line in enumerate(lines, 1) if re.fullmatch(r"rename \S+/lock2 \S+/lock 2", line))
    env = {**os.environ, "CKPTFS_DISK_FAIL": f"{n}:EOPNOTSUPP:once"}
    inode = (root / ".ckptstore/lock").stat().st_ino
    util.ckptfs("import", tmp_path / "tree", root / "step-1", env=env)
    assert is_marked(root) and (root / ".ckptstore/lock2").stat().st_ino == inode
    assert steps(root) == [("step-1", 1)]


@pytest.mark.parametrize("gone", [["lock"], ["lock2"], ["lock", "lock2"]])
def test_a_copy_without_it(mount, root, tmp_path, gone):
    """Tools that copy trees leave out empty directories, or empty files."""
    save(tmp_path / "tree", 3)
    util.ckptfs("import", tmp_path / "tree", root / "step-1")
    for name in gone:
        path = root / ".ckptstore" / name
        (os.rmdir if path.is_dir() else os.unlink)(path)
    util.ckptfs("config", root, "keep_last=9")
    m = mount(root, EXPLICIT)
    save(m / "2", 2)
    sync(m / "2")
    save(m / "step-3", 3)
    sync(m / "step-3")
    util.ckptfs("gc", root)
    assert is_marked(root) and [value(m / name) for name in ("step-1", "2", "step-3")] == [3, 2, 3]


def test_what_is_required_beside(root):
    """A later version's feature is refused, whatever else is there."""
    path = root / ".ckptstore/store.json"
    config = store_json(root)
    for required in (["step_names", "new"], ["new"], [7], 7):
        path.write_text(json.dumps(config | {"required": required}))
        assert "this store needs" in util.ckptfs("gc", root, check=None).stderr
    path.write_text(json.dumps(config | {"required": ["step_names"]}))
    util.ckptfs("gc", root)
