#!/usr/bin/env python3
"""Processes change steps and sync them, the daemon is killed at random moments and mounted again; a model knows what
must be there.

    tests/stress/kills.py [--seconds S] [--kills N] [--seed S] [--mode explicit|settle|writers] [--steps own|one]

Rounds: each worker is a process that changes its own files of a step, call by call, and ends with its history: what its
files were after each call. Then, or while they run, the daemon is killed, or unmounted in peace. After that
- each step in the store, read without a mount, is as it was committed, whole;
- in the new mount each worker's files are as they were after one of its calls: not before the last sync or fsync that
succeeded,
  and all of them of the same moment. Of a write under way there may be a part, up to a page's end.
With --steps own each worker has a step of its own, with one they share one. Mode writers: two mounts with writers=2, of
which one or both are killed; a step is there when both came, never before, and has what both wrote.
"""

import argparse
import errno
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util
from workers import Fault, Worker, differences, read_tree


class Stress:
    def __init__(self, folder, mode, steps, seed, workers):
        self.folder, self.mode, self.rng = Path(folder), mode, random.Random(seed)
        self.root = self.folder / "root"
        self.root.mkdir()
        util.ckptfs("init", self.root)
        options = {
            "explicit": ["commit=explicit"],
            "settle": ["settle=0.3"],
            "writers": ["writers=2", "commit_timeout=2"],
        }[mode]
        self.options = [[*options, f"writer={k}"] for k in range(2)] if mode == "writers" else [options]
        self.mounts = [None] * len(self.options)
        self.serial = self.kills = self.rounds = self.taken = 0
        self.sealed = {}  # steps that nobody changes: name -> tree
        self.new_workers(steps, workers)
        for k in range(len(self.mounts)):
            self.start(k)

    def new_workers(self, steps, count):
        self.step, self.counts = 1, Counter()
        if self.mode == "writers":
            self.workers = [Worker(k, "1", True, self.rng.random()) for k in range(2)]
        else:
            self.workers = [
                Worker(k, "1" if steps == "one" else str(k + 1), steps == "one", self.rng.random())
                for k in range(count)
            ]

    def start(self, k):
        self.serial += 1
        self.mounts[k] = util.Mount(self.root, *self.options[k], folder=self.folder / f"mount{self.serial}").start()

    def mount_of(self, worker):
        return self.mounts[worker.number if self.mode == "writers" else 0]

    def round(self, kill):
        """All workers for a while, and a kill at some moment of it."""
        self.rounds += 1
        length = self.rng.uniform(0.2, 1.2)
        until = time.monotonic() + length
        children = [Child(w, self.mount_of(w).top, until, self.mode) for w in self.workers]
        victims = []
        if kill:
            longer = 1.3 if self.mode == "writers" else 1
            time.sleep(self.rng.uniform(0, length * longer))
            victims = self.rng.choice([[0], [1], [0, 1]]) if self.mode == "writers" else [0]
            for k in victims:
                self.mounts[k].daemon.kill()
            self.kills += 1
        results = [child.result() for child in children]
        self.workers = [worker for worker, _, _ in results]
        faults = [f"worker {w.number}: {fault}\n  calls: {w.trace}" for w, _, fault in results if fault]
        for w, ended, _ in results:
            if ended and not any(self.mount_of(w) is self.mounts[k] for k in victims):
                faults.append(f"worker {w.number}: {ended}, but nobody killed it: {self.mount_of(w).said()}")
        if faults:
            raise Fault("\n".join(faults))
        for k in victims:
            self.mounts[k].crash()
            shutil.rmtree(self.mounts[k].log.parent)
        return victims

    def copy_step(self, name, target):
        """Again where the step is replaced meanwhile: by a mount that was not killed, and in which it has settled."""
        for _ in range(20):
            shutil.rmtree(target, ignore_errors=True)
            done = util.ckptfs("cp", self.root, name, target, check=None)
            if "Stale file handle" not in done.stderr:
                break
        assert done.returncode == 0, f"cp of step {name}: exit {done.returncode}: {done.stderr}"

    def check_store(self):
        """Every committed step, without a mount."""
        names = sorted(
            p.name.removesuffix(".json") for p in (self.root / ".ckptstore/steps").iterdir() if p.name.endswith(".json")
        )
        copies = {}
        for name in names:
            copies[name] = self.folder / f"copy{name}"
            self.copy_step(name, copies[name])
        for worker in self.workers:
            if self.mode != "writers":
                worker.check_store(copies.get(worker.step, self.folder / "none"))
        for name, tree in self.sealed.items():
            if name not in copies or {p: s[3:] for p, s in read_tree(copies[name]).items()} != {
                p: s[3:] for p, s in tree.items()
            }:
                raise Fault(f"step {name}, which nobody touches, is lost or has changed")
        for copy in copies.values():
            shutil.rmtree(copy)
        return names

    def after_kill(self, victims):
        names = self.check_store()
        for k in victims:
            self.start(k)
        if self.rng.random() < 0.2:
            util.ckptfs("gc", self.root)
        for worker in self.workers:
            is_killed = self.mount_of(worker) in [self.mounts[k] for k in victims]
            if is_killed and not (self.mode == "writers" and worker.step in names):
                worker.after_crash(self.mount_of(worker).top)

    def in_peace(self):
        """Nobody was killed."""
        for worker in self.workers:
            worker.mount = str(self.mount_of(worker).top)
            worker.check_now("after a round")
        if self.mode == "settle" and self.rng.random() < 0.5:
            for worker in self.workers:
                # By itself no step is committed that is empty, or that nobody has changed since the crash before.
                if list(worker.tree) == [""] or not worker.has_changed:
                    continue

                def is_committed():
                    try:
                        return os.getxattr(worker.path(""), "user.ckpt.state") == b"committed"
                    except FileNotFoundError:
                        return "" not in worker.tree

                util.wait_for(is_committed)
                worker.settled()
            for worker in self.workers:
                worker.check_now("after the step has settled")
        if self.rng.random() < 0.2:
            self.check_store()
        if self.rng.random() < 0.2 and self.mode != "writers":
            self.mounts[0].stop()
            shutil.rmtree(self.mounts[0].log.parent)
            self.start(0)
            for worker in self.workers:
                worker.mount = str(self.mounts[0].top)
                worker.check_now("after an unmount")
        if self.rng.random() < 0.3 and self.mode != "writers":
            self.seal()

    def seal(self):
        """A step that is made by a rename, of blobs of which others are copies, and that nobody changes any more."""
        name = str(1000 + len(self.sealed) % 8 + self.taken)
        if len(self.sealed) >= 8:
            old = next(iter(self.sealed))
            del self.sealed[old]
            self.taken += 1
            shutil.rmtree(self.mounts[0] / old)
            name = str(1000 + self.taken + 7)
        top = self.mounts[0] / f".new{name}"
        (top / "d").mkdir(parents=True)
        (top / "d/f").write_bytes(self.rng.randbytes(100_000))
        for n, (path, state) in enumerate(sorted(self.workers[0].tree.items())):
            if state[0] == "file":
                self.share(self.workers[0].path(path), top / f"l{n}")
        os.rename(top, self.mounts[0] / name)
        self.sealed[name] = read_tree(str(self.mounts[0] / name))

    def share(self, source, target):
        """Files of committed steps can be linked, those of other staged ones only copied."""
        if self.rng.random() < 0.5:
            try:
                return os.link(source, target)
            except OSError as e:
                if e.errno != errno.EXDEV:
                    raise
        return shutil.copyfile(source, target)

    def end_of_step(self):
        """Of mode writers: both have come, or one of them was killed and comes again."""
        names = self.check_store()
        step = self.workers[0].step
        came = [w.phase != "writing" for w in self.workers]
        if step in names:
            if not all(came):
                raise Fault(f"step {step} is committed, though not all writers came: {[w.phase for w in self.workers]}")
            want = {}
            for w in self.workers:
                want |= w.tree
            for m in self.mounts:
                util.wait_for(lambda: (m / step).exists())
                found = read_tree(str(m / step))
                wrong = [d for d in differences(found, want) if not d.startswith("''")]
                if wrong:
                    raise Fault(f"step {step} of two writers:\n  " + "\n  ".join(wrong))
            self.counts["commits"] += 1
            self.sealed[step] = read_tree(str(self.mounts[0] / step))
            if len(self.sealed) > 6:
                old = next(iter(self.sealed))
                del self.sealed[old]
                shutil.rmtree(self.mounts[self.rng.randrange(2)] / old)
            self.step += 1
            for w in self.workers:
                self.counts.update(w.counts)
            self.workers = [Worker(k, str(self.step), True, self.rng.random()) for k in range(2)]
        elif any(w.phase == "synced" for w in self.workers):
            raise Fault(f"step {step} was synced, and is not there")

    def one(self):
        victims = self.round(kill=self.rng.random() < 0.7)
        if self.mode == "writers":
            if victims:
                self.after_kill(victims)
            self.end_of_step()
        else:
            self.after_kill(victims) if victims else self.in_peace()

    def stop(self):
        for m in self.mounts:
            m.stop()
        assert "0 faults" in util.ckptfs("verify", self.root).stdout

    def result(self):
        counts = Counter(self.counts)
        for w in self.workers:
            counts.update(w.counts)
        return f"{self.rounds} rounds, {self.kills} kills, " + ", ".join(
            f"{n} {what}" for what, n in sorted(counts.items())
        )


class Child:
    """A worker's process. It hands its model back through a file, which a killed one cannot."""

    def __init__(self, worker, mount, until, mode):
        self.file = tempfile.TemporaryFile()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            fault = ended = None
            try:
                ended = worker.run(mount, until, mode)
            except Fault as e:
                fault = str(e)
            pickle.dump((worker, ended, fault), self.file)
            self.file.flush()
            code = 0
        except BaseException as e:
            print(f"worker {worker.number}: {e!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def result(self):
        end = time.monotonic() + 180
        while (done := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise Fault("a worker hangs")
            time.sleep(0.01)
        assert done[1] == 0, f"a worker ended with {done[1]}"
        self.file.seek(0)
        with self.file:
            return pickle.load(self.file)


def run(folder, mode="explicit", steps="own", seconds=20, kills=None, seed=None, workers=4):
    """One sentence of what was done; a Fault with the seed in it at the first difference."""
    seed = random.randrange(1 << 30) if seed is None else int(seed)
    print(f"kills: mode {mode}, steps {steps}, seed {seed}", flush=True)
    stress, end = Stress(folder, mode, steps, seed, workers), time.monotonic() + seconds
    try:
        while time.monotonic() < end if kills is None else stress.kills < kills:
            stress.one()
    except BaseException as e:
        for m in stress.mounts:
            print(m.said() if m.log.exists() else "", flush=True)
            m.abort()
        if isinstance(e, (AssertionError, OSError)):
            raise Fault(
                f"mode {mode}, steps {steps}, seed {seed}, round {stress.rounds}, kill {stress.kills}: {e}"
            ) from e
        raise
    stress.stop()
    return stress.result()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="in each mode")
    parser.add_argument("--kills", type=int, help="instead of --seconds")
    parser.add_argument("--seed", type=int, help="the choices of a run; its moments are the machine's")
    parser.add_argument(
        "--mode", choices=["explicit", "settle", "writers"], action="append", help="all, if none is given"
    )
    parser.add_argument("--steps", choices=["own", "one"], default="own")
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    for mode in given.mode or ["explicit", "settle", "writers"]:
        with tempfile.TemporaryDirectory(prefix="ckptfs-kills-", ignore_cleanup_errors=True) as folder:
            print(run(folder, mode, given.steps, given.seconds, given.kills, given.seed, given.workers), flush=True)


if __name__ == "__main__":
    main()
