"""Each call that changes the disk fails: once, or that one and all after it. The caller is told, nothing committed is
hurt, and the work goes on when the fault is gone: on the same mount by making the failed call again, or on the next
mount from the beginning.

By default the four kinds take turns over the calls that Scenario.every picks, but for short scenarios; CRASH_EVERY=1:
every kind at every call.
"""

import concurrent.futures
import errno
import itertools
import os
import time

import pytest

import powercut
import scenarios
from scenarios import SCENARIOS

EVERY = int(os.environ.get("CRASH_EVERY", 0))
WORKERS = 4
KINDS = "ENOSPC:once", "EIO", "EIO:once", "ENOSPC"
FEW = 20  # calls of a run, that have every kind in any case


def one_run(scenario, first, folder, n, kind):
    folder.mkdir()
    root = scenarios.copy_root(scenario, first, folder / "root")
    env = {"CKPTFS_DISK_FAIL": f"{n}:{kind}"}
    error = getattr(errno, kind.split(":")[0])
    if scenario.command:
        fail_command(scenario, root, env, error, kind.endswith("once"))
    else:
        with scenarios.Mount(root, *scenario.options, folder=folder / "mount", env=env) as m:
            (fail_once if kind.endswith("once") else fail_on)(scenario, m, error)
    scenarios.remove(folder)


def whole(scenario):
    return {name: [holds] for name, holds in scenarios.end(scenario).items()}


def fail_once(scenario, m, error):
    """The very call that failed is made once more, and that is all."""
    assert m.alive, f"the mount failed: {m.said()}"
    calls = scenarios.Calls(m.top, retry=True)
    for op in scenario.ops:
        try:
            op.run(calls)
        except scenarios.ToolFailed as e:  # a program that does not try again
            assert e.errno == error, f"{op.name}: {e!r}: {m.said()}"
            op.run(calls)
        except OSError as e:
            raise AssertionError(f"{op.name}: {e!r} after {calls.errors}: {m.said()}") from None
    assert all(e.errno == error for e in calls.errors), f"{calls.errors}, wanted {os.strerror(error)}: {m.said()}"
    if scenario.helped:
        time.sleep(0.3)
        assert scenarios.run_command(scenario.helped, m.source)[0] == 0
    scenarios.wait_end(scenario, m)
    assert m.end() == 0, m.said()
    scenarios.check_root(m.source, whole(scenario))


def fail_on(scenario, m, error):
    """What fails stays so until the next mount."""
    done = 0
    if m.alive:
        calls = scenarios.Calls(m.top)
        try:
            for op in scenario.ops:
                op.run(calls)
                done += 1
            time.sleep(0.3)
        except OSError as e:
            assert e.errno == error, f"{scenario.ops[done].name}: {e!r}, wanted {os.strerror(error)}: {m.said()}"
        allowed = scenarios.allowed_after(scenario, done)
        scenarios.check_mount(m, allowed)  # reading goes on
        scenarios.check_copies(scenario, m, allowed)
        status = m.end()
        assert status == 0, f"the daemon ended with {status}: {m.said()}"
    allowed = scenarios.allowed_after(scenario, done)
    scenarios.check_root(m.source, allowed)
    with scenarios.Mount(m.source, *scenario.options, folder=m.top.parent) as again:
        scenarios.check_next_mount(scenario, again, allowed)
        scenarios.redo(scenario, again)
        assert again.end() == 0, again.said()
    scenarios.check_root(m.source, whole(scenario))


def fail_command(scenario, root, env, error, once):
    status, said = scenarios.run_command(scenario.command, root, env)
    assert status == 0 or os.strerror(error) in said, f"exit {status}: {said}"
    scenarios.check_root(root, scenarios.allowed_after(scenario, 0 if status else len(scenario.ops)))
    scenarios.redo_command(scenario, root)
    scenarios.check_root(root, whole(scenario))


def calls_of(scenario, first, folder):
    """About how many calls a run makes: those that succeed have a line in a trace."""
    folder.mkdir()
    root = scenarios.copy_root(scenario, first, folder / "root")
    env = {"CKPTFS_DISK_TRACE": folder / "trace"}
    if scenario.command:
        assert scenarios.run_command(scenario.command, root, env)[0] == 0
    else:
        with scenarios.Mount(root, *scenario.options, folder=folder / "mount", env=env) as m:
            for op in scenario.ops:
                op.run(scenarios.Calls(m.top))
            time.sleep(0.3)
            assert m.end() == 0, m.said()
    return powercut.lines_of(folder / "trace")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_faults(first, scenario, tmp_path, tell):
    count, faults = calls_of(scenario, first, tmp_path / "count"), scenarios.Faults()
    points = range(1, count + 1, EVERY or scenario.every)
    runs = itertools.product(points, KINDS) if EVERY or count < FEW else zip(points, itertools.cycle(KINDS))
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        jobs = {
            (n, kind): pool.submit(one_run, scenario, first, tmp_path / f"{n}-{kind.replace(':', '-')}", n, kind)
            for n, kind in runs
        }
        for (n, kind), job in jobs.items():
            try:
                job.result()
            except Exception as e:
                faults.add(f"{n}:{kind}", scenarios.told(e))
                if faults.full():
                    pool.shutdown(cancel_futures=True)
                    break
    tell(f"{len(jobs)} runs, over {count} calls")
    assert not faults, f"a call fails: {faults}"
