#!/usr/bin/env python3
"""Eight threads change one step and sync it; after each commit every byte of all their files is compared.

    tests/stress/threads.py [--seconds S] [--threads N] [--seed S] [--mode explicit|settle]

Each thread has files of its own in the step, and its model of them (workers.py). They sync it whenever they like,
beside the others' changes. A round ends with a sync that all wait for, and is compared through the mount, and without
it. It is made to be run on a program with the thread sanitizer, and with the address sanitizer: their reports are in
the mount's log, and fail the run.
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util
from workers import Fault, Worker, read_tree, differences

STEP = "1"


class Threads:
    def __init__(self, folder, mount, count, rng):
        self.folder, self.mount, self.rng = Path(folder), mount, rng
        self.workers = [Worker(k, STEP, True, rng.random()) for k in range(count)]
        self.faults, self.rounds = [], 0

    def work(self, worker, until, mode):
        try:
            ended = worker.run(self.mount.top, until, mode)
            if ended:
                self.faults.append(f"worker {worker.number}: {ended}")
        except (OSError, Fault) as e:
            self.faults.append(f"worker {worker.number}: {e!r}\n  calls: {worker.trace}")

    def one(self, mode):
        self.rounds += 1
        until = time.monotonic() + self.rng.uniform(0.3, 1)
        threads = [threading.Thread(target=self.work, args=(w, until, mode)) for w in self.workers]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if self.faults:
            raise Fault("\n".join(self.faults))
        self.commit()
        self.compare(self.mount / STEP, "after the commit")
        copy = self.folder / "copy"
        util.ckptfs("cp", self.mount.source, STEP, copy)
        self.compare(copy, "in the store")
        shutil.rmtree(copy)

    def commit(self):
        """Nobody has a file open now. The kernel tells late of what was closed."""
        end = time.monotonic() + 20
        while not self.workers[0].sync():
            if time.monotonic() > end:
                raise Fault(f"no commit within 20 s: {self.workers[0].counts}")
            time.sleep(0.05)
        for w in self.workers[1:]:
            w.settled()

    def compare(self, top, when):
        want = {}
        for w in self.workers:
            want |= w.tree
        found = read_tree(str(top))
        wrong = (
            [
                d
                for d in differences(
                    {p: (s[0], s[3:]) for p, s in found.items()}, {p: (s[0], s[3:]) for p, s in want.items()}
                )
            ]
            if "store" in when
            else differences({**found, "": want[""]}, want)
        )
        if wrong:
            calls = [
                f"worker {w.number}: {w.trace}"
                for w in self.workers
                if any(f"{w.number}-" in d.split(":")[0] for d in wrong)
            ]
            raise Fault(f"{when}:\n  " + "\n  ".join(wrong + calls))


def run(folder, mode="explicit", seconds=10, count=8, seed=None):
    seed = random.randrange(1 << 30) if seed is None else int(seed)
    print(f"threads: mode {mode}, {count} threads, seed {seed}", flush=True)
    root, end = Path(folder) / "root", time.monotonic() + seconds
    root.mkdir()
    util.ckptfs("init", root)
    options = ["commit=explicit"] if mode == "explicit" else ["settle=0.3"]
    with util.Mount(root, *options, folder=Path(folder) / "mount", patience=seconds + 120) as m:
        threads = Threads(folder, m, count, random.Random(seed))
        try:
            while not threads.rounds or time.monotonic() < end:
                threads.one(mode)
        except (AssertionError, OSError) as e:
            raise Fault(f"mode {mode}, seed {seed}, round {threads.rounds}: {e}\n{m.said()}") from e
    assert "0 faults" in util.ckptfs("verify", root).stdout
    counts = sum((w.counts for w in threads.workers), Counter())
    return f"{threads.rounds} rounds, " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="in each mode")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, help="the choices of a run; its moments are the machine's")
    parser.add_argument("--mode", choices=["explicit", "settle"], action="append", help="both, if none is given")
    given = parser.parse_args()
    for mode in given.mode or ["explicit", "settle"]:
        with tempfile.TemporaryDirectory(prefix="ckptfs-threads-", ignore_cleanup_errors=True) as folder:
            print(run(folder, mode, given.seconds, given.threads, given.seed), flush=True)


if __name__ == "__main__":
    main()
