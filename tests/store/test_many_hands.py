"""Several processes change and sync one step in one mount, and directories that they have open outlive the commits."""

import errno
import json
import os
import random
import threading
import time

import pytest

from trees import EXPLICIT, commit, is_committed, run, state, store
from util import ckptfs, fails, wait_for

SECONDS = float(os.environ.get("HANDS_SECONDS", 6))
SEED = int(os.environ.get("HANDS_SEED", random.randrange(1 << 30)))


class Hand(threading.Thread):
    """Changes files of its own in a step, and knows what is in them."""

    def __init__(self, number, step, end):
        super().__init__()
        self.number, self.step, self.end = number, step, end
        self.random = random.Random(SEED + number)
        self.files, self.faults, self.count = {}, [], 0

    def name(self):
        return f"h{self.number}-{self.random.randrange(6)}"

    def path(self, name):
        return f"{self.step}/{name}"

    def write(self, name):
        data = self.random.randbytes(self.random.choice([5, 3000, 70_000]))
        with open(self.path(name), "wb") as f:
            f.write(data)
        self.files[name] = data

    def append(self, name):
        with open(self.path(name), "ab") as f:
            f.write(b"+")
        self.files[name] += b"+"

    def overwrite(self, name):
        with open(self.path(name), "r+b") as f:
            f.write(b"new")
        self.files[name] = b"new" + self.files[name][3:]

    def truncate(self, name):
        os.truncate(self.path(name), 2)
        self.files[name] = self.files[name][:2].ljust(2, b"\0")

    def rename(self, name):
        other = self.name()
        if other != name:
            os.rename(self.path(name), self.path(other))
            self.files[other] = self.files.pop(name)

    def link(self, name):
        other = self.name()
        if other not in self.files:
            os.link(self.path(name), self.path(other))
            os.unlink(self.path(name))
            self.files[other] = self.files.pop(name)

    def unlink(self, name):
        os.unlink(self.path(name))
        del self.files[name]

    def mode(self, name):
        os.chmod(self.path(name), 0o640)
        os.setxattr(self.path(name), "user.note", b"n")

    def sync(self, _):
        try:
            commit(self.step)
        except OSError as e:
            if e.errno != errno.EBUSY:  # another one has a file open
                raise

    def check(self, _):
        for name in {f"h{self.number}-{n}" for n in range(6)}:
            try:
                with open(self.path(name), "rb") as f:
                    data = f.read()
            except FileNotFoundError:
                data = None
            assert data == self.files.get(name), (
                f"{name}: {data and len(data)} bytes, not {name in self.files and len(self.files[name])}"
            )

    def run(self):
        calls = [
            self.write,
            self.write,
            self.append,
            self.overwrite,
            self.truncate,
            self.rename,
            self.link,
            self.unlink,
            self.mode,
            self.sync,
            self.check,
        ]
        while time.monotonic() < self.end and not self.faults:
            call, name = self.random.choice(calls), self.name()
            if name not in self.files and call not in (self.write, self.sync, self.check):
                continue
            try:
                call(name)
                self.count += 1
            except (OSError, AssertionError) as e:
                self.faults.append(f"hand {self.number}, call {self.count}, {call.__name__} of {name}: {e!r}")


@pytest.mark.parametrize("how", [EXPLICIT, "settle=0.3"])
def test_everything_that_succeeded_is_there(mount, root, how):
    """No change is lost, no removal undone, nobody is told ESTALE, and what is committed in the end is what was
    written.
    """
    print(f"HANDS_SEED={SEED}")
    m = mount(root, how)
    step = m / "1"
    step.mkdir()
    (step / "first").write_text("first")
    commit(step)
    hands = [Hand(n, step, time.monotonic() + SECONDS) for n in range(5)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join(120)
    assert not any(hand.faults for hand in hands), [hand.faults for hand in hands]
    for hand in hands:
        hand.check(None)
    wait_for(lambda: committed_by_now(step))
    want = {name: data for hand in hands for name, data in hand.files.items()} | {"first": b"first"}
    assert set(os.listdir(step)) == set(want)
    for name, data in want.items():
        assert ckptfs("cat", root, f"1/{name}", text=False).stdout == data, name
    print(f"{sum(hand.count for hand in hands)} calls")


def committed_by_now(step):
    try:
        commit(step)
    except OSError as e:
        assert e.errno == errno.EBUSY
    return is_committed(step)


def test_removal_beside_retention(mount, root):
    """While a sync still applies retention, something is removed from the step that it has committed."""
    ckptfs("config", root, "keep_last=100000", "best_metric=loss", "best_mode=min", "keep_best=1")
    m = mount(root, EXPLICIT)
    (m / "100").mkdir()
    (m / "100/metrics.json").write_text('{"loss": 1}')
    commit(m / "100")
    text = (store(root) / "steps/100.json").read_text()
    for n in range(101, 700):  # retention looks at each
        (store(root) / f"steps/{n}.json").write_text(text)
    time.sleep(1.2)  # they are seen
    step = m / "1"
    step.mkdir()
    (step / "b").write_text("b")
    during = 0
    for n in range(20):
        (step / "a").write_text(f"{n}")
        syncing = threading.Thread(target=commit, args=(step,))
        syncing.start()
        while syncing.is_alive() and state(step) != "committed":
            pass
        os.unlink(step / "a")
        during += syncing.is_alive()
        syncing.join(60)
        assert not (step / "a").exists(), f"round {n}"
    assert during, "no removal fell into a sync: more steps are needed"


@pytest.mark.parametrize("options", [[EXPLICIT, "settle=1"], ["settle=1"], ["writers=2,writer=0", "settle=1"]], ids=str)
@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_removal_is_durable(mount, root, options, end):
    """What was removed from a committed step stays so: from `settle` seconds on, and in any case after an unmount."""
    m = mount(root, EXPLICIT)
    (m / "1").mkdir()
    (m / "1/a").write_text("a")
    (m / "1/b").write_text("b")
    commit(m / "1")
    m.stop()
    m = mount(root, *options)
    os.unlink(m / "1/a")
    if end == "kill":
        wait_for(lambda: list((store(root) / "staging").glob("*/base")))
        time.sleep(1)
        m.crash()
    else:
        m.stop()
    m = mount(root, EXPLICIT)
    assert os.listdir(m / "1") == ["b"] and (m / "1/b").read_text() == "b"


def test_removal_of_a_replaced_step(mount, root):
    """What was removed from a step is not taken from the one by which another mount has replaced it."""
    here, there = mount(root, EXPLICIT, "settle=1", "refresh=30"), mount(root, EXPLICIT, "refresh=1")
    (here / "1").mkdir()
    for name in "abc":
        (here / f"1/{name}").write_text(name)
    commit(here / "1")
    wait_for(lambda: is_committed(there / "1"))
    os.unlink(here / "1/a")  # noted, for another second
    os.unlink(there / "1/c")
    (there / "1/0").write_text("0")  # comes first: other numbers
    commit(there / "1")
    wait_for(lambda: "another mount has replaced the step" in here.said(), 30)
    assert sorted(os.listdir(there / "1")) == ["0", "a", "b"]
    third = mount(root, EXPLICIT)
    assert sorted(os.listdir(third / "1")) == ["0", "a", "b"] and is_committed(third / "1")


def test_rmdir_spares_what_another_mount_has_made(mount, root):
    """rm -r has emptied a step, and before its rmdir another mount commits a step of that name."""
    here, there = mount(root, EXPLICIT, "settle=60", "refresh=30"), mount(root, EXPLICIT, "refresh=1")
    (here / "1").mkdir()
    (here / "1/a").write_text("a")
    commit(here / "1")
    wait_for(lambda: is_committed(there / "1"))
    os.unlink(here / "1/a")
    (there / "1/b").write_text("b")
    commit(there / "1")
    with fails(errno.ENOTEMPTY, errno.ESTALE):
        os.rmdir(here / "1")
    assert ckptfs("cat", root, "1/b").stdout == "b"


def test_open_directories_outlive_commits(writable):
    """A process that is in a step, or has its directories open, works on: what it makes and finds is in the step as it
    is now.
    """
    step = writable / "1"
    (step / "d").mkdir(parents=True)
    (step / "d/f").write_text("0")
    top, sub = os.open(step, os.O_RDONLY), os.open(step / "d", os.O_RDONLY)
    for n in range(3):  # the staged step's, then those of what it became
        commit(step)
        assert os.listdir(f"/proc/self/fd/{sub}") == sorted(os.listdir(step / "d"))
        os.close(os.open(f"new{n}", os.O_CREAT | os.O_WRONLY, dir_fd=sub))
        os.mkdir(f"dir{n}", dir_fd=top)
        fd = os.open("f", os.O_WRONLY | os.O_TRUNC, dir_fd=sub)
        os.write(fd, b"%d" % n)
        os.close(fd)
        os.chmod(f"new{n}", 0o600, dir_fd=sub)
        commit(step)
        assert (step / f"d/new{n}").stat().st_mode & 0o777 == 0o600 and (step / "d/f").read_text() == f"{n}"
        assert os.stat(f"dir{n}", dir_fd=top) and os.stat(f"d/new{n}", dir_fd=top)
        os.rename(f"new{n}", f"dir{n}/moved", src_dir_fd=sub, dst_dir_fd=top)
        os.rename(f"dir{n}/moved", f"new{n}", src_dir_fd=top, dst_dir_fd=sub)
        os.unlink(f"new{n}", dir_fd=sub)
        os.rmdir(f"dir{n}", dir_fd=top)
        assert sorted(os.listdir(step / "d")) == ["f"] and os.listdir(step) == ["d"]
    os.close(top)
    os.close(sub)


@pytest.mark.parametrize("below", ["", "d"])
def test_removal_by_an_older_directory(mount, root, below):
    """What is removed through a directory that was opened before the last commit is found no more, had it been looked
    at and listed before."""
    m = mount(root, EXPLICIT, "settle=60")
    there = m / "1" / below
    (there / "empty").mkdir(parents=True)
    for name in "a", "b", "c":
        (there / name).write_text(name)
    older = os.open(there, os.O_RDONLY)
    commit(m / "1")
    assert sorted(os.listdir(there)) == sorted(os.listdir(there)) == ["a", "b", "c", "empty"]
    assert all((there / name).exists() for name in os.listdir(there))
    os.unlink("a", dir_fd=older)
    assert not (there / "a").exists() and sorted(os.listdir(there)) == ["b", "c", "empty"]
    os.rmdir("empty", dir_fd=older)
    assert not (there / "empty").exists() and sorted(os.listdir(there)) == ["b", "c"]
    (there / "b").unlink()
    assert os.listdir(there) == os.listdir(f"/proc/self/fd/{older}") == ["c"]
    os.close(older)
    commit(m / "1")
    assert os.listdir(there) == ["c"]


def test_work_in_the_current_directory(writable):
    """cd STEP, and then a loop of changes and syncs, as a person at a shell does it."""
    (writable / "1").mkdir()
    script = (
        "set -e; for n in 1 2 3; do echo $n > f$n; sync .; cat f$n; ls | tr '\\n' ' '; "
        "mv f$n g$n; mkdir -p d; cp g$n d/; sync .; done; rm g1; sync ."
    )
    assert run("sh", "-c", script, cwd=writable / "1") == "1\nf1 2\nd f2 g1 3\nd f3 g1 g2 "
    assert sorted(os.listdir(writable / "1")) == ["d", "g2", "g3"] and is_committed(writable / "1")


@pytest.mark.parametrize("opened", ["staged", "committed"])
def test_fsync_of_a_directory_opened_before(writable, root, opened):
    """A descriptor of a step's directory that is older than the last commit, or change, commits what was changed
    since.
    """
    step = writable / "1"
    step.mkdir()
    (step / "f").write_text("0")
    if opened == "committed":
        commit(step)
    fd = os.open(step, os.O_RDONLY)
    for n in range(1, 4):
        (step / "f").write_text(f"{n}")
        os.fsync(fd)
        assert ckptfs("cat", root, "1/f").stdout == f"{n}" and is_committed(step)
    os.unlink(step / "f")
    (step / "g").write_text("g")
    os.fsync(fd)
    assert ckptfs("ls", root, "1").stdout.split() == ["g"]
    os.close(fd)


def test_another_step_of_the_name_is_another_step(writable):
    """Who was in a step that was deleted is not in the one that has its name now."""
    step = writable / "1"
    step.mkdir()
    (step / "f").write_text("old")
    commit(step)
    fd = os.open(step, os.O_RDONLY)
    (step / "f").write_text("new")
    commit(step)
    run("rm", "-r", step)
    step.mkdir()
    (step / "f").write_text("another")
    commit(step)
    with fails(errno.ENOENT, errno.ESTALE):
        os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.fsync(fd)
    assert os.listdir(step) == ["f"]
    os.close(fd)


def test_renamed_step_is_followed(writable):
    step = writable / "1"
    step.mkdir()
    (step / "f").write_text("f")
    commit(step)
    fd = os.open(step, os.O_RDONLY)
    (step / "g").write_text("g")
    commit(step)
    os.rename(step, writable / "2")
    os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.fsync(fd)
    os.close(fd)
    assert sorted(os.listdir(writable / "2")) == ["f", "g", "made"] and not step.exists()


def test_reading_opens_nothing_for_changes(writable):
    """Who was told to look again reads another step just after that."""
    for n in "12":
        (writable / n).mkdir()
        (writable / n / "f").write_text(n)
        commit(writable / n)
    with open(writable / "1/f", "a") as f:
        f.write("+")
    assert (writable / "2/f").read_text() == "2" and is_committed(writable / "2")


def test_hard_link_in_a_committed_step(writable):
    """The first change of a committed step may be a link: both names are one file, as in any other step."""
    step = writable / "1"
    step.mkdir()
    (step / "a").write_text("one")
    commit(step)
    os.link(step / "a", step / "b")
    with open(step / "a", "a") as f:
        f.write(" two")
    assert (step / "b").read_text() == "one two"
    assert os.stat(step / "b").st_nlink == os.stat(step / "a").st_nlink == 2
    commit(step)
    assert (step / "a").read_text() == (step / "b").read_text() == "one two"


def test_names_in_a_committed_step_are_kept(writable):
    """The kernel asks again for the step's own name, which a commit may give to another one, and for nothing in it."""
    (writable / "1/a/b").mkdir(parents=True)
    (writable / "1/a/b/f").write_text("f")
    commit(writable / "1")
    os.stat(writable / "1/a/b/f")

    def lookups():
        return json.loads((writable / ".ckptfs/stats.json").read_text())["lookups"]

    before = lookups()
    for _ in range(100):
        os.stat(writable / "1/a/b/f")
    assert lookups() - before < 150
