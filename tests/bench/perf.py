# SPDX-License-Identifier: Apache-2.0
"""Where the time of a missed aim goes: the whole machine sampled with perf while the work is repeated."""

import os
import shutil
import signal
import subprocess
import sys
import time

from datasets import LARGE_LEAF, SMALL_LEAF, leaf_keys
from mount import MountError
from scenarios import LARGE, leaf_file
from worker import WorkerError

SECONDS = 6
LINES = 12


def fresh_full(bench, sets):
    with bench.mount(sets["float32"]) as mount:
        bench.files.ask("full", root=mount.point, way="threads")


def fresh_leaf(bench, sets, tail):
    with bench.mount(sets["float32"]) as mount:
        paths = [leaf_file(mount.point, leaf_keys(layer, tail)) for layer in range(bench.shape.layers)]
        bench.files.ask("load", paths=paths, warm=None)


def shell(bench, sets):
    with bench.mount(sets["float32"]) as mount:
        for layer in range(bench.shape.layers):
            bench.files.ask("command", argv=["cat", leaf_file(mount.point, leaf_keys(layer, SMALL_LEAF))])


def again(bench, sets, name, op, **arguments):
    """One mount, read once before, then for as long as perf samples."""
    with bench.mount(sets[name]) as mount:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            bench.files.ask(op, root=mount.point, **arguments)


WORK = {
    "full first": fresh_full,
    "full again": lambda bench, sets: again(bench, sets, "float32", "full", way="threads"),
    "leaf large": lambda bench, sets: fresh_leaf(bench, sets, LARGE_LEAF),
    "leaf small": lambda bench, sets: fresh_leaf(bench, sets, SMALL_LEAF),
    "shell": shell,
    "large again": lambda bench, sets: again(bench, sets, "float32", "large_read", above=LARGE),
    "small again": lambda bench, sets: again(bench, sets, "small", "small_read", names_from=sets["small"].npy),
}


def sample(work, data):
    recorder = subprocess.Popen(
        ["perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", "499", "-o", data],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            work()
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait(60)


def top(data):
    """The hottest functions of all but the idle task, in percent of the samples."""
    text = subprocess.run(
        [
            "perf",
            "report",
            "-i",
            data,
            "--stdio",
            "--no-children",
            "-g",
            "none",
            "--percent-limit",
            "0.5",
            "--sort",
            "comm,dso,symbol",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    lines = [fields for fields in lines if not fields[1].startswith("swapper")]
    return [
        {"percent": float(fields[0].rstrip("%")), "process": fields[1], "where": fields[2], "function": fields[4]}
        for fields in lines
        if len(fields) > 4
    ][:LINES]


def profile(bench, sets, missed, scratch):
    if not shutil.which("perf"):
        print("bench: perf is not installed, no profile", file=sys.stderr)
        return {}
    found = {}
    for name in missed:
        data = os.path.join(scratch, f"perf-{name.replace(' ', '-')}.data")
        try:
            sample(lambda name=name: WORK[name](bench, sets), data)
            found[name] = top(data)
        except (MountError, WorkerError, OSError, subprocess.SubprocessError) as error:
            bench.fail(f"profile {name}", error)
    return found
