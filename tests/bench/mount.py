# SPDX-License-Identifier: Apache-2.0
"""A ckptfs mount for the time of a `with` block: its own mount point, time limits, and gone afterwards."""

import os
import re
import subprocess
import tempfile
import time

LIMIT = 60  # seconds for any one command


class MountError(RuntimeError):
    pass


def run(argv, log=subprocess.DEVNULL):
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=LIMIT).returncode
    except (OSError, subprocess.TimeoutExpired):
        return -1


def is_mounted(path):
    with open("/proc/self/mountinfo") as file:
        return any(line.split()[4] == path for line in file)


def find_daemon(point):
    """The process that serves `point`: its command line names it."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if point.encode() in file.read().split(b"\0"):
                    return int(pid)
        except OSError:
            pass
    return None


class Mount:
    def __init__(self, binary, source, directory, log, options="ro"):
        self.binary, self.source, self.options = binary, source, options
        self.directory, self.log = directory, log
        self.point = self.pid = None
        self.seconds = None  # that `ckptfs mount` took
        self.high_water = 0  # bytes, of the daemon, read before it went

    def __enter__(self):
        self.point = tempfile.mkdtemp(prefix="mount-", dir=self.directory)
        with open(self.log, "ab") as log:
            start = time.perf_counter()
            code = run([self.binary, "mount", self.source, self.point, "-o", self.options], log)
            self.seconds = time.perf_counter() - start
        if code != 0:
            self.leave()
            raise MountError(f"ckptfs mount: exit {code}, see {self.log}")
        self.pid = find_daemon(self.point)
        return self

    def __exit__(self, *_):
        self.high_water = self.status_bytes("VmHWM")
        self.leave()

    def is_running(self):
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def status_bytes(self, field):
        try:
            with open(f"/proc/{self.pid}/status") as file:
                return int(re.search(rf"{field}:\s+(\d+) kB", file.read()).group(1)) * 1024
        except (OSError, AttributeError):
            return 0

    def cpu_seconds(self):
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            return 0.0

    def leave(self):
        """The gentle ways first; `umount -f` aborts the connection, so that whatever hangs on it wakes up."""
        for argv in (
            [self.binary, "umount", self.point],
            ["fusermount3", "-u", self.point],
            ["umount", self.point],
            ["umount", "-f", self.point],
            ["umount", "-l", self.point],
        ):
            if not is_mounted(self.point):
                break
            run(argv)
        deadline = time.monotonic() + 10
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.005)
        if is_mounted(self.point):
            raise MountError(f"{self.point} does not unmount")
        os.rmdir(self.point)
