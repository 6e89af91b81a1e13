#!/usr/bin/env python3
"""Random calls on the files of one step, compared with a model after each: mounts a root, and runs fsx.c on it.

    tests/stress/fsx.py [--calls N] [--seed S] [--mode MODE]...

CKPTFS names the program to test, FSX the compiled fsx.c (beside it in the build by default).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import util

FSX = os.environ.get("FSX", Path(util.CKPTFS).parents[1] / "tests/stress/fsx")
# a daemon that is told to count its calls to the disk lets the kernel do none of them
DAEMON_ALONE = ("env", "CKPTFS_DISK_FAIL=1000000000000:EIO")
MODES = {  # options of the mount, what runs the daemon, options of fsx
    "explicit": (["commit=explicit"], (), []),
    "passthrough": (["commit=explicit", "passthrough"], (), []),
    "daemon": (["commit=explicit"], DAEMON_ALONE, []),
    "settle": (["settle=0.2"], (), ["-S"]),
    "settle-daemon": (["settle=0.2"], DAEMON_ALONE, ["-S"]),
    "codec-none": (["commit=explicit", "codec=none", "passthrough"], (), []),
}


def run(folder, mode, calls, seed=None, longest=300_000, between=None, seconds=3600):
    """What fsx says; it fails at the first difference."""
    options, prefix, more = MODES[mode]
    root = Path(folder) / "root"
    root.mkdir()
    util.ckptfs("init", root)
    between = between or (400 if "settle" in mode else 200)
    command = [FSX, "-q", "-n", calls, "-l", longest, "-c", between, "-p", util.CKPTFS, "-r", root, *more]
    command += ["-s", seed] if seed is not None else []
    with (
        util.Mount(root, *options, folder=Path(folder) / "one", prefix=prefix, patience=seconds) as m,
        util.Mount(root, "ro", "refresh=0.1", folder=Path(folder) / "two", patience=seconds) as other,
    ):
        done = subprocess.run(
            [*map(str, command), "-o", other.top, m.top],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{mode}: {done.stdout}{m.said()}"
    assert "0 faults" in util.ckptfs("verify", root, limit=seconds).stdout
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000, help="in each mode")
    parser.add_argument("--seed", type=int, help="of a run that is to be repeated")
    parser.add_argument("--longest", type=int, default=300_000, help="bytes of a file, at most")
    parser.add_argument("--between", type=int, help="calls between two commits, about")
    parser.add_argument("--mode", choices=MODES, action="append", help="all, if none is given")
    given = parser.parse_args()
    for mode in given.mode or MODES:
        with tempfile.TemporaryDirectory(prefix="ckptfs-fsx-") as folder:
            print(mode, run(folder, mode, given.calls, given.seed, given.longest, given.between), sep=": ", flush=True)


if __name__ == "__main__":
    main()
