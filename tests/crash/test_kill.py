"""The daemon, or the command, is killed at each call that changes the disk; then the next mount finds all that is
committed, and the work can be done again.

By default every call of the first scenario and of short ones, and every fourth of the others (Scenario.every);
CRASH_EVERY=1: every one.
"""

import concurrent.futures
import os
import subprocess
import time

import pytest

import scenarios
from scenarios import SCENARIOS

EVERY = int(os.environ.get("CRASH_EVERY", 0))
WORKERS = 4
LAST = int(os.environ.get("CRASH_LAST", 5000))  # calls; no scenario makes that many


def run_until_killed(scenario, m):
    """The operations, on a mount that is to be killed. (was it?, how many operations ended)."""
    done = 0
    if m.alive:
        try:
            calls = scenarios.Calls(m.top)
            for op in scenario.ops:
                op.run(calls)
                done += 1
            time.sleep(0.3)  # what it does in the background
        except OSError as e:
            try:
                m.daemon.wait(10)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{scenario.ops[done].name}: {e!r}, but the daemon lives: {m.said()}") from None
    status = m.end()
    assert status in (0, -9), f"the daemon ended with {status}: {m.said()}"
    return status == -9, done


def killed_at(scenario, first, folder, n):
    """One run, and what it leaves. False if it ended before call n."""
    folder.mkdir()
    root = scenarios.copy_root(scenario, first, folder / "root")
    env = {"CKPTFS_DISK_FAIL": f"{n}:KILL"}
    if scenario.command:
        status, said = scenarios.run_command(scenario.command, root, env)
        assert status in (0, -9), f"exit {status}: {said}"
        killed, done = status == -9, len(scenario.ops) if status == 0 else 0
    else:
        with scenarios.Mount(root, *scenario.options, folder=folder / "mount", env=env) as m:
            killed, done = run_until_killed(scenario, m)
            after(scenario, root, folder, done)
    if scenario.command:
        after(scenario, root, folder, done)
    scenarios.remove(folder)
    return killed


def after(scenario, root, folder, done):
    """The next mount, on the same mount point."""
    allowed = scenarios.allowed_after(scenario, done)
    scenarios.check_root(root, allowed)
    with scenarios.Mount(root, *scenario.options, folder=folder / "mount") as m:
        scenarios.check_next_mount(scenario, m, allowed)
        if scenario.command:
            scenarios.redo_command(scenario, root)
            scenarios.check_mount_soon(m, {name: [holds] for name, holds in scenarios.end(scenario).items()})
        else:
            scenarios.redo(scenario, m)
        assert m.end() == 0, m.said()
    scenarios.check_root(root, {name: [holds] for name, holds in scenarios.end(scenario).items()})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_kill(first, scenario, tmp_path, tell):
    every, faults, killed, n = EVERY or scenario.every, scenarios.Faults(), 0, 1
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        more = True
        while more and n < LAST and not faults.full():
            batch = range(n, n + WORKERS * every, every)
            jobs = [pool.submit(killed_at, scenario, first, tmp_path / f"{k}", k) for k in batch]
            for k, job in zip(batch, jobs):
                try:
                    if job.result():
                        killed += 1
                    else:
                        more = False
                except Exception as e:
                    faults.add(k, scenarios.told(e))
            n = batch[-1] + every
    tell(f"killed {killed} times, at every {every}. call of about {n - every}")
    assert not faults, f"killed at a call: {faults}"
    assert killed, "it was never killed"
