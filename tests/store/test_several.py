"""Several mounts of one root: what one commits the other sees, what one deletes the other may finish reading."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import trees
import util
from trees import EXPLICIT, MIB, commit, is_committed, run, state
from util import ckptfs, fails, wait_for

SEEN = 15  # seconds within which another mount must see a change, at refresh=1
SECONDS = float(os.environ.get("LIVE_SECONDS", 20))
READERS = int(os.environ.get("READERS", 50))


@pytest.fixture
def two(mount, root):
    return mount(root, EXPLICIT, "refresh=1"), mount(root, EXPLICIT, "refresh=1")


def test_commits_are_seen(two):
    """Within the refresh time, up to 2 seconds more where time stamps cannot tell."""
    a, b = two
    longest = 0
    for n in range(5):
        m, other = (a, b) if n % 2 else (b, a)
        os.listdir(other.top)
        (m / f"{n}").mkdir()
        np.save(m / f"{n}/w.npy", np.full(1000, n))
        commit(m / f"{n}")
        begin = time.monotonic()
        wait_for(lambda: f"{n}" in os.listdir(other.top) and os.readlink(other / "latest") == f"{n}", SEEN)
        longest = max(longest, time.monotonic() - begin)
        assert (np.load(other / f"{n}/w.npy") == n).all() and is_committed(other / f"{n}")
    print(f"seen after {longest:.1f} s at most")
    assert util.SANITIZED or longest < 4


def test_looked_up_before_it_was_there(two):
    """A name that was asked for in vain is found once it is committed."""
    a, b = two
    with fails(errno.ENOENT):
        os.stat(b / "7/w.npy")
    (a / "7").mkdir()
    np.save(a / "7/w.npy", np.arange(5))
    commit(a / "7")
    wait_for(lambda: (b / "7/w.npy").exists(), SEEN)


def test_replacement_is_seen(two):
    a, b = two
    (a / "7").mkdir()
    for n in range(4):
        (a / "7/x").write_text(f"version {n}")
        np.save(a / "7/w.npy", np.full(100_000, n))
        commit(a / "7")
        wait_for(lambda: (b / "7").exists() and (b / "7/x").read_text() == f"version {n}", SEEN)
        assert (np.load(b / "7/w.npy") == n).all()


def test_renamed_here_deleted_there(two):
    """A step that was looked into, renamed, and then replaced or deleted by another mount."""
    a, b = two
    for n in (1, 2):
        (a / f"{n}").mkdir()
        (a / f"{n}/x").write_text(f"{n}")
        commit(a / f"{n}")
        assert (a / f"{n}/x").read_text() == f"{n}"
        os.rename(a / f"{n}", a / f"{n}0")
        assert (a / f"{n}0/x").read_text() == f"{n}"
    wait_for(lambda: trees.steps(b) == ["10", "20"], SEEN)
    run("rm", "-r", b / "10")
    (b / "20/x").write_text("changed")
    commit(b / "20")
    wait_for(lambda: not os.path.lexists(a / "10"), SEEN)
    wait_for(lambda: (a / "20/x").read_text() == "changed", SEEN)
    assert trees.steps(a) == ["20"]


def changed_in_both(two):
    """A step that both have changed, and the first has committed; the second's commit is refused."""
    a, b = two
    (a / "7").mkdir()
    (a / "7/f").write_text("old")
    commit(a / "7")
    wait_for(lambda: (b / "7/f").exists(), SEEN)
    (b / "7/f").write_text("theirs")
    (a / "7/f").write_text("ours")
    (a / "7/more").write_text("ours")
    commit(a / "7")
    with fails(errno.EEXIST):
        commit(b / "7")


def test_refused_change_is_dropped(two):
    """Its removal takes away the change, and not the step that another mount has made meanwhile."""
    a, b = two
    changed_in_both(two)
    run("rm", "-r", b / "7")
    assert is_committed(a / "7") and (a / "7/f").read_text() == "ours"
    wait_for(lambda: (b / "7/more").exists(), SEEN)
    assert (b / "7/f").read_text() == "ours"


def test_overwrite_is_for_renames(mount, root):
    """-o overwrite replaces a step by a rename. Elsewhere two that commit the same name, or the same step, do not lose
    what the first has.
    """
    two = a, b = [mount(root, EXPLICIT, "refresh=1", "overwrite") for _ in range(2)]
    for m in two:
        (m / "50").mkdir()
        (m / "50" / m.top.parent.name).write_text("x")
    commit(a / "50")
    with fails(errno.EEXIST):
        commit(b / "50")
    changed_in_both(two)
    (b / ".new").mkdir()
    (b / ".new/f").write_text("new")
    run("rm", "-r", b / "7")
    os.rename(b / ".new", b / "7")
    assert os.listdir(b / "7") == ["f"] and (b / "7/f").read_text() == "new"


def test_deletion_while_reading(two, root):
    """One reads what it opened to the end, also after the other has deleted the step and gc has run."""
    a, b = two
    data = trees.noise(30 * MIB)
    (a / "7").mkdir()
    (a / "7/raw.bin").write_bytes(data)
    np.save(a / "7/ramp.npy", np.arange(3_000_000))
    np.save(a / "7/small.npy", np.arange(30))
    commit(a / "7")
    wait_for(lambda: (b / "7").exists(), SEEN)
    ramp = (a / "7/ramp.npy").read_bytes()
    with open(b / "7/raw.bin", "rb") as f, open(b / "7/ramp.npy", "rb") as g, open(b / "7/small.npy", "rb") as h:
        assert f.read(MIB) == data[:MIB]
        mapped = np.load(b / "7/ramp.npy", mmap_mode="r")
        run("rm", "-r", a / "7")
        for _ in range(3):
            ckptfs("gc", "--trash-keep=0", root)
        wait_for(lambda: trees.steps(b) == [], SEEN)
        assert f.read() == data[MIB:] and g.read() == ramp and np.load(h).tolist() == list(range(30))
        assert (mapped == np.arange(3_000_000)).all()
        del mapped
    wait_for(lambda: not os.path.lexists(b / "7/raw.bin"), SEEN)


def test_gc_spares_what_another_stages(two, root):
    """Copies of what the other deletes, changes of what it replaces, and new files."""
    a, b = two
    data = [trees.noise(3 * MIB, n) for n in range(3)]
    (a / "7").mkdir()
    for n in range(3):
        (a / f"7/{n}.bin").write_bytes(data[n])
    (a / "7/small").write_text("small")
    commit(a / "7")
    wait_for(lambda: (b / "7").exists(), SEEN)
    run("cp", "-r", b / "7", b / "8")  # staged in b
    (b / "8/new.bin").write_bytes(trees.noise(2 * MIB, 9))
    (b / "7/changed").write_text("in b")
    run("rm", "-r", a / "7")
    assert (b / "8/0.bin").read_bytes() == data[0]
    for _ in range(2):
        ckptfs("gc", "--trash-keep=0", root)
        time.sleep(1)
    assert not trees.needed(root) and not trees.objects(root)
    for step in ("7", "8"):
        assert state(b / step) == "staged"
        assert [(b / step / f"{n}.bin").read_bytes() for n in range(3)] == data and (
            b / step / "small"
        ).read_text() == "small"
    commit(b / "8")
    ckptfs("gc", root)
    wait_for(lambda: trees.steps(a) == ["8"], SEEN)
    assert [(a / f"8/{n}.bin").read_bytes() for n in range(3)] == data and (
        a / "8/new.bin"
    ).read_bytes() == trees.noise(2 * MIB, 9)
    assert (a / "8/small").read_text() == "small"
    trees.verify(root)


def test_commits_at_the_same_time(two, root):
    """Both commit steps of their own, that share leaves, and delete them, while gc runs."""
    shared = trees.noise(500_000)
    faults = []

    def work(m, first):
        try:
            for n in range(first, first + 40, 2):
                (m / f"{n}").mkdir()
                (m / f"{n}/shared.bin").write_bytes(shared)
                (m / f"{n}/own.bin").write_bytes(trees.noise(100_000, n))
                commit(m / f"{n}")
                if n >= first + 10:
                    run("rm", "-r", m / f"{n - 10}")
        except BaseException as e:
            faults.append(e)

    threads = [threading.Thread(target=work, args=(m, first)) for m, first in zip(two, (100, 101))]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        ckptfs("gc", root)
    assert not faults, faults
    want = sorted(str(n) for first in (100, 101) for n in range(first + 30, first + 40, 2))
    assert trees.committed(root) == want
    for m in two:
        wait_for(lambda: trees.steps(m) == want, SEEN)
        for n in want:
            assert (m / n / "shared.bin").read_bytes() == shared and (m / n / "own.bin").read_bytes() == trees.noise(
                100_000, int(n)
            )
    ckptfs("gc", root)
    assert trees.objects(root).keys() == trees.needed(root)
    trees.verify(root)


def test_same_name_at_the_same_time(two, root):
    """Exactly one of two gets the name, over and over."""
    for n in range(10):
        for k, m in enumerate(two):
            (m / f".new{n}").mkdir()
            (m / f".new{n}/x").write_text(f"{k}")
        codes = [
            subprocess.Popen(["mv", "-T", str(m / f".new{n}"), str(m / f"{n}")], stderr=subprocess.DEVNULL) for m in two
        ]
        codes = [p.wait(60) for p in codes]
        assert sorted(map(bool, codes)) == [False, True], codes
        wait_for(lambda: all((m / f"{n}").exists() for m in two), SEEN)
        winner = str(codes.index(0))
        assert [(m / f"{n}/x").read_text() for m in two] == [winner, winner]
        loser = two[1 - int(winner)]
        assert (loser / f".new{n}/x").read_text() == str(1 - int(winner))


def test_staging_belongs_to_its_mount(two, root, mount):
    """A third mount does not take over what living ones stage, but what was left behind."""
    a, b = two
    (a / "7").mkdir()
    (a / "7/x").write_text("a")
    (b / "8").mkdir()
    (b / "8/x").write_text("b")
    third = mount(root, EXPLICIT)
    assert trees.steps(third) == []
    third.stop()
    b.stop()
    fourth = mount(root, EXPLICIT)
    assert trees.steps(fourth) == ["8"] and (fourth / "8/x").read_text() == "b"
    assert (a / "7/x").read_text() == "a"


# --- readers while everything happens

LEAVES = {"large.npy": 400_000, "middle.npy": 30_000, "d/small.npy": 50, "d/ramp.npy": 200_000}

READER = r"""
import sys, threading, time
sys.path.insert(0, sys.argv[1])
import test_several
top, seed, seconds, threads = sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
end = time.monotonic() + seconds
readers = [test_several.Reader(top, seed + n) for n in range(threads)]
running = [threading.Thread(target=r.run, args=(end,)) for r in readers]
for t in running: t.start()
for t in running: t.join()
for r in readers:
    if r.fault: sys.exit(r.fault)
print(sum(r.read for r in readers), sum(r.gone for r in readers), len(set().union(*(r.seen for r in readers))))
"""


def content(step, leaf):
    """What a leaf of a step holds: noise, but a ramp that compresses, and the shared one, which is the same for ten
    steps.
    """
    seed = step * 7 + len(leaf) if leaf != "middle.npy" else step // 10
    if leaf == "d/ramp.npy":
        return np.arange(LEAVES[leaf], dtype=np.uint32) + seed
    return trees.noise_array(LEAVES[leaf], seed)


class Reader:
    """Reads steps at random; every byte must be right, and no error but ENOENT may come."""

    def __init__(self, top, seed):
        self.top, self.rng = Path(top), random.Random(seed)
        self.read = self.gone = 0
        self.seen, self.fault, self.known = set(), None, {}

    def run(self, end):
        while time.monotonic() < end and not self.fault:
            try:
                self.one()
            except OSError as e:
                if e.errno != errno.ENOENT:
                    self.fault = f"{e!r} after {self.read} reads"
                self.gone += 1
            except Exception as e:
                self.fault = f"{e!r} after {self.read} reads"

    def want(self, step, leaf):
        if (step, leaf) not in self.known:
            if len(self.known) > 40:
                self.known.clear()
            self.known[step, leaf] = content(step, leaf)
        return self.known[step, leaf]

    def one(self):
        steps = [int(n) for n in os.listdir(self.top) if n.isdigit()]
        if not steps:
            time.sleep(0.05)
            return
        step = self.rng.choice(steps)
        folder = self.top / str(step)
        leaf = self.rng.choice(list(LEAVES))
        what = self.rng.randrange(6)
        if what == 0:
            found = {
                os.path.relpath(os.path.join(d, f), folder)
                for d, _, fs in os.walk(folder, onerror=trees.fail)
                for f in fs
            }
            assert found == set(LEAVES), f"step {step} has {found}"
        elif what == 1:  # whole, in a hurry or not
            with open(folder / leaf, "rb") as f:
                if self.rng.random() < 0.1:
                    time.sleep(self.rng.random() * 3)
                got = np.load(f)
            assert (got == self.want(step, leaf)).all(), f"wrong bytes in {step}/{leaf}"
        elif what == 2:
            a, n = self.rng.randrange(LEAVES[leaf]), self.rng.randrange(1, 5000)
            name = leaf.removesuffix(".npy")
            got = np.load(folder / f"{name}@{a}:{a + n}.npy")
            assert (got == self.want(step, leaf)[a : a + n]).all(), f"wrong slice of {step}/{leaf}"
        elif what == 3:  # a mapping that outlives the step, maybe
            got = np.load(folder / leaf, mmap_mode="r")
            if self.rng.random() < 0.1:
                time.sleep(self.rng.random() * 3)
            assert (got == self.want(step, leaf)).all(), f"wrong bytes mapped of {step}/{leaf}"
            del got
        elif what == 4:
            int(os.readlink(self.top / "latest"))
            got = np.load(self.top / "latest/d/small.npy")
            assert len(got) == LEAVES["d/small.npy"], "latest/d/small.npy"
        else:
            size = os.stat(folder / leaf).st_size
            assert size == 128 + LEAVES[leaf] * 4, f"{step}/{leaf} has {size} bytes"
            state = os.getxattr(folder, "user.ckpt.state")
            assert state == b"committed", f"{step} is {state}"
        self.seen.add(step)
        self.read += 1


def publish(m, step):
    folder = m / f".new{step}"
    (folder / "d").mkdir(parents=True)
    for leaf in LEAVES:
        np.save(folder / leaf, content(step, leaf))
    os.rename(folder, m / f"{step}")


@pytest.mark.timeout(SECONDS * 2 + 200)
def test_many_readers(mount, root):
    """READERS readers of two mounts, a reader's and the writer's own, while steps are committed, copied, deleted and
    pruned, and gc runs.
    """
    ckptfs("config", root, "keep_last=4", "keep_period=25")
    writer, reader, other = (
        mount(root, *o, patience=SECONDS + 100) for o in ([EXPLICIT], ["ro", "refresh=0.5"], [EXPLICIT])
    )
    for step in range(3):
        publish(writer, step)
    here = os.path.dirname(os.path.abspath(__file__))
    env = {**os.environ, "PYTHONPATH": f"{here}:{util.TESTS}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, here, str(m.top), str(n * 100), str(SECONDS), str(READERS // 5)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, m in enumerate([reader, writer, reader, reader, writer])
    ]
    try:
        end, step = time.monotonic() + SECONDS, 3
        while time.monotonic() < end:
            publish(writer, step)
            step += 1
            if step % 5 == 0:
                ckptfs("gc", root)
            if step % 7 == 0:
                ckptfs("prune", root)
            if step % 11 == 0:  # the oldest one, while it may be read; rm's own mount sees it go bit by bit
                run("rm", "-r", other / min(trees.committed(root), key=int), check=None)  # retention may be quicker
            time.sleep(0.1)
        total, gone, seen = 0, 0, 0
        for p in processes:
            out, said = p.communicate(timeout=100)
            assert p.returncode == 0, said[-2000:]
            total, gone, seen = (x + int(y) for x, y in zip((total, gone, seen), out.split()))
        print(f"{step} steps, {total} reads, {gone} times gone, {seen} seen")
        assert total > 100 and seen > 5
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.communicate(timeout=20)
    ckptfs("gc", root)
    assert trees.objects(root).keys() == trees.needed(root)
    trees.verify(root)
