"""The power is cut after each call that changes the disk: what is committed is whole, whatever part of the rest has
arrived.

Each scenario runs once on a real mount, or command, that writes a trace. It is then played into a model of a disk
(powercut.py), and after every call each outcome is read in this process, every byte of it. Of a sample, the outcome is
made a real directory, for the commands (every COMMANDS-th point) and for a real mount (MOUNTS of them). CRASH_EVERY=1
gives every point to the commands.
"""

import concurrent.futures
import itertools
import json
import os
import random
import re
import time

import pytest

import disk_reader
import powercut
import scenarios
import util
from scenarios import SCENARIOS, begin, difference

COMMANDS = int(os.environ.get("CRASH_EVERY", 12))
RANDOM = 6  # outcomes at each point
MOUNTS = 6
SEED = 20260101
OLD_NAME = re.compile("(?:.+_)?[0-9]+")  # a step's for version 0.1.0
NOTHING = scenarios.Scenario("nothing", [])


class Record:
    """A run: the disk before it, the trace, and when each operation began and ended, in calls."""

    def __init__(self, scenario, root, folder):
        self.scenario, self.root, self.spans = scenario, root, []
        self.path = folder / "trace"
        env = {"CKPTFS_DISK_TRACE": self.path}
        self.disk = powercut.Disk(root)
        if scenario.command:
            status, said = scenarios.run_command(scenario.command, root, env)
            assert status == 0, said
            self.spans = [(op, 0, self.now()) for op in scenario.ops]
        else:
            with scenarios.Mount(root, *scenario.options, folder=folder / "mount", env=env) as m:
                assert m.alive, m.said()
                calls = scenarios.Calls(m.top)
                for op in scenario.ops:
                    began = self.now()
                    op.run(calls)
                    self.spans.append((op, began, self.now()))
                self.wait_quiet()
                scenarios.wait_end(scenario, m)
                assert m.end() == 0, m.said()
        self.trace = powercut.Trace(self.path)

    def now(self):
        return powercut.lines_of(self.path)

    def wait_quiet(self):
        """What the daemon does in the background belongs to the trace."""
        count, since = self.now(), time.monotonic()
        while time.monotonic() < since + 0.7:
            time.sleep(0.05)
            if self.now() != count:
                count, since = self.now(), time.monotonic()

    # --- what must be true after k calls

    def allowed(self, k):
        """{step: what it may hold, oldest first}"""
        steps = {name: [holds] for name, holds in begin(self.scenario).items()}
        for op, began, ended in self.spans:
            for name, holds in op.change.items():
                if k >= ended:
                    steps[name] = [holds]
                elif k > began:
                    steps[name] = [*steps.get(name, [None]), holds]
            for name, holds in op.later.items():
                if k > began:
                    steps[name] = [*steps.get(name, [None]), holds]
        return steps

    def promised(self, k):
        """{staged step: content} that its user has made durable, as long as it is not committed."""
        found = {}
        for n, (op, _, ended) in enumerate(self.spans):
            if op.staged and k >= ended and k < max(e for _, _, e in self.spans[n:]):
                found[op.staged[0]] = op.staged[1]
        return found

    def finished(self, k):
        return {name for op, _, ended in self.spans for name in op.change if k >= ended}


def check_store(record, reader, k, tree):
    """A tree against what must be true after k calls; raises Bad."""
    need = disk_reader.need
    store = tree.get(".ckptstore")
    need(store, "no store")
    need(json.loads(store["store.json"].data)["version"] == 1, "store.json")
    got, allowed = reader.steps(store), record.allowed(k)
    for name, holds in allowed.items():
        need(got.get(name) in holds, f"step {name}: {difference(got.get(name), holds)}")
    need(got.keys() <= allowed.keys(), f"unknown steps {got.keys() - allowed.keys()}")
    if any(OLD_NAME.fullmatch(name) is None for name in got):  # version 0.1.0 must not open it, nor collect
        need("step_names" in json.loads(store["store.json"].data).get("required", []), "store.json requires nothing")
        need(isinstance(store["lock"], dict) and "lock2" in store, "the lock has not moved")
    moved = [op.change for op, began, ended in record.spans if op.name == "mv"]
    for change in moved:  # one rename: neither both nor none
        need(sum(name in got for name in change) == 1, f"of {list(change)} there are {sorted(got)}")
    check_staged(record, reader, k, store, got)


def check_staged(record, reader, k, store, got):
    need = disk_reader.need
    staged = {}
    for s in reader.staged(store):
        need(s.name not in staged, f"two staged steps {s.name}")
        staged[s.name] = s
    first = begin(record.scenario)
    for s in staged.values():
        if s.ready:  # the next mount commits it by itself, so it must be all there
            want = record.allowed(len(record.trace.lines)).get(s.name, [None])[-1]
            have = {path: s.hash(path) for path in s.files}
            need(have == want, f"staging: {s.name} is ready, but: {difference(have, [want])}")
        if s.base and s.name in first and s.name in got:  # a copy of a committed step: none of its leaves is lost
            lost = [
                path
                for path, digest in first[s.name].items()
                if path not in record.scenario.touched and s.hash(path) != digest
            ]
            need(not lost, f"staging: the copy of step {s.name} comes back without {lost[:5]} ({len(lost)})")
    for name, content in record.promised(k).items():
        target = [n for op, *_ in record.spans for n in op.change if op.change[n] == content]
        if any(got.get(n) == content for n in target):
            continue
        need(name in staged, f"staging: {name}, which was fsynced, is gone")
        s = staged[name]
        for path, digest in content.items():
            need(s.hash(path) == digest, f"staging: {name}/{path}, which was fsynced, is {s.hash(path)}")
            need(
                digest == disk_reader.DIRECTORY or s.is_held(path), f"staging: the object of {name}/{path} is not held"
            )


def play(record, limit=8):
    """The whole trace; (how many points, how many outcomes, what is wrong)."""
    reader, faults, count = disk_reader.Reader(), scenarios.Faults(limit), 0
    for k in range(len(record.trace.lines) + 1):
        if k:
            record.disk.play(record.trace.lines[k - 1], record.trace.data)
        for name, tree in record.disk.outcomes(random.Random(f"{SEED} {k}"), RANDOM):
            count += 1
            try:
                check_store(record, reader, k, tree)
            except disk_reader.Bad as e:
                faults.add(f"{k} ({name})", str(e), record.trace.around(k))
        if faults.full():
            break
    return k + 1, count, faults


def plain(tree):
    """Names and bytes alone."""
    return {
        name: plain(node) if isinstance(node, dict) else disk_reader.sha256(node.data) for name, node in tree.items()
    }


def sample(record, folder, every):
    """Outcomes of some points, as real directories; (k, name, folder)."""
    disk = powercut.Disk(record.copy)
    disk.path = record.disk.path
    wanted = itertools.cycle(("durable", "names, zeros", "random 0", "durable", "names, durable data", "random 1"))
    for k in range(len(record.trace.lines) + 1):
        if k:
            disk.play(record.trace.lines[k - 1], record.trace.data)
        if k % every == 0 or k == len(record.trace.lines):
            want = next(wanted)
            for name, tree in disk.outcomes(random.Random(f"{SEED} {k}"), RANDOM):
                if name == want:
                    yield k, name, powercut.materialise(tree, folder / f"{k}")


def check_directory(record, k, name, root, mounting):
    """By the commands; mounting: by a mount, too."""
    try:
        done = util.ckptfs("verify", root, "--json", check=None)
        assert done.returncode == 0, f"verify: exit {done.returncode}: {done.stdout} {done.stderr}"
        allowed = record.allowed(k)
        names = {s["name"] for s in json.loads(util.ckptfs("info", root, "--json").stdout)["steps"]}
        missing = [step for step, holds in allowed.items() if None not in holds and step not in names]
        assert not missing, f"info does not list {missing}"
        if mounting:
            with scenarios.Mount(root, *record.scenario.options, folder=root.with_suffix(".mount")) as m:
                assert m.alive, f"the mount failed: {m.said()}"
                scenarios.check_mount(m, allowed)
                assert m.end() == 0, m.said()
    except AssertionError as e:
        return f"{k} ({name})", str(e), record.trace.around(k)
    finally:
        scenarios.remove(root)
    return None


@pytest.fixture(scope="module")
def record(request, first, tmp_path_factory):
    """The run of a scenario; one for the whole module."""
    runs = {}

    def make(scenario):
        if scenario.name not in runs:
            folder = tmp_path_factory.mktemp(f"cut_{scenario.name}")
            root = scenarios.copy_root(scenario, first, folder / "root")
            scenarios.copy_root(NOTHING, root, folder / "copy")
            runs[scenario.name] = Record(scenario, root, folder)
            runs[scenario.name].copy = folder / "copy"
        return runs[scenario.name]

    return make


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_cut(record, scenario, tell, tmp_path):
    """Every point of the trace, every outcome."""
    r = record(scenario)
    points, outcomes, faults = play(r)
    tell(f"{points} points, {outcomes} outcomes")
    assert not faults, str(faults)
    strange = [
        path for path in r.disk.unknown if not path.endswith("/lock")
    ]  # which is empty, and of no use after a cut
    assert not strange, f"files that were made without the calls of core/io/disk.h: {strange}"
    assert plain(r.disk.outcome_all()) == plain(powercut.Disk(r.root).outcome_all()), "a call is missing from the trace"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_cut_on_disk(record, scenario, tell, tmp_path):
    """A sample of the points: the commands and a mount read what is left."""
    r = record(scenario)
    every = min(COMMANDS, max(1, len(r.trace.lines) // 4))
    count = len(r.trace.lines) // every + 1
    mounting, faults = max(1, count // MOUNTS), scenarios.Faults()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(check_directory, r, k, name, root, n % mounting == 0)
            for n, (k, name, root) in enumerate(sample(r, tmp_path, every))
        ]
        for job in jobs:
            if wrong := job.result():
                faults.add(*wrong)
    tell(f"{len(jobs)} points by commands, {-(-len(jobs) // mounting)} of them mounted")
    assert not faults, str(faults)


# --- is a fault seen at all?


@pytest.mark.parametrize("what", ["steps", "objects", "manifest"])
def test_missing_fsyncs_are_seen(record, what):
    """The same trace without some of its fsyncs must fail: of steps/, of the folders of objects, of the manifest's
    file.
    """
    r = record(SCENARIOS[0])
    lines, linked = (
        r.trace.lines,
        {line[1] for line in r.trace.lines if line[0] in ("link", "rename") and "/steps/" in line[2]},
    )

    def dropped(line):
        if line[0] != "fsync":
            return False
        return {
            "steps": line[1].endswith("/steps"),
            "objects": "/objects/" in line[1] or line[1].endswith("/objects"),
            "manifest": line[1] in linked,
        }[what]

    cut = object.__new__(Record)
    cut.__dict__.update(r.__dict__)
    cut.trace = object.__new__(powercut.Trace)
    cut.trace.data = r.trace.data
    cut.trace.lines = [["none", line[1]] if dropped(line) else line for line in lines]
    assert cut.trace.lines != lines, "there is no such fsync"
    cut.disk = powercut.Disk(r.copy)
    cut.disk.path = r.disk.path
    assert play(cut, limit=1)[2]
