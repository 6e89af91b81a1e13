"""Several mounts, one of them perhaps killed, write one step together: it is there when all have come, and never in
part.
"""

import errno
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

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
    np.save(m / step / f"params/a@{k * rows}:{(k + 1) * rows},:.npy", ARRAY[k * rows : (k + 1) * rows])
    np.save(m / step / "shared.npy", SHARED)
    (m / step / f"count{k}.json").write_text(f"{k}\n")
    (m / step / f"blob{k}").write_bytes(trees.noise(100_000 + k))


def check(m, n, step="7"):
    assert is_committed(m / step)
    assert np.array_equal(np.load(m / step / "params/a.npy"), ARRAY) and np.array_equal(
        np.load(m / step / "shared.npy"), SHARED
    )
    assert sorted(os.listdir(m / step)) == sorted(
        ["params", "shared.npy", *(f"count{k}.json" for k in range(n)), *(f"blob{k}" for k in range(n))]
    )
    assert os.listdir(m / step / "params") == ["a.npy"]
    for k in range(n):
        assert (m / step / f"count{k}.json").read_text() == f"{k}\n" and (
            m / step / f"blob{k}"
        ).read_bytes() == trees.noise(100_000 + k)


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
    for k, m in enumerate(mounts):  # and the next one
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


@pytest.mark.parametrize(
    "options, said",
    [
        (["writers=2"], "writer=K"),
        (["writer=1"], "writers=N"),
        (["writers=2", "writer=3"], "none of"),
        (["writers=x", "writer=0"], "writers=x"),
        (["writers=-1", "writer=0"], "writers=-1"),
    ],
)
def test_options(root, tmp_path, options, said):
    (tmp_path / "m").mkdir()
    done = util.ckptfs("mount", root, tmp_path / "m", "-o", ",".join(options), check=1)
    assert said in done.stderr


def test_each_comes_back_to_its_own(mount, root):
    """When the mounts of both writers have died, each finds what it had staged, in whatever order they start."""
    for order in (0, 1), (1, 0):
        mounts = [mount(root, "writers=2", f"writer={k}") for k in range(2)]
        for k, m in enumerate(mounts):
            write(m, k, 2)
        for m in mounts:
            m.crash()
        again = {k: mount(root, "writers=2", f"writer={k}") for k in order}
        for k, m in again.items():
            names = sorted(os.listdir(m / "7"))
            assert f"count{k}.json" in names and f"count{1 - k}.json" not in names
        assert together([again[0], again[1]]) == [None, None]
        check(again[0], 2)
        run("rm", "-r", again[0] / "7")
        for m in again.values():
            m.stop()


# --- killed

WRITER = """
import os, pickle, sys
step, files = sys.argv[1], pickle.load(open(sys.argv[2], "rb"))

def go_on(said):
    print(said, flush=True)
    return sys.stdin.readline()

try:
    if go_on("ready"):
        for path, data in files.items():
            os.makedirs(os.path.dirname(f"{step}/{path}"), exist_ok=True)
            with open(f"{step}/{path}", "wb", buffering=0) as f:
                for at in range(0, len(data), 1 << 15):
                    f.write(data[at:at + (1 << 15)])
        go_on("written")
        fd = os.open(step, os.O_RDONLY)
        os.fsync(fd)
    print(0)
except OSError as e:
    print(e.errno)
"""
PHASES = "writing", "sync", "wait", "publish"
KILLED = "daemon", "program", "both"
ENOUGH = 40  # kills, to see each phase several times


class Program:
    """A process that writes what a writer has of a step. It writes, and then calls sync, when it is told to."""

    def __init__(self, step, files):
        self.pipe = subprocess.Popen(
            [sys.executable, "-IS", "-c", WRITER, step, files], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.said() == "ready"

    def said(self):
        """A line, "" if it was killed."""
        return self.pipe.stdout.readline().strip()

    def go_on(self):
        print(file=self.pipe.stdin, flush=True)

    def end(self):
        """What its calls came to: 0, an errno, None if it was killed."""
        out, _ = self.pipe.communicate(timeout=util.LIMIT)
        words = [word for word in out.split() if word != "written"]
        return int(words[-1]) if words else None

    def kill(self):
        self.pipe.kill()
        self.pipe.wait(util.LIMIT)


class Killing:
    """Steps by n writers, of which one is killed, in a phase of its work that is chosen, at a random time in it."""

    def __init__(self, mount, root, folder, n, rng):
        self.root, self.folder, self.n, self.rng = root, folder, n, rng
        self.mount = lambda k, **more: mount(
            root, f"writers={n}", f"writer={k}", "refresh=0.1", "commit_timeout=1", **more
        )
        self.mounts = [self.mount(k) for k in range(n)]
        self.reader = mount(root, "ro", "refresh=0.1")
        self.length = {"wait": 0.2}  # seconds of each phase, at most
        self.fell = Counter()  # (phase that it was in, what was killed)
        self.ended = Counter()  # what became of the steps

    def begin(self, turn):
        """Another content each time, or nothing of it would be new. The pieces of an array, what all have, a value and
        a blob.
        """
        self.turn, self.step, rows = turn, str(turn), 8 // self.n
        self.programs = []
        for m in *self.mounts, self.reader:
            m.renew_patience()
        for k in range(self.n):
            files = {
                f"params/a@{k * rows}:{(k + 1) * rows},:.npy": npy((ARRAY + turn)[k * rows : (k + 1) * rows]),
                "shared.npy": npy(SHARED + turn),
                f"count{k}.json": b"%d\n" % turn,
                f"blob{k}": trees.noise(100_000, turn * self.n + k),
            }
            (self.folder / f"files{k}").write_bytes(pickle.dumps(files))
            self.programs.append(self.program(k))

    def program(self, k):
        return Program(self.mounts[k] / self.step, self.folder / f"files{k}")

    def parts(self):
        """The writers whose parts are there."""
        try:
            return {
                int(name.split("-")[0])
                for name in os.listdir(self.root / f".ckptstore/writers/{self.step}")
                if "-of-" in name
            }
        except FileNotFoundError:
            return set()

    def is_whole(self):
        return (self.root / f".ckptstore/steps/{self.step}.json").exists()

    def measure(self):
        """How long each phase takes when nobody is killed."""
        self.begin(1)
        last = self.programs[-1]
        for p in self.programs:
            p.go_on()
        start = time.monotonic()
        assert last.said() == "written"
        self.length["writing"] = time.monotonic() - start
        for p in self.programs[:-1]:
            p.go_on()
        util.wait_for(lambda: len(self.parts()) == self.n - 1, every=0.001)
        start = time.monotonic()
        last.go_on()
        util.wait_for(lambda: len(self.parts()) == self.n, every=0.0005)
        self.length["sync"] = time.monotonic() - start
        util.wait_for(self.is_whole, every=0.0005)
        self.length["publish"] = time.monotonic() - start - self.length["sync"]
        assert [p.end() for p in self.programs] == [0] * self.n
        self.check_whole()
        run("rm", "-r", self.mounts[0] / self.step)

    def lead_to(self, phase, victim, held):
        """All but one go on to their end; that one waits, where nothing shall be published yet."""
        for p in self.programs:
            p.go_on()
        for k, p in enumerate(self.programs):
            if k not in (victim, held) or k == held and phase == "publish":
                assert p.said() == "written"
                p.go_on()
        if phase == "writing":
            return
        assert self.programs[victim].said() == "written"
        if phase == "publish":
            util.wait_for(lambda: len(self.parts()) == self.n - 1, every=0.001)
        self.programs[victim].go_on()
        if phase in ("wait", "publish"):
            util.wait_for(lambda: victim in self.parts(), every=0.0005)

    def phase(self, victim, led_to):
        if self.is_whole():
            return "whole"
        parts = self.parts()
        if victim in parts:
            return "publish" if len(parts) == self.n else "wait"
        return "writing" if led_to == "writing" else "sync"

    def kill(self, phase, victim, what):
        time.sleep(self.rng.uniform(0, self.length[phase]))
        if what != "program":
            self.mounts[victim].daemon.kill()
        if what != "daemon":
            self.programs[victim].pipe.kill()
        self.fell[self.phase(victim, phase), what] += 1

    def one(self, turn, phase):
        victim, other = self.rng.sample(range(self.n), 2)
        what = self.rng.choice(KILLED)
        self.begin(turn)
        self.lead_to(phase, victim, other)
        self.kill(phase, victim, what)
        if phase != "publish":  # who was held back goes on
            assert self.programs[other].said() == "written"
            self.programs[other].go_on()
        self.after(victim, other, what)

    def after(self, victim, other, what):
        """Nothing is there, or all; the others know; and then it is made after all, or dropped. `other` may have been
        late, too.
        """
        if what != "program":
            self.mounts[victim].daemon.wait()
            self.programs[victim].kill()  # before the mount goes, or it would write below
            self.mounts[victim].crash()
        got = {k: p.end() for k, p in enumerate(self.programs) if k != victim}
        self.programs[victim].kill()
        if self.is_whole():
            self.check_whole()
        assert set(got.values()) <= {0, errno.ETIMEDOUT} and (self.is_whole() or 0 not in got.values()), got
        for k, code in got.items():
            if code:
                said = attribute(self.mounts[k] / self.step, "error")
                assert set(said.split("s: ")[-1].split(".")[0].split(", ")) <= {str(victim), str(other)}, said
        if what != "program":
            self.mounts[victim] = self.mount(victim)
        self.drop() if not self.is_whole() and self.rng.random() < 0.3 else self.resume(victim)

    def resume(self, victim):
        """All come again, the one that was killed with all that it has; a timeout says that one can go on waiting."""
        self.ended["whole without it" if self.is_whole() else "resumed"] += 1
        for _ in range(20):
            again = [self.program(k) for k, m in enumerate(self.mounts) if state(m / self.step) != "committed"]
            for p in again:
                p.go_on()
            for p in again:
                p.go_on()
            got = [p.end() for p in again]
            assert set(got) <= {0, errno.ETIMEDOUT}, got
            if self.is_whole() and not any(got):
                break
        self.check_whole()
        run("rm", "-r", self.mounts[victim] / self.step)
        util.wait_for(lambda: all(not (m / self.step).exists() for m in self.mounts))

    def drop(self):
        self.ended["dropped"] += 1
        for m in self.mounts:
            if (m / self.step).exists():
                run("rm", "-r", m / self.step)
        assert not self.parts() and not self.is_whole() and not any((m / self.step).exists() for m in self.mounts)

    def check_whole(self):
        top = self.reader / self.step
        util.wait_for(top.exists)
        assert np.array_equal(np.load(top / "params/a.npy"), ARRAY + self.turn) and np.array_equal(
            np.load(top / "shared.npy"), SHARED + self.turn
        )
        assert sorted(os.listdir(top)) == sorted(
            ["params", "shared.npy", *(f"count{k}.json" for k in range(self.n)), *(f"blob{k}" for k in range(self.n))]
        )
        for k in range(self.n):
            assert (top / f"count{k}.json").read_text() == f"{self.turn}\n" and (
                top / f"blob{k}"
            ).read_bytes() == trees.noise(100_000, self.turn * self.n + k)


def npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()


@pytest.mark.parametrize("n", [2, 4])
def test_killed_at_any_point(mount, root, tmp_path, n):
    """A writer's daemon, its program or both are killed while it writes, syncs, waits for the others, publishes: the
    step is there whole or not at all, who waits is told who is missing, and then the step is made after all, or
    dropped."""
    seed = int(os.environ.get("WRITER_SEED", random.randrange(1 << 30)))
    killing = Killing(mount, root, tmp_path, n, random.Random(seed))
    killing.measure()
    try:
        for turn in range(KILLS):
            killing.one(turn + 2, PHASES[turn % len(PHASES)])
    finally:
        print(f"\n{n} writers, seed {seed}, turn {killing.turn}")
        for phase in *PHASES, "whole":
            print(
                f"  {phase}:",
                ", ".join(f"{what} {killing.fell[phase, what]}" for what in KILLED),
                f"({killing.length.get(phase, 0) * 1000:.0f} ms)",
            )
        print(" ", dict(killing.ended))
    assert "0 faults" in util.ckptfs("verify", root).stdout
    if KILLS >= ENOUGH:
        assert all(sum(killing.fell[phase, what] for what in KILLED) >= KILLS / 20 for phase in PHASES)
    killing.reader.stop()
    for m in killing.mounts:
        m.stop()
    util.ckptfs("gc", root)
    assert trees.committed(root) == [] and os.listdir(root / ".ckptstore/staging") == []


def test_killed_at_each_call(mount, root, tmp_path):
    """The daemon of the last of two writers ends at each call that changes the disk, of its part, of the step, of what
    it says to the other. (At every sixteenth, if few kills are wanted.)"""
    rng = random.Random()
    every = 1 if KILLS >= ENOUGH else 16
    killing = Killing(mount, root, tmp_path, 2, rng)
    for turn in range(1 + rng.randrange(every), 1000, every):
        killing.mounts[1].stop()
        try:
            killing.mounts[1] = killing.mount(1, prefix=("env", f"CKPTFS_DISK_FAIL={turn}:KILL"))
        except AssertionError:  # at a call that the mount itself makes
            killing.mounts[1] = killing.mount(1)
            continue
        killing.begin(turn)
        for k, p in enumerate(killing.programs):
            p.go_on()
            p.go_on()
            if k == 0:
                util.wait_for(lambda: 0 in killing.parts(), every=0.001)
        killing.programs[1].pipe.wait(util.LIMIT)
        time.sleep(0.1)  # what it does in the background
        if killing.mounts[1].daemon.poll() is None:
            break
        killing.fell[killing.phase(1, "sync")] += 1
        killing.after(1, 0, "daemon")
    print(f"\n{turn} calls, {dict(killing.fell)}, {dict(killing.ended)}")
    assert turn > 30 and [p.end() for p in killing.programs] == [0, 0]
    killing.mounts[1].crash()  # before the call comes after all, of some work in the background
    killing.mounts[1] = killing.mount(1)
    killing.check_whole()


def test_both_killed_when_the_step_is_made(mount, root, tmp_path):
    """The step is there, and both daemons are killed before one has said so: the next mounts show the step, and not
    what they had staged of it.
    """
    trace, step = tmp_path / "trace", 1

    def pair(*prefix):
        return [
            mount(root, "writers=2", f"writer={k}", "commit_timeout=20", prefix=prefix if k else ()) for k in range(2)
        ]

    def write(mounts):
        """Both sync; errors are those of daemons that die."""

        def sync(m):
            try:
                trees.commit(m / f"{step}")
            except OSError as e:
                assert e.errno in (errno.ENOTCONN, errno.ECONNABORTED), e

        for k, m in enumerate(mounts):
            (m / f"{step}").mkdir()
            (m / f"{step}/{k}").write_text(f"{k}")
        first = threading.Thread(target=sync, args=(mounts[0],))
        first.start()
        util.wait_for(
            lambda: (root / f".ckptstore/writers/{step}/0-of-2.json").exists() or not first.is_alive(), every=0.001
        )
        sync(mounts[1])
        return first

    mounts = pair("env", f"CKPTFS_DISK_TRACE={trace}")
    write(mounts).join(util.LIMIT)
    for m in mounts:
        m.stop()
    calls = len(trace.read_bytes().splitlines())
    for turn in range(calls, 0, -1):
        step += 1
        try:
            mounts = pair("env", f"CKPTFS_DISK_FAIL={turn}:KILL")
        except AssertionError:
            break
        first = write(mounts)
        mounts[0].daemon.kill()  # before it has looked again
        time.sleep(0.1)  # what the other one does in the background
        died = mounts[1].daemon.poll() is not None
        first.join(util.LIMIT)
        for m in mounts:
            m.crash()
        made = (root / f".ckptstore/steps/{step}.json").exists()
        if not died or not made or (root / f".ckptstore/writers/{step}/done").exists():
            assert made, "the calls before it was made are another test's"
            continue
        for m in pair():
            assert state(m / f"{step}") == "committed" and sorted(os.listdir(m / f"{step}")) == ["0", "1"]
        return
    raise AssertionError(f"none of {calls} calls lies between the step and the word")


def test_killed_when_it_comes_again(mount, root):
    """One of two writers has come, waits in vain, and is killed at each call when it comes again; then the other one
    comes. Whether the step has the first part or the second: the mounts show what is committed, and not what was staged
    of it."""

    def pair(*prefix):
        return [
            mount(
                root,
                "writers=2",
                f"writer={k}",
                "commit_timeout=0.2" if k else "commit_timeout=20",
                prefix=prefix if k else (),
            )
            for k in range(2)
        ]

    def sync(m, step, expected):
        try:
            trees.commit(m / f"{step}")
        except OSError as e:
            assert e.errno in expected, e
            return e.errno
        return 0

    dead, killed, late = (errno.ENOTCONN, errno.ECONNABORTED), 0, 0
    for turn in range(1, 1000):
        try:
            mounts = pair("env", f"CKPTFS_DISK_FAIL={turn}:KILL")
        except AssertionError:  # at a call that the mount itself makes
            mount(root, "writers=2", "writer=0").stop()
            continue
        said = 0
        try:
            (mounts[1] / f"{turn}").mkdir()
            (mounts[1] / f"{turn}/1").write_text("1")
            said = sync(mounts[1], turn, (errno.ETIMEDOUT, *dead))
            if said == errno.ETIMEDOUT:
                said = sync(mounts[1], turn, (errno.ETIMEDOUT, *dead))
                killed += said in dead
        except OSError as e:
            assert e.errno in dead, e
        if said == errno.ETIMEDOUT:
            break  # the call comes later than all that is looked at
        mounts[1].crash()
        (mounts[0] / f"{turn}").mkdir()
        (mounts[0] / f"{turn}/0").write_text("0")
        has_part = (root / f".ckptstore/writers/{turn}/1-of-2.json").exists()
        if has_part:
            assert sync(mounts[0], turn, ()) == 0
        again = mount(root, "writers=2", "writer=1")
        if has_part:
            late += 1
            for m in mounts[0], again:
                assert state(m / f"{turn}") == "committed" and sorted(os.listdir(m / f"{turn}")) == ["0", "1"], turn
        again.stop()
        mounts[0].stop()
    assert killed > 3 and late > 3, (killed, late)
