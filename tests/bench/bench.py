# SPDX-License-Identifier: Apache-2.0
"""The bench's main program: data, rounds, report. See docs/performance.md for how to read what it finds."""

import argparse
import fcntl
import fnmatch
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import datasets
import report
from mount import Mount, MountError
from perf import profile
from scenarios import laziness, scenarios
from store_scenarios import store_scenarios
from worker import HERE, Worker, WorkerError

TOP = os.path.dirname(os.path.dirname(HERE))
PUBLISH_ROUNDS = 5  # fewer say too little to be printed in the documentation

SETTLE = 5 << 29  # bytes: what a restore, its page cache and the daemon together need, and some
QUICK_OPS = ("load", "leaf", "command", "metadata")  # that need little memory


class Bench:
    """What a scenario needs: the workers, mounts, and a place for its figures."""

    def __init__(self, args, shape, sets, directory):
        self.binary, self.shape, self.sets, self.directory = args.binary, shape, sets, directory
        self.data_dir = args.scratch
        self.log = os.path.join(args.scratch, "daemon.log")
        self.without_ckptfs = args.no_ckptfs
        self.round = 0
        self.orbax, self.files = Worker("orbax_worker.py"), Worker("files_worker.py")
        self.trainers = {library: Worker("train_worker.py") for library in ("orbax", "ckptfs")}
        self.samples = {}  # name: seconds of each round
        self.cpu = {}  # name: CPU seconds, of the process that asked
        self.errors = {}  # name: the last failure
        self.high_water = {}  # dataset: bytes the daemon held at most

    def fail(self, name, error):
        self.errors[name] = str(error)
        print(f"bench: {name}: {error}", file=sys.stderr)

    def record(self, name, process, op, **arguments):
        try:
            if op not in QUICK_OPS:
                self.settle()
            found = process.ask(op, **arguments)
        except WorkerError as error:
            self.fail(name, error)
            return
        for seconds in found if isinstance(found, list) else [found]:
            self.note(name, seconds["wall"])
            self.cpu.setdefault(name, []).append(seconds["cpu"])

    def settle(self):
        self.files.ask("settle", most=SETTLE)

    def note(self, name, value):
        self.samples.setdefault(name, []).append(value)

    def mount(self, dataset):
        return BenchMount(self, dataset)

    def data_files(self):
        return [
            os.path.join(directory, name)
            for dataset in self.sets
            for directory, _, names in os.walk(dataset.dir)
            for name in names
        ]

    def warm_caches(self):
        for path in self.data_files():
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass

    def drop_caches(self):
        """All of the page cache if we may, else the pages of the data's files."""
        os.sync()
        try:
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("3")
        except OSError:
            for path in self.data_files():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


class BenchMount(Mount):
    def __init__(self, bench, dataset):
        super().__init__(bench.binary, dataset.orbax, bench.directory, bench.log)
        self.bench, self.dataset = bench, dataset

    def __enter__(self):
        super().__enter__()
        self.bench.note(f"{self.dataset.name} mount ckptfs", self.seconds)
        return self

    def __exit__(self, *exception):
        super().__exit__(*exception)
        high = self.bench.high_water
        high[self.dataset.name] = max(high.get(self.dataset.name, 0), self.high_water)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Compares ckptfs with Orbax and with ext4.")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS", 7)), help="of each measurement")
    parser.add_argument(
        "--scratch",
        default="/var/tmp/ckptfs-bench",
        help="where the data are kept between runs, 4 GB on a disk (default %(default)s)",
    )
    parser.add_argument("--fresh", action="store_true", help="make the data anew")
    parser.add_argument("--quick", action="store_true", help="little data, to see that the bench itself works")
    parser.add_argument("--only", metavar="PATTERN", help="scenarios by name, as in full-* (--only list names them)")
    parser.add_argument("--no-cold", action="store_true", help="leave the page cache of this machine alone")
    parser.add_argument("--no-ckptfs", action="store_true", help="Orbax and ext4 alone")
    parser.add_argument("--no-docs", action="store_true", help="print the table, do not write docs/performance.md")
    parser.add_argument("--profile", action="store_true", help="record with perf where missed aims spend their time")
    parser.add_argument("--binary", default=os.path.join(TOP, "build", "fs", "ckptfs"))
    return parser.parse_args()


def check_data(bench, sets):
    """A fast wrong answer is none: once, untimed, every leaf through the mount against the plain files."""
    for dataset in sets.values():
        try:
            with bench.mount(dataset) as mount:
                found = bench.files.ask("compare", root=mount.point, reference=dataset.npy)
        except (MountError, WorkerError) as error:
            found = {"differ": [str(error)]}
        if found["differ"]:
            bench.fail(f"{dataset.name} compare", f"{len(found['differ'])} differ: {found['differ'][:5]}")


def run_rounds(bench, chosen, rounds):
    names = list(chosen)
    for index in range(rounds):
        bench.round = index
        start = index * len(names) // rounds
        for name in names[start:] + names[:start]:
            show(f"round {index + 1} of {rounds}: {name}")
            try:
                chosen[name](bench)
            except WorkerError as error:
                bench.fail(name, error)
    show("")


def show(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def describe_machine(bench, args):
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    kind = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "-T", args.scratch], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "model": model,
        "kernel": platform.release(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "filesystem": kind,
        "python": platform.python_version(),
        "versions": bench.orbax.ask("versions"),
    }


def all_scenarios(sets):
    return {**scenarios(sets), **store_scenarios(sets)}


def choose(args, sets):
    chosen = {name: run for name, run in all_scenarios(sets).items() if fnmatch.fnmatch(name, args.only or "*")}
    if args.no_cold:
        chosen.pop("cold", None)
    return chosen


def run(args, bench, sets, chosen):
    if not args.no_ckptfs:
        check_data(bench, sets)
    bench.warm_caches()
    result = {
        "machine": describe_machine(bench, args),
        "rounds": args.rounds,
        "time": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg(),
    }
    run_rounds(bench, chosen, args.rounds)
    if not args.no_ckptfs and not args.only:
        result["laziness"] = laziness(bench, sets["float32"])
    result.update(
        load_after=os.getloadavg(),
        samples=bench.samples,
        cpu=bench.cpu,
        errors=bench.errors,
        high_water=bench.high_water,
    )
    if args.profile:
        result["profiles"] = profile(bench, sets, report.missed(result), args.scratch)
    return result


def main():
    args = parse_arguments()
    args.scratch = os.path.join(os.path.abspath(args.scratch), "quick" if args.quick else "full")
    sets = datasets.datasets(args.scratch)
    chosen = choose(args, sets)
    if args.only == "list":
        print("\n".join(all_scenarios(sets)))
        return 0
    if not args.no_ckptfs and not os.access(args.binary, os.X_OK):
        print(f"bench: {args.binary} is not built", file=sys.stderr)
        return 1
    os.makedirs(args.scratch, exist_ok=True)
    lock = open(os.path.join(args.scratch, "lock"), "w")  # until the end: two runs would delete each other's roots
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"bench: another run uses {args.scratch}", file=sys.stderr)
        return 1
    options = [f"--{name}" for name in ("fresh", "quick") if getattr(args, name)]
    subprocess.run(
        [sys.executable, os.path.join(HERE, "datasets.py"), args.scratch, *options],
        check=True,
        env=dict(os.environ, JAX_PLATFORMS="cpu"),
    )
    directory = tempfile.mkdtemp(prefix="ckptfs-bench-")
    bench = Bench(args, datasets.QUICK if args.quick else datasets.FULL, sets.values(), directory)
    try:
        result = run(args, bench, sets, chosen)
    finally:
        for worker in (bench.orbax, bench.files, *bench.trainers.values()):
            worker.stop()
        os.rmdir(directory)  # never a tree: a mount that is stuck stays, and says so
    path = os.path.join(args.scratch, "result.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
    text = report.render(result)
    print(text)
    print(f"bench: the figures of each round are in {path}")
    if not (args.no_docs or args.quick or args.only or args.no_ckptfs) and args.rounds >= PUBLISH_ROUNDS:
        report.publish(text, os.path.join(TOP, "docs", "performance.md"))
    return 1 if bench.errors and not args.no_ckptfs else 0


if __name__ == "__main__":
    sys.exit(main())
