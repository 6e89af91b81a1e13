"""Several mounts, one of them perhaps killed, write one step together: it is there when all have come, and never in part."""
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import trees
import util
from trees import attribute, commit, is_committed, run, state
from util import fails, wait_for

KILLS = int(os.environ.get("WRITER_KILLS", 6))
ARRAY = np.arange(8 * 40_000.0).reshape(8, 40_000)
SHARED = np.arange(50_000, dtype=np.float32)


@pytest.fixture
def writers(mount, root):
    """writers(n, *options): n mounts of the root, one for each writer."""
    def make(n, *options, first=0):
        return [mount(root, f"writers={n}", f"writer={k + first}", "refresh=0.2", *options) for k in range(n)]
    return make


def write(m, k, n, step="7"):
    """What writer k of n has: rows of an array, an array that all have, a leaf and a blob of its own."""
    rows = len(ARRAY) // n
    (m / step / "params").mkdir(parents=True)
    np.save(m / step / f"params/a@{k * rows}:{(k + 1) * rows},:.npy", ARRAY[k * rows:(k + 1) * rows])
    np.save(m / step / "shared.npy", SHARED)
    (m / step / f"count{k}.json").write_text(f"{k}\n")
    (m / step / f"blob{k}").write_bytes(trees.noise(100_000 + k))


def check(m, n, step="7"):
    assert is_committed(m / step)
    assert np.array_equal(np.load(m / step / "params/a.npy"), ARRAY) and np.array_equal(np.load(m / step / "shared.npy"), SHARED)
    assert sorted(os.listdir(m / step)) == sorted(["params", "shared.npy", *(f"count{k}.json" for k in range(n)), *(f"blob{k}" for k in range(n))])
    assert os.listdir(m / step / "params") == ["a.npy"]
    for k in range(n):
        assert (m / step / f"count{k}.json").read_text() == f"{k}\n" and (m / step / f"blob{k}").read_bytes() == trees.noise(100_000 + k)


def together(mounts, step="7"):
    """All sync at once; what each got."""
    got = [None] * len(mounts)

    def one(k):
        try:
            commit(mounts[k] / step)
        except OSError as e:
            got[k] = e.errno
    threads = [threading.Thread(target=one, args=[k]) for k in range(len(mounts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(util.LIMIT)
    return got


@pytest.mark.parametrize("n, first", [(2, 0), (4, 0), (4, 1)])
def test_together(writers, root, n, first):
    mounts = writers(n, first=first)
    for k, m in enumerate(mounts):
        write(m, k, n)
    assert trees.committed(root) == []
    assert together(mounts) == [None] * n
    for m in mounts:
        wait_for(lambda: is_committed(m / "7"))
        check(m, n)
    done = util.ckptfs("verify", root)
    assert "0 faults" in done.stdout
    for k, m in enumerate(mounts):                         # and the next one
        write(m, k, n, "8")
    assert together(mounts, "8") == [None] * n
    check(mounts[0], n, "8")


def test_one_after_another(writers, root):
    """Who has come waits; the last one does not. A step that was made, deleted and made again is another."""
    mounts = writers(2)
    for again in range(2):
        for k, m in enumerate(mounts):
            write(m, k, 2)
        first = subprocess.Popen(["sync", mounts[0] / "7"])
        time.sleep(0.5)
        assert first.poll() is None and trees.committed(root) == [] and state(mounts[1] / "7") == "staged"
        commit(mounts[1] / "7")
        assert first.wait(util.LIMIT) == 0
        check(mounts[0], 2)
        run("rm", "-r", mounts[1] / "7")
        wait_for(lambda: not (mounts[0] / "7").exists())


def test_timeout(writers, root):
    """Who did not come is named; the step can be waited for again, or dropped."""
    mounts = writers(3, "commit_timeout=1")
    for k in 0, 2:
        write(mounts[k], k, 2)
    for k in 0, 2:
        with fails(errno.ETIMEDOUT):
            commit(mounts[k] / "7")
    assert "1." in attribute(mounts[2] / "7", "error").split("s: ")[-1] and state(mounts[0] / "7") == "staged"
    assert trees.committed(root) == []
    run("rm", "-r", mounts[0] / "7")
    run("rm", "-r", mounts[2] / "7")
    assert os.listdir(root / ".ckptstore/writers") == []
    mounts = mounts[:2]


def test_resumed(writers, root):
    mounts = writers(2, "commit_timeout=1")
    for k, m in enumerate(mounts):
        write(m, k, 2)
    with fails(errno.ETIMEDOUT):
        commit(mounts[0] / "7")
    (mounts[0] / "7/count0.json").write_text("5\n")
    (mounts[0] / "7/count0.json").write_text("0\n")
    assert together(mounts) == [None, None]
    check(mounts[1], 2)


def test_other_bytes(writers, root):
    """Of one leaf by two writers: the later one is refused, and can put it right."""
    one, two = writers(2, "commit_timeout=2")
    for k, m in enumerate((one, two)):
        write(m, k, 2)
    np.save(two / "7/shared.npy", SHARED + 1)
    first = subprocess.Popen(["sync", one / "7"], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    with fails(errno.EEXIST):
        commit(two / "7")
    assert "shared.npy" in attribute(two / "7", "error") and trees.committed(root) == []
    np.save(two / "7/shared.npy", SHARED)
    if first.wait(util.LIMIT):
        first = subprocess.Popen(["sync", one / "7"])
    commit(two / "7")
    assert first.wait(util.LIMIT) == 0
    check(one, 2)


def test_file_against_directory(writers):
    one, two = writers(2, "commit_timeout=1")
    (one / "7").mkdir()
    (one / "7/x").write_text("a file")
    (two / "7/x").mkdir(parents=True)
    with fails(errno.ETIMEDOUT):
        commit(one / "7")
    with fails(errno.EEXIST):
        commit(two / "7")


def test_a_hole(writers, root):
    """What the union lacks is told to all, and all may come again."""
    mounts = writers(2)
    for k, m in enumerate(mounts):
        write(m, k, 2)
    os.unlink(mounts[1] / "7/params/a@4:8,:.npy")
    np.save(mounts[1] / "7/params/a@5:8,:.npy", ARRAY[5:])
    assert together(mounts) == [errno.ENODATA] * 2
    assert trees.committed(root) == [] and "a.npy" in attribute(mounts[0] / "7", "error")
    np.save(mounts[1] / "7/params/a@4:5,:.npy", ARRAY[4:5])
    assert together(mounts) == [None, None]
    check(mounts[0], 2)


def test_counts_that_differ(mount, root):
    one, two = mount(root, "writers=2,writer=0,commit_timeout=1"), mount(root, "writers=3,writer=1,commit_timeout=1")
    for m in one, two:
        (m / "7").mkdir()
        (m / "7/x").write_text("x")
    with fails(errno.ETIMEDOUT):
        commit(one / "7")
    with fails(errno.EINVAL):
        commit(two / "7")
    assert "writers=2" in attribute(two / "7", "error")


def test_rename_commits_too(writers, root):
    mounts = writers(2)
    for k, m in enumerate(mounts):
        write(m, k, 2, ".new")
    first = subprocess.Popen(["mv", "-T", mounts[0] / ".new", mounts[0] / "7"])
    time.sleep(0.3)
    os.rename(mounts[1] / ".new", mounts[1] / "7")
    assert first.wait(util.LIMIT) == 0
    check(mounts[0], 2)


def test_never_by_itself(writers, root):
    mounts = writers(2, "settle=0.2")
    run("bash", "-c", f"mkdir {mounts[0].top}/7 && echo x > {mounts[0].top}/7/x")
    time.sleep(1.5)
    assert trees.committed(root) == [] and state(mounts[0] / "7") == "staged"


def test_parts_are_not_collected(writers, root):
    """What waits for other writers is not garbage, though no step names it and its writer has ended."""
    one, two = writers(2, "commit_timeout=0.2")
    write(one, 0, 2)
    with fails(errno.ETIMEDOUT):
        commit(one / "7")
    one.stop()
    shutil.rmtree(next((root / ".ckptstore/staging").iterdir()))
    util.ckptfs("config", root, "keep_last=1")
    util.ckptfs("gc", root)
    write(two, 1, 2)
    commit(two / "7")
    check(two, 2)


@pytest.mark.parametrize("options, said", [(["writers=2"], "writer=K"), (["writer=1"], "writers=N"), (["writers=2", "writer=3"], "none of"),
                                           (["writers=x", "writer=0"], "writers=x"), (["writers=-1", "writer=0"], "writers=-1")])
def test_options(root, tmp_path, options, said):
    (tmp_path / "m").mkdir()
    done = util.ckptfs("mount", root, tmp_path / "m", "-o", ",".join(options), check=1)
    assert said in done.stderr


WRITER = """
import os, sys, numpy as np
m, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
a = np.arange(8 * 40_000.0).reshape(8, 40_000)
rows = 8 // n
os.makedirs(m + "/7/params", exist_ok=True)
np.save(f"{m}/7/params/a@{k * rows}:{(k + 1) * rows},:.npy", a[k * rows:(k + 1) * rows])
np.save(m + "/7/shared.npy", np.arange(50_000, dtype=np.float32))
open(f"{m}/7/count{k}.json", "w").write(f"{k}\\n")
fd = os.open(m + "/7", os.O_RDONLY)
os.fsync(fd)
"""


def test_killed_at_any_point(mount, root):
    """One of four daemons and its program are killed: nothing is there, or all. Mounted again, the writer goes on where it was."""
    rng, seed = random.Random(), random.randrange(1 << 30)
    rng.seed(seed)
    print("seed", seed)
    for turn in range(KILLS):
        mounts = [mount(root, "writers=4", f"writer={k}", "refresh=0.2", "commit_timeout=3") for k in range(4)]
        programs = [subprocess.Popen([sys.executable, "-c", WRITER, m.top, str(k), "4"], stderr=subprocess.DEVNULL) for k, m in enumerate(mounts)]
        victim = rng.randrange(4)
        time.sleep(rng.uniform(0.05, 0.6))
        mounts[victim].crash()
        programs[victim].kill()
        for p in programs:
            p.wait(util.LIMIT)
        if trees.committed(root) == []:
            again = mount(root, "writers=4", f"writer={victim}", "refresh=0.2", "commit_timeout=20")
            mounts[victim] = again
            programs = [subprocess.Popen([sys.executable, "-c", WRITER, m.top, str(k), "4"]) for k, m in enumerate(mounts)]
            assert [p.wait(util.LIMIT) for p in programs] == [0] * 4
        reader = mount(root, "ro")
        assert np.array_equal(np.load(reader / "7/params/a.npy"), ARRAY) and np.array_equal(np.load(reader / "7/shared.npy"), SHARED)
        assert sorted(os.listdir(reader / "7")) == ["count0.json", "count1.json", "count2.json", "count3.json", "params", "shared.npy"]
        for m in [reader, *(m for m in mounts if m.top.exists())]:
            m.stop()
        util.ckptfs("verify", root)
        m = mount(root, trees.EXPLICIT)
        run("rm", "-r", m / "7")
        for name in os.listdir(m.top):                     # what the killed one had staged, if the others were done
            run("rm", "-r", m / name)
        m.stop()
