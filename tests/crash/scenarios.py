"""What users do to a store while the power fails, the daemon is killed, or the disk is full; and what must be true at
each moment.

A scenario begins with a root that has steps 1 and 2 and is a list of operations. Each is made of single calls on the
mount, and says which steps it changes: before it has begun they are as they were, after it has returned they are as it
says, and in between one or the other.
"""

import contextlib
import dataclasses
import errno
import functools
import io
import os
import re
import shutil
import subprocess
import time
import traceback
from pathlib import Path

import numpy as np

import disk_reader
import powercut
import util

EXPLICIT = "commit=explicit"
ENOUGH = 30  # seconds for what happens by itself


# --- what is in steps


def npy(a):
    f = io.BytesIO()
    np.lib.format.write_array(f, a)
    return f.getvalue()


def noise(count, seed):
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


@functools.cache
def content(seed, large=60_000):
    """{path: bytes, or None for a directory} of a step: leaves that are stored as they are, compressed, and packed;
    values; blobs. large: elements of four bytes; 300_000 make leaves of two chunks."""
    made = {
        "shared.npy": npy(noise(40_000, 1)),  # in every step
        "large.npy": npy(noise(large, 100 + seed)),
        "params/smooth.npy": npy(np.arange(seed, large + seed, dtype=np.float32)),
        "notes.txt": b"step %d\n" % seed,
        "noise.bin": noise(20_000, 200 + seed).tobytes(),
        "text.bin": b"%016d" % seed * 8_000,
        "lr.json": b"0.%d\n" % (seed + 1),
        "nothing.bin": b"",
        "empty": None,
    }
    for n in range(3):
        made[f"params/{n}/bias.npy"] = npy(np.arange(seed, seed + 30 + n))
    return made


@functools.cache
def little(seed):
    return {"w.npy": npy(np.arange(20_000, dtype=np.int64) * seed), "loss.json": b"%d\n" % seed}


def frozen(files):
    """The same as {path: hash, or DIRECTORY}, directories above the files included."""
    made = {}
    for path, data in files.items():
        made[path] = disk_reader.DIRECTORY if data is None else disk_reader.sha256(data)
        while path := os.path.dirname(path):
            made[path] = disk_reader.DIRECTORY
    return made


def found(folder):
    """What a step in a mount holds, read through it, in the same form; None if there is none."""
    made = {}
    if not folder.exists():
        return None
    for below, folders, files in os.walk(folder, onerror=fail):
        for name in folders:
            made[os.path.relpath(os.path.join(below, name), folder)] = disk_reader.DIRECTORY
        for name in files:
            path = os.path.join(below, name)
            made[os.path.relpath(path, folder)] = disk_reader.sha256(Path(path).read_bytes())
    return made


def fail(error):
    raise error


def state(step):
    return os.getxattr(step, "user.ckpt.state").decode()


def error(step):
    """Why the last commit failed; it may have been one that nobody asked for."""
    try:
        return os.getxattr(step, "user.ckpt.error").decode()
    except OSError as e:
        if e.errno != errno.ENODATA:
            raise
    return None


def committed(m):
    """{name: what it holds} of the steps that a mount shows as committed; every byte is read."""
    return {
        name: found(m / name)
        for name in os.listdir(m.top)
        if name not in ("latest", "best") and state(m / name) == "committed"
    }


# --- calls


class Calls:
    """Single calls on the tree of a mount. retry: one that fails is made once more, and its error is remembered in
    `errors`. again: all this was perhaps done before, so what is there already, or gone already, is fine."""

    def __init__(self, top, retry=False, again=False):
        self.top, self.retry, self.again, self.errors = Path(top), retry, again, []

    def call(self, function, *args, fine=(), **kwargs):
        try:
            return function(*args, **kwargs)
        except OSError as e:
            if self.again and e.errno in fine:
                return None
            if not self.retry or self.errors:
                raise
            self.errors.append(e)
        try:
            return function(*args, **kwargs)
        except OSError as e:  # the first time may have done it, and failed afterwards
            if e.errno in fine:
                return None
            raise

    def mkdir(self, path):
        self.call(os.mkdir, self.top / path, fine=[errno.EEXIST])

    def put(self, path, data, at=None):
        """A whole file, or with `at` some bytes in the middle of one."""
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if at is None else 0)
        fd = self.call(os.open, self.top / path, flags, 0o644)
        done = 0
        try:
            while done < len(data):
                done += self.call(os.pwrite, fd, data[done : done + (1 << 20)], (at or 0) + done)
        finally:
            os.close(fd)

    def copy(self, source, target):
        """As cp does it: shares what is stored, where the file system can."""
        size = os.stat(self.top / source).st_size
        with open(self.top / source, "rb") as f:
            fd = self.call(os.open, self.top / target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                done = 0
                while done < size:
                    n = self.call(os.copy_file_range, f.fileno(), fd, size - done, done, done)
                    assert n, "the source ends early"
                    done += n
            finally:
                os.close(fd)

    def write(self, step, files):
        self.mkdir(step)
        for path, data in files.items():
            for parent in reversed(Path(path).parents[:-1]):
                if not (self.top / step / parent).is_dir():
                    self.mkdir(f"{step}/{parent}")
            if data is None:
                self.mkdir(f"{step}/{path}")
            else:
                self.put(f"{step}/{path}", data)

    def fsync(self, path):
        """Of a file or a directory; of a step it is the commit."""
        fd = self.call(os.open, self.top / path, os.O_RDONLY)
        try:
            self.call(os.fsync, fd)
        finally:
            os.close(fd)

    def fsync_all(self, folder):
        """Every file, then every directory, the folder last."""
        for below, _, files in os.walk(self.top / folder, topdown=False):
            for name in [*files, "."]:
                self.fsync(os.path.relpath(os.path.join(below, name), self.top))

    def rename(self, old, new):
        if self.again and not (self.top / old).exists():
            assert (self.top / new).exists()
            return
        self.call(os.rename, self.top / old, self.top / new)

    def remove(self, path):
        self.call(os.unlink, self.top / path, fine=[errno.ENOENT])

    def remove_tree(self, path):
        """As rm -r does it. An error of the last call may mean that the step is gone, but perhaps not from the disk:
        then there is nothing left to do.
        """
        if self.again and not (self.top / path).exists():
            return
        for below, folders, files in os.walk(self.top / path, topdown=False, onerror=fail):
            for name in files:
                self.call(os.unlink, os.path.join(below, name))
            self.call(os.rmdir, below, fine=[errno.ENOENT])


class ToolFailed(OSError):
    """An ordinary tool met an error, and gave up."""


# --- operations


@dataclasses.dataclass
class Op:
    """run(calls) makes the calls. change: {step: what it holds afterwards, None if it is gone}; later: what happens by
    itself some time after the operation has begun. staged: (step, [paths]) whose content is durable in its staged form
    once the operation has returned."""

    name: str
    run: object
    change: dict = dataclasses.field(default_factory=dict)
    later: dict = dataclasses.field(default_factory=dict)
    staged: tuple = None


@dataclasses.dataclass
class Scenario:
    """command: instead of a mount, one command with this root. helped: the command that does what should have happened
    by itself, but a fault came. garbage: a step of the root whose manifest is taken away before; trash: and its objects
    are collected. touched: paths of changed steps that the operations write to before the commit."""

    name: str
    ops: list
    options: tuple = (EXPLICIT,)
    helped: tuple = None
    command: tuple = None
    config: tuple = ()
    garbage: str = None
    trash: bool = False
    touched: tuple = ()
    every: int = 4  # points that the default run takes in the tests with a daemon

    def __str__(self):
        return self.name


FIRST = {"1": content(1), "2": content(2)}  # of every root
TREE = content(7)  # that is imported
FROZEN = {name: frozen(files) for name, files in FIRST.items()}


def write_and_sync(step, files, later=None):
    return [
        Op("write", lambda c: c.write(step, files)),
        Op("sync", lambda c: c.fsync(step), change={step: frozen(files)}, later=later or {}),
    ]


def stage_and_rename(name, files, to):
    """Staged, made durable by its user, and renamed to a step."""

    def write(c):
        if not (c.again and found(c.top / to) == frozen(files)):
            c.write(name, files)
            c.fsync_all(name)

    return [
        Op("stage", write, staged=(name, frozen(files))),
        Op("rename", lambda c: c.rename(name, to), change={to: frozen(files)}),
    ]


def change_in_place(c):
    c.put("2/large.npy", b"changed", at=5000)
    c.put("2/new.npy", content(9)["large.npy"])
    c.put("2/lr.json", b"5.5\n")
    c.remove("2/params/0/bias.npy")


def changed():
    files = dict(content(2))
    large = files["large.npy"]
    files |= {
        "large.npy": large[:5000] + b"changed" + large[5007:],
        "new.npy": content(9)["large.npy"],
        "lr.json": b"5.5\n",
    }
    del files["params/0/bias.npy"]
    return files | {"params/0": None}


def share(c):
    if c.again and not (c.top / "1").exists():
        return
    c.mkdir(".new")
    for name in SHARED:
        if not c.again or (c.top / "1" / name).exists():  # else it was being deleted, and what is shared is there
            c.copy(f"1/{name}", f".new/{name}")
    c.fsync_all(".new")


SHARED = {name: content(1)[name] for name in ("large.npy", "notes.txt")}


def by_itself(files):
    """A process of its own, since it must have ended."""

    def run(c):
        source = c.top.parent / "tree"
        if not source.exists():
            Calls(source.parent).write(source.name, files)
        done = subprocess.run(["cp", "-rT", source, c.top / "7"], capture_output=True, text=True, timeout=util.LIMIT)
        if done.returncode:
            known = errno.ENOSPC, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED
            raise ToolFailed(next((n for n in known if os.strerror(n) in done.stderr), errno.EPROTO), done.stderr)

        def over():
            with contextlib.suppress(FileNotFoundError):  # between staged and committed
                return state(c.top / "7") == "committed" or error(c.top / "7")

        util.wait_for(over, ENOUGH)
        if state(c.top / "7") == "staged":  # it says why; whoever sees that may commit it
            c.fsync("7")

    return run


SCENARIOS = [
    Scenario("sync", write_and_sync("7", content(7, 300_000)), every=1),
    Scenario("rename_staged", stage_and_rename(".new", content(7), "7")),
    Scenario(
        "change",
        [Op("change", change_in_place), Op("sync", lambda c: c.fsync("2"), change={"2": frozen(changed())})],
        touched=("large.npy", "new.npy", "lr.json", "params/0/bias.npy"),
    ),
    Scenario("overwrite", stage_and_rename(".new", content(7), "2"), options=(EXPLICIT, "overwrite")),
    Scenario("delete", [Op("rm", lambda c: c.remove_tree("1"), change={"1": None})], touched=tuple(frozen(content(1)))),
    Scenario("move", [Op("mv", lambda c: c.rename("2", "5"), change={"2": None, "5": frozen(content(2))})], every=1),
    # Names that version 0.1.0 does not know: the store is marked before.
    Scenario("mark", write_and_sync("step-7", little(7)), every=1),
    Scenario(
        "mark_move",
        [Op("mv", lambda c: c.rename("2", "step=2"), change={"2": None, "step=2": frozen(content(2))})],
        every=1,
    ),
    Scenario(
        "share",
        [
            Op("share", share, staged=(".new", frozen(SHARED))),
            Op("rm", lambda c: c.remove_tree("1"), change={"1": None}),
            Op("gc", lambda c: time.sleep(0.5)),  # the daemon's own
            Op("rename", lambda c: c.rename(".new", "8"), change={"8": frozen(SHARED)}),
        ],
        touched=tuple(frozen(content(1))),
    ),
    Scenario(
        "retention",
        [*write_and_sync("3", little(3), later={"1": None}), Op("prune", lambda c: time.sleep(0.5))],
        config=("keep_last=2",),
        helped=("prune", "ROOT"),
    ),
    Scenario("again", write_and_sync("1", content(1)), garbage="1", trash=True),
    Scenario(
        "prune", [Op("prune", None, change={"1": None})], command=("prune", "ROOT"), config=("keep_last=1",), every=1
    ),
    Scenario("gc", [Op("gc", None)], command=("gc", "ROOT"), garbage="1", every=1),
    Scenario("purge", [Op("gc", None)], command=("gc", "--trash-keep=0", "ROOT"), garbage="1", trash=True, every=1),
    Scenario("import", [Op("import", None, change={"7": frozen(TREE)})], command=("import", "TREE", "ROOT/7")),
    Scenario("settle", [Op("cp", by_itself(little(7)), later={"7": frozen(little(7))})], options=("settle=0.3",)),
]


def begin(scenario):
    """{step: what it holds} at the beginning."""
    return {name: holds for name, holds in FROZEN.items() if name != scenario.garbage}


def end(scenario):
    """And at the end."""
    steps = begin(scenario)
    for op in scenario.ops:
        for name, holds in (op.change | op.later).items():
            steps[name] = holds
    return {name: holds for name, holds in steps.items() if holds is not None}


# --- roots


def make_first(folder):
    """The root that all begin with, made by a mount."""
    root = folder / "root"
    root.mkdir()
    util.ckptfs("init", root)
    with util.Mount(root, EXPLICIT, folder=folder / "mount") as m:
        calls = Calls(m.top)
        for step, files in FIRST.items():
            calls.write(step, files)
            calls.fsync(step)
        store = root / ".ckptstore"
        util.wait_for(
            lambda: (
                not os.listdir(store / "staging")
                and not any(n.startswith("staging-") for n in os.listdir(store / "trash"))
            )
        )
    return root


def copy_root(scenario, first, root):
    """A root for one run of a scenario, hard links and attributes as they are."""
    subprocess.run(["cp", "-a", first, root], check=True, timeout=util.LIMIT)
    if scenario.config:
        util.ckptfs("config", root, *scenario.config)
    if scenario.garbage:
        (root / f".ckptstore/steps/{scenario.garbage}.json").unlink()
    if scenario.trash:
        util.ckptfs("gc", root)
    return root


class Mount(util.Mount):
    """With variables in the daemon's environment. It may be killed at any time, and another may follow it on the same
    mount point: a dead mount that is in the way is the product's to clear. `alive`: did it answer?"""

    def __init__(self, root, *options, folder, env=None, **kwargs):
        super().__init__(
            root, *options, folder=folder, prefix=["env", *(f"{k}={v}" for k, v in (env or {}).items())], **kwargs
        )

    def start(self):
        if not util.mounted(self.top):
            os.makedirs(self.top, exist_ok=True)
        command = [
            *self.prefix,
            util.CKPTFS,
            "mount",
            "-f",
            str(self.source),
            str(self.top),
            "-o",
            ",".join(self.options),
        ]
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.renew_patience()
        try:
            util.wait_for(lambda: self.answers() or self.daemon.poll() is not None, every=0.01)
        except BaseException:
            self.abort()
            raise
        self.alive = self.daemon.poll() is None
        return self

    def answers(self):
        """Neither the dead mount, which may still answer stat from what the kernel remembers, nor the directory below
        it.
        """
        try:
            fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.listdir(fd)
                return os.fstat(fd).st_dev != os.stat(self.top.parent).st_dev
            finally:
                os.close(fd)
        except OSError:
            return False

    def end(self):
        """Unmount; the daemon's exit status. The mount point stays, and with it a dead mount if the daemon was
        killed.
        """
        end = time.monotonic() + 10
        while self.daemon.poll() is None and util.unmount(self.top).returncode and time.monotonic() < end:
            time.sleep(0.02)
        try:
            status = self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.abort()
            self.daemon.wait(util.LIMIT)
            status = "hung"
        self.timer.cancel()
        assert not util.SUSPICIOUS.search(self.said()), self.said()
        return status

    def __exit__(self, *_):
        """Whatever state it is in."""
        self.timer.cancel()
        if self.daemon.poll() is None or util.mounted(self.top):
            self.abort()
        self.daemon.wait(util.LIMIT)


def run_command(words, root, env=None):
    """A command, its exit status and what it said. ROOT in its words stands for the root, TREE for a directory with
    files beside it.
    """
    tree = root.parent / "tree"
    if "TREE" in words and not tree.exists():
        Calls(root.parent).write("tree", TREE)
    words = [word.replace("ROOT", str(root)).replace("TREE", str(tree)) for word in words]
    command = ["env", *(f"{k}={v}" for k, v in (env or {}).items()), util.CKPTFS, *words]
    util.need_hooks(*command)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=util.LIMIT)
    assert not util.SUSPICIOUS.search(done.stderr), done.stderr
    return done.returncode, done.stderr


def on_disk(root):
    """{name: what it holds} of the committed steps, by the store's files alone."""
    for _ in range(20):  # a living mount may move things meanwhile
        with contextlib.suppress(FileNotFoundError):
            store = {
                name: powercut.Disk(Path(root) / ".ckptstore" / name).outcome_all()
                for name in ("steps", "objects", "trash/objects")
            }
            return disk_reader.Reader().steps(store | {"trash": {"objects": store["trash/objects"]}})
    raise AssertionError("files vanish while they are read")


def check_root(root, allowed):
    """Each committed step holds one of what is allowed ({step: [holds]}), by its files, and by the command."""
    try:
        compare(on_disk(root), allowed, "on disk")
    except disk_reader.Bad as e:
        raise AssertionError(str(e)) from None
    done = util.ckptfs("verify", root, "--json", check=None)
    assert done.returncode == 0, f"verify: exit {done.returncode}: {done.stdout} {done.stderr}"


def check_mount(m, allowed):
    """The same of what a mount shows; a committed step may be hidden by a staged copy of it. Not while steps may be
    pruned.
    """
    staged = {name: [None] for name in os.listdir(m.top) if name in allowed and state(m / name) == "staged"}
    compare(committed(m), allowed | staged, "in the mount")


def check_mount_soon(m, allowed):
    """Another process has changed the root."""

    def right():
        with contextlib.suppress(AssertionError, OSError):
            check_mount(m, allowed)
            return True

    with contextlib.suppress(AssertionError):
        util.wait_for(right, 10)
    check_mount(m, allowed)


def compare(got, allowed, where):
    for name, holds in allowed.items():
        assert got.get(name) in holds, f"{where}, step {name} {difference(got.get(name), holds)}"
    assert got.keys() <= allowed.keys(), f"{where}, there are unknown steps {got.keys() - allowed.keys()}"


def check_copies(scenario, m, allowed):
    """A staged copy of a committed step has all its leaves, but for those that the operations write to."""
    for name, holds in begin(scenario).items():
        if (m / name).exists() and state(m / name) == "staged" and holds in allowed.get(name, []):
            got = found(m / name)
            lost = [path for path, digest in holds.items() if path not in scenario.touched and got.get(path) != digest]
            assert not lost, f"the staged copy of step {name} is without {lost[:5]} ({len(lost)} of {len(holds)})"


def allowed_after(scenario, count):
    """{step: [what it may hold]} when the operation number `count` did not end, and those before it did."""
    steps = {name: [holds] for name, holds in begin(scenario).items()}
    for n, op in enumerate(scenario.ops[: count + 1]):
        for name, holds in op.change.items():
            steps[name] = [holds] if n < count else [*steps.get(name, [None]), holds]
        for name, holds in op.later.items():
            steps[name] = [*steps.get(name, [None]), holds]
    return steps


def check_next_mount(scenario, m, allowed):
    """What it finds, before anything is changed."""
    assert m.alive, f"the next mount failed: {m.said()}"
    if not scenario.config:  # else it prunes
        check_mount(m, allowed)
        check_copies(scenario, m, allowed)


def redo(scenario, m):
    """All of it once more, on a mount without faults; it must come to its end."""
    calls = Calls(m.top, again=True)
    for op in scenario.ops:
        op.run(calls)
    wait_end(scenario, m)


def redo_command(scenario, root):
    done = all(on_disk(root).get(name) == holds for op in scenario.ops for name, holds in op.change.items())
    status, said = run_command(scenario.command, root)
    assert status == 0 or (done and status == 1), f"exit {status}: {said}"  # import: there is such a step


def wait_end(scenario, m):
    """All is as the scenario says that it is in the end."""
    want = {name: [holds] for name, holds in end(scenario).items()}
    if any(op.later for op in scenario.ops):
        util.wait_for(lambda: on_disk(m.source).keys() == want.keys(), ENOUGH)
    check_mount(m, want)
    compare(on_disk(m.source), want, "on disk")


def difference(got, holds):
    if got is None:
        return "is gone"
    if not any(holds):
        return "is there"
    want = next(h for h in reversed(holds) if h is not None)
    return (
        "is wrong: "
        + ", ".join(
            f"{path}: {got.get(path)}, wanted {want.get(path)}"
            for path in sorted(got.keys() | want.keys())
            if got.get(path) != want.get(path)
        )[:600]
    )


def told(error):
    """What a run in a thread died of."""
    if isinstance(error, AssertionError):
        return str(error)
    return "".join(traceback.format_exception(error)[-6:])


class Faults:
    """What went wrong at many points: each kind of fault is told once, with where it was seen."""

    def __init__(self, limit=8):
        self.kinds, self.limit = {}, limit

    def add(self, point, text, more=""):
        kind = re.sub(r"\[.*|: .*|[0-9a-f]{8,}|[0-9]+", "", text.strip().splitlines()[0])
        self.kinds.setdefault(kind, []).append((point, text, more))

    def full(self):
        return len(self.kinds) >= self.limit

    def __bool__(self):
        return bool(self.kinds)

    def __str__(self):
        return f"{len(self.kinds)} kinds of faults\n" + "\n".join(
            f"* {text}\n  seen {len(at)} times: "
            f"{', '.join(str(point) for point, *_ in at[:8])}{', ...' if len(at) > 8 else ''}\n{more}"
            for at in self.kinds.values()
            for _, text, more in at[:1]
        )


def remove(folder):
    shutil.rmtree(folder, ignore_errors=True)
