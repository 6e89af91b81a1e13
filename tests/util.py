"""Mounts, commands and data for the tests."""

import contextlib
import gc
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
DATA = TESTS / "data"
ORBAX = DATA / "orbax"
CKPTFS = os.path.abspath(os.environ.get("CKPTFS", TESTS.parent / "build/fs/ckptfs"))
LIMIT = 60  # seconds for a command, or for a mount to appear or go
PROGRAM = Path(CKPTFS).read_bytes() if os.path.exists(CKPTFS) else b""
SANITIZED = next(
    (name for name, mark in (("address", b"__asan_init"), ("thread", b"__tsan_init")) if mark in PROGRAM), None
)
HOOKS = b"CKPTFS_DISK_FAIL" in PROGRAM  # built with -Dtest_hooks=true
del PROGRAM
SUSPICIOUS = re.compile(
    r"Sanitizer|runtime error:|Assertion .* failed|assertion failed|stack smashing|double free|corrupted", re.I
)


def need_hooks(*words):
    """Fails if words (of a command, or NAME=VALUE) ask for the hooks of core/io/disk.h, and the program has none."""
    asked = [str(word) for word in words if str(word).startswith("CKPTFS_DISK_")]
    how = "meson setup --reconfigure build -Dtest_hooks=true, and build again"
    assert HOOKS or not asked, f"{CKPTFS} has no test hooks, which {asked[0]} needs: {how}"


def run(*command, check=0, limit=LIMIT, **kwargs):
    """Run a command; stdout and stderr are text unless text=False. check: the exit status to expect, None for any."""
    kwargs.setdefault("text", True)
    need_hooks(*command, *(kwargs.get("env") or {}))
    done = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, **kwargs
    )
    said = done.stderr if kwargs["text"] else done.stderr.decode(errors="replace")
    assert not SUSPICIOUS.search(said), said
    assert check is None or done.returncode == check, f"exit {done.returncode}: {said.strip() or done.stdout}"
    return done


def ckptfs(*args, **kwargs):
    """Run a ckptfs command, as run does."""
    return run(CKPTFS, *args, **kwargs)


def mounted(top):
    """True if something is mounted at top; does not ask the file system that is."""
    quoted = re.sub(r"[ \t\n\\]", lambda m: "\\%03o" % ord(m[0]), str(top))
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == quoted for line in f)


def wait_for(condition, limit=LIMIT, every=0.05):
    """Wait until condition() is true and return its value; fails after limit seconds."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(every)
    return value


def unmount(top, how=None):
    """Unmount as root or as an ordinary user; how is -f (abort) or -l (detach)."""
    if os.geteuid() == 0:
        command = ["umount", *([how] if how else []), str(top)]
    else:
        command = ["fusermount3", "-uz" if how else "-u", str(top)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)


class Mount:
    """One mount with its daemon in the foreground; use as a context, or start() and stop().

    A daemon that stops answering for `patience` seconds is killed, which makes blocked calls return. prefix is a
    command that runs the daemon, in the same process. stop() fails if the daemon
    did not end well, or if its log (self.log) holds a sanitizer's report.
    """

    def __init__(self, source, *options, folder, patience=120, prefix=()):
        self.source, self.options, self.patience, self.prefix = source, options, patience, prefix
        self.top, self.log = Path(folder) / "mnt", Path(folder) / "log"
        self.daemon = self.timer = None

    def start(self):
        need_hooks(*self.prefix)
        self.top.mkdir(parents=True)
        command = [*self.prefix, CKPTFS, "mount", "-f", str(self.source), str(self.top)]
        command += ["-o", ",".join(self.options)] if self.options else []
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.renew_patience()
        try:
            wait_for(lambda: mounted(self.top) or self.daemon.poll() is not None)
            assert self.daemon.poll() is None, f"mount failed ({self.daemon.returncode}): {self.said()}"
            os.stat(self.top)  # answers
        except BaseException:
            self.abort()
            raise
        return self

    def renew_patience(self):
        """Start the time after which the daemon counts as hung anew."""
        if self.timer:
            self.timer.cancel()
        self.timer = threading.Timer(self.patience, self.abort)
        self.timer.daemon = True
        self.timer.start()

    def abort(self):
        """Get rid of the mount, whatever state it is in."""
        unmount(self.top, "-f")
        if self.daemon.poll() is None:
            self.daemon.kill()
        unmount(self.top, "-l")

    def stop(self):
        busy = None
        if self.daemon.poll() is None:
            end = time.monotonic() + 10
            while (done := unmount(self.top)).returncode:
                busy = done.stderr.strip()
                gc.collect()  # an exception's frames keep what a test had mapped or open
                if time.monotonic() > end:
                    break
                time.sleep(0.1)
            else:
                busy = None
        try:
            status = self.daemon.wait(LIMIT if busy is None else 1)
        except subprocess.TimeoutExpired:
            status = "still running"
        self.timer.cancel()
        self.abort()
        self.daemon.wait(LIMIT)
        self.top.rmdir()
        assert busy is None, f"not unmounted: {busy}"
        self.check_log()
        assert status == 0, f"daemon ended with {status}: {self.said()}"

    def crash(self):
        """SIGKILL the daemon, and clear the mount away."""
        self.timer.cancel()
        self.daemon.kill()
        self.daemon.wait(LIMIT)
        self.abort()
        self.top.rmdir()
        self.check_log()

    def said(self):
        return self.log.read_text(errors="replace")[-20000:]

    def check_log(self):
        """No report of a sanitizer, however much was said after it."""
        log = self.log.read_text(errors="replace")
        found = SUSPICIOUS.search(log)
        assert not found, log[max(0, found.start() - 1000) : found.start() + 20000]

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        try:
            self.stop()
        except AssertionError:
            if kind is None:  # else the test's own failure says more
                raise

    def __truediv__(self, path):
        return self.top / path

    def memory(self, field="VmHWM"):
        """Resident memory of the daemon in bytes: VmHWM the peak, VmRSS now."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))


def copy_tree(source, target):
    """A copy that shares no file with the source."""
    shutil.copytree(source, target, symlinks=True)
    return Path(target)


def link_tree(source, target):
    """A copy made of hard links, for many steps at little cost."""
    shutil.copytree(source, target, copy_function=os.link)
    return Path(target)


@contextlib.contextmanager
def fails(*errnos):
    """The block must fail with an OSError of one of these errno values."""
    try:
        yield
    except OSError as e:
        assert e.errno in errnos, f"{e!r}, wanted {[os.strerror(n) for n in errnos]}"
        return
    raise AssertionError(f"no error, wanted {[os.strerror(n) for n in errnos]}")


def read_error(path):
    """None if the file can be read to its end, else the errno."""
    try:
        with open(path, "rb") as f:
            while f.read(1 << 20):
                pass
    except OSError as e:
        return e.errno
    return None


def end_process(process):
    """End a child that this test started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
